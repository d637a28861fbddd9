"""
Answers brought to the questions that they belong to.

LLaVA's scorers put the lines of an answers file into a dictionary (haotian-liu/LLaVA@c121f043, `llava/eval/` and
`scripts/convert_seed_for_submission.py`): of several answers to one question the last counts, and a question without
one stays without. What is overwritten, and what answers no question at all, is counted or told.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .base import Item
from .files import field_of, find_file, read_json_lines


logger = logging.getLogger(__name__)
ANSWER_FILES = ("answers.jsonl", "predictions.jsonl")


@dataclass
class FoundAnswers:
    """
    Answers of a file, by question.

    Args:
        path (`Path`): The file.
        rows (`dict[Hashable, dict]`): The last one of each question.
        counts (`Counter`): How many there are of each question.
    """

    path: Path
    rows: dict[Hashable, dict[str, Any]] = field(default_factory=dict)
    counts: Counter[Hashable] = field(default_factory=Counter)

    def add(self, key: Hashable, row: dict[str, Any]) -> None:
        """
        Take an answer; it counts instead of an earlier one.

        Args:
            key (`Hashable`): Of the question.
            row (`dict`): The answer.
        """
        self.rows[key] = row
        self.counts[key] += 1

    def answer_of(self, key: Hashable, name: str = "text") -> dict[str, Any]:
        """
        Fields that an item gets from these answers.

        Args:
            key (`Hashable`): Of the question.
            name (`str`, defaults to `"text"`): Field of the answer's text.

        Returns:
            `dict`: `response`, which is `None` without an answer, and `predictions`, how many there are.
        """
        row = self.rows.get(key)
        return {"response": None if row is None else row[name], "predictions": self.counts[key]}

    def tell_strangers(self, known: Iterable[Hashable]) -> None:
        """
        Warn of answers to questions that there are not.

        Args:
            known (`Iterable[Hashable]`): Keys of all questions.
        """
        questions = set(known)
        strangers = [key for key in self.counts if key not in questions]
        if strangers:
            logger.warning(
                "%s: %d of %d answered questions are not in the references and do not count, first: %r.",
                self.path,
                len(strangers),
                len(self.counts),
                strangers[0],
            )


def read_answers(path: Path, name: str = "question_id") -> FoundAnswers:
    """
    Read LLaVA's answers file: a JSON object a line, with `question_id` and `text`.

    Args:
        path (`Path`): The file.
        name (`str`, defaults to `"question_id"`): Field with the key; numbers and texts are the same key.

    Returns:
        `FoundAnswers`: By the key as text.

    Raises:
        `ValueError`: A line lacks a field or has no text; the message names it.
    """
    found = FoundAnswers(path)
    for number, row in enumerate(read_json_lines(path), start=1):
        key = field_of(row, name, path, number)
        text_of(row, "text", path, number)
        found.add(str(key), row)
    return found


def find_references(predictions: Path, references: Path | None, *names: str) -> Path:
    """
    The file of references that is meant.

    Args:
        predictions (`Path`): File or folder of the predictions, beside which it is looked for if it is not named.
        references (`Path`, *optional*): The file, or a folder that holds it.
        names (`str`): Names that it may have in a folder, without `.gz`.

    Returns:
        `Path`: The file.

    Raises:
        `FileNotFoundError`: There is none; the message lists the names.
    """
    return find_file(references or (predictions if predictions.is_dir() else predictions.parent), *names)


def text_of(row: dict[str, Any], name: str, path: Path, number: int) -> str:
    """
    A field that a row must have, and that must be text.

    Args:
        row (`dict`): The row.
        name (`str`): The field.
        path (`Path`): File of the row, for the message.
        number (`int`): Number of the row from 1, for the message.

    Returns:
        `str`: Its value.

    Raises:
        `ValueError`: There is none, or it is something else.
    """
    value = field_of(row, name, path, number)
    if not isinstance(value, str):
        raise ValueError(
            f"{path}, row {number}: `{name}` must be text, got {type(value).__name__}. "
            "Leave the row out if there is no answer."
        )
    return value


def count_answers(items: list[Item], keys: list[Hashable], unparsed: int) -> dict[str, int]:
    """
    The counts that every scorer has.

    Args:
        items (`list[dict]`): Rows with `response`, and with `predictions` if a file may have had several.
        keys (`list[Hashable]`): Of each item's question.
        unparsed (`int`): Answers that the rule could not read.

    Returns:
        `dict[str, int]`: `questions`, `answered`, `missing`, `unparsed`, `duplicates` (answers that others replaced).
    """
    answers: Counter[Hashable] = Counter(key for key, item in zip(keys, items, strict=True) if is_answered(item))
    for key, item in zip(keys, items, strict=True):
        if "predictions" in item:
            answers[key] = item["predictions"]
    answered = sum(map(is_answered, items))
    counts = {"questions": len(items), "answered": answered, "missing": len(items) - answered, "unparsed": unparsed}
    return {**counts, "duplicates": sum(count - 1 for count in answers.values() if count > 1)}


def is_answered(item: Item) -> bool:
    """
    Whether a model answered a question.

    Args:
        item (`dict`): A row with `response`.

    Returns:
        `bool`: `True` also for an empty text.
    """
    return item.get("response") is not None
