"""
The accuracy of VQA: how many of ten people gave the answer, and what the four benchmarks that use it share.

An answer is held against each nine of the ten references in turn; it gets a third for each that agrees, at most one,
and the mean of the ten (https://visualqa.org/evaluation.html): 0, 0.3, 0.6, 0.9 and 1 for none to four and more.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .base import Item
from .files import field_of


PERCENT_DIGITS = 2


class Given(NamedTuple):
    """The answer to a question in a file of predictions: its row, and how many rows before it had the same id."""

    row: dict[str, Any]
    duplicates: int


@lru_cache(1 << 12)
def consensus(agrees: tuple[bool, ...]) -> float:
    """
    Accuracy of an answer by which references agree with it.

    Args:
        agrees (`tuple[bool, ...]`): Of each reference, in its order, in which the official tools add up.

    Returns:
        `float`: 0 to 1.
    """
    shares = [min(1, float(sum(agrees) - own) / 3) for own in agrees]
    return float(sum(shares)) / len(shares)


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """
    Accuracy of an answer, each reference taken out once by its place.

    Args:
        answer (`str`): In the form that it is compared in.
        references (`Sequence[str]`): What people answered, in that form.

    Returns:
        `float`: 0 to 1.
    """
    if answer not in references:
        return 0.0
    return consensus(tuple([reference == answer for reference in references]))


def percent(values: Sequence[float]) -> float:
    """
    A mean as the official tools print it.

    Args:
        values (`Sequence[float]`): Accuracies from 0 to 1, in the order in which they are added up.

    Returns:
        `float`: In percent with two decimals; 0 where there are none.
    """
    return round(100 * float(sum(values)) / len(values), PERCENT_DIGITS) if values else 0.0


def percent_of_mean(values: Sequence[float]) -> float:
    """
    A mean as the tools of TextVQA and GQA print it: first the mean, then a hundred times that.

    Args:
        values (`Sequence[float]`): Accuracies from 0 to 1, in the order in which they are added up.

    Returns:
        `float`: In percent with two decimals; 0 where there are none.
    """
    return round(100 * (float(sum(values)) / len(values)), PERCENT_DIGITS) if values else 0.0


def percent_by(
    names: Iterable[Any], values: Iterable[float], figure: Callable[[Sequence[float]], float] = percent
) -> dict[str, float]:
    """
    Means of groups.

    Args:
        names (`Iterable`): Group of each value.
        values (`Iterable[float]`): Accuracies from 0 to 1.
        figure (`Callable`, defaults to `percent`): What is made of a group.

    Returns:
        `dict[str, float]`: In percent, groups in the order in which they occur.
    """
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(str(name), []).append(value)
    return {name: figure(group) for name, group in groups.items()}


def references_of(item: Item, name: str) -> list[Any]:
    """
    The answers that people gave.

    Args:
        item (`dict`): With `answers`.
        name (`str`): What the item is called, for the message.

    Returns:
        `list`: One or more.

    Raises:
        `ValueError`: There are none.
    """
    if not (references := item.get("answers")):
        raise ValueError(
            f"{name} has no `answers`. Labels of a test split are hidden; write a submission for its server."
        )
    return list(references)


def count_answers(items: Sequence[Item], normalise: Callable[[str], str]) -> dict[str, int]:
    """
    How far figures can be trusted.

    Args:
        items (`Sequence[dict]`): With `response`, and `duplicates` where a file answers a question again.
        normalise (`Callable[[str], str]`): Brings an answer to its normal form.

    Returns:
        `dict[str, int]`: `questions`, `answered`, `missing`, `unparsed` (the normal form is empty), `duplicates`.

    Raises:
        `ValueError`: There are no items.
    """
    if not items:
        raise ValueError("There is nothing to score: no items.")
    answers = [item["response"] for item in items if item["response"] is not None]
    return {
        "questions": len(items),
        "answered": len(answers),
        "missing": len(items) - len(answers),
        "unparsed": sum(not normalise(answer) for answer in answers),
        "duplicates": sum(item.get("duplicates", 0) for item in items),
    }


def last_answers(rows: Iterable[Any], path: Path, key: str, answer: str, kind: type = str) -> dict[Any, Given]:
    """
    Predictions by the id of their question; the last one of a question counts, as in the official readers.

    Args:
        rows (`Iterable`): Of a file of predictions.
        path (`Path`): The file, for messages.
        key (`str`): Field of the id.
        answer (`str`): Field of the answer.
        kind (`type`, defaults to `str`): Of the id.

    Returns:
        `dict[Any, Given]`: By id.

    Raises:
        `ValueError`: A row lacks a field or has one of another type; the message names it.
    """
    found: dict[Any, Given] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}, must be a JSON object, got {type(row).__name__}.")
        for name, wanted in ((key, kind), (answer, str)):
            if type(value := field_of(row, name, path, number)) is not wanted:
                raise ValueError(f"{path}, row {number}: {name!r} must be a JSON {_json_name(wanted)}, got {value!r}.")
        earlier = found.get(row[key])
        found[row[key]] = Given(row, 0 if earlier is None else earlier.duplicates + 1)
    return found


def refuse_unknown(given: Iterable[Any], known: Iterable[Any], path: Path, references: Path) -> None:
    """
    Refuse predictions of questions that are not there, as the official readers do.

    Args:
        given (`Iterable`): Ids of predictions.
        known (`Iterable`): Ids of references.
        path (`Path`): File of the predictions.
        references (`Path`): File of the references.

    Raises:
        `ValueError`: There are some; the message names the first.
    """
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{path}: {len(unknown)} of its questions are not in {references}, first {unknown[:3]}. "
            "The two files are of different questions; give the references of the predictions' split."
        )


def answered(row: dict[str, Any], given: Given | None, answer: str) -> Item:
    """
    An item of a row and its prediction.

    Args:
        row (`dict`): The row.
        given (`Given`, *optional*): The prediction, if there is one.
        answer (`str`): Field of the answer.

    Returns:
        `dict`: With `response`, and `duplicates` if the prediction replaces others.
    """
    if given is None:
        return row | {"response": None}
    return row | {"response": given.row[answer]} | ({"duplicates": given.duplicates} if given.duplicates else {})


def reference_texts(row: Any, path: Path, number: int) -> list[str]:
    """
    Texts of the answers in a row of an annotations file.

    Args:
        row (`dict`): With `answers`, a list of objects with `answer`.
        path (`Path`): File of the row, for messages.
        number (`int`): Number of the row from 1, for messages.

    Returns:
        `list[str]`: In their order.

    Raises:
        `ValueError`: They have another layout.
    """
    answers = field_of(row, "answers", path, number)
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, dict) and isinstance(answer.get("answer"), str) for answer in answers)
    ):
        raise ValueError(
            f'{path}, row {number}: `answers` must be a list of {{"answer": text}} with at least one entry.'
        )
    return [answer["answer"] for answer in answers]


def _json_name(kind: type) -> str:
    return {"str": "string", "int": "integer"}[kind.__name__]
