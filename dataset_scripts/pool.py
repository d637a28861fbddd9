"""Ordered work in a pool of processes that outlives a dying worker: a crashing decoder costs one item, not the job."""

import multiprocessing
import os
import sys
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
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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

    Raises:
        `RuntimeError`: Workers cannot start at all.
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
                running.append((batch, _submit(pool, function, batch)))
            if not running:
                return
            batch, future = running.popleft()
            if not _broke(future):
                yield from future.result()
                continue
            # Everything unfinished died with the pool, and nothing says which item it was.
            pool.shutdown(wait=False)
            pool = _new_pool(workers)
            yield from _one_by_one(function, batch, on_crash)
            for index, (waiting, future) in enumerate(running):
                if _broke(future):
                    running[index] = (waiting, _submit(pool, function, waiting))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _new_pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: the parent may hold threads and locks of torch or arrow.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], batch: list[Item]) -> Future:
    try:
        return pool.submit(_apply, function, batch)
    except BrokenProcessPool as error:  # a worker died while the caller was busy with results
        future: Future = Future()
        future.set_exception(error)
        return future


def _broke(future: Future) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _apply(function: Callable[[Item], Result], batch: list[Item]) -> list[Result]:
    return [function(item) for item in batch]


def _one_by_one(
    function: Callable[[Item], Result], batch: list[Item], on_crash: Callable[[Item], Result]
) -> Iterator[Result]:
    waiting = deque(batch)
    while waiting:
        with _new_pool(1) as alone:
            try:
                alone.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "Worker processes end before they have begun. Call from below `if __name__ == '__main__':` in a "
                    "script that is a file, or work with 0 workers."
                ) from error
            try:
                while waiting:
                    result = alone.submit(function, waiting[0]).result()
                    waiting.popleft()
                    yield result
            except BrokenProcessPool:
                yield on_crash(waiting.popleft())
