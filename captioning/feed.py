"""
What one worker of a job is given to do: it takes shard after shard, asks for what has no row yet, and stores answers.

A worker begins with the shards that are its own by number and goes on with whatever nobody else has, so any number of
workers share a job, none waits for a slow one, and the shards of one that died are free at once.

An image can end the process that looks at it: a decoder crashes, memory runs out. What was under way when a worker
died in this way is suspect, and asked for last and in smaller and smaller groups, at most half as many for each death,
until one is alone; if its worker dies again, the image gets a row that says so.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from .job import CaptionJob
from .plan import PlannedImage, read_facts, read_plan
from .prompts import Prompt
from .store import CaptionRow, Latest, RowKey, Shard, Tally, finished


logger = logging.getLogger(__name__)
LEAST_DEATHS = 3  # of workers, before an image is given up as the cause
SUSPECTS = "suspects.txt"


@dataclass(frozen=True)
class Work:
    """
    One request.

    Args:
        key (`str`): Its name until it is answered.
        planned (`PlannedImage`): The image.
        prompt (`Prompt`): What is asked.
        data (`bytes`): The image's file.
    """

    key: str
    planned: PlannedImage
    prompt: Prompt
    data: bytes = field(repr=False)


class _Deaths(NamedTuple):
    number: int
    alone: bool  # whether the last one had nothing else under way


@dataclass
class _Held:
    shard: Shard
    tally: Tally
    waiting: set[str] = field(default_factory=set)
    read: bool = False
    whole: bool = True  # whether every image will have its row


class Feed:
    """
    Requests for one worker, and the place where its answers go. Requests may be read in another thread.

    Args:
        out (`Path`): Folder of the job.
        job (`CaptionJob`): The job.
        rank (`int`): Number of the worker, from 0.
        world (`int`): Number of workers.
        run (`str`): Name of the run, which rows keep.
        again (`tuple[str, ...]`, *optional*): States whose images are asked about again.
        together (`int`, defaults to 8): Requests that the worker has under way at a time.
        own_only (`bool`, defaults to `False`): Whether shards of others are left alone.
        journal (`Path`, *optional*): File that lists what is under way, for whoever sees the worker die.
    """

    def __init__(
        self,
        out: Path,
        job: CaptionJob,
        rank: int = 0,
        world: int = 1,
        run: str = "",
        again: tuple[str, ...] = (),
        together: int = 8,
        own_only: bool = False,
        journal: Path | None = None,
    ):
        facts = read_facts(out)
        if facts is None:
            raise FileNotFoundError(f"{out} has no plan. Plan the job first.")
        self.out, self.job, self.run, self.again, self.together = out, job, run, ("pending", *again), together
        self.written = Tally()
        self.busy = False  # whether another process had a shard that this one wanted
        self._shards, self._plan = facts["shards"], facts["digest"]
        others = () if own_only else (number for number in range(self._shards) if number % world != rank)
        self._order = [*range(rank, self._shards, world), *others]
        self._suspects: dict[str, _Deaths] = {}
        self._under_way: dict[str, tuple[Work, _Held]] = {}
        self._held: dict[int, _Held] = {}
        self._changed = threading.Condition()
        self._stopped = self.interrupted = False
        self._journal = journal.open("w", encoding="utf-8", buffering=1) if journal is not None else None

    def __iter__(self) -> Iterator[Work]:
        for number in self._order:
            if self._stopped:
                return
            if (facts := finished(self.out, number, self.job, self._plan)) and not self._retries(facts):
                continue
            try:
                held = self._held[number] = _Held(Shard(self.out, number), Tally())
            except Timeout:
                self.busy = True
                continue
            self._suspects = _suspects(self.out)  # of now: the shard may be that of a worker that has just died
            yield from self._serve(held)
            with self._changed:
                held.read = True
                self._let_go_if_done(held)

    def answer(self, key: str, state: str, **facts: Any) -> None:
        """
        Store what came of a request.

        Args:
            key (`str`): Of the request.
            state (`str`): One of `STATES`.
            facts: Further fields of [`CaptionRow`].

        Raises:
            `WriteError`: The disk is full or read-only.
        """
        with self._changed:
            work, held = self._under_way[key]
            self._store(held, work.planned, work.prompt, state, **facts)
            self._ended(key, facts.get("cost") or 0.0)

    def put_back(self, key: str) -> None:
        """
        Say that a request was never made.

        Args:
            key (`str`): Of the request.
        """
        with self._changed:
            _, held = self._under_way[key]
            held.whole = False
            self._ended(key)

    def look_at(self, key: str, begun: bool) -> None:
        """
        Say whether a request that was given out is begun: nobody suspects its image while it only waits.

        Args:
            key (`str`): Of the request.
            begun (`bool`): Whether something looks at its image from now on.
        """
        with self._changed:
            if self._journal is not None:
                self._journal.write(f"+{key}\n" if begun else f"-{key}\n")

    def stop(self, interrupted: bool = False) -> None:
        """
        Give out nothing more; what is under way may still be answered.

        Args:
            interrupted (`bool`, defaults to `False`): Whether there would be more to do.
        """
        with self._changed:
            self._stopped = True
            self.interrupted = self.interrupted or interrupted
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everything; what has no answer is asked for by the next run."""
        self.stop()
        with self._changed:
            for held in self._held.values():
                held.shard.release()
            self._held.clear()
            self._under_way.clear()
            if self._journal is not None:
                self._journal.close()

    def _ended(self, key: str, cost: float = 0.0) -> None:
        _, held = self._under_way.pop(key)
        held.waiting.discard(key)
        if self._journal is not None:
            self._journal.write(f"-{key} {cost}\n")
        self._let_go_if_done(held)
        self._changed.notify_all()

    def _retries(self, facts: dict[str, Any]) -> bool:
        return any(facts["tally"]["states"].get(state) for state in self.again)

    def _serve(self, held: _Held) -> Iterator[Work]:
        suspects = []
        for planned, prompt, key in self._todo(held):
            if self._stopped:
                held.whole = False
                return
            if key in self._suspects:
                suspects.append((planned, prompt, key))
            elif work := self._hand_out(held, planned, prompt, key):
                yield work
        suspects.sort(key=lambda one: self._suspects[one[2]].number)
        while suspects and not self._stopped:
            size = max(1, self.together >> self._suspects[suspects[0][2]].number)
            group, suspects = suspects[:size], suspects[size:]
            self._wait_for_all()
            for planned, prompt, key in group:
                if self._is_the_cause(key):
                    count = self._suspects[key].number
                    problem = f"{count} workers died while they looked at it, the last at nothing else"
                    self._store(held, planned, prompt, "failed", error=problem)
                elif not self._stopped and (work := self._hand_out(held, planned, prompt, key)):
                    yield work
            self._wait_for_all()
        held.whole = held.whole and not self._stopped

    def _todo(self, held: _Held) -> Iterator[tuple[PlannedImage, Prompt, str]]:
        seen = set()
        for planned in read_plan(self.out, held.shard.number):
            prompt = self.job.prompt_for(planned.source, planned.sha256)
            row_key = self._row_key(planned, prompt)
            if row_key in seen:  # the same picture under another name
                continue
            seen.add(row_key)
            last = held.shard.latest.get(row_key)
            if last is None or (last.state in self.again and not self._has_tried(last)):
                yield planned, prompt, f"{planned.sha256}/{prompt.sha256[:12]}"
            else:
                held.tally.states[last.state] += 1

    def _has_tried(self, last: Latest) -> bool:
        """Whether this run has asked again already: by another worker, or by one that died."""
        return last.run == self.run and last.state != "pending"

    def _hand_out(self, held: _Held, planned: PlannedImage, prompt: Prompt, key: str) -> Work | None:
        try:
            work = Work(key, planned, prompt, planned.read())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._store(held, planned, prompt, "failed", error=f"the image cannot be read: {reason}")
            return None
        with self._changed:
            self._under_way[key] = work, held
            held.waiting.add(key)
            if self._journal is not None:
                self._journal.write(f"+{key}\n")
        return work

    def _store(self, held: _Held, planned: PlannedImage, prompt: Prompt, state: str, **facts: Any) -> None:
        key = self._row_key(planned, prompt)
        row = CaptionRow(*key, prompt_id=prompt.id, state=state, time=time.time(), run=self.run, **facts)
        with self._changed:
            held.shard.append(row)
            held.whole = held.whole and state != "pending"
            self.written.add(row)
            held.tally.states[state] += 1

    def _row_key(self, planned: PlannedImage, prompt: Prompt) -> RowKey:
        return RowKey(planned.sha256, prompt.sha256, self.job.model, self.job.sampling_hash)

    def _is_the_cause(self, key: str) -> bool:
        deaths = self._suspects[key]
        return deaths.number >= LEAST_DEATHS and deaths.alone

    def _wait_for_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._under_way)

    def _let_go_if_done(self, held: _Held) -> None:
        if not held.read or held.waiting or self._held.pop(held.shard.number, None) is None:
            return
        if held.whole:
            held.shard.finish(self.job.variant, self._plan, held.tally)
        held.shard.release()


def read_journal(journal: Path) -> tuple[list[str], float]:
    """
    What a worker had done and had under way when it died.

    Args:
        journal (`Path`): Its file.

    Returns:
        `tuple[list[str], float]`: Keys of requests under way, and the cost of those that were answered.
    """
    keys: dict[str, None] = {}
    cost = 0.0
    for line in _lines(journal):
        key, _, paid = line[1:].partition(" ")
        if line.startswith("+"):
            keys[key] = None
        else:
            keys.pop(key, None)
            cost += float(paid or 0.0)
    return list(keys), cost


def suspect(out: Path, keys: list[str]) -> None:
    """
    Note that a worker died while it looked at images.

    Args:
        out (`Path`): Folder of the job.
        keys (`list[str]`): What it had under way.
    """
    with (out / SUSPECTS).open("a", encoding="utf-8") as stream:
        stream.writelines(f"{key} {len(keys)}\n" for key in keys)


def _suspects(out: Path) -> dict[str, _Deaths]:
    found: dict[str, _Deaths] = {}
    for line in _lines(out / SUSPECTS):
        key, _, together = line.partition(" ")
        before = found[key].number if key in found else 0
        found[key] = _Deaths(before + 1, together == "1")
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
