"""The report: published figures beside ours, footnotes, and foreign text that stays text."""

import re

import pytest

from evaluation.catalogue import NAMES, benchmark
from evaluation.compare import compare
from evaluation.paper import FIGURES, MODELS, paper_figure
from evaluation.report import table, write_report
from evaluation.results import collect
from tests.evaluation.evaluations import judged, mme_rows, qbench_rows, results_of, vqa_rows, whole


SCRIPT = "<script>alert(1)</script> | [link](http://evil.example) `code`\n# head ![i](x)"


def test_page_and_table_escape_what_a_model_wrote(tmp_path):
    results = results_of(tmp_path, ("qbench", qbench_rows(2), ["A", SCRIPT]))
    write_report(tmp_path, results)
    page, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "<script" not in markdown and "&lt;script&gt;alert(1)" in markdown
    assert set(re.findall(r"(?<!\\)\]\(([^)]*)\)", markdown)) == {"plots/qbench-types_and_concerns.svg"}
    assert "\n# head" not in markdown and "http:" not in markdown
    (line,) = [line for line in markdown.splitlines() if "alert" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6  # five cells


def test_names_of_categories_and_models_are_escaped(tmp_path):
    rows = [{**row, "category": "<b>$x$</b>", "question_id": f"<b>/{row['question_id']}"} for row in mme_rows(1)]
    results = results_of(tmp_path, ("mme", rows, ["no", "no"], "<i>model</i>"))
    files = write_report(tmp_path, results)
    assert all("<i>model" not in path.read_text(encoding="utf-8") for path in files)
    assert all("<b>" not in path.read_text(encoding="utf-8") for path in files)


def test_page_loads_nothing(tmp_path):
    write_report(tmp_path, results_of(tmp_path, ("mme", mme_rows(2), ["yes", "no"] * 2)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:image/svg)', page) == []


def test_figure_stands_beside_the_published_ones_with_its_number(tmp_path):
    rows, _ = table(results_of(tmp_path, ("qbench", qbench_rows(8), ["A"] * 6 + ["B"] * 2)))
    (row,) = rows
    assert (row.figure, row.value, row.n) == ("accuracy (QBench)", "75.0", "8 questions (8 of 1495 rows)")
    assert row.published == ["63.4", "65.2", "58.7", "62.1"]
    assert re.fullmatch(r"\[\d+\.\d, \d+\.\d\]", row.interval)


def test_limited_run_is_the_first_footnote_and_gone_for_a_whole_one(tmp_path):
    results = results_of(tmp_path, ("qbench", qbench_rows(8), ["A"] * 8))
    rows, notes = table(results)
    assert notes[rows[0].notes[0] - 1].startswith("Q-Bench: a limited run, 8 of 1495 rows")
    assert not any("limited" in note for note in table(whole(results))[1])


def test_other_split_than_the_papers_is_a_footnote(tmp_path):
    _, notes = table(results_of(tmp_path, ("vqav2", vqa_rows(2), ["bee", "wasp"])))
    (note,) = [note for note in notes if "published figures of VQAv2" in note]
    assert note.startswith("VQAv2: of validation; ") and note.endswith("are of test-dev; incomparable.")
    assert "arXiv:2311.12793, Table 3" in note


def test_interval_without_spread_is_a_footnote(tmp_path):
    _, notes = table(results_of(tmp_path, ("qbench", qbench_rows(2), ["A", "A"])))
    assert any("says nothing" in note for note in notes)


def test_demo_judge_is_named_wherever_its_figures_are(tmp_path):
    results = collect(tmp_path, [judged(tmp_path, [[8, 6], [9, 9]], judge="demo-judge (rule)")])
    write_report(tmp_path, results)
    rows, notes = table(results)
    assert all(any("demo judge" in notes[number - 1] for number in row.notes) for row in rows)
    assert any("published figures are by gpt-4-0314" in note for note in notes)
    for name in ("report.md", "report.html"):
        assert "it grades by a stated rule" in (tmp_path / name).read_text(encoding="utf-8")


def test_withheld_figure_is_no_number(tmp_path):
    rows, notes = table(collect(tmp_path, [judged(tmp_path, [[8, 6], None])]))
    assert {row.value for row in rows} == {"withheld"}
    assert any("1 of 2 judged" in note for note in notes)


def test_plots_are_the_same_each_time(tmp_path):
    results = results_of(tmp_path, ("mme", mme_rows(2), ["yes", "no"] * 2))
    (path,) = [path for path in write_report(tmp_path, results) if path.suffix == ".svg"]
    first = path.read_bytes()
    write_report(tmp_path, results)
    assert path.read_bytes() == first and path.parent.name == "plots"
    assert f"plots/{path.name}" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_comparison_is_a_table_of_its_own(tmp_path):
    for side, answers in (("a", ["A"] * 4), ("b", ["A", "A", "B", "B"])):
        results = results_of(tmp_path / side, ("qbench", qbench_rows(4), answers, f"model {side}"))
    write_report(tmp_path, results, compare(tmp_path / "a", tmp_path / "b"))
    assert "| qbench | accuracy | 100.0 | 50.0 | 50.0 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "2 / 0 / 2" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_are_of_columns_that_the_benchmarks_name(name):
    columns = [one.column for one in FIGURES if one.benchmark == name]
    assert columns
    if benchmark(name).column is not None:
        assert ", ".join(columns) == benchmark(name).column


def test_published_figures_are_those_of_the_table():
    assert paper_figure("mme", "perception_total").by_model() == dict(
        zip(MODELS, (1567.4, 1618.7, 1510.7, 1531.3), strict=True)
    )
    assert paper_figure("mme", "nothing") is None
