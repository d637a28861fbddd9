"""Do figures in metadata have their N, and a judge that is none for show?"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import parse_eval_result_entries

from .findings import Finding


N = re.compile(r"\bn\s*[=:]?\s*\d+", re.IGNORECASE)
DEMO = "demo"


def check_figures(metadata: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """
    Check `model-index` and the files of `.eval_results`.

    Args:
        metadata (`dict`): Of the card.
        folder (`Path`): Of the repository.

    Yields:
        `Finding`: One for each figure that must not stand as it does.
    """
    for entry in _list(metadata.get("model-index")):
        for result in _list(entry.get("results")):
            for metric in _list(result.get("metrics")):
                yield from _check_metric(metric)
    for file in sorted((folder / ".eval_results").glob("*.yaml")):
        name = f"{file.parent.name}/{file.name}"
        try:
            entries = parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            yield Finding(name, "figures", f"It cannot be read as evaluation results: {error!r}.")
            continue
        for one in entries:
            notes = one.notes or ""
            figure = f"{one.dataset_id}, {one.task_id}"
            if not _is_figure(one.value):
                yield Finding(name, "figures", f"{figure}: {one.value!r} is no number.")
            if not N.search(notes):
                yield Finding(name, "N", f"{figure}: `notes` do not say of how many questions it is, as `n 60`.")
            if re.search(rf"\bjudge\s*[=:]?\s*{DEMO}", notes, re.IGNORECASE):
                yield Finding(name, "judge", f"{figure} was graded for show and is no result.")


def _check_metric(metric: dict[str, Any]) -> Iterator[Finding]:
    figure = metric.get("name") or metric.get("type")
    told = metric.get("args")
    arguments: dict[str, Any] = told if isinstance(told, dict) else {}
    if not _is_figure(metric.get("value")):
        yield Finding("README.md", "figures", f"model-index, {figure}: {metric.get('value')!r} is no number.")
    if not isinstance(arguments.get("n"), int) and not N.search(str(figure)):
        yield Finding("README.md", "N", f"model-index, {figure}: it does not say of how many questions it is.")
    if str(arguments.get("judge", "")).lower().startswith(DEMO):
        yield Finding("README.md", "judge", f"model-index, {figure} was graded for show and is no result.")


def _list(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
