"""MMBench: prompts, choices by each rule, CircularEval, files and submissions."""

import csv
import gzip
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import mmbench, mmbench_cn
from evaluation.mmbench import leftovers, parse, prompt, prompt_cn, read_items, score, write_submission
from evaluation.mmbench_choice import lmms_eval, lmms_eval_static, official, ranked, vlmevalkit_2023_11
from tests.evaluation.samples import needs_samples, read_sample, write_lines


CHOICES = {"A": "a cat", "B": "a dog", "C": "a bird"}
MILLION = 1_000_000


def item(index, answer="A", response="A", category="pets", group="perception", **more):
    row = {"index": index, "question": "Which animal?", "hint": None, **CHOICES, "D": None, "answer": answer}
    return {**row, "category": category, "l2-category": group, "response": response, **more}


def rotations(index, responses, **more):
    """A question in three rotations, whose right answers are A, B and C."""
    return [
        item(index + place * MILLION, answer, response, **more)
        for place, (answer, response) in enumerate(zip("ABC", responses, strict=True))
    ]


@needs_samples
def test_prompts_are_those_of_llava():
    for case in read_sample("mmbench/prompt_cases.json")["rows"]:
        row = {**case, **dict(zip("ABCD", case["options"], strict=False))}
        assert f"<image>\n{prompt(row)}" == case["full_user_text_en"]
        assert f"<image>\n{prompt_cn(row)}" == case["full_user_text_cn_suffix"]


@needs_samples
def test_choices_are_those_of_each_harness():
    for case in read_sample("mmbench/choice_extraction_table.json")["rows"]:
        given_case = (case["prediction"], case["choices"])
        assert official(*given_case) == case["vlmevalkit_head"], given_case
        assert vlmevalkit_2023_11(*given_case) == case["vlmevalkit_2023_11"], given_case
        assert lmms_eval(*given_case) == case["lmms_eval_prefetch"], given_case
        assert ranked(*given_case) == case["lmms_eval_static_fallback"], given_case


@pytest.mark.parametrize("empty", [None, float("nan"), "nan", "None", ""])
def test_options_end_with_the_first_empty_one(empty):
    row = {"question": "Which?", "hint": empty, "A": "x", "B": "y", "C": empty, "D": "z"}
    assert prompt(row) == "Which?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."


def test_the_chinese_benchmark_asks_in_chinese():
    assert mmbench_cn.prompt(item(1)).endswith("\n请直接回答选项字母。")
    assert mmbench_cn.score(rotations(1, "ABC")).benchmark == "mmbench_cn"


def test_a_letter_counts_only_among_the_last_words():
    assert official("B is what the picture shows", CHOICES) is None
    assert official("the picture shows B", CHOICES) == "B"
    assert vlmevalkit_2023_11("B is what the picture shows", CHOICES) == "B"


def test_a_text_counts_only_in_a_short_answer():
    assert official("it is a dog", CHOICES) == "B"
    assert official("it is a dog, as one can see without any doubt here", CHOICES) is None
    assert vlmevalkit_2023_11("it is a dog, as one can see without any doubt here", CHOICES) == "B"


def test_a_refusal_is_no_option():
    assert official("Cannot determine the answer", CHOICES) == "Z"
    assert vlmevalkit_2023_11("I can't process this file.", CHOICES) == "E"
    assert lmms_eval("I can't process this file.", CHOICES) is None


def test_a_question_is_right_if_all_its_rotations_are():
    result = score(rotations(1, "ABC") + rotations(2, "ABA"))
    assert result.headline == {"Overall": 0.5}
    assert result.counts["groups"] == 2
    assert result.scores == [1.0, None, None, 0.0, None, None]


def test_categories_count_originals():
    items = rotations(1, "ABC") + rotations(2, "AAA") + rotations(3, "ABC", category="cars", group="reasoning")
    breakdown = score(items).breakdown
    assert breakdown["category"] == {"cars": 1.0, "pets": 0.5}
    assert breakdown["l2-category"] == {"perception": 0.5, "reasoning": 1.0}


def test_the_hub_spells_a_column_otherwise():
    row = {**item(1), "L2-category": "coarse"}
    del row["l2-category"]
    assert score([row]).breakdown["l2-category"] == {"coarse": 1.0}


def test_an_unread_answer_is_a_miss_and_counted():
    result = score(rotations(1, ["A", "dunno", "C"]))
    assert result.headline == {"Overall": 0.0}
    assert (result.counts["unparsed"], result.counts["leftovers"], result.counts["judged"]) == (1, 1, 0)


def test_a_judge_decides_only_where_the_rule_fails():
    items = rotations(1, ["A", "dunno", "C"])
    items[1]["judge_choice"] = "B"
    items[2]["judge_choice"] = "A"
    result = score(items)
    assert result.headline == {"Overall": 1.0}
    assert (result.counts["unparsed"], result.counts["leftovers"], result.counts["judged"]) == (1, 0, 1)


def test_leftovers_are_those_that_can_still_decide():
    lost = rotations(1, ["B", "dunno", "C"])
    open_ = rotations(2, ["A", "dunno", "C"])
    without_answer = rotations(3, ["A", "dunno", None])
    assert leftovers(lost + open_ + without_answer) == [4]


def test_a_row_without_an_answer_is_a_miss():
    result = score([*rotations(1, ["A", "B", None]), *rotations(2, "ABC")])
    assert result.headline == {"Overall": 0.5}
    assert result.counts["missing"] == 1
    assert score([item(1, response=None, judge_choice="A")]).headline == {"Overall": 0.0}


def test_rotations_that_are_not_there_are_not_missed():
    result = score(rotations(1, "ABC")[:2])
    assert result.headline == {"Overall": 1.0}
    assert result.counts["incomplete_groups"] == 1


def test_a_group_without_its_original_does_not_count():
    result = score(rotations(1, "ABC") + rotations(2, "CCC")[1:])
    assert result.headline == {"Overall": 1.0}
    assert result.counts["without_original"] == 2


def test_rows_that_are_twice_must_both_be_right():
    items = rotations(1, "ABC") + rotations(2, "ABC")
    result = score([*items, item(2 + MILLION, "B", "C")])
    assert result.headline == {"Overall": 0.5}
    assert result.counts["duplicates"] == 1


def test_a_hidden_label_is_refused():
    with pytest.raises(ValueError, match="only the server can score it"):
        score([item(1, answer=None)])


def test_a_rule_must_be_known():
    with pytest.raises(ValueError, match="lmms_eval_static"):
        score([item(1)], "guess")


def test_rules_differ():
    items = [item(1, "B", "B is what the picture shows, as anyone can see")]
    shares = {rule: score(items, rule).headline["Overall"] for rule in mmbench.BENCHMARK.rules}
    assert shares == {"official": 0.0, "vlmevalkit_2023_11": 1.0, "lmms_eval": 1.0, "lmms_eval_static": 1.0}


@given(st.lists(st.text(), min_size=3, max_size=3), st.sampled_from(mmbench.BENCHMARK.rules), st.randoms())
def test_any_answer_is_scored_alike_in_any_order(responses, rule, generator):
    items = rotations(1, responses) + rotations(2, "ABC")
    result = score(items, rule)
    shuffled = generator.sample(items, len(items))
    assert score(shuffled, rule).to_json() == result.to_json() == score(items, rule).to_json()


@given(st.text(), st.dictionaries(st.sampled_from("ABCD"), st.text(), min_size=1))
def test_rules_read_any_text(answer, choices):
    for rule in (official, vlmevalkit_2023_11, lmms_eval, lmms_eval_static):
        assert rule(answer, choices) in (None, "E", "Z", *choices, *"ABCDE")


def test_rows_of_the_official_layout_are_read(tmp_path):
    rows = [{"prediction": row.pop("response"), **row} for row in rotations(1, "ABC")]
    path = write_lines(tmp_path / "predictions.jsonl", rows)
    packed = tmp_path / "folder" / "mmbench.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_items(path) == read_items(packed.parent) == read_items(tmp_path) == rotations(1, "ABC")


def test_answers_are_joined_to_the_benchmarks_table(tmp_path):
    table = tmp_path / "mmbench_dev_20230712.tsv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(
            ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
        )
        writer.writerow([1, "Which\nanimal?", "", "a cat", "a dog", "None", "", "A", "pets", "x" * 200_000, "coarse"])
        writer.writerow([1_000_001, "Which?", "NA", "a dog", "a cat", "", "", "B", "pets", "x", "coarse"])
    answers = [{"question_id": 1, "text": "B"}, {"question_id": 1, "text": "A"}, {"question_id": 7, "text": "A"}]
    items = read_items(write_lines(tmp_path / "answers.jsonl", answers), table)
    assert [row["response"] for row in items] == ["A", None]
    assert prompt(items[0]).startswith("Which\nanimal?\nA. a cat\nB. a dog\nAnswer")
    assert "image" not in items[0]
    counts = score(items).counts
    assert (counts["duplicates"], counts["missing"]) == (1, 1)


def test_a_row_without_an_index_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"predictions.jsonl, row 2, has no field 'index'"):
        read_items(write_lines(tmp_path / "predictions.jsonl", [item(1), {"question": "Which?"}]))
    with pytest.raises(ValueError, match="row 1: `index` must be a whole number, got 'first'"):
        read_items(write_lines(tmp_path / "predictions.jsonl", [item("first")]))


def test_a_submission_has_the_servers_columns(tmp_path):
    items = rotations(1, ["=1+1", 'say\t"B"\nor so', None])
    write_submission(items, tmp_path / "upload.tsv")
    with (tmp_path / "upload.tsv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream, delimiter="\t")
    assert header == ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
    assert [row[6] for row in rows] == ["=1+1", 'say\t"B"\nor so', ""]


def test_a_spreadsheet_holds_texts_and_no_formulas(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    items = [{**row, "split": "dev"} for row in rotations(1, ["=1+1", "a\x07b", None])]
    write_submission(items, tmp_path / "upload.xlsx")
    header, *rows = openpyxl.load_workbook(tmp_path / "upload.xlsx").active.iter_rows()
    assert [cell.value for cell in header] == ["index", "question", *"ABCD", "prediction", "answer", "split"]
    assert [row[6].value for row in rows] == ["=1+1", "a b", None]
    assert rows[0][6].data_type == "s"
    assert [row[0].value for row in rows] == [1, MILLION + 1, 2 * MILLION + 1]


def test_a_submission_of_hidden_labels_has_no_answers(tmp_path):
    write_submission([item(1, answer=None)], tmp_path / "upload.tsv")
    assert "answer" not in (tmp_path / "upload.tsv").read_text(encoding="utf-8").split("\n")[0]


def test_a_submission_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.xlsx or a \.tsv"):
        write_submission([item(1)], tmp_path / "upload.json")


def test_reading_an_answer_draws_nothing_at_random():
    answers = ["dunno"] * 20
    state = random.getstate()
    assert [parse(answer, item(1)) for answer in answers] == [None] * 20
    assert random.getstate() == state
