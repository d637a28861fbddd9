"""
VizWiz: questions of blind people about their photographs, ten answers each, many that nobody can answer.

Figures of the paper are of the test split, whose labels are hidden: [`write_submission`] writes what EvalAI takes
(challenge 2185 in LLaVA's time, 1911 in ShareGPT4V's). What is scored here is the validation split.

Items have the fields of the Hub's copy and `response`: `question_id` (file name of the image without `.jpg`),
`question`, `answers` (list of texts), `category` (answer type). Files are those of the evaluation server:

- predictions, `results.json`: list of `{"image": name, "answer": str}`, and `answerable` (0 to 1) if the model
  says it;
- references, `annotations.json`: list of `{image, question, answers: [{answer, answer_confidence}], answer_type,
  answerable}`.

The rule is that of the evaluator which vizwiz.org hands out: predictions are normalised, references never. Average
precision and F1 of finding the unanswerable questions need the label `answerable`, which the Hub's copy leaves out;
without it they are left out here as well. A prediction that does not say how answerable it holds its question counts
as 0 where its normal form is "unanswerable" and as 1 elsewhere (TRI-ML/vlm-evaluation).

A question without a prediction is wrong and counted in `missing`; of several predictions the last counts.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json
from .join import find_references
from .vqa_accuracy import (
    PERCENT_DIGITS,
    answer_accuracy,
    answered,
    count_answers,
    last_answers,
    percent,
    percent_by,
    reference_texts,
    references_of,
    refuse_unknown,
)
from .vqa_text import normalise_m4c, normalise_vizwiz


INSUFFICIENT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
UNANSWERABLE, SUFFIX = "unanswerable", ".jpg"
BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    column="VizWiz",
    dataset="lmms-lab-encoder/VizWiz-VQA",
    split="val",
    fields={
        "question_id": "file name of the image, without .jpg",
        "question": "text",
        "answers": "ten texts",
        "category": "unanswerable, other, yes/no or number",
        "image": "image",
    },
    questions=4319,
    submission="submission.json",
    note="Validation, not comparable to the paper's test split; submit to EvalAI challenge 2185 for that.",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What a model is asked after the image.

    Args:
        row (`dict`): With `question`.

    Returns:
        `str`: The question as it is, what to say if it cannot be answered, and that the answer be short.
    """
    return row["question"] + INSUFFICIENT + SHORT_ANSWER


def parse(response: str, row: dict[str, Any]) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: Its normal form.
    """
    return normalise_vizwiz(response)


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`; with `answerable`, and `predicted_answerable` if the model says it.
        rule (`str`, defaults to `"official"`): Scoring rule; there is no other.

    Returns:
        `ScoreResult`: `overall` in percent, `perAnswerType`, and `unanswerability` where the labels are there.

    Raises:
        `ValueError`: The rule is unknown, there are no items, or one has no references.
    """
    BENCHMARK.check_rule(rule)
    counts = count_answers(items, normalise_vizwiz)
    accuracies = [_accuracy(item) for item in items]
    breakdown: dict[str, Any] = {"perAnswerType": percent_by((item["category"] for item in items), accuracies)}
    if all(item.get("answerable") is not None for item in items):
        breakdown["unanswerability"] = _unanswerability(items)
    return ScoreResult(
        benchmark=BENCHMARK.name,
        headline={"overall": percent(accuracies)},
        breakdown=breakdown,
        counts=counts,
        rule=rule,
        scores=[round(100 * accuracy, PERCENT_DIGITS) for accuracy in accuracies],
    )


def _accuracy(item: Item) -> float:
    references = references_of(item, f"Question {item['question_id']}")
    if item["response"] is None:
        return 0.0
    return answer_accuracy(normalise_vizwiz(item["response"]), references)


def _unanswerability(items: Sequence[Item]) -> dict[str, float]:
    labels = [1 - int(item["answerable"]) for item in items]
    certainty = [1.0 - _answerable(item) for item in items]
    found = [value > 0.5 for value in certainty]
    true_positives = sum(label for label, positive in zip(labels, found, strict=True) if positive)
    total = sum(labels) + sum(found)
    figures = {
        "average_precision": average_precision(labels, certainty),
        "f1_score": 2 * true_positives / total if total else 0.0,
    }
    return {name: round(100 * value, PERCENT_DIGITS) for name, value in figures.items()}


def _answerable(item: Item) -> float:
    said = item.get("predicted_answerable")
    if said is not None:
        return float(said)
    response = item["response"]
    return 0.0 if response is not None and normalise_vizwiz(response) == UNANSWERABLE else 1.0


def average_precision(labels: Sequence[int], certainty: Sequence[float]) -> float:
    """
    Average precision: the sum over falling thresholds of precision times the recall that is gained there.

    Args:
        labels (`Sequence[int]`): 1 for what is to be found, 0 for the rest.
        certainty (`Sequence[float]`): How certain the model is of a 1.

    Returns:
        `float`: 0 to 1; equal certainties share a threshold, and it is 0 where there is nothing to find.
    """
    positives = sum(labels)
    ranked = sorted(zip(certainty, labels, strict=True), key=lambda pair: -pair[0])
    seen = hits = 0
    total = 0.0
    for _, tied in groupby(ranked, key=lambda pair: pair[0]):
        group = [label for _, label in tied]
        seen, hits = seen + len(group), hits + sum(group)
        total += sum(group) * hits / seen
    return total / positives if positives else 0.0


def read_items(predictions: Path, references: Path | None) -> list[Item]:
    """
    Read the files of the evaluation server.

    Args:
        predictions (`Path`): `results.json`, or a folder that holds it.
        references (`Path`, *optional*): `annotations.json`, or a folder that holds it; the folder of the predictions
            by default.

    Returns:
        `list[dict]`: In the order of the references.

    Raises:
        `FileNotFoundError`: A file is not there.
        `ValueError`: A file is damaged, or they are of different questions.
    """
    path = find_file(predictions, "results.json")
    labels = find_references(predictions, references, "annotations.json", "val.json")
    rows, annotations = read_json(path), read_json(labels)
    for name, content in ((path, rows), (labels, annotations)):
        if not isinstance(content, list):
            raise ValueError(f"{name} must be a JSON list with one entry an image, got {type(content).__name__}.")
    given = last_answers(rows, path, "image", "answer")
    items = []
    for number, row in enumerate(annotations, start=1):
        texts = reference_texts(row, labels, number)
        values = {name: field_of(row, name, labels, number) for name in ("image", "answer_type")}
        item = {
            "question_id": values["image"].removesuffix(SUFFIX),
            "question": row.get("question"),
            "answers": texts,
            "category": values["answer_type"],
            "answerable": row.get("answerable"),
        }
        prediction = given.get(values["image"])
        item = answered(item, prediction, "answer")
        if prediction and "answerable" in prediction.row:
            item["predicted_answerable"] = _checked_number(prediction.row["answerable"], path, values["image"])
        items.append(item)
    refuse_unknown(given, (row["image"] for row in annotations), path, labels)
    return items


def _checked_number(value: Any, path: Path, image: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{path}, {image}: `answerable` must be a number from 0 to 1, got {value!r}.")
    return float(value)


def write_submission(items: list[Item], path: Path) -> None:
    """
    Write what EvalAI takes: answers in M4C's normal form, as LLaVA's script for the upload has them.

    Args:
        items (`list[dict]`): With `question_id` and `response`, all of the split.
        path (`Path`): The file.

    Raises:
        `ValueError`: A question has no answer; the server wants all.
    """
    if missing := [item["question_id"] for item in items if item["response"] is None]:
        raise ValueError(
            f"{len(missing)} of {len(items)} questions have no answer, first {missing[:3]}. Answer all first."
        )
    rows = [{"image": _image_name(item), "answer": normalise_m4c(item["response"])} for item in items]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _image_name(item: Item) -> str:
    name = item["question_id"]
    return name if Path(name).suffix else name + SUFFIX
