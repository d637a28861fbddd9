"""Builders read released files directly: every row once, however it is shared out, and never an older file's."""

import logging
import os
import time
from pathlib import Path

import pytest

from dataset_scripts.build import RELEASED
from dataset_scripts.builders import ShareGPT4V
from dataset_scripts.coverage import CoverageError
from dataset_scripts.rows import RowSource
from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths
from tests.dataset_scripts.test_join import jpeg, name_of, put
from tests.dataset_scripts.test_rows import record, write_json
from tests.released_files import write_released


@pytest.fixture
def file(tmp_path) -> Path:
    return write_json(tmp_path / "rows.json", [record(number) for number in range(20)])


def builder(file: Path, config: str = "ShareGPT4V-PT", **options) -> ShareGPT4V:
    cache = str(file.parent / "cache")
    return ShareGPT4V(config_name=config, data_files={"train": str(file)}, cache_dir=cache, **options)


def prepared(file: Path, num_proc: int | None = None, **options) -> list[dict]:
    made = builder(file, **options)
    made.download_and_prepare(num_proc=num_proc)
    return list(made.as_dataset("train"))


def streamed(file: Path, **options) -> list[dict]:
    return list(builder(file, **options).as_streaming_dataset("train"))


def ids(rows: list[dict]) -> list[str]:
    return [row["id"] for row in rows]


def test_captions_with_paths_are_the_rows_of_the_file(file):
    expected = list(RowSource(file, origin=RELEASED[1].origin).captions())
    made = builder(file)
    made.download_and_prepare()
    data = made.as_dataset("train")
    assert list(data) == streamed(file) == expected
    assert data.features == with_paths(CAPTION_FEATURES) and data[0]["captioner"] == "Share-Captioner"


def test_conversations_are_read_by_the_configuration_of_the_mix(tmp_path):
    path = tmp_path / "mix.json"
    write_released(path, "mix", 30)
    assert streamed(path, config="ShareGPT4V-Mix665K") == list(RowSource(path).conversations())
    info = builder(path, "ShareGPT4V-Mix665K").info
    assert info.features == with_paths(CONVERSATION_FEATURES)


@pytest.mark.parametrize("resize", [None, 28])
def test_images_are_read_and_decoded(file, resize):
    put(file.parent / "data", {name_of(number): jpeg(number) for number in range(20)})
    rows = prepared(file, image_roots=[str(file.parent / "data")], resize=resize)
    assert ids(rows) == [f"n{number}" for number in range(20)]
    assert {row["image"].size[0] for row in rows} == {60 if resize is None else 28}
    stream = streamed(file, image_roots=[str(file.parent / "data")], resize=resize)
    assert [row["image"].tobytes() for row in stream] == [row["image"].tobytes() for row in rows]
    assert builder(file, image_roots=[str(file.parent / "data")]).info.features == CAPTION_FEATURES


def test_a_missing_image_stops_or_is_left_out_and_said(file, caplog):
    roots = [str(put(file.parent / "data", {name_of(number): jpeg() for number in range(1, 20)}))]
    with pytest.raises(CoverageError, match="Row 0: image coco/train2017/000000000000.jpg is missing"):
        streamed(file, image_roots=roots)
    with caplog.at_level(logging.WARNING):
        rows = streamed(file, image_roots=roots, on_missing="skip")
    assert ids(rows) == [f"n{number}" for number in range(1, 20)]
    assert "1 rows of" in caplog.text and "rows.json were left out" in caplog.text


@pytest.mark.parametrize(("shards", "records"), [(1, 20), (3, 20), (4, 0), (7, 5), (5, 1000), (20, 20)])
def test_parts_hold_every_row_exactly_once(file, shards, records):
    made = builder(file, config="ShareGPT4V", shards=shards, records=records)
    data = made.as_streaming_dataset("train")
    assert data.num_shards == shards
    parts = [ids(data.shard(shards, index)) for index in range(shards)]
    assert [name for part in parts for name in part] == [f"n{number}" for number in range(20)]
    if (shards, records) == (3, 20):
        assert list(map(len, parts)) == [6, 6, 8]


def test_two_processes_prepare_every_row_exactly_once(file):
    assert ids(prepared(file, num_proc=2, shards=4, records=20)) == [f"n{number}" for number in range(20)]


def test_two_files_of_a_split_are_both_read(file):
    second = write_json(file.parent / "more.json", [record(number) for number in range(20, 25)])
    files = {"train": [str(file), str(second)]}
    made = ShareGPT4V(config_name="ShareGPT4V", data_files=files, cache_dir=str(file.parent / "cache"), shards=2)
    assert ids(list(made.as_streaming_dataset("train"))) == [f"n{number}" for number in range(25)]


def test_a_file_that_has_changed_is_read_again(file):
    assert len(prepared(file)) == 20
    write_json(file, [record(number) for number in range(5)])
    os.utime(file, (time.time() + 5, time.time() + 5))
    assert len(prepared(file)) == 5


def test_other_options_do_not_meet_in_the_cache(file):
    put(file.parent / "data", {name_of(number): jpeg(number) for number in range(20)})
    paths, images = prepared(file), prepared(file, image_roots=[str(file.parent / "data")])
    assert isinstance(paths[0]["image"], str) and images[0]["image"].size == (60, 40)


def test_a_bad_record_is_named(file):
    write_json(file, [record(0), record(1, answer="")])
    with pytest.raises(ValueError, match=r"rows.json, record 1: turn 1 \(assistant\) is empty"):
        streamed(file)


def test_what_cannot_be_built_is_said(file):
    with pytest.raises(ValueError, match="Give the released file: `data_files="):
        ShareGPT4V(config_name="ShareGPT4V", cache_dir=str(file.parent)).as_streaming_dataset("train")
    with pytest.raises(ValueError, match="`shards` must be positive, got 0"):
        streamed(file, shards=0)


def test_the_configurations_are_the_released_sets():
    made = {config.name: (config.rows, config.records, config.license) for config in ShareGPT4V.BUILDER_CONFIGS}
    assert made == {one.config: (one.rows, one.records, "cc-by-nc-4.0") for one in RELEASED}
