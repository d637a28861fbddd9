"""VizWiz: official figures, unanswerable questions, and the upload."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.vizwiz import average_precision, parse, prompt, read_items, score, write_submission
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample


def item(response, answers, name="VizWiz_val_00000000", **more):
    row = {"question_id": name, "question": "What is this?", "answers": answers, "category": "other"}
    return row | {"response": response} | more


def write_files(folder, results, annotations):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder


def annotation(image, answers, answerable=1):
    texts = [{"answer": text, "answer_confidence": "yes"} for text in answers]
    row = {"image": image, "question": "What is this?", "answers": texts}
    return row | {"answer_type": "other", "answerable": answerable}


@needs_samples
def test_official_figures_of_the_constant_answer_come_out_exactly(tmp_path):
    """Accuracy by type, average precision and F1, from predictions in any order."""
    images = [row["image"] for row in read_sample("vizwiz/real_val/annotations.json")]
    random.Random(1).shuffle(images)
    rows = [{"image": image, "answer": "Unanswerable"} for image in images]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    result = score(read_items(tmp_path, SAMPLES / "vizwiz/real_val/annotations.json"))
    expected = read_sample("vizwiz/real_val_all_unanswerable/expected.json")
    assert result.headline == {"overall": expected["overall"]}
    assert result.breakdown == {name: expected[name] for name in ("perAnswerType", "unanswerability")}


@needs_samples
def test_prompts_are_those_of_the_original_script():
    """Character by character, the question as it is."""
    rows = read_sample("vizwiz/prompt_cases.json")["rows"]
    assert len(rows) == 40
    assert [prompt(row) for row in rows] == [row["prompt"] for row in rows]


def test_references_are_never_normalised():
    """A reference that is not in normal form cannot be met."""
    assert score([item("cant see", ["cant see"] * 10)]).headline == {"overall": 0.0}
    assert score([item("Dog.", ["dog"] * 10)]).headline == {"overall": 100.0}
    assert score([item("dont", ["don't"] * 10)]).headline == {"overall": 0.0}


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 100.0)])
def test_references_are_left_out_by_place(agreeing, expected):
    """Equal ones stay."""
    assert score([item("red", ["red"] * agreeing + ["blue"] * (10 - agreeing))]).scores == [expected]


def test_items_of_both_readers_are_the_same(tmp_path):
    """Official files give the fields of the Hub's copy."""
    answers = ["red"] * 10
    folder = write_files(
        tmp_path,
        [{"image": "VizWiz_val_00000000.jpg", "answer": "red"}],
        [annotation("VizWiz_val_00000000.jpg", answers)],
    )
    assert read_items(folder, None) == [item("red", answers, answerable=1)]


def test_missing_and_repeated_predictions_are_counted(tmp_path):
    """Missing is wrong, the last of several counts."""
    annotations = [annotation(f"{name}.jpg", ["red"] * 10) for name in "ab"]
    results = [{"image": "a.jpg", "answer": "blue"}, {"image": "a.jpg", "answer": "red"}]
    result = score(read_items(write_files(tmp_path, results, annotations), None))
    assert result.headline == {"overall": 50.0}
    assert result.counts == {"questions": 2, "answered": 1, "missing": 1, "unparsed": 0, "duplicates": 1}


def test_what_the_model_says_of_answerability_counts_before_its_answer(tmp_path):
    """A number in the predictions is taken as it is; without one the answer decides."""
    annotations = [annotation("a.jpg", ["x"] * 10, 0), annotation("b.jpg", ["x"] * 10, 1)]
    said = [
        {"image": "a.jpg", "answer": "x", "answerable": 0.2},
        {"image": "b.jpg", "answer": "unanswerable", "answerable": 0.9},
    ]
    found = score(read_items(write_files(tmp_path, said, annotations), None)).breakdown["unanswerability"]
    assert found == {"average_precision": 100.0, "f1_score": 100.0}
    silent = [{"image": row["image"], "answer": row["answer"]} for row in said]
    found = score(read_items(write_files(tmp_path, silent, annotations), None)).breakdown["unanswerability"]
    assert found == {"average_precision": 50.0, "f1_score": 0.0}


def test_without_labels_there_are_no_figures_of_answerability():
    """The Hub's copy has none."""
    assert set(score([item("red", ["red"] * 10)]).breakdown) == {"perAnswerType"}


@pytest.mark.parametrize(
    ("labels", "certainty", "expected"),
    [
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], (1 + 2 / 3) / 2),
        ([1, 0], [0.5, 0.5], 0.5),  # equal ones share a threshold
        ([0, 0], [0.1, 0.2], 0.0),
    ],
)
def test_average_precision_by_hand(labels, certainty, expected):
    """Precision at each threshold times the recall gained there."""
    assert average_precision(labels, certainty) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=12))
def test_average_precision_is_that_of_scikit_learn(pairs):
    """The library that the official evaluator calls."""
    metrics = pytest.importorskip("sklearn.metrics")
    labels, certainty = zip(*pairs, strict=True)
    if any(labels):
        assert average_precision(labels, certainty) == pytest.approx(
            metrics.average_precision_score(labels, certainty)
        )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "z.jpg", "answer": "x"}, "1 of its questions are not in"),
        ({"image": 3, "answer": "x"}, "'image' must be a JSON string"),
        ({"image": "a.jpg", "answer": "x", "answerable": "no"}, "`answerable` must be a number from 0 to 1"),
    ],
)
def test_predictions_of_another_layout_are_refused(tmp_path, row, message):
    """The message says what is wrong."""
    with pytest.raises(ValueError, match=message):
        read_items(write_files(tmp_path, [row], [annotation("a.jpg", ["x"] * 10)]), None)


@settings(deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1, max_size=5))
def test_any_response_is_scored_and_again_alike(responses):
    """No text is refused."""
    items = [item(response, ["red"] * 10, answerable=1) for response in responses]
    assert score(items) == score(items)


def test_the_upload_is_the_servers_byte_for_byte(tmp_path):
    """File names and answers in M4C's form."""
    write_submission([item("The dog's", [], "VizWiz_test_1"), item("", [], "b.png")], tmp_path / "upload.json")
    assert (tmp_path / "upload.json").read_bytes() == (
        b'[{"image": "VizWiz_test_1.jpg", "answer": "dog \'s"}, {"image": "b.png", "answer": ""}]'
    )


def test_the_upload_wants_every_answer(tmp_path):
    """The server refuses a part."""
    with pytest.raises(ValueError, match="1 of 2 questions have no answer, first .'b'."):
        write_submission([item("x", [], "a"), item(None, [], "b")], tmp_path / "upload.json")


def test_parse_gives_the_normal_form():
    """By the rule of VizWiz."""
    assert parse("Unanswerable.", {}) == "unanswerable"
