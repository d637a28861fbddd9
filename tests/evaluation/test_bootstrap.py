"""Intervals: what is drawn, that the draws are those of the official rule, and that they are the same each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import mme, pope
from evaluation.base import ScoreResult
from evaluation.bootstrap import interval, paired_difference
from evaluation.catalogue import module
from evaluation.outcomes import Outcomes, outcomes_of, read_outcomes, write_outcomes
from evaluation.results import EXACT, ROUNDED
from tests.evaluation.evaluations import mme_rows, pope_rows
from tests.evaluation.samples import SAMPLES, needs_samples


def outcomes(values, statistic="mean", strata=None):
    array = np.array(values, dtype=float).reshape(len(values), -1)
    names = [f"{place:05d}" for place in range(len(values))]
    return Outcomes(statistic, "question", names, strata or [""] * len(values), array)


def test_interval_of_a_share_is_that_of_the_normal_approximation():
    found = interval(outcomes([1.0] * 600 + [0.0] * 400))
    error = 1.96 * (0.6 * 0.4 / 1000) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.6 - error, 0.6 + error), abs=0.004)
    assert (found.n, found.unit) == (1000, "question")


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        found = interval(outcomes(generator.random(80) < 0.7), resamples=400)
        covered += found.low <= 0.7 <= found.high
    assert 178 <= covered <= 198


def test_same_seed_gives_the_same_interval_and_another_one_does_not():
    units = outcomes(np.random.default_rng(1).random(50))
    assert interval(units) == interval(units)
    assert interval(units, seed=1) != interval(units)


def test_order_of_units_does_not_matter():
    units = outcomes(np.random.default_rng(1).random(50), strata=["a", "b"] * 25, statistic="sum_of_means")
    order = np.random.default_rng(2).permutation(50)
    shuffled = Outcomes(
        "sum_of_means",
        "question",
        [units.names[one] for one in order],
        [units.strata[one] for one in order],
        units.values[order],
    )
    assert interval(shuffled) == interval(units)


def test_sample_without_spread_is_marked_as_flat():
    assert interval(outcomes([1.0] * 6)).to_json()["flat"]
    assert not interval(outcomes([1.0, 0.0] * 6)).to_json()["flat"]


def test_ratio_to_nothing_has_no_interval():
    assert interval(outcomes([[0, 5], [0, 7]], "ratio")) is None


def test_tasks_keep_their_sizes():
    units = outcomes([200.0] * 3 + [0.0] * 5, "sum_of_means", ["OCR"] * 3 + ["count"] * 5)
    found = interval(units)
    assert units.figure() == found.low == found.high == 200.0


@given(st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=8, max_size=8), st.integers(0, 100))
def test_figure_of_drawn_images_of_mme_is_that_of_the_scorer(responses, seed):
    items = [{**row, "response": one} for row, one in zip(mme_rows(4), responses, strict=True)]
    units = outcomes_of("mme", items, mme.score(items))["perception_total"]
    drawn = np.random.default_rng(seed).integers(0, 4, 4)
    again = [
        {**items[2 * image + turn], "question_id": str(place)} for place, image in enumerate(drawn) for turn in (0, 1)
    ]
    assert units.values[drawn, 0].mean() == pytest.approx(mme.score(again).headline["perception_total"])


@given(st.lists(st.sampled_from(["yes", "no"]), min_size=12, max_size=12))
def test_figure_of_pope_is_that_of_the_scorer(responses):
    rows = pope_rows(6) + pope_rows(6, "popular")
    items = [{**row, "response": one} for row, one in zip(rows, responses, strict=True)]
    result = pope.score(items)
    assert outcomes_of("pope", items, result)["f1_score"].figure() == pytest.approx(result.headline["f1_score"])


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20))
def test_swapping_the_models_negates_the_difference(pairs):
    one, other = (outcomes([pair[side] for pair in pairs]) for side in (0, 1))
    forth, found = paired_difference(one, other, resamples=50)
    back, turned = paired_difference(other, one, resamples=50)
    assert forth == pytest.approx(-back)
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=2e-6)


def test_paired_interval_is_narrower_than_that_of_each_where_questions_are_hard_for_both():
    hard = np.random.default_rng(0).random(200)
    one, other = outcomes(hard), outcomes(hard - 0.01)
    difference, found = paired_difference(one, other)
    assert difference == pytest.approx(0.01)
    assert found.high - found.low < 0.1 * (interval(one).high - interval(one).low)


def test_other_units_cannot_be_compared():
    one = outcomes([1.0, 0.0])
    other = Outcomes("mean", "question", ["a", "b"], ["", ""], one.values)
    with pytest.raises(ValueError, match="same units"):
        paired_difference(one, other)


def test_questions_with_one_id_are_two_units():
    items = [
        {"question_id": 49914, "data_type": "image", "response": "A"},
        {"question_id": 49914, "data_type": "image", "response": "A"},
        {"question_id": "v1", "data_type": "video", "response": "A"},
    ]
    result = ScoreResult("seed", {"Total accuracy": 66.67}, {}, {}, scores=[100.0, 0.0, 100.0])
    found = outcomes_of("seed", items, result)
    assert found["image accuracy"].names == ["49914", "49914#2"]
    assert {figure: len(one.names) for figure, one in found.items()} == {
        "Total accuracy": 3,
        "image accuracy": 2,
        "video accuracy": 1,
    }


def test_outcomes_come_back_from_their_file(tmp_path):
    units = outcomes([[1, 0, 0, 1], [0, 0, 1, 0]], "mean_f1", ["random", "popular"])
    write_outcomes(tmp_path, {"rule": "official"}, {"f1_score": units})
    facts, found = read_outcomes(tmp_path)
    assert facts == {"rule": "official"}
    assert found["f1_score"].figure() == units.figure() == 0.5
    assert not list(tmp_path.glob("*.partial"))


SAMPLE_FOLDERS = {
    "mme": ("mme/lavin", None),
    "seed": ("seed/messy_synthetic", "seed"),
    "scienceqa": ("scienceqa/gpt3_qcm_ale", "scienceqa"),
    "qbench": ("qbench/clean_letters_synthetic", "qbench"),
    "pope": ("pope/messy_synthetic", "pope"),
    "vqav2": ("vqav2/synthetic_val", None),
    "mmvet": ("mmvet/llava15_7b_thirdparty_gpt4_0613", "mmvet"),
    "llava_bench": ("llava_bench/visualcot_7b", None),
}


@needs_samples
@pytest.mark.parametrize("name", SAMPLE_FOLDERS)
def test_units_of_official_samples_make_the_official_figures(name):
    predictions, references = SAMPLE_FOLDERS[name]
    items = module(name).read_items(SAMPLES / predictions, SAMPLES / references if references else None)
    result = module(name).score(items)
    found = outcomes_of(name, items, result)
    assert set(found) == set(result.headline) - {"std", "runs", "gpt4"}
    for figure, units in found.items():
        assert units.figure() == pytest.approx(result.headline[figure], abs=ROUNDED.get(name, EXACT))
