"""Outcomes of image checks in SQLite, beside the report: a check of a million images resumes where it ended."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from .archives import Located
from .check_image import Check


COMMIT_EVERY = 256
TABLE = """CREATE TABLE IF NOT EXISTS images (
    image TEXT PRIMARY KEY, file TEXT, size INTEGER, mtime_ns INTEGER, offset INTEGER,
    problem TEXT, sha256 TEXT, width INTEGER, height INTEGER, phash TEXT
) WITHOUT ROWID"""


class CheckedImages:
    """
    Outcomes by image path and place; one counts as long as its file has the same size and time of change.

    Used as a mapping from `(image, located)` to [`Check`]; at most `COMMIT_EVERY` outcomes are lost when the process
    is killed.

    Args:
        path (`Path`): SQLite file; made when absent.

    Raises:
        `ValueError`: Now or later: the file is damaged.
        `OSError`: Now or later: the file cannot be written, or another process uses it.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._waiting = 0
        with _explained(path):
            self._connection = sqlite3.connect(path, timeout=1)
        try:
            # One process at a time, and no shared memory, which network file systems lack.
            self._execute("PRAGMA locking_mode=EXCLUSIVE")
            self._execute("PRAGMA journal_mode=WAL")
            self._execute(TABLE)
        except (OSError, ValueError):
            self._connection.close()
            raise

    def __enter__(self) -> "CheckedImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._commit()
        finally:
            self._connection.close()

    def get(self, image: str, located: Located) -> Check | None:
        """
        Earlier outcome of an image.

        Args:
            image (`str`): Path as a record has it.
            located (`Located`): Where it is now.

        Returns:
            `Check` or `None`: `None` when it was never checked or has changed since.
        """
        rows = self._execute(
            "SELECT file, size, mtime_ns, offset, problem, sha256, width, height, phash FROM images WHERE image = ?",
            (image,),
        )
        place = (located.file, located.size, located.mtime_ns, located.offset)
        return next((Check(*row[4:]) for row in rows if row[:4] == place), None)

    def __getitem__(self, item: tuple[str, Located]) -> Check:
        check = self.get(*item)
        if check is None:
            raise KeyError(f"{item[0]} was not checked.")
        return check

    def __setitem__(self, item: tuple[str, Located], check: Check) -> None:
        image, located = item
        values = (image, located.file, located.size, located.mtime_ns, located.offset)
        self._execute(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, check.problem, check.sha256, check.width, check.height, check.phash),
        )
        self._waiting += 1
        if self._waiting >= COMMIT_EVERY:
            self._commit()
            self._waiting = 0

    def _commit(self) -> None:
        if self._connection.in_transaction:
            self._execute("COMMIT")

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with _explained(self._path):
            return self._connection.execute(statement, values).fetchall()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"{path} cannot be used: {error}. Another process may be using it, or the disk be full; otherwise delete "
            "it, and the images are checked anew."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged: {error}. Delete it; the images are checked anew.") from error
