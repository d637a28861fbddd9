"""How many of a dataset's images this machine has, by source, and which archives hold the missing ones."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from .archives import Located
from .images import ImageRoots
from .layouts import archive_of, source_of


STATES = ("found", "corrupt", "missing", "unsafe")


class CoverageError(ValueError):
    """Fewer images are usable than asked for."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An image that cannot be used: its state, the first row that names it, and why."""

    state: str
    row: int
    image: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """
        The entry as a line of the report.

        Returns:
            `dict`: Ready for JSON, with the archive that holds a missing image.
        """
        entry = {"state": self.state, "row": self.row, "image": self.image, "reason": self.reason}
        return {**entry, "archive": archive_of(self.image)} if self.state == "missing" else entry


@dataclass
class Coverage:
    """Counts of images by source; every image counts once, however many rows show it."""

    by_source: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    archives: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lost: list[Lost] = field(default_factory=list)

    def find(self, row: int, image: str, roots: ImageRoots) -> Located | None:
        """
        Look an image up and count it.

        Args:
            row (`int`): First row that names it.
            image (`str`): Its path.
            roots (`ImageRoots`): Where to look.

        Returns:
            `Located` or `None`: `None` when it is missing or its path is unsafe.
        """
        counts = self.by_source[source_of(image)]
        counts["expected"] += 1
        try:
            located = roots.locate(image)
        except ValueError as error:
            self._lose("unsafe", row, image, str(error))
            return None
        if located is None:
            self.archives[source_of(image)][archive_of(image)] += 1
            self._lose("missing", row, image, "no image root has it")
            return None
        counts["found"] += 1
        return located

    def corrupt(self, row: int, image: str, reason: str) -> None:
        """
        Count a found image as corrupt.

        Args:
            row (`int`): First row that names it.
            image (`str`): Its path.
            reason (`str`): Why it cannot be used.
        """
        self.by_source[source_of(image)]["found"] -= 1
        self._lose("corrupt", row, image, reason)

    @property
    def total(self) -> Counter[str]:
        """Counts over all sources."""
        return sum(self.by_source.values(), Counter())

    @property
    def share(self) -> float:
        """Usable images over expected ones, 1 when none is expected."""
        total = self.total
        return total["found"] / total["expected"] if total["expected"] else 1.0

    def require(self, least: float) -> None:
        """
        Refuse to go on with too few images.

        Args:
            least (`float`): Share from 0 to 1.

        Raises:
            `CoverageError`: The share is lower; the message has the table and the first lost images.
        """
        if self.share < least:
            first = "; ".join(f"row {lost.row}: {lost.image} ({lost.state}: {lost.reason})" for lost in self.lost[:3])
            raise CoverageError(
                f"{self.total['found']} of {self.total['expected']} images are usable ({self.share:.2%}, below "
                f"{least:.2%}). First lost: {first}.\n{self.table()}"
            )

    def as_dict(self) -> dict[str, Any]:
        """
        Counts by source and in all.

        Returns:
            `dict`: Ready for JSON.
        """
        sources = {
            source: {
                **{name: counts[name] for name in ("expected", *STATES)},
                "missing_from": dict(self.archives[source].most_common()) if source in self.archives else {},
            }
            for source, counts in sorted(self.by_source.items())
        }
        total = {name: self.total[name] for name in ("expected", *STATES)}
        return {"share": round(self.share, 6), "total": total, "sources": sources}

    def table(self) -> str:
        """
        The counts as lines of text.

        Returns:
            `str`: One line a source, then the archives that hold what is missing.
        """
        lines = [f"{'source':<14}{'expected':>10}" + "".join(f"{state:>10}" for state in STATES)]
        for source, counts in [*sorted(self.by_source.items()), ("all", self.total)]:
            lines.append(f"{source:<14}{counts['expected']:>10}" + "".join(f"{counts[state]:>10}" for state in STATES))
        for source, archives in sorted(self.archives.items()):
            shown = ", ".join(f"{name}: {count}" for name, count in archives.most_common(5))
            more = f", {len(archives) - 5} more" if len(archives) > 5 else ""
            lines.append(f"missing of {source}: {shown}{more}")
        return "\n".join(lines)

    def _lose(self, state: str, row: int, image: str, reason: str) -> None:
        self.by_source[source_of(image)][state] += 1
        self.lost.append(Lost(state, row, image, reason))
