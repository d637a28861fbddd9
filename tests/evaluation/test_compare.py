"""Two models on the same questions: differences, McNemar's test, and what cannot be compared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.compare import compare, mcnemar
from evaluation.results import collect
from tests.evaluation.evaluations import judged, mme_rows, qbench_rows, results_of, run, vqa_rows


def two(tmp_path, name, rows, responses_a, responses_b):
    for side, responses in (("a", responses_a), ("b", responses_b)):
        collect(tmp_path / side, [run(tmp_path / side, name, rows, responses, f"model {side}")])
    return tmp_path / "a", tmp_path / "b"


def test_difference_has_an_interval_and_counts(tmp_path):
    folders = two(
        tmp_path, "qbench", qbench_rows(20), ["A"] * 15 + ["B"] * 5, ["B"] * 8 + ["A"] * 7 + ["B"] * 3 + ["A"] * 2
    )
    found = compare(*folders)
    figure = found["benchmarks"]["qbench"]["figures"]["accuracy"]
    assert figure["difference"] == pytest.approx(0.75 - 0.45)
    assert figure["low"] < 0.3 < figure["high"]
    assert (figure["n"], figure["wins"], figure["losses"], figure["ties"]) == (20, 8, 2, 10)
    assert figure["mcnemar"] == {"only_a": 8, "only_b": 2, "p": pytest.approx(0.109375)}
    assert (found["a"]["model"], found["b"]["model"]) == ("model a", "model b")


def test_swapping_the_models_negates_the_difference(tmp_path):
    folders = two(tmp_path, "mme", mme_rows(6), ["yes", "no"] * 5 + ["no", "no"], ["no", "no"] * 2 + ["yes", "no"] * 4)
    forth, back = (
        one["benchmarks"]["mme"]["figures"]["perception_total"] for one in (compare(*folders), compare(*folders[::-1]))
    )
    assert forth["difference"] == -back["difference"] == pytest.approx(25.0)
    assert (forth["low"], forth["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert (forth["wins"], forth["losses"]) == (back["losses"], back["wins"]) == (2, 1)


def test_figure_between_right_and_wrong_has_no_mcnemar_test(tmp_path):
    folders = two(tmp_path, "vqav2", vqa_rows(3), ["bee", "wasp", "fly"], ["wasp", "wasp", "wasp"])
    figure = compare(*folders)["benchmarks"]["vqav2"]["figures"]["overall"]
    assert figure["mcnemar"] is None
    assert (figure["wins"], figure["losses"], figure["ties"]) == (0, 2, 1)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_symmetric(pairs):
    one, other = np.array(pairs, dtype=float).T
    forth, back = mcnemar(one, other), mcnemar(other, one)
    assert forth["p"] == pytest.approx(back["p"])
    assert (forth["only_a"], forth["only_b"]) == (back["only_b"], back["only_a"])
    assert 0 < forth["p"] <= 1


def test_other_questions_are_refused_by_name(tmp_path):
    results_of(tmp_path / "a", ("qbench", qbench_rows(4), ["A"] * 4))
    results_of(tmp_path / "b", ("qbench", qbench_rows(3), ["A"] * 3))
    with pytest.raises(ValueError, match=r"4 questions and .* 3, .*1 are in one of them only, first '3' \(row 3\)"):
        compare(tmp_path / "a", tmp_path / "b")


def test_other_texts_under_the_same_ids_are_refused(tmp_path):
    rows = qbench_rows(2)
    results_of(tmp_path / "a", ("qbench", rows, ["A"] * 2))
    results_of(tmp_path / "b", ("qbench", [rows[0], {**rows[1], "question": "Why?"}], ["A"] * 2))
    with pytest.raises(ValueError, match=r"1 have the same id and another text, first '1' \(row 1\)"):
        compare(tmp_path / "a", tmp_path / "b")


def test_other_references_are_refused(tmp_path):
    rows = qbench_rows(2)
    results_of(tmp_path / "a", ("qbench", rows, ["A"] * 2))
    results_of(tmp_path / "b", ("qbench", [rows[0], {**rows[1], "correct_choice": "B"}], ["A"] * 2))
    with pytest.raises(ValueError, match="references or other fields"):
        compare(tmp_path / "a", tmp_path / "b")


def test_evaluation_that_was_run_again_must_be_scored_again(tmp_path):
    folders = two(tmp_path, "qbench", qbench_rows(2), ["A"] * 2, ["B"] * 2)
    run(tmp_path / "b", "qbench", qbench_rows(2), ["A"] * 2, "another model")
    with pytest.raises(ValueError, match="run again after it was scored"):
        compare(*folders)


def test_other_judges_are_refused(tmp_path):
    for side, judge in (("a", "gpt-4-0314"), ("b", "gpt-4o")):
        collect(tmp_path / side, [judged(tmp_path / side, [[8, 6], [9, 9]], judge=judge)])
    with pytest.raises(ValueError, match="the judge differs, gpt-4-0314 and gpt-4o"):
        compare(tmp_path / "a", tmp_path / "b")


def test_judged_figures_are_compared_by_the_ratio_of_means(tmp_path):
    for side, ratings in (("a", [[8, 8], [9, 9]]), ("b", [[8, 4], [9, 9]])):
        collect(tmp_path / side, [judged(tmp_path / side, ratings)])
    figure = compare(tmp_path / "a", tmp_path / "b")["benchmarks"]["llava_bench"]["figures"]["relative"]
    assert figure["difference"] == pytest.approx(100 - 100 * 13 / 17)
    assert (figure["wins"], figure["ties"]) == (1, 1)


def test_benchmarks_of_one_side_are_listed(tmp_path):
    results_of(tmp_path / "a", ("qbench", qbench_rows(2), ["A"] * 2), ("mme", mme_rows(1), ["yes", "no"]))
    results_of(tmp_path / "b", ("qbench", qbench_rows(2), ["A"] * 2))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (list(found["benchmarks"]), found["only_a"], found["only_b"]) == (["qbench"], ["mme"], [])


def test_nothing_in_common_and_nothing_scored_are_refused(tmp_path):
    results_of(tmp_path / "a", ("qbench", qbench_rows(2), ["A"] * 2))
    results_of(tmp_path / "b", ("mme", mme_rows(1), ["yes", "no"]))
    with pytest.raises(ValueError, match="none in common"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no scored benchmark"):
        compare(tmp_path / "a", tmp_path / "absent")
