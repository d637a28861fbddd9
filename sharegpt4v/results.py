"""
Write the figures of `benchmarks/results/` into the README and into `recipes/scale.md`.

```sh
python -m sharegpt4v.results                                # from the reports that are there
python -m sharegpt4v.results --demo runs/demo/report.json   # take over a new report first
```
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
# Targets of benchmarks that only a GPU can run, shown until there is a report.
GPU_TARGETS = {
    "gpu_captioning": {"images_per_second": 8.0, "released": 25.0, "batch_16": 5.0, "batch_64": 1.8},
    "gpu_memory": {"slope": 1.0},
    "gpu_train": {"trl": 1.6, "stock": 1.6, "mfu": 0.45},
}


def render_demo(report: dict[str, Any]) -> str:
    """
    Table of a demo run.

    Args:
        report (`dict`): `report.json` of a run, with `machine`.

    Returns:
        `str`: Markdown.
    """
    trained = [row for row in report["photos"] if row["split"] == "train"]
    losses = [stage["losses"] for stage in report["stages"].values()]
    rows = [
        ("machine", report["machine"]),
        ("loss, nats a token", f"{losses[0][0][1]:.2f} -> {losses[-1][-1][1]:.2f}"),
        (
            "captions nearest to their own reference",
            f"{sum(row['nearest'] == row['id'] for row in trained)} of {len(trained)} trained photographs",
        ),
        *((check["name"], "yes" if check["holds"] else "no") for check in report["checks"]),
        ("wall time of the story", f"{report['seconds']['total']:.0f} s"),
        ("peak memory of a step", f"{report['peak_memory_gb']:.1f} GB"),
    ]
    return "\n".join(["`make demo`:", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def render_benchmarks(reports: list[dict[str, Any]]) -> str:
    """
    Table of everything measured against a peer, or against a limit of our own.

    Args:
        reports (`list[dict]`): What `benchmarks/*.py` wrote.

    Returns:
        `str`: Markdown.
    """
    lines = ["Measured ratios, bigger is better (`python benchmarks/NAME.py` measures them again):", ""]
    lines += ["| benchmark | measure | ratio | target | machine |", "|---|---|---|---|---|"]
    for report in reports:
        for name, ratio in report["ratios"].items():
            target = report["targets"][name]
            value = "not measured" if ratio is None else f"{ratio:.2f}"
            lines.append(f"| {report['benchmark']} | {name} | {value} | {target} | {report['machine']} |")
    return "\n".join(lines)


def render_readme(readme: str, results: Path) -> str:
    """
    Replace what stands between the markers.

    Args:
        readme (`str`): Text of the README.
        results (`Path`): Folder of the reports.

    Returns:
        `str`: Text with the figures of the reports.

    Raises:
        `ValueError`: The markers are missing.
    """
    reports = {
        name: {"benchmark": name, "ratios": dict.fromkeys(targets), "targets": targets, "machine": "one H100"}
        for name, targets in GPU_TARGETS.items()
    }
    reports |= {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in results.glob("*.json")}
    parts = [render_demo(reports.pop("demo"))] if "demo" in reports else []
    return replace_between(
        readme, "\n\n".join([*parts, render_benchmarks([reports[name] for name in sorted(reports)])]), "README.md"
    )


def replace_between(text: str, body: str, name: str) -> str:
    """
    Replace what stands between the markers of a page.

    Args:
        text (`str`): The page.
        body (`str`): What stands there from now on.
        name (`str`): Of the page, for the error.

    Returns:
        `str`: The page.

    Raises:
        `ValueError`: The markers are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{name} lacks the markers {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n{body}\n{END}{tail}"


def render_scale(report: dict[str, Any]) -> str:
    """
    Tables of the simulated runs on 1 to 1,024 GPUs.

    Args:
        report (`dict`): What `benchmarks/scale.py` wrote.

    Returns:
        `str`: Markdown.
    """
    details = report["details"]
    fabrics = list(details["network"][0]["seconds"])
    shares = [f"efficiency, {name}" for name in fabrics]
    lines = [
        f"{details['card']} with {details['card_gb']:.0f} GB, an MFU of {details['mfu']:.0%} while computing, "
        f"{details['steps']} simulated steps."
    ]
    for stage, found in details["stages"].items():
        rows = [_scale_cells(row, details["card_gb"]) for row in found["rows"]]
        rows.append([f"{found['batch'] * 2} and more", "the batch cannot be kept", *[""] * (len(rows[0]) - 2)])
        columns = ["GPUs", "samples x micro-batches", "balance (bound)", "GB", "GB, no checkpointing", *shares]
        lines += ["", f"### {stage.capitalize()}, batch of {found['batch']}", ""]
        lines += _table([*columns, "hours", "GPU-hours"], rows)
    stops: dict[str, list[str]] = {}
    for stop in details["stops"]:
        once, own = (f"{way['gpus']}, {way['why']}" for way in (stop["data_enters_once"], stop["each_fetches"]))
        stops.setdefault(f"{stop['stage']}, {stop['card']}, {stop['strategy']}", []).append(f"{once} ({own})")
    lines += [
        "",
        "### GPUs up to which a run costs at most a tenth more than the cheapest, and what stops it then",
        "",
    ]
    lines += _table(["run", *fabrics], [[name, *cells] for name, cells in stops.items()])
    grown = [
        [row["gpus"], f"{row['batch']:,}", row["steps"], *_percent(row), f"{row['hours'] * 60:.1f}", row["gpu_hours"]]
        for row in details["grown"]
    ]
    lines += ["", "### Pretraining with a batch that grows with the GPUs", ""]
    lines += _table(["GPUs", "batch", "steps", *shares, "minutes", "GPU-hours"], grown)
    moved = [
        [row["strategy"], row["within_gb"], _span(row["between_gb"], 1)]
        + [_span(row["seconds"][name], 2) for name in fabrics]
        for row in details["network"]
    ]
    lines += ["", "### What a GPU receives in a micro-batch of pretraining on two nodes", ""]
    lines += _table(["strategy", "GB within", "GB between nodes", *(f"{name}, s" for name in fabrics)], moved)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Rewrite `README.md` and `recipes/scale.md`.

    Args:
        argv (`Sequence[str]`, *optional*): Command line, defaults to that of the process.

    Returns:
        `int`: 0.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m sharegpt4v.results", description=__doc__.split("\n\n")[0])
    parser.add_argument("--demo", type=Path, help="Report of a demo run to take over.")
    arguments = parser.parse_args(argv)
    if arguments.demo:
        shutil.copyfile(arguments.demo, ROOT / "benchmarks" / "results" / "demo.json")
    results, readme, scale = ROOT / "benchmarks" / "results", ROOT / "README.md", ROOT / "recipes" / "scale.md"
    readme.write_text(render_readme(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    tables = render_scale(json.loads((results / "scale.json").read_text(encoding="utf-8")))
    scale.write_text(replace_between(scale.read_text(encoding="utf-8"), tables, "recipes/scale.md"), encoding="utf-8")
    logger.info("README.md and recipes/scale.md are up to date.")
    return 0


def _scale_cells(row: dict[str, Any], card_gb: float) -> list[Any]:
    held = [row["memory_gb"], row["memory_unchecked_gb"]]
    divided = [row["gpus"], f"{row['samples']:g} x {row['micro_batches']}"]
    even = f"{row['balance']:.1%} ({row['bound']:.1%})"
    memory = [f"{value:.1f}" if value <= card_gb else f"[{value:.1f}]" for value in held]
    return [*divided, even, *memory, *_percent(row), f"{row['hours']:.2f}", f"{row['gpu_hours']:.1f}"]


def _percent(row: dict[str, Any]) -> list[str]:
    return [f"{share:.0%}" for share in row["efficiency"].values()]


def _span(figures: list[float], digits: int) -> str:
    low, high = (f"{figure:.{digits}f}" for figure in figures)
    return low if low == high else f"{low} to {high}"


def _table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    sys.exit(main())
