"""
Parquet shards that appear whole or not at all, and a build that continues where it was killed.

A configuration is written beside the repository, in `<repo>.partial/<config>/`: each shard first under a temporary
name, then synced and renamed, then entered in `progress.json`. Only the finished folder moves into the repository.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from datasets import Features
from datasets.arrow_writer import ParquetWriter
from filelock import FileLock, Timeout

from .coverage import Lost
from .rows import SHOWN, Row, sha256_of
from .writing import BusyError, WriteError, write_text


logger = logging.getLogger(__name__)
SHARD_BYTES = 100 * 2**20
ROW_GROUP_BYTES = 16 * 2**20
MAX_SHARDS = 9_990  # the Hub accepts 10,000 entries of one folder, and there are other files
Item = tuple[int, Row | Lost]
# From a position in the input to its rows from there on, each with its position; a `Lost` takes the place of a row.
Items = Callable[[int], Iterator[Item]]


@dataclass
class Table:
    """Columns of a configuration and the check that every row passes before it is written."""

    features: Features
    validate: Callable[[Row], None]


class ConfigBuild:
    """
    Shards of one configuration on their way into a repository.

    Args:
        repo (`Path`): Repository that the configuration will be part of.
        config (`str`): Its name, a folder of the repository.
        fingerprint (`dict`): Everything the result depends on, ready for JSON; shards of an earlier, interrupted build
            are kept when theirs is the same.

    Raises:
        `BusyError`: Another process is at it.
        `WriteError`: The folder cannot be written.
    """

    def __init__(self, repo: Path, config: str, fingerprint: dict[str, Any]):
        self.repo, self.config = repo, config
        self._partial = repo.with_name(repo.name + ".partial")
        self._own, self._target = self._partial / config, repo / config
        self._older = self._partial / f"{config}.old"
        self.folder = self._own
        self._splits: dict[str, list[dict[str, Any]]] = {}
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._lock = FileLock(self._partial / f"{config}.lock", thread_local=False)
        with _writing(self._own):
            self._partial.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise BusyError(f"Another process is building {config} of {repo}. Wait for it, or stop it.") from error
        try:
            with _writing(self._own):
                self._resume()
        except BaseException:
            self.close()
            raise

    def _resume(self) -> None:
        if self.repo.exists() and not self.repo.is_dir():
            raise OSError(f"{self.repo} is no folder")
        if self.repo.exists() and self.repo.stat().st_dev != self._partial.stat().st_dev:
            raise OSError(f"{self.repo} is a file system of its own; give a folder below it")
        if self._older.exists() and self.repo.exists() and not self._target.exists():
            os.replace(self._older, self._target)  # killed between taking out and putting in
        # A build that was killed after it had moved its folder left its state in the repository.
        if self._continue(self._own) or self._continue(self._target):
            shards = sum(map(len, self._splits.values()))
            logger.warning("Continuing %s of %s after %d finished shards.", self.config, self.repo, shards)
        else:
            self.folder, self._splits = self._own, {}
        self._own.mkdir(exist_ok=True)
        kept = {self._own / "progress.json", *self._files()} if self._splits else set()
        for path in set(self._own.iterdir()) - kept:  # what was being written when a build was killed
            path.unlink()

    def _continue(self, folder: Path) -> bool:
        progress = folder / "progress.json"
        if not progress.is_file():
            return False
        state = json.loads(progress.read_text(encoding="utf-8"))
        reason = "input or options have changed"
        if state["fingerprint"] == self._fingerprint:
            self.folder, self._splits = folder, state["splits"]
            shards = [shard for split in self._splits.values() for shard in split]
            if all(_size(path) == shard["bytes"] for path, shard in zip(self._files(), shards, strict=True)):
                return True
            reason = "finished shards have changed"
        logger.warning("Starting %s of %s anew: %s.", self.config, self.repo, reason)
        return False

    def write_split(self, split: str, items: Items, table: Table, shard_bytes: int = SHARD_BYTES) -> None:
        """
        Write the shards of a split, continuing after those already finished.

        Args:
            split (`str`): Name of the split.
            items (`Items`): The input, from any position on.
            table (`Table`): Columns and check.
            shard_bytes (`int`, defaults to 100 MiB): Uncompressed size at which a shard ends.

        Raises:
            `ValueError`: A row breaks the schema, or the input cannot be read; the message names configuration, split,
                row number and reason.
            `WriteError`: The disk is full or read-only; finished shards are kept.
        """
        shards = self._splits.setdefault(split, [])
        if shards and shards[-1]["last"]:
            return
        with closing(self._reading(items(shards[-1]["next"] if shards else 0), split)) as source:
            pending = next(source, None)
            while not shards or not shards[-1]["last"]:
                if len(shards) == MAX_SHARDS:
                    raise ValueError(f"{split} would have more than {MAX_SHARDS} shards; make them larger.")
                path = self.folder / f"{split}-{len(shards):05d}.parquet"
                with _writing(path, f" Make room and run it again; {len(shards)} shards are kept."):
                    shard, pending = self._write_shard(path, pending, source, table, shard_bytes, split)
                    self._splits[split] = shards = [*shards, shard]
                    write_text(self.folder / "progress.json", json.dumps(self._state()))

    def _write_shard(
        self, path: Path, pending: Item | None, source: Iterator[Item], table: Table, limit: int, split: str
    ) -> tuple[dict[str, Any], Item | None]:
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with temporary.open("wb") as stream:
                shard, rest = self._fill(
                    stream, chain([] if pending is None else [pending], source), table, limit, split
                )
                stream.flush()
                os.fsync(stream.fileno())
            shard |= {"file": path.name, "bytes": _size(temporary), "sha256": sha256_of(temporary)}
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return shard, rest

    def _fill(
        self, stream: BinaryIO, items: Iterator[Item], table: Table, limit: int, split: str
    ) -> tuple[dict[str, Any], Item | None]:
        size, buffered, left_out, lost, position = 0, 0, 0, [], 0
        rest: Item | None = None
        with ParquetWriter(features=table.features, stream=stream, writer_batch_size=2**31 - 1) as writer:
            for position, row in items:
                if size >= limit:
                    rest = (position, row)
                    break
                if isinstance(row, Lost):
                    left_out += 1
                    if row.state == "corrupt" or left_out <= SHOWN:  # the others were counted before
                        lost.append(row.as_dict())
                    continue
                writer.write(self._encode(row, position, table, split))
                length = _nbytes(row)
                size, buffered = size + length, buffered + length
                if buffered >= ROW_GROUP_BYTES:
                    writer.write_examples_on_file()
                    buffered = 0
            rows, stored = writer.finalize(close_stream=False)
        if not rows and not self._splits[split]:  # `load_dataset` fails on an empty split
            raise ValueError(f"{self.config}/{split} has no rows: {left_out} were left out.")
        shard = {"rows": rows, "in_memory": stored, "left_out": left_out, "lost": lost}
        return {**shard, "next": rest[0] if rest else position + 1, "last": rest is None}, rest

    def _encode(self, row: Row, position: int, table: Table, split: str) -> Row:
        try:
            table.validate(row)
        except ValueError as error:
            raise ValueError(f"Row {position} of {self.config}/{split} (id {row.get('id')!r}): {error}") from error
        return table.features.encode_example(row)

    def _reading(self, items: Iterator[Item], split: str) -> Generator[Item]:
        # Whatever goes wrong here is no fault of the disk that is written to.
        position: int | None = None
        try:
            for position, row in items:
                yield position, row
        except OSError as error:
            place = "before its first row" if position is None else f"after row {position}"
            raise ValueError(f"Cannot read the input of {self.config}/{split} {place}: {error}") from error

    def _state(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "splits": self._splits}

    def lost(self) -> tuple[int, list[dict[str, Any]]]:
        """
        Rows left out, over all splits.

        Returns:
            `tuple[int, list[dict]]`: Their number; and as lines of a coverage report all with a corrupt image, of the
                others the first of every shard.
        """
        shards = [shard for split in self._splits.values() for shard in split]
        return sum(shard["left_out"] for shard in shards), [entry for shard in shards for entry in shard["lost"]]

    def publish(self, facts: dict[str, Any], describe: Callable[[], dict[str, str]]) -> dict[str, Any]:
        """
        Move the finished configuration into the repository, replacing an older one, and describe the repository.

        Args:
            facts (`dict`): Written to `build.json`, with the shards of every split; `mix` goes to a file of its own.
            describe (`Callable`): Gives the texts of files of the repository once the configuration is in it.

        Returns:
            `dict`: What was written to `build.json`.

        Raises:
            `WriteError`: The disk refuses; nothing of the repository has changed, or running it again completes it.
        """
        splits: dict[str, list[dict[str, Any]]] = {}
        facts = {**facts, "config": self.config, "splits": splits}
        with _writing(self.repo):
            for path, (split, shard, final) in zip(self._files(), self._named(), strict=True):
                os.replace(path, self.folder / final)
                kept = {name: shard[name] for name in ("rows", "bytes", "sha256", "in_memory")}
                splits.setdefault(split, []).append({"file": final, **kept})
            if "mix" in facts:
                _write_json(self.folder / "mix.json", facts.pop("mix"))
            _write_json(self.folder / "build.json", facts)
            # Other configurations may be finished in this moment; the description must know them all.
            lock = self._partial / "description.files.lock"
            with FileLock(lock):
                self._move()
                self._describe(describe)
                lock.unlink()  # while it is held: filelock notices, and whoever waits takes a new one
            (self._target / "progress.json").unlink()
            shutil.rmtree(self._older, ignore_errors=True)
        self.close()
        return facts

    def _move(self) -> None:
        if self.folder == self._target:  # an earlier build was killed after this
            return
        self.repo.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._older, ignore_errors=True)
        if self._target.exists():
            os.replace(self._target, self._older)
        os.replace(self.folder, self._target)

    def _describe(self, describe: Callable[[], dict[str, str]]) -> None:
        scratch = self._partial / "description.files"  # no configuration has a dot in its name
        shutil.rmtree(scratch, ignore_errors=True)
        for name, text in describe().items():
            write_text(scratch / name, text)
            os.replace(scratch / name, self.repo / name)
        shutil.rmtree(scratch, ignore_errors=True)

    def close(self) -> None:
        """Let other processes build the configuration; what is finished stays for a later build."""
        if self._lock.is_locked and not (self._own.is_dir() and any(self._own.iterdir())):
            with suppress(OSError):  # the folder is not empty while other configurations are built
                shutil.rmtree(self._own, ignore_errors=True)
                Path(self._lock.lock_file).unlink()
                self._partial.rmdir()
        self._lock.release()

    def _named(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        # Split, shard, and the name it has once the number of shards is known.
        for split, shards in self._splits.items():
            for number, shard in enumerate(shards):
                yield split, shard, f"{split}-{number:05d}-of-{len(shards):05d}.parquet"

    def _files(self) -> Iterator[Path]:
        # A kill in the middle of `publish` leaves some shards with their final names.
        for _, shard, final in self._named():
            running = self.folder / shard["file"]
            yield running if running.is_file() else self.folder / final


@contextmanager
def _writing(path: Path, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.{hint}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _nbytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, list):
        return sum(map(_nbytes, value))
    return len(value.encode() if isinstance(value, str) else value) if isinstance(value, (str, bytes)) else 8
