"""Files that official scorers read: JSON, JSON lines and text, plain or gzip, alone or in a folder."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def find_file(path: Path, *names: str) -> Path:
    """
    The file that is meant by a path.

    Args:
        path (`Path`): A file, or a folder that holds it.
        names (`str`): Names that it may have in a folder, without `.gz`; the first that is there is taken.

    Returns:
        `Path`: The file.

    Raises:
        `FileNotFoundError`: There is none; the message lists the names.
    """
    if path.is_file():
        return path
    for name in names:
        for candidate in (path / name, path / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    if path.is_dir():
        raise FileNotFoundError(f"{path} holds none of {', '.join(names)} (or the same with .gz).")
    raise FileNotFoundError(f"There is no file {path}.")


def read_text(path: Path) -> str:
    """
    Read a text, unpacked if its name ends in `.gz`.

    Args:
        path (`Path`): The file.

    Returns:
        `str`: Its content; a byte-order mark is taken off.

    Raises:
        `ValueError`: It is no UTF-8, or no gzip file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Copy it again.") from error


def read_json(path: Path) -> Any:
    """
    Read a JSON file.

    Args:
        path (`Path`): The file, plain or `.gz`.

    Returns:
        Its value.

    Raises:
        `ValueError`: It is damaged; the message names the place.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, is no JSON: {error.msg}.") from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """
    Read a file of one JSON object a line.

    Args:
        path (`Path`): The file, plain or `.gz`.

    Yields:
        `dict`: Of each line that is not blank.

    Raises:
        `ValueError`: A line is none; the message names it.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not `splitlines`, which knows U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is no JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, must be a JSON object, got {type(row).__name__}.")
        yield row


def field_of(row: dict[str, Any], name: str, path: Path, number: int) -> Any:
    """
    A field that a row must have.

    Args:
        row (`dict`): The row.
        name (`str`): The field.
        path (`Path`): File of the row, for the message.
        number (`int`): Number of the row from 1, for the message.

    Returns:
        Its value.

    Raises:
        `ValueError`: The row is no object, or has no such field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{path}, row {number}, must be a JSON object, got {type(row).__name__}.")
    if name not in row:
        raise ValueError(f"{path}, row {number}, has no field {name!r}; it has {', '.join(sorted(row)) or 'none'}.")
    return row[name]
