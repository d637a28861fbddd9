"""
Figures for a model's card: `model-index` in its metadata, and files of `.eval_results`.

A figure goes there only if it is of a whole split and, where answers are graded, of one judge that is named and has
graded all. What is left out comes back with its reason. The Hub shows `.eval_results` for data sets that are
registered as benchmarks (https://huggingface.co/docs/hub/eval-results); `model-index` is read for all.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from .judge_verdicts import NONSENSE
from .outcomes import write_whole


FOLDER = ".eval_results"
TASK = "image-text-to-text"


@dataclass(frozen=True)
class LeftOut:
    """
    A benchmark whose figures are not for a card.

    Args:
        benchmark (`str`): Its name.
        reason (`str`): Why.
    """

    benchmark: str
    reason: str


def model_index(results: dict[str, Any], model_name: str) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """
    The figures as `model-index` of a card.

    Args:
        results (`dict`): What [`evaluation.results.collect`] gave.
        model_name (`str`): Of the model on the Hub.

    Returns:
        `tuple[list[dict], list[LeftOut]]`: Empty where no figure is for a card; and what is left out.
    """
    found, left_out = [], []
    for name, entry in results["benchmarks"].items():
        if (reason := reason_to_leave_out(entry)) is not None:
            left_out.append(LeftOut(name, reason))
            continue
        for figure in _figures(entry):
            found.append(
                EvalResult(
                    task_type=TASK,
                    dataset_type=entry["dataset"],
                    dataset_name=entry["title"],
                    dataset_config=entry["config"],
                    dataset_split=entry["split"],
                    metric_type=_slug(figure),
                    metric_name=f"{figure} ({_n(entry, figure)})",
                    metric_value=entry["headline"][figure],
                    metric_args=_facts(entry, figure),
                )
            )
    return (eval_results_to_model_index(model_name, found) if found else []), left_out


def eval_result_entries(results: dict[str, Any]) -> tuple[dict[str, list[EvalResultEntry]], list[LeftOut]]:
    """
    The figures as entries of `.eval_results`.

    Args:
        results (`dict`): What [`evaluation.results.collect`] gave.

    Returns:
        `tuple[dict[str, list[EvalResultEntry]], list[LeftOut]]`: By benchmark; and what is left out.
    """
    found: dict[str, list[EvalResultEntry]] = {}
    left_out = []
    for name, entry in results["benchmarks"].items():
        if (reason := reason_to_leave_out(entry)) is not None:
            left_out.append(LeftOut(name, reason))
            continue
        found[name] = [
            EvalResultEntry(
                dataset_id=entry["dataset"],
                task_id=f"{name}_{_slug(figure)}",
                value=entry["headline"][figure],
                notes="; ".join(f"{key} {value}" for key, value in _facts(entry, figure).items()),
            )
            for figure in _figures(entry)
        ]
    return found, left_out


def write_eval_results(results: dict[str, Any], folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """
    Write `.eval_results/<benchmark>.yaml`.

    Args:
        results (`dict`): What [`evaluation.results.collect`] gave.
        folder (`Path`): Of the model; a file there of a benchmark that is left out now is deleted.

    Returns:
        `tuple[list[Path], list[LeftOut]]`: The files; and what is left out.
    """
    found, left_out = eval_result_entries(results)
    paths = []
    for name, entries in found.items():
        path = folder / FOLDER / f"{name}.yaml"
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        write_whole(path, text)
        paths.append(path)
    for one in left_out:
        (folder / FOLDER / f"{one.benchmark}.yaml").unlink(missing_ok=True)
    return paths, left_out


def reason_to_leave_out(entry: dict[str, Any]) -> str | None:
    """
    Why the figures of a benchmark are not for a card.

    Args:
        entry (`dict`): Of the benchmark in the results.

    Returns:
        `str`, *optional*: `None` if they are.
    """
    judge, counts = entry["judge"], entry["counts"]
    if entry["limited"]:
        return f"a limited run: {entry['questions']} of {entry['of']} questions"
    if judge is not None and judge["demo"]:
        return f"graded by a demo judge, {judge['name']}"
    if entry["withheld"] is not None:
        return f"withheld: {entry['withheld']}"
    if judge is not None and judge["name"] is None:
        return "no judge is recorded"
    needed = counts.get("to_judge")
    unjudged = counts.get("unjudged", 0) if needed is None else needed - counts.get("judged", 0)
    if unjudged:
        return f"partial: {judge['judged'] if judge else f'{unjudged} not'} judged"
    if judge is not None and len(judge["models"]) > 1:
        return f"graded by several judges, {judge['name']}"
    if judge is not None and judge["unparsed"] > NONSENSE * counts.get("judged", 0):
        return f"{judge['unparsed']} of {counts.get('judged', 0)} verdicts could not be read from replies"
    if not _figures(entry):
        return "there is no figure"
    return None


def _figures(entry: dict[str, Any]) -> list[str]:
    return [figure for figure in entry["figures"] if entry["headline"].get(figure) is not None]


def _n(entry: dict[str, Any], figure: str) -> str:
    found = entry["intervals"].get(figure)
    return f"n={entry['questions']} questions" if found is None else f"n={found['n']} {found['unit']}s"


def _facts(entry: dict[str, Any], figure: str) -> dict[str, Any]:
    """What belongs beside the figure: its number of questions first."""
    found = entry["intervals"].get(figure)
    facts: dict[str, Any] = {"figure": figure, "n": entry["questions"] if found is None else found["n"]}
    if found is not None:
        facts |= {"unit": found["unit"], "95 % interval": f"{found['low']:.6g} to {found['high']:.6g}"}
    facts |= {"split": entry["split"], "rule": entry["rule"]}
    facts |= {word: count for word in ("missing", "unparsed") if (count := entry["counts"].get(word))}
    if (mode := entry["run"].get("images")) is not None:
        facts["images"] = mode
    if entry["judge"] is not None:
        judge = entry["judge"]
        facts["judge"] = judge["name"]
        facts |= {key: judge[key] for key in ("date", "prompt_sha256") if judge[key] is not None}
    return facts


def _slug(figure: str) -> str:
    return re.sub("[^a-z0-9]+", "_", figure.lower())
