"""
Write the measured figures of `benchmarks/results/` into the README.

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
            lines.append(f"| {report['benchmark']} | {name} | {ratio:.2f} | {target} | {report['machine']} |")
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
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}.")
    reports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))}
    demo = render_demo(reports.pop("demo"))
    return f"{head}{BEGIN}\n{demo}\n\n{render_benchmarks(list(reports.values()))}\n{END}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """
    Rewrite `README.md`.

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
    readme = ROOT / "README.md"
    readme.write_text(
        render_readme(readme.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"), encoding="utf-8"
    )
    logger.info("README.md is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
