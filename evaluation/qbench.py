"""
Q-Bench, perception (A1): two to four options on how an image looks.

Rule of the scorer that ShareGPT4V's `qbench.sh` calls (public copy: TempleX98/MoVA@9c33cb4b,
`playground/data/eval/qbench/qbench_eval.py`): an answer is right if its first character is the letter of the right
option, or its first word or all of it is that option's text. That script stops at an empty answer; here it is wrong.
The answers file is one JSON object after the other without a line break between, `}{`, as the model's script leaves
it; lines, a list of such objects and a list of bare texts in the order of the questions are read too. Where the
questions are given as references, an answer is joined to its question by image and question, of several the last
counts, and a question without one is wrong. Without references every answer counts, and nothing else, as officially.

Items: `question`, `option0` to `option3` (`N/A` where there are fewer), `question_type`, `question_concern`,
`correct_choice` (a letter), `response`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from .base import OFFICIAL, Benchmark, Figures, Item, ScoreResult
from .files import field_of, find_file, read_json, read_text
from .join import FoundAnswers, count_answers, find_references, is_answered, text_of


BLANKS = re.compile(r"\s*")  # matches anywhere
LETTERS = "ABCD"
NO_OPTION = "N/A"
OPTIONS = ("option0", "option1", "option2", "option3")
ANSWER_FILES = ("answers.jsonl", "responses.json", "predictions.jsonl", "llvisionqa_dev_answers.jsonl")
BENCHMARK = Benchmark(
    name="qbench",
    title="Q-Bench",
    column="QBench",
    dataset="q-future/Q-Bench-HF",
    split="dev",
    fields={
        "question": "the question",
        **dict.fromkeys(OPTIONS, f"text of an option, `{NO_OPTION}` where there are fewer"),
        "question_type": "0 yes or no, 1 what, 2 how",
        "question_concern": "0 distortion, 1 other, 2 distortion in context, 3 other in context",
        "correct_choice": "letter of the right option",
        "image": "the image",
    },
    questions=1495,
    images="crop",
    max_new_tokens=1024,
    note="of the dev split, as in the paper; labels of the test split are with its authors",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What ShareGPT4V asks after the image.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `str`: The question and its options; it ends in a line break and asks for no letter.
    """
    options = [f"{letter}. {text}\n" for letter, text in zip(LETTERS, options_of(row), strict=False)]
    return f"{row['question']}\nChoose between one of the options as follows:\n{''.join(options)}"


def options_of(row: dict[str, Any]) -> list[str]:
    """
    Options of a question.

    Args:
        row (`dict`): A row of the benchmark.

    Returns:
        `list[str]`: Two to four texts.
    """
    texts = [row.get(name, NO_OPTION) for name in OPTIONS]
    return texts[: texts.index(NO_OPTION)] if NO_OPTION in texts else texts


def parse(response: str, row: dict[str, Any]) -> list[str]:
    """
    What an answer is taken for.

    Args:
        response (`str`): The answer.
        row (`dict`): The question.

    Returns:
        `list[str]`: Options that it stands for, by its first character, first word or all of it. There may be several
        ("All" begins with the letter of the first option), and the answer is right if the right one is among them.
    """
    options = options_of(row)
    place = LETTERS.find(response[0]) if response else -1
    taken = [options[place]] if 0 <= place < len(options) else []
    taken += [text for text in (response.split(" ")[0], response) if text in options]
    return list(dict.fromkeys(taken))


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    Score answers.

    Args:
        items (`list[dict]`): Rows with `response`.
        rule (`str`, defaults to `"official"`): The only one.

    Returns:
        `ScoreResult`: `accuracy`, 0 to 1, and `breakdown_correct_total`, right answers and questions of each type and
        concern.
    """
    BENCHMARK.check_rule(rule)
    taken = [parse(item["response"], item) if is_answered(item) else [] for item in items]
    hits = [float(_right(item) in texts) for item, texts in zip(items, taken, strict=True)]
    groups: Figures = defaultdict(lambda: [0, 0])
    for item, hit in zip(items, hits, strict=True):
        for name in (f"type={item['question_type']}", f"concern={item['question_concern']}"):
            groups[name][0] += int(hit)
            groups[name][1] += 1
    order = sorted(groups, key=lambda name: (name.startswith("concern"), name))
    unparsed = sum(is_answered(item) and not texts for item, texts in zip(items, taken, strict=True))
    keys: list[Hashable] = [
        (item["image_source"], item["question"]) if item.get("image_source") else place
        for place, item in enumerate(items)
    ]
    counts = {**count_answers(items, keys, unparsed), "correct": int(sum(hits)), "total": len(items)}
    headline = {"accuracy": sum(hits) / len(hits) if hits else 0.0}
    breakdown = {"breakdown_correct_total": {name: groups[name] for name in order}}
    return ScoreResult(BENCHMARK.name, headline, breakdown, counts, rule, [*hits])


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read the model script's answers and the questions of the benchmark.

    Args:
        predictions (`Path`): Objects of the questions with `response`, glued, in lines or as a list; or a list of
            texts in the order of the questions; or a folder that holds such a file.
        references (`Path`, *optional*): `llvisionqa_dev.json`, or a folder that holds it; not needed if each answer
            repeats its whole question, as the model's script writes it, and else looked for beside the predictions.

    Returns:
        `list[dict]`: Items in the order of the questions.

    Raises:
        `FileNotFoundError`: A file is absent.
        `ValueError`: A row is damaged, or bare texts are not one for each question.
    """
    path = find_file(predictions, *ANSWER_FILES)
    answers = _read_values(path)
    if references is None and all(isinstance(answer, dict) for answer in answers):
        return [_answered(row, path, number) for number, row in enumerate(answers, start=1)]
    source = find_references(predictions, references, "llvisionqa_dev.json")
    questions = read_json(source)
    if not isinstance(questions, list):
        raise ValueError(f"{source} must be a list of questions.")
    if answers and all(isinstance(answer, str) for answer in answers):
        if len(answers) != len(questions):
            raise ValueError(
                f"{path} has {len(answers)} bare answers for {len(questions)} questions of {source}: without the "
                "questions they can be joined only if there is one for each."
            )
        pairs = zip(enumerate(questions, start=1), answers, strict=True)
        return [{**_item(row, source, number), "response": answer} for (number, row), answer in pairs]
    return _joined(questions, source, answers, path)


def _read_values(path: Path) -> list[Any]:
    """JSON values one after the other; a single list is taken for its elements."""
    text, decoder, values, place = read_text(path).rstrip(), json.JSONDecoder(), [], 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, BLANKS.match(text, place).end())  # type: ignore[union-attr]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}, is no JSON: {error.msg}.") from error
        values.append(value)
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _joined(questions: list[Any], source: Path, answers: list[Any], path: Path) -> list[Item]:
    found = FoundAnswers(path)
    for number, row in enumerate(answers, start=1):
        text_of(row, "response", path, number)
        found.add(_key(row, path, number), row)
    items: dict[Hashable, Item] = {}
    for number, row in enumerate(questions, start=1):
        key = _key(row, source, number)
        if key in items:
            raise ValueError(f"{source}, row {number}: the question {row['question']!r} of {key[0]} is there twice.")
        items[key] = {**_item(row, source, number), **found.answer_of(key, "response")}
    found.tell_strangers(items)
    return list(items.values())


def _answered(row: dict[str, Any], path: Path, number: int) -> Item:
    return {**_item(row, path, number), "response": text_of(row, "response", path, number)}


def _key(row: dict[str, Any], path: Path, number: int) -> tuple[str, str]:
    return str(field_of(row, "img_path", path, number)), str(field_of(row, "question", path, number))


def _item(row: dict[str, Any], source: Path, number: int) -> Item:
    candidates, right = field_of(row, "candidates", source, number), row.get("correct_ans")
    if not isinstance(candidates, list) or right not in candidates or not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(
            f"{source}, row {number}: `correct_ans` must be one of two to four `candidates`, got {right!r}. "
            "The test split has none: send its answers to the benchmark's authors."
        )
    padded = [*candidates, *[NO_OPTION] * (len(LETTERS) - len(candidates))]
    item = {"question": field_of(row, "question", source, number), **dict(zip(OPTIONS, padded, strict=True))}
    item |= {
        "question_type": field_of(row, "type", source, number),
        "correct_choice": LETTERS[candidates.index(right)],
    }
    return item | {"question_concern": field_of(row, "concern", source, number), "image_source": row.get("img_path")}


def _right(item: Item) -> str:
    return item[OPTIONS[LETTERS.index(item["correct_choice"])]]
