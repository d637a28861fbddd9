"""
The report on the captions of a job as a page of Markdown.

Captions, errors and names are written by models, endpoints and whoever named the files. On the page they are text and
nothing else: no markup, no link, no table of their own, no character that turns the rest of a line around.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any


LONGEST = 400  # characters of a text that is shown
MARKUP = "\\*_[]#~$!{}"
# Further what GitHub makes a link of without any markup (GitHub Flavored Markdown 0.29, section 6.9).
ACTIVE = re.compile(rf"[{re.escape(MARKUP)}&<>|`@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
HIDDEN = ("Cc", "Cf", "Co", "Cs", "Cn")  # categories of characters that are not seen, direction marks among them


def render_report(report: dict[str, Any]) -> str:
    """
    Lay a report out.

    Args:
        report (`dict`): What `report_job` has counted.

    Returns:
        `str`: Markdown.
    """
    repeated = [(one["images"], one["caption"]) for one in report["repeated"]]
    samples = [(one["id"], one["caption"]) for one in report["captions"]["samples"]]
    sections = [
        _head(report),
        _states(report),
        _findings(report),
        _histogram("Characters of a caption", "from", report["captions"]["lengths"]),
        _histogram("Tokens of a caption", "from", report["tokens"]),
        _texts("One caption on many images", "images", repeated),
        _texts("Captions drawn at random", "id", samples),
        _mixed(report["mixed"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def inert(text: object) -> str:
    """
    A text of others as a cell of a table in Markdown.

    Args:
        text (`object`): Anything; shown as a string.

    Returns:
        `str`: One line without markup; characters that cannot be seen are named.
    """
    whole = str(text)
    # A sequence of emoji is held together by U+200D, which turns nothing around.
    seen = " ".join(whole[:LONGEST].split()) + (" ..." if len(whole) > LONGEST else "")
    named = "".join(
        f"(U+{ord(one):04X})" if unicodedata.category(one) in HIDDEN and one != "\u200d" else one for one in seen
    )
    return ACTIVE.sub(_disarmed, named)


def _disarmed(found: re.Match[str]) -> str:
    return f"\\{found[0]}" if found[0] in MARKUP else f"&#{ord(found[0])};"


def _head(report: dict[str, Any]) -> list[str]:
    job, totals, quality = report["job"], report["totals"], report["quality"]
    share, taken = "-", "-"
    if quality["share"] is not None:
        share = f"{quality['share']:.2%} of {quality['answers']:,} answers"
        taken = f"{totals['seconds']['median']}, {totals['seconds']['ninety']}"
    rows = [
        ("model", job["model"]),
        *((f"setting {name}", value) for name, value in job["sampling"].items() if value is not None),
        ("images planned", f"{report['planned']:,}"),
        ("second names of the same picture", f"{report['other_names']:,}"),
        ("images that could not be read", f"{report['unreadable']:,}"),
        ("images without an answer", f"{report['remaining']:,}"),
        ("answers that are no usable caption", share),
        ("tokens sent, answered", f"{totals['prompt_tokens']:,}, {totals['completion_tokens']:,}"),
        ("cost", f"{totals['cost']:.4f}"),
        ("requests", f"{totals['attempts']:,}"),
        ("seconds an answer, median and 90 %", taken),
    ]
    return ["# Captions", "", *_table(("", ""), rows)]


def _states(report: dict[str, Any]) -> list[str]:
    states = list(report["states"])
    rows = [[name, *_counts(of, states)] for name, of in report["sources"].items()]
    rows.append(["all", *_counts({"images": report["images"], **report["states"]}, states)])
    lines = ["## Answers by source", "", *_table(["source", "images", *states, "no answer"], rows)]
    if report["reasons"]:
        reasons = [(one["state"], one["reason"], one["count"]) for one in report["reasons"]]
        lines += ["", "## Why there is no usable caption", "", *_table(("state", "reason", "images"), reasons)]
    return lines


def _counts(of: dict[str, int], states: list[str]) -> list[int]:
    counts = [of.get(state, 0) for state in states]
    return [of["images"], *counts, of["images"] - sum(counts)]


def _findings(report: dict[str, Any]) -> list[str]:
    captions, similar = report["captions"], report["similar"]
    sources = list(captions["by_source"])
    rows = [
        [title, captions[name], *(captions["by_source"][source][name] for source in sources)]
        for title, name in (("captions", "rows"), ("without finding", "clean"))
    ]
    for check, count in captions["by_check"].items():
        rows.append([check, count, *(captions["by_source"][source].get(check, 0) for source in sources)])
    if similar is None:
        looked = "Images that look the same were not searched for."
    else:
        looked = f"{similar['hashed']:,} images were compared by their looks, {similar['unreadable']:,} could not be."
    return ["## Findings at captions", "", *_table(["check", "all", *sources], rows), "", looked]


def _histogram(title: str, unit: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    most = max(counts.values())
    rows = [(start, f"{count:,}", "=" * round(30 * count / most)) for start, count in counts.items()]
    return [f"## {title}", "", *_table((unit, "captions", ""), rows)]


def _texts(title: str, named: str, rows: list[tuple[Any, str]]) -> list[str]:
    return [f"## {title}", "", *_table((named, "caption"), rows)] if rows else []


def _mixed(mixed: dict[str, Any] | None) -> list[str]:
    if mixed is None:
        return []
    rows = []
    for group in mixed["groups"]:
        sampling = ", ".join(
            f"{name} {value}" for name, value in (group["sampling"] or {}).items() if value is not None
        )
        which = "this report" if group["current"] else "not counted"
        prompt = f"{group['prompt_id']} ({group['prompt_sha256'][:12]})"
        rows.append((which, group["model"], sampling or group["sampled"], prompt, group["answers"], group["cost"]))
    columns = ("", "model", "settings", "prompt", "answers", "cost")
    return ["## Other prompts, models or settings", "", mixed["sentence"], "", *_table(columns, rows)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [[inert(cell) for cell in line] for line in [columns, *rows]]
    lines.insert(1, ["---"] * len(columns))
    return ["| " + " | ".join(line) + " |" for line in lines]
