"""Ordered work in a pool of processes that outlives a dying worker: a decoder that crashes costs one item, not the job."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """
    Number of processes to use when none is asked for.

    Returns:
        `int`: Cores that this process may run on.
    """
    return len(os.sched_getaffinity(0))


def map_ordered(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    on_crash: Callable[[Item], Result],
    workers: int | None = None,
    chunk: int = 16,
) -> Iterator[Result]:
    """
    Apply a function in worker processes; results come in the order of the items, and only a few chunks are in flight.

    Args:
        function (`Callable`): Importable by name; what it raises ends the iteration.
        items (`Iterable`): Consumed as results are taken.
        on_crash (`Callable`): Result of an item that killed its worker (a crash of a decoder, the memory limit).
        workers (`int`, *optional*): Processes; all cores by default. 0 works in this process.
        chunk (`int`, defaults to 16): Items sent at once.

    Yields:
        `Result`: One an item.
    """
    workers = default_workers() if workers is None else workers
    if workers == 0:
        yield from map(function, items)
        return
    iterator = iter(items)
    pool = _new_pool(workers)
    running: deque[tuple[list[Item], Future]] = deque()
    try:
        while True:
            while len(running) < 2 * workers and (batch := list(islice(iterator, chunk))):
                running.append((batch, pool.submit(_apply, function, batch)))
            if not running:
                return
            batch, future = running.popleft()
            try:
                results = iter(future.result())
            except BrokenProcessPool:  # everything in flight died with the pool
                pool.shutdown(wait=False, cancel_futures=True)
                results = _one_by_one(function, batch, on_crash)
                pool = _new_pool(workers)
                running = deque((waiting, pool.submit(_apply, function, waiting)) for waiting, _ in running)
            yield from results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _new_pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: the parent may hold threads and locks of torch or arrow.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _apply(function: Callable[[Item], Result], batch: list[Item]) -> list[Result]:
    return [function(item) for item in batch]


def _one_by_one(
    function: Callable[[Item], Result], batch: list[Item], on_crash: Callable[[Item], Result]
) -> Iterator[Result]:
    for item in batch:
        with _new_pool(1) as alone:
            try:
                yield alone.submit(function, item).result()
            except BrokenProcessPool:
                yield on_crash(item)
