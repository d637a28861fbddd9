"""
The work of one process of a job: an endpoint or an engine between a feed and its rows, until nothing is left.

SIGTERM and Ctrl-C end it gently: nothing new is asked, what is under way is answered and stored.
"""

import asyncio
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_scripts.writing import write_text

from .answers import Answer
from .endpoint_config import EndpointConfig
from .feed import Feed, Work
from .job import CaptionJob
from .job_config import EngineConfig
from .payload import Request


logger = logging.getLogger(__name__)
JOB, RUNS = "job.json", "runs"
REPORT_SECONDS = 1.0
PATIENCE = 5.0  # seconds that a wait may still take once the worker is told to end


class Interrupted(RuntimeError):
    """The worker was told to end; what is done is stored, and the same command continues."""


def read_job(out: Path) -> CaptionJob:
    """
    The job of a folder.

    Args:
        out (`Path`): Its folder.

    Returns:
        `CaptionJob`: As it was last run.

    Raises:
        `FileNotFoundError`: The folder has no job.
    """
    path = out / JOB
    if not path.is_file():
        raise FileNotFoundError(f"{out} is no folder of a captioning job: it has no {JOB}.")
    return CaptionJob.from_json(json.loads(path.read_text(encoding="utf-8")))


def run_folder(out: Path, run: str) -> Path:
    """
    Where a run keeps its logs, its progress and its outcome.

    Args:
        out (`Path`): Folder of the job.
        run (`str`): Name of the run.

    Returns:
        `Path`: The folder.
    """
    return out / RUNS / run


def work(out: Path, run: str, rank: int, world: int, paid: float = 0.0) -> dict[str, Any]:
    """
    Do the share of one worker.

    Args:
        out (`Path`): Folder of the job.
        run (`str`): Name of the run.
        rank (`int`): Number of the worker, from 0.
        world (`int`): Number of workers.
        paid (`float`, defaults to 0): What a worker in its place has spent in this run before it died.

    Returns:
        `dict`: Counts of what it did.

    Raises:
        `JobStopped`: A subclass says why the endpoint cannot be asked any more.
        `Interrupted`: It was told to end.
        `WriteError`: The disk is full or read-only.
        `ValueError`: The captioner cannot be used.
    """
    job, folder = read_job(out), run_folder(out, run)
    options = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    together = max(1, job.concurrency // world) if job.endpoint else getattr(job.engine, "slots", 1)
    again, journal = tuple(options["again"]), folder / f"asked-{rank}.txt"
    feed = Feed(out, job, rank, world, run, again, together, options["own_only"], journal)
    reporter = _Reporter(feed, folder / f"progress-{rank}.json")
    with _gentle_end(feed), reporter:
        try:
            if job.endpoint is not None:
                asyncio.run(_ask(feed, *_part_of(job.endpoint, world, options["spent"], paid), together))
            elif job.engine is not None:
                _caption(feed, job.engine, rank)
        finally:
            feed.close()
    if feed.interrupted:
        raise Interrupted("The run was interrupted; what is done is stored.")
    return reporter.facts()


def _part_of(config: EndpointConfig, world: int, spent: float, paid: float) -> tuple[EndpointConfig, float]:
    """Each process keeps the limits by itself, so each gets its part of them, and of what is left of the budget."""

    def part(limit: int | None) -> int | None:
        return None if limit is None else max(1, limit // world)

    if config.max_cost is not None:
        spent = config.max_cost - max(config.max_cost - spent, 0.0) / world + paid
    return replace(config, rpm=part(config.rpm), tpm=part(config.tpm)), spent


async def _ask(feed: Feed, config: EndpointConfig, spent: float, concurrency: int) -> None:
    from .endpoint import EndpointAnnotator

    async def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if feed.interrupted and left > PATIENCE:  # an endpoint may ask for an hour, and nothing is under way
                raise Interrupted("The run was interrupted in a pause; what is done is stored.")
            await asyncio.sleep(min(left, REPORT_SECONDS))

    requests = (Request(work.data, work.prompt, work.key) for work in feed)
    async with EndpointAnnotator(config, spent, sleep) as annotator:
        try:
            async for answer in annotator.annotate_many(requests, concurrency):
                _store(feed, answer)
        finally:
            feed.stop()  # a thread may wait in it for the next request


def _store(feed: Feed, answer: Answer) -> None:
    if answer.state == "pending" and not answer.attempts:
        feed.put_back(answer.key)
        return
    feed.answer(
        answer.key,
        answer.state,
        caption=answer.text.strip(" \n"),  # as the engine gives it
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        cost=answer.cost,
        attempts=answer.attempts,
        seconds=round(answer.seconds, 3),
        error=answer.error,
        raw=None if answer.state == "ok" else answer.raw,
    )


def _caption(feed: Feed, config: EngineConfig, rank: int) -> None:
    source = iter(feed)
    first = next(source, None)
    if first is None:  # everything is done, and a model takes a minute to load
        return
    feed.look_at(first.key, False)  # a machine on which no model can be loaded says nothing about an image
    from .engine import load_engine
    from .engine_requests import CaptionRequest, LoopGuard, Sampling

    drawn = config.temperature is not None
    engine = load_engine(
        config.model,
        device=device_of(config.device, rank),
        dtype=config.dtype,
        slots=config.slots,
        max_length=config.max_length,
        trust_remote_code=config.trust_remote_code,
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(config.temperature or 1.0, config.top_p, seed=config.seed) if drawn else None,
        loop_guard=LoopGuard() if config.loop_guard else None,
        threads=config.threads,
    )
    feed.look_at(first.key, True)
    started: dict[str, float] = {}

    def requests() -> Iterator[CaptionRequest]:
        work: Work | None = first
        while work is not None:
            started[work.key] = time.monotonic()
            yield CaptionRequest(work.key, work.data, work.prompt.text)
            work = next(source, None)

    for result in engine.caption(requests()):
        feed.answer(
            result.key,
            result.state,
            caption=result.text,
            finish_reason={"ok": "stop", "truncated": "length", "looped": "loop"}.get(result.state),
            prompt_tokens=result.prompt_tokens or None,
            completion_tokens=result.new_tokens or None,
            attempts=1,
            seconds=round(time.monotonic() - started.pop(result.key), 3),
            error=result.error or "",
        )


def device_of(device: str, rank: int) -> str:
    """
    Where the engine of a worker runs.

    Args:
        device (`str`): `auto`, `cuda` or a device.
        rank (`int`): Number of the worker.

    Returns:
        `str`: A device; workers take turns over the GPUs.

    Raises:
        `ValueError`: There is no such device.
    """
    import torch

    count = torch.cuda.device_count()
    if device == "cuda" and not count:
        raise ValueError("`device` is `cuda`, and there is no GPU. Take `cpu`, or a machine that has one.")
    if device in ("auto", "cuda"):
        return f"cuda:{rank % count}" if count else "cpu"
    try:
        known = torch.device(device)
    except RuntimeError:
        raise ValueError(f"`device` is {device!r}, which is none. Take `auto`, `cpu`, `cuda` or `cuda:1`.") from None
    if known.type == "cuda" and (known.index or 0) >= count:
        raise ValueError(f"`device` is {device!r}, and there are {count} GPUs, counted from 0. Take another.")
    return device


@contextmanager
def _gentle_end(feed: Feed) -> Iterator[None]:
    def end(number: int, _: Any) -> None:
        if feed.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        feed.stop(interrupted=True)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Reporter(logging.Handler):
    """Writes progress once a second, with the newest warning."""

    def __init__(self, feed: Feed, path: Path):
        super().__init__(logging.WARNING)
        self._feed, self._path = feed, path
        self._note, self._started = "", time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning for the panel."""
        self._note = record.getMessage()

    def __enter__(self) -> "_Reporter":
        logging.getLogger("captioning").addHandler(self)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        logging.getLogger("captioning").removeHandler(self)
        write_text(self._path, json.dumps(self.facts()) + "\n")

    def facts(self) -> dict[str, Any]:
        """What was done so far."""
        feed = self._feed
        return {
            **{"written": feed.written.to_json(), "note": self._note, "busy": feed.busy},
            **{"started": self._started, "time": time.time()},
        }

    def _report(self) -> None:
        while not self._over.wait(REPORT_SECONDS):
            try:
                write_text(self._path, json.dumps(self.facts()) + "\n")
            except OSError as error:  # the rows will say it too; progress alone must not end the work
                self._note = f"progress cannot be written: {error.strerror}"
