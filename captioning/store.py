"""
Captions on disk: a file of rows for each shard, to which rows are only ever appended.

```
out/rows/00012.jsonl      a row for every answer, also for those that cannot be used
out/rows/00012.done.json  counts, written when every image of the shard has its row
out/rows/00012.lock       held by the process that works on the shard
```

A row is written before the next thing happens, so the end of a process at any moment loses only what was under way.
Rows of one key follow each other and the last one counts: a retry adds, it never replaces.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from filelock import FileLock, Timeout

from dataset_scripts.writing import WriteError, write_text

from .job import CaptionJob


ROWS = "rows"
FSYNC_SECONDS = 1.0  # what a loss of power, not of the process, may take
STATES = (
    "ok", "truncated", "looped", "refused", "empty", "filtered", "failed", "bad_image", "pending",
)  # fmt: skip


class RowKey(NamedTuple):
    """What a caption belongs to: hash of the image's bytes, hash of the prompt, name of the model, settings."""

    image: str
    prompt: str
    model: str
    sampling: str


@dataclass(frozen=True)
class CaptionRow:
    """
    What came of one request.

    Args:
        image_sha256 (`str`): Of the image's bytes.
        prompt_sha256 (`str`): Of the prompt's text.
        model (`str`): Who answered.
        sampling (`str`): Hash of the settings.
        prompt_id (`str`): Name of the prompt.
        state (`str`): One of `STATES`; only `ok` is a caption without reservation.
        caption (`str`): The text; may be empty.
        finish_reason (`str`, *optional*): Why the model stopped.
        prompt_tokens (`int`, *optional*): Tokens sent.
        completion_tokens (`int`, *optional*): Tokens answered.
        cost (`float`, *optional*): Of all attempts.
        attempts (`int`): Requests sent.
        seconds (`float`): From the first request to the answer.
        error (`str`): What went wrong, in one line.
        raw (`dict`, *optional*): What an endpoint sent, where the state is not `ok`.
        time (`float`): When the row was written, in seconds since 1970.
        run (`str`): Which run wrote it.
    """

    image_sha256: str
    prompt_sha256: str
    model: str
    sampling: str
    prompt_id: str
    state: str
    caption: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""
    raw: dict[str, Any] | None = field(default=None, repr=False)
    time: float = 0.0
    run: str = ""

    @property
    def key(self) -> RowKey:
        """What it belongs to."""
        return RowKey(self.image_sha256, self.prompt_sha256, self.model, self.sampling)


class Latest(NamedTuple):
    """What the last row of a key says: its state, and the run that wrote it."""

    state: str
    run: str


@dataclass
class Tally:
    """
    Sums over rows.

    Args:
        states (`Counter[str]`): Rows by state.
        prompt_tokens (`int`): Sent.
        completion_tokens (`int`): Answered.
        cost (`float`): Spent.
    """

    states: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, row: CaptionRow) -> None:
        """
        Count a row.

        Args:
            row (`CaptionRow`): Any.
        """
        self.states[row.state] += 1
        self.prompt_tokens += row.prompt_tokens or 0
        self.completion_tokens += row.completion_tokens or 0
        self.cost += row.cost or 0.0

    def merge(self, facts: dict[str, Any]) -> None:
        """
        Add the sums of others.

        Args:
            facts (`dict`): As [`Tally.to_json`] gives it.
        """
        self.states.update(facts["states"])
        self.prompt_tokens += facts["prompt_tokens"]
        self.completion_tokens += facts["completion_tokens"]
        self.cost += facts["cost"]

    def to_json(self) -> dict[str, Any]:
        """
        The sums.

        Returns:
            `dict`: Ready for JSON; states in the order of `STATES`.
        """
        states = {state: self.states[state] for state in STATES if self.states[state]}
        sums = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"states": states, **sums, "cost": round(self.cost, 9)}


class Shard:
    """
    A shard in the hands of this process.

    Args:
        out (`Path`): Folder of the job.
        number (`int`): Which one.

    Raises:
        `Timeout`: Another process has it.
        `ValueError`: A row is damaged; the message names file and line.
        `WriteError`: The folder cannot be written.
    """

    def __init__(self, out: Path, number: int):
        self.number = number
        self._base = out / ROWS / f"{number:05d}"
        self._lock = FileLock(f"{self._base}.lock", thread_local=False)
        try:
            self._base.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise
        except OSError as error:
            raise _refused(self._base, error) from error
        try:
            self.latest: dict[RowKey, Latest] = {}
            self.spent = Tally()
            self._synced = time.monotonic()
            _mend(_rows_file(self._base))
            for row in _read(_rows_file(self._base)):
                self.latest[row.key] = Latest(row.state, row.run)
                self.spent.add(row)
            self._rows = _open(_rows_file(self._base))
        except BaseException:
            self._lock.release()
            raise

    def append(self, row: CaptionRow) -> None:
        """
        Store a row, for good.

        Args:
            row (`CaptionRow`): The row.

        Raises:
            `WriteError`: The disk is full or read-only; nothing of the row is left.
        """
        facts = {name: value for name, value in asdict(row).items() if value is not None}
        self._write(orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE))
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            self._sync()
        self.latest[row.key] = Latest(row.state, row.run)
        self.spent.add(row)

    def finish(self, variant: str, plan: str, tally: Tally) -> None:
        """
        Say that every image of the shard has its row.

        Args:
            variant (`str`): Of the job.
            plan (`str`): Digest of the plan.
            tally (`Tally`): Over the rows that count.

        Raises:
            `WriteError`: The disk is full or read-only; the rows are there.
        """
        self._sync()
        facts = {"variant": variant, "plan": plan, "bytes": os.fstat(self._rows).st_size}
        facts |= {"tally": tally.to_json(), "spent": self.spent.to_json()}
        try:
            write_text(_done_file(self._base), json.dumps(facts) + "\n")
        except OSError as error:
            raise _refused(self._base, error) from error

    def release(self) -> None:
        """Give the shard back."""
        try:
            self._sync()
        finally:
            os.close(self._rows)
            self._lock.release()

    def _sync(self) -> None:
        try:
            os.fsync(self._rows)
        except OSError as error:  # some file systems tell only now that they are full
            raise _refused(self._base, error) from error
        self._synced = time.monotonic()

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._rows).st_size
        try:
            written = os.write(self._rows, line)
            if written != len(line):  # the disk is full: the next byte says so
                os.write(self._rows, line[written:])
        except OSError as error:
            os.ftruncate(self._rows, before)
            raise _refused(self._base, error) from error


def finished(out: Path, number: int, job: CaptionJob, plan: str) -> dict[str, Any] | None:
    """
    What is known about a shard without reading its rows.

    Args:
        out (`Path`): Folder of the job.
        number (`int`): Of the shard.
        job (`CaptionJob`): The job.
        plan (`str`): Digest of the plan.

    Returns:
        `dict`, *optional*: Its counts; `None` if it is not finished for this job and this plan.
    """
    base = out / ROWS / f"{number:05d}"
    done, rows = _done_file(base), _rows_file(base)
    if not done.is_file() or not rows.is_file():
        return None
    facts = json.loads(done.read_text(encoding="utf-8"))
    same = (facts["variant"], facts["plan"], facts["bytes"]) == (job.variant, plan, rows.stat().st_size)
    return facts if same else None


def read_rows(out: Path, number: int) -> Iterator[CaptionRow]:
    """
    The rows of a shard, also while another process appends to it.

    Args:
        out (`Path`): Folder of the job.
        number (`int`): Of the shard.

    Yields:
        `CaptionRow`: In the order of writing; of one key the last one counts.

    Raises:
        `ValueError`: A row is damaged; the message names file and line.
    """
    yield from _read(_rows_file(out / ROWS / f"{number:05d}"))


def _read(path: Path) -> Iterator[CaptionRow]:
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # being written at this moment
                return
            try:
                yield CaptionRow(**orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged: {error}. Delete the line; its image is asked about again."
                ) from error


def _mend(path: Path) -> None:
    """Cut off a last line that was never finished: its process ended while it was written."""
    if not path.is_file():
        return
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        while size:
            start = max(0, size - 65536)
            stream.seek(start)
            found = stream.read(size - start).rfind(b"\n")
            if found >= 0:
                stream.truncate(start + found + 1)
                return
            size = start
        stream.truncate(0)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise _refused(path, error) from error


def _rows_file(base: Path) -> Path:
    return base.with_suffix(".jsonl")


def _done_file(base: Path) -> Path:
    return base.with_suffix(".done.json")


def _refused(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path.parent} cannot be written: {error.strerror}. Captions so far are kept; make room and go on."
    )
