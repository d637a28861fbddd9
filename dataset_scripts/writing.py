"""Files written whole or not at all, and the errors of what cannot be; light, for processes that start often."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


class WriteError(OSError):
    """The disk refused; what is finished is kept, and the same command continues."""


class BusyError(RuntimeError):
    """Another process works on the same output."""


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """
    Write a JSON Lines file, whole or not at all.

    Args:
        path (`Path`): The file.
        entries (`list[dict]`): One a line.
    """
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def write_text(path: Path, text: str) -> None:
    """
    Write a file, whole or not at all.

    Args:
        path (`Path`): The file.
        text (`str`): Its content, encoded as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is no valid text, half a surrogate pair in a path, stands in JSON as it does in its source: `\\ud800`.
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, encoding="utf-8", errors="backslashreplace"
    ) as stream:
        try:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(stream.name, 0o644)
            os.replace(stream.name, path)
        except BaseException:
            os.unlink(stream.name)
            raise
