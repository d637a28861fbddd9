"""The cache of tokenised rows: read when nothing changed, not read when anything did, and free of images."""

from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from tests.trainers.rows import ROWS, by_processor, dataset_of, in_full, processor_of, row
from trainers.tokenised import tokenise_rows


LONG = row("long", ("What is it?", "A cat."), ("And?", "Two dogs."), ("More?", "A boat."), images=2, source="sam")
MAX_LENGTH = 80  # a turn of the last row does not fit
PROCESSOR = processor_of()


def on_disk(folder: Path, *rows: dict) -> Dataset:
    dataset_of(*rows).save_to_disk(folder)
    return load_from_disk(folder)


def cached(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cache-*.arrow")}


def test_images_are_not_copied(tmp_path):
    picture = {"bytes": bytes(1_000_000), "path": None}
    tokenise_rows(on_disk(tmp_path, {**ROWS[0], "images": [picture]}), PROCESSOR, None)
    assert [path.stat().st_size < 10_000 for path in tmp_path.glob("cache-*.arrow")] == [True]


def test_it_is_read_when_nothing_changed(tmp_path):
    first, report = tokenise_rows(on_disk(tmp_path, *ROWS, LONG), PROCESSOR, MAX_LENGTH, on_too_long="drop_turns")
    before = cached(tmp_path)
    processor = processor_of()
    processor.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)  # the tokenizer remembers this
    second, again = tokenise_rows(load_from_disk(tmp_path), processor, MAX_LENGTH, on_too_long="drop_turns")
    assert len(before) == 1 and cached(tmp_path) == before
    assert list(first) == list(second)
    assert again == report and report.turns_dropped["sam"] == 1


def test_another_limit_that_drops_nothing_is_no_change(tmp_path):
    dataset = on_disk(tmp_path, *ROWS)
    for max_length in (None, 500, 600):
        tokenise_rows(dataset, PROCESSOR, max_length)
    assert len(cached(tmp_path)) == 1


def with_another_word():
    processor = processor_of()
    processor.tokenizer.add_tokens(["cat"])
    return processor


def with_another_beginning():
    processor = processor_of()
    processor.tokenizer.bos_token = "</s>"
    return processor


@pytest.mark.parametrize(
    ("change", "max_length"),
    [
        (lambda: processor_of("plain"), MAX_LENGTH),
        (with_another_word, MAX_LENGTH),
        (with_another_beginning, MAX_LENGTH),
        (lambda: processor_of(image_size=56), MAX_LENGTH),
        (processor_of, 95),
        (processor_of, None),
    ],
    ids=["template", "vocabulary", "special token", "image size", "max_length", "on_too_long"],
)
def test_it_is_not_read_when_something_changed(tmp_path, change, max_length):
    dataset = on_disk(tmp_path, *ROWS, LONG)
    old, _ = tokenise_rows(dataset, PROCESSOR, MAX_LENGTH, on_too_long="drop_turns")
    processor = change()
    rows, report = tokenise_rows(dataset, processor, max_length, on_too_long="drop_turns")
    fresh, again = tokenise_rows(dataset_of(*ROWS, LONG), processor, max_length, on_too_long="drop_turns")
    assert len(cached(tmp_path)) == 2
    assert list(rows) == list(fresh) != list(old)
    assert report == again


def test_it_is_not_read_for_other_rows(tmp_path):
    dataset = on_disk(tmp_path, *ROWS)
    tokenise_rows(dataset, PROCESSOR, None)
    rows, _ = tokenise_rows(dataset.select(range(1, 3)), PROCESSOR, None)
    assert [in_full(PROCESSOR, tokens) for tokens in rows] == [by_processor(PROCESSOR, sample) for sample in ROWS[1:3]]
    assert len(cached(tmp_path)) == 2
