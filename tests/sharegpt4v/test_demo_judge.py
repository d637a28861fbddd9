"""The scripted judge of the demo, asked by the client that asks real ones."""

import openai
import pytest

from evaluation.catalogue import module
from evaluation.judge import JudgeConfig, judge
from sharegpt4v.demo.judge import MODEL, DemoJudge, overlap, verdict
from sharegpt4v.demo.miniatures import read_miniature


@pytest.fixture(scope="module")
def server():
    """The judge, up."""
    with DemoJudge() as running:
        yield running


@pytest.fixture
def judged(server, tmp_path):
    """Has the client ask the server about answers to a miniature; gives items with verdicts, and the verdicts."""

    def ask(name: str, answers: list[str], rule: str = "official"):
        items = [row | {"response": answer} for row, answer in zip(read_miniature(name), answers, strict=True)]
        config = JudgeConfig(model=MODEL, base_url=server.url, api_key_env="", attempts=1)
        verdicts = judge(name, items, config, tmp_path / "judge.jsonl", rule)
        return verdicts.apply(items), verdicts

    return ask


def test_mmvet_is_graded_by_the_share_of_words(judged):
    """Right, half right, an alternative, and empty answers."""
    rows = read_miniature("mmvet")
    right = {"v1_4": "It is Eileen Collins.", "v1_5": "In Peking, China.", "v1_0": "There are 24."}
    items, verdicts = judged("mmvet", [right.get(row["question_id"], "") for row in rows])
    grades = {item["question_id"]: item["grades"] for item in items}
    assert (grades["v1_0"], grades["v1_4"], grades["v1_5"]) == ([1.0], [0.5], [1.0])
    assert all(grade == [0.0] for name, grade in grades.items() if name not in right)
    assert verdicts.complete and verdicts.unparsed == 0


def test_llava_bench_gets_two_ratings(judged):
    """The reference a 10; its own text a 10 too, and nothing a 1."""
    rows = read_miniature("llava_bench")
    items, verdicts = judged("llava_bench", [row["gpt_answer"] if place else "" for place, row in enumerate(rows)])
    assert [item["tuple"] for item in items] == [[10.0, 1.0], *[[10.0, 10.0]] * (len(rows) - 1)]
    assert verdicts.score(module("llava_bench"), items).headline == {"relative": 85.0, "gpt4": 100.0, "model": 85.0}


@pytest.mark.parametrize(
    ("name", "rule", "none"), [("mmbench", "official", "Z"), ("mmbench", "vlmevalkit_2023_11", "E")]
)
def test_mmbench_leftovers_get_a_letter(judged, name, rule, none):
    """The option that shares most words, and no option where none does; the rules read neither."""
    rows = read_miniature("mmbench")
    answers = [row["answer"] if row["index"] % 1_000_000 != 3 else "whites and black shades" for row in rows]
    answers[0] = "something with fur"
    items, verdicts = judged("mmbench", answers, rule)
    chosen = {item["index"]: item.get("judge_choice") for item in items}
    assert chosen[1] == none
    assert (chosen[3], chosen[1_000_003]) == ("B", "A")
    assert verdicts.total == 3 and verdicts.complete


def test_mmbench_cn_leftovers_get_a_letter(judged):
    """Chinese characters count as words."""
    rows = read_miniature("mmbench_cn")
    answers = [row["answer"] if row["index"] % 1_000_000 != 5 else "视神经的盘" for row in rows]
    items, verdicts = judged("mmbench_cn", answers)
    assert [item["judge_choice"] for item in items if item["index"] % 1_000_000 == 5] == ["B", "A", "C"]
    assert verdicts.score(module("mmbench_cn"), items).headline == {"Overall": 1.0}


def test_the_judge_names_itself_in_the_figures(judged):
    """Nobody takes it for a language model."""
    _, verdicts = judged("mmvet", ["?"] * len(read_miniature("mmvet")))
    assert set(verdicts.models) == {MODEL} and "demo-judge" in MODEL


def test_several_runs_agree(server, tmp_path):
    """The rule leaves nothing to chance."""
    items = [row | {"response": row["answer"]} for row in read_miniature("mmvet")]
    config = JudgeConfig(model=MODEL, base_url=server.url, api_key_env="", runs=3)
    verdicts = judge("mmvet", items, config, tmp_path / "judge.jsonl")
    assert verdicts.score(module("mmvet"), items).headline == {
        "total": 100.0,
        "std": 0.0,
        "runs": "[100.0, 100.0, 100.0]",
    }


def test_other_requests_are_refused(server):
    """Another model, another prompt, and another path."""
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    hello = [{"role": "user", "content": "Hello"}]
    assert [model.id for model in client.models.list()] == [MODEL]
    with pytest.raises(openai.NotFoundError, match="one model here"):
        client.chat.completions.create(model="gpt-4-0613", messages=hello)
    with pytest.raises(openai.BadRequestError, match="only reads the judge prompts"):
        client.chat.completions.create(model=MODEL, messages=hello)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="Hello")


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}]])
def test_messages_without_texts_are_refused(messages):
    """They are no prompt of a benchmark."""
    with pytest.raises(ValueError, match="texts"):
        verdict(messages)


def test_overlap_is_of_distinct_words():
    """In small letters, without marks; a reference without words has none to share."""
    assert overlap("Red cup, red saucer", "a RED saucer!") == pytest.approx(2 / 3)
    assert overlap("...", "anything") == 0.0
