"""Captions of a job as rows of a dataset: what gets in, what is left out and counted, and that it builds and loads."""

import json
from dataclasses import replace
from itertools import islice

import pytest
from datasets import load_dataset

from captioning.checks import CheckConfig
from captioning.job_export import export_rows
from captioning.pipeline import RunOptions, job_status, plan_job, run_job
from captioning.plan import read_plan
from dataset_scripts.images import ImageRoots
from dataset_scripts.rows import RowSource
from dataset_scripts.schema import CAPTION_FEATURES, validate_caption
from sharegpt4v.options import build_rows
from tests.captioning.answered_job import INJECTION, answer, good, planned_job
from tests.captioning.fault_server import FaultServer, ok
from tests.captioning.jobs import endpoint_job, number_of, put_pictures
from tests.image_files import encoded


LICENSE = "terms of the model"


def exported(out, **options) -> tuple[list[dict], dict]:
    """Rows of an export, and what is said about them."""
    rows = export_rows(out, options.pop("captioner", None), LICENSE, **options)
    return list(rows.read()), rows.facts()["caption_job"]


def ids_of(rows: list[dict]) -> set[str]:
    return {row["id"] for row in rows}


def test_a_row_says_where_its_caption_comes_from(tmp_path):
    out = planned_job(tmp_path, 1)
    row = answer(out, "0", good(0))
    ((found,), facts) = exported(out)
    assert list(found) == list(CAPTION_FEATURES)
    assert found == {
        **{"id": "0", "image": "coco/train2017/0.jpg", "source": "coco", "caption": good(0), "captioner": "m"},
        **{"prompt_id": row.prompt_id, "license": LICENSE, "sha256": row.image_sha256},
    }
    assert facts["prompts"][0].items() >= {"id": row.prompt_id, "sha256": row.prompt_sha256, "captions": 1}.items()


def test_everything_planned_is_a_row_or_counted_with_its_reason(tmp_path):
    pictures = {f"coco/train2017/{number}.jpg": encoded(number) for number in range(10)}
    out = planned_job(tmp_path, {**pictures, "coco/train2017/again.jpg": encoded(0)})
    answer(out, "0", good(0))
    answer(out, "1", state="refused", error="the model refused")
    answer(out, "2", state="empty")
    answer(out, "3", "The boat lies on the calm lake and waits. " * 8, "looped", finish_reason="loop")
    answer(out, "4", good(4)[:60], "truncated", finish_reason="length")
    answer(out, "5", f"A sign reads <image>. {good(5)}")
    answer(out, "6", "I'm sorry, but I can't help with identifying the people in this photograph of a street.")
    answer(out, "7", state="failed", error="HTTP 500: busy")
    answer(out, "8", state="pending", error="the budget is spent")
    rows, facts = exported(out)
    assert [row["caption"] for row in rows] == [good(0)]
    assert facts["states_left_out"] == {"truncated": 1, "looped": 1, "refused": 1, "empty": 1, "failed": 1}
    assert facts["left_out"] == {"rows": 2, "by_check": {"marker": 1, "refusal": 1}}
    assert (facts["other_names_left_out"], facts["remaining"], facts["planned"]) == (1, 2, 11)
    left_out = sum(facts["states_left_out"].values()) + facts["left_out"]["rows"] + facts["other_names_left_out"]
    assert len(rows) + left_out + facts["remaining"] == facts["planned"]


def test_an_image_token_never_gets_into_a_row(tmp_path):
    out = planned_job(tmp_path, 3)
    answer(out, "0", good(0))
    answer(out, "1", f"{good(1)} <image>")
    answer(out, "2", " \n")
    rows, facts = exported(out, leave_out=())
    assert ids_of(rows) == {"0"} and facts["left_out"]["by_check"] == {"empty": 1, "marker": 1}


def test_a_state_that_is_wanted_is_not_kept_out_by_the_check_of_its_name(tmp_path):
    out = planned_job(tmp_path, 3)
    answer(out, "0", good(0))
    answer(out, "1", good(1)[:60], "truncated", finish_reason="length")
    answer(out, "2", f"<image> {good(2)[:60]}", "truncated", finish_reason="length")
    rows, _ = exported(out, states=("ok", "truncated"))
    assert ids_of(rows) == {"0", "1"}


def test_checks_and_thresholds_are_those_given(tmp_path):
    out = planned_job(tmp_path, 5)
    for number in range(4):
        answer(out, str(number), good(9))
    answer(out, "4", "A dog.")
    assert len(exported(out)[0]) == 5
    rows, facts = exported(out, leave_out=("repeated_caption", "too_short"), config=CheckConfig(max_images=3))
    assert len(rows) == 3 and facts["left_out"]["by_check"] == {"repeated_caption": 1, "too_short": 1}


def test_look_alikes_are_left_out_when_asked(tmp_path):
    images = [encoded(1), encoded(1, quality=60), encoded(2)]
    out = planned_job(tmp_path, {f"coco/train2017/{number}.jpg": data for number, data in enumerate(images)})
    for number in range(3):
        answer(out, str(number), good(number))
    assert len(exported(out)[0]) == 3
    rows, facts = exported(out, leave_out=("similar_image",), workers=0)
    assert "2" in ids_of(rows) and len(rows) == 2 and facts["left_out"]["by_check"] == {"similar_image": 1}


def test_a_picture_that_is_left_out_takes_no_look_alike_with_it(tmp_path):
    images = {f"coco/train2017/{n}.jpg": data for n, data in enumerate([encoded(1), encoded(1, quality=60)])}
    out = planned_job(tmp_path, images)
    first, second = (planned.id for planned in read_plan(out))
    answer(out, first, f"<image> {good(1)}")
    answer(out, second, good(2))
    assert ids_of(exported(out, leave_out=("marker", "similar_image"), workers=0)[0]) == {second}


def test_one_picture_of_two_sources_is_one_row(tmp_path):
    out = planned_job(tmp_path, {"coco/train2017/1.jpg": encoded(1), "wikiart/images/2.jpg": encoded(1)})
    answer(out, "1", good(1))
    answer(out, "2", good(2))
    rows, facts = exported(out)
    assert len(rows) == 1 and facts["other_names_left_out"] == 1


def test_rows_come_in_the_same_order_and_later_answers_do_not_join(tmp_path):
    out = planned_job(tmp_path, 6)
    for number in (4, 1, 3):
        answer(out, str(number), good(number))
    rows = export_rows(out, "Captioner", LICENSE)
    first = list(rows.read())
    answer(out, "1", good(100))
    answer(out, "2", good(2))
    assert list(rows.read()) == first and {row["captioner"] for row in first} == {"Captioner"}
    assert rows.facts()["caption_job"]["remaining"] == 3
    later = export_rows(out, "Captioner", LICENSE)
    assert len(list(later.read())) == 4 and later.identity != rows.identity
    assert export_rows(out, "Captioner", LICENSE).identity == later.identity == json.loads(json.dumps(later.identity))


@pytest.mark.parametrize(
    "other", [{"captioner": "x"}, {"license": "x"}, {"leave_out": ()}, {"states": ("ok", "looped")},
              {"config": CheckConfig(min_characters=1)}],
)  # fmt: skip
def test_another_option_is_another_export(tmp_path, other):
    out = planned_job(tmp_path, 1)
    answer(out, "0", good(0))
    options = {"captioner": None, "license": LICENSE}
    assert export_rows(out, **options).identity != export_rows(out, **{**options, **other}).identity


def test_answers_of_another_model_are_kept_apart(tmp_path):
    out = planned_job(tmp_path, 2)
    answer(out, "0", good(0))
    plan_job(out, endpoint_job(model="other"), ImageRoots([tmp_path / "images"]))
    answer(out, "1", good(1))
    rows, facts = exported(out)
    assert [(row["id"], row["captioner"]) for row in rows] == [("1", "other")] and facts["mixed"] == 1


def test_nothing_to_export_is_an_error_that_says_why(tmp_path):
    out = planned_job(tmp_path, 3)
    answer(out, "0", state="refused")
    answer(out, "1", f"<image> {good(1)}")
    reasons = "of 3 images 1 have no answer yet, 1 are refused, 1 are left out by checks"
    with pytest.raises(ValueError, match=reasons):
        export_rows(out, None, LICENSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": " "}, "`license` is empty"),
        ({"leave_out": ("blurry",)}, r"no checks \['blurry'\]"),
        ({"states": ("failed",)}, "`states` must name some of ok"),
        ({"states": ()}, "`states` must name some of ok"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_rows(tmp_path, **{"captioner": None, "license": LICENSE, **options})


def test_text_that_gives_orders_is_a_caption_like_any_other(tmp_path):
    out = planned_job(tmp_path, 2)
    for number in range(2):
        answer(out, str(number), f"{good(number)} A sign reads: {INJECTION}")
    build_rows(export_rows(out, None, LICENSE), tmp_path / "repo", "captions")
    loaded = load_dataset(str(tmp_path / "repo"), "captions", split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["caption"]) == {f"{good(number)} A sign reads: {INJECTION}" for number in range(2)}
    for file in ("README.md", "croissant.json", "captions/build.json"):
        assert "Ignore previous" not in (tmp_path / "repo" / file).read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("passwd"))


def interrupted_build(out, repo) -> None:
    """A build that ends after three shards of a row each."""
    rows = export_rows(out, None, LICENSE)

    def read():
        yield from islice(rows.read(), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_rows(replace(rows, read=read), repo, "captions", shard_bytes=1)


def test_a_build_that_was_interrupted_continues(tmp_path, caplog):
    out, repo = planned_job(tmp_path, 6), tmp_path / "repo"
    for number in range(5):
        answer(out, str(number), good(number))
    interrupted_build(out, repo)
    facts = build_rows(export_rows(out, None, LICENSE), repo, "captions", shard_bytes=1)
    assert "Continuing captions" in caplog.text and "after 2 finished shards" in caplog.text
    assert facts["license"] == LICENSE and facts["caption_job"]["remaining"] == 1
    captions = [row["caption"] for row in RowSource(repo / "captions").captions()]
    assert sorted(captions) == [good(number) for number in range(5)]
    assert build_rows(export_rows(out, None, LICENSE), repo, "captions", shard_bytes=1) == facts


def test_a_build_that_was_interrupted_begins_anew_after_further_answers(tmp_path, caplog):
    out, repo = planned_job(tmp_path, 6), tmp_path / "repo"
    for number in range(5):
        answer(out, str(number), good(number))
    interrupted_build(out, repo)
    answer(out, "5", good(5))
    build_rows(export_rows(out, None, LICENSE), repo, "captions", shard_bytes=1)
    assert "Starting captions" in caplog.text and "input or options have changed" in caplog.text
    captions = [row["caption"] for row in RowSource(repo / "captions").captions()]
    assert sorted(captions) == [good(number) for number in range(6)]


def test_a_built_repository_names_no_place_of_this_machine(tmp_path):
    out = planned_job(tmp_path, 1)
    answer(out, "0", good(0))
    build_rows(export_rows(out, None, LICENSE), tmp_path / "repo", "captions")
    for file in ("README.md", "captions/build.json"):
        text = (tmp_path / "repo" / file).read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "127.0.0.1" not in text


def test_a_real_run_builds_a_repository_with_and_without_images(tmp_path):
    answers = {0: ok(""), 1: ok("I'm sorry, but I can't help with that."), 2: ok("The boat waits. " * 40, "length")}
    answers[3] = ok(f"<image> {good(3)}")
    images = put_pictures(tmp_path / "images", range(8))
    out = tmp_path / "job"
    with FaultServer(route=lambda seen: answers.get(number_of(seen)) or ok(good(number_of(seen)))) as server:
        plan_job(out, endpoint_job(server.url), ImageRoots([images]))
        run_job(out, RunOptions())
    assert job_status(out)["states"] == {"ok": 5, "truncated": 1, "refused": 1, "empty": 1}
    rows = export_rows(out, None, LICENSE)
    facts = build_rows(rows, tmp_path / "repo", "paths")["caption_job"]
    assert facts["runs"] == 1 and len(facts["versions"]["openai"]) == 1
    assert (facts["remaining"], facts["left_out"]["by_check"]) == (0, {"marker": 1})
    build_rows(rows, tmp_path / "repo", "joined", [images], workers=0)
    wanted = {f"{number:012d}": good(number) for number in range(4, 8)}
    for config in ("paths", "joined"):
        loaded = load_dataset(str(tmp_path / "repo"), config, split="train", cache_dir=str(tmp_path / "cache"))
        assert dict(zip(loaded["id"], loaded["caption"], strict=True)) == wanted
        read = list(RowSource(tmp_path / "repo" / config).captions())
        assert [row["caption"] for row in read] == loaded["caption"][:]
        for row in read:
            validate_caption(row)
    assert loaded[0]["image"].size[1] == 32
