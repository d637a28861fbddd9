"""
VQA v2: open questions about photographs, ten answers each.

Figures of the paper are of test-dev, whose labels are hidden: [`write_submission`] writes what EvalAI's challenge 830
takes. What is scored here is the validation split, which no figure of a test split may be compared to.

Items have the fields of the Hub's copy and `response`; of them `question_id`, `question_type`, `answer_type` and
`answers` (list of `{answer, answer_confidence, answer_id}`) are read. Files are those of the evaluation server:

- predictions, `results.json`: list of `{"question_id": int, "answer": str}`;
- references, `annotations.json`: `{"annotations": [{question_id, question_type, answer_type, answers, ...}]}`.

Rules (`rule`):

- `official`: GT-Vision-Lab/VQA@a013f004 (2021). Both sides are normalised, unless all references are the same: then
  they are compared as they are, capitals included.
- `vqa_2016`: GT-Vision-Lab/VQA@458a8b2. The prediction is always normalised, references lose their punctuation only,
  and that unless all are the same.
- `always_normalise`: both sides always, as lmms-eval and VLMEvalKit do.

A question without a prediction is wrong and counted in `missing`; of several predictions the last counts.
"""

import json
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json, read_json_lines
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
from .vqa_text import flatten, normalise_m4c, normalise_vqa_v2, strip_punctuation


LABELS = ("annotations.json", "v2_mscoco_val2014_annotations.json")
VQA_2016, ALWAYS = "vqa_2016", "always_normalise"
BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    column="VQAv2",
    dataset="lmms-lab-encoder/VQAv2",
    split="validation",
    fields={
        "question_id": "number",
        "image_id": "number of the COCO image",
        "question": "text",
        "question_type": "its first words, one of 65",
        "answer_type": "yes/no, number or other",
        "multiple_choice_answer": "the most frequent answer, optional",
        "answers": "ten of {answer, answer_confidence, answer_id}",
        "image": "image",
    },
    questions=214354,
    rules=(OFFICIAL, VQA_2016, ALWAYS),
    submission="submission.json",
    note="Validation, not comparable to the paper's test-dev; submit to EvalAI challenge 830 for that.",
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
    What an answer is taken for, where it is normalised.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.

    Returns:
        `str`: Its normal form.
    """
    return normalise_vqa_v2(response)


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`, in the order of the benchmark.
        rule (`str`, defaults to `"official"`): Scoring rule.

    Returns:
        `ScoreResult`: `overall` in percent, `perQuestionType` and `perAnswerType`.

    Raises:
        `ValueError`: The rule is unknown, there are no items, or one has no references.
    """
    BENCHMARK.check_rule(rule)
    counts = count_answers(items, normalise_vqa_v2)
    accuracies = [_accuracy(item, rule) for item in items]
    return ScoreResult(
        benchmark=BENCHMARK.name,
        headline={"overall": percent(accuracies)},
        breakdown={
            "perQuestionType": percent_by((item["question_type"] for item in items), accuracies),
            "perAnswerType": percent_by((item["answer_type"] for item in items), accuracies),
        },
        counts=counts,
        rule=rule,
        scores=[round(100 * accuracy, PERCENT_DIGITS) for accuracy in accuracies],
    )


def _accuracy(item: Item, rule: str) -> float:
    references = references_of(item, f"Question {item['question_id']}")
    response = item["response"]
    if response is None:
        return 0.0
    answer, texts = _compared(response, [reference["answer"] for reference in references], rule)
    if answer not in texts:
        return 0.0
    if len({reference.get("answer_id") for reference in references}) == len(references):
        return answer_accuracy(answer, texts)
    # The official code leaves out every reference that equals the one it is at, not that one: they have no ids here.
    compared = [reference | {"answer": text} for reference, text in zip(references, texts, strict=True)]
    shares = []
    for own in compared:
        agreeing = sum(other != own and other["answer"] == answer for other in compared)
        shares.append(min(1, float(agreeing) / 3))
    return float(sum(shares)) / len(shares)


def _compared(response: str, raw: list[str], rule: str) -> tuple[str, list[str]]:
    """Prediction and references in the form in which a rule compares them."""
    if rule == VQA_2016:
        texts = [strip_punctuation(text) for text in raw] if len(set(raw)) > 1 else raw
        return normalise_vqa_v2(response), texts
    flat = [flatten(text) for text in raw]
    if rule == OFFICIAL and len(set(flat)) == 1:
        return flatten(response), flat
    return normalise_vqa_v2(response), [normalise_vqa_v2(text) for text in flat]


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
    labels = find_references(predictions, references, *LABELS)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a JSON list of question_id and answer, got {type(rows).__name__}.")
    given = last_answers(rows, path, "question_id", "answer", int)
    content = read_json(labels)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(
            f"{labels} must be a JSON object with a list `annotations`. Give the server's annotations file."
        )
    items = []
    for number, row in enumerate(content["annotations"], start=1):
        for name in ("question_id", "question_type", "answer_type"):
            field_of(row, name, labels, number)
        reference_texts(row, labels, number)
        items.append(answered(row, given.get(row["question_id"]), "answer"))
    refuse_unknown(given, (item["question_id"] for item in items), path, labels)
    return items


def write_submission(items: list[Item], path: Path, questions: Path | None = None) -> None:
    """
    Write what EvalAI takes: answers in M4C's normal form, as LLaVA's script for the upload has them.

    Args:
        items (`list[dict]`): With `question_id` and `response`.
        path (`Path`): The file.
        questions (`Path`, *optional*): The server's questions file, or LLaVA's list of them as JSON lines: all of its
            questions are written in its order, with an empty answer where there is none. The server wants all
            447,793 of test2015. Without it, the questions of `items`.

    Raises:
        `ValueError`: An answer belongs to none of the questions, or the questions file is damaged.
    """
    answers = {int(item["question_id"]): item["response"] for item in items}
    ids = list(answers)
    if questions is not None:
        ids = _question_ids(questions)
        refuse_unknown(answers, ids, Path("the items"), questions)
    rows = [{"question_id": number, "answer": normalise_m4c(answers.get(number) or "")} for number in ids]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _question_ids(path: Path) -> list[int]:
    if ".jsonl" in path.suffixes:
        rows: Any = list(read_json_lines(path))
    else:
        content = read_json(path)
        rows = content.get("questions") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a JSON object with a list `questions`.")
    return [int(field_of(row, "question_id", path, number)) for number, row in enumerate(rows, start=1)]
