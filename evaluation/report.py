"""
The figures of an evaluation to read: a table beside the papers', in Markdown and HTML, with plots and wrong answers.

No figure is without its number of questions and its interval, and what makes it incomparable to the published ones
(the split, the judge, a limit, another rule) is a footnote at the figure. Models' answers are foreign text: they are
escaped in both files, and the HTML page loads nothing.
"""

import base64
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from .base import OFFICIAL
from .outcomes import write_whole
from .paper import MODELS, paper_figure
from .plots import write_plots


MARKDOWN, PAGE = "report.md", "report.html"
TEMPLATE = "report.html.jinja"
NOTHING = "–"
LONGEST = 600  # characters of an answer that the report shows


@dataclass
class Row:
    """
    A figure beside the published ones.

    Args:
        title (`str`): Of the benchmark.
        figure (`str`): Its official name.
        value (`str`): In the papers' unit, or that it is withheld.
        interval (`str`): Its 95 % interval.
        n (`str`): Of how many questions, images or groups.
        published (`list[str]`): Of each of the papers' models.
        notes (`list[int]`): Numbers of its footnotes.
    """

    title: str
    figure: str
    value: str
    interval: str
    n: str
    published: list[str]
    notes: list[int] = field(default_factory=list)


def write_report(out: Path, results: dict[str, Any], comparison: dict[str, Any] | None = None) -> list[Path]:
    """
    Write `report.md`, `report.html` and their plots.

    Args:
        out (`Path`): Folder of the report.
        results (`dict`): What [`evaluation.results.collect`] gave.
        comparison (`dict`, *optional*): What [`evaluation.compare.compare`] gave.

    Returns:
        `list[Path]`: All files.
    """
    plots = write_plots(out, results)
    rows, notes = table(results)
    compared = [] if comparison is None else comparison_rows(comparison)
    write_whole(out / MARKDOWN, _markdown(results, rows, notes, comparison, compared, _relative(out, plots)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = _short
    page = environment.get_template(TEMPLATE).render(
        results=results,
        rows=rows,
        notes=notes,
        models=MODELS,
        comparison=comparison,
        compared=compared,
        plots={name: [_data_address(path) for path in paths] for name, paths in plots.items()},
    )
    write_whole(out / PAGE, page)
    return [out / MARKDOWN, out / PAGE, *(path for paths in plots.values() for path in paths)]


def table(results: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """
    The figures beside the papers'.

    Args:
        results (`dict`): What [`evaluation.results.collect`] gave.

    Returns:
        `tuple[list[Row], list[str]]`: A row for each figure, and the footnotes.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for name, entry in results["benchmarks"].items():
        for figure in entry["figures"]:
            row = _row(name, figure, entry)
            for note in _notes(name, figure, entry):
                if note not in notes:
                    notes.append(note)
                row.notes.append(notes.index(note) + 1)
            rows.append(row)
    return rows, notes


def comparison_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """
    The figures of a comparison as text.

    Args:
        comparison (`dict`): What [`evaluation.compare.compare`] gave.

    Returns:
        `list[list[str]]`: Benchmark, figure, both models, difference, interval, n, wins, losses and ties, McNemar's p,
            notes.
    """
    rows = []
    for name, entry in comparison["benchmarks"].items():
        for figure, one in entry["figures"].items():
            scale = _scale(name, figure)
            show = partial(_number, scale=scale)
            ends = NOTHING if one["low"] is None else f"[{show(one['low'])}, {show(one['high'])}]"
            p = NOTHING if one["mcnemar"] is None else f"{one['mcnemar']['p']:.3g}"
            outcome = f"{one['wins']} / {one['losses']} / {one['ties']}"
            cells = [name, figure, show(one["a"]), show(one["b"]), show(one["difference"]), ends]
            rows.append([*cells, _counted(one["n"], one["unit"]), outcome, p, "; ".join(entry["notes"])])
    return rows


def _row(name: str, figure: str, entry: dict[str, Any]) -> Row:
    paper = paper_figure(name, figure)
    scale = _scale(name, figure)
    value, found = entry["headline"].get(figure), entry["intervals"].get(figure)
    rows = f"{entry['questions']} of {entry['of']} rows"
    return Row(
        title=entry["title"],
        figure=figure if paper is None else f"{figure} ({paper.column})",
        value="withheld" if value is None else _number(value, scale),
        interval=NOTHING if found is None else f"[{_number(found['low'], scale)}, {_number(found['high'], scale)}]",
        n=rows if found is None else f"{_counted(found['n'], found['unit'])} ({rows})",
        published=[NOTHING] * len(MODELS)
        if paper is None
        else [NOTHING if one is None else f"{one:.1f}" for one in paper.values],
    )


def _notes(name: str, figure: str, entry: dict[str, Any]) -> list[str]:
    """What a reader must know of a figure, the gravest first."""
    paper, judge, counts = paper_figure(name, figure), entry["judge"], entry["counts"]
    title = entry["title"]
    notes = []
    if entry["limited"]:
        told = f"{entry['questions']} of {entry['of']} rows of the split"
        notes.append(f"{title}: a limited run, {told}; not comparable to any published figure.")
    if entry["withheld"] is not None:
        notes.append(f"{title}: withheld, {entry['withheld']}.")
    if judge is not None:
        notes.append(f"{title}: {_judge_note(judge)}")
        if paper is not None and paper.judge not in (None, judge["name"]):
            notes.append(f"{title}: the published figures are by {paper.judge}; another judge moves them by points.")
    if paper is not None:
        ours, llava = paper.sources
        source = f"{ours}, those of LLaVA-1.5 {llava}" if ours != llava else ours
        told = f"the published figures of {paper.column} ({source}) are of {paper.split}"
        notes.append(
            f"{title}: {told}." if paper.same_split else f"{title}: of {entry['split']}; {told}; incomparable."
        )
    if entry["rule"] != OFFICIAL:
        notes.append(f"{title}: scored by the rule {entry['rule']}, which is not the official one.")
    if (mode := entry["run"].get("images")) not in (None, entry["images"]):
        notes.append(f"{title}: images were prepared as {mode}, ShareGPT4V's script has {entry['images']}.")
    lacking = {word: counts.get(word, 0) for word in ("missing", "unparsed", "duplicates")}
    if any(lacking.values()):
        notes.append(f"{title}: " + ", ".join(f"{count} {word}" for word, count in lacking.items() if count) + ".")
    if figure in entry["without_interval"]:
        notes.append(f"{title}, {figure}: no interval, as {entry['without_interval'][figure]}.")
    if entry["intervals"].get(figure, {}).get("flat"):
        notes.append(f"{title}, {figure}: the interval is a point as all units are alike; it says nothing.")
    if entry["note"]:
        notes.append(f"{title}: {entry['note'].rstrip('.').replace('`', '')}.")
    return notes


def _judge_note(judge: dict[str, Any]) -> str:
    if judge["name"] is None:
        return "no judge is recorded."
    kind = "demo judge" if judge["demo"] else "judge"
    rule = "; it grades by a stated rule and says nothing of quality" if judge["demo"] else ""
    when = "" if judge["date"] is None else f", {judge['date']}"
    prompt = "" if judge["prompt_sha256"] is None else f", prompt {judge['prompt_sha256'][:12]}"
    flags = "".join(f"; {flag}" for flag in judge["flags"])
    return f"{kind} {judge['name']}{when}{prompt}, {judge['judged']} judged{flags}{rule}."


def _scale(name: str, figure: str) -> float:
    paper = paper_figure(name, figure)
    return 1.0 if paper is None else paper.scale


def _number(value: float, scale: float) -> str:
    return f"{round(value * scale, 1) + 0.0:.1f}"  # no negative zero


def _counted(n: int, unit: str) -> str:
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"


def _short(text: Any) -> str:
    whole = NOTHING if text is None else str(text)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} ... ({len(whole)} characters)"


def _relative(out: Path, plots: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {name: [path.relative_to(out).as_posix() for path in paths] for name, paths in plots.items()}


def _data_address(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _markdown(
    results: dict[str, Any],
    rows: list[Row],
    notes: list[str],
    comparison: dict[str, Any] | None,
    compared: list[list[str]],
    plots: dict[str, list[str]],
) -> str:
    bootstrap = results["bootstrap"]
    model = ", ".join(f"{name} {value}" for name, value in results["model"].items())
    drawn = f"95 % intervals: percentile bootstrap, {bootstrap['resamples']} draws, seed {bootstrap['seed']}."
    lines = ["# Evaluation", "", _text(model), "", drawn, ""]
    heads = ["benchmark", "figure", "this model", "95 % interval", "of", *MODELS, "notes"]
    lines += _grid(
        heads,
        [
            [row.title, row.figure, row.value, row.interval, row.n, *row.published, ", ".join(map(str, row.notes))]
            for row in rows
        ],
    )
    lines += ["", *(f"{number}. {_text(note)}" for number, note in enumerate(notes, start=1))]
    if comparison is not None:
        heads = ["benchmark", "figure", "a", "b", "a - b", "95 % interval", "of", "wins / losses / ties", "McNemar p"]
        names = f"a is {comparison['a'].get('model')}, b is {comparison['b'].get('model')}."
        lines += ["", "## Comparison", "", _text(names), "", *_grid([*heads, "notes"], compared)]
    for name, entry in results["benchmarks"].items():
        lines += ["", f"## {_text(entry['title'])}", ""]
        lines += [f"![{_text(entry['title'])} by category]({path})" for path in plots.get(name, [])]
        if entry["wrong_answers"]:
            lines += ["", "Some wrong answers:", ""]
            keys = ("id", "prompt", "response", "parsed", "expected")
            lines += _grid(list(keys), [[_short(one[key]) for key in keys] for one in entry["wrong_answers"]])
    return "\n".join(lines) + "\n"


def _grid(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *(_line([_text(cell) for cell in row]) for row in rows)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text that is no markup in a cell of Markdown, whatever a model wrote."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_\[\]|!#~$])", r"\\\1", plain)
    # A bare address would become a link, and a colon that is an entity ends that.
    plain = re.sub(r"(?i)\b(https?|ftp|mailto):", r"\1&#58;", plain).replace("www.", "www&#46;")
    return re.sub(r"\s*[\r\n\u2028\u2029\x0b\x0c\x85]+\s*", "<br>", plain)
