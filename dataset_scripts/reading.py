"""
Rows of a built repository for training: streamed, checked and decoded, whatever single rows hold.

A plain stream of `datasets` ends at the first image that cannot be decoded, loses the rows of its shuffle buffer at a
resume, and lets every rank read every file when their numbers do not match. Here a bad row is counted and skipped; and
as the footers of the Parquet files say how many rows there are, every rank, worker and shuffle buffer is a range of
row numbers, so one number says where to go on. `datasets` finds the files, pyarrow reads their row groups.

```python
accelerator = Accelerator(DataLoaderConfiguration(dispatch_batches=False, use_stateful_dataloader=True))
rows = open_rows("path/or/hub-id", "ShareGPT4V").shuffle(seed=7)
loader = accelerator.prepare(DataLoader(rows, batch_size=8, num_workers=4, collate_fn=collate))
```
"""

import copy
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.utils.data
from datasets import DatasetInfo, Features, IterableDataset, load_dataset_builder
from datasets.iterable_dataset import ExamplesIterable
from PIL import Image, UnidentifiedImageError

from modeling_sharegpt4v.images_sharegpt4v import open_image

from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, validate_caption, validate_conversation


logger = logging.getLogger(__name__)

REMEMBERED = 100  # bad rows a report describes; further ones are only counted
SHOWN = 3  # bad rows an error or a log line describes
BATCH = 64  # rows turned into Python objects at a time
FOOTER_THREADS = 16  # footers of a large repository on the Hub are hundreds of requests
# A shuffle buffer is filled from this many places of the (shuffled) row groups at a time, so that rows of one source
# that were written one after another do not stay together. Each place has a row group in memory.
LANES = 8
REPORT = "row_report"  # name by which `total_report` finds reports in any state


class RowGroup(NamedTuple):
    """A row group of a Parquet file."""

    file: str
    number: int
    first_row: int  # in the file
    rows: int
    size: int  # bytes before compression


Place = tuple[RowGroup, int, dict[str, Any]]  # a row behind its row group and its number in the file


@dataclass
class RowReport:
    """What one pass over the rows met: rows seen and given, bad rows by kind, and the first of the bad rows."""

    seen: int = 0
    given: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    first_bad: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self):
        kinds = "".join(f", {kind}: {count}" for kind, count in sorted(self.bad.items()))
        text = f"{self.seen} rows seen, {self.given} given, {sum(self.bad.values())} bad{kinds}"
        for row in self.first_bad[:SHOWN]:
            text += f"\n- row {row['row']} of {row['file']}, id {row['id']!r}, {row['kind']}: {row['message']}"
        return text


class SafeRows(IterableDataset, torch.utils.data.IterableDataset):
    """
    Stream of decoded rows that skips, counts and reports the bad ones; made by [`open_rows`].

    It is an `IterableDataset` of `datasets`, because TRL takes no other and Accelerate then splits it over ranks by
    its own `shard`. Only the methods below hold for it; what comes of `map` and its like raises when it is read.

    A row is bad when it breaks the schema or when an image cannot be read, with these kinds: `schema`,
    `no image data`, `unreadable image`, `decompression bomb`. A damaged Parquet file is an error, never a bad row.

    `report` ([`RowReport`]) counts the newest pass of this process, resumes included. DataLoader workers count and log
    each for itself; the state of a `StatefulDataLoader` holds the counts of all of them, see [`total_report`].

    Args:
        groups (`Sequence[RowGroup]`): Row groups in the order of the rows.
        features (`Features`): `CAPTION_FEATURES` or `CONVERSATION_FEATURES`.
        max_bad (`int` or `float`): Bad rows that one process tolerates in a pass: a number of rows, or a share of
            the rows that it reads, rounded up.
        reduce_to (`int`, *optional*): Pixels that suffice on either side, see [`open_image`].
    """

    def __init__(self, groups: Sequence[RowGroup], features: Features, max_bad: float, reduce_to: int | None = None):
        if max_bad < 0 or (isinstance(max_bad, float) and max_bad > 1):
            raise ValueError(f"`max_bad` must be a number of rows or a share from 0.0 to 1.0, got {max_bad!r}.")
        super().__init__(ExamplesIterable(_refuse, {}), DatasetInfo(features=features))
        self._validate = validate_conversation if "messages" in features else validate_caption
        self._groups = list(groups)
        self._files = zlib.crc32(repr([group[1:] for group in groups]).encode())  # no names: the folder may move
        self._max_bad = max_bad
        self._reduce_to = reduce_to
        self._shuffling: tuple[int, int] | None = None  # seed, buffer size
        self._rank, self._world_size = 0, 1
        self.report, self._pass_epoch, self._resumes = RowReport(), 0, False

    @property
    def num_rows(self) -> int:
        """Rows of the whole split, good and bad, as the files state it (`int`)."""
        return sum(group.rows for group in self._groups)

    @property
    def num_shards(self) -> int:
        """Into how many parts [`~SafeRows.shard`] can cut the rows: one a row (`int`)."""
        return self.num_rows

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "SafeRows":
        """
        Shuffle the row groups, and rows among them, differently in each epoch.

        Args:
            seed (`int`): Same on every rank.
            buffer_size (`int`, defaults to 1000): Rows, undecoded, among which one is drawn; held by each worker.

        Returns:
            `SafeRows`: The shuffled rows, at their beginning.
        """
        if seed < 0 or buffer_size < 1:
            raise ValueError(f"`seed` must be at least 0 and `buffer_size` 1, got {seed} and {buffer_size}.")
        return self._with(_shuffling=(seed, buffer_size))

    def shard(self, num_shards: int, index: int) -> "SafeRows":
        """
        Keep the share of one rank; the shares of all ranks differ by at most one row (bad rows included).

        Args:
            num_shards (`int`): Number of ranks.
            index (`int`): Number of the rank, from 0.

        Returns:
            `SafeRows`: The rows of the rank, at their beginning.
        """
        if not 0 <= index < num_shards:
            raise ValueError(f"`index` must be from 0 to `num_shards` - 1, got {index} of {num_shards}.")
        if self._world_size > 1:
            raise ValueError(f"The rows are already those of rank {self._rank} of {self._world_size}; split once.")
        return self._with(_rank=index, _world_size=num_shards)

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the order of the next pass; another epoch than the present one begins at its first row.

        Args:
            epoch (`int`): Number of the epoch, from 0.
        """
        if epoch != self.epoch:
            self.report, self._pass_epoch, self._resumes = RowReport(), epoch, False
        super().set_epoch(epoch)  # reaches persistent workers

    def state_dict(self) -> dict[str, Any]:
        """
        Say where the newest pass stands, behind the row it gave last.

        Returns:
            `dict`: State of plain JSON types; it holds the report.
        """
        return {"epoch": self._pass_epoch, "plan": self._plan(), REPORT: asdict(self.report)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Let the next pass continue with exactly the row that followed, in the epoch and with the counts of the state.

        Args:
            state_dict (`dict`): What [`~SafeRows.state_dict`] returned.

        Raises:
            `ValueError`: The state is of other files, another shuffling, rank or worker.
        """
        plan, saved = self._plan(), state_dict["plan"]
        if changed := [f"{name} {saved[name]} is now {plan[name]}" for name in plan if saved[name] != plan[name]]:
            raise ValueError(f"The state does not fit these rows: {', '.join(changed)}. Restore it or start anew.")
        self.report = RowReport(**copy.deepcopy(state_dict[REPORT]))
        self._pass_epoch, self._resumes = state_dict["epoch"], True
        super().set_epoch(state_dict["epoch"])

    def __iter__(self):
        if not self._resumes:
            self.report, self._pass_epoch = RowReport(), self.epoch
        self._resumes = False
        plan = self._plan()
        start, stop = _part(0, self.num_rows, plan["rank"], plan["world_size"])
        start, stop = _part(start, stop, plan["worker"], plan["workers"])
        walk = self._walk(start, stop, self.report.seen, self._pass_epoch)
        return self._give(walk, self.report, stop - start)

    def _with(self, **changes: Any) -> "SafeRows":
        rows = SafeRows(self._groups, self.features, self._max_bad, self._reduce_to)
        places = {name: getattr(self, name) for name in ("_shuffling", "_rank", "_world_size")}
        rows.__dict__.update(places | changes)
        return rows

    def _plan(self) -> dict[str, Any]:
        info = torch.utils.data.get_worker_info()
        seed, buffer_size = self._shuffling or (None, None)
        plan = {"files": self._files, "seed": seed, "buffer_size": buffer_size}
        plan |= {"rank": self._rank, "world_size": self._world_size}
        return plan | {"worker": info.id if info else 0, "workers": info.num_workers if info else 1}

    def _walk(self, start: int, stop: int, seen: int, epoch: int) -> Iterator[Place]:
        if self._shuffling is None:
            yield from _read_range(self._groups, start + seen, stop)
            return
        # A buffer is filled, given in random order to its end, and filled again; it takes the same number of rows
        # from each lane. So the number of rows seen says which rows are in it and which of them come next.
        seed, buffer_size = self._shuffling
        order = np.random.default_rng([seed, epoch]).permutation(len(self._groups))
        groups = [self._groups[index] for index in order]
        ends = np.cumsum([group.rows for group in groups])
        touched = 1 + np.searchsorted(ends, stop) - np.searchsorted(ends, start, side="right")
        count = min(LANES, buffer_size, max(1, int(touched)))
        from_each = buffer_size // count
        number, skipped = divmod(seen, from_each * count)
        lanes = []
        for index in range(count):
            first, last = _part(start, stop, index, count)
            lanes.append(_read_range(groups, first + number * from_each, last))
        while rows := [row for lane in lanes for row in islice(lane, from_each)]:
            shuffled = np.random.default_rng([seed, epoch, start, number]).permutation(len(rows))
            yield from (rows[index] for index in shuffled[skipped:])
            number, skipped = number + 1, 0

    def _give(self, walk: Iterator[Place], report: RowReport, count: int) -> Iterator[dict[str, Any]]:
        limit = math.ceil(self._max_bad * count) if isinstance(self._max_bad, float) else self._max_bad
        for group, number, row in walk:
            report.seen += 1
            try:
                decoded = self._decode(row)
            except _BadRow as error:
                kind, message = error.args
                if len(report.first_bad) < REMEMBERED:
                    place = {"file": group.file, "row": number, "id": row["id"]}
                    report.first_bad.append({**place, "kind": kind, "message": message})
                report.bad[kind] = report.bad.get(kind, 0) + 1
                if (bad := sum(report.bad.values())) > limit:
                    problem = f"More than {limit} bad rows of {count} (`max_bad` is {self._max_bad})"
                    raise ValueError(f"{problem}. Mend the repository or raise `max_bad`. {report}") from error
                if bad == 1:
                    logger.warning("A bad row is skipped, further ones without a word: %s", report)
                continue
            report.given += 1
            yield decoded
        logger.log(logging.WARNING if report.bad else logging.INFO, "End of the rows: %s", report)

    def _decode(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self._validate(row)
        except (ValueError, TypeError) as error:  # TypeError: null where a list or a message should be
            raise _BadRow("schema", str(error)) from error
        if "image" in row:
            return {**row, "image": self._decode_image(row["image"])}
        return {**row, "images": [self._decode_image(image) for image in row["images"]]}

    def _decode_image(self, image: dict[str, Any]) -> Image.Image:
        data = image["bytes"]
        if not data:
            raise _BadRow("no image data", f"The image (path {image['path']!r}) has no bytes in the repository.")
        try:
            return open_image(data, self._reduce_to, mode="crop")  # `crop`: neither side gets smaller
        except ValueError as error:
            cause = error.__cause__
            if isinstance(cause, Image.DecompressionBombError):
                raise _BadRow("decompression bomb", str(cause)) from error
            problem = "no known image format" if isinstance(cause, UnidentifiedImageError) else str(cause)
            raise _BadRow("unreadable image", f"{problem} ({len(data)} bytes).") from error


def open_rows(
    repo: str | Path,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_bad: float = 0.01,
    reduce_to: int | None = None,
) -> SafeRows:
    """
    Open one split of a repository of caption or conversation rows; only the footers of its files are read.

    Args:
        repo (`str` or `Path`): Folder or Hub id.
        config (`str`, *optional*): Configuration, needed when there are several.
        split (`str`, defaults to `"train"`): Split of the configuration.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        max_bad (`int` or `float`, defaults to 0.01): Bad rows after which a pass raises, see [`SafeRows`].
        reduce_to (`int`, *optional*): Pixels that suffice on either side; JPEG files are decoded smaller then.

    Returns:
        `SafeRows`: The rows in the order of the files.

    Raises:
        `ValueError`: No such configuration or split, a file is damaged, or its columns are not those of the schema.
    """
    files = load_dataset_builder(str(repo), config, revision=revision).config.data_files or {}
    if split not in files:
        raise ValueError(f"{repo} has no split {split!r} in configuration {config!r}, only {sorted(files)}.")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(_read_footer, files[split]))
    features = CONVERSATION_FEATURES if "messages" in footers[0][1].names else CAPTION_FEATURES
    for file, (_, schema) in zip(files[split], footers, strict=True):
        given = {column.name: column.type for column in schema}
        expected = {column.name: column.type for column in features.arrow_schema}
        if wrong := [name for name in expected | given if given.get(name) != expected.get(name)]:
            types = "; ".join(f"{name} {given.get(name)}, expected {expected.get(name)}" for name in sorted(wrong))
            raise ValueError(f"{file} has not the columns of the schema: {types}. Build it again, with images.")
    return SafeRows([group for groups, _ in footers for group in groups], features, max_bad, reduce_to)


def total_report(*states: Any) -> RowReport:
    """
    Add up the reports of all workers and ranks.

    Args:
        states (`Any`): States of `StatefulDataLoader`s or [`SafeRows`], in any nesting of dictionaries and lists.

    Returns:
        `RowReport`: Totals; the first bad rows are those of the first workers.
    """
    total = RowReport()
    for state in states:
        if isinstance(state, dict) and REPORT in state:
            part = RowReport(**state[REPORT])
        elif isinstance(state, (dict, list, tuple)):
            part = total_report(*(state.values() if isinstance(state, dict) else state))
        else:
            continue
        total.seen += part.seen
        total.given += part.given
        total.bad = {kind: total.bad.get(kind, 0) + part.bad.get(kind, 0) for kind in total.bad | part.bad}
        total.first_bad += part.first_bad[: REMEMBERED - len(total.first_bad)]
    return total


def _refuse() -> Iterator[Any]:
    raise TypeError("Safe rows cannot be mapped, filtered, taken or batched; do that in the collate function.")


class _BadRow(Exception):
    """Why a row cannot be used: kind and message."""


def _part(start: int, stop: int, index: int, count: int) -> tuple[int, int]:
    return start + (stop - start) * index // count, start + (stop - start) * (index + 1) // count


def _read_footer(file: str) -> tuple[list[RowGroup], pa.Schema]:
    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"Cannot read {file}: {error}. If it is damaged, fetch or build it again.") from error
    groups, first_row = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        groups.append(RowGroup(file, number, first_row, group.num_rows, group.total_byte_size))
        first_row += group.num_rows
    return groups, schema


def _read_range(groups: Sequence[RowGroup], start: int, stop: int) -> Iterator[Place]:
    """Rows `start` to `stop` of the row groups one behind another, each with its group and its number in the file."""
    offset = 0
    for group in groups:
        if offset < stop and offset + group.rows > start:
            yield from _read_group(group, max(0, start - offset), min(group.rows, stop - offset))
        offset += group.rows


def _read_group(group: RowGroup, start: int, stop: int) -> Iterator[Place]:
    end = 0
    try:
        with pq.ParquetFile(group.file, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH, row_groups=[group.number]):
                begin, end = end, end + len(batch)
                wanted = batch[max(0, start - begin) : stop - begin]
                for number, row in enumerate(wanted.to_pylist(), group.first_row + max(start, begin)):
                    yield group, number, row
                if end >= stop:
                    return
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"Cannot read {group.file} from row {group.first_row + end} on: {error}"
        raise ValueError(f"{problem}. If the file is damaged, fetch or build it again.") from error
    raise ValueError(f"Row group {group.number} of {group.file} ends before its row {stop}. Fetch or build it again.")
