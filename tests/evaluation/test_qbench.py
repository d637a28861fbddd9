"""Q-Bench: three ways to be right, files that a script glued together, types and concerns."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.qbench import parse, prompt, read_items, score
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample


QUESTIONS = [
    {
        "type": 0,
        "concern": 2,
        "question": "Is it sharp?",
        "img_path": "a.jpg",
        "candidates": ["Yes", "No"],
        "correct_ans": "No",
    },
    {
        "type": 2,
        "concern": 0,
        "question": "How much of it?",
        "img_path": "b.jpg",
        "candidates": ["Bad", "All", "Some parts"],
        "correct_ans": "All",
    },
]
ROW = {"question": "?", "option0": "Bad", "option1": "All", "option2": "Some parts", "option3": "N/A"}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def whole(*responses):
    return [{**row, "response": response} for row, response in zip(QUESTIONS, responses, strict=False)]


@needs_samples
def test_prompts_are_those_of_sharegpt4v():
    for case in read_sample("qbench/prompt_cases.json")["rows"]:
        options = [*case["candidates"], "N/A", "N/A"][:4]
        row = {"question": case["question"], **{f"option{place}": text for place, text in enumerate(options)}}
        assert f"<image>\n{prompt(row)}" == case["full_user_text"]


@needs_samples
def test_letters_score_what_the_script_prints():
    expected = read_sample("qbench/clean_letters_synthetic/expected.json")
    result = score(read_items(SAMPLES / "qbench/clean_letters_synthetic", SAMPLES / "qbench"))
    assert result.headline == {"accuracy": expected["accuracy"]}
    assert result.breakdown == {"breakdown_correct_total": expected["breakdown_correct_total"]}
    assert (result.counts["correct"], result.counts["total"]) == (expected["correct"], expected["total"])
    assert result.scores == read_sample("qbench/clean_letters_synthetic/expected_hits.json")


@needs_samples
def test_shuffled_and_glued_answers_score_the_same(tmp_path):
    letters = read_sample("qbench/clean_letters_synthetic/responses.json")
    questions = read_sample("qbench/llvisionqa_dev.json")
    answers = [json.dumps({**row, "response": letter}) for row, letter in zip(questions, letters, strict=True)]
    random.Random(0).shuffle(answers)
    shuffled = read_items(write(tmp_path / "answers.jsonl", "".join(answers)), SAMPLES / "qbench")
    assert score(shuffled) == score(read_items(SAMPLES / "qbench/clean_letters_synthetic", SAMPLES / "qbench"))


@pytest.mark.parametrize(
    ("response", "taken"),
    [
        ("A", ["Bad"]),
        ("B. whatever", ["All"]),
        ("All of it", ["Bad", "All"]),
        ("Some parts", ["Some parts"]),
        ("Some", []),
        ("D", []),
        ("b", []),
        ("", []),
        (" All", []),
    ],
)
def test_an_answer_may_be_a_letter_a_first_word_or_an_option(response, taken):
    assert parse(response, ROW) == taken


@pytest.mark.parametrize("between", ["", "\n", " \n "])
def test_objects_may_be_glued_or_in_lines(tmp_path, between):
    text = between.join(json.dumps(row) for row in whole("B. No", "All }{ of it"))
    items = read_items(write(tmp_path / "answers.jsonl", text))
    assert [item["response"] for item in items] == ["B. No", "All }{ of it"]
    assert score(items).scores == [1.0, 1.0]


def test_types_and_concerns_are_counted_by_their_numbers(tmp_path):
    result = score(read_items(write(tmp_path / "responses.json", whole("A", "B"))))
    figures = result.breakdown["breakdown_correct_total"]
    assert figures == {"type=0": [0, 1], "type=2": [1, 1], "concern=0": [1, 1], "concern=2": [0, 1]}


def test_a_missing_answer_is_wrong_and_counted(tmp_path):
    source = write(tmp_path / "llvisionqa_dev.json", QUESTIONS)
    result = score(read_items(write(tmp_path / "responses.json", whole("B")), source))
    assert result.scores == [1.0, 0.0] and result.counts["missing"] == 1


def test_of_several_answers_the_last_counts(tmp_path):
    answers = write(tmp_path / "responses.json", [*whole("B", "B"), *whole("A")])
    result = score(read_items(answers, write(tmp_path / "llvisionqa_dev.json", QUESTIONS)))
    assert result.scores == [0.0, 1.0] and result.counts["duplicates"] == 1


def test_without_references_every_answer_counts_as_officially(tmp_path):
    result = score(read_items(write(tmp_path / "responses.json", [*whole("B", "B"), *whole("A")])))
    assert result.headline == {"accuracy": 2 / 3} and result.counts["duplicates"] == 1


def test_a_question_that_is_twice_in_the_references_is_refused(tmp_path):
    source = write(tmp_path / "llvisionqa_dev.json", [*QUESTIONS, QUESTIONS[0]])
    with pytest.raises(ValueError, match=r"row 3: the question 'Is it sharp\?' of a\.jpg is there twice"):
        read_items(write(tmp_path / "responses.json", whole("B")), source)


def test_bare_texts_are_joined_by_order(tmp_path):
    answers = write(tmp_path / "responses.json", ["B", "A"])
    assert score(read_items(answers, write(tmp_path / "llvisionqa_dev.json", QUESTIONS))).scores == [1.0, 0.0]


def test_fewer_bare_texts_than_questions_are_refused(tmp_path):
    answers = write(tmp_path / "responses.json", ["B"])
    with pytest.raises(ValueError, match="has 1 bare answers for 2 questions"):
        read_items(answers, write(tmp_path / "llvisionqa_dev.json", QUESTIONS))


def test_bare_texts_without_questions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of llvisionqa_dev\.json"):
        read_items(write(tmp_path / "responses.json", ["B"]))


def test_questions_without_labels_are_refused(tmp_path):
    hidden = [{key: value for key, value in QUESTIONS[0].items() if key != "correct_ans"}]
    with pytest.raises(ValueError, match="row 1: `correct_ans` must be one of two to four"):
        read_items(write(tmp_path / "responses.json", ["B"]), write(tmp_path / "llvisionqa_dev.json", hidden))


def test_a_damaged_place_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2, is no JSON"):
        read_items(write(tmp_path / "answers.jsonl", json.dumps(whole("B")[0]) + "\n{broken"))


@given(st.text())
def test_no_answer_stops_the_scorer(text):
    row = {**ROW, "question_type": 2, "question_concern": 0, "correct_choice": "B"}
    items = [{**row, "response": text}]
    assert score(items) == score(items)
    assert set(parse(text, row)) <= {"Bad", "All", "Some parts"}
