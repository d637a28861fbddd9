"""POPE: words that make a no, labels that belong to questions, five figures a category."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.pope import parse, prompt, read_items, score
from tests.evaluation.samples import SAMPLES, needs_samples, read_lines, read_sample, write_lines


SHORT = "Answer the question using a single word or phrase."
TEXT = "Is there a {} in the image?"
THINGS = ("dog", "cat", "cup", "car")
LABELS = ("yes", "no", "yes", "no")


def write_world(folder, labels=LABELS, named=True):
    """Four questions of one category, and their labels in another order if they name their question."""
    questions = [
        {"question_id": place, "image": "a.jpg", "text": f"{TEXT.format(thing)}\n{SHORT}", "category": "popular"}
        for place, thing in enumerate(THINGS)
    ]
    rows = [
        {"image": "a.jpg", "text": TEXT.format(thing), "label": label}
        for thing, label in zip(THINGS, labels, strict=False)
    ]
    write_lines(folder / "questions.jsonl", questions)
    rows = rows[::-1] if named else [{"label": row["label"]} for row in rows]
    write_lines(folder / "coco_pope_popular.jsonl.gz", rows)
    return folder


def answers_of(folder, texts):
    return write_lines(folder / "answers.jsonl", [{"question_id": key, "text": text} for key, text in texts])


@needs_samples
def test_answers_are_taken_for_what_llava_takes_them():
    for case in read_sample("pope/parse_table.json")["rows"]:
        assert parse(case["response"]) == case["parsed"]


@needs_samples
def test_prompts_are_those_of_llava():
    asked = read_lines(SAMPLES / "pope/questions.jsonl.gz")
    items = read_items(SAMPLES / "pope/messy_synthetic", SAMPLES / "pope")
    assert [prompt(item) for item in items] == [row["text"] for row in asked]


@needs_samples
def test_messy_answers_score_what_llava_prints():
    expected = read_sample("pope/messy_synthetic/expected.json")["categories"]
    result = score(read_items(SAMPLES / "pope/messy_synthetic", SAMPLES / "pope"))
    assert result.breakdown == {"categories": expected}
    assert result.headline["f1_score"] == pytest.approx(
        sum(one["f1_score"] for one in expected.values()) / 3, abs=1e-15
    )


@needs_samples
def test_the_order_of_answers_does_not_matter(tmp_path):
    answers = read_lines(SAMPLES / "pope/messy_synthetic/answers.jsonl.gz")
    random.Random(0).shuffle(answers)
    shuffled = read_items(write_lines(tmp_path / "answers.jsonl.gz", answers), SAMPLES / "pope")
    assert score(shuffled) == score(read_items(SAMPLES / "pope/messy_synthetic", SAMPLES / "pope"))


@pytest.mark.parametrize("named", [True, False])
def test_labels_are_joined_by_question_or_else_by_order(tmp_path, named):
    write_world(tmp_path, named=named)
    answers = answers_of(tmp_path, enumerate(["Yes", "No", "No", "Yes"]))
    figures = score(read_items(answers, tmp_path)).breakdown["categories"]["popular"]
    assert {name: figures[name] for name in ("TP", "TN", "FN", "FP")} == {"TP": 1, "TN": 1, "FN": 1, "FP": 1}


def test_labels_of_another_release_are_refused(tmp_path):
    write_world(tmp_path, labels=LABELS[:3], named=False)
    with pytest.raises(ValueError, match="has 3 labels for 4 questions of popular"):
        read_items(answers_of(tmp_path, []), tmp_path)


def test_more_labels_than_questions_do_where_they_name_theirs(tmp_path):
    write_world(tmp_path)
    labels = read_lines(tmp_path / "coco_pope_popular.jsonl.gz")
    write_lines(tmp_path / "coco_pope_popular.jsonl.gz", [{"image": "b.jpg", "text": "?", "label": "no"}, *labels])
    items = read_items(answers_of(tmp_path, []), tmp_path)
    assert [item["answer"] for item in items] == list(LABELS)


def test_a_missing_answer_is_left_out_and_counted(tmp_path):
    write_world(tmp_path)
    result = score(read_items(answers_of(tmp_path, [(0, "yes"), (1, "no"), (3, "yes")]), tmp_path))
    figures = result.breakdown["categories"]["popular"]
    assert (figures["samples"], figures["accuracy"], result.counts["missing"]) == (3, 2 / 3, 1)


def test_of_several_answers_the_last_counts(tmp_path):
    write_world(tmp_path)
    result = score(read_items(answers_of(tmp_path, [(0, "yes"), (0, "no")]), tmp_path))
    assert result.breakdown["categories"]["popular"]["FN"] == 1 and result.counts["duplicates"] == 1


def test_a_model_that_always_says_no_scores_nothing_rather_than_failing(tmp_path):
    write_world(tmp_path)
    result = score(read_items(answers_of(tmp_path, [(key, "no") for key in range(4)]), tmp_path))
    assert result.headline == {"f1_score": 0.0}
    assert result.breakdown["categories"]["popular"]["accuracy"] == 0.5


@given(st.text())
def test_no_answer_stops_the_scorer(text):
    row = {"question_id": 1, "category": "popular", "question": "?", "answer": "yes"}
    items = [{**row, "response": text}]
    assert score(items) == score(items)
    assert parse(text, row) in ("yes", "no")


def test_a_folder_without_labels_is_named(tmp_path):
    write_world(tmp_path)
    (tmp_path / "coco_pope_popular.jsonl.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"coco_pope_popular\.jsonl"):
        read_items(answers_of(tmp_path, []), tmp_path)


def test_references_are_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of questions\.jsonl"):
        read_items(tmp_path, None)
