"""`results.json`: every figure with what it is of, and what makes it worth less."""

import json

import pytest

from evaluation.results import collect, facts_of, read_results, write_results
from evaluation.rows import Rows
from tests.evaluation.evaluations import (
    judged,
    llava_rows,
    mmbench_rows,
    mme_rows,
    pope_rows,
    qbench_rows,
    results_of,
    rows_of_each,
    run,
    vqa_rows,
)


def test_figures_have_their_number_of_questions_and_interval(tmp_path):
    entry = results_of(tmp_path, ("qbench", qbench_rows(8), ["A"] * 6 + ["B"] * 2))["benchmarks"]["qbench"]
    assert entry["headline"] == {"accuracy": 0.75}
    assert (entry["questions"], entry["of"], entry["limited"]) == (8, 1495, True)
    found = entry["intervals"]["accuracy"]
    assert found["low"] < 0.75 < found["high"]
    assert (found["n"], found["unit"], found["flat"]) == (8, "question", False)


def test_units_are_those_of_the_official_rules(tmp_path):
    found = results_of(
        tmp_path,
        ("mme", mme_rows(5), ["yes", "no"] * 4 + ["no", "yes"]),
        ("mmbench", mmbench_rows(4), ["A", "B"] * 3 + ["A", "A"]),
        ("vqav2", vqa_rows(4), ["bee", "wasp", "fly", "bee"]),
        ("pope", pope_rows(4) + pope_rows(4, "popular"), ["yes", "no"] * 3 + ["no", "yes"]),
    )["benchmarks"]
    units = {
        name: {figure: (one["n"], one["unit"]) for figure, one in entry["intervals"].items()}
        for name, entry in found.items()
    }
    assert units == {
        "mme": {"perception_total": (5, "image")},
        "mmbench": {"Overall": (4, "group")},
        "vqav2": {"overall": (4, "question")},
        "pope": {"f1_score": (8, "question")},
    }
    assert all(not entry["without_interval"] for entry in found.values())
    assert found["mme"]["headline"]["perception_total"] == 160.0
    assert found["mme"]["intervals"]["perception_total"]["high"] <= 200.0


def test_run_with_a_limit_says_so(tmp_path):
    own, result, facts = run(tmp_path, "qbench", qbench_rows(8), ["A"] * 8, limit=3)
    entry = collect(tmp_path, [(own, result, facts)])["benchmarks"]["qbench"]
    assert (entry["questions"], entry["limited"], entry["run"]["options"]["limit"]) == (3, True, 3)


def test_file_is_the_same_each_time_and_comes_back(tmp_path):
    runs = ("qbench", qbench_rows(8), ["A"] * 6 + ["B"] * 2)
    first = write_results(tmp_path, results_of(tmp_path, runs)).read_bytes()
    assert write_results(tmp_path, results_of(tmp_path, runs)).read_bytes() == first
    assert read_results(tmp_path) == json.loads(first)
    assert read_results(tmp_path)["model"] == {"model": "tiny", "weights": "0123", "dtype": "float32"}


def test_unscored_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="Score the evaluation first"):
        read_results(tmp_path)


def test_benchmarks_of_different_models_are_refused(tmp_path):
    scored = [
        run(tmp_path, "qbench", qbench_rows(2), ["A", "B"], "one"),
        run(tmp_path, "mme", mme_rows(1), ["yes", "no"], "another"),
    ]
    with pytest.raises(ValueError, match="mme was answered by .*another.*other benchmarks by .*one"):
        collect(tmp_path, scored)


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        collect(tmp_path, [])


def test_judged_figures_name_their_judge(tmp_path):
    entry = collect(tmp_path, [judged(tmp_path, [[8, 6], [9, 9], [7, 5]])])["benchmarks"]["llava_bench"]
    assert entry["headline"]["relative"] == 83.3
    assert entry["intervals"]["relative"]["n"] == 3
    judge = entry["judge"]
    assert (judge["name"], judge["judged"], judge["demo"]) == ("gpt-4-0314", "3 of 3", False)
    assert len(judge["prompt_sha256"]) == 64
    assert "judge" not in entry["breakdown"]


def test_demo_judge_is_told_by_its_name(tmp_path):
    scored = judged(tmp_path, [[8, 6], [9, 9]], judge="demo-judge (rule)")
    assert collect(tmp_path, [scored])["benchmarks"]["llava_bench"]["judge"]["demo"]


def test_withheld_figures_have_a_reason_and_no_interval(tmp_path):
    entry = collect(tmp_path, [judged(tmp_path, [[8, 6], None])])["benchmarks"]["llava_bench"]
    assert entry["headline"]["relative"] is None
    assert entry["intervals"] == {} and "1 of 2 judged" in entry["withheld"]


def test_unjudged_benchmark_is_withheld(tmp_path):
    entry = collect(tmp_path, [run(tmp_path, "llava_bench", llava_rows(2), ["a", "b"])])["benchmarks"]["llava_bench"]
    assert entry["judge"]["name"] is None and entry["withheld"] == "0 of 2 judged"


def test_stored_verdicts_and_the_date_of_the_judge_are_read(tmp_path):
    own, _, _ = run(tmp_path, "llava_bench", llava_rows(1), ["It is."])
    folder = tmp_path / "llava_bench"
    row = json.loads((folder / "predictions.jsonl").read_text(encoding="utf-8"))
    (folder / "predictions.jsonl").write_text(json.dumps({**row, "judge": [8, 6]}) + "\n", encoding="utf-8")
    (folder / "judge.jsonl").write_text('{"date": "2026-01-02"}\n{"date": "2026-01-03"}\n', encoding="utf-8")
    facts = facts_of(Rows(llava_rows(1), [None]), tmp_path, own)
    assert facts["items"][0]["tuple"] == [8, 6]
    assert facts["judge"] == {"date": "2026-01-03"}


def test_categories_have_their_number_of_questions(tmp_path):
    rows = mme_rows(2) + mme_rows(1, "OCR")
    entry = results_of(tmp_path, ("mme", rows, ["yes", "no"] * 3))["benchmarks"]["mme"]
    assert entry["categories"]["tasks"]["bars"] == {
        "existence": {"value": 200.0, "n": 4},
        "OCR": {"value": 200.0, "n": 2},
    }


def test_wrong_answers_are_wrong_and_few(tmp_path):
    entry = results_of(tmp_path, ("qbench", qbench_rows(20), ["A"] * 10 + ["Blurred"] * 10))["benchmarks"]["qbench"]
    assert len(entry["wrong_answers"]) == 5
    assert {one["response"] for one in entry["wrong_answers"]} == {"Blurred"}
    assert {one["expected"] for one in entry["wrong_answers"]} == {"A"}


@pytest.mark.parametrize("name", rows_of_each())
def test_every_benchmark_has_an_interval_for_each_figure_and_a_wrong_answer(tmp_path, name):
    entry = results_of(tmp_path, (name, *rows_of_each()[name]))["benchmarks"][name]
    assert entry["without_interval"] == {}
    assert entry["intervals"] and list(entry["intervals"]) == [
        figure for figure in entry["figures"] if entry["headline"].get(figure) is not None
    ]
    assert 0 < len(entry["wrong_answers"]) < entry["questions"]
    assert bool(entry["categories"]) == (name not in ("scienceqa", "textvqa"))
