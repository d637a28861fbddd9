"""
MM-Vet: open answers, graded from 0 to 1 by a language model, counted for each capability that a question needs.

Sources: the paper (https://huggingface.co/papers/2308.02490), yuweihao/MM-Vet@acde843e (`mm-vet_evaluator.py`).

Items have `question_id` (`v1_<number>`), `question`, `answer` (alternatives joined by `<OR>`, parts by `<AND>`),
`capability` (a list; a text with commas in some copies), `response`, and `grades`: one grade for each run of the
judge, the first run first. Of questions that are there twice the last counts, as in a JSON object. A question without
a response scores 0, where the official tool stops. An item that has neither a response nor grades is not judged, and
while there is one, figures are withheld.

Grades depend on the judge: the official one is gpt-4-0613, and its name belongs beside each figure.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .base import OFFICIAL, Benchmark, Figures, Item, ScoreResult
from .files import field_of, find_file, read_json


METADATA = ("mm-vet.json", "mm-vet_metadata.json", "metadata.json")
PREDICTIONS = ("predictions.json", "mmvet.json")
GRADES = "grades.json"
DECIMALS = 1
BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    column="MM-Vet",
    dataset="lmms-lab-encoder/MMVet",
    split="test",
    fields={
        "question_id": "`v1_<number>`",
        "question": "text",
        "answer": "text with `<AND>` and `<OR>`",
        "capability": "capabilities that the question needs",
        "image": "image",
    },
    questions=218,
    images="crop",
    max_new_tokens=1024,
    judge=True,
    note="The official judge is gpt-4-0613 at temperature 0; another one moves figures by several points.",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What is asked about an image.

    Args:
        row (`dict`): The question.

    Returns:
        `str`: The question as it is.
    """
    return str(row["question"])


def parse(response: str, row: dict[str, Any]) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: The answer; only a judge reads it.
    """
    return response


def capabilities(row: dict[str, Any]) -> list[str]:
    """
    Capabilities that a question needs.

    Args:
        row (`dict`): The question.

    Returns:
        `list[str]`: Each once, sorted.
    """
    names = row["capability"]
    parts = names.split(",") if isinstance(names, str) else names
    return sorted({str(part).strip() for part in parts if str(part).strip()})


def score(items: list[Item], rule: str = OFFICIAL, allow_partial: bool = False) -> ScoreResult:
    """
    Average the judge's grades.

    Args:
        items (`list[dict]`): Questions with their grades, in any order.
        rule (`str`, defaults to `"official"`): There is no other.
        allow_partial (`bool`, defaults to `False`): Average what is judged, although not everything is.

    Returns:
        `ScoreResult`: `total`, `std` (of the totals of the runs, of the population) and `runs` (each total) in
        points from 0 to 100 with one decimal; `capability` and `capability_integration`, the latter by the sorted
        names of all capabilities of a question, joined by `_`. All `None` or empty while something is unjudged. An
        item scores the mean of its grades, in points.
    """
    BENCHMARK.check_rule(rule)
    last = {str(item["question_id"]): place for place, item in enumerate(items)}
    runs = max((len(items[place].get("grades") or ()) for place in last.values()), default=0)
    grades = {place: _grades(items[place], max(runs, 1)) for place in last.values()}
    judged = {place: found for place, found in grades.items() if found is not None}
    missing = [place for place in last.values() if _is_missing(items[place])]
    counts = {
        "questions": len(last),
        "answered": len(last) - len(missing),
        "missing": len(missing),
        "unparsed": sum(bool(items[place].get("judge_unparsed")) for place in last.values()),
        "duplicates": len(items) - len(last),
        "judged": len(judged),
        "unjudged": len(grades) - len(judged),
        "runs": runs,
    }
    scores = [100 * float(np.mean(judged[place])) if place in judged else None for place in range(len(items))]
    if not judged or (counts["unjudged"] and not allow_partial):
        return ScoreResult(BENCHMARK.name, {"total": None, "std": None, "runs": None}, {}, counts, rule, scores)
    order = sorted(judged, key=lambda place: _number(items[place]))
    figures = _figures([(capabilities(items[place]), judged[place]) for place in order])
    headline = {name: figures["capability"][name] for name in ("total", "std", "runs")}
    return ScoreResult(BENCHMARK.name, headline, figures, counts, rule, scores)


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read answers and grades.

    Args:
        predictions (`Path`): Either `{"v1_<id>": text}` with the official tool's grades
            (`{"v1_<id>": {"content": [...], "score": [...]}}`) beside it in `grades.json` or
            `<name>_<judge>-grade-<n>runs.json`, or the grades alone; or a folder with `predictions.json` and
            `grades.json`.
        references (`Path`): `mm-vet.json`, or a folder that has it; without it, it is looked for beside the
            predictions.

    Returns:
        `list[dict]`: In the order of the references.

    Raises:
        `ValueError`: A file has another layout, or is of other questions.
    """
    metadata_path = find_file(references or (predictions if predictions.is_dir() else predictions.parent), *METADATA)
    metadata = _object(metadata_path)
    path = find_file(predictions, *PREDICTIONS, GRADES)
    values = _object(path)
    answers: dict[str, Any] | None = None if _are_grades(values) else values
    grades_path = path if answers is None else _grades_beside(path)
    grades = {} if grades_path is None else _object(grades_path)
    if answers is None and (beside := _file_in(path.parent, PREDICTIONS)) is not None:
        answers = _object(beside)
    for where, found in ((path, answers or {}), (grades_path, grades)):
        if extra := [name for name in found if name not in metadata]:
            raise ValueError(
                f"{where} has {extra[0]!r}, which is no question of {metadata_path}. Give files of one set."
            )
    items = []
    for number, (name, row) in enumerate(metadata.items(), start=1):
        needed = {field: field_of(row, field, metadata_path, number) for field in ("question", "answer", "capability")}
        item: Item = {"question_id": name, **needed}
        if answers is not None:
            response = answers.get(name)
            item["response"] = None if response is None else str(response)
        if name in grades:
            item["grades"] = _stored(grades[name], name, grades_path)
        items.append(item)
    return items


def write_submission(items: list[Item], path: Path) -> None:
    """
    Write what the official tool and the online evaluator take.

    Args:
        items (`list[dict]`): Questions with their responses.
        path (`Path`): A JSON file.
    """
    answers = {_name(item): item["response"] for item in items if item.get("response") is not None}
    path.write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _figures(graded: list[tuple[list[str], list[float]]]) -> Figures:
    """Sums as the official tool builds them, one grade after the other: a tie rounds as there."""
    runs = len(graded[0][1])
    sums: dict[str, dict[str, list[float]]] = {"capability": {}, "capability_integration": {}}
    sizes = {name: Counter[str]() for name in sums}
    for names, grades in graded:
        for table, keys in (("capability", names), ("capability_integration", ["_".join(names)])):
            for key in [*keys, "total"]:
                sizes[table][key] += 1
                column = sums[table].setdefault(key, [0.0] * runs)
                for run, grade in enumerate(grades):
                    column[run] += grade
    figures: Figures = {}
    for table, columns in sums.items():
        points = {key: np.array(column) / sizes[table][key] * 100 for key, column in columns.items()}
        order = sorted(points, key=partial(_rank, sizes[table]))
        total = points["total"]
        figures[table] = {key: _rounded(points[key].mean()) for key in order}
        figures[table] |= {"std": _rounded(total.std()), "runs": str([_rounded(one) for one in total])}
    return figures


def _rank(sizes: Counter[str], key: str) -> tuple[bool, int, str]:
    return key == "total", -sizes[key], key


def _rounded(value: Any) -> float:
    return float(np.round(value, DECIMALS))  # as NumPy rounds, which is not always as Python does


def _grades(item: Item, runs: int) -> list[float] | None:
    """The grades of an item in all runs; `None` if some are lacking."""
    found = item.get("grades") or ()
    if not found and _is_missing(item):
        return [0.0] * runs
    return [float(grade) for grade in found] if len(found) >= runs else None


def _is_missing(item: Item) -> bool:
    return "response" in item and item["response"] is None and not item.get("grades")


def _number(item: Item) -> tuple[int, str]:
    name = str(item["question_id"])
    digits = name.rsplit("_", 1)[-1]
    return (int(digits) if digits.isascii() and digits.isdigit() else 0, name)


def _name(item: Item) -> str:
    name = str(item["question_id"])
    return name if name.startswith("v1_") else f"v1_{name}"


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object with a key for each question, got {type(value).__name__}.")
    return value


def _are_grades(values: dict[str, Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) and "score" in value for value in values.values())


def _stored(grade: Any, name: str, path: Path | None) -> list[float]:
    found = grade.get("score") if isinstance(grade, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, (int, float)) and _is_grade(one) for one in found):
        raise ValueError(f"{path}: {name} must have a list of grades from 0 to 1 in `score`, got {found!r}.")
    return [float(one) for one in found]


def _is_grade(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 1.0


def _grades_beside(path: Path) -> Path | None:
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    official = sorted(path.parent.glob(f"{stem}_*-grade-*runs.json"))
    if len(official) > 1:
        names = ", ".join(one.name for one in official)
        raise ValueError(f"{path.parent} has grades of several judges or runs: {names}. Give one of them instead.")
    return official[0] if official else _file_in(path.parent, (GRADES,))


def _file_in(folder: Path, names: Iterable[str]) -> Path | None:
    candidates = (folder / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)
