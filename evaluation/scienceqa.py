"""
ScienceQA: two to five choices, with and without an image.

Rule of haotian-liu/LLaVA@c121f043, `llava/eval/eval_science_qa.py`: an answer is read if it is one of the letters A to
E, begins with a letter, a point and a blank, or says `The answer is X.` just once, whatever the character in the
place of the point. All else is `FAILED` and wrong, and so is a letter beyond the choices. A question without a
prediction is wrong. Of several predictions the last counts.

`img_accuracy` is of the rows whose recorded prompt has `<image>` in it; a question without a prediction has no prompt
and is left out of it, as officially (`img_missing` counts those). Where no prompt was recorded, the question's own
image decides.

Items: `question`, `choices`, `answer` (an index), `hint`, `has_image` (or `image`), `response`; from files also
`question_id` and `recorded_prompt`.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from .base import OFFICIAL, OPTION_LETTER, Benchmark, Item, ScoreResult
from .files import find_file, read_json
from .join import ANSWER_FILES, FoundAnswers, count_answers, find_references, is_answered, read_answers


OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"
JSON_NAMES = {list: "array", int: "number"}
SAYS_ANSWER = re.compile(r"The answer is ([A-Z]).")
BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    column="SQA^I",
    dataset="lmms-lab-encoder/ScienceQA",
    config="ScienceQA-IMG",
    split="test",
    fields={
        "image": "the image",
        "question": "the question",
        "choices": "texts of two to five choices",
        "answer": "index of the right choice",
        "hint": "context, may be empty",
    },
    questions=2017,
    images="crop",
    max_new_tokens=1024,
    note="the paper's figure is `img_accuracy`; its script also runs the 2224 questions without an image",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What ShareGPT4V asks after the image, in the form CQM-A.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `str`: Context if there is any, question, choices, and the request for a letter.
    """
    context = f"Context: {row['hint']}\n" if row.get("hint") else ""
    choices = [f"\n{letter}. {text}" for letter, text in zip(OPTIONS, row["choices"], strict=False)]
    return f"{context}{row['question']}{''.join(choices)}".strip() + OPTION_LETTER


def parse(response: str, row: dict[str, Any]) -> dict[str, Any]:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): The question, whose `choices` bound the letters.

    Returns:
        `dict`: `answer`, a letter or `FAILED`, and `index`, -1 if that is none of the choices.
    """
    letter = _letter(response)
    index = OPTIONS.index(letter) if letter in OPTIONS[: len(row["choices"])] else -1
    return {"answer": letter, "index": index}


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`.
        rule (`str`, defaults to `"official"`): The only one.

    Returns:
        `ScoreResult`: `accuracy` and, where a row has an image, `img_accuracy`, in percent with two decimals.
    """
    BENCHMARK.check_rule(rule)
    indices = [parse(item["response"], item)["index"] if is_answered(item) else -1 for item in items]
    hits = [float(index == item["answer"]) for index, item in zip(indices, items, strict=True)]
    is_image = [_shows_image(item) for item in items]
    image_hits = [hit for hit, shown in zip(hits, is_image, strict=True) if shown]
    headline, breakdown = {"accuracy": _percent(hits)}, {"acc_full": sum(hits) / len(hits) * 100 if hits else 0.0}
    if image_hits:
        headline["img_accuracy"] = _percent(image_hits)
    unparsed = sum(index == -1 and is_answered(item) for index, item in zip(indices, items, strict=True))
    keys: list[Hashable] = [item.get("question_id", place) for place, item in enumerate(items)]
    counts = count_answers(items, keys, unparsed)
    counts |= {"total": len(items), "correct": int(sum(hits))}
    counts |= {"img_total": len(image_hits), "img_correct": int(sum(image_hits))}
    counts["img_missing"] = sum(_has_image(item) and not is_answered(item) for item in items)
    return ScoreResult(BENCHMARK.name, headline, breakdown, counts, rule, [100 * hit for hit in hits])


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read LLaVA's answers and the questions of the benchmark.

    Args:
        predictions (`Path`): JSON lines of `question_id`, `prompt` and `text`, or a folder that holds them.
        references (`Path`, *optional*): Folder of `problems.json` and `pid_splits.json`, or the first of them; the
            folder of the predictions by default.

    Returns:
        `list[dict]`: Items of the split `test` in its order.

    Raises:
        `FileNotFoundError`: A file is absent.
        `ValueError`: A row is damaged; the message names it.
    """
    source = find_references(predictions, references, "problems.json", "problems_test.json")
    splits = find_file(source.parent, "pid_splits.json", "pid_splits_test.json")
    problems, listed = read_json(source), read_json(splits)
    if not isinstance(problems, dict) or not isinstance(listed, dict) or not isinstance(listed.get("test"), list):
        raise ValueError(f"{source} must be an object of problems by id, and {splits} one with the list `test`.")
    answers = read_answers(find_file(predictions, *ANSWER_FILES))
    items = [_item(str(key), problems, source, answers) for key in listed["test"]]
    answers.tell_strangers(str(key) for key in listed["test"])
    return items


def _item(key: str, problems: dict[str, Any], source: Path, answers: FoundAnswers) -> Item:
    if key not in problems:
        raise ValueError(f"{source} has no problem {key!r}, which the split `test` lists.")
    row = problems[key]
    for name, kind in (("choices", list), ("answer", int)):
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise ValueError(f"{source}: problem {key!r} must have {name!r}, a JSON {JSON_NAMES[kind]}.")
    shown = row["has_image"] if "has_image" in row else bool(row.get("image"))
    item = {**row, "question_id": key, "has_image": shown, **answers.answer_of(key)}
    recorded = answers.rows.get(key, {}).get("prompt")
    return {**item, "recorded_prompt": recorded} if isinstance(recorded, str) else item


def _letter(response: str) -> str:
    if response in OPTIONS:
        return response
    if response[:1] in OPTIONS and response[1:3] == ". ":
        return response[0]
    said = SAYS_ANSWER.findall(response)
    return said[0] if len(said) == 1 else FAILED


def _has_image(item: Item) -> bool:
    return item["has_image"] if "has_image" in item else item.get("image") is not None


def _shows_image(item: Item) -> bool:
    if not is_answered(item):
        return False
    return "<image>" in item["recorded_prompt"] if "recorded_prompt" in item else _has_image(item)


def _percent(hits: list[float]) -> float:
    return round(sum(hits) / len(hits) * 100, 2) if hits else 0.0
