"""
Many images captioned by several GPUs, simulated event by event: what is written when, and what a kill takes away.

A worker is one GPU with a number of slots. As in `captioning.feed` it goes once through the shards, first those of its
own share (every `workers`-th) and then all others, claims each that nobody holds, and is done at the end. It reads
prompts into free slots and decodes all of them together. Each answer becomes a row of its shard at once. A kill takes
what is in flight and frees the shards that the worker held; it comes back and begins anew. Whoever claims a freed
shard skips the images that have a row.

The events are the ends of captions, the loads of the model and the kills; between two of them time follows in closed
form from `trainers.roofline.CaptionSeconds`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from typing import Literal

import numpy as np

from trainers.roofline import CaptionSeconds


LOADED, ENDED, KILLED = "loaded", "ended", "killed"
SHORTEST, LONGEST = 8, 512


def draw_lengths(mean: float, spread: float, count: int, seed: int) -> list[int]:
    """Tokens of captions: normal, cut to 8 to 512."""
    drawn = np.random.default_rng(seed).normal(mean, spread, count)
    return np.clip(drawn.round(), SHORTEST, LONGEST).astype(int).tolist()


@dataclass(frozen=True)
class Setting:
    """
    What is simulated.

    Args:
        seconds (`CaptionSeconds`): What a worker's GPU needs.
        slots (`int`): Captions that a worker writes at the same time.
        schedule (`str`): `slots` refills a slot when its caption ends; `static` waits for the longest of a batch and
            goes on reading the keys and values of ended rows, as padded tensors do; `compact` waits too, but reads
            those of rows in use only. The rows of a batch are stored when all of it has ended.
        prompt (`int`, defaults to 625): Tokens before a caption, those of the image included.
        workers (`int`, defaults to 1): How many.
        slow (`int`, defaults to 0): How many of them, the last ones, run at half speed.
        steals (`bool`, defaults to `True`): Whether a worker goes on with the shards of others.
        drains (`bool`, defaults to `False`): Whether all rows of a shard end before the next one is claimed.
        kill_every (`float`, *optional*): Mean seconds between the kills of a worker, a Poisson process.
        load (`float`, defaults to 60): Seconds from a kill until the worker is back.
        seed (`int`, defaults to 0): Of the kills.
    """

    seconds: CaptionSeconds
    slots: int
    schedule: Literal["slots", "static", "compact"] = "slots"
    prompt: int = 625
    workers: int = 1
    slow: int = 0
    steals: bool = True
    drains: bool = False
    kill_every: float | None = None
    load: float = 60
    seed: int = 0


class Store:
    """Rows of all shards. They are appended as to files: only looking first keeps an image from a second row."""

    def __init__(self, shards: int):
        self.rows: list[list[tuple[int, int]]] = [[] for _ in range(shards)]  # image, tokens

    def append(self, shard: int, image: int, tokens: int) -> None:
        """Add a row."""
        self.rows[shard].append((image, tokens))

    def answered(self, shard: int) -> set[int]:
        """Images of the shard that have a row."""
        return {image for image, _ in self.rows[shard]}


class Shards:
    """Which shards are held or done."""

    def __init__(self, count: int, workers: int, steals: bool):
        self.taken = [False] * count
        self.workers, self.steals, self.open, self.stolen = workers, steals, count, 0

    def order(self, rank: int) -> Iterator[int]:
        """The way of a worker through the shards."""
        count = len(self.taken)
        others = (number for number in range(count) if number % self.workers != rank)
        return chain(range(rank, count, self.workers), others if self.steals else ())

    def claim(self, rank: int, order: Iterator[int]) -> int | None:
        """Take the next shard on a worker's way that nobody holds."""
        for number in order:
            if not self.taken[number]:
                self.taken[number] = True
                self.stolen += number % self.workers != rank
                return number
        return None


@dataclass
class Worker:
    """A GPU: what it holds, and which event it waits for."""

    rank: int
    speed: float
    order: Iterator[int]  # shards that it has not come to
    waiting: deque[tuple[int, int]] = field(default_factory=deque)  # shard, image
    rows: list[tuple[int, int, int]] = field(default_factory=list)  # heap of last step, image, shard
    left: dict[int, int] = field(default_factory=dict)  # of each shard it holds, images without an answer
    step: int = 0
    contexts: int = 0  # tokens of all rows at `step`
    life: int = 0  # events of earlier lives are void
    done: bool = False  # came to the end of its way


@dataclass
class Outcome:
    """A job that has ended, as its workers counted it; its rows are in the store."""

    store: Store
    seconds: float = 0  # since the models were loaded
    begun: int = 0  # images whose prompts were read, repeated ones each time
    in_flight: int = 0  # rows that kills took away
    kills: int = 0
    stolen: int = 0
    most_tokens: int = 0  # of keys and values in one GPU
    events: int = 0


class Simulation:
    """
    One job.

    Args:
        setting (`Setting`): Workers and schedule.
        lengths (`list[int]`): Tokens of each image's caption.
        shard_images (`int`): Images a shard.
        store (`Store`, *optional*): Where rows go; a new one by default.
    """

    def __init__(self, setting: Setting, lengths: list[int], shard_images: int, store: Store | None = None):
        self.setting, self.lengths, self.shard_images = setting, lengths, shard_images
        count = -(-len(lengths) // shard_images)
        self.shards = Shards(count, setting.workers, setting.steals)
        self.outcome = Outcome(store or Store(count))
        fast = setting.workers - setting.slow
        self.workers = [
            Worker(rank, 1 if rank < fast else 0.5, self.shards.order(rank)) for rank in range(setting.workers)
        ]
        self.queue: list[tuple[float, int, str, int, int]] = []  # time, order, event, rank, life
        self.random = np.random.default_rng(setting.seed)

    def run(self) -> Outcome:
        """Let events happen until every shard is closed."""
        for worker in self.workers:
            self._plan(0, LOADED, worker)
            self._plan_kill(0, worker)
        while self.shards.open:
            now, _, event, rank, life = heappop(self.queue)
            worker = self.workers[rank]
            if event == KILLED:
                if not worker.done:
                    self._kill(worker, now)
            elif life == worker.life:
                if event == ENDED:
                    self._store_ended(worker)
                self._go_on(worker, now)
                self.outcome.seconds = now
        self.outcome.stolen = self.shards.stolen
        return self.outcome

    def _plan(self, time: float, event: str, worker: Worker) -> None:
        self.outcome.events += 1
        heappush(self.queue, (time, self.outcome.events, event, worker.rank, worker.life))

    def _plan_kill(self, now: float, worker: Worker) -> None:
        if self.setting.kill_every is not None:
            self._plan(now + self.random.exponential(self.setting.kill_every), KILLED, worker)

    def _kill(self, worker: Worker, now: float) -> None:
        self.outcome.kills += 1
        self.outcome.in_flight += len(worker.rows)
        for shard in worker.left:
            self.shards.taken[shard] = False
        worker.waiting.clear()
        worker.rows.clear()
        worker.left.clear()
        worker.contexts, worker.life, worker.order = 0, worker.life + 1, self.shards.order(worker.rank)
        self._plan(now + self.setting.load, LOADED, worker)
        self._plan_kill(now, worker)

    def _claim(self, worker: Worker) -> bool:
        while (shard := self.shards.claim(worker.rank, worker.order)) is not None:
            answered = self.outcome.store.answered(shard)
            begin = shard * self.shard_images
            images = range(begin, min(begin + self.shard_images, len(self.lengths)))
            worker.waiting.extend((shard, image) for image in images if image not in answered)
            if worker.waiting:
                worker.left[shard] = len(worker.waiting)
                return True
            self.shards.open -= 1
        return False

    def _admit(self, worker: Worker) -> int:
        setting, rows = self.setting, worker.rows
        before = len(rows)
        if before and setting.schedule != "slots":
            return 0
        while len(rows) < setting.slots:
            if not worker.waiting and ((rows and setting.drains) or not self._claim(worker)):
                break
            shard, image = worker.waiting.popleft()
            heappush(rows, (worker.step + self.lengths[image], image, shard))
        begun = len(rows) - before
        worker.contexts += begun * setting.prompt
        self.outcome.begun += begun
        return begun

    def _go_on(self, worker: Worker, now: float) -> None:
        begun = self._admit(worker)
        if not worker.rows:
            worker.done = True
            return
        seconds = begun * self.setting.seconds.prompt + self._decode_seconds(worker)
        self._plan(now + seconds / worker.speed, ENDED, worker)

    def _next_step(self, worker: Worker) -> int:
        return worker.rows[0][0] if self.setting.schedule == "slots" else max(worker.rows)[0]

    def _decode_seconds(self, worker: Worker) -> float:
        costs, rows, contexts = self.setting.seconds, len(worker.rows), worker.contexts
        if self.setting.schedule != "compact":
            return costs.steps(self._next_step(worker) - worker.step, rows, contexts)
        total, step = 0.0, worker.step
        for end, _, _ in sorted(worker.rows):
            total += costs.steps(end - step, rows, contexts)
            contexts += (end - step) * rows
            contexts -= self.setting.prompt + end - worker.step  # all rows of a batch began at this step
            rows, step = rows - 1, end
        return total

    def _store_ended(self, worker: Worker) -> None:
        step = self._next_step(worker)
        worker.contexts += (step - worker.step) * len(worker.rows)
        self.outcome.most_tokens = max(self.outcome.most_tokens, worker.contexts)
        worker.step = step
        while worker.rows and worker.rows[0][0] <= step:
            _, image, shard = heappop(worker.rows)
            worker.contexts -= self.setting.prompt + self.lengths[image]
            self.outcome.store.append(shard, image, self.lengths[image])
            worker.left[shard] -= 1
            if not worker.left[shard]:
                del worker.left[shard]
                self.shards.open -= 1
        if not worker.rows:
            worker.contexts = 0  # ended rows of a static batch had grown on


@dataclass(frozen=True)
class Audit:
    """
    What the store says against what the job was.

    Args:
        missing (`int`): Images without a row.
        doubled (`int`): Images with several.
        wrong (`int`): Rows of no image of the shard, or of another number of tokens.
        repeated (`int`): Prompts that were read again.
        in_flight (`int`): Rows that kills took away; no more than these are repeated.
        tokens (`int`): Of all rows.
    """

    missing: int
    doubled: int
    wrong: int
    repeated: int
    in_flight: int
    tokens: int

    @property
    def holds(self) -> bool:
        """Whether every image has exactly its row and nothing was repeated beyond what was in flight (`bool`)."""
        return not (self.missing or self.doubled or self.wrong) and 0 <= self.repeated <= self.in_flight


def audit(outcome: Outcome, lengths: list[int], shard_images: int) -> Audit:
    """
    Read the whole store.

    Args:
        outcome (`Outcome`): A job that has ended.
        lengths (`list[int]`): Tokens of each image's caption.
        shard_images (`int`): Images a shard.

    Returns:
        `Audit`: Counts.
    """
    expected, stored = np.array(lengths), outcome.store.rows
    values = chain.from_iterable(chain.from_iterable(stored))
    rows = np.fromiter(values, np.int64).reshape(-1, 2)
    shards = np.repeat(np.arange(len(stored)), [len(found) for found in stored])
    images, tokens = rows[:, 0], rows[:, 1]
    known = (images >= 0) & (images < len(expected))
    times = np.bincount(images[known], minlength=len(expected))
    right = (images[known] // shard_images == shards[known]) & (expected[images[known]] == tokens[known])
    return Audit(
        missing=int((times == 0).sum()),
        doubled=int((times > 1).sum()),
        wrong=int(len(rows) - right.sum()),
        repeated=outcome.begun - len(lengths),
        in_flight=outcome.in_flight,
        tokens=int(tokens.sum()),
    )
