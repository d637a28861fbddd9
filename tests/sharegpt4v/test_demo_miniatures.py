"""Miniatures of the benchmarks: they load, ask, and score as the whole benchmarks do."""

from collections import Counter

import pytest

from evaluation.base import OFFICIAL
from evaluation.catalogue import NAMES, benchmark, module
from evaluation.mmbench import options
from evaluation.rows import load_rows
from sharegpt4v.demo.miniatures import read_miniature, write_miniatures


BEST = {
    "llava_bench": {"relative": 100.0, "gpt4": 100.0, "model": 100.0},
    "mme": {"perception_total": 1600.0, "cognition_total": 800.0},  # 8 and 4 tasks of 200 points
    "mmbench": {"Overall": 1.0},
    "mmbench_cn": {"Overall": 1.0},
    "seed": {"Total accuracy": 100.0, "image accuracy": 100.0},
    "mmvet": {"total": 100.0, "std": 0.0, "runs": "[100.0]"},
    "qbench": {"accuracy": 1.0},
    "scienceqa": {"accuracy": 100.0, "img_accuracy": 100.0},
    "vqav2": {"overall": 100.0},
    "vizwiz": {"overall": 100.0},
    "gqa": {"accuracy": 100.0},
    "textvqa": {"accuracy": 100.0},
    "pope": {"f1_score": 1.0},
}
EMPTY = {
    **{name: {key: 0.0 for key in figures} for name, figures in BEST.items()},
    "mmvet": {"total": 0.0, "std": 0.0, "runs": "[0.0]"},
    "llava_bench": {"relative": 10.0, "gpt4": 100.0, "model": 10.0},
    "pope": {"f1_score": pytest.approx(2 / 3)},  # what does not say no is a yes, and half of the labels are
}


def best_answer(name: str, row: dict) -> str:
    """The answer that is right by the official rule."""
    if name == "scienceqa":
        return "ABCDE"[row["answer"]]
    if name in ("vqav2", "vizwiz", "textvqa"):
        texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in row["answers"]]
        return Counter(texts).most_common(1)[0][0]
    names = {"llava_bench": "gpt_answer", "qbench": "correct_choice"}
    return row[names.get(name, "answer")]


def with_verdicts(name: str, items: list[dict], good: bool) -> list[dict]:
    """Items with the best or the worst verdicts of a judge, where there is one."""
    verdicts = {"mmvet": {"grades": [float(good)]}, "llava_bench": {"tuple": [10, 10 if good else 1]}}
    return [item | verdicts.get(name, {}) for item in items]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All miniatures."""
    return write_miniatures(tmp_path_factory.mktemp("miniatures"))


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_loads(folder, name):
    """Six rows or more, each with a picture that opens but those of questions about none."""
    rows = load_rows(benchmark(name), folder)
    assert len(rows) >= 6
    for place in range(len(rows)):
        assert (rows.image(place) is not None) == rows.has_image(place)
    assert name == "scienceqa" or all(map(rows.has_image, range(len(rows))))


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_has_the_fields_of_the_benchmark(name):
    """Those that the benchmark names, and none that it does not know but ScienceQA's subjects."""
    more = {"grade", "subject", "topic"} if name == "scienceqa" else set()
    for row in read_miniature(name):
        assert set(row) - more == set(benchmark(name).fields)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_miniature_can_be_asked(folder, name):
    """A prompt with the question in it."""
    for row in load_rows(benchmark(name), folder).rows:
        text = module(name).prompt(row)
        assert row["question"].replace(" Please answer yes or no.", "") in text


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_the_best_there_is(folder, name):
    """By the official rule."""
    rows = load_rows(benchmark(name), folder).rows
    items = with_verdicts(name, [row | {"response": best_answer(name, row)} for row in rows], good=True)
    result = module(name).score(items, OFFICIAL)
    assert result.headline == BEST[name]
    assert result.counts["answered"] == len(rows) and result.counts["unparsed"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_empty_answers_score_as_officially(folder, name):
    """Nothing, but for POPE, which takes them for a yes, and for the lowest rating of LLaVA-Bench, which is 1."""
    rows = load_rows(benchmark(name), folder).rows
    items = with_verdicts(name, [row | {"response": ""} for row in rows], good=False)
    assert module(name).score(items, OFFICIAL).headline == EMPTY[name]


def test_kinds_of_questions_are_all_there():
    """What a report breaks figures down by."""
    rows = {name: read_miniature(name) for name in NAMES}
    assert {row["question_type_id"] for row in rows["seed"]} == set(range(1, 10))
    assert {row["category"] for row in rows["pope"]} == {"random", "popular", "adversarial"}
    assert {row["category"] for row in rows["llava_bench"]} == {"conv", "detail", "complex"}
    assert {row["category"] for row in rows["vizwiz"]} == {"unanswerable", "other", "yes/no", "number"}
    assert {row["answer_type"] for row in rows["vqav2"]} == {"other", "yes/no", "number"}
    assert {row["question_type"] for row in rows["qbench"]} == {0, 1, 2}
    assert {row["question_concern"] for row in rows["qbench"]} == {0, 1, 2, 3}
    capabilities = {name for row in rows["mmvet"] for name in row["capability"].split(",")}
    assert capabilities == {"rec", "ocr", "know", "gen", "spat", "math"}
    assert any(row["image"] is None for row in rows["scienceqa"])


def test_ten_people_answered_each_question():
    """Of the benchmarks with the accuracy of VQA."""
    for name in ("vqav2", "vizwiz", "textvqa"):
        assert all(len(row["answers"]) == 10 for row in read_miniature(name))


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_options_are_in_every_rotation(name):
    """Each place of the right option once in a group."""
    groups: dict[int, list[dict]] = {}
    for row in read_miniature(name):
        groups.setdefault(row["index"] % 1_000_000, []).append(row)
    for group in groups.values():
        texts = options(group[0])
        assert sorted(row["answer"] for row in group) == sorted(texts)
        assert len({options(row)[row["answer"]] for row in group}) == 1
        assert all(sorted(options(row).values()) == sorted(texts.values()) for row in group)


def test_the_same_files_come_out_each_time(folder, tmp_path):
    """Byte by byte, with the credits of the photographs."""
    again = write_miniatures(tmp_path)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert "danielbuechele" in (folder / "PHOTOGRAPHS.md").read_text(encoding="utf-8")
