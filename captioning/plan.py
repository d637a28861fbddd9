"""
The images of a job: where each one is, what its bytes are, and which shard has its captions.

```
out/plan.parquet    id, image, source, sha256, phash, and where the bytes are; a row group a shard
out/plan.json       number of shards, images by source, what cannot be read
```

The shard of an image follows from its hash alone: images may be added, prompts and models changed, and whatever was
ever said about an image stands in one file. Planning again reads only files that are new or have changed.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dataset_scripts.archives import Located, read_located
from dataset_scripts.check_image import describe
from dataset_scripts.images import ImageRoots
from dataset_scripts.layouts import OTHER, source_of
from dataset_scripts.writing import write_text


PLAN, FACTS = "plan.parquet", "plan.json"
SHARD_IMAGES = 1000  # a shard is read into memory whole, and is what one worker takes at a time
LEAST_SHARDS = 16  # so that a small job can be shared by a few workers
READERS, AHEAD = 8, 1024
SHOWN = 20
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError)  # all that damaged files raise
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "image", "source", "sha256", "phash", "file")]
    + [(name, pa.int64()) for name in ("size", "mtime_ns", "offset", "packed", "method", "crc")]
)


_Place = tuple[str, int | None, int, int]  # file, offset, size, time of change


class _Found(NamedTuple):
    id: str
    image: str
    source: str
    phash: str
    located: Located


@dataclass(frozen=True)
class PlannedImage:
    """
    An image to caption.

    Args:
        id (`str`): Stem of its file name, or its path where stems are not unique.
        image (`str`): Path as a record has it, relative to the root of all images.
        source (`str`): Its source.
        sha256 (`str`): Of its bytes.
        phash (`str`): Perceptual hash, 16 hexadecimal digits; empty where nothing has computed it yet.
        located (`Located`): Where its bytes are.
    """

    id: str
    image: str
    source: str
    sha256: str
    phash: str
    located: Located

    def read(self) -> bytes:
        """
        Its bytes, as they were planned.

        Returns:
            `bytes`: The file.

        Raises:
            `ValueError`: They are others now.
            `OSError`: They cannot be read.
        """
        data = read_located(self.located)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError("the file has changed since it was planned. Plan again, and it is another image")
        return data


def make_plan(
    out: Path, images: ImageRoots, selection: Path | None = None, shards: int | None = None
) -> dict[str, Any]:
    """
    Find the images and write the plan.

    Args:
        out (`Path`): Folder of the job.
        images (`ImageRoots`): Where the images are.
        selection (`Path`, *optional*): Folder of a selection; without it every image below the roots is planned.
        shards (`int`, *optional*): Number of shards of a new job; one for a thousand images by default.

    Returns:
        `dict`: What was written to `plan.json`.

    Raises:
        `ValueError`: There are no images, or a shard number was given to a job that has one.
    """
    old = read_facts(out)
    before = old["shards"] if old is not None else _row_groups(out / PLAN)
    if before is not None and shards not in (None, before):
        raise ValueError(f"{out} has {before} shards, which cannot be changed. Leave the number out.")
    known = {_place(one.located): one.sha256 for one in read_plan(out)} if (out / PLAN).is_file() else {}
    found = list(_selected(images, selection) if selection is not None else _scanned(images))
    if not found:
        raise ValueError(f"There are no images in {', '.join(map(str, images.roots))}.")
    planned, unreadable = _hash_all(found, known)
    if not planned:
        raise ValueError(f"None of the {len(found)} images can be read, first: {unreadable[0]}")
    count = before or shards or max(min(len(planned), LEAST_SHARDS), -(-len(planned) // SHARD_IMAGES))
    planned.sort(key=lambda one: (shard_of(one.sha256, count), one.located.file, one.located.offset or 0, one.image))
    out.mkdir(parents=True, exist_ok=True)
    # The facts go first and come last: where they are, the plan is theirs.
    (out / FACTS).unlink(missing_ok=True)
    digest = _write(out / PLAN, planned, count)
    facts = {
        **{"shards": count, "images": len(planned), "distinct": len({one.sha256 for one in planned})},
        **{"sources": dict(sorted(Counter(one.source for one in planned).items()))},
        **{"unreadable": len(unreadable), "first_unreadable": unreadable[:SHOWN], "digest": digest},
    }
    write_text(out / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return facts


def read_facts(out: Path) -> dict[str, Any] | None:
    """
    What is known about the plan of a job.

    Args:
        out (`Path`): Folder of the job.

    Returns:
        `dict`, *optional*: `plan.json`; `None` without a plan.

    Raises:
        `ValueError`: They are damaged.
    """
    path = out / FACTS
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def read_plan(out: Path, shard: int | None = None) -> Iterator[PlannedImage]:
    """
    The images of a job, or of one of its shards.

    Args:
        out (`Path`): Folder of the job.
        shard (`int`, *optional*): Its number; all by default.

    Yields:
        `PlannedImage`: Shard by shard, always in the same order.

    Raises:
        `ValueError`: The plan is damaged.
        `FileNotFoundError`: There is none.
    """
    path = out / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{out} has no plan. Give the folder of a job, or plan it first.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            groups = range(parquet.num_row_groups) if shard is None else [shard]
            for group in groups:
                for row in parquet.read_row_group(group).to_pylist():
                    named = {name: row.pop(name) for name in ("id", "image", "source", "sha256", "phash")}
                    yield PlannedImage(**named, located=Located(**row))
    except DAMAGE as error:
        raise _damaged(path, error) from error


def shard_of(sha256: str, shards: int) -> int:
    """
    Which shard has the captions of an image.

    Args:
        sha256 (`str`): Of its bytes.
        shards (`int`): Number of shards.

    Returns:
        `int`: From 0.
    """
    return int(sha256[:15], 16) % shards


def _scanned(images: ImageRoots) -> Iterator[_Found]:
    located: dict[str, Located] = {}
    for image, where in images.scan():
        located.setdefault(image, where)
    stems = Counter(map(_stem, located))
    for image, where in located.items():
        source = source_of(image)
        if source == OTHER and "/" in image:
            source = image.split("/")[0]
        yield _Found(_stem(image) if stems[_stem(image)] == 1 else image, image, source, "", where)


def _selected(images: ImageRoots, selection: Path) -> Iterator[_Found]:
    from dataset_scripts.select_images import read_selection  # with `datasets`, which takes a second

    missing = []
    for row in read_selection(selection):
        where = images.locate(row["image"])
        if where is None:
            missing.append(row["image"])
        else:
            yield _Found(row["id"], row["image"], row["source"], row["phash"] or "", where)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images of {selection} are in no image folder, first: {missing[0]}. Give their folder."
        )


def _hash_all(found: list[_Found], known: dict[_Place, str]) -> tuple[list[PlannedImage], list[str]]:
    planned, unreadable = [], []
    bar = tqdm(total=len(found), desc="planning", unit="image", disable=None)
    with ThreadPoolExecutor(READERS) as readers, bar:
        for start in range(0, len(found), AHEAD):
            part = found[start : start + AHEAD]
            for one, (digest, problem) in zip(part, readers.map(partial(_hash, known), part), strict=True):
                if problem:
                    unreadable.append(f"{one.image}: {problem}")
                else:
                    planned.append(PlannedImage(one.id, one.image, one.source, digest, one.phash, one.located))
                bar.update()
    return planned, unreadable


def _hash(known: dict[_Place, str], one: _Found) -> tuple[str, str]:
    if digest := known.get(_place(one.located)):
        return digest, ""
    try:
        return hashlib.sha256(read_located(one.located)).hexdigest(), ""
    except (OSError, ValueError) as error:
        return "", describe(error)


def _place(located: Located) -> _Place:
    return located.file, located.offset, located.size, located.mtime_ns


def _write(path: Path, planned: list[PlannedImage], shards: int) -> str:
    """Write the plan, a row group a shard, and give the hash of what it says."""
    digest = hashlib.sha256()
    partial_path = path.with_name(f"{path.name}.partial")
    groups = {shard: list(rows) for shard, rows in groupby(planned, lambda one: shard_of(one.sha256, shards))}
    with pq.ParquetWriter(partial_path, SCHEMA, write_page_checksum=True) as writer:
        for shard in range(shards):
            rows = [_row(one) for one in groups.get(shard, [])]
            digest.update(json.dumps([[row["image"], row["source"], row["sha256"]] for row in rows]).encode())
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))  # an empty shard is an empty group
    os.replace(partial_path, path)
    return digest.hexdigest()[:12]


def _row_groups(path: Path) -> int | None:
    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as parquet:
            return parquet.num_row_groups
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    said = str(error).splitlines() or [type(error).__name__]
    return ValueError(f"{path} is damaged: {said[0]}. Delete it and plan again; captions are kept.")


def _row(one: PlannedImage) -> dict[str, Any]:
    named = {"id": one.id, "image": one.image, "source": one.source, "sha256": one.sha256, "phash": one.phash}
    return {**named, **asdict(one.located)}


def _stem(image: str) -> str:
    name = image.rsplit("/", 1)[-1]
    return name.rpartition(".")[0] or name
