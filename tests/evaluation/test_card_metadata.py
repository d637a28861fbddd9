"""Figures for cards: those of whole splits and real judges, with their number of questions, and no others."""

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from evaluation.card_metadata import eval_result_entries, model_index, write_eval_results
from evaluation.results import collect
from tests.evaluation.evaluations import judged, mme_rows, qbench_rows, results_of, run, whole


@pytest.fixture
def results(tmp_path):
    return results_of(
        tmp_path, ("qbench", qbench_rows(8), ["A"] * 6 + ["B"] * 2), ("mme", mme_rows(2), ["yes", "no"] * 2)
    )


def test_toy_runs_are_left_out_with_their_number(results, tmp_path):
    index, left_out = model_index(results, "tiny")
    entries, again = eval_result_entries(results)
    assert index == [] and entries == {} and left_out == again
    assert {one.benchmark: one.reason for one in left_out} == {
        "qbench": "a limited run: 8 of 1495 questions",
        "mme": "a limited run: 4 of 2374 questions",
    }
    assert write_eval_results(results, tmp_path)[0] == [] and not (tmp_path / ".eval_results").exists()


def test_whole_runs_are_read_by_the_hub_library(results):
    index, left_out = model_index(whole(results), "tiny")
    assert left_out == []
    name, found = model_index_to_eval_results(index)
    assert name == "tiny"
    by_name = {one.metric_name: one for one in found}
    accuracy = by_name["accuracy (n=8 questions)"]
    assert (accuracy.metric_value, accuracy.dataset_type, accuracy.dataset_split) == (
        0.75,
        "q-future/Q-Bench-HF",
        "dev",
    )
    assert accuracy.metric_args["n"] == 8 and accuracy.metric_args["rule"] == "official"
    assert by_name["perception_total (n=2 images)"].metric_value == 200.0
    assert yaml.safe_load(ModelCardData(model_name="tiny", eval_results=found).to_yaml())["model-index"]


def test_files_have_figures_with_their_number(results, tmp_path):
    paths, _ = write_eval_results(whole(results), tmp_path)
    assert sorted(path.name for path in paths) == ["mme.yaml", "qbench.yaml"]
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "qbench.yaml").read_text(encoding="utf-8"))
    assert entry["dataset"] == {"id": "q-future/Q-Bench-HF", "task_id": "qbench_accuracy"}
    assert entry["value"] == 0.75
    assert "n 8" in entry["notes"] and "95 % interval" in entry["notes"] and "split dev" in entry["notes"]


def test_file_of_a_benchmark_that_is_left_out_now_is_deleted(results, tmp_path):
    write_eval_results(whole(results), tmp_path)
    write_eval_results(results, tmp_path)
    assert list((tmp_path / ".eval_results").iterdir()) == []


@pytest.mark.parametrize(
    ("ratings", "judge", "reason"),
    [
        ([[8, 6], [9, 9]], "demo-judge (rule)", "demo judge"),
        ([[8, 6], None], "gpt-4-0314", "withheld: 1 of 2 judged"),
    ],
)
def test_demo_judges_and_withheld_figures_are_left_out(tmp_path, ratings, judge, reason):
    found = whole(collect(tmp_path, [judged(tmp_path, ratings, judge=judge)]))
    for left_out in (model_index(found, "tiny")[1], eval_result_entries(found)[1]):
        assert [one.benchmark for one in left_out] == ["llava_bench"] and reason in left_out[0].reason


def test_partly_judged_figure_is_left_out(tmp_path):
    found = whole(collect(tmp_path, [judged(tmp_path, [[8, 6], [9, 9]])]))
    found["benchmarks"]["llava_bench"]["counts"]["judged"] = 1
    assert "partial" in model_index(found, "tiny")[1][0].reason


def test_judged_figure_names_its_judge(tmp_path):
    found = whole(collect(tmp_path, [judged(tmp_path, [[8, 6], [9, 9]])]))
    entries, left_out = eval_result_entries(found)
    assert left_out == []
    assert all("judge gpt-4-0314" in entry.notes for entry in entries["llava_bench"])


def test_unjudged_benchmark_is_left_out(tmp_path):
    rows = [{"question_id": 0, "question": "What?", "gpt_answer": "A bee.", "caption": "", "category": "conv"}]
    found = whole(collect(tmp_path, [run(tmp_path, "llava_bench", rows, ["It is."])]))
    assert "withheld" in model_index(found, "tiny")[1][0].reason
