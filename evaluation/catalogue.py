"""
The benchmarks by name, each in a module of its name, which is imported when the benchmark is asked for.

The order is that of Table 3 of the paper (arXiv:2311.12793), then the three that the authors' model card adds.
"""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from .base import Benchmark


NAMES = (
    "llava_bench",
    "mme",
    "mmbench",
    "mmbench_cn",
    "seed",
    "mmvet",
    "qbench",
    "scienceqa",
    "vqav2",
    "vizwiz",
    "gqa",
    "textvqa",
    "pope",
)
ALL = "all"


def module(name: str) -> ModuleType:
    """
    The module of a benchmark.

    Args:
        name (`str`): One of `NAMES`.

    Returns:
        `ModuleType`: With `prompt`, `parse`, `score` and `read_items`.

    Raises:
        `ValueError`: There is no such benchmark; the message lists all.
    """
    if name not in NAMES:
        raise ValueError(f"There is no benchmark {name!r}. Choose among {', '.join(NAMES)}.")
    return import_module(f".{name}", __package__)


def benchmark(name: str) -> Benchmark:
    """
    A benchmark as data.

    Args:
        name (`str`): One of `NAMES`.

    Returns:
        `Benchmark`: Its description.

    Raises:
        `ValueError`: There is no such benchmark; the message lists all.
    """
    return module(name).BENCHMARK


def benchmarks_of(names: Iterable[str]) -> list[tuple[Benchmark, ModuleType]]:
    """
    Several benchmarks with their modules.

    Args:
        names (`Iterable[str]`): Some of `NAMES`, or `all`.

    Returns:
        `list[tuple[Benchmark, ModuleType]]`: Each one once, in the order of `NAMES`.

    Raises:
        `ValueError`: A name is unknown, or there is none.
    """
    wanted = set(names)
    for name in sorted(wanted - {ALL}):
        module(name)
    if not wanted:
        raise ValueError(f"Name at least one benchmark: {', '.join(NAMES)}, or {ALL}.")
    chosen = [name for name in NAMES if name in wanted or ALL in wanted]
    return [(benchmark(name), module(name)) for name in chosen]
