"""The training script in children, which start fast because the process that they come from has imported it."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tests.trainers.checkpoint_child import At, ranks, run_together
from trainers import train


def child(log: Path, rank: dict[str, str], argv: list[str], plan: dict[str, Any]) -> None:
    """
    Run `trainers.train` as its command line does; `plan` is `{"signal": (number, step, event)}` or
    `{"killed_after": seconds from the first step on}`.
    """
    os.environ.update({**rank, "HF_HUB_OFFLINE": "1"})
    stream = log.open("w")
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    if plan:
        callback = At()
        if "signal" in plan:
            number, step, event = plan["signal"]
            callback = At(step, lambda: os.kill(os.getpid(), number), event)
        if "killed_after" in plan:
            callback = At(1, lambda: signal.setitimer(signal.ITIMER_REAL, plan["killed_after"]))
        for name, kind in train.TRAINERS.items():
            train.TRAINERS[name] = _with(kind, callback)
    logging.getLogger().handlers.clear()
    try:
        train.main(argv)
    finally:
        stream.flush()


def _with(kind: type, callback: TrainerCallback):
    def make(**options: Any):
        return kind(callbacks=[callback], **options)

    return make


def run_stage(
    folder: Path, argv: list[str], plan: dict[str, Any] | None = None, processes: int = 1
) -> tuple[list[int], str]:
    """Exit codes of the processes of one run, the plan being that of the last one, and what the first has printed."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"log-{number}.txt" for number in range(processes)]
    plans = [{}] * (processes - 1) + [plan or {}]
    codes = run_together(
        child, [(log, rank, argv, own) for log, rank, own in zip(logs, ranks(processes), plans, strict=True)]
    )
    return codes, logs[0].read_text()
