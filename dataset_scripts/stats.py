"""The columns of the paper's Table 2 for any set of rows: who captioned which images, how many, how long."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .rows import Row, images_of


@dataclass
class _Group:
    rows: int = 0
    images: int = 0
    answers: int = 0
    characters: int = 0
    longest: int = 0


def measure(rows: Iterable[Row]) -> dict[str, Any]:
    """
    Count rows and average the characters of their captions (of every answer, for conversations).

    Args:
        rows (`Iterable[dict]`): Path rows of either kind.

    Returns:
        `dict`: `total`, and a list `groups` by source and captioner, each with `samples`, `images`, `answers` and
            `average`, `longest` in characters; ready for JSON.
    """
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    total = _Group()
    for row in rows:
        answers = [row["caption"]] if "caption" in row else _answers(row)
        for group in (groups[row["source"] or "", row.get("captioner") or ""], total):
            group.rows += 1
            group.images += len(images_of(row))
            group.answers += len(answers)
            group.characters += sum(map(len, answers))
            group.longest = max([group.longest, *map(len, answers)])
    return {
        "total": _entry(total),
        "groups": [{"source": key[0], "captioner": key[1], **_entry(group)} for key, group in sorted(groups.items())],
    }


def table(name: str, measured: dict[str, Any]) -> str:
    """
    Lay the figures out as Table 2 does.

    Args:
        name (`str`): Name of the dataset.
        measured (`dict`): Result of [`measure`].

    Returns:
        `str`: One line a source and captioner, and one for all.
    """
    lines = [f"{'name':<22}{'image source':<16}{'captioned by':<18}{'samples':>10}{'average':>9}"]
    for group in [*measured["groups"], {"source": "all", "captioner": "", **measured["total"]}]:
        label = f"{name:<22}{group['source']:<16}{group['captioner']:<18}"
        lines.append(f"{label}{group['samples']:>10,}{group['average']:>9.0f}")
    return "\n".join(lines)


def _answers(row: Row) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def _entry(group: _Group) -> dict[str, Any]:
    average = group.characters / group.answers if group.answers else 0.0
    return {
        **{"samples": group.rows, "images": group.images, "answers": group.answers},
        **{"average": round(average, 2), "longest": group.longest},
    }
