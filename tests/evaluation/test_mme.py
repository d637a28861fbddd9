"""MME: prompts, the first four characters, pairs of rows, and what damaged files say."""

import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.mme import BENCHMARK, COGNITION, PERCEPTION, parse, prompt, read_items, score
from tests.evaluation.samples import SAMPLES, needs_samples, read_sample


TASKS = PERCEPTION + COGNITION


def item(image, answer, response, task="existence", question=None):
    row = {"question_id": f"{task}/{image}", "category": task, "question": question or f"{image} {answer}?"}
    return {**row, "answer": answer, "response": response}


def write_tasks(folder, lines="a.jpg\tIs it?\tYes\tyes\na.jpg\tIsn't it?\tNo\tno\n"):
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        (folder / f"{task}.txt").write_text(lines, encoding="utf-8")
    return folder


@needs_samples
def test_prompts_are_those_of_llava():
    for case in read_sample("mme/prompt_cases.json")["rows"]:
        assert prompt(case) == case["prompt"]


@needs_samples
def test_answers_are_taken_for_what_the_official_tool_takes_them():
    for case in read_sample("mme/parse_table.json")["rows"]:
        assert parse(case["response"]) == case["label_no_newline"]
        assert parse(f"{case['response']}\n") == case["label_with_trailing_newline"]


@needs_samples
def test_lavin_scores_what_the_official_tool_prints():
    expected = read_sample("mme/lavin/expected.json")
    result = score(read_items(SAMPLES / "mme/lavin"))
    assert result.headline == {name: expected[name] for name in ("perception_total", "cognition_total")}
    assert result.breakdown == {"tasks": expected["tasks"]}
    assert result.counts["images"] == 1187 and result.counts["questions"] == BENCHMARK.questions


@needs_samples
def test_the_order_of_lines_does_not_matter(tmp_path):
    shutil.copytree(SAMPLES / "mme/lavin/results", tmp_path / "shuffled")
    for path in (tmp_path / "shuffled").glob("*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        path.chmod(0o644)
        path.write_text("".join(lines), encoding="utf-8")
    shuffled = score(read_items(tmp_path / "shuffled")).to_json()
    assert shuffled == score(read_items(SAMPLES / "mme/lavin/results")).to_json()


def test_an_image_counts_only_with_both_answers_right():
    items = [item("a", "Yes", "Yes"), item("a", "No", "no."), item("b", "Yes", "yes"), item("b", "No", "Yes")]
    assert score(items).breakdown == {"tasks": {"existence": 75.0 + 50.0}}


def test_consecutive_rows_are_a_pair_where_an_image_has_four():
    rows = [("Yes", "yes"), ("No", "no"), ("Yes", "no"), ("No", "no")]
    items = [item("a", answer, response, question=str(place)) for place, (answer, response) in enumerate(rows)]
    assert score(items).breakdown == {"tasks": {"existence": 75.0 + 50.0}}


def test_a_missing_answer_and_a_lone_row_are_wrong_and_counted():
    result = score([item("a", "Yes", "yes"), item("a", "No", None), item("b", "Yes", "yes")])
    assert result.breakdown["tasks"]["existence"] == pytest.approx(200 / 3)
    assert (result.counts["missing"], result.counts["unpaired"], result.counts["images"]) == (1, 1, 2)


def test_an_answer_beyond_yes_and_no_is_wrong_and_counted():
    result = score([item("a", "Yes", "maybe"), item("a", "No", "")])
    assert result.headline == {"perception_total": 0.0, "cognition_total": 0.0}
    assert result.counts["unparsed"] == 2


@given(st.text())
def test_no_answer_stops_the_scorer(text):
    items = [item("a", "Yes", text), item("a", "No", text)]
    assert score(items) == score(items)
    assert parse(text, items[0]) in ("yes", "no", "other")


def test_a_tabulator_within_an_answer_stays_there(tmp_path):
    folder = write_tasks(tmp_path, "a.jpg\tIs it?\tYes\tyes\tno\r\na.jpg\tIsn't it?\tNo\tno\n\n")
    assert [one["response"] for one in read_items(folder)[:2]] == ["yes\tno", "no"]


def test_a_line_without_four_columns_is_named(tmp_path):
    folder = write_tasks(tmp_path)
    (folder / "count.txt").write_text("a.jpg\tIs it?\tYes\tyes\nand so on\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"count\.txt, line 2, has 1 columns"):
        read_items(folder)


def test_a_task_with_an_odd_number_of_lines_is_refused(tmp_path):
    folder = write_tasks(tmp_path)
    (folder / "OCR.txt").write_text("a.jpg\tIs it?\tYes\tyes\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"OCR\.txt has 1 rows.*OCR/a\.jpg"):
        read_items(folder)


def test_a_label_that_is_neither_yes_nor_no_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"existence\.txt, line 1: the answer must be yes or no, got 'Maybe'"):
        read_items(write_tasks(tmp_path, "a.jpg\tIs it?\tMaybe\tyes\n"))


def test_absent_tasks_are_listed(tmp_path):
    folder = write_tasks(tmp_path)
    (folder / "scene.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks scene\.txt of the 14 texts"):
        read_items(folder)


def test_one_text_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder of its 14 texts"):
        read_items(write_tasks(tmp_path) / "count.txt")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="mme has no rule 'lenient'"):
        score([], "lenient")
