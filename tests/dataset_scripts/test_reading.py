"""The safe reader: what it gives, bad rows, damaged files. States, ranks and workers: test_reading_places.py."""

import io
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from PIL import Image

from dataset_scripts.build import write_repo
from dataset_scripts.reading import SafeRows, open_rows
from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths
from modeling_sharegpt4v.images_sharegpt4v import open_image
from tests.tiny import noise_image


def encode(image: Image.Image, kind: str = "JPEG", **options) -> dict:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return {"bytes": stream.getvalue(), "path": "a.jpg"}


def jpeg(number: int = 0, size: tuple[int, int] = (9, 8)) -> dict:
    return encode(Image.new("RGB", size, (number % 256, 80, 160)))


TINY = jpeg()


def caption_row(number: int, **changes) -> dict:
    row = {"id": str(number), "image": TINY, "source": "test", "caption": f"Number {number}.", "captioner": "human"}
    return {**row, "prompt_id": "p1", "license": "CC0-1.0", "sha256": "0" * 64, **changes}


def conversation_row(number: int, **changes) -> dict:
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": f"Number {number}."}]
    return {"id": str(number), "source": "test", "images": [TINY], "messages": messages, **changes}


def write_files(
    folder: Path, files: list[list[dict]], group: int = 4, features: Features = CAPTION_FEATURES, **options
) -> Path:
    """A repository of one configuration `rows`, not validated, with row groups of `group` rows."""
    (folder / "rows").mkdir(parents=True)
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        path = folder / f"rows/train-{number:05d}-of-{len(files):05d}.parquet"
        pq.write_table(table, path, row_group_size=group, **options)
    header = "configs:\n- config_name: rows\n  data_files:\n  - split: train\n    path: rows/train-*.parquet\n"
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")
    return folder


def numbered(folder: Path, *counts: int, group: int = 4, bad: tuple[int, ...] = (), **options) -> SafeRows:
    """Opened files of so many caption rows each, numbered from 0; the numbers in `bad` have garbage for an image."""
    numbers = iter(range(sum(counts)))
    rows = [[caption_row(next(numbers)) for _ in range(count)] for count in counts]
    for row in (row for file in rows for row in file if int(row["id"]) in bad):
        row["image"] = {"bytes": b"no image", "path": None}
    return open_rows(write_files(folder, rows, group), **options)


def ids(rows) -> list[int]:
    return [int(row["id"]) for row in rows]


def test_rows_come_in_order_with_upright_rgb_images(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    turned, clear = encode(Image.new("RGB", (9, 8)), exif=exif), encode(Image.new("LA", (3, 2), (0, 0)), "PNG")
    files = [[caption_row(0), caption_row(1, image=turned)], [caption_row(2, image=clear)]]
    rows = open_rows(write_files(tmp_path / "repo", files))
    first, second, third = rows
    assert (rows.num_rows, rows.column_names) == (3, list(CAPTION_FEATURES))
    assert {**first, "image": TINY} == caption_row(0)
    assert [row["image"].size for row in (first, second, third)] == [(9, 8), (8, 9), (3, 2)]
    assert third["image"].mode == "RGB" and third["image"].getpixel((0, 0)) == (255, 255, 255)
    for row, source in ((first, TINY), (second, turned), (third, clear)):
        assert row["image"].tobytes() == open_image(source["bytes"]).tobytes()


def test_conversation_rows_keep_their_messages_and_any_number_of_images(tmp_path):
    files = [[conversation_row(0, images=[]), conversation_row(1, images=[jpeg(1), jpeg(2)])]]
    none, two = open_rows(write_files(tmp_path / "repo", files, features=CONVERSATION_FEATURES), "rows")
    assert none["images"] == [] and none["messages"] == conversation_row(0)["messages"]
    assert [image.getpixel((4, 4))[0] for image in two["images"]] == pytest.approx([1, 2], abs=3)


def test_a_repository_of_the_builder_opens_by_configuration_and_split(tmp_path):
    talks = {"train": [conversation_row(number) for number in range(3)], "heldout": [conversation_row(7)]}
    folder = write_repo(tmp_path / "repo", {"train": [caption_row(number) for number in range(2)]}, {"talk": talks})
    assert ids(open_rows(folder, "captions")) == [0, 1]
    assert ids(open_rows(str(folder), "talk", "heldout")) == [7]
    with pytest.raises(ValueError, match=r"no split 'test' in configuration 'talk', only \['heldout', 'train'\]"):
        open_rows(folder, "talk", "test")


def test_large_jpeg_files_are_decoded_smaller_where_that_is_allowed(tmp_path):
    files = [[caption_row(0, image=jpeg(0, (400, 200))), caption_row(1, image=jpeg(1, (90, 300)))]]
    rows = open_rows(write_files(tmp_path / "repo", files), reduce_to=50)
    assert [row["image"].size for row in rows] == [(100, 50), (90, 300)]


GARBAGE = {"bytes": b"\x00\x01 no image", "path": None}
HALF = {"bytes": encode(noise_image(0, (64, 64)))["bytes"][:800], "path": None}
BAD_CAPTIONS = {
    "garbage": ({"image": GARBAGE}, "unreadable image", "no known image format"),
    "half": ({"image": HALF}, "unreadable image", "truncated"),
    "bomb": ({"image": jpeg(0, (400, 400))}, "decompression bomb", "160000 pixels"),
    "empty": ({"image": {"bytes": b"", "path": "x.jpg"}}, "no image data", "x.jpg"),
    "path only": ({"image": {"bytes": None, "path": "x.jpg"}}, "no image data", "x.jpg"),
    "null image": ({"image": None}, "schema", "`image` is missing"),
    "placeholder": ({"caption": "a <image> b"}, "schema", "contains '<image>'"),
    "null caption": ({"caption": None}, "schema", "caption is empty"),
    "null id": ({"id": None}, "schema", "`id` is empty"),
}
BAD_CONVERSATIONS = {
    "second image": ({"images": [TINY, GARBAGE]}, "unreadable image", "no known image format"),
    "null in images": ({"images": [None]}, "schema", "`images` holds an empty entry"),
    "null images": ({"images": None}, "schema", ""),
    "null messages": ({"messages": None}, "schema", ""),
    "null message": ({"messages": [None, None]}, "schema", ""),
    "no messages": ({"messages": []}, "schema", "pairs"),
    "placeholder": (
        {"messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A."}]},
        "schema",
        "message 0 contains '<image>'",
    ),
}


@pytest.mark.parametrize(
    ("features", "name"), [("captions", n) for n in BAD_CAPTIONS] + [("talk", n) for n in BAD_CONVERSATIONS]
)
def test_a_bad_row_in_the_middle_is_skipped_and_reported(tmp_path, monkeypatch, features, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    make, columns = (
        (caption_row, CAPTION_FEATURES) if features == "captions" else (conversation_row, CONVERSATION_FEATURES)
    )
    changes, kind, message = (BAD_CAPTIONS if features == "captions" else BAD_CONVERSATIONS)[name]
    files = [[make(0), make(1)], [make(2), make(3), make(4, **changes), make(5)], [make(6)]]
    rows = open_rows(write_files(tmp_path / "repo", files, group=2, features=columns))
    assert ids(rows) == [0, 1, 2, 3, 5, 6]
    report = rows.report
    assert (report.seen, report.given, report.bad) == (7, 6, {kind: 1})
    (bad,) = report.first_bad
    assert Path(bad["file"]).name == "train-00001-of-00003.parquet"
    assert (bad["row"], bad["id"], bad["kind"]) == (2, changes.get("id", "4"), kind)
    assert message in bad["message"] and bad["message"]


def test_positions_of_bad_rows_do_not_depend_on_shuffling_or_ranks(tmp_path):
    rows = numbered(tmp_path / "repo", 10, 10, bad=(3, 14), max_bad=20)
    expected = {("train-00000-of-00002.parquet", 3, "3"), ("train-00001-of-00002.parquet", 4, "14")}
    for parts in ([rows], [rows.shuffle(5, 6)], [rows.shard(3, rank) for rank in range(3)]):
        found = set()
        for part in parts:
            assert len(ids(part)) == part.report.given
            found |= {(Path(bad["file"]).name, bad["row"], bad["id"]) for bad in part.report.first_bad}
        assert found == expected


@pytest.mark.parametrize(("max_bad", "given"), [(2, 5), (2.0 / 9, 5), (0.12, 5), (0, 1), (0.0, 1), (0.11, 3)])
def test_more_bad_rows_than_allowed_stop_the_reading_with_the_reasons(tmp_path, max_bad, given):
    rows = numbered(tmp_path / "repo", 9, bad=(1, 4, 7), max_bad=max_bad)
    got = []
    with pytest.raises(ValueError, match=r"More than \d bad rows of 9") as caught:
        for row in rows:
            got.append(row)
    assert len(got) == given
    assert "id '1', unreadable image: no known image format (8 bytes)" in str(caught.value)


@pytest.mark.parametrize("max_bad", [3, 3.0 / 9, 1.0])
def test_as_many_bad_rows_as_allowed_do_not_stop_the_reading(tmp_path, max_bad):
    assert len(ids(numbered(tmp_path / "repo", 9, bad=(1, 4, 7), max_bad=max_bad))) == 6


@pytest.mark.parametrize("max_bad", [-1, 1.5])
def test_a_limit_that_means_nothing_is_refused(tmp_path, max_bad):
    with pytest.raises(ValueError, match="`max_bad` must be"):
        numbered(tmp_path / "repo", 2, max_bad=max_bad)


def test_the_report_describes_a_hundred_rows_and_counts_all(tmp_path):
    rows = numbered(tmp_path / "repo", 130, bad=tuple(range(120)), max_bad=1.0)
    assert ids(rows) == list(range(120, 130))
    assert rows.report.bad == {"unreadable image": 120}
    assert [bad["row"] for bad in rows.report.first_bad] == list(range(100))


def test_the_log_tells_the_first_bad_row_and_the_total(tmp_path, caplog):
    rows = numbered(tmp_path / "repo", 9, bad=(1, 4), max_bad=5)
    ids(rows)
    first, last = caplog.text.split("End of the rows")
    assert "A bad row is skipped" in first and "2 rows seen, 1 given, 1 bad" in first and "row 1 of" in first
    assert "9 rows seen, 7 given, 2 bad, unreadable image: 2" in last
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ids(numbered(tmp_path / "good", 2))
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("kept", [0, 3, 500])
def test_a_file_that_was_cut_off_is_named_at_opening(tmp_path, kept):
    numbered(tmp_path / "repo", 6, 6)
    path = tmp_path / "repo/rows/train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"Cannot read {path}: .*fetch or build it again"):
        open_rows(tmp_path / "repo")


def test_a_damaged_page_is_named_and_never_taken_for_a_bad_row(tmp_path):
    files = [[caption_row(number, sha256=f"{number:064d}") for number in range(12)]]
    folder = write_files(tmp_path / "repo", files, compression="none", use_dictionary=False, write_page_checksum=True)
    path = folder / "rows/train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"%064d" % 6, b"%064d" % 7))
    rows, given = open_rows(folder, max_bad=1.0), []
    with pytest.raises(ValueError, match=f"Cannot read {path} from row 4 on: .*damaged"):
        for row in rows:
            given.append(int(row["id"]))
    assert given == [0, 1, 2, 3] and rows.report.bad == {}


def test_a_file_that_gets_shorter_while_it_is_read_is_named(tmp_path):
    rows = numbered(tmp_path / "repo", 12)
    path = tmp_path / "repo/rows/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path, row_group_size=4)
    with pytest.raises(ValueError, match=f"Row group 1 of {path} ends before its row 4"):
        ids(rows)
    path.unlink()
    with pytest.raises(ValueError, match=f"Cannot read {path} from row 0 on"):
        ids(rows)


def test_columns_that_are_not_those_of_the_schema_are_refused(tmp_path):
    fewer = Features({name: CAPTION_FEATURES[name] for name in CAPTION_FEATURES if name != "license"})
    folder = write_files(tmp_path / "fewer", [[caption_row(0)]], features=fewer)
    with pytest.raises(ValueError, match=r"00000-of-00001.parquet .*: license None, expected string"):
        open_rows(folder)
    paths = [[conversation_row(0), conversation_row(1)], [conversation_row(2, images=["a.jpg"])]]
    write_files(tmp_path / "paths", paths[:1], features=CONVERSATION_FEATURES)
    table = pa.Table.from_pylist(paths[1], schema=with_paths(CONVERSATION_FEATURES).arrow_schema)
    pq.write_table(table, tmp_path / "paths/rows/train-00001-of-00001.parquet")
    with pytest.raises(ValueError, match=r"train-00001-of-00001.parquet .*: images list<.*: string>, expected list<"):
        open_rows(tmp_path / "paths")
