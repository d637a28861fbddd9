"""The row types and the repositories built of them."""

import getpass
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from dataset_scripts.build import RELEASED, BuildOptions, build_config, write_repo
from dataset_scripts.join import Resize
from dataset_scripts.rows import Origin, RowSet, RowSource, caption_to_conversation
from dataset_scripts.schema import validate_caption, validate_conversation
from tests.released_files import COUNTS, write_released
from tests.tiny import noise_image


ORIGIN = Origin("GPT4-Vision", "p1", "cc-by-nc-4.0")
SMALL = BuildOptions(shard_bytes=30_000)


def png(number: int) -> dict:
    stream = io.BytesIO()
    noise_image(number).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": f"{number}.png"}


def caption_row(number: int = 0, **changes) -> dict:
    row = {
        "id": str(number),
        "image": png(number),
        "source": "test",
        "caption": f"A picture of number {number}.",
        "captioner": "human",
        "prompt_id": "p1",
        "license": "CC0-1.0",
        "sha256": "0" * 64,
    }
    return {**row, **changes}


def conversation_row(number: int = 0, **changes) -> dict:
    return {**caption_to_conversation(caption_row(number), "What is it?"), **changes}


def turns(*pairs: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_valid_rows_pass():
    validate_caption(caption_row())
    validate_conversation(conversation_row())
    validate_conversation(conversation_row(images=[]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": ""}, "`id` is empty"),
        ({"image": None}, "`image` is missing"),
        ({"caption": "  "}, "caption is empty"),
        ({"caption": None}, "caption is empty"),
        ({"caption": "a <image> b"}, "contains '<image>'"),
        ({"colour": "red"}, "unknown columns .'colour'."),
        ({"caption": "a\ud800"}, "caption holds half a surrogate pair"),
        ({"captioner": "a\udc00"}, "captioner holds half a surrogate pair"),
    ],
)
def test_a_bad_caption_row_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        validate_caption(caption_row(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "`id` is empty"),
        ({"images": [None]}, "`images` holds an empty entry"),
        ({"images": None}, "`images` must be a list, got NoneType"),
        ({"messages": [None, None]}, "Message 0 must be of role 'user', got None"),
        ({"messages": [{"role": "user"}, {"role": "assistant"}]}, "content of message 0 is empty"),
        ({"messages": []}, "pairs of user and assistant"),
        ({"messages": None}, "`messages` must be a list, got NoneType"),
        ({"messages": turns(("user", "a"))}, "pairs of user and assistant, got 1"),
        ({"messages": turns(("assistant", "a"), ("user", "b"))}, "Message 0 must be of role 'user'"),
        ({"messages": turns(("user", "a"), ("gpt", "b"))}, "Message 1 must be of role 'assistant', got 'gpt'"),
        ({"messages": turns(("user", "<image>\na"), ("assistant", "b"))}, "message 0 contains '<image>'"),
        ({"messages": turns(("user", "a"), ("assistant", ""))}, "message 1 is empty"),
        ({"messages": turns(("user", "a"), ("assistant", "\ud800"))}, "message 1 holds half a surrogate pair"),
        ({"id": "\ud800"}, "id holds half a surrogate pair"),
    ],
)
def test_a_bad_conversation_row_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        validate_conversation(conversation_row(**changes))


def test_a_row_without_a_column_is_refused():
    row = conversation_row()
    del row["images"]
    with pytest.raises(ValueError, match="lacks the columns .'images'."):
        validate_conversation(row)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_built_repository_loads_without_code(tmp_path, streaming):
    folder = write_repo(
        tmp_path / "repo",
        {"train": [caption_row(0), caption_row(1)], "heldout": [caption_row(2)]},
        {"talk": {"train": [conversation_row(0), conversation_row(1)]}},
    )
    options = {"streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    captions = list(load_dataset(str(folder), "captions", split="train", **options))
    talks = list(load_dataset(str(folder), "talk", split="train", **options))
    assert [row["caption"] for row in captions] == ["A picture of number 0.", "A picture of number 1."]
    assert captions[1]["image"].convert("RGB").tobytes() == noise_image(1).tobytes()
    assert talks[0]["messages"] == conversation_row(0)["messages"]
    assert talks[0]["images"][0].size == noise_image(0).size


def test_a_bad_row_stops_the_build_by_name_and_leaves_the_old_repository(tmp_path):
    write_repo(tmp_path / "repo", {"train": [caption_row(0)]}, {})
    with pytest.raises(ValueError, match=r"Row 1 of captions/train \(id '1'\): The caption is empty"):
        write_repo(tmp_path / "repo", {"train": [caption_row(0), caption_row(1, caption="")]}, {})
    rows = load_dataset(str(tmp_path / "repo"), "captions", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["id"][:] == ["0"]


def path_set(count: int = 100, fail_at: int | None = None, length: int = 1000) -> RowSet:
    """Caption rows with paths, in memory; one may be invalid."""

    def read():
        for number in range(count):
            caption = "" if number == fail_at else f"{number} ".ljust(length, "x")
            yield {**caption_row(0, sha256=None), "id": str(number), "image": f"{number}.jpg", "caption": caption}

    return RowSet(read, "captions", {"count": count, "fail_at": fail_at, "length": length})


def released_set(tmp_path: Path, kind: str = "pt", records: int = 200) -> RowSet:
    write_released(tmp_path / f"{kind}.json", kind, records)
    return RowSource(tmp_path / f"{kind}.json", origin=ORIGIN).as_set("conversations" if kind == "mix" else "captions")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_row_that_breaks_the_schema_is_named_by_its_position(tmp_path):
    with pytest.raises(ValueError, match=r"Row 77 of set/train \(id '77'\): The caption is empty"):
        build_config(tmp_path / "repo", "set", path_set(100, fail_at=77), options=SMALL)
    assert not (tmp_path / "repo").exists()


def test_shards_have_the_size_asked_for_and_every_row_once(tmp_path):
    facts = build_config(tmp_path / "repo", "set", path_set(100), options=SMALL)
    shards = facts["splits"]["train"]
    assert [shard["rows"] for shard in shards[:-1]] == [30] * 3 and sum(shard["rows"] for shard in shards) == 100
    names = [f"train-{number:05d}-of-00004.parquet" for number in range(4)]
    assert [shard["file"] for shard in shards] == names
    assert sorted(path.name for path in (tmp_path / "repo/set").iterdir()) == ["build.json", *names]
    assert [row["id"] for row in RowSource(tmp_path / "repo/set").captions()] == [str(n) for n in range(100)]


def test_text_is_measured_in_bytes(tmp_path):
    def read():
        for row in path_set(20, length=10).read():
            yield {**row, "caption": "语" * 1000}

    facts = build_config(tmp_path / "repo", "set", RowSet(read, "captions", {}), options=SMALL)
    assert facts["splits"]["train"][0]["rows"] == 10


def test_row_groups_stay_small_in_a_large_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.shards.ROW_GROUP_BYTES", 10_000)
    build_config(tmp_path / "repo", "set", path_set(100))
    metadata = pq.read_metadata(tmp_path / "repo/set/train-00000-of-00001.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [10] * 10


def test_two_builds_in_different_folders_are_the_same_to_the_byte(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for kind in COUNTS:
            build_config(tmp_path / place / "repo", kind, released_set(tmp_path / place, kind), options=SMALL)
    one = contents(tmp_path / "one/repo")
    assert one == contents(tmp_path / "two/repo") and {"README.md", "croissant.json", "pt/build.json"} <= set(one)


def test_nothing_in_a_repository_names_this_machine(tmp_path):
    build_config(tmp_path / "repo", "pt", released_set(tmp_path), options=SMALL)
    write_repo(tmp_path / "memory", {"train": [caption_row(0)]}, {"talk": {"train": [conversation_row(0)]}})
    for data in [*contents(tmp_path / "repo").values(), *contents(tmp_path / "memory").values()]:
        for secret in (str(tmp_path), tmp_path.name, str(Path.home()) + "/", f"/{getpass.getuser()}/"):
            assert secret.encode() not in data


def test_a_configuration_is_replaced_and_its_neighbours_stay(tmp_path):
    repo = tmp_path / "repo"
    build_config(repo, "a", path_set(100), options=SMALL)
    build_config(repo, "b", path_set(50), options=SMALL)
    before = contents(repo / "b")
    build_config(repo, "a", path_set(10), options=SMALL)
    assert contents(repo / "b") == before
    for name, rows in (("a", 10), ("b", 50)):
        data = load_dataset(str(repo), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert data["id"][:] == [str(number) for number in range(rows)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "repo"]


def test_a_built_folder_is_input_of_a_build_into_itself(tmp_path):
    first = build_config(tmp_path / "repo", "set", path_set(100), options=SMALL)
    again = build_config(tmp_path / "repo", "set", RowSource(tmp_path / "repo/set").as_set("captions"), options=SMALL)
    assert again["splits"] == first["splits"] and again["read"]["records"] == 100


def test_a_split_without_rows_is_refused_because_it_could_not_be_loaded(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ValueError, match="set/train has no rows: 0 were left out"):
        build_config(tmp_path / "repo", "set", RowSource(tmp_path / "none.json").as_set("captions"))
    with pytest.raises(ValueError, match="captions/heldout has no rows"):
        write_repo(tmp_path / "repo", {"train": [caption_row(0)], "heldout": []}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["none.json"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a.b", "a*"])
def test_a_configuration_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="A configuration's name has letters, digits, '-' and '_' only"):
        build_config(tmp_path / "repo", name, path_set())


@pytest.mark.parametrize("split", ["", "a-b", "../train", "all", "train*"])
def test_a_split_name_that_a_pattern_could_confuse_is_refused(tmp_path, split):
    with pytest.raises(ValueError, match="A split's name has letters, digits and '_' only"):
        build_config(tmp_path / "repo", "set", path_set(), options=BuildOptions(split=split))
    with pytest.raises(ValueError, match="A split's name has letters"):
        write_repo(tmp_path / "repo", {split: [caption_row(0)]}, {})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_missing": "ignore"}, "`on_missing` must be 'error' or 'skip', got 'ignore'"),
        ({"min_coverage": 1.1}, "`min_coverage` is a share from 0 to 1, got 1.1"),
        ({"shard_bytes": 0}, "`shard_bytes` must be positive, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        BuildOptions(**options)


def test_images_cannot_be_resized_without_images(tmp_path):
    with pytest.raises(ValueError, match="`resize` needs the images: give their roots"):
        build_config(tmp_path / "repo", "set", path_set(), options=BuildOptions(resize=Resize(336)))


@pytest.mark.parametrize("place", ["link", "real/inner/.."])
def test_a_repository_behind_a_link_or_dots_is_built_beside_the_real_one(tmp_path, place):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    rows, seen = path_set(5), []
    rows.facts = lambda: seen.append(sorted(path.name for path in tmp_path.iterdir())) or {}
    build_config(tmp_path / place, "set", rows)
    assert seen == [["link", "real", "real.partial"]]
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == [
        "README.md",
        "croissant.json",
        "inner",
        "set",
    ]


def test_rows_in_memory_never_meet_those_of_an_earlier_call(tmp_path):
    splits = {"train": [caption_row(0)], "heldout": [caption_row(1, caption="")]}
    with pytest.raises(ValueError, match="Row 0 of captions/heldout"):
        write_repo(tmp_path / "repo", splits, {})
    assert list(tmp_path.iterdir()) == []
    write_repo(tmp_path / "repo", {"train": [caption_row(7)], "heldout": [caption_row(8)]}, {})
    rows = load_dataset(str(tmp_path / "repo"), "captions", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["id"][:] == ["7"]


def test_an_older_repository_in_memory_is_replaced_whole(tmp_path):
    write_repo(tmp_path / "repo", {"train": [caption_row(0)]}, {"talk": {"train": [conversation_row(0)]}})
    folder = write_repo(tmp_path / "repo", {}, {"other": {"train": [conversation_row(1)]}})
    assert sorted(contents(folder)) == [
        *("README.md", "croissant.json", "other/build.json", "other/train-00000-of-00001.parquet")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    with pytest.raises(ValueError, match="talk has no split"):
        write_repo(tmp_path / "repo", {}, {"talk": {}})
    with pytest.raises(ValueError, match="Conversations cannot be called `captions` beside captions"):
        write_repo(tmp_path / "repo", {"train": [caption_row(0)]}, {"captions": {"train": [conversation_row(0)]}})


def test_the_released_sets_have_their_documented_sizes():
    assert {released.config: released.records for released in RELEASED} == {
        "ShareGPT4V": sum(COUNTS["cap100k"].values()),
        "ShareGPT4V-PT": sum(COUNTS["pt"].values()),
        "ShareGPT4V-Mix665K": sum(COUNTS["mix"].values()),
    }


def test_a_mix_is_described_in_a_file_of_its_own(tmp_path):
    rows = path_set(3)
    rows.facts = lambda: {"mix": {"removed": ["a"], "added": 3}}
    facts = build_config(tmp_path / "repo", "set", rows)
    assert "mix" not in facts and json.loads((tmp_path / "repo/set/mix.json").read_text())["removed"] == ["a"]
    assert json.loads((tmp_path / "repo/set/build.json").read_text()) == facts
