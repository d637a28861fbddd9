"""What is known about checked images, in SQLite beside the report: a check of a million images resumes where it ended."""

import sqlite3
from pathlib import Path
from types import TracebackType

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

    Used as a mapping from `(image, located)` to [`Check`]; at most `COMMIT_EVERY` outcomes are lost when the process is
    killed.

    Args:
        path (`Path`): SQLite file; made when absent.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(TABLE)
        self._waiting = 0

    def __enter__(self) -> "CheckedImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.commit()
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
        row = self._connection.execute(
            "SELECT file, size, mtime_ns, offset, problem, sha256, width, height, phash FROM images WHERE image = ?",
            (image,),
        ).fetchone()
        if row is None or row[:4] != (located.file, located.size, located.mtime_ns, located.offset):
            return None
        return Check(*row[4:])

    def __contains__(self, item: tuple[str, Located]) -> bool:
        return self.get(*item) is not None

    def __getitem__(self, item: tuple[str, Located]) -> Check:
        check = self.get(*item)
        if check is None:
            raise KeyError(f"{item[0]} was not checked.")
        return check

    def __setitem__(self, item: tuple[str, Located], check: Check) -> None:
        image, located = item
        values = (image, located.file, located.size, located.mtime_ns, located.offset)
        self._connection.execute(
            "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, check.problem, check.sha256, check.width, check.height, check.phash),
        )
        self._waiting += 1
        if self._waiting >= COMMIT_EVERY:
            self._connection.commit()
            self._waiting = 0
