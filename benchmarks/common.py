"""What every benchmark shares: interleaved timing, and the one JSON object it ends with."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parents[1]))  # `captioning` is the package, not the benchmark beside this file


def best_of(rounds: int, **sides: Callable[[], Any]) -> dict[str, float]:
    """
    Time several callables in turns, so that a slow minute of the machine meets all of them.

    Args:
        rounds (`int`): How often each one runs.
        sides (`Callable`): What to time, by name.

    Returns:
        `dict[str, float]`: Shortest wall time of each, in seconds.
    """
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def finish(
    name: str,
    ratios: Mapping[str, float | None],
    targets: dict[str, float],
    details: dict[str, Any],
    equal: bool,
    machine: str | None = None,
    write: bool = True,
) -> dict[str, Any]:
    """
    Write `results/<name>.json` and print the same object as the last line of standard output.

    Args:
        name (`str`): Name of the benchmark.
        ratios (`dict[str, float]`): Bigger is better; `None`: not measured, which meets no target.
        targets (`dict[str, float]`): Least ratio by the same names.
        details (`dict`): Everything else that was measured.
        equal (`bool`): Whether both sides gave the same results within the stated tolerance.
        machine (`str`, *optional*): What it ran on; this machine's processor by default.
        write (`bool`, defaults to `True`): Whether the file is written; a trial run only prints.

    Returns:
        `dict`: The object.

    Raises:
        `ValueError`: Ratios and targets differ in their names.
    """
    if set(ratios) != set(targets):
        raise ValueError(f"Every ratio needs a target: {sorted(ratios)} against {sorted(targets)}.")
    result = {
        "benchmark": name,
        "ratios": {key: None if value is None else round(value, 3) for key, value in ratios.items()},
        "targets": targets,
        "details": details,
        "equal": equal,
        "met": equal and all((ratios[key] or 0) >= target for key, target in targets.items()),
        "machine": machine or f"{os.cpu_count()} cores, {platform.machine()}",
    }
    if write:
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return result
