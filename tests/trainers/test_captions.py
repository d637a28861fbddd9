"""Captions with one question, made around the stored images."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Image, List, Value, load_dataset

from dataset_scripts.build import write_repo
from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES, validate_conversation
from tests.trainers.rows import picture, row
from trainers.captions import as_conversations, ask_one_question, is_captions


QUESTION = "What is it?"


def caption(number: int) -> dict:
    facts = {name: "x" for name in ("source", "captioner", "prompt_id", "license", "sha256")}
    return {"id": str(number), "image": picture(number), "caption": f"Caption {number}.", **facts}


def captions(count: int = 5) -> Dataset:
    features = CAPTION_FEATURES.copy()
    features["image"] = Image(decode=False)
    return Dataset.from_list([caption(number) for number in range(count)], features=features)


def conversations(*rows: dict) -> Dataset:
    features = CONVERSATION_FEATURES.copy()
    features["images"] = List(Image(decode=False))
    return Dataset.from_list(list(rows), features=features)


def expected(number: int) -> dict:
    turn = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": f"Caption {number}."}]
    return {"id": str(number), "source": "x", "images": [picture(number)], "messages": turn}


def test_every_caption_answers_the_question():
    asked = ask_one_question(captions(), QUESTION)
    assert list(asked) == [expected(number) for number in range(5)]
    for one in asked:
        validate_conversation(one)


def test_selected_and_shuffled_rows_keep_their_order():
    asked = ask_one_question(captions(8).shuffle(seed=1).select([3, 0, 5]), QUESTION)
    order = np.array(captions(8).shuffle(seed=1)["id"])[[3, 0, 5]]
    assert list(asked) == [expected(int(number)) for number in order]


def test_rows_of_several_files_keep_their_order(tmp_path):
    write_repo(tmp_path, {"train": [{**caption(number), "image": picture(number)} for number in range(6)]}, {})
    rows = load_dataset(str(tmp_path), "captions", split="train").cast_column("image", Image(decode=False))
    parts = pa.concat_tables([rows.data.table.slice(0, 2), rows.data.table.slice(2, 4)])
    assert parts["caption"].num_chunks == 2
    asked = ask_one_question(Dataset(parts, info=rows.info), QUESTION)
    assert [one["messages"][1]["content"] for one in asked] == [f"Caption {number}." for number in range(6)]
    assert [one["images"][0]["bytes"] for one in asked] == [picture(number)["bytes"] for number in range(6)]


def test_the_stored_images_are_not_copied():
    rows = captions()
    before = rows.data.table["image"].chunk(0).field("bytes").buffers()[2].address
    after = ask_one_question(rows, QUESTION).data.table["images"].chunk(0).flatten().field("bytes").buffers()[2]
    assert after.address == before


def test_another_question_is_another_dataset():
    one, same, other = (ask_one_question(captions(), text)._fingerprint for text in ("a", "a", "b"))
    assert one == same != other


def test_conversations_of_one_turn_get_the_question_too():
    rows = conversations(row("a", ("Specialised prompt?", "A cat.")), row("b", ("Another?", "A dog.")))
    asked = ask_one_question(rows, QUESTION)
    assert [[turn["content"] for turn in one["messages"]] for one in asked] == [
        [QUESTION, "A cat."],
        [QUESTION, "A dog."],
    ]
    assert asked["images"] == rows["images"]


@pytest.mark.parametrize("bad", [row("bad", ("a", "b"), ("c", "d")), row("bad", ("a", "b"), images=2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_is_no_caption_is_refused_by_name(bad, streaming):
    rows = conversations(row("good", ("a", "b")), bad)
    with pytest.raises(ValueError, match="1 rows are not one image with one caption, first: bad. A captioner learns"):
        list(ask_one_question(rows.to_iterable_dataset() if streaming else rows, QUESTION))


def test_a_stream_is_asked_as_it_goes():
    asked = ask_one_question(captions().to_iterable_dataset(), QUESTION)
    assert list(asked) == [expected(number) for number in range(5)]


def test_caption_rows_are_told_from_conversations():
    assert is_captions(captions(1)) and is_captions(captions(1).to_iterable_dataset())
    assert not is_captions(conversations(row("a", ("a", "b"))))


def test_rows_that_were_filtered_out_do_not_count():
    rows = conversations(row("a", ("a", "A.")), row("bad", ("a", "b"), ("c", "d")), row("c", ("c", "C.")))
    kept = rows.filter(lambda one: len(one["messages"]) == 2)
    asked = ask_one_question(kept, QUESTION)
    assert [one["messages"][1]["content"] for one in asked] == ["A.", "C."] and asked["id"] == ["a", "c"]


def test_long_strings_are_taken_and_missing_columns_are_named():
    rows = captions(2)
    large = rows.cast_column("caption", Value("large_string"))
    assert list(ask_one_question(large, QUESTION)) == [expected(0), expected(1)]
    with pytest.raises(ValueError, match="lacks the columns .'id', 'source'. of a caption or conversation row"):
        ask_one_question(rows.select_columns(["image", "caption"]), QUESTION)


def test_rows_of_either_type_become_conversations_and_others_are_refused():
    talk = conversations(row("a", ("a", "b")))
    assert as_conversations(talk, QUESTION) is talk
    assert list(as_conversations(captions(1), QUESTION)) == [expected(0)]
    with pytest.raises(ValueError, match="lacks the columns .'images', 'messages'. .* with an `instruction`"):
        as_conversations(captions(1), None)
    with pytest.raises(ValueError, match="The columns of this stream are not known"):
        as_conversations(captions(1).to_iterable_dataset().map(lambda one: one), QUESTION)
