"""ScienceQA: what is read from an answer, and which rows are of images."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scienceqa import parse, prompt, read_items, score
from tests.evaluation.samples import SAMPLES, needs_samples, read_lines, read_sample, write_lines


PROBLEMS = {
    "1": {"choices": ["no", "yes"], "answer": 1, "image": "image.png"},
    "2": {"choices": ["no", "yes"], "answer": 0, "image": None},
    "3": {"choices": ["a", "b", "c"], "answer": 2, "image": "image.png"},
}


def scored(tmp_path, answers, problems=PROBLEMS):
    (tmp_path / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(PROBLEMS)}), encoding="utf-8")
    return score(read_items(write_lines(tmp_path / "answers.jsonl", answers)))


@needs_samples
def test_answers_are_read_as_by_llava():
    for case in read_sample("scienceqa/parse_table.json")["rows"]:
        row = {"choices": ["x"] * case["num_choices"]}
        assert parse(case["text"], row) == {"answer": case["parsed"], "index": case["pred_index"]}


@needs_samples
def test_gpt3_scores_what_llava_prints():
    expected = read_sample("scienceqa/gpt3_qcm_ale/expected.json")
    result = score(read_items(SAMPLES / "scienceqa/gpt3_qcm_ale", SAMPLES / "scienceqa"))
    assert result.headline == {name: expected[name] for name in ("accuracy", "img_accuracy")}
    assert result.breakdown == {"acc_full": expected["acc_full"]}
    for name in ("total", "correct", "img_total", "img_correct"):
        assert result.counts[name] == expected[name]
    assert result.counts["unparsed"] == expected["n_failed_parse"]


@needs_samples
def test_every_index_is_that_of_llava():
    items = read_items(SAMPLES / "scienceqa/gpt3_qcm_ale", SAMPLES / "scienceqa")
    found = {item["question_id"]: parse(item["response"], item)["index"] for item in items}
    assert found == read_sample("scienceqa/gpt3_qcm_ale/expected_indices.json")


@needs_samples
def test_the_order_of_answers_does_not_matter(tmp_path):
    answers = read_lines(SAMPLES / "scienceqa/gpt3_qcm_ale/predictions.jsonl.gz")
    random.Random(0).shuffle(answers)
    shuffled = read_items(write_lines(tmp_path / "answers.jsonl.gz", answers), SAMPLES / "scienceqa")
    assert score(shuffled) == score(read_items(SAMPLES / "scienceqa/gpt3_qcm_ale", SAMPLES / "scienceqa"))


def test_a_prompt_has_context_only_where_there_is_some():
    row = {"question": "Which?", "choices": ["a", "b"], "hint": ""}
    text = "Which?\nA. a\nB. b\nAnswer with the option's letter from the given choices directly."
    assert prompt(row) == text
    assert prompt({**row, "hint": "Look."}) == f"Context: Look.\n{text}"


def test_image_rows_are_those_whose_recorded_prompt_has_an_image(tmp_path):
    answers = [
        {"question_id": "1", "prompt": "no image was shown", "text": "B"},
        {"question_id": "2", "prompt": "<image>\nWhich?", "text": "A"},
        {"question_id": "3", "prompt": "<image>\nWhich?", "text": "A"},
    ]
    result = scored(tmp_path, answers)
    assert result.headline == {"accuracy": 66.67, "img_accuracy": 50.0}


def test_the_image_of_a_question_decides_where_no_prompt_was_recorded(tmp_path):
    answers = [{"question_id": str(number), "text": "B"} for number in (1, 2, 3)]
    result = scored(tmp_path, answers)
    assert (result.counts["img_total"], result.counts["img_correct"]) == (2, 1)


def test_a_missing_answer_is_wrong_and_left_out_of_the_image_rows(tmp_path):
    result = scored(tmp_path, [{"question_id": "1", "prompt": "<image>", "text": "B"}])
    assert result.headline == {"accuracy": 33.33, "img_accuracy": 100.0}
    assert (result.counts["missing"], result.counts["img_missing"]) == (2, 1)


def test_of_several_answers_the_last_counts(tmp_path):
    result = scored(tmp_path, [{"question_id": "1", "text": "B"}, {"question_id": 1, "text": "A"}])
    assert result.scores == [0.0, 0.0, 0.0] and result.counts["duplicates"] == 1


def test_rows_of_the_hub_are_scored_without_ids():
    row = {"choices": ["no", "yes"], "answer": 1, "has_image": True}
    result = score([{**row, "response": "B"}, {**row, "response": "C"}])
    assert result.headline == {"accuracy": 50.0, "img_accuracy": 50.0}
    assert result.counts["unparsed"] == 1 and result.counts["duplicates"] == 0


@given(st.text())
def test_no_answer_stops_the_scorer(text):
    items = [{"choices": ["no", "yes"], "answer": 1, "image": None, "response": text}]
    assert score(items) == score(items)
    assert parse(text, items[0])["index"] in (-1, 0, 1)


def test_a_listed_problem_that_is_absent_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"problems\.json has no problem '3'"):
        scored(tmp_path, [], {key: PROBLEMS[key] for key in "12"})


def test_a_problem_without_choices_is_named(tmp_path):
    with pytest.raises(ValueError, match="problem '2' must have 'choices', a JSON array"):
        scored(tmp_path, [], {**PROBLEMS, "2": {"answer": 0}})


def test_references_are_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of problems\.json"):
        read_items(tmp_path, None)
