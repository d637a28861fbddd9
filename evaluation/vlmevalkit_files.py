"""
The prediction files of VLMEvalKit: `<model>_<data set>.xlsx`, `.tsv` or `.json`, a row a question.

Columns are those of its data sets, which its scorers read by name, without the image and with `prediction`
(open-compass/VLMEvalKit@e8e78f05, `vlmeval/inference.py`, `vlmeval/smp/file.py`, `vlmeval/dataset/utils/`): `index`,
`question`, `hint`, options `A`, `B`, ..., `answer` (a letter where there are options, `Yes` or `No` in MME and POPE,
the list of answers in VQA), `category`, `l2-category`; `image_path` in MME, `gpt4_ans` in LLaVA-Bench. The index is
that of MMBench, and elsewhere the place of the row. A column `prompt`, which VLMEvalKit does not need, says what was
asked.

VLMEvalKit reads tables by pandas, which takes an answer `None` or `NA` for an empty cell. Here such words are answers,
and an empty cell is an empty one.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from .files import read_json
from .outcomes import write_whole
from .rows import Row, Rows
from .spreadsheets import LONGEST_CELL, blanked, write_sheet


DATASETS = {
    "llava_bench": "LLaVABench",
    "mme": "MME",
    "mmbench": "MMBench_DEV_EN",
    "mmbench_cn": "MMBench_DEV_CN",
    "seed": "SEEDBench_IMG",
    "mmvet": "MMVet",
    "qbench": "Q-Bench1_VAL",
    "scienceqa": "ScienceQA_TEST",
    "vqav2": "VQAv2_VAL",  # VLMEvalKit has no such data set; the layout is that of its other VQA ones
    "vizwiz": "VizWiz",
    "gqa": "GQA_TestDev_Balanced",
    "textvqa": "TextVQA_VAL",
    "pope": "POPE",
}
LETTERS = "ABCDE"
NAMES = {"L2-category": "l2-category", "gpt_answer": "gpt4_ans", "capability": "category", "correct_choice": "answer"}
NAMES |= {f"choice_{letter.lower()}": letter for letter in LETTERS}
NAMES |= {f"option{number}": letter for number, letter in enumerate(LETTERS)}
FIRST = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category")
LAST = ("prompt", "prediction")
NO_OPTION = "N/A"  # in Q-Bench
FORMATS = (".xlsx", ".tsv", ".json")


def write_table(path: Path, name: str, rows: Rows, predictions: list[dict[str, Any]]) -> None:
    """
    Write answers as VLMEvalKit has them.

    Args:
        path (`Path`): Ends in `.xlsx`, `.tsv` or `.json`.
        name (`str`): Name of the benchmark.
        rows (`Rows`): The questions.
        predictions (`list[dict]`): Our answers.

    Raises:
        `ValueError`: The name ends in something else, or a spreadsheet cannot hold a text.
    """
    table = []
    for one in predictions:
        cells = _cells(name, rows[one["index"]], one["index"])
        table.append({**cells, "prompt": one["prompt"], "prediction": one["raw"]})
    used = {column for cells in table for column in cells}
    columns = [column for column in FIRST if column in used]
    columns += sorted(used - {*FIRST, *LAST}) + list(LAST)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xlsx":
        write_sheet(path, columns, [[cells.get(column) for column in columns] for cells in table], _checked_cell)
    elif path.suffix == ".tsv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([cells.get(column) for column in columns] for cells in table)
    elif path.suffix == ".json":
        records = [{column: cells.get(column) for column in columns} for cells in table]
        write_whole(path, json.dumps(records, indent=4, ensure_ascii=False))
    else:
        raise ValueError(f"VLMEvalKit's predictions end in {', '.join(FORMATS)}, got {path.name}.")


def read_table(path: Path, rows: Rows) -> list[dict[str, Any]]:
    """
    Read answers that VLMEvalKit wrote, or that were written for it.

    Args:
        path (`Path`): The file.
        rows (`Rows`): The questions.

    Returns:
        `list[dict]`: `index` (the place of the row here), `prompt` (`None` where the file does not say), `raw`.

    Raises:
        `ValueError`: A row lacks a column, or is of another question than ours.
    """
    places = {str(row.get("index", place)): place for place, row in enumerate(rows.rows)}
    found = []
    for number, cells in enumerate(_rows(path), start=1):
        where = f"{path}, row {number}"
        for column in ("index", "prediction"):
            if column not in cells:
                raise ValueError(f"{where} has no column {column!r}; it has {', '.join(sorted(cells)) or 'none'}.")
        index = str(cells["index"])
        if index not in places:
            raise ValueError(
                f"{where}: no row of the data has the index {index!r}. Take the data of the same release."
            )
        place = places[index]
        ours = str(rows[place]["question"])
        if "question" in cells and _plain(cells["question"]) != _plain(ours):
            raise ValueError(
                f"{where}: the question is {cells['question']!r}, and that of index {index} is {ours!r}. "
                "Take the data of the same release."
            )
        prompt = cells.get("prompt")
        raw = "" if cells["prediction"] is None else str(cells["prediction"])
        found.append({"index": place, "prompt": prompt or None, "raw": raw})
    return found


def _cells(name: str, row: Row, place: int) -> dict[str, Any]:
    cells: dict[str, Any] = {"index": row.get("index", place)}
    for field, value in row.items():
        if field in ("index", "image", "has_image") or value is None:
            continue
        if field == "choices":
            cells |= dict(zip(LETTERS, map(str, value), strict=False))
        elif field == "answers":
            texts = [one["answer"] if isinstance(one, dict) else one for one in value]
            cells["answer"] = str(texts)  # VLMEvalKit takes the text of a list for the list
        elif not (field.startswith("option") and value == NO_OPTION):
            cells[NAMES.get(field, field)] = _cell(value)
    if name == "scienceqa":
        cells["answer"] = LETTERS[row["answer"]]
    if name in ("mme", "pope"):
        cells["answer"] = str(row["answer"]).capitalize()
    if name == "mme":
        cells["image_path"] = row["question_id"]  # the two questions of an image are brought together by it
    return cells


def _cell(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return str(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _checked_cell(value: str, number: int, _: Sequence[Any], column: str) -> str:
    if blanked(value) != value or "\r" in value or len(value) > LONGEST_CELL:
        raise ValueError(
            f"Row {number}, {column}: a spreadsheet takes no control characters and no more than "
            f"{LONGEST_CELL} characters. Write a .tsv or .json file, which VLMEvalKit reads as well."
        )
    return value


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".xlsx":
        from openpyxl import load_workbook

        try:
            lines: Iterator[Any] = load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True)
        except (BadZipFile, KeyError) as error:
            raise ValueError(f"{path} is no spreadsheet: {error}. Copy it again.") from error
    elif path.suffix == ".tsv":
        csv.field_size_limit(2**31 - 1)  # images in Base64
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = iter(list(csv.reader(stream, delimiter="\t")))
    elif path.suffix == ".json":
        records = read_json(path)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError(f"{path} must be a JSON list of objects, one a question.")
        yield from records
        return
    else:
        raise ValueError(f"VLMEvalKit's predictions end in {', '.join(FORMATS)}, got {path.name}.")
    columns = [str(column) for column in next(lines, ())]
    for number, line in enumerate(lines, start=1):
        if len(line) > len(columns):
            raise ValueError(f"{path}, row {number}, has {len(line)} cells, and there are {len(columns)} columns.")
        cells = [*line, *[None] * (len(columns) - len(line))]
        if any(cell is not None for cell in cells):
            yield dict(zip(columns, cells, strict=True))


def _plain(text: Any) -> str:
    return " ".join(str(text).split())
