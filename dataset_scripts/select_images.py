"""
Choose the images of a new caption dataset: so many of each source, by a seed, no two alike, none of a benchmark.

```
output/images.parquet    the choice: id, image, source, sha256, width, height, phash; source by source, as chosen
output/selection.json    seed, quotas asked and filled, candidates, rejected images by reason, versions
output/rejected.jsonl    every image that was passed over, with reason and the image that it looks like
output/images.sqlite     outcome of every decoded image: a rerun continues, and another choice decodes only what is new
```

Sources are served in the order of their names, each in an order of its own that follows from seed and path alone; an
image is passed over when it looks like one chosen before it. So with the same seed, images and exclusions a larger
quota keeps what was chosen of that source and of every source before it by name. A source after it keeps everything
unless one of its images looks like a new one, then that image goes, and others may come or go in its place. More is
not to be had without decoding everything: of two look-alikes in two sources, each is right to choose while the quota
of the other source is small.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .archives import Located
from .check_image import Check, describe
from .image_store import CheckedImages
from .images import ImageRoots
from .layouts import OTHER, source_of
from .near_duplicates import NearDuplicates
from .subsets import fingerprint
from .verify import check_all
from .writing import write_lines, write_text


logger = logging.getLogger(__name__)
MANIFEST = "images.parquet"
SELECTION_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "image", "source", "sha256")]
    + [("width", pa.int32()), ("height", pa.int32()), ("phash", pa.string())]
)
# The 100K images of the paper. Of COCO and LCS only the sum is known, 80,045; how it splits is about right.
PAPER_QUOTA_100K = {
    **{"coco": 50_045, "lcs": 30_000, "sam": 19_982, "textcaps": 500, "web-celebrity": 498},
    **{"web-landmark": 500, "wikiart": 500},
}
PAPER_QUOTA_1200K = {"coco": 118_287, "lcs": 558_128, "sam": 570_486}
SPARE = 16  # images of each source decoded in addition, for those that will be passed over
LIBRARIES = ("imagehash", "numpy", "pillow", "scipy")  # what a perceptual hash depends on


class QuotaError(ValueError):
    """A quota names an unknown source, or more images than can be used."""


def select(
    roots: ImageRoots,
    output: str | os.PathLike,
    quota: Mapping[str, int],
    seed: int,
    exclude: ImageRoots | None = None,
    exclude_list: str | os.PathLike | None = None,
    distance: int = 4,
    allow_short: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """
    Choose images and write down the choice, which neither the number of processes nor an interruption changes.

    An image's id is the stem of its file name, as in the release; where two images below the roots share a stem,
    chosen or not, it is the whole path instead (`vg/VG_100K/2415.jpg`).

    Args:
        roots (`ImageRoots`): Where the images are.
        output (`str` or `os.PathLike`): Folder of the choice; an existing one is continued or replaced.
        quota (`Mapping[str, int]`): Images of each source: of `LAYOUTS`, or the first folder of other images.
        seed (`int`): Seed of the choice.
        exclude (`ImageRoots`, *optional*): Images that no chosen one may look like, those of benchmarks.
        exclude_list (`str` or `os.PathLike`, *optional*): Text file of more such images below `roots`, a path a line.
        distance (`int`, defaults to 4): Bits of the perceptual hash in which images that look the same may differ.
        allow_short (`bool`, defaults to `False`): Take what there is of a source that has too few images.
        workers (`int`, *optional*): Processes, all cores by default.

    Returns:
        `dict`: The report as written to `selection.json`.

    Raises:
        `QuotaError`: A quota is not positive, its source unknown, or less can be used and `allow_short` is not set.
        `ValueError`: `exclude` is empty, `exclude_list` names no image there is, or `distance` is out of range.
    """
    output, candidates = Path(output), _by_source(roots)
    _check_quota(quota, candidates, allow_short)
    orders = {source: _shuffled(candidates[source], seed) for source in sorted(quota)}
    counts = {}
    with CheckedImages(output / "images.sqlite") as store:
        chooser = _Chooser(roots, store, distance, workers)
        exclusion = chooser.ban(exclude, exclude_list)
        # What is surely needed goes through one pool of processes, whose start takes seconds.
        chooser.check([image for source, order in orders.items() for image in order[: quota[source] + SPARE]])
        for source, order in orders.items():
            counts[source] = of = chooser.choose(source, order, quota[source])
            if of["chosen"] < of["quota"] and not allow_short:
                raise QuotaError(_shortage(source, of))
    report = {
        **{"seed": seed, "distance": distance, "sources": counts, "total": _total(counts), "exclusion": exclusion},
        "short": {source: of["quota"] - of["chosen"] for source, of in counts.items() if of["chosen"] < of["quota"]},
        "archives": _problems(roots) | (_problems(exclude) if exclude else {}),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    # The manifest goes first and comes last: where there is one, the other files belong to it.
    (output / MANIFEST).unlink(missing_ok=True)
    write_lines(output / "rejected.jsonl", chooser.rejected)
    write_text(output / "selection.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    _write_manifest(output / MANIFEST, _with_ids(chooser.chosen, candidates))
    return report


def read_selection(output: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """
    Read a choice of images.

    Args:
        output (`str` or `os.PathLike`): Folder that [`select`] wrote.

    Returns:
        `Iterator[dict]`: Rows with the columns of `SELECTION_SCHEMA`, source by source in the order of choice.

    Raises:
        `FileNotFoundError`: The folder has no finished selection.
        `ValueError`: The manifest is damaged or has other columns.
    """
    path = Path(output) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{output} holds no finished selection ({MANIFEST}). Run the selection to its end.")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: {error}. Run the selection again.") from error
    if not file.schema_arrow.equals(SELECTION_SCHEMA):
        raise ValueError(
            f"{path} must have the columns {SELECTION_SCHEMA.names}, it has {file.schema_arrow.names} or other types. "
            "Run the selection again."
        )
    return (row for batch in file.iter_batches() for row in batch.to_pylist())


class _Chooser:
    """Images chosen so far over all sources, and those passed over."""

    def __init__(self, roots: ImageRoots, store: CheckedImages, distance: int, workers: int | None):
        self.chosen: list[dict[str, Any]] = []
        self.rejected: list[dict[str, Any]] = []
        self._roots, self._store, self._workers = roots, store, workers
        self._banned, self._looks = NearDuplicates(distance), NearDuplicates(distance)
        self._met: dict[str, Located | Check] = {}  # where an image is, or the reason why it is nowhere

    def ban(self, folders: ImageRoots | None, listed: str | os.PathLike | None) -> dict[str, int]:
        """Index the excluded images, and count them."""
        found: dict[str, Located] = {}
        names: dict[str, str] = {}
        for image, where in folders.scan() if folders else ():
            key = f"excluded:{where.file}:{where.offset}"  # two roots may have files of the same path
            found[key], names[key] = where, image
        if folders and not found:
            raise ValueError(f"There are no images to exclude in {', '.join(map(str, folders.roots))}.")
        in_folders = len(found)
        on_list = _read_list(Path(listed), self._roots) if listed is not None else {}
        found.update((image, where) for image, where in on_list.items() if where is not None)
        check_all(found, self._store, self._workers)
        unreadable = 0
        for key, where in found.items():
            check = self._store[key, where]
            unreadable += bool(check.problem)
            if not check.problem:
                self._banned.add(check.phash, names.get(key, key))
        missing = in_folders + len(on_list) - len(found)
        if missing or unreadable:
            logger.warning(
                "Of the excluded images %d were not found and %d cannot be read; look-alikes of these go unnoticed.",
                missing,
                unreadable,
            )
        return {"in_folders": in_folders, "listed": len(on_list), "not_found": missing, "unreadable": unreadable}

    def check(self, images: list[str]) -> None:
        """Decode those images that this run has not met."""
        fresh = {image: self._locate(image) for image in images if image not in self._met}
        self._met.update(fresh)
        found = {image: where for image, where in fresh.items() if isinstance(where, Located)}
        check_all(found, self._store, self._workers)

    def choose(self, source: str, order: list[str], count: int) -> dict[str, Any]:
        """Choose images of one source, and count them."""
        chosen = examined = 0
        reasons: Counter[str] = Counter()
        while chosen < count and examined < len(order):
            # Where most images are passed over, a growing number goes ahead, else the last would come one by one.
            ahead = order[examined : examined + count - chosen + max(SPARE, examined // 8)]
            self.check(ahead)
            for image in ahead:
                if chosen == count:
                    break
                examined += 1
                reason = self._take(source, image)
                chosen += not reason
                reasons.update([reason] if reason else [])
        rejected = {reason: reasons[reason] for reason in ("unreadable", "excluded", "duplicate")}
        return {"candidates": len(order), "quota": count, "chosen": chosen, "rejected": rejected}

    def _locate(self, image: str) -> Located | Check:
        try:
            where = self._roots.locate(image)
        except ValueError as error:
            return Check(problem=describe(error))
        return where or Check(problem="no image root has it any more")

    def _take(self, source: str, image: str) -> str:
        where, twin = self._met.pop(image), None
        check = self._store[image, where] if isinstance(where, Located) else where
        if check.problem:
            reason = "unreadable"
        elif (twin := self._banned.find(check.phash)) is not None:
            reason = "excluded"
        elif (twin := self._looks.find(check.phash)) is not None:
            reason = "duplicate"
        else:
            self._looks.add(check.phash, image)
            facts = {"sha256": check.sha256, "width": check.width, "height": check.height, "phash": check.phash}
            self.chosen.append({"image": image, "source": source, **facts})
            return ""
        self.rejected.append(
            {"image": image, "source": source, "reason": reason, "twin": twin, "problem": check.problem or None}
        )
        return reason


def _by_source(roots: ImageRoots) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for image in dict.fromkeys(image for image, _ in roots.scan()):
        source = source_of(image)
        if source == OTHER and "/" in image:
            source = image.split("/")[0]
        found[source].append(image)
    return found


def _shuffled(images: list[str], seed: int) -> list[str]:
    # Paths decide between equal fingerprints, because the order of `scan` depends on how the images are packed.
    return sorted(images, key=lambda image: (fingerprint("select", seed, image), image))


def _problems(roots: ImageRoots) -> dict[str, list[str]]:
    return {str(archive.path): archive.problems for archive in roots.archives if archive.problems}


def _check_quota(quota: Mapping[str, int], candidates: Mapping[str, list[str]], allow_short: bool) -> None:
    there = ", ".join(f"{source} ({len(images)} images)" for source, images in sorted(candidates.items()))
    there = f"Below the image roots there are: {there or 'no images'}."
    if not quota:
        raise QuotaError(f"The quota is empty; give a number of images for a source. {there}")
    if wrong := {source: count for source, count in quota.items() if count < 1}:
        raise QuotaError(f"A quota must be at least 1, got {wrong}. Leave out a source that is not wanted.")
    if unknown := sorted(set(quota) - set(candidates)):
        raise QuotaError(f"No images of {', '.join(unknown)} were found. {there}")
    if not allow_short and (short := [source for source in sorted(quota) if quota[source] > len(candidates[source])]):
        wanted = ", ".join(f"{quota[source]} of {source}" for source in short)
        raise QuotaError(f"The quota asks for {wanted}. {there} Lower it, or allow a short selection (`allow_short`).")


def _shortage(source: str, counts: dict[str, Any]) -> str:
    reasons = ", ".join(f"{number} {reason}" for reason, number in counts["rejected"].items() if number)
    return (
        f"The quota of {source} is {counts['quota']}, but only {counts['chosen']} of its {counts['candidates']} "
        f"images can be used ({reasons}). Lower the quota, or allow a short selection (`allow_short`)."
    )


def _total(counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    total = {name: sum(of[name] for of in counts.values()) for name in ("candidates", "quota", "chosen")}
    rejected: Counter[str] = Counter()
    for of in counts.values():
        rejected.update(of["rejected"])
    return {**total, "rejected": dict(rejected)}


def _with_ids(chosen: list[dict[str, Any]], candidates: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    # Counted over all candidates, not the chosen ones: another quota or seed must not rename an image. A file directly
    # in a root counts with its whole name too, which may be the stem of another: `a.jpg` of `x/a.jpg.png`.
    stems = {_stem(row["image"]) for row in chosen}
    names: Counter[str] = Counter()
    for image in (image for images in candidates.values() for image in images):
        names.update({_stem(image)} & stems)
        names.update({image} & stems)
    return [{"id": stem if names[stem := _stem(row["image"])] == 1 else row["image"], **row} for row in chosen]


def _stem(image: str) -> str:
    name = image.rsplit("/", 1)[-1]
    return name.rpartition(".")[0] or name


def _read_list(path: Path, roots: ImageRoots) -> dict[str, Located | None]:
    found: dict[str, Located | None] = {}
    # Bytes that are no UTF-8 survive as characters that no image path may have, so their line is named below.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if image := line.rstrip("\n"):
                try:
                    found[image] = roots.locate(image)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    if found and not any(found.values()):
        raise ValueError(
            f"None of the {len(found)} images in {path} is below the image roots, first: {next(iter(found))}. Its "
            "lines must be paths as records have them, such as `coco/train2017/000000000009.jpg`."
        )
    return found


def _write_manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            pq.write_table(pa.Table.from_pylist(rows, SELECTION_SCHEMA), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
