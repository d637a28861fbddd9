"""Spreadsheets that servers and other harnesses take; of a text each caller says what may stand in a cell."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


LONGEST_CELL = 32767  # characters


def blanked(text: str) -> str:
    """
    A text as far as a spreadsheet takes it.

    Args:
        text (`str`): Any.

    Returns:
        `str`: With blanks in the place of control characters; its length is as it was.

    Raises:
        `ImportError`: openpyxl is not installed.
    """
    return _openpyxl().cell.cell.ILLEGAL_CHARACTERS_RE.sub(" ", text)


def write_sheet(
    path: Path,
    columns: Sequence[str],
    table: Sequence[Sequence[Any]],
    text_of: Callable[[str, int, Sequence[Any], str], str],
) -> None:
    """
    Write a table with its header.

    Args:
        path (`Path`): Ends in `.xlsx`.
        columns (`Sequence[str]`): Names.
        table (`Sequence[Sequence]`): Rows; numbers stay numbers.
        text_of (`Callable[[str, int, Sequence, str], str]`): What is written for a text, given its row's number (0 is
            the header), its row and its column; it may raise.

    Raises:
        `ImportError`: openpyxl is not installed.
    """
    book = _openpyxl().Workbook()
    sheet = book.active
    for number, row in enumerate([columns, *table]):
        for place, value in enumerate(row, start=1):
            if isinstance(value, str):
                text = text_of(value, number, row, columns[place - 1])
                sheet.cell(number + 1, place, text).data_type = "s"  # else a text with "=" is a formula
            else:
                sheet.cell(number + 1, place, value)
    book.save(path)


def _openpyxl() -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError("A spreadsheet needs openpyxl: `pip install openpyxl`, or write a .tsv file.") from error
    return openpyxl
