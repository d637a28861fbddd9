"""What must not be published, as it hides in tables: Parquet by row group, CSV by row."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .leak_files import FILE_COLUMN_NAME, IMAGE_STARTS, Found, is_pickle, scan_image, scan_name
from .leak_files import PICKLE as PICKLE_KIND
from .leak_text import Match, TextRules


ROWS = 256  # read at a time: some 25 MB of photographs
JOINED = "\n\0\n"  # between texts that are looked through at once; no rule matches over it


def scan_parquet(path: Path, rules: TextRules) -> Iterator[Found]:
    """
    Look through texts, photographs and named files of a Parquet file.

    Args:
        path (`Path`): It.
        rules (`TextRules`): What is looked for.

    Yields:
        `tuple[str, Match]`: Place, as `row 3, image`, and finding.

    Raises:
        `ValueError`: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            notes = file.schema_arrow.metadata or {}
            for key, value in notes.items():
                for match in rules.scan(value.decode("utf-8", errors="replace")):
                    yield f"metadata {key.decode('utf-8', errors='replace')}", match
            for name in file.schema_arrow.names:
                first = 0
                for batch in file.iter_batches(ROWS, columns=[name], use_threads=False):
                    yield from _scan_column(batch.column(0), name, first, rules)
                    first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as Parquet, so it cannot be checked: {error}.") from error


def scan_csv(path: Path, rules: TextRules) -> Iterator[Found]:
    """
    Look through the fields of a CSV or TSV file that name files; its text is looked through as text.

    Args:
        path (`Path`): It.
        rules (`TextRules`): What is looked for.

    Yields:
        `tuple[str, Match]`: Place, as `row 3, image`, and finding.
    """
    csv.field_size_limit(1 << 27)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for number, row in enumerate(reader):
            for name, value in row.items():
                if isinstance(name, str) and isinstance(value, str) and FILE_COLUMN_NAME.match(name):
                    for match in scan_name(value):
                        yield f"row {number}, {name}", match


def _scan_column(column: Any, name: str, first: int, rules: TextRules) -> Iterator[Found]:
    """Look through one column of one batch, however its values are nested."""
    import pyarrow as pa

    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _scan_column(column.storage, name, first, rules)
    elif pa.types.is_dictionary(kind):
        yield from _scan_column(column.dictionary_decode(), name, first, rules)
    elif pa.types.is_struct(kind):
        embedded = kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0
        for index in range(kind.num_fields):
            field = kind.field(index).name
            # An embedded image keeps the name of its file, which is harmless unless it is a path.
            yield from _scan_column(column.field(index), name if embedded else f"{name}.{field}", first, rules)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        parents = column.value_parent_indices().to_pylist()
        values = column.flatten()
        for place, match in _scan_column(values, name, 0, rules):
            row = place.removeprefix("row ").split(",", 1)
            yield f"row {first + parents[int(row[0])]},{row[1]}", match
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from _scan_texts(column.to_pylist(), name, first, rules)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield from _scan_blobs(column, name, first, rules)


def _scan_texts(texts: list[str | None], name: str, first: int, rules: TextRules) -> Iterator[Found]:
    joined = JOINED.join(text or "" for text in texts)
    for match in rules.scan(joined):
        row = first + joined.count(JOINED, 0, match.start)
        yield f"row {row}, {name}", match
    # In an embedded image's struct the column is called as the image is.
    if any(FILE_COLUMN_NAME.match(part) for part in name.split(".")):
        for row, text in enumerate(texts):
            for match in scan_name(text or ""):
                yield f"row {first + row}, {name}", match


def _scan_blobs(column: Any, name: str, first: int, rules: TextRules) -> Iterator[Found]:
    for row, value in enumerate(column):
        if not value.is_valid:
            continue
        data = value.as_py()
        place = f"row {first + row}, {name}"
        if data.startswith(IMAGE_STARTS):
            for _, match in scan_image(data, name):
                yield place, match
        elif is_pickle(data[:4096]):
            yield place, Match(PICKLE_KIND, name, 0, "its bytes are a pickle: loading it can run code")
        for match in rules.scan_exact(data):
            yield place, match
