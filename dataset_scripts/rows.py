"""
Path rows: rows of the schema whose images are still paths, streamed from a released file or a built configuration.

Everything that selects, mixes, joins or counts reads its input here, so a released JSON file and the Parquet folder
built from it are interchangeable.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from .released import ReadReport, ReleasedRecord, read_released
from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths


RowKind = Literal["captions", "conversations"]
Row = dict[str, Any]
READ_BATCH = 1024
SHOWN = 100  # entries of long lists that build.json keeps
SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")
# Questions of LLaVA's detailed descriptions as they stand in the released files, spelling included (dataset
# `liuhaotian/LLaVA-Instruct-150K`, detail_23k.json).
DETAIL_QUESTIONS = (
    "Describe the following image.",
    "Write a detailed description of the given image.",
    "What is this photo about'?",
    "Explain the visual content of the image in great detail.",
    "What are the key elements in this picture?",
    "Can you describe the main features of this image for me?",
    "What do you see happening in this image?",
    "What's happening in the scene?",
    "What do you think is going on in this snapshot?",
    "Can you elaborate on the elements of the picture provided?",
    "Analyze the image in a comprehensive and detailed manner.",
)


@dataclass(frozen=True)
class Origin:
    """What every caption of a set shares and its released file does not say."""

    captioner: str
    prompt_id: str
    license: str = "cc-by-nc-4.0"


@dataclass
class RowSource:
    """
    A set of rows on disk, readable any number of times.

    Args:
        path (`Path`): A released JSON file, or the folder of one configuration of a built repository.
        on_bad (`str`, defaults to `"error"`): What a record that cannot be used does: `error` or `skip`.
        image_prefix (`str`, defaults to `""`): Put in front of every image path (LLaVA-Pretrain's own file names its
            images without their folder).
        origin (`Origin`, *optional*): Columns of caption rows that a released file lacks.

    Raises:
        `FileNotFoundError`: There is nothing at the path, or a shard is missing.
        `ValueError`: The folder holds several splits: read as one, held-out rows would get into training.
    """

    path: Path
    on_bad: Literal["error", "skip"] = "error"
    image_prefix: str = ""
    origin: Origin = Origin("unknown", "unknown", "unknown")
    report: ReadReport = field(default_factory=ReadReport)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} is absent; give a released JSON file or a configuration's folder.")
        if self.path.is_dir() and not self.shards:
            raise FileNotFoundError(f"{self.path} holds no Parquet files; give the folder of one configuration.")
        names = [match.groups() for shard in self.shards if (match := SHARD_NAME.fullmatch(shard.name))]
        if len(splits := sorted({split for split, *_ in names})) > 1:
            raise ValueError(f"{self.path} holds the splits {splits}; give a folder with the shards of one.")
        for split, _, count in names:
            if len(names) != int(count):
                raise FileNotFoundError(
                    f"{self.path} holds {len(names)} of {int(count)} shards of {split}. Build or download it again."
                )

    @property
    def shards(self) -> list[Path]:
        """Parquet files in order; empty for a released file."""
        return sorted(self.path.glob("*.parquet")) if self.path.is_dir() else []

    def fingerprint(self) -> dict[str, Any]:
        """
        What identifies the content.

        Returns:
            `dict`: Name, size in bytes and SHA-256 of each file.
        """
        files = self.shards or [self.path]
        return {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}

    def as_set(self, kind: RowKind) -> "RowSet":
        """
        The rows as input of a build.

        Args:
            kind (`str`): `captions` or `conversations`.

        Returns:
            `RowSet`: With the files' hashes as identity.
        """
        files = self.fingerprint()
        identity = {"files": files, "on_bad": self.on_bad, "image_prefix": self.image_prefix, **asdict(self.origin)}
        read = self.captions if kind == "captions" else self.conversations
        return RowSet(read, kind, identity, partial(self._facts, files))

    def _facts(self, files: dict[str, Any]) -> dict[str, Any]:
        return {
            **{"files": files, "license": self._license()},
            "read": {
                **{"records": self.report.records, "by_source": dict(+self.report.by_source)},
                **{"repairs": dict(self.report.repairs), "duplicate_ids": self.report.duplicate_ids},
                **{"refused": len(self.report.refused), "first_refused": self.report.refused[:SHOWN]},
            },
        }

    def _license(self) -> str:
        built = self.path / "build.json"
        facts = json.loads(built.read_text(encoding="utf-8")) if self.shards and built.is_file() else {}
        return facts.get("license", self.origin.license)

    def conversations(self) -> Iterator[Row]:
        """
        Read as conversation rows; captions become answers to a question of `DETAIL_QUESTIONS`, chosen by the row's id.

        Yields:
            `dict`: Row of `CONVERSATION_FEATURES` with paths as `images`.
        """
        if not self.shards:
            for record in self._released():
                images = [] if record.image is None else [record.image]
                yield {"id": record.id, "source": record.source, "images": images, "messages": record.messages}
        elif self.kind() == "conversations":
            yield from self._parquet(CONVERSATION_FEATURES)
        else:
            for row in self._parquet(CAPTION_FEATURES):
                yield caption_to_conversation(row, question_for(row["id"]))

    def captions(self) -> Iterator[Row]:
        """
        Read as caption rows.

        Yields:
            `dict`: Row of `CAPTION_FEATURES` with a path as `image`.

        Raises:
            `ValueError`: A record is no single caption of one image.
        """
        if not self.shards:
            for record in self._released():
                if record.image is None or len(record.messages) != 2:
                    self._refuse(record, f"{len(record.messages)} messages and image {record.image!r} are no caption")
                    continue
                yield {
                    "id": record.id,
                    "image": record.image,
                    "source": record.source,
                    "caption": record.messages[1]["content"],
                    "captioner": self.origin.captioner,
                    "prompt_id": self.origin.prompt_id,
                    "license": self.origin.license,
                    "sha256": None,
                }
        elif self.kind() == "captions":
            yield from self._parquet(CAPTION_FEATURES)
        else:
            raise ValueError(f"{self.path} holds conversations, not captions.")

    def _refuse(self, record: ReleasedRecord, reason: str) -> None:
        if self.on_bad == "error":
            raise ValueError(
                f"{self.path}, record {record.number} (id {record.id!r}): {reason}. Build it as conversations."
            )
        entry = {"file": self.path.name, "record": record.number, "id": record.id, "reason": reason}
        self.report.refused.append(entry)
        self.report.by_source[record.source] -= 1

    def _released(self) -> Iterator[ReleasedRecord]:
        self.report = ReadReport()
        return read_released(self.path, self.report, self.on_bad, self.image_prefix)

    def kind(self) -> RowKind:
        """
        Row type of the content.

        Returns:
            `str`: `captions` or `conversations`; a released file counts as conversations.
        """
        if not self.shards:
            return "conversations"
        with _open(self.shards[0]) as parquet:
            return kind_of(parquet.schema_arrow.names, self.shards[0])

    def _parquet(self, features: Features) -> Iterator[Row]:
        self.report = ReadReport()
        for shard in self.shards:
            for number, row in enumerate(_read_shard(shard, features)):
                if None in images_of(row):
                    raise ValueError(f"{shard}, row {number} (id {row['id']!r}): an image has no path to read it by.")
                self.report.records += 1
                self.report.by_source[row["source"]] += 1
                yield row


@dataclass
class RowSet:
    """
    Rows to build a configuration of: from a [`RowSource`], or mixed from several.

    Args:
        read (`Callable`): Gives a fresh iterator of path rows, always the same.
        kind (`str`): `captions` or `conversations`.
        identity (`dict`): What the rows depend on, ready for JSON.
        facts (`Callable`): What is known about them once they were read, for `build.json`.
    """

    read: Callable[[], Iterator[Row]]
    kind: RowKind
    identity: dict[str, Any]
    facts: Callable[[], dict[str, Any]] = dict


def caption_to_conversation(row: Row, prompt: str) -> Row:
    """
    Turn a caption row into a conversation row of one turn.

    Args:
        row (`dict`): Caption row.
        prompt (`str`): What the user asks for.

    Returns:
        `dict`: Conversation row; the caption is the answer.
    """
    return {
        "id": row["id"],
        "source": row["source"],
        "images": [row["image"]],
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["caption"]}],
    }


def question_for(name: str) -> str:
    """
    Question that a caption answers when it becomes a conversation: the same one for the same id, always.

    Args:
        name (`str`): Id of the row.

    Returns:
        `str`: One of `DETAIL_QUESTIONS`.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return DETAIL_QUESTIONS[int.from_bytes(digest) % len(DETAIL_QUESTIONS)]


def images_of(row: Row) -> list[str]:
    """
    Image paths of a path row of either kind.

    Args:
        row (`dict`): Path row.

    Returns:
        `list[str]`: Empty for a text-only row.
    """
    return row["images"] if "images" in row else [row["image"]]


def kind_of(columns: Iterable[str], name: object) -> RowKind:
    """
    Row type by its columns.

    Args:
        columns (`Iterable[str]`): Column names.
        name (`object`): What the error names.

    Returns:
        `str`: `captions` or `conversations`.

    Raises:
        `ValueError`: Neither.
    """
    if set(columns) == set(CAPTION_FEATURES):
        return "captions"
    if set(columns) == set(CONVERSATION_FEATURES):
        return "conversations"
    raise ValueError(f"{name} has the columns {sorted(columns)}, which are neither caption nor conversation rows.")


def sha256_of(file: Path) -> str:
    """
    Hash a file.

    Args:
        file (`Path`): Any size.

    Returns:
        `str`: SHA-256 in hexadecimal.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open(shard: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(shard)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shard} is damaged: {error}. Build or download it again.") from error


def _read_shard(shard: Path, features: Features) -> Iterator[Row]:
    number = 0
    with _open(shard) as parquet:
        _check_schema(shard, parquet.schema_arrow, features)
        leaves = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        # Of joined images only the path: their bytes would be read for nothing.
        columns = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
        try:
            for batch in parquet.iter_batches(READ_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield _with_paths(row)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{shard} is damaged after {number} rows: {reason}. Build or download it again."
            ) from error


def _check_schema(shard: Path, schema: pa.Schema, features: Features) -> None:
    if set(schema.names) != set(features):
        raise ValueError(f"{shard} has the columns {schema.names}, not {list(features)}.")
    known = features.arrow_schema, with_paths(features).arrow_schema
    for column in schema:
        types = [other.field(column.name).type for other in known]
        if column.type not in types:
            raise ValueError(f"{shard} has the column `{column.name}` as {column.type}, not as {types[0]}.")


def _with_paths(row: Row) -> Row:
    if "image" in row:
        return {**row, "image": _path(row["image"])}
    return {**row, "images": [_path(image) for image in row["images"] or ()]}


def _path(image: dict[str, str] | str | None) -> str | None:
    return image["path"] if isinstance(image, dict) else image
