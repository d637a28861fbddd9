"""Put the images into path rows: checked, hashed, optionally reduced to the model's size, in worker processes."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from modeling_sharegpt4v.images_sharegpt4v import open_image

from .archives import Located, read_located
from .check_image import describe
from .coverage import Coverage, CoverageError, Lost
from .images import ImageRoots
from .pool import map_ordered
from .released import SeenTexts
from .resize import shrink_to_jpeg
from .rows import Row, images_of
from .shards import Item


OnMissing = Literal["error", "skip"]


@dataclass(frozen=True)
class Resize:
    """Re-encode images once to the model's input size; see [`shrink_to_jpeg`]."""

    side: int
    mode: Literal["pad", "crop"] = "pad"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"`side` must be at least 1, got {self.side}.")
        if self.mode not in ("pad", "crop"):
            raise ValueError(f"`mode` must be 'pad' or 'crop', got {self.mode!r}.")


@dataclass(frozen=True, slots=True)
class _Task:
    position: int
    row: Row
    located: list[Located]
    resize: Resize | None


def join_images(
    rows: Iterable[tuple[int, Row]],
    roots: ImageRoots,
    resize: Resize | None = None,
    on_missing: OnMissing = "error",
    workers: int | None = None,
) -> Iterator[Item]:
    """
    Load the images of path rows.

    Args:
        rows (`Iterable[tuple[int, dict]]`): Position and path row.
        roots (`ImageRoots`): Where the images are.
        resize (`Resize`, *optional*): Without it the bytes stay as they are.
        on_missing (`str`, defaults to `"error"`): What a missing, unsafe or corrupt image does: `error` stops, `skip`
            gives a [`Lost`] in place of the row.
        workers (`int`, *optional*): Processes, all cores by default.

    Yields:
        `tuple[int, dict or Lost]`: In the order of the rows; images as `{"bytes", "path"}`, and a caption row with the
            SHA-256 of the original file.

    Raises:
        `CoverageError`: With `error`, an image cannot be used; the message names row, image and reason.
    """
    tasks = (_locate(position, row, roots, resize) for position, row in rows)
    for position, result in map_ordered(_load, tasks, _crashed, workers, chunk=8):
        if isinstance(result, Lost) and on_missing == "error":
            raise CoverageError(
                f"Row {position}: image {result.image} is {result.state}: {result.reason}. Mend it, or skip such rows."
            )
        yield position, result


def survey(
    rows: Callable[[], Iterable[Row]], roots: ImageRoots, progress: Callable[[Iterable[Row]], Iterable[Row]]
) -> tuple[Coverage, str]:
    """
    Look every image up once, without reading it.

    Args:
        rows (`Callable`): Gives the path rows.
        roots (`ImageRoots`): Where the images are.
        progress (`Callable`): Wraps the rows, for a progress bar.

    Returns:
        `tuple[Coverage, str]`: The coverage, and a digest of where every image is, its size and its time of change.
    """
    coverage, digest, seen = Coverage(), hashlib.sha256(), SeenTexts()
    for position, row in enumerate(progress(rows())):
        for image in images_of(row):
            if not seen.add(image):
                located = coverage.find(position, image, roots)
                digest.update(repr((image, located)).encode())
    return coverage, digest.hexdigest()


def _locate(position: int, row: Row, roots: ImageRoots, resize: Resize | None) -> _Task | Item:
    located = []
    for image in images_of(row):
        try:
            found = roots.locate(image)
        except ValueError as error:
            return position, Lost("unsafe", position, image, str(error))
        if found is None:
            return position, Lost("missing", position, image, "no image root has it")
        located.append(found)
    return _Task(position, row, located, resize)


def _load(task: _Task | Item) -> Item:
    if not isinstance(task, _Task):
        return task
    images, digest = [], None
    for image, located in zip(images_of(task.row), task.located, strict=True):
        try:
            data = read_located(located)
            digest = hashlib.sha256(data).hexdigest()
            if task.resize is None:
                open_image(data)
            else:
                data = shrink_to_jpeg(data, task.resize.side, task.resize.mode)
        except (OSError, ValueError, MemoryError) as error:
            return task.position, Lost("corrupt", task.position, image, describe(error))
        images.append({"bytes": data, "path": image})
    joined: dict[str, Any] = {"images": images} if "images" in task.row else {"image": images[0], "sha256": digest}
    return task.position, {**task.row, **joined}


def _crashed(task: _Task | Item) -> Item:
    if not isinstance(task, _Task):
        return task
    reason = "decoding it ended the worker process (crash or out of memory)"
    return task.position, Lost("corrupt", task.position, images_of(task.row)[0], reason)
