"""The row types and the repositories built of them."""

import io

import pytest
from datasets import load_dataset

from dataset_scripts.build import write_repo
from dataset_scripts.rows import caption_to_conversation
from dataset_scripts.schema import validate_caption, validate_conversation
from tests.tiny import noise_image


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
        ({"messages": []}, "pairs of user and assistant"),
        ({"messages": turns(("user", "a"))}, "pairs of user and assistant, got 1"),
        ({"messages": turns(("assistant", "a"), ("user", "b"))}, "Message 0 must be of role 'user'"),
        ({"messages": turns(("user", "a"), ("gpt", "b"))}, "Message 1 must be of role 'assistant', got 'gpt'"),
        ({"messages": turns(("user", "<image>\na"), ("assistant", "b"))}, "message 0 contains '<image>'"),
        ({"messages": turns(("user", "a"), ("assistant", ""))}, "message 1 is empty"),
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
