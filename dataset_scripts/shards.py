"""
Parquet shards that appear whole or not at all, and a build that continues where it was killed.

A configuration is written beside the repository, in `<repo>.partial/<config>/`: each shard first under a temporary
name, then synced and renamed, then entered in `progress.json`. Only the finished folder moves into the repository.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Features
from datasets.arrow_writer import ParquetWriter
from filelock import FileLock, Timeout

from .coverage import Lost
from .rows import Row, sha256_of
from .verify import write_text


logger = logging.getLogger(__name__)
SHARD_BYTES = 100 * 2**20
ROW_GROUP_BYTES = 16 * 2**20
MAX_SHARDS = 10_000  # entries of one folder that the Hub accepts
Item = tuple[int, Row | Lost]
# From a position in the input to its rows from there on, each with its position; a `Lost` takes the place of a row.
Items = Callable[[int], Iterator[Item]]


class WriteError(OSError):
    """The disk refused; what is finished is kept, and the same command continues."""


class BusyError(RuntimeError):
    """Another process builds the same configuration."""


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
        self.folder = repo.with_name(repo.name + ".partial") / config
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder.parent / f"{config}.lock")
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(f"Another process is building {config} of {repo}. Wait for it, or stop it.") from error
        except OSError as error:
            raise WriteError(f"Cannot write to {self.folder}: {error.strerror or error}.") from error
        self._splits: dict[str, list[dict[str, Any]]] = {}
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._resume(self._fingerprint)

    def _resume(self, fingerprint: dict[str, Any]) -> None:
        progress = self.folder / "progress.json"
        if progress.is_file():
            state = json.loads(progress.read_text(encoding="utf-8"))
            shards = [shard for split in state["splits"].values() for shard in split]
            self._splits = state["splits"]
            whole = all(_size(path) == shard["bytes"] for path, shard in zip(self._files(), shards, strict=True))
            if state["fingerprint"] == fingerprint and whole:
                logger.warning("Continuing %s of %s after %d finished shards.", self.config, self.repo, len(shards))
                return
            self._splits = {}
            logger.warning("Starting %s of %s anew: input or options have changed.", self.config, self.repo)
        for path in self.folder.iterdir():
            path.unlink()

    def write_split(self, split: str, items: Items, table: Table, shard_bytes: int = SHARD_BYTES) -> None:
        """
        Write the shards of a split, continuing after those already finished.

        Args:
            split (`str`): Name of the split.
            items (`Items`): The input, from any position on.
            table (`Table`): Columns and check.
            shard_bytes (`int`, defaults to 100 MiB): Uncompressed size at which a shard ends.

        Raises:
            `ValueError`: A row breaks the schema; the message names configuration, split, row number and reason.
            `WriteError`: The disk is full or read-only; finished shards are kept.
        """
        shards = self._splits.setdefault(split, [])
        if shards and shards[-1]["last"]:
            return
        source = items(shards[-1]["next"] if shards else 0)
        pending = next(source, None)
        while True:
            name = f"{split}-{len(shards):05d}.parquet"
            try:
                shard, pending = self._write_shard(name, pending, source, table, shard_bytes, split)
                shards.append(shard)
                self._save()
            except OSError as error:
                raise WriteError(
                    f"Cannot write {self.folder / name}: {error.strerror or error}. {len(shards)} finished shards are "
                    "kept; make room and run the same command again."
                ) from error
            finally:
                (self.folder / f"{name}.tmp").unlink(missing_ok=True)
            if shard["last"]:
                return
            if len(shards) >= MAX_SHARDS:
                raise ValueError(f"{split} would have more than {MAX_SHARDS} shards; make them larger.")

    def _write_shard(
        self, name: str, pending: Item | None, source: Iterator[Item], table: Table, limit: int, split: str
    ) -> tuple[dict[str, Any], Item | None]:
        temporary, size, buffered, lost, position = self.folder / f"{name}.tmp", 0, 0, [], 0
        held = [] if pending is None else [pending]
        rest: Item | None = None
        with temporary.open("wb") as stream:
            writer = ParquetWriter(features=table.features, stream=stream, writer_batch_size=2**31 - 1)
            for position, row in chain(held, source):
                if size >= limit:
                    rest = (position, row)
                    break
                if isinstance(row, Lost):
                    lost.append(row.as_dict())
                    continue
                writer.write(self._encode(row, position, table, split))
                size, buffered = size + _nbytes(row), buffered + _nbytes(row)
                if buffered >= ROW_GROUP_BYTES:
                    writer.write_examples_on_file()
                    buffered = 0
            rows, stored = writer.finalize(close_stream=False)
            stream.flush()
            os.fsync(stream.fileno())
        digest = sha256_of(temporary)
        os.replace(temporary, self.folder / name)
        shard = {"file": name, "rows": rows, "bytes": _size(self.folder / name), "sha256": digest, "in_memory": stored}
        return {**shard, "lost": lost, "next": rest[0] if rest else position + 1, "last": rest is None}, rest

    def _encode(self, row: Row, position: int, table: Table, split: str) -> Row:
        try:
            table.validate(row)
        except ValueError as error:
            raise ValueError(f"Row {position} of {self.config}/{split} (id {row.get('id')!r}): {error}") from error
        return table.features.encode_example(row)

    def _save(self) -> None:
        state = {"fingerprint": self._fingerprint, "splits": self._splits}
        write_text(self.folder / "progress.json", json.dumps(state))

    def lost(self) -> list[dict[str, Any]]:
        """
        Rows left out, over all splits.

        Returns:
            `list[dict]`: As lines of a coverage report.
        """
        return [entry for shards in self._splits.values() for shard in shards for entry in shard["lost"]]

    def publish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """
        Move the finished configuration into the repository, replacing an older one.

        Args:
            facts (`dict`): Written to `build.json`, with the shards of every split; `mix` goes to a file of its own.

        Returns:
            `dict`: What was written to `build.json`.
        """
        splits: dict[str, list[dict[str, Any]]] = {}
        for path, (split, shard, final) in zip(self._files(), self._named(), strict=True):
            os.replace(path, self.folder / final)
            kept = {name: shard[name] for name in ("rows", "bytes", "sha256", "in_memory")}
            splits.setdefault(split, []).append({"file": final, **kept})
        facts = {**facts, "config": self.config, "splits": splits}
        if "mix" in facts:
            _write_json(self.folder / "mix.json", facts.pop("mix"))
        _write_json(self.folder / "build.json", facts)
        target = self.repo / self.config
        self.repo.mkdir(parents=True, exist_ok=True)
        older = self.folder.parent / f"{self.config}.old"
        shutil.rmtree(older, ignore_errors=True)
        if target.exists():
            os.replace(target, older)
        os.replace(self.folder, target)
        (target / "progress.json").unlink()
        shutil.rmtree(older, ignore_errors=True)
        self.close()
        if not any(path.suffix != ".lock" for path in self.folder.parent.iterdir()):
            shutil.rmtree(self.folder.parent, ignore_errors=True)
        return facts

    def close(self) -> None:
        """Let other processes build the configuration; what is finished stays for a later build."""
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _nbytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, list):
        return sum(map(_nbytes, value))
    return len(value) if isinstance(value, (str, bytes)) else 8
