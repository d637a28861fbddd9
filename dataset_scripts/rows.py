"""
Path rows: rows of the schema whose images are still paths, streamed from a released file or a built configuration.

Everything that selects, mixes, joins or counts reads its input here, so a released JSON file and the Parquet folder
built from it are interchangeable.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from .released import ReadReport, ReleasedRecord, read_released
from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES


RowKind = Literal["captions", "conversations"]
Row = dict[str, Any]
READ_BATCH = 1024
SHOWN = 100  # entries of long lists that build.json keeps
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
            **{"files": files, "license": self.origin.license},
            "read": {
                **{"records": self.report.records, "by_source": dict(self.report.by_source)},
                **{"repairs": dict(self.report.repairs), "duplicate_ids": self.report.duplicate_ids},
                **{"refused": len(self.report.refused), "first_refused": self.report.refused[:SHOWN]},
            },
        }

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
        return kind_of(pq.read_schema(self.shards[0]).names, self.shards[0]) if self.shards else "conversations"

    def _parquet(self, features: Iterable[str]) -> Iterator[Row]:
        self.report = ReadReport()
        for shard in self.shards:
            try:
                parquet = pq.ParquetFile(shard)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{shard} is damaged: {error}. Build or download it again.") from error
            with parquet:
                if set(parquet.schema_arrow.names) != set(features):
                    raise ValueError(f"{shard} has the columns {parquet.schema_arrow.names}, not {list(features)}.")
                for batch in parquet.iter_batches(READ_BATCH, columns=_columns(parquet.schema_arrow)):
                    for row in batch.to_pylist():
                        row = _with_paths(row)
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


def _columns(schema: pa.Schema) -> list[str]:
    # Of joined images only the path: their bytes would be read for nothing.
    columns = []
    for column in schema:
        kind = column.type.value_type if pa.types.is_list(column.type) else column.type
        if column.name in ("image", "images") and pa.types.is_struct(kind):
            columns.append(f"{column.name}.list.element.path" if kind is not column.type else f"{column.name}.path")
        else:
            columns.append(column.name)
    return columns


def _with_paths(row: Row) -> Row:
    if "image" in row:
        return {**row, "image": _path(row["image"])}
    return {**row, "images": [_path(image) for image in row["images"]]}


def _path(image: dict[str, str] | str) -> str:
    return image["path"] if isinstance(image, dict) else image
