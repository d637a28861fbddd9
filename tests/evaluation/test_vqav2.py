"""VQA v2: official figures under three rules, joins, and the upload."""

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.vqa_accuracy import answer_accuracy
from evaluation.vqav2 import BENCHMARK, parse, prompt, read_items, score, write_submission
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample


SAMPLE = "vqav2/synthetic_val"


def references(*answers):
    return [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(answers, 1)]


def item(response, answers, number=1):
    row = {"question_id": number, "question": "What?", "question_type": "what", "answer_type": "other"}
    return row | {"answers": references(*answers), "response": response}


def write_files(folder, results, items):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    rows = [{name: value for name, value in row.items() if name != "response"} for row in items]
    (folder / "annotations.json").write_text(json.dumps({"annotations": rows}))
    return folder


@needs_samples
@pytest.mark.parametrize(
    ("rule", "each", "variant"),
    [
        ("official", "expected_per_question.json", "a013f00_2021_HEAD"),
        ("vqa_2016", "expected_per_question_2016.json", "458a8b2_2016"),
        (
            "always_normalise",
            "expected_per_question_always_normalise.json",
            "always_normalise_both_sides (lmms-eval, VLMEvalKit)",
        ),
    ],
)
def test_official_figures_come_out_exactly(rule, each, variant):
    """Overall, and each of 1,500 questions."""
    items = read_items(SAMPLES / SAMPLE / "results.json", SAMPLES / SAMPLE / "annotations.json")
    result = score(items, rule)
    assert result.headline["overall"] == read_sample(f"{SAMPLE}/expected.json")["overall_by_variant"][variant]
    found = {str(row["question_id"]): value for row, value in zip(items, result.scores, strict=True)}
    assert found == read_sample(f"{SAMPLE}/{each}")


@needs_samples
def test_official_figures_by_type_come_out_exactly():
    """By type of question and of answer, from a folder and from packed files in any order."""
    expected = read_sample(f"{SAMPLE}/expected.json")
    result = score(read_items(SAMPLES / SAMPLE, None))
    assert result.breakdown == {name: expected[name] for name in ("perQuestionType", "perAnswerType")}


@needs_samples
def test_shuffled_and_packed_predictions_change_nothing(tmp_path):
    """The rule joins by id."""
    rows = read_sample(f"{SAMPLE}/results.json")
    random.Random(1).shuffle(rows)
    packed = tmp_path / "results.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    expected = score(read_items(SAMPLES / SAMPLE, None))
    for predictions in (packed, tmp_path):
        assert score(read_items(predictions, SAMPLES / SAMPLE)).to_json() == expected.to_json()


def test_equal_references_are_compared_as_they_are():
    """The official rule sees capitals there; the two others do not."""
    items = [item("Yes", ["yes"] * 10)]
    assert score(items).headline == {"overall": 0.0}
    assert score(items, "vqa_2016").headline == {"overall": 100.0}
    assert score(items, "always_normalise").headline == {"overall": 100.0}


def test_references_that_differ_in_blanks_only_are_equal():
    """Newlines and blanks go before references are compared."""
    assert score([item("The dog", ["the dog", " the dog\n"] * 5)]).headline == {"overall": 0.0}


def test_the_rule_of_2016_leaves_articles_in_references():
    """A reference with an article is never met."""
    items = [item("the table", ["the table"] * 9 + ["dog"])]
    assert score(items, "vqa_2016").headline == {"overall": 0.0}
    assert score(items).headline == {"overall": 100.0}


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 100.0), (9, 100.0)])
def test_accuracy_grows_with_the_references_that_agree(agreeing, expected):
    """Each reference is left out once."""
    items = [item("red", ["red"] * agreeing + [f"other {place}" for place in range(10 - agreeing)])]
    assert score(items).scores == [expected]


def test_equal_references_without_ids_are_left_out_together():
    """The official code compares whole objects, so that duplicates vanish with the one that is left out."""
    answers = [{"answer": text} for text in ["red"] * 3 + ["blue"] * 7]
    found = score([item("red", []) | {"answers": answers}]).scores
    assert found == [70.0]  # three times 0, seven times 1
    assert answer_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx(0.9)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_counting_is_leaving_out_one_by_one(answers):
    """The same bits as the loops of the official code."""
    for answer in "abcd":
        places = range(len(answers))
        shares = [min(1, sum(answers[j] == answer for j in places if j != i) / 3) for i in places]
        assert answer_accuracy(answer, answers) == float(sum(shares)) / len(shares)


def test_a_missing_prediction_is_wrong_and_counted(tmp_path):
    """The question stays in the mean."""
    items = [item("red", ["red"] * 9 + ["blue"], number) for number in (1, 2)]
    folder = write_files(tmp_path, [{"question_id": 2, "answer": "red"}], items)
    result = score(read_items(folder, None))
    assert result.headline == {"overall": 50.0}
    assert result.counts == {"questions": 2, "answered": 1, "missing": 1, "unparsed": 0, "duplicates": 0}


def test_the_last_of_several_predictions_counts(tmp_path):
    """As in the official reader, and the others are counted."""
    items = [item("red", ["red"] * 9 + ["blue"])]
    rows = [{"question_id": 1, "answer": answer} for answer in ("red", "the", "green")]
    result = score(read_items(write_files(tmp_path, rows, items), None))
    assert result.headline == {"overall": 0.0}
    assert result.counts["duplicates"] == 2


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"question_id": 7, "answer": "red"}], "1 of its questions are not in"),
        ([{"question_id": "1", "answer": "red"}], "row 1: 'question_id' must be a JSON integer"),
        ([{"question_id": 1, "answer": None}], "row 1: 'answer' must be a JSON string"),
        ([{"question_id": 1}], "row 1, has no field 'answer'"),
        ([3], "row 1, must be a JSON object"),
        ({}, "must be a JSON list"),
    ],
)
def test_files_of_another_layout_are_refused_by_row(tmp_path, results, message):
    """The message says which row and why."""
    with pytest.raises(ValueError, match=message):
        read_items(write_files(tmp_path, results, [item(None, ["red"] * 10)]), None)


def test_references_without_answers_are_refused(tmp_path):
    """Test splits have no labels."""
    with pytest.raises(ValueError, match="Labels of a test split are hidden"):
        score([item("red", [])])
    with pytest.raises(ValueError, match="`answers` must be a list"):
        read_items(write_files(tmp_path, [], [item(None, [])]), None)


def test_an_unknown_rule_and_nothing_to_score_are_refused():
    """Neither has a figure."""
    with pytest.raises(ValueError, match="no rule 'strict'"):
        score([item("red", ["red"] * 10)], "strict")
    with pytest.raises(ValueError, match="nothing to score"):
        score([])


@settings(deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=10))
def test_any_response_is_scored_and_again_alike(responses, answers):
    """No text is refused under any rule, and items stay as they were."""
    items = [item(response, answers, number) for number, response in enumerate(responses)]
    before = json.dumps(items)
    for rule in BENCHMARK.rules:
        result = score(items, rule)
        assert result == score(items, rule)
        assert 0 <= result.headline["overall"] <= 100
    assert json.dumps(items) == before


def test_the_upload_has_all_questions_in_their_order_byte_for_byte(tmp_path):
    """Answers in M4C's form, an empty one where the model was not asked."""
    rows = [{"image_id": 9, "question": "Q?", "question_id": number} for number in (30, 10, 20)]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": rows}))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [{"question_id": 10, "response": "The dog's caf\u00e9"}, {"question_id": 20, "response": None}]
    for name in ("questions.json", "questions.jsonl"):
        write_submission(items, tmp_path / "upload.json", tmp_path / name)
        assert (tmp_path / "upload.json").read_bytes() == (
            b'[{"question_id": 30, "answer": ""}, {"question_id": 10, "answer": "dog \'s caf\\u00e9"}, '
            b'{"question_id": 20, "answer": ""}]'
        )


def test_the_upload_without_a_questions_file_has_the_items(tmp_path):
    """In their order."""
    write_submission([{"question_id": 2, "response": "two"}], tmp_path / "upload.json")
    assert (tmp_path / "upload.json").read_text() == '[{"question_id": 2, "answer": "2"}]'


def test_the_upload_refuses_an_answer_to_no_question(tmp_path):
    """It would be lost."""
    (tmp_path / "questions.json").write_text('{"questions": [{"question_id": 1}]}')
    with pytest.raises(ValueError, match=r"not in .*first \[2\]"):
        write_submission([{"question_id": 2, "response": "x"}], tmp_path / "upload.json", tmp_path / "questions.json")


def test_prompt_and_parse():
    """The question with the short-answer line, the answer in its normal form."""
    assert prompt({"question": "Is it red?"}) == "Is it red?\nAnswer the question using a single word or phrase."
    assert parse("The Dog.", {}) == "dog"
