"""
Rows of a benchmark: from a folder of one's own, or from the Hub.

A folder `DIR/<benchmark>` holds `rows.jsonl`, whose `image` is a path inside the folder, or Parquet files as the Hub
copies have them. Images are opened one by one, when they are asked about.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from .base import Benchmark
from .files import read_json_lines


ROWS = "rows.jsonl"
IDS = ("question_id", "index", "id")
LABELS = ("answers", "answer", "correct_choice", "gpt_answer")  # what the test splits of some servers lack
Row = dict[str, Any]


class Rows:
    """
    Questions of a benchmark, without their images, and the images beside them.

    Args:
        rows (`list[dict]`): In the order of the benchmark.
        images (`Sequence`): What each row's image is read from: a path, a `PIL.Image.Image`, or `None` for none.
    """

    def __init__(self, rows: list[Row], images: Any):
        self.rows, self._images = rows, images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def has_image(self, index: int) -> bool:
        """
        Whether a question has an image.

        Args:
            index (`int`): Its place.

        Returns:
            `bool`: `False` for the text-only questions of ScienceQA.
        """
        return self.rows[index]["has_image"]

    def image(self, index: int) -> Image.Image | None:
        """
        Open the image of a question.

        Args:
            index (`int`): Its place.

        Returns:
            `PIL.Image.Image`, *optional*: `None` where there is none.

        Raises:
            `ValueError`: It cannot be read; the message names row and file.
        """
        source = self._images[index]
        source = source[0] if isinstance(source, list) and source else source  # SEED-Bench has lists
        if source is None or source == []:
            return None
        if isinstance(source, Image.Image):
            return source
        try:
            with Image.open(source) as image:
                image.load()
                return image
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"Row {index}: the image {source} cannot be read: {error}.") from error

    @property
    def labelled(self) -> bool:
        """Whether any question comes with its answer (`bool`); else only a server can score."""
        return any(row.get(name) not in (None, "", []) for row in self.rows for name in LABELS)

    def digest(self) -> str:
        """
        What tells these questions from others.

        Returns:
            `str`: Twelve hexadecimal digits of all rows but their images.
        """
        text = json.dumps(self.rows, sort_keys=True, ensure_ascii=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def id_of(row: Row, index: int) -> str:
    """
    What a question is called.

    Args:
        row (`dict`): The row.
        index (`int`): Its place.

    Returns:
        `str`: By its own id; in MME and SEED-Bench two rows may share one.
    """
    return next((str(row[name]) for name in IDS if name in row), str(index))


def load_rows(benchmark: Benchmark, data: Path | None) -> Rows:
    """
    Read the questions of a benchmark.

    Args:
        benchmark (`Benchmark`): Which one.
        data (`Path`, *optional*): Folder with a folder of each benchmark; the Hub's copy without it.

    Returns:
        `Rows`: All of them.

    Raises:
        `FileNotFoundError`: The folder has no such benchmark.
        `ValueError`: A row lacks a field; the message names it.
    """
    if data is None:
        return _from_dataset(benchmark, _from_hub(benchmark))
    folder = data / benchmark.name
    if (folder / ROWS).is_file():
        rows = list(read_json_lines(folder / ROWS))
        images = [_inside(folder, row.pop("image", None), number) for number, row in enumerate(rows, start=1)]
        return _checked(benchmark, rows, images, str(folder / ROWS))
    files = sorted(map(str, folder.glob("*.parquet")))
    if not files:
        raise FileNotFoundError(f"{folder} has neither {ROWS} nor Parquet files: put {benchmark.title} there.")
    from datasets import load_dataset

    return _from_dataset(benchmark, load_dataset("parquet", data_files=files, split="train"))


def _from_hub(benchmark: Benchmark) -> Any:
    from datasets import concatenate_datasets, load_dataset

    rows = load_dataset(benchmark.dataset, benchmark.config, split=benchmark.split)
    if not benchmark.images_config:
        return rows
    images = load_dataset(benchmark.dataset, benchmark.images_config, split=benchmark.split)
    places = {name: place for place, name in enumerate(images["id"])}
    chosen = images.select([places[name] for name in rows["imageId"]])
    return concatenate_datasets([rows, chosen.select_columns("image")], axis=1)


def _from_dataset(benchmark: Benchmark, dataset: Any) -> Rows:
    if "image" not in dataset.column_names:
        raise ValueError(f"{benchmark.dataset} has no column `image`; it has {', '.join(dataset.column_names)}.")
    texts = dataset.remove_columns("image").to_list()
    column = dataset.select_columns("image")
    absent = column.with_format("arrow")[:]["image"].is_null().to_pylist()  # without decoding any
    return _checked(benchmark, texts, _Column(column, absent), benchmark.dataset)


class _Column:
    """Images of a dataset, decoded one by one."""

    def __init__(self, dataset: Any, absent: list[bool]):
        self._dataset, self.absent = dataset, absent

    def __getitem__(self, index: int) -> Any:
        return None if self.absent[index] else self._dataset[index]["image"]


def _inside(folder: Path, image: str | None, number: int) -> Path | None:
    if image is None:
        return None
    path = (folder / image).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder / ROWS}, row {number}: {image!r} leads out of the folder.")
    return path


def _checked(benchmark: Benchmark, rows: list[Row], images: Any, where: str) -> Rows:
    free = ("image", *LABELS)
    needed = [name for name, meaning in benchmark.fields.items() if name not in free and "optional" not in meaning]
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in needed if name not in row]:
            raise ValueError(f"{where}, row {number}, lacks {', '.join(missing)}; {benchmark.title} has {needed}.")
    if not rows:
        raise ValueError(f"{where} has no rows.")
    absent = images.absent if isinstance(images, _Column) else [image is None for image in images]
    for row, none in zip(rows, absent, strict=True):
        row["has_image"] = not none
    return Rows(rows, images)
