"""Judges' prompts, character by character, and what their replies are taken for."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.judge_prompts import (
    MMVET_TEMPERATURES,
    Ask,
    Ruling,
    cases,
    next_step,
    read_grade,
    read_ratings,
    template_sha256,
    texts,
)


MMVET = {"question_id": "v1_0", "question": "What is x?", "answer": "1<AND>2", "response": "x = 1"}
LLAVA = {
    "question_id": 7,
    "question": "Where is it?",
    "gpt_answer": "In Hawaii.",
    "caption": ["A crater.", "The sea."],
    "category": "conv",
    "response": "In Japan.",
}
MMBENCH = {"index": 5, "question": "Which animal", "A": "cat", "B": "dog", "answer": "A", "response": " kitten "}


def the_case(benchmark, item, **more):
    (case,) = cases(benchmark, [item], **more)
    return case


def content(case):
    return case.messages[-1]["content"]


# Digests of the texts as they stand at the commits that `data/judge_prompts.json` names.
@pytest.mark.parametrize(
    "benchmark, name, digest",
    [
        ("mmvet", "prompt", "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"),
        ("llava_bench", "rule", "2ce22b562d6008864970ea863ac8a4d385ea6f2e64ab1313a23f825202a9529d"),
        ("mmbench", "en", "133b2beaa0ce149aab95c6d01d4629f034e8861c723fc302ab3853a41e690c86"),
        ("mmbench", "cn", "6cd5198da4ff3d4179a6db5bf17eeb181fa9e55caba876e632f7c583ac0eeb7c"),
    ],
)
def test_texts_are_the_official_ones(benchmark, name, digest):
    assert hashlib.sha256(texts()[benchmark][name].encode()).hexdigest() == digest


def test_mm_vets_row_follows_the_table():
    case = the_case("mmvet", MMVET)
    assert content(case) == texts()["mmvet"]["prompt"] + "\nWhat is x? | 1 <AND> 2 | x = 1 | "
    assert len(case.messages) == 1
    assert next_step(case, []) == Ask(case.messages, 0.0, 3)


def test_mm_vet_asks_again_with_a_sentence_at_rising_temperatures():
    case, replies = the_case("mmvet", MMVET), ["well"]
    for temperature in MMVET_TEMPERATURES:
        step = next_step(case, replies)
        sentence = "\nPredict the correctness of the answer (digit): "
        assert step == Ask([{"role": "user", "content": content(case) + sentence}], temperature, 3)
        replies.append("well")
    assert next_step(case, replies) == Ruling(0.0, False)
    assert next_step(case, [*replies[:-1], "1.0"]) == Ruling(0.0, False)
    assert next_step(case, [*replies[:-2], "0.7 or so"]) == Ruling(0.7, True)


@pytest.mark.parametrize(
    "reply, grade",
    [("0.5", 0.5), ("1", 1.0), ("0.0\n", 0.0), ("0.4 because", 0.4), (" 0.4", None), ("1.1", None), ("-0.1", None)]
    + [("", None), ("nan", None), ("inf", None), ("The score is 0.4", None), ("0.4,", None)],
)
def test_grades_are_read_as_officially(reply, grade):
    assert read_grade(reply) == grade


@pytest.mark.parametrize(
    "reply, ratings",
    [("8 6", [8.0, 6.0]), ("8,6\nGood.", [8.0, 6.0]), ("7.5 10\n", [7.5, 10.0]), ("8, 6", None), ("8  6", None)]
    + [("8 6 ", None), ("8", None), ("\n8 6", None), ("Assistant 1: 8", None), ("", None), ("nan 5", None)],
)
def test_ratings_are_read_as_officially(reply, ratings):
    assert read_ratings(reply) == ratings


def test_llava_bench_shows_context_and_both_answers():
    case = the_case("llava_bench", LLAVA)
    assert case.messages[0] == {
        "role": "system",
        "content": "You are a helpful and precise assistant for checking the quality of the answer.",
    }
    assert content(case) == (
        "[Context]\nA crater.\nThe sea.\n\n[Question]\nWhere is it?\n\n"
        "[Assistant 1]\nIn Hawaii.\n\n[End of Assistant 1]\n\n[Assistant 2]\nIn Japan.\n\n[End of Assistant 2]\n\n"
        f"[System]\n{texts()['llava_bench']['rule']}\n\n"
    )
    assert next_step(case, []) == Ask(case.messages, 0.2, 1024)


def test_an_unread_rating_is_not_asked_again():
    case = the_case("llava_bench", LLAVA)
    assert next_step(case, ["Both are fine."]) == Ruling([-1.0, -1.0], False)
    assert next_step(case, ["8 6"]) == Ruling([8.0, 6.0], True)


def test_the_matcher_shows_question_options_and_answer():
    case = the_case("mmbench", MMBENCH)
    assert content(case).endswith(
        "Question: Which animal?\nOptions: There are several options: \nA. cat\nB. dog\n\n"
        "Answer: kitten\nYour output: "
    )
    assert "output Z. Your should output a single uppercase character" in content(case)
    assert next_step(case, []) == Ask(case.messages, 0.0, 1024)


def test_a_chinese_question_is_matched_in_chinese():
    case = the_case("mmbench_cn", {**MMBENCH, "question": "什么动物", "response": "小猫"})
    assert content(case).endswith(
        "问题: 什么动物?\n选项: There are several options: \nA. cat\nB. dog\n\n答案: 小猫\n输出: "
    )


def test_the_rule_of_2023_calls_no_option_e():
    case = the_case("mmbench", MMBENCH, rule="vlmevalkit_2023_11")
    assert "output E. Your should output" in content(case)
    assert "Z" not in content(case)
    assert next_step(case, ["E"]) == Ruling("E", True)


def test_the_matcher_is_asked_three_times_and_nothing_is_guessed():
    case = the_case("mmbench", MMBENCH)
    assert next_step(case, ["hm", "A or B"]) == next_step(case, [])
    assert next_step(case, ["hm", "A or B", "no idea"]) == Ruling(None, False)
    assert next_step(case, ["hm", "B\n"]) == Ruling("B", True)
    assert next_step(case, ["Z"]) == Ruling("Z", True)


def test_only_what_the_rule_cannot_read_is_matched():
    read = {**MMBENCH, "index": 6, "response": "A"}
    assert [case.id for case in cases("mmbench", [read, MMBENCH])] == ["5"]


def test_answers_that_are_missing_are_not_judged():
    assert cases("mmvet", [{**MMVET, "response": None}]) == []
    assert cases("llava_bench", [{**LLAVA, "response": None}]) == []


def test_each_run_is_a_case_of_its_own():
    assert [case.run for case in cases("mmvet", [MMVET], runs=3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="more for mmvet alone"):
        cases("llava_bench", [LLAVA], runs=3)


def test_what_a_judge_must_see_is_demanded():
    with pytest.raises(ValueError, match="Question 7 has no `caption`"):
        cases("llava_bench", [{**LLAVA, "caption": None}])
    with pytest.raises(ValueError, match="no category 'poem'"):
        cases("llava_bench", [{**LLAVA, "category": "poem"}])
    with pytest.raises(ValueError, match="mme has no judge"):
        cases("mme", [])


def test_digests_tell_prompts_and_answers_apart():
    case, other = the_case("mmvet", MMVET), the_case("mmvet", {**MMVET, "response": "x = 2"})
    assert case.key != other.key and case.prompt_sha256 != other.prompt_sha256
    assert template_sha256("mmbench") == template_sha256("mmbench_cn") != template_sha256("mmvet")


@given(st.lists(st.text(), max_size=7), st.text())
def test_any_replies_lead_on(replies, response):
    for benchmark, item in (("mmvet", MMVET), ("llava_bench", LLAVA), ("mmbench", MMBENCH)):
        for case in cases(benchmark, [{**item, "response": response}]):
            assert isinstance(next_step(case, replies), Ask | Ruling)
            assert case.key
