"""Rows from released files and from built folders: interchangeable, complete, or refused by name."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_scripts.build import BuildOptions, build_config, write_repo
from dataset_scripts.rows import DETAIL_QUESTIONS, Origin, RowSource, images_of, kind_of, question_for, sha256_of
from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths
from tests.dataset_scripts.test_build import caption_row, conversation_row, png
from tests.released_files import BAD, write_released


ORIGIN = Origin("GPT4-Vision", "p1", "cc-by-nc-4.0")
PATHS = with_paths(CAPTION_FEATURES).arrow_schema
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "<image>" not in text
)


def record(number: int = 0, question: str = "<image>\nWhat is it?", answer: str = "A cat.", **changes) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"n{number}", "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns, **changes}


def write_json(path: Path, records: list) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def built(tmp_path: Path, kind: str = "captions", count: int = 10, shard_bytes: int = 300, **options) -> Path:
    """A configuration of paths in several shards."""
    source = RowSource(write_json(tmp_path / "rows.json", [record(number) for number in range(count)]), origin=ORIGIN)
    build_config(
        tmp_path / "repo", kind, source.as_set(kind), options=BuildOptions(shard_bytes=shard_bytes, **options)
    )
    return tmp_path / "repo" / kind


def path_row(number: int = 0, **changes) -> dict:
    return {**caption_row(number), "image": f"{number}.jpg", **changes}


def write_shard(folder: Path, name: str, rows: list[dict], schema: pa.Schema = PATHS, **options) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name, **options)
    return folder


def test_a_released_file_and_the_folders_built_of_it_give_the_same_rows(tmp_path):
    rows = RowSource(tmp_path / "repo" / "captions") if built(tmp_path) else None
    origin = RowSource(tmp_path / "rows.json", origin=ORIGIN)
    assert list(rows.captions()) == list(origin.captions()) and len(rows.shards) > 2
    talks = RowSource(built(tmp_path, "conversations"))
    assert list(talks.conversations()) == list(origin.conversations())
    assert (rows.kind(), talks.kind(), origin.kind()) == ("captions", "conversations", "conversations")
    assert rows.report.records == talks.report.records == 10 and talks.report.by_source == {"coco": 10}


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=30))
def test_any_text_comes_back_from_load_dataset_as_it_was(tmp_path, texts):
    records = [record(n, q, a, id=name) for n, (name, q, a) in enumerate(texts)]
    for row in records[::2]:
        del row["image"]
    source = RowSource(write_json(tmp_path / "text.json", records))
    shutil.rmtree(tmp_path / "repo", ignore_errors=True)
    build_config(tmp_path / "repo", "text", source.as_set("conversations"))
    rows = list(load_dataset(str(tmp_path / "repo"), "text", split="train", streaming=True))
    expected = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for _, q, a in texts]
    assert [row["messages"] for row in rows] == expected
    assert [row["id"] for row in rows] == [name for name, *_ in texts]


@pytest.mark.parametrize("text", ["Zürich", "Zu\u0308rich", "🐈‍⬛", "a\r\nb\rc", "\u2028\u0000\ufeff", "مرحبا"])
def test_odd_texts_and_names_are_kept(tmp_path, text):
    image = "coco/train2017/Zu\u0308rich 🐈.jpg"
    source = RowSource(write_json(tmp_path / "odd.json", [record(answer=f".{text}.", image=image, id=text)]))
    build_config(tmp_path / "repo", "Bücher", source.as_set("captions"))
    (row,) = load_dataset(str(tmp_path / "repo"), "Bücher", split="train", cache_dir=str(tmp_path / "cache"))
    assert (row["caption"], row["image"], row["id"]) == (f".{text}.", image, text)


@pytest.mark.parametrize("name", [b"rows \xff.json", "`Z\u00fcrich`\n# no.json".encode()])
def test_an_input_file_may_have_any_name(tmp_path, name):
    path = write_json(tmp_path / os.fsdecode(name), [record()])
    build_config(tmp_path / "repo", "set", RowSource(path).as_set("captions"))
    facts = json.loads((tmp_path / "repo/set/build.json").read_text(encoding="utf-8"))
    assert list(facts["files"]) == [path.name]
    assert len(load_dataset(str(tmp_path / "repo"), "set", split="train", cache_dir=str(tmp_path / "cache"))) == 1


def test_captions_get_what_all_of_a_set_share(tmp_path):
    (row,) = RowSource(write_json(tmp_path / "one.json", [record()]), origin=ORIGIN).captions()
    assert list(row) == list(CAPTION_FEATURES)
    assert (row["captioner"], row["prompt_id"], row["license"]) == ("GPT4-Vision", "p1", "cc-by-nc-4.0")
    assert (row["caption"], row["source"], row["sha256"]) == ("A cat.", "coco", None)


def test_captions_become_answers_to_a_question_that_the_id_decides(tmp_path):
    rows = list(RowSource(built(tmp_path, count=40)).conversations())
    questions = [row["messages"][0]["content"] for row in rows]
    assert questions == [question_for(row["id"]) for row in rows] and len(set(questions)) > 5
    assert set(questions) <= set(DETAIL_QUESTIONS)
    # Pinned: another choice would change every mix that was ever built.
    assert [DETAIL_QUESTIONS.index(question_for(name)) for name in ("000000000009", "sa_545504", "1")] == [10, 7, 3]
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "A cat."}
    assert rows[0]["images"] == ["coco/train2017/000000000000.jpg"]


def test_what_is_no_caption_is_refused_with_its_record(tmp_path):
    talk = record(1)
    talk["conversations"] += talk["conversations"][1:] * 0 + [
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ]
    chat = {key: value for key, value in record(2, "Hi").items() if key != "image"}
    path = write_json(tmp_path / "mixed.json", [record(0), talk, chat, record(3)])
    with pytest.raises(ValueError, match=r"mixed.json, record 1 \(id 'n1'\): 4 messages .* Build it as conversations"):
        list(RowSource(path).captions())
    source = RowSource(path, on_bad="skip")
    assert [row["id"] for row in source.captions()] == ["n0", "n3"]
    assert [entry["record"] for entry in source.report.refused] == [1, 2]
    facts = build_config(tmp_path / "repo", "set", source.as_set("captions"))
    assert facts["read"]["by_source"] == {"coco": 2} and facts["read"]["refused"] == 2
    assert facts["read"]["records"] == 4 == sum(facts["read"]["by_source"].values()) + facts["read"]["refused"]


def test_conversations_cannot_be_read_as_captions(tmp_path):
    with pytest.raises(ValueError, match="holds conversations, not captions"):
        list(RowSource(built(tmp_path, "conversations")).captions())


def test_reading_twice_counts_once(tmp_path):
    path = tmp_path / "mix.json"
    ledger = write_released(path, "mix", 100, bad_each=1)
    source = RowSource(path, on_bad="skip")
    assert list(source.conversations()) == list(source.conversations())
    assert source.report.by_source == ledger.by_source and len(source.report.refused) == len(BAD)


def test_images_of_joined_rows_are_read_without_their_bytes(tmp_path):
    rows = [caption_row(number) for number in range(3)]
    talks = [conversation_row(0), conversation_row(1, images=[]), conversation_row(2, images=[png(1), png(2)])]
    write_repo(tmp_path / "repo", {"train": rows}, {"talk": {"train": talks}})
    captions, talk = RowSource(tmp_path / "repo/captions"), RowSource(tmp_path / "repo/talk")
    assert list(captions.captions()) == [{**row, "image": row["image"]["path"]} for row in rows]
    assert [row["images"] for row in talk.conversations()] == [["0.png"], [], ["1.png", "2.png"]]
    assert [images_of(row) for row in captions.captions()] == [["0.png"], ["1.png"], ["2.png"]]


def test_an_image_without_a_path_is_named(tmp_path):
    nameless = caption_row(1, image={**png(1), "path": None})
    write_repo(tmp_path / "repo", {"train": [caption_row(0), nameless]}, {})
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet, row 1 \(id '1'\): an image has no path"):
        list(RowSource(tmp_path / "repo/captions").captions())


def test_a_missing_path_or_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json is absent; give a released JSON file"):
        RowSource(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match="holds no Parquet files; give the folder of one configuration"):
        RowSource(tmp_path)


def test_a_folder_that_lacks_a_shard_is_refused(tmp_path):
    folder = built(tmp_path)
    lost = sorted(folder.glob("*.parquet"))[1]
    count = len(list(folder.glob("*.parquet")))
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"holds {count - 1} of {count} shards of train"):
        RowSource(folder)


def test_splits_are_not_mixed(tmp_path):
    write_repo(tmp_path / "repo", {"train": [caption_row(0)], "heldout": [caption_row(1)]}, {})
    with pytest.raises(ValueError, match=r"holds the splits \['heldout', 'train'\]; give a folder with"):
        RowSource(tmp_path / "repo/captions")


def test_shards_of_any_name_are_read_in_order(tmp_path):
    write_shard(tmp_path / "set", "b.parquet", [path_row(1)])
    write_shard(tmp_path / "set", "a.parquet", [path_row(0)])
    assert [row["id"] for row in RowSource(tmp_path / "set").captions()] == ["0", "1"]


def test_a_shard_of_other_columns_is_named(tmp_path):
    folder = write_shard(tmp_path / "set", "a.parquet", [path_row(0)])
    talk = {**conversation_row(1), "images": ["1.jpg"]}
    write_shard(folder, "b.parquet", [talk], with_paths(CONVERSATION_FEATURES).arrow_schema)
    with pytest.raises(ValueError, match=r"b.parquet has the columns \['id', 'source', 'images', 'messages'\], not"):
        list(RowSource(folder).captions())


@pytest.mark.parametrize(("column", "kind", "value"), [("id", pa.int64(), 7), ("caption", pa.binary(), b"x")])
def test_a_shard_of_other_types_is_named(tmp_path, column, kind, value):
    folder = write_shard(tmp_path / "set", "a.parquet", [path_row(0)])
    schema = PATHS.set(PATHS.get_field_index(column), pa.field(column, kind))
    write_shard(folder, "b.parquet", [path_row(1, **{column: value})], schema)
    with pytest.raises(ValueError, match=f"b.parquet has the column `{column}` as {kind}, not as string"):
        list(RowSource(folder).captions())


def test_paths_and_joined_images_may_be_mixed(tmp_path):
    folder = write_shard(tmp_path / "set", "a.parquet", [path_row(0)])
    write_shard(folder, "b.parquet", [caption_row(1)], CAPTION_FEATURES.arrow_schema)
    assert [row["image"] for row in RowSource(folder).captions()] == ["0.jpg", "1.png"]


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"<html>"])
def test_a_damaged_shard_is_named(tmp_path, content):
    folder = write_shard(tmp_path / "set", "a.parquet", [path_row(0)])
    (folder / "b.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="b.parquet is damaged: .*Build or download it again"):
        list(RowSource(folder).captions())
    shutil.copy(folder / "b.parquet", folder / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet is damaged"):
        RowSource(folder).kind()


def test_damage_inside_a_shard_is_named_with_its_row(tmp_path):
    rows = [path_row(number, caption=f"{number} " * 500) for number in range(8)]
    folder = write_shard(tmp_path / "set", "a.parquet", rows, row_group_size=4, use_dictionary=False)
    file = folder / "a.parquet"
    place = pq.ParquetFile(file).metadata.row_group(1).column(3).data_page_offset
    data = bytearray(file.read_bytes())
    data[place : place + 40] = bytes(40)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.parquet is damaged after [04] rows: .*Build or download it again"):
        list(RowSource(folder).captions())


def test_the_licence_of_a_built_folder_is_handed_on(tmp_path):
    folder = built(tmp_path)
    facts = build_config(tmp_path / "again", "captions", RowSource(folder).as_set("captions"))
    assert facts["license"] == "cc-by-nc-4.0"


def test_the_fingerprint_follows_the_content(tmp_path):
    folder = built(tmp_path)
    first = RowSource(folder).fingerprint()
    shard = folder / next(iter(first))
    assert first[shard.name] == {"bytes": shard.stat().st_size, "sha256": sha256_of(shard)}
    assert list(first) == [path.name for path in RowSource(folder).shards]
    write_shard(folder, shard.name, [path_row(7)])
    assert RowSource(folder).fingerprint() != first
    assert list(RowSource(tmp_path / "rows.json").fingerprint()) == ["rows.json"]


def test_columns_of_neither_kind_are_refused():
    assert (kind_of(CAPTION_FEATURES, "x"), kind_of(CONVERSATION_FEATURES, "x")) == ("captions", "conversations")
    with pytest.raises(ValueError, match=r"x has the columns \['a', 'id'\], which are neither"):
        kind_of(["id", "a"], "x")
