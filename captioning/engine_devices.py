"""
One engine a device, each in a process of its own, that take requests from one queue as they become free.

Nothing is split beforehand, so a device with longer captions takes fewer of them. Both queues are bounded: requests
are read as they are needed, and results wait until they are taken. Processes are spawned, so a script that calls this
needs its `if __name__ == "__main__":`.
"""

import pickle
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

import torch.multiprocessing

from .engine import load_engine
from .engine_requests import CaptionRequest, CaptionResult


POLL = 1.0  # seconds between looks at the workers


def caption_on_devices(
    model_id: str, requests: Iterable[CaptionRequest], devices: list[str], **options: Any
) -> Iterator[CaptionResult]:
    """
    Caption images on several devices.

    Args:
        model_id (`str`): Name on the Hub or a folder.
        requests (`Iterable[CaptionRequest]`): Requests; they must be picklable. Read in a thread, as they are needed.
        devices (`list[str]`): One worker each, such as `["cuda:0", "cuda:1"]`.
        options: Further arguments of [`~captioning.engine.load_engine`].

    Yields:
        `CaptionResult`: One for every request, as they finish.

    Raises:
        `ValueError`: There is no device.
        `RuntimeError`: A worker failed; the message holds its device and its error. The others are stopped.
    """
    if not devices:
        raise ValueError("`devices` is empty. Name one device a worker, such as `cuda:0`, or `cpu`.")
    context = torch.multiprocessing.get_context("spawn")
    room = 2 * len(devices) * options.get("slots", 16)
    todo, done, stop = context.Queue(room), context.Queue(room), context.Event()
    workers = [
        context.Process(target=_work, args=(model_id, device, options, todo, done, stop), daemon=True)
        for device in devices
    ]
    for worker in workers:
        worker.start()
    feeder = threading.Thread(target=_feed, args=(requests, len(devices), todo, done, stop), daemon=True)
    feeder.start()
    try:
        yield from _collect(workers, devices, done)
    finally:
        stop.set()
        for worker in workers:
            worker.join(timeout=POLL)
            if worker.is_alive():
                worker.terminate()
                worker.join()
        feeder.join(timeout=POLL)
        todo.cancel_join_thread()  # what nobody took may be dropped


def _feed(requests: Iterable[CaptionRequest], workers: int, todo: Queue, done: Queue, stop: Event) -> None:
    try:
        for request in requests:
            # Here and not in the queue's own thread, which would drop a request that cannot be pickled.
            if not _put(todo, pickle.dumps(request), stop):
                return
    except Exception:
        _put(done, ("failed", "The requests cannot be read", traceback.format_exc()), stop)
        return
    for _ in range(workers):
        _put(todo, None, stop)


def _put(target: Queue, item: Any, stop: Event) -> bool:
    while not _over(stop):
        try:
            target.put(item, timeout=POLL)
            return True
        except queue.Full:
            continue
    return False


def _take(todo: Queue, stop: Event) -> Iterator[CaptionRequest]:
    while not _over(stop):
        try:
            request = todo.get(timeout=POLL)
        except queue.Empty:
            continue
        if request is None:
            return
        yield pickle.loads(request)


def _over(stop: Event) -> bool:
    """Whether the work is over, or the process that wanted it is gone."""
    parent = parent_process()
    return stop.is_set() or (parent is not None and not parent.is_alive())


def _work(model_id: str, device: str, options: dict[str, Any], todo: Queue, done: Queue, stop: Event) -> None:
    """Body of a worker: caption what the queue gives until its end."""
    try:
        if device.startswith("cpu"):
            torch.set_num_threads(1)  # workers share the cores
        engine = load_engine(model_id, device=device, **options)
        for result in engine.caption(_take(todo, stop)):
            if not _put(done, ("result", device, result), stop):
                break
        _put(done, ("ended", device, None), stop)
    except Exception:
        _put(done, ("failed", f"The worker on {device} failed", traceback.format_exc()), stop)
    while not _over(stop):  # until the results are read; leaving earlier could lose what the queue still holds
        stop.wait(POLL)


def _collect(workers: Sequence[BaseProcess], devices: list[str], done: Queue) -> Iterator[CaptionResult]:
    running, looked = len(workers), time.monotonic()
    while running:
        try:
            kind, where, what = done.get(timeout=POLL)
        except queue.Empty:
            kind, where, what = "nothing", "", None
        if kind == "result":
            yield what
        elif kind == "ended":
            running -= 1
        elif kind == "failed":
            raise RuntimeError(f"{where}:\n{what}")
        if time.monotonic() - looked > POLL:  # one that was killed says nothing, and its requests are lost
            looked = time.monotonic()
            for worker, device in zip(workers, devices, strict=True):
                if worker.exitcode is not None:
                    raise RuntimeError(f"The worker on {device} ended with exit code {worker.exitcode}.")
