"""Answers to lmms-eval's and VLMEvalKit's files and back: nothing is lost, and nothing gets to another question."""

import importlib
import importlib.util
import json

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.catalogue import NAMES, benchmark, module
from evaluation.exchange import from_lmms, from_vlmevalkit, main, to_lmms, to_vlmevalkit
from evaluation.lmms_files import TASKS, read_samples
from evaluation.predictions import MERGED, read_predictions
from evaluation.results import collect, write_results
from evaluation.rows import Rows, load_rows
from evaluation.runner import RUN, score_benchmark
from evaluation.vlmevalkit_files import read_table, write_table
from sharegpt4v.demo.miniatures import write_miniatures
from tests.evaluation.evaluations import mme_rows, run
from tests.evaluation.samples import write_lines


HARD = ["=1+1", "None", "NA", "", "yes\ttab", "a\nline", '"quoted"', "是", "01", "\u2028", "A. Yes, it is.", " no "]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_miniatures(tmp_path_factory.mktemp("data"))


def evaluation(out, data, name, answers=HARD):
    """An evaluation of a miniature, answered by texts that files like to spoil."""
    rows = load_rows(benchmark(name), data)
    run(out, name, rows.rows, [answers[place % len(answers)] for place in range(len(rows))])
    return rows


def told(folder):
    """What was asked and answered."""
    return [(row["index"], row["id"], row["prompt"], row["raw"]) for row in read_predictions(folder)]


@pytest.mark.parametrize("name", NAMES)
def test_answers_come_back_from_lmms_evals_layout(data, tmp_path, name):
    rows = evaluation(tmp_path / "ours", data, name)
    to_lmms(tmp_path / "ours", name, rows, tmp_path / "lmms")
    from_lmms(tmp_path / "lmms", name, rows, tmp_path / "back")
    assert told(tmp_path / "back" / name) == told(tmp_path / "ours" / name)


@pytest.mark.parametrize("ending", ["xlsx", "tsv", "json"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_come_back_from_vlmevalkits_layout(data, tmp_path, name, ending):
    rows = evaluation(tmp_path / "ours", data, name)
    (table,) = to_vlmevalkit(tmp_path / "ours", name, rows, tmp_path / f"tiny_X.{ending}")
    from_vlmevalkit(table, name, rows, tmp_path / "back")
    assert told(tmp_path / "back" / name) == told(tmp_path / "ours" / name)


def test_answers_that_were_taken_over_get_the_same_figures(data, tmp_path):
    rows = evaluation(tmp_path / "ours", data, "mme", ["yes", "no", "Yes."])
    ours = score_benchmark(module("mme"), benchmark("mme"), rows, tmp_path / "ours")
    to_lmms(tmp_path / "ours", "mme", rows, tmp_path / "lmms")
    from_lmms(tmp_path / "lmms", "mme", rows, tmp_path / "back")
    assert score_benchmark(module("mme"), benchmark("mme"), rows, tmp_path / "back").to_json() == ours.to_json()


def test_a_sample_has_the_fields_of_lmms_eval(data, tmp_path):
    rows = evaluation(tmp_path, data, "pope")
    (path,) = to_lmms(tmp_path, "pope", rows, tmp_path / "lmms")
    assert path.name.endswith(f"_samples_{TASKS['pope']}.jsonl") and path.parent.name == "tiny"
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert {"doc_id", "target", "filtered_resps", "doc_hash", "token_counts", "input"} < set(first)
    assert (first["target"], first["input"]) == (rows[0]["answer"], module("pope").prompt(rows[0]))


def test_scored_figures_go_along_to_lmms_eval(tmp_path):
    own, result, facts = run(tmp_path, "mme", mme_rows(2), ["yes", "no", "yes", "yes"])
    write_results(tmp_path, collect(tmp_path, [(own, result, facts)], resamples=20))
    table = Rows([{**row, "has_image": False} for row in mme_rows(2)], [None] * 4)
    samples, results = to_lmms(tmp_path, "mme", table, tmp_path / "lmms")
    written = json.loads(results.read_text())
    assert written["results"]["mme"]["perception_total,none"] == result.headline["perception_total"]
    assert written["n-samples"]["mme"] == {"original": 4, "effective": 4}
    from_lmms(samples, "mme", table, tmp_path / "back")
    facts = json.loads((tmp_path / "back" / "mme" / RUN).read_text())
    assert (facts["model"], facts["options"]["harness"]) == ("tiny", "lmms-eval")
    assert facts["options"]["figures"]["perception_total,none"] == result.headline["perception_total"]


def test_what_was_said_before_a_filter_is_the_answer(data, tmp_path):
    rows = load_rows(benchmark("pope"), data)
    sample = {"doc_id": 0, "input": "Is it?", "resps": [["<think>no</think>yes"]], "filtered_resps": "yes"}
    assert read_samples(write_lines(tmp_path / "s.jsonl", [sample]), rows)[0]["raw"] == "<think>no</think>yes"


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"doc_id": 99, "input": "q", "filtered_resps": "yes"}, "no row 99"),
        ({"doc_id": True, "input": "q", "filtered_resps": "yes"}, "no row True"),
        ({"doc_id": 0, "input": "q", "filtered_resps": ["yes", "no"]}, "2 answers"),
        ({"doc_id": 0, "input": "q", "filtered_resps": None}, "NoneType for an answer"),
        ({"doc_id": 0, "filtered_resps": "yes"}, "no field 'input'"),
        ({"input": "q", "filtered_resps": "yes"}, "no field 'doc_id'"),
        ({"doc_id": 0, "input": "q", "filtered_resps": "yes", "pope_accuracy": {"question_id": 7}}, "question_id 7"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(data, tmp_path, sample, message):
    rows = load_rows(benchmark("pope"), data)
    with pytest.raises(ValueError, match=message) as error:
        read_samples(write_lines(tmp_path / "s.jsonl", [sample]), rows)
    assert "s.jsonl, " in str(error.value)


def test_a_table_of_another_release_is_refused(data, tmp_path):
    rows = evaluation(tmp_path / "ours", data, "mmbench")
    (table,) = to_vlmevalkit(tmp_path / "ours", "mmbench", rows, tmp_path / "t.tsv")
    text = table.read_text(encoding="utf-8").replace(rows[0]["question"], "What else?", 1)
    table.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 1: the question is 'What else\?'"):
        read_table(table, rows)


def test_pandas_reads_the_table_as_vlmevalkit_does(data, tmp_path):
    rows = evaluation(tmp_path, data, "mmbench", ["B", "=A1", "A. a dog"])
    for ending, read in (("xlsx", pandas.read_excel), ("tsv", lambda path: pandas.read_csv(path, sep="\t"))):
        (path,) = to_vlmevalkit(tmp_path, "mmbench", rows, tmp_path / f"tiny_MMBench_DEV_EN.{ending}")
        table = read(path)
        assert list(table.columns)[:2] == ["index", "question"] and list(table.columns)[-1] == "prediction"
        assert {"A", "B", "C", "D", "answer", "category", "l2-category"} < set(table.columns)
        assert "image" not in table.columns and list(table["index"]) == [row["index"] for row in rows.rows]
        assert list(table["prediction"])[:3] == ["B", "=A1", "A. a dog"]


def test_columns_are_those_that_vlmevalkits_scorers_read(data, tmp_path):
    found = {}
    for name in NAMES:
        rows = evaluation(tmp_path, data, name)
        (path,) = to_vlmevalkit(tmp_path, name, rows, tmp_path / f"{name}.json")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    assert {row["answer"] for row in found["pope"]} == {row["answer"] for row in found["mme"]} == {"Yes", "No"}
    assert all("image_path" in row for row in found["mme"])
    assert all(row["answer"] in row and row["A"] for name in ("seed", "qbench", "scienceqa") for row in found[name])
    assert "N/A" not in [value for row in found["qbench"] for value in row.values()]
    assert all(row["gpt4_ans"] for row in found["llava_bench"]) and all(row["category"] for row in found["mmvet"])
    assert all(row["answer"].startswith("[") for name in ("textvqa", "vizwiz", "vqav2") for row in found[name])


def test_a_spreadsheet_that_would_lose_text_is_refused(data, tmp_path):
    rows = evaluation(tmp_path, data, "pope", ["fine", "bell \a"])
    with pytest.raises(ValueError, match=r"Row 2, prediction: .*\.tsv or \.json"):
        to_vlmevalkit(tmp_path, "pope", rows, tmp_path / "t.xlsx")
    assert not (tmp_path / "t.xlsx").exists()


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_comes_back_from_tables_with_tabs(tmp_path_factory, answers):
    rows = Rows([{"question": f"{place}?"} for place in range(len(answers))], [None] * len(answers))
    predictions = [{"index": place, "prompt": "q", "raw": text} for place, text in enumerate(answers)]
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    write_table(path, "vqav2", rows, predictions)
    assert [row["raw"] for row in read_table(path, rows)] == answers


def test_answers_that_are_there_are_not_lost(data, tmp_path):
    rows = evaluation(tmp_path / "ours", data, "pope")
    to_lmms(tmp_path / "ours", "pope", rows, tmp_path / "lmms")
    before = (tmp_path / "ours" / "pope" / MERGED).read_bytes()
    with pytest.raises(ValueError, match="has answers already"):
        from_lmms(tmp_path / "lmms", "pope", rows, tmp_path / "ours")
    assert (tmp_path / "ours" / "pope" / MERGED).read_bytes() == before


def test_two_answers_to_a_row_are_refused(data, tmp_path):
    rows = load_rows(benchmark("pope"), data)
    samples = [{"doc_id": 1, "input": "q", "filtered_resps": text} for text in ("yes", "no")]
    with pytest.raises(ValueError, match="Row 1 of pope has 2 answers"):
        from_lmms(write_lines(tmp_path / "s.jsonl", samples), "pope", rows, tmp_path / "back")


def test_other_prompts_and_missing_rows_are_told(data, tmp_path, caplog):
    rows = load_rows(benchmark("pope"), data)
    samples = [{"doc_id": 0, "input": "Is there?", "filtered_resps": "yes"}]
    from_lmms(write_lines(tmp_path / "s.jsonl", samples), "pope", rows, tmp_path / "back")
    assert "1 of 1 were asked in other words" in caplog.text
    assert f"{len(rows) - 1} of {len(rows)} rows have no answer" in caplog.text
    facts = json.loads((tmp_path / "back" / "pope" / RUN).read_text())
    assert (facts["questions"], facts["of"], facts["options"]["other_prompts"]) == (1, len(rows), 1)


def test_several_runs_in_a_folder_are_not_guessed_between(data, tmp_path):
    rows = load_rows(benchmark("pope"), data)
    for date in ("1", "2"):
        write_lines(
            tmp_path / "m" / f"{date}_samples_pope.jsonl", [{"doc_id": 0, "input": "q", "filtered_resps": "a"}]
        )
    with pytest.raises(ValueError, match="holds 2 runs of pope"):
        from_lmms(tmp_path, "pope", rows, tmp_path / "back")


def test_the_command_goes_there_and_back(data, tmp_path, capsys):
    evaluation(tmp_path / "ours", data, "mmbench")
    common = ["--benchmark", "mmbench", "--data", str(data)]
    assert main(["to-vlmevalkit", str(tmp_path / "ours"), *common, "--out", str(tmp_path / "vk")]) == 0
    table = tmp_path / "vk" / "tiny_MMBench_DEV_EN.xlsx"
    assert capsys.readouterr().out == f"{table}\n"
    assert main(["from-vlmevalkit", str(table), *common, "--out", str(tmp_path / "back")]) == 0
    assert told(tmp_path / "back" / "mmbench") == told(tmp_path / "ours" / "mmbench")
    assert json.loads((tmp_path / "back" / "mmbench" / RUN).read_text())["model"] == "tiny"


@pytest.mark.parametrize("command", ["to-lmms", "from-lmms", "to-vlmevalkit", "from-vlmevalkit"])
def test_the_command_says_what_is_absent(data, tmp_path, capsys, command):
    absent = tmp_path / "absent"
    assert main([command, str(absent), "--benchmark", "pope", "--data", str(data), "--out", str(tmp_path / "o")]) == 1
    assert str(absent) in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is installed here")
def test_the_plugin_without_lmms_eval_says_how_to_install_it():
    with pytest.raises(ImportError, match="lmms-eval==0.7.3"):
        importlib.import_module("evaluation.lmms_plugin")
