"""
POPE: is an object in the image, by how the absent ones were drawn.

Rule of haotian-liu/LLaVA@c121f043, `llava/eval/eval_pope.py`, after AoiDragon/POPE@3df3ba1b: the text before the first
point, without commas, is split at blanks, and one of the words `No`, `not`, `no` makes it a no. Everything else is a
yes, also an empty answer. A label that is not `no` is a yes. LLaVA's figure is the mean of the categories' F1.

That script joins answers and labels of a category by their order. Here answers are put into the order of the questions
by id first, which is the same for a complete file in order and right for a shuffled one. A question without an answer
is left out of the figures, as there: `samples` and `missing` tell. Of several answers to one question the last counts.
A ratio of nothing, where that script divides by zero, is 0.

Items: `question_id`, `category`, `question`, `answer` (`yes` or `no`), `image_source`, `response`.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from .base import OFFICIAL, SHORT_ANSWER, Benchmark, Figures, Item, ScoreResult
from .files import field_of, find_file, read_json_lines
from .join import ANSWER_FILES, count_answers, find_references, is_answered, read_answers, text_of


CATEGORIES = ("adversarial", "popular", "random")
NO_WORDS = {"No", "not", "no"}
QUESTION_FILES = ("questions.jsonl", "llava_pope_test.jsonl")
BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    column=None,
    dataset="lmms-lab-encoder/POPE",
    split="test",
    fields={
        "question_id": "number of the question",
        "question": "the question",
        "answer": "`yes` or `no`",
        "category": "`adversarial`, `popular` or `random`",
        "image": "the image",
    },
    questions=9000,
    note="LLaVA's figures are of 8910 questions, 2910 of them random",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What LLaVA asks after the image.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `str`: The question and the request for a short answer.
    """
    return row["question"] + SHORT_ANSWER


def parse(response: str, row: dict[str, Any] | None = None) -> str:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`, *optional*): Not needed.

    Returns:
        `str`: `no`, or else `yes`.
    """
    words = response.split(".")[0].replace(",", "").split(" ")
    return "yes" if NO_WORDS.isdisjoint(words) else "no"


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`.
        rule (`str`, defaults to `"official"`): The only one.

    Returns:
        `ScoreResult`: `f1_score`, 0 to 1, the mean over `categories`, which have counts and five figures each.
    """
    BENCHMARK.check_rule(rule)
    outcomes: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for item in items:
        category = outcomes[item["category"]]
        if is_answered(item):
            category[parse(item["response"]), "no" if item["answer"] == "no" else "yes"] += 1
    order = [name for name in CATEGORIES if name in outcomes]
    order += sorted(set(outcomes) - set(order))
    categories: Figures = {name: _figures(outcomes[name]) for name in order}
    headline = {"f1_score": _ratio(sum(figures["f1_score"] for figures in categories.values()), len(categories))}
    keys: list[Hashable] = [(item["category"], str(item["question_id"])) for item in items]
    return ScoreResult(BENCHMARK.name, headline, {"categories": categories}, count_answers(items, keys, 0), rule)


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read LLaVA's answers and the questions and labels of the benchmark.

    Args:
        predictions (`Path`): JSON lines of `question_id` and `text`, or a folder that holds them.
        references (`Path`, *optional*): Folder of LLaVA's `questions.jsonl` (or `llava_pope_test.jsonl`) with the
            labels `coco_pope_<category>.jsonl` (or `.json`) beside it or in its folder `coco`; the folder of the
            predictions by default.

    Returns:
        `list[dict]`: Items in the order of the questions.

    Raises:
        `FileNotFoundError`: A file is absent.
        `ValueError`: A row is damaged, or labels are not of the questions.
    """
    source = find_references(predictions, references, *QUESTION_FILES)
    answers = read_answers(find_file(predictions, *ANSWER_FILES))
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows = list(read_json_lines(source))
    for number, row in enumerate(rows, start=1):
        field_of(row, "question_id", source, number)
        for name in ("image", "text", "category"):
            text_of(row, name, source, number)
        by_category[row["category"]].append(row)
    labels = {name: _labels(source.parent, name, questions) for name, questions in by_category.items()}
    items = []
    for row in rows:
        item = {"question_id": row["question_id"], "category": row["category"], "question": _bare(row["text"])}
        item |= {"answer": next(labels[row["category"]]), "image_source": row["image"]}
        items.append({**item, **answers.answer_of(str(row["question_id"]))})
    answers.tell_strangers(str(item["question_id"]) for item in items)
    return items


def _labels(folder: Path, category: str, questions: list[dict[str, Any]]) -> Iterator[str]:
    """Labels of a category in the order of its questions: by image and text if they have them, else by order."""
    names = [f"coco_pope_{category}.jsonl", f"coco_pope_{category}.json"]
    path = find_file(folder, *names, *(f"coco/{name}" for name in names))
    rows = list(read_json_lines(path))
    values = [field_of(row, "label", path, number) for number, row in enumerate(rows, start=1)]
    by_key = {(str(row.get("image")), str(row.get("text"))): value for row, value in zip(rows, values, strict=True)}
    keys = [(row["image"], _bare(row["text"])) for row in questions]
    if len(by_key) == len(rows) and all(key in by_key for key in keys):
        return iter([by_key[key] for key in keys])
    if len(values) != len(questions):
        raise ValueError(
            f"{path} has {len(values)} labels for {len(questions)} questions of {category}, and they cannot be joined "
            "by image and text. Take labels and questions of one release."
        )
    return iter(values)


def _bare(text: str) -> str:
    return text.removesuffix(SHORT_ANSWER)


def _figures(outcomes: Counter[tuple[str, str]]) -> Figures:
    samples = sum(outcomes.values())
    true_yes, false_yes = outcomes["yes", "yes"], outcomes["yes", "no"]
    true_no, false_no = outcomes["no", "no"], outcomes["no", "yes"]
    precision, recall = _ratio(true_yes, true_yes + false_yes), _ratio(true_yes, true_yes + false_no)
    return {
        "samples": samples,
        "TP": true_yes,
        "FP": false_yes,
        "TN": true_no,
        "FN": false_no,
        "accuracy": _ratio(true_yes + true_no, samples),
        "precision": precision,
        "recall": recall,
        "f1_score": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(true_yes + false_yes, samples),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
