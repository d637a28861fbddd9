"""Bars of a benchmark's figures by category, each with its number of questions."""

import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


FOLDER = "plots"
BAR, MARGIN, WIDTH = 0.26, 1.1, 7.5  # inches
LONGEST = 48  # characters of a label


def write_plots(out: Path, results: dict[str, Any]) -> dict[str, list[Path]]:
    """
    Draw all categories.

    Args:
        out (`Path`): Folder of the report.
        results (`dict`): What [`evaluation.results.collect`] gave.

    Returns:
        `dict[str, list[Path]]`: SVG files by benchmark.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Path]] = {}
    for name, entry in results["benchmarks"].items():
        for section, content in entry["categories"].items():
            path = folder / f"{name}-{re.sub('[^A-Za-z0-9]+', '_', section)}.svg"
            title = f"{entry['title']}, {section}: {entry['questions']} of {entry['of']} questions"
            if (entry["judge"] or {}).get("demo"):
                title += ", demo judge"
            _draw(path, title + (", limited run" if entry["limited"] else ""), content)
            found.setdefault(name, []).append(path)
    return found


def _draw(path: Path, title: str, content: dict[str, Any]) -> None:
    bars = content["bars"]
    labels = [f"{_short(label)} (n={bar['n']})" for label, bar in bars.items()]
    values = [bar["value"] for bar in bars.values()]
    figure = Figure(figsize=(WIDTH, MARGIN + BAR * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(range(len(bars)), values, color="#3b6ea5", height=0.7)
    axes.bar_label(drawn, labels=[f"{value:.3g}" for value in values], padding=3, fontsize=7)
    # Names of categories come from data: a dollar sign in them is no formula.
    axes.set_yticks(range(len(bars)), labels=labels, fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *values), content["top"] * 1.08)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(content["figure"], fontsize=8)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    # Without a date and with fixed ids, the same figures make the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 3] + "..."
