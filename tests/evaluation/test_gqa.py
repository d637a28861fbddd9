"""GQA: exact matches after LLaVA's step, by type, from both layouts of predictions."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.gqa import parse, prompt, read_items, score
from tests.evaluation.samples import write_lines


def question(answer, structural="query", semantic="attr", text="Which colour?", **more):
    types = {"structural": structural, "semantic": semantic, "detailed": "x"}
    return {"question": text, "answer": answer, "isBalanced": True, "types": types} | more


QUESTIONS = {
    "1": question("red"),
    "2": question("yes", "verify", "obj", "Is it there?"),
    "3": question("no", "verify", "rel", "Is it so?"),
}


def write_questions(folder, questions):
    folder.mkdir(exist_ok=True)
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions))


def write_answers(folder, answers, questions=QUESTIONS):
    write_questions(folder, questions)
    return write_lines(folder / "predictions.jsonl", [{"question_id": name, "text": text} for name, text in answers])


def test_an_answer_is_right_if_it_is_the_reference(tmp_path):
    """Capitals and full stops at the end do not count, all else does."""
    path = write_answers(tmp_path, [("3", "no, it is"), ("2", "YES.."), ("1", "Red.")])
    result = score(read_items(path, None))
    assert result.headline == {"accuracy": 66.67}
    assert result.breakdown == {
        "accuracyPerLength": {"2": 100.0, "3": 50.0},
        "binary": 50.0,
        "open": 100.0,
        "accuracyPerStructuralType": {"query": 100.0, "verify": 50.0},
        "accuracyPerSemanticType": {"attr": 100.0, "obj": 100.0, "rel": 0.0},
    }


def test_both_layouts_of_predictions_give_the_same_items(tmp_path):
    """The official list, and the lines that LLaVA's script makes it of."""
    path = write_answers(tmp_path, [("1", "red"), ("2", "no")])
    official = tmp_path / "testdev_balanced_predictions.json"
    official.write_text(
        json.dumps([{"questionId": "2", "prediction": "no"}, {"questionId": "1", "prediction": "red"}])
    )
    assert read_items(official, None) == read_items(path, tmp_path / "testdev_balanced_questions.json")


def test_missing_and_repeated_predictions_are_counted(tmp_path):
    """Missing is wrong, the last of several counts."""
    result = score(read_items(write_answers(tmp_path, [("1", "blue"), ("1", "red")]), None))
    assert result.headline == {"accuracy": 33.33}
    assert result.counts == {
        "questions": 3, "answered": 1, "missing": 2, "unparsed": 0, "duplicates": 1, "unbalanced": 0
    }  # fmt: skip


def test_questions_that_are_not_balanced_do_not_count(tmp_path):
    """They are scored as nothing."""
    questions = QUESTIONS | {"2": question("yes", "verify", isBalanced=False)}
    result = score(read_items(write_answers(tmp_path, [("1", "red"), ("3", "no")], questions), None))
    assert result.headline == {"accuracy": 100.0}
    assert result.scores == [100.0, None, 100.0]
    assert result.counts["unbalanced"] == 1


def test_predictions_of_other_questions_are_left_out_with_a_warning(tmp_path, caplog):
    """Unless all are."""
    with caplog.at_level(logging.WARNING):
        items = read_items(write_answers(tmp_path, [("1", "red"), ("9", "red")]), None)
    assert len(items) == 3
    assert "1 predictions are of questions that are not in" in caplog.text
    with pytest.raises(ValueError, match="none of its questions is in"):
        read_items(write_answers(tmp_path, [("9", "red")]), None)


def test_rows_without_types_have_no_figures_by_type():
    """Such as rows of one's own."""
    result = score([{"id": "1", "question": "Which?", "answer": "red", "response": "red"}])
    assert result.headline == {"accuracy": 100.0}
    assert set(result.breakdown) == {"accuracyPerLength"}


def test_a_damaged_file_is_refused(tmp_path):
    """The message says what is wrong."""
    path = write_answers(tmp_path, [("1", "red")], {"1": {"question": "Which?"}})
    with pytest.raises(ValueError, match="has no field 'answer'"):
        read_items(path, None)
    write_questions(tmp_path, [])
    with pytest.raises(ValueError, match="must be a JSON object of questions"):
        read_items(path, None)


@settings(deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1, max_size=5))
def test_any_response_is_scored_and_again_alike(responses):
    """No text is refused."""
    items = [QUESTIONS["1"] | {"id": str(number), "response": text} for number, text in enumerate(responses)]
    assert score(items) == score(items)


def test_prompt_and_parse():
    """The question with the short-answer line; an answer as LLaVA's script turns it."""
    assert prompt({"question": "Which?"}) == "Which?\nAnswer the question using a single word or phrase."
    assert parse(" Red..", {}) == " red"
