"""
A miniature of every benchmark: a few questions about the photographs of the demo, in each benchmark's own format.

`examples/benchmarks/<name>.jsonl` was written for this project; nothing in it is taken from a benchmark. A row has the
fields of that benchmark's copy on the Hub, and its `image` is the `id` of a photograph in `examples/photos.jsonl`, or
null for a question about none. Figures on so few rows say that the machinery runs, and nothing about a model.
"""

import io
import json
from pathlib import Path
from typing import Any

from evaluation.catalogue import NAMES
from evaluation.rows import ROWS
from modeling_sharegpt4v import open_image

from .photos import Photo, read_photos


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LONGEST_SIDE = 640  # pixels; the names on uniforms can still be read
QUALITY = 90  # of the JPEG files
CREDITS = "PHOTOGRAPHS.md"


def write_miniatures(folder: Path) -> Path:
    """
    Write all miniatures as [`evaluation.rows.load_rows`] reads them: `<name>/rows.jsonl` and pictures beside it.

    Args:
        folder (`Path`): Where they go; the same files come out each time.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: A row is of a photograph that there is not; the message names it.
    """
    photos = {photo.id: photo for photo in read_photos(EXAMPLES / "photos.jsonl")}
    pictures: dict[str, bytes] = {}
    for name in NAMES:
        rows = read_miniature(name)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows, start=1):
            photo = row["image"]
            if photo is None:
                continue
            if photo not in photos:
                raise ValueError(f"{name}.jsonl, row {number}: there is no photograph {photo!r} in photos.jsonl.")
            if photo not in pictures:
                pictures[photo] = _picture(photos[photo])
            row["image"] = f"{photo}.jpg"
            (target / row["image"]).write_bytes(pictures[photo])
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (target / ROWS).write_text("".join(lines), encoding="utf-8")
    used = [photos[name] for name in sorted(pictures)]
    (folder / CREDITS).write_text("".join(map(_credit, used)), encoding="utf-8")
    return folder


def read_miniature(name: str) -> list[dict[str, Any]]:
    """
    Rows of a miniature.

    Args:
        name (`str`): Name of the benchmark.

    Returns:
        `list[dict]`: With the id of a photograph, or `None`, as `image`.
    """
    text = (EXAMPLES / "benchmarks" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _picture(photo: Photo) -> bytes:
    image = open_image(photo.path)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _credit(photo: Photo) -> str:
    return (
        f"- {photo.id}: {photo.attribution}. {photo.license}. Source: {photo.source}. Made smaller and saved again.\n"
    )
