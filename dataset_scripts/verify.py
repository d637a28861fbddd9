"""
Check every image of a dataset: present, safe, decodable, not twice under two names, not in a benchmark.

```
output/coverage.json      counts by source, archives that hold the missing images, problems of archives
output/lost.jsonl         every image that cannot be used, with row and reason
output/duplicates.jsonl   images that look the same under two names; ids that occur twice
output/overlap.jsonl      images that look like one of the excluded (benchmark) images
output/images.sqlite      outcome of every image: a rerun checks only what is new, has changed or was bad
```
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .archives import Located
from .check_image import Check, check_named, crashed_named
from .coverage import Coverage
from .image_store import CheckedImages
from .images import ImageRoots
from .near_duplicates import NearDuplicates
from .pool import map_ordered
from .rows import Row, images_of
from .writing import write_lines, write_text


logger = logging.getLogger(__name__)


class OverlapError(ValueError):
    """Images of the dataset are in a benchmark."""


@dataclass
class _Inventory:
    """What the rows name, before anything is decoded."""

    rows: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    first_row: dict[str, int] = field(default_factory=dict)
    located: dict[str, Located] = field(default_factory=dict)
    images_by_row: list[list[str]] = field(default_factory=list)
    repeated_ids: list[dict[str, Any]] = field(default_factory=list)


def verify(
    rows: Iterable[Row],
    roots: ImageRoots,
    output: str | os.PathLike,
    exclude: ImageRoots | None = None,
    distance: int = 4,
    workers: int | None = None,
) -> tuple[Coverage, dict[str, Any]]:
    """
    Check every image that a set of rows names, and write the report.

    Args:
        rows (`Iterable[dict]`): Path rows of either kind.
        roots (`ImageRoots`): Where the images are.
        output (`str` or `os.PathLike`): Folder of the report; an existing one is resumed.
        exclude (`ImageRoots`, *optional*): Images that must not be in the dataset, those of benchmarks.
        distance (`int`, defaults to 4): Bits of the perceptual hash in which images that look the same may differ.
        workers (`int`, *optional*): Processes, all cores by default.

    Returns:
        `tuple[Coverage, dict]`: The coverage, and the report as written to `coverage.json`.
    """
    output = Path(output)
    looks, twins, overlap = NearDuplicates(distance), [], []
    found = _take_inventory(rows, roots)
    with CheckedImages(output / "images.sqlite") as store:
        banned = hash_all(exclude, store, distance, workers) if exclude else None
        check_all(found.located, store, workers)
        for image, located in found.located.items():
            check, row = store[image, located], found.first_row[image]
            if check.problem:
                found.coverage.corrupt(row, image, check.problem)
                continue
            if (twin := looks.find(check.phash)) is not None:
                twins.append({"images": [twin, image], "rows": [found.first_row[twin], row]})
            looks.add(check.phash, image)
            if banned is not None and (benchmark := banned.find(check.phash)) is not None:
                overlap.append({"image": image, "row": row, "excluded": benchmark})
    lost = {entry.image for entry in found.coverage.lost}
    archives = [*roots.archives, *(exclude.archives if exclude else ())]
    report = {
        "rows": found.rows,
        "usable_rows": sum(lost.isdisjoint(images) for images in found.images_by_row),
        "repeated_ids": len(found.repeated_ids),
        "duplicate_images": len(twins),
        "overlap": len(overlap),
        **found.coverage.as_dict(),
        "archives": {str(archive.path): archive.problems for archive in archives if archive.problems},
    }
    write_lines(output / "lost.jsonl", [entry.as_dict() for entry in found.coverage.lost])
    write_lines(output / "duplicates.jsonl", [*found.repeated_ids, *twins])
    write_lines(output / "overlap.jsonl", overlap)
    write_text(output / "coverage.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return found.coverage, report


def check_all(images: Mapping[str, Located], store: CheckedImages, workers: int | None = None) -> None:
    """
    Check images in parallel and put the outcomes into the store; those already found good are skipped. What had a
    problem is tried again: it may have been a lack of memory or of permission, which leaves no trace in the file.

    Args:
        images (`Mapping[str, Located]`): Where the bytes of each image are.
        store (`CheckedImages`): Filled on the way.
        workers (`int`, *optional*): Processes, all cores by default.
    """
    unknown = [(image, where) for image, where in images.items() if not _is_good(store.get(image, where))]
    bar = tqdm(total=len(images), initial=len(images) - len(unknown), desc="checking", unit="image", disable=None)
    with bar:
        for image, located, check in map_ordered(check_named, unknown, crashed_named, workers):
            store[image, located] = check
            bar.update()


def hash_all(roots: ImageRoots, store: CheckedImages, distance: int = 4, workers: int | None = None) -> NearDuplicates:
    """
    Index the looks of every readable image below some roots.

    Args:
        roots (`ImageRoots`): The images.
        store (`CheckedImages`): Filled on the way.
        distance (`int`, defaults to 4): Bits in which images that look the same may differ.
        workers (`int`, *optional*): Processes, all cores by default.

    Returns:
        `NearDuplicates`: Entries named by their paths.

    Raises:
        `ValueError`: There are none, or see [`ImageRoots.scan`].
    """
    index, names, located = NearDuplicates(distance), {}, {}
    for image, where in roots.scan():
        key = f"excluded:{where.file}:{where.offset}"  # two roots may have files of the same path
        names[key], located[key] = image, where
    if not located:
        raise ValueError(f"There are no images to exclude in {', '.join(map(str, roots.roots))}.")
    check_all(located, store, workers)
    unreadable = []
    for key, where in located.items():
        check = store[key, where]
        if check.problem:
            unreadable.append(names[key])
        else:
            index.add(check.phash, names[key])
    if unreadable:
        logger.warning("%d excluded images cannot be read, first: %s.", len(unreadable), ", ".join(unreadable[:3]))
    return index


def require_no_overlap(report: dict[str, Any], output: str | os.PathLike) -> None:
    """
    Refuse a dataset that shares images with a benchmark.

    Args:
        report (`dict`): Report of [`verify`].
        output (`str` or `os.PathLike`): Its folder, named in the error.

    Raises:
        `OverlapError`: There is an overlap.
    """
    if report["overlap"]:
        raise OverlapError(
            f"{report['overlap']} images look like excluded ones, see {Path(output) / 'overlap.jsonl'}. "
            "Remove those rows, or allow the overlap."
        )


def _take_inventory(rows: Iterable[Row], roots: ImageRoots) -> _Inventory:
    found = _Inventory()
    first_of_id: dict[str, int] = {}
    for number, row in enumerate(tqdm(rows, desc="reading rows", unit="row", disable=None)):
        if row["id"] in first_of_id:
            found.repeated_ids.append({"id": row["id"], "rows": [first_of_id[row["id"]], number]})
        first_of_id.setdefault(row["id"], number)
        found.images_by_row.append(images_of(row))
        for image in images_of(row):
            if image not in found.first_row:
                found.first_row[image] = number
                if (located := found.coverage.find(number, image, roots)) is not None:
                    found.located[image] = located
    found.rows = len(found.images_by_row)
    return found


def _is_good(check: Check | None) -> bool:
    return check is not None and not check.problem
