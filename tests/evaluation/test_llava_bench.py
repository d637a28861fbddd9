"""LLaVA-Bench: figures from stored reviews."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.llava_bench import prompt, read_items, score
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample, write_lines


SAMPLE = "llava_bench/visualcot_7b"


def item(number, pair, category="conv"):
    return {"question_id": number, "question": "What?", "category": category, "response": "That.", "tuple": pair}


@needs_samples
def test_the_official_figures_come_out():
    expected = read_sample(f"{SAMPLE}/expected.json")["summary"]
    for predictions in (SAMPLES / SAMPLE, SAMPLES / SAMPLE / "reviews.jsonl"):
        items = read_items(predictions)
        result = score(items)
        assert result.breakdown == {"summary": expected}
        assert result.headline == expected["all"]
        assert result.counts["judged"] == 60
        assert score(items[::-1]).to_json() == result.to_json()


def test_the_figure_is_a_ratio_of_means():
    result = score([item(0, [10.0, 5.0]), item(1, [2.0, 2.0])])
    assert result.headline == {"relative": 58.3, "gpt4": 60.0, "model": 35.0}


def test_means_are_rounded_before_they_are_related():
    pairs = [[9.0, 1.0], [9.0, 1.0], [9.0, 2.0]]
    assert score([item(number, pair) for number, pair in enumerate(pairs)]).headline["relative"] == round(
        1.333 / 9 * 100, 1
    )


def test_unread_reviews_stay_in_the_average():
    result = score([item(0, [9.0, 8.0]), item(1, [-1, -1])])
    assert result.headline == {"relative": 87.5, "gpt4": 40.0, "model": 35.0}
    assert result.counts["unparsed"] == 1


def test_categories_have_their_official_names():
    items = [item(0, [8, 4]), item(1, [8, 8], "llava_bench_detail"), item(2, [8, 2], None)]
    summary = score(items).breakdown["summary"]
    assert {name: row["relative"] for name, row in summary.items()} == {
        "all": 58.3, "llava_bench_conv": 50.0, "llava_bench_detail": 100.0,
    }  # fmt: skip


def test_figures_are_withheld_while_an_answer_is_unjudged():
    items = [item(0, [8, 4]), item(1, None)]
    result = score(items)
    assert result.headline == {"relative": None, "gpt4": None, "model": None}
    assert result.breakdown == {}
    assert (result.counts["judged"], result.counts["unjudged"]) == (1, 1)
    assert score(items, allow_partial=True).headline["relative"] == 50.0


def test_a_missing_answer_is_counted():
    assert score([{**item(0, None), "response": None}]).counts["missing"] == 1


def test_reviews_that_are_twice_count_twice():
    result = score([item(0, [8, 4]), item(0, [8, 8])])
    assert result.headline["relative"] == 75.0
    assert result.counts["duplicates"] == 1


def test_a_reference_without_a_rating_has_no_ratio():
    assert score([item(0, [0, 4])]).headline == {"relative": None, "gpt4": 0.0, "model": 40.0}


@given(st.text(), st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=5))
def test_any_answer_is_scored_and_again_alike(response, pairs):
    items = [{**item(number, list(pair)), "response": response} for number, pair in enumerate(pairs)]
    assert score(items).to_json() == score(items).to_json() == score(items[::-1]).to_json()


def test_the_question_is_the_prompt():
    assert prompt(item(0, None)) == "What?"


def test_packed_reviews_in_a_folder_are_read(tmp_path):
    path = write_lines(
        tmp_path / "reviews.jsonl", [{"question_id": 3, "category": "llava_bench_conv", "tuple": [8, 6]}]
    )
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "reviews.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_items(path) == read_items(tmp_path / "packed")


def test_reviews_without_category_may_call_the_pair_a_score(tmp_path):
    items = read_items(write_lines(tmp_path / "reviews.jsonl", [{"question_id": 3, "score": [8, 6]}]))
    assert score(items).breakdown == {"summary": {"all": {"relative": 75.0, "gpt4": 80.0, "model": 60.0}}}


@pytest.mark.parametrize("pair", [[8], "8 6", [8, None], [8, float("nan")], [True, 1]])
def test_a_review_must_have_two_ratings(tmp_path, pair):
    rows = [{"question_id": 0, "tuple": [8, 6]}, {"question_id": 1, "tuple": pair}]
    with pytest.raises(ValueError, match="row 2: `tuple` must be two ratings"):
        read_items(write_lines(tmp_path / "reviews.jsonl", rows))


def test_a_review_without_ratings_is_named(tmp_path):
    with pytest.raises(ValueError, match="row 1, has no field 'tuple'"):
        read_items(write_lines(tmp_path / "reviews.jsonl", [{"question_id": 0, "category": "llava_bench_conv"}]))
