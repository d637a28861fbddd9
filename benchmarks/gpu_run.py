"""Command line and deadline of the benchmarks of training on a GPU."""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


NO_TIME = "no time was left"
START = time.perf_counter()


class OutOfTime(BaseException):
    """The deadline has passed; no rung may take it for its own error."""


def parse_arguments(description: str) -> argparse.Namespace:
    """Read `--tiny`, `--minutes` and `--samples`."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="Small geometry on the processor; nothing is written.")
    parser.add_argument("--minutes", type=float, default=9, help="When to stop and report what was measured.")
    parser.add_argument("--samples", type=int, default=16, help="Samples of a step, one image each.")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        raise SystemExit("There is no GPU: pass --tiny to see that the benchmark runs.")
    return arguments


def seconds_left(minutes: float) -> float:
    """Seconds until so many minutes have passed since the start."""
    return START + 60 * minutes - time.perf_counter()


@contextmanager
def deadline(minutes: float) -> Iterator[None]:
    """Leave the block when so many minutes have passed since the start."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds_left(minutes), 1e-3))
        yield
    except OutOfTime:
        log("The time is over.")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def log(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """One line that says why something was not measured."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def data_sheet_peak(device: str) -> float | None:
    """Dense bf16 operations a second by the data sheet; `None` if the device is none that we know."""
    from trainers.roofline import GPUS

    known = [gpu.flops for name, gpu in GPUS.items() if name.split("-")[0] in device]
    return known[0] if known else None
