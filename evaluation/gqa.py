"""
GQA: compositional questions about scenes, one answer each.

Items have the fields of the Hub's copy and `response`; `id`, `question`, `answer`, `isBalanced` and `types` are read.
Files are those of the official `eval.py`, as LLaVA's script prepares them:

- predictions, `testdev_balanced_predictions.json`: list of `{"questionId": str, "prediction": str}`, or the answers
  before that script, JSON lines of `{"question_id": str, "text": str}`;
- references, `testdev_balanced_questions.json`: `{id: {question, answer, isBalanced, types, semantic, ...}}`.

An answer is taken without full stops at its end and in small letters (haotian-liu/LLaVA@c121f043,
`convert_gqa_for_eval.py`) and right if it is the reference exactly; questions that are not balanced do not count. The
official tool refuses a missing prediction; here it is wrong and counted in `missing`. Of several the last counts, and
predictions of other questions are left out with a warning. Figures that need scene graphs, and those by the steps of
a question's program, are not computed.
"""

import logging
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json, read_json_lines
from .join import find_references
from .vqa_accuracy import answered, count_answers, last_answers, percent_by, percent_of_mean


logger = logging.getLogger(__name__)
OPEN = "query"  # structural type of questions that are not answered by one of two words
BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    column=None,
    dataset="lmms-lab-encoder/GQA",
    config="testdev_balanced_instructions",
    split="testdev",
    fields={
        "id": "text",
        "question": "text",
        "answer": "text",
        "isBalanced": "whether it counts, optional",
        "types": "structural, semantic and detailed type, optional",
        "image": "image",
    },
    questions=12578,
    images_config="testdev_balanced_images",
    note="On the Hub the images are a configuration of their own, testdev_balanced_images.",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What a model is asked after the image.

    Args:
        row (`dict`): With `question`.

    Returns:
        `str`: The question, and that the answer be short.
    """
    return row["question"] + SHORT_ANSWER


def parse(response: str, row: dict[str, Any]) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: In small letters, without full stops at its end.
    """
    return _plain(response)


def _plain(response: str) -> str:
    return response.rstrip(".").lower()


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`.
        rule (`str`, defaults to `"official"`): Scoring rule; there is no other.

    Returns:
        `ScoreResult`: `accuracy` in percent; `binary`, `open` and accuracies by type where the types are there.

    Raises:
        `ValueError`: The rule is unknown, or no item is balanced.
    """
    BENCHMARK.check_rule(rule)
    balanced = [item for item in items if item.get("isBalanced", True)]
    counts = count_answers(balanced, _plain) | {"unbalanced": len(items) - len(balanced)}
    scores = [_is_right(item) if item.get("isBalanced", True) else None for item in items]
    accuracies = [value for value in scores if value is not None]
    return ScoreResult(
        benchmark=BENCHMARK.name,
        headline={"accuracy": percent_of_mean(accuracies)},
        breakdown=_breakdown(balanced, accuracies),
        counts=counts,
        rule=rule,
        scores=[None if value is None else 100 * value for value in scores],
    )


def _is_right(item: Item) -> float:
    response = item["response"]
    return float(response is not None and _plain(response) == item["answer"])


def _breakdown(items: list[Item], accuracies: list[float]) -> dict[str, Any]:
    """Figures of the official tool by their official names; types in the order of the alphabet, numbers by size."""
    found: dict[str, Any] = {}
    lengths = percent_by((f"{len(item['question'].split()):04d}" for item in items), accuracies, percent_of_mean)
    found["accuracyPerLength"] = {str(int(name)): lengths[name] for name in sorted(lengths)}
    if all(item.get("types") for item in items):
        kinds = ["open" if item["types"]["structural"] == OPEN else "binary" for item in items]
        found |= {"binary": 0.0, "open": 0.0} | percent_by(kinds, accuracies, percent_of_mean)
        for name, key in (("accuracyPerStructuralType", "structural"), ("accuracyPerSemanticType", "semantic")):
            groups = percent_by((item["types"][key] for item in items), accuracies, percent_of_mean)
            found[name] = dict(sorted(groups.items()))
    return found


def read_items(predictions: Path, references: Path | None) -> list[Item]:
    """
    Read the files of the official scorer.

    Args:
        predictions (`Path`): The predictions, or a folder that holds them.
        references (`Path`, *optional*): The questions with their answers, or a folder that holds them; the folder of
            the predictions by default.

    Returns:
        `list[dict]`: In the order of the references.

    Raises:
        `FileNotFoundError`: A file is not there.
        `ValueError`: A file is damaged, or no prediction is of one of the questions.
    """
    path = find_file(predictions, "testdev_balanced_predictions.json", "predictions.json", "predictions.jsonl")
    labels = find_references(predictions, references, "testdev_balanced_questions.json", "questions.json")
    lines = ".jsonl" in path.suffixes
    rows = list(read_json_lines(path)) if lines else read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a JSON list of questionId and prediction, got {type(rows).__name__}.")
    key, answer = ("question_id", "text") if lines else ("questionId", "prediction")
    given = last_answers(rows, path, key, answer)
    questions = read_json(labels)
    if not isinstance(questions, dict):
        raise ValueError(f"{labels} must be a JSON object of questions by their id, got {type(questions).__name__}.")
    items = []
    for number, (name, row) in enumerate(questions.items(), start=1):
        for field in ("question", "answer"):
            field_of(row, field, labels, number)
        items.append(answered({"id": name} | row, given.get(name), answer))
    if unknown := len(given.keys() - questions.keys()):
        if unknown == len(given):
            raise ValueError(f"{path}: none of its questions is in {labels}. Give the questions of the same split.")
        logger.warning("%s: %d predictions are of questions that are not in %s.", path, unknown, labels)
    return items
