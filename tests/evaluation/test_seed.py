"""SEED-Bench: strict and tolerant letters, types, the id that is there twice, and the submission."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.seed import parse, prompt, read_items, score, write_submission
from tests.evaluation.samples import SAMPLES, needs_samples, read_lines, read_sample, write_lines


QUESTIONS = [
    {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "A"},
    {"question_id": "2", "question_type_id": 9, "data_type": "image", "answer": "B"},
    {"question_id": "v3", "question_type_id": 10, "data_type": "video", "answer": "C"},
]


def scored(tmp_path, answers, rule="official", questions=QUESTIONS):
    source = tmp_path / "SEED-Bench.json"
    source.write_text(json.dumps({"questions": questions}), encoding="utf-8")
    return score(read_items(write_lines(tmp_path / "answers.jsonl", answers), source), rule)


@needs_samples
@pytest.mark.parametrize(
    ("rule", "name"),
    [("official", "llava_script"), ("official", "share4v_script"), ("tolerant", "share4v_script_tolerant")],
)
def test_messy_answers_score_what_the_scripts_print(rule, name):
    expected = read_sample("seed/messy_synthetic/expected.json")
    result = score(read_items(SAMPLES / "seed/messy_synthetic", SAMPLES / "seed"), rule)
    figures = result.breakdown | result.headline
    assert {key: figures[key] for key in expected[name]} == expected[name]
    if rule == "official":
        assert result.counts["image_correct"] == expected["image_correct_strict"]
        assert result.counts["image_total"] == expected["image_total"]


@needs_samples
def test_the_order_of_answers_to_different_questions_does_not_matter(tmp_path):
    answers = read_lines(SAMPLES / "seed/messy_synthetic/predictions.jsonl.gz")
    twice = [row for row in answers if row["question_id"] == "49914"]
    others = [row for row in answers if row["question_id"] != "49914"]
    random.Random(0).shuffle(others)
    shuffled = read_items(write_lines(tmp_path / "answers.jsonl.gz", others + twice), SAMPLES / "seed")
    assert score(shuffled) == score(read_items(SAMPLES / "seed/messy_synthetic", SAMPLES / "seed"))


def test_a_prompt_has_four_choices_and_asks_for_a_letter():
    row = {"question": "How many?", "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4"}
    assert prompt(row) == (
        "How many?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer with the option's letter from the given choices directly."
    )


def test_ids_are_joined_as_numbers_and_as_text(tmp_path):
    result = scored(tmp_path, [{"question_id": 1, "text": "A"}, {"question_id": "v3", "text": "C"}])
    assert result.headline == {"Total accuracy": 66.67, "image accuracy": 50.0, "video accuracy": 100.0}
    assert result.breakdown == {"Scene Understanding": 100.0, "Text Understanding": 0.0, "Action Recognition": 100.0}
    assert result.counts["missing"] == 1 and result.scores == [100.0, 0.0, 100.0]


def test_of_several_answers_the_last_counts(tmp_path):
    result = scored(tmp_path, [{"question_id": "1", "text": "A"}, {"question_id": "1", "text": "B"}])
    assert result.scores[0] == 0.0 and result.counts["duplicates"] == 1


def test_the_last_answer_to_an_id_counts_for_both_of_its_questions():
    row = {"question_id": "49914", "question_type_id": 4, "data_type": "image", "answer": "B"}
    result = score([{**row, "response": "B"}, {**row, "question_type_id": 2, "response": "A"}])
    assert result.scores == [0.0, 0.0] and result.counts["duplicates"] == 1


def test_there_is_no_video_accuracy_without_a_video(tmp_path):
    assert "video accuracy" not in scored(tmp_path, [], questions=QUESTIONS[:2]).headline


def test_the_tolerant_rule_takes_the_first_character(tmp_path):
    answers = [{"question_id": "1", "text": "A. a cat"}, {"question_id": "2", "text": " B"}]
    assert scored(tmp_path, answers).scores == [0.0, 0.0, 0.0]
    assert scored(tmp_path, answers, "tolerant").scores == [100.0, 0.0, 0.0]


@given(st.text(), st.sampled_from(["official", "tolerant"]))
def test_no_answer_stops_the_scorer(text, rule):
    items = [{**row, "response": text} for row in QUESTIONS]
    assert score(items, rule) == score(items, rule)
    assert parse(text) in (None, "A", "B", "C", "D")


def test_answers_to_unknown_questions_are_told(tmp_path, caplog):
    scored(tmp_path, [{"question_id": "77", "text": "A"}])
    assert "1 of 1 answered questions are not in the references" in caplog.text


def test_an_answer_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"answers\.jsonl, row 1: `text` must be text, got NoneType"):
        scored(tmp_path, [{"question_id": "1", "text": None}])


@pytest.mark.parametrize("change", [{"question_type_id": 13}, {"question_type_id": [1]}, {"data_type": "audio"}])
def test_an_unknown_type_or_kind_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match=r"row 1: `\w+` must be one of"):
        scored(tmp_path, [], questions=[{**QUESTIONS[0], **change}])


def test_the_submission_is_a_line_a_question(tmp_path):
    items = [{**row, "response": "A"} for row in QUESTIONS]
    write_submission(items, tmp_path / "upload.jsonl")
    assert read_lines(tmp_path / "upload.jsonl")[2] == {"question_id": "v3", "prediction": "A"}


def test_a_submission_without_an_answer_is_refused(tmp_path):
    items = [{**QUESTIONS[0], "response": None}]
    with pytest.raises(ValueError, match="1 of 1 questions have no answer, first: 1"):
        write_submission(items, tmp_path / "upload.jsonl")
