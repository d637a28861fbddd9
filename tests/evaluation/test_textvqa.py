"""TextVQA: prompts with OCR tokens, the join by image and question, and the official mean."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.textvqa import parse, prompt, question_of, read_items, score
from tests.evaluation.samples import needs_samples, read_sample, write_lines


SHORT = "Answer the question using a single word or phrase."


def item(response, answers):
    return {"image_id": "a1", "question": "What brand?", "answers": answers, "response": response}


def files(folder, predictions, data):
    write_lines(folder / "predictions.jsonl", predictions)
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    return folder


def reference(question, answers=("nokia",) * 10, image="a1"):
    return {"image_id": image, "question": question, "answers": list(answers)}


def prediction(question, text, image="a1"):
    return {"question_id": image, "prompt": f"{question}\n{SHORT}", "text": text}


@needs_samples
def test_prompts_are_those_of_the_original_script():
    """Character by character, an empty list of tokens included."""
    rows = read_sample("textvqa/prompt_cases.json")["rows"]
    assert len(rows) == 40
    for row in rows:
        joined = row["ocr_tokens_joined"]
        assert prompt(row | {"ocr_tokens": joined.split(", ") if joined else []}) == row["prompt"]


def test_a_row_without_tokens_has_a_prompt_of_two_lines():
    """The original annotations have no OCR."""
    assert prompt({"question": "Who?"}) == f"Who?\n{SHORT}"
    assert prompt({"question": "Who?", "ocr_tokens": []}) == f"Who?\nReference OCR token: \n{SHORT}"


@pytest.mark.parametrize(
    ("asked", "question"),
    [
        (f"What Brand?\n{SHORT}", "what brand?"),
        (f"What Brand?\nReference OCR token: a, b\n{SHORT}", "what brand?"),
        (f"Reference OCR token: a, b\nWhat Brand?\n{SHORT}", "what brand?"),
        ("OCR tokens: a. Question: What Brand? Short answer:", "what brand?"),
        ("What Brand?", None),
        (f"What Brand?\nNone\n{SHORT}", None),
        ("OCR tokens: a", None),
    ],
)
def test_the_question_is_cut_out_of_all_known_prompts(asked, question):
    """Three layouts with lines, one without; others have none."""
    assert question_of(asked) == question


def test_predictions_join_by_image_and_small_letters(tmp_path):
    """Two questions about an image and one about another, in any order."""
    data = [
        reference("What brand?"),
        reference("What Year?", ("1999",) * 10),
        reference("What brand?", ("lg",) * 10, "b2"),
    ]
    predictions = [
        prediction("what brand?", "LG", "b2"),
        prediction("What year?", "1999"),
        prediction("What brand?", "LG"),
    ]
    result = score(read_items(files(tmp_path, predictions, data), None))
    assert result.headline == {"accuracy": 66.67}
    assert result.scores == [0.0, 100.0, 100.0]
    folder = files(tmp_path, predictions[::-1], data)
    assert score(read_items(folder, folder)) == result


def test_both_sides_are_in_the_form_of_m4c():
    """Genitives, commas and numbers."""
    assert score([item("The dog's", ["dog 's"] * 10)]).headline == {"accuracy": 100.0}
    assert score([item("1,000", ["1000?"] * 10)]).headline == {"accuracy": 100.0}
    assert parse("Two dogs", {}) == "2 dogs"


def test_what_is_missing_is_left_out_of_the_mean_and_counted(tmp_path):
    """The official figure is a mean over the lines of predictions."""
    data = [reference("One?"), reference("Two?")]
    result = score(read_items(files(tmp_path, [prediction("Two?", "nokia")], data), None))
    assert result.headline == {"accuracy": 100.0}
    assert result.scores == [None, 100.0]
    assert result.counts == {"questions": 2, "answered": 1, "missing": 1, "unparsed": 0, "duplicates": 0}


def test_a_line_that_comes_twice_counts_twice(tmp_path):
    """As officially, and it is counted."""
    predictions = [prediction("One?", "nokia"), prediction("One?", "lg"), prediction("Two?", "nokia")]
    result = score(read_items(files(tmp_path, predictions, [reference("One?"), reference("Two?")]), None))
    assert result.headline == {"accuracy": 66.67}
    assert result.counts == {"questions": 2, "answered": 3, "missing": 0, "unparsed": 0, "duplicates": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (prediction("Three?", "x"), "row 1: .* has no question 'three\\?' about the image 'a1'"),
        (prediction("One?", "x") | {"prompt": "One?"}, "row 1: the prompt 'One\\?' has none of the forms"),
        (prediction("One?", None), "row 1: 'text' must be a JSON string"),
        ({"text": "x"}, "has no field 'question_id'"),
    ],
)
def test_a_prediction_that_cannot_be_joined_is_refused(tmp_path, row, message):
    """The message names the row."""
    with pytest.raises(ValueError, match=message):
        read_items(files(tmp_path, [row], [reference("One?")]), None)


def test_other_than_ten_references_are_refused():
    """The rule is made for ten."""
    with pytest.raises(ValueError, match="has 9 answers"):
        score([item("x", ["x"] * 9)])


@settings(deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1, max_size=5))
def test_any_response_is_scored_and_again_alike(responses):
    """No text is refused."""
    items = [item(response, ["nokia"] * 10) for response in responses]
    assert score(items) == score(items)
