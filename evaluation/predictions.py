"""
Predictions on disk: one row an answer, appended when it is there, merged in the order of the benchmark.

```
out/<benchmark>/parts/0.jsonl       answers of process 0, appended one by one
out/<benchmark>/predictions.jsonl   all of them, with what they were taken for and what they score
```

A run that was killed loses what it was generating; how many processes it continues with does not change the merged
file, which has no times, no ranks and no order but that of the benchmark.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


PARTS, MERGED = "parts", "predictions.jsonl"


class Answers:
    """
    The answers of one process, appended to its own file.

    Args:
        folder (`Path`): Folder of the benchmark's predictions.
        rank (`int`): Number of the process.
    """

    def __init__(self, folder: Path, rank: int):
        self._path = folder / PARTS / f"{rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "Answers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """
        Store an answer, for good.

        Args:
            row (`dict`): With `index`, the place of the question in the benchmark.
        """
        self._file.write(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def answered(folder: Path, provenance: str) -> dict[int, dict[str, Any]]:
    """
    Answers of all processes so far.

    Args:
        folder (`Path`): Folder of the benchmark's predictions.
        provenance (`str`): Of the run; answers of another model, other settings or other rows do not count.

    Returns:
        `dict[int, dict]`: By the place of the question; where two processes answered one, the first file's.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / PARTS).glob("*.jsonl"), key=lambda path: int(path.stem)):
        for row in _rows(path):
            if row["provenance"] == provenance:
                found.setdefault(row["index"], row)
    return found


def merge(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """
    Write the predictions of a benchmark.

    Args:
        folder (`Path`): Folder of the benchmark's predictions.
        rows (`list[dict]`): In the order of the benchmark.

    Returns:
        `Path`: The file, whole or as it was.
    """
    path = folder / MERGED
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return path


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """
    Read the merged predictions of a benchmark.

    Args:
        folder (`Path`): Folder of the benchmark's predictions.

    Returns:
        `list[dict]`: In the order of the benchmark.

    Raises:
        `FileNotFoundError`: The benchmark was not run to its end.
    """
    path = folder / MERGED
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MERGED}. Run the evaluation to its end first.")
    return list(_rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):  # its process was killed while it wrote
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, is damaged: {error}. Delete it, and it is asked again."
                ) from error


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
