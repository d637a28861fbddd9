"""
MMBench and MMBench-CN: multiple choice, each question asked with its options in every rotation (CircularEval).

Sources: the paper (https://huggingface.co/papers/2307.06281), open-compass/VLMEvalKit@e8e78f05
(`vlmeval/dataset/utils/multiple_choice.py`) for scoring, haotian-liu/LLaVA@c121f043
(`llava/eval/model_vqa_mmbench.py`, `scripts/convert_mmbench_for_submission.py`) for prompts and submissions.

Items have `index`, `question`, `hint`, `A` to `D`, `answer`, `category`, `l2-category` (the Hub's copies spell it
`L2-category`), `response`, and `judge_choice` where a judge read an answer that the rules could not. Rows with the
same `index` modulo a million are rotations of one question; it is right if all of them are. A group counts only if
its original row, whose `index` is below a million, is there; rotations that are not there are not missed: both as
VLMEvalKit has it. A row without a response is a miss. Of answers in a file of their own the last one to a row counts,
as in LLaVA's script; rows that are twice in a file of rows must all be right, and an original counts as often as it
is there, as in VLMEvalKit.

An answer that no rule reads is a miss, unless a judge read it. VLMEvalKit would choose an option at random after three
unreadable replies of its judge; here that is a miss too.
"""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .base import OFFICIAL, OPTION_LETTER, Benchmark, Item, ScoreResult
from .files import field_of, find_file, read_json_lines
from .mmbench_choice import RULES
from .spreadsheets import LONGEST_CELL, blanked, write_sheet


logger = logging.getLogger(__name__)

LETTERS = "ABCD"
ROTATION = 1_000_000
OPTION_LETTER_CN = "\n请直接回答选项字母。"  # haotian-liu/LLaVA@c121f043, llava/eval/model_vqa_mmbench.py
FILES = ("predictions.jsonl", "mmbench.jsonl", "mmbench_cn.jsonl", "answers.jsonl", "rows.jsonl")
TABLES = ("mmbench_dev_20230712.tsv", "mmbench_dev_cn_20231003.tsv", "mmbench_dev_en_20231003.tsv", "mmbench.tsv")
SUBMITTED = ("index", "question", *LETTERS, "prediction")
FIELDS = {
    "index": "whole number; below a million for an original, and a rotation of it every million",
    "question": "text",
    "hint": "optional: what to read first",
    "A": "first option",
    "B": "second option",
    "C": "optional: third option",
    "D": "optional: fourth option",
    "answer": "letter; no such column where labels are hidden",
    "category": "optional: one of 20 abilities",
    "L2-category": "optional: one of 6 groups of abilities",
    "image": "image",
}
BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    column="MMB",
    dataset="lmms-lab/MMBench_EN",
    split="dev",
    fields=FIELDS,
    questions=4377,
    max_new_tokens=1024,
    rules=tuple(RULES),
    submission="submission.xlsx",
    note="The paper's figure is of mmbench_dev_20230712, 1176 questions in 4377 rows, scored by the server.",
)
BENCHMARK_CN = Benchmark(
    name="mmbench_cn",
    title="MMBench-CN",
    column="MMB^CN",
    dataset="lmms-lab-encoder/MMBench",
    config="cn",
    split="dev",
    fields=FIELDS,
    questions=4329,
    max_new_tokens=1024,
    rules=tuple(RULES),
    note="The paper's figure is of mmbench_dev_cn_20231003, 1164 questions in 4329 rows, scored by the server.",
)


def prompt(row: dict[str, Any]) -> str:
    """
    What is asked about an image.

    Args:
        row (`dict`): Question, hint and options.

    Returns:
        `str`: The text after the image.
    """
    return _asked(row) + OPTION_LETTER


def prompt_cn(row: dict[str, Any]) -> str:
    """
    What is asked about an image of MMBench-CN.

    Args:
        row (`dict`): Question, hint and options.

    Returns:
        `str`: The text after the image.
    """
    return _asked(row) + OPTION_LETTER_CN


def options(row: dict[str, Any]) -> dict[str, str]:
    """
    Options of a question.

    Args:
        row (`dict`): The row.

    Returns:
        `dict[str, str]`: Text by letter; they end with the first that is empty.
    """
    found = {}
    for letter in LETTERS:
        if _is_empty(row.get(letter)):
            break
        found[letter] = str(row[letter])
    return found


def parse(response: str, row: dict[str, Any], rule: str = OFFICIAL) -> str | None:
    """
    The option that an answer chooses.

    Args:
        response (`str`): The answer.
        row (`dict`): Its question.
        rule (`str`, defaults to `"official"`): Name of the rule.

    Returns:
        `str`, *optional*: A letter, `Z` or `E` for none of them, `None` where the rule finds none.
    """
    return RULES[rule](response, options(row))


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    CircularEval.

    Args:
        items (`list[dict]`): Rows with their responses, in any order.
        rule (`str`, defaults to `"official"`): How choices are read from answers.

    Returns:
        `ScoreResult`: `Overall`, a share from 0 to 1 as VLMEvalKit writes it; `category` and `l2-category` over the
        originals; each original scores 0 or 1, a rotation by itself nothing.

    Raises:
        `ValueError`: The rule is unknown, or a row has no `answer`, so that only the server can score it.
    """
    BENCHMARK.check_rule(rule)
    read = [_read(item, rule) for item in items]
    right = [_chosen(choice, item) == _answer(item) for choice, item in zip(read, items, strict=True)]
    groups = _groups(items)
    scores: list[float | None] = [None] * len(items)
    for group, places in groups.items():
        for place in places:
            if int(items[place]["index"]) == group:
                scores[place] = float(all(right[member] for member in places))
    originals = [(item, hit) for item, hit in zip(items, scores, strict=True) if hit is not None]
    breakdown: dict[str, Any] = {}
    for name in ("category", "l2-category", "split"):
        by_name = defaultdict(list)
        for item, hit in originals:
            if (value := _value(item, name)) is not None:
                by_name[str(value)].append(hit)
        if by_name:
            breakdown[name] = {value: fmean(hits) for value, hits in sorted(by_name.items())}
    overall = fmean(hit for _, hit in originals) if originals else None
    counts = _counts(items, read, groups)
    counts |= {"groups": len(originals), "leftovers": len(leftovers(items, rule))}
    return ScoreResult(BENCHMARK.name, {"Overall": overall}, breakdown, counts, rule, scores)


def leftovers(items: list[Item], rule: str = OFFICIAL) -> list[int]:
    """
    Which answers a judge should read: those that the rule cannot, in groups that are not lost already.

    Args:
        items (`list[dict]`): Rows with their responses.
        rule (`str`, defaults to `"official"`): How choices are read from answers.

    Returns:
        `list[int]`: Places in `items` that have no `judge_choice` yet.
    """
    read = [_read(item, rule) for item in items]
    found = []
    for places in _groups(items).values():
        unread = [place for place in places if read[place] is None]
        others = (place for place in places if read[place] is not None)
        lost = any(items[place].get("response") is None for place in unread)
        if unread and not lost and all(read[place] == _answer(items[place]) for place in others):
            found += [place for place in unread if items[place].get("judge_choice") is None]
    return sorted(found)


def read_items(predictions: Path, references: Path | None = None) -> list[Item]:
    """
    Read answers.

    Args:
        predictions (`Path`): Lines of JSON, or a table with tabs, one row each: `index` (or `question_id`),
            `prediction` (or `text`), and without references also `question`, `A` to `D`, `answer`.
        references (`Path`, *optional*): The benchmark's own table, or lines of JSON.

    Returns:
        `list[dict]`: One for each row of the references, else of the predictions.

    Raises:
        `ValueError`: A row lacks a field; the message names it.
    """
    path = find_file(predictions, *FILES, *TABLES)
    rows = [_item(row, path, number) for number, row in enumerate(_rows(path), start=1)]
    if references is None:
        return rows
    table = find_file(references, *TABLES, *FILES)
    items = [_item(row, table, number) for number, row in enumerate(_rows(table), start=1)]
    answers = {row["index"]: row["response"] for row in rows}
    copies = Counter(row["index"] for row in rows)
    known = {item["index"] for item in items}
    if extra := [index for index in answers if index not in known]:
        logger.warning(
            "%s: %d answers are to no row of %s and are left out, first: %s", path, len(extra), table, extra[0]
        )
    for item in items:
        item["response"] = answers.get(item["index"])
        item["predictions"] = copies[item["index"]]
    return items


def write_submission(items: list[Item], path: Path) -> None:
    """
    Write what the evaluation server takes.

    Args:
        items (`list[dict]`): Rows with their responses, in the benchmark's order.
        path (`Path`): Ends in `.xlsx`, which the server takes, or `.tsv`.

    Raises:
        `ValueError`: The name ends in something else.
        `ImportError`: A spreadsheet needs openpyxl.
    """
    columns = [*SUBMITTED, *(name for name in ("answer", "split") if any(_value(item, name) for item in items))]
    table = [[_cell(item, column) for column in columns] for item in items]
    if path.suffix == ".xlsx":
        write_sheet(path, columns, table, _cut_to_cell)
    elif path.suffix == ".tsv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([columns, *table])
    else:
        raise ValueError(f"A submission is an .xlsx or a .tsv file, got {path.name}.")


def _asked(row: dict[str, Any]) -> str:
    hint = [] if _is_empty(row.get("hint")) else [str(row["hint"])]
    return "\n".join([*hint, str(row["question"]), *(f"{letter}. {text}" for letter, text in options(row).items())])


def _is_empty(value: Any) -> bool:
    # `value != value` is NaN; tables read as text have it as a word. An empty cell is NaN to the official tools.
    return value is None or value != value or str(value).lower() in ("", "nan", "none")


def _value(item: Item, name: str) -> Any:
    value = item.get(name, item.get("L2-category") if name == "l2-category" else None)
    return None if _is_empty(value) else value


def _answer(item: Item) -> str:
    answer = _value(item, "answer")
    if answer is None:
        raise ValueError(f"Row {item['index']} has no `answer`: only the server can score it. Write a submission.")
    return str(answer)


def _read(item: Item, rule: str) -> str | None:
    response = item.get("response")
    return None if response is None else parse(str(response), item, rule)


def _chosen(read: str | None, item: Item) -> str | None:
    answered = item.get("response") is not None
    return item.get("judge_choice") if read is None and answered else read


def _groups(items: Sequence[Item]) -> dict[int, list[int]]:
    """Places of the rows of each group; those without an original are left out."""
    groups = defaultdict(list)
    for place, item in enumerate(items):
        groups[int(item["index"]) % ROTATION].append(place)
    originals = {int(item["index"]) for item in items}
    return {group: places for group, places in groups.items() if group in originals}


def _counts(items: Sequence[Item], read: Sequence[str | None], groups: dict[int, list[int]]) -> dict[str, int]:
    answered = [item.get("response") is not None for item in items]
    unread = [one and choice is None for one, choice in zip(answered, read, strict=True)]
    indices = {int(item["index"]) for item in items}
    short = (
        len({items[one]["index"] for one in places}) < len(options(items[places[0]])) for places in groups.values()
    )
    return {
        "questions": len(items),
        "answered": sum(answered),
        "missing": len(items) - sum(answered),
        "unparsed": sum(unread),
        "judged": sum(one and item.get("judge_choice") is not None for one, item in zip(unread, items, strict=True)),
        "duplicates": len(items) - len(indices) + sum(max(0, item.get("predictions", 1) - 1) for item in items),
        "incomplete_groups": sum(short),
        "without_original": len(items) - sum(map(len, groups.values())),
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.name.removesuffix(".gz").endswith((".tsv", ".csv")):
        import pandas

        separator = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
        # As the official tools read it: words such as `None` or `NA` are empty cells. Images are not needed.
        table = pandas.read_csv(path, sep=separator, dtype=str, usecols=lambda name: name != "image")
        for row in table.to_dict("records"):
            yield {str(name): None if _is_empty(value) else value for name, value in row.items()}
    else:
        yield from read_json_lines(path)


def _item(row: dict[str, Any], path: Path, number: int) -> Item:
    index = field_of(row, "question_id" if "index" not in row and "question_id" in row else "index", path, number)
    try:
        whole = int(index)
    except (TypeError, ValueError):
        raise ValueError(f"{path}, row {number}: `index` must be a whole number, got {index!r}.") from None
    names = ("response", "prediction", "text")
    response = next((row[name] for name in names if row.get(name) is not None and row[name] == row[name]), None)
    kept = {name: value for name, value in row.items() if name not in (*names, "image", "L2-category")}
    if (group := _value(row, "l2-category")) is not None:
        kept["l2-category"] = group
    return {**kept, "index": whole, "response": None if response is None else str(response)}


def _cell(item: Item, column: str) -> Any:
    if column == "index":
        return int(item["index"])
    value = item.get("response") if column == "prediction" else _value(item, column)
    return None if value is None else str(value)


def _cut_to_cell(value: str, _: int, row: Sequence[Any], column: str) -> str:
    text = blanked(value)
    if text != value or len(text) > LONGEST_CELL:
        logger.warning(
            "Row %s, %s: a spreadsheet takes no control characters and no more than %d "
            "characters; they are blanked, and cut off.",
            row[0],
            column,
            LONGEST_CELL,
        )
    return text[:LONGEST_CELL]
