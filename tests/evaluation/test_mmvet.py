"""MM-Vet: figures from stored grades, and files of answers and grades."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.mmvet import capabilities, parse, prompt, read_items, score, write_submission
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample


SAMPLE = "mmvet/llava15_7b_thirdparty_gpt4_0613"
METADATA = {
    "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "1<AND>2", "capability": ["ocr", "math"]},
    "v1_1": {"imagename": "v1_1.png", "question": "Which bird?", "answer": "crow<OR>raven", "capability": ["rec"]},
}
GRADES = {"v1_0": {"content": ["0.5"], "score": [0.5]}, "v1_1": {"content": ["1.0"], "score": [1.0]}}


def item(number, grades, names=("rec",), response="An answer."):
    row = {"question_id": f"v1_{number}", "question": "What?", "answer": "That.", "capability": list(names)}
    return {**row, "response": response, **({} if grades is None else {"grades": grades})}


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@needs_samples
def test_the_official_figures_come_out():
    expected = read_sample(f"{SAMPLE}/expected.json")
    for predictions in (SAMPLES / SAMPLE, SAMPLES / SAMPLE / "grades.json", SAMPLES / SAMPLE / "predictions.json"):
        result = score(read_items(predictions, SAMPLES / "mmvet" / "mm-vet_metadata.json"))
        assert result.breakdown["capability"] == expected["capability"]
        assert result.breakdown["capability_integration"] == expected["capability_integration_sorted_names"]
        assert result.headline == {"total": 30.7, "std": 0.0, "runs": "[30.7]"}
        assert result.counts["judged"] == result.counts["questions"] == 218


@needs_samples
def test_the_order_of_items_changes_nothing():
    items = read_items(SAMPLES / SAMPLE, SAMPLES / "mmvet" / "mm-vet_metadata.json")
    assert score(items[::-1]).to_json() == score(items).to_json()


def test_the_question_is_the_prompt():
    assert prompt(item(1, None)) == "What?"
    assert parse(" So. ", item(1, None)) == " So. "


def test_capabilities_may_be_a_text():
    assert capabilities({"capability": "ocr, math,ocr"}) == capabilities({"capability": ["math", "ocr"]})


def test_runs_are_averaged_and_their_totals_spread():
    result = score([item(0, [0.0, 0.4]), item(1, [1.0, 1.0])])
    assert result.headline == {"total": 60.0, "std": 10.0, "runs": "[50.0, 70.0]"}
    assert result.scores == [pytest.approx(20.0), 100.0]
    assert result.counts["runs"] == 2


def test_a_question_counts_for_each_of_its_capabilities():
    breakdown = score([item(0, [1.0], ["ocr", "math"]), item(1, [0.0], ["ocr"])]).breakdown
    assert breakdown["capability"] | {"std": 0.0} == {
        "ocr": 50.0, "math": 100.0, "total": 50.0, "std": 0.0, "runs": "[50.0]",
    }  # fmt: skip
    assert list(breakdown["capability_integration"]) == ["math_ocr", "ocr", "total", "std", "runs"]


def test_a_tie_rounds_as_in_the_official_sum():
    # 4.1 grades of 8 are 51.25: added up in the order of the questions, a little more.
    items = [item(number, [grade]) for number, grade in enumerate([0.6, 0.6, 0.0, 0.4, 0.8, 0.7, 0.6, 0.4])]
    assert score(items).headline["total"] == score(items[::-1]).headline["total"] == 51.3


def test_figures_are_rounded_as_by_numpy():
    assert score([item(0, [0.1235])]).headline["total"] == 12.4  # Python's own rounding gives 12.3


def test_figures_are_withheld_while_a_question_is_unjudged():
    items = [item(0, [1.0]), item(1, None)]
    result = score(items)
    assert result.headline == {"total": None, "std": None, "runs": None}
    assert result.breakdown == {}
    assert (result.counts["judged"], result.counts["unjudged"]) == (1, 1)
    assert score(items, allow_partial=True).headline["total"] == 100.0


def test_a_question_with_fewer_runs_is_unjudged():
    assert score([item(0, [1.0, 1.0]), item(1, [1.0])]).headline["total"] is None


def test_a_question_without_an_answer_scores_nothing():
    result = score([item(0, [1.0]), item(1, None, response=None)])
    assert result.headline["total"] == 50.0
    assert result.counts["missing"] == 1


def test_of_questions_that_are_twice_the_last_counts():
    result = score([item(0, [0.0]), item(0, [1.0])])
    assert result.headline["total"] == 100.0
    assert result.counts["duplicates"] == 1


def test_there_is_one_rule():
    with pytest.raises(ValueError, match="no rule"):
        score([], "lenient")


@given(st.text(), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_any_answer_is_scored_and_again_alike(response, grades):
    items = [item(0, grades, response=response), item(1, grades)]
    assert score(items).to_json() == score(items).to_json() == score(items[::-1]).to_json()


def test_a_folder_of_answers_and_grades_is_read(tmp_path):
    answers = {"v1_0": "1 and 2", "v1_1": "A crow."}
    folder = write(tmp_path / "run", predictions=answers, grades=GRADES, metadata=METADATA)
    items = read_items(folder)
    assert [row["response"] for row in items] == list(answers.values())
    assert score(items).headline["total"] == 75.0


def test_packed_grades_are_read_alone(tmp_path):
    metadata = write(tmp_path, metadata=METADATA) / "metadata.json"
    path = tmp_path / "mine.json.gz"
    path.write_bytes(gzip.compress(json.dumps(GRADES).encode()))
    items = read_items(path, metadata)
    assert score(items).headline["total"] == 75.0
    assert "response" not in items[0]


def test_grades_lie_beside_answers_by_the_official_name(tmp_path):
    write(tmp_path, metadata=METADATA, llava={"v1_0": "1", "v1_1": "A crow."})
    write(tmp_path, **{"llava_gpt-4-0613-grade-1runs": GRADES, "other_gpt-4-0613-grade-1runs": {}})
    assert score(read_items(tmp_path / "llava.json", tmp_path)).headline["total"] == 75.0


def test_grades_of_several_judges_are_not_chosen_among(tmp_path):
    write(
        tmp_path,
        metadata=METADATA,
        llava={"v1_0": "1"},
        **{"llava_a-grade-1runs": GRADES, "llava_b-grade-1runs": GRADES},
    )
    with pytest.raises(ValueError, match="several judges"):
        read_items(tmp_path / "llava.json", tmp_path)


def test_answers_without_grades_are_unjudged(tmp_path):
    write(tmp_path, metadata=METADATA, predictions={"v1_0": "1"})
    counts = score(read_items(tmp_path)).counts
    assert (counts["unjudged"], counts["missing"]) == (1, 1)


def test_files_of_another_set_are_refused(tmp_path):
    write(tmp_path, metadata=METADATA, predictions={"v2_0": "1"})
    with pytest.raises(ValueError, match="no question of"):
        read_items(tmp_path)


@pytest.mark.parametrize("grade", [1.5, -0.1, "0.5", None])
def test_a_stored_grade_must_be_one(tmp_path, grade):
    write(tmp_path, metadata=METADATA, grades={"v1_0": {"content": ["x"], "score": [grade]}})
    with pytest.raises(ValueError, match="v1_0 must have a list of grades from 0 to 1"):
        read_items(tmp_path / "grades.json", tmp_path)


def test_a_submission_is_an_object_by_question(tmp_path):
    write_submission([item(3, None, response="So."), item(4, None, response=None)], tmp_path / "mmvet.json")
    assert json.loads((tmp_path / "mmvet.json").read_text(encoding="utf-8")) == {"v1_3": "So."}
