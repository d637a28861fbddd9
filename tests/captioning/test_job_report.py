"""Report on the captions of a job: every answer is counted once, findings are states, captions stay text."""

import json
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from captioning.checks import CheckConfig
from captioning.job_report import QualityError, report_job, require_quality
from captioning.job_report_text import inert
from captioning.pipeline import job_status, plan_job
from captioning.plan import read_plan
from dataset_scripts.images import ImageRoots
from dataset_scripts.select_images import select
from dataset_scripts.writing import WriteError
from tests.captioning.answered_job import INJECTION, answer, good, planned_job
from tests.captioning.jobs import endpoint_job
from tests.image_files import encoded, put


LOOP = "The boat lies on the calm lake and waits. " * 8
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def findings_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "findings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def elements_of(page: str) -> set[str]:
    """Kinds of everything on a page."""
    found = set()
    for token in MARKDOWN.parse(page):
        found |= {token.type, *(child.type for child in token.children or ())}
    return found


def test_every_answer_is_counted_once_by_state_and_source(tmp_path):
    images = {f"coco/train2017/{number}.jpg": encoded(number) for number in range(4)}
    out = planned_job(tmp_path, {**images, "sam/images/sa_4.jpg": encoded(4), "sam/images/sa_5.jpg": encoded(5)})
    answer(out, "0", good(0))
    answer(out, "1", state="refused", error="the model refused")
    answer(out, "sa_4", good(4))
    report = report_job(out, similar=False)
    assert report["sources"] == {"coco": {"images": 4, "ok": 1, "refused": 1}, "sam": {"images": 2, "ok": 1}}
    status = job_status(out)
    assert [report[name] for name in ("images", "states", "remaining")] == [
        status[name] for name in ("images", "states", "remaining")
    ]
    assert report == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "| coco | 4 | 1 | 1 | 2 |" in (out / "report.md").read_text(encoding="utf-8")


def test_a_job_without_any_answer_has_a_report(tmp_path):
    out = planned_job(tmp_path, 2)
    report = report_job(out, workers=0)
    assert (report["remaining"], report["quality"]["share"], findings_of(out)) == (2, None, [])
    with pytest.raises(QualityError, match="no answers"):
        require_quality(report, 1.0)


def test_the_last_row_of_an_image_counts_and_all_of_them_cost(tmp_path):
    out = planned_job(tmp_path, 1)
    answer(out, "0", state="failed", error="HTTP 500: busy", attempts=6, completion_tokens=None, cost=0.5)
    answer(out, "0", good(0), seconds=2.0)
    report = report_job(out, similar=False)
    assert report["states"] == {"ok": 1} and report["reasons"] == [] and findings_of(out) == []
    totals = report["totals"]
    assert (totals["rows"], totals["attempts"], totals["completion_tokens"]) == (2, 7, 40)
    assert totals["cost"] == pytest.approx(0.51) and totals["seconds"] == {"median": 2.0, "ninety": 2.0}


def test_reasons_are_told_once_without_their_numbers(tmp_path):
    out = planned_job(tmp_path, 3)
    answer(out, "0", state="failed", error="HTTP 500: request req_a1b2 took 31.5 s")
    answer(out, "1", state="failed", error="HTTP 500: request req_c3d4 took 7 s")
    answer(out, "2", state="failed", error="HTTP 403: request req_e5f6 took 7 s")
    reasons = report_job(out, similar=False)["reasons"]
    assert [(one["count"], one["reason"][:9]) for one in reasons] == [(2, "HTTP 500:"), (1, "HTTP 403:")]
    assert "#" in reasons[0]["reason"] and "a1b2" not in reasons[0]["reason"]


def test_findings_name_caption_check_and_reason_and_nothing_is_deleted(tmp_path):
    out = planned_job(tmp_path, 4)
    answer(out, "0", good(0))
    row = answer(
        out, "1", good(1)[:60], "truncated", finish_reason="length", error="the answer reached the token bound"
    )
    answer(out, "2", f"<image> {good(2)}")
    answer(out, "3", state="empty", error="the answer is empty")
    before = {file: file.read_bytes() for file in (out / "rows").glob("*.jsonl")}
    report_job(out, similar=False)
    found = {entry["id"]: entry for entry in findings_of(out)}
    assert {name: (one["state"], one["check"]) for name, one in found.items()} == {
        "1": ("truncated", "truncated"), "2": ("ok", "marker"), "3": ("empty", "empty"),
    }  # fmt: skip
    assert found["1"]["image"] == "coco/train2017/1.jpg" and found["1"]["reason"] == row.error
    keys = ("image_sha256", "prompt_sha256", "model", "sampling", "prompt_id")
    assert [found["1"][name] for name in keys] == [getattr(row, name) for name in keys]
    assert {file: file.read_bytes() for file in (out / "rows").glob("*.jsonl")} == before


def test_the_prompt_of_a_caption_is_known_to_the_checks(tmp_path):
    out = planned_job(tmp_path, 1)
    digest = answer(out, "0", good(0)).prompt_sha256
    prompt = json.loads((out / "prompts.json").read_text(encoding="utf-8"))[digest]["text"]
    answer(out, "0", " ".join(prompt.split()[:12]) + ". " + good(0))
    assert report_job(out, similar=False)["captions"]["by_check"] == {"prompt_leak": 1}


def test_loops_and_one_caption_on_many_images_fail_the_threshold(tmp_path):
    out = planned_job(tmp_path, 10)
    for number in range(5):
        answer(out, str(number), good(77))
    answer(out, "5", LOOP, "looped", finish_reason="loop", error="one phrase over and over")
    for number in range(6, 10):
        answer(out, str(number), good(number))
    report = report_job(out, similar=False)
    assert report["repeated"] == [{"images": 5, "caption": good(77)}]
    assert (report["quality"]["unusable"], report["quality"]["share"]) == (4, 0.4)
    with pytest.raises(QualityError, match=r"40\.00% of 10 answers .* 10\.00% are allowed; see .*findings\.jsonl"):
        require_quality(report, 0.1)
    require_quality(report, 0.4)
    with pytest.raises(ValueError, match="from 0 to 1, got 40"):
        require_quality(report, 40)


def test_what_failed_is_no_answer_of_bad_quality(tmp_path):
    out = planned_job(tmp_path, 2)
    answer(out, "0", good(0))
    answer(out, "1", state="failed", error="HTTP 500: busy")
    report = report_job(out, similar=False)
    require_quality(report, 0.0)
    assert [entry["check"] for entry in findings_of(out)] == ["failed"]


def test_thresholds_are_those_given(tmp_path):
    out = planned_job(tmp_path, 1)
    answer(out, "0", good(0))
    report = report_job(out, CheckConfig(min_characters=1000), similar=False)
    assert report["captions"]["by_check"] == {"too_short": 1}


def test_captions_stay_text_on_the_page_and_data_in_the_files(tmp_path):
    out = planned_job(tmp_path, {"coco/train2017/a|b`c_[x](y).jpg": encoded(1), "coco/train2017/2.jpg": encoded(2)})
    answer(out, "a|b`c_[x](y)", INJECTION)
    answer(out, "2", state="failed", error="<img src=x> | **HTTP 500**: `no`\u202e")
    report = report_job(out, similar=False)
    assert report["captions"]["samples"][0]["caption"] == INJECTION
    assert report["states"] == {"ok": 1, "failed": 1}
    page = (out / "report.md").read_text(encoding="utf-8")
    assert not {"\u202e", "\u2066"} & set(page) and "(U+202E)" in page
    markup = {"html_block", "html_inline", "link_open", "image", "strong_open", "em_open", "code_inline", "fence"}
    assert elements_of(page) & markup == set()
    assert "http://" not in page and "https://" not in page
    shown = [token.content for token in MARKDOWN.parse(page) if token.type == "inline"]
    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert sum("Ignore previous instructions" in text for text in shown) == 1 and "# Title" not in titles


@given(st.text(max_size=80) | st.text("|<>`*_[]()!#~\\&;:/.@w\n-+=$x1 ", max_size=80))
def test_any_text_is_one_cell_of_plain_text(text):
    page = f"| a | b |\n| --- | --- |\n| x {inert(text)} | end |\n"
    tokens = MARKDOWN.parse(page)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4 and cells[3].content == "end"
    assert {child.type for child in cells[2].children} <= {"text", "text_special"}


def test_images_that_look_the_same_are_found_and_looked_at_once(tmp_path):
    images = {
        f"coco/train2017/{n}.jpg": data for n, data in enumerate([encoded(1), encoded(1, quality=60), encoded(2)])
    }
    out = planned_job(tmp_path, images)
    for number in range(3):
        answer(out, str(number), good(number))
    assert report_job(out, similar=False)["similar"] is None
    report = report_job(out, workers=0)
    assert report["similar"] == {"hashed": 3, "unreadable": 0}
    (entry,) = findings_of(out)
    assert entry["check"] == "similar_image" and {entry["id"], entry["reason"][-2]} == {"0", "1"}
    for file in (tmp_path / "images").rglob("*.jpg"):
        file.unlink()
    assert report_job(out, workers=0)["captions"]["by_check"] == {"similar_image": 1}


def test_an_image_that_has_changed_or_gone_has_no_look(tmp_path):
    out = planned_job(tmp_path, 3)
    for number in range(3):
        answer(out, str(number), good(number))
    (tmp_path / "images/coco/train2017/0.jpg").unlink()
    put(tmp_path / "images", {"coco/train2017/1.jpg": encoded(2)})
    report = report_job(out, workers=0)
    assert report["similar"] == {"hashed": 1, "unreadable": 2} and report["captions"]["by_check"] == {}


def test_hashes_of_a_selection_are_not_computed_again(tmp_path):
    roots = ImageRoots([put(tmp_path / "images", {f"coco/train2017/{n}.jpg": encoded(n) for n in range(3)})])
    select(roots, tmp_path / "selection", {"coco": 2}, 0, workers=0)
    plan_job(tmp_path / "job", endpoint_job(), roots, tmp_path / "selection")
    for number in range(3):
        (tmp_path / f"images/coco/train2017/{number}.jpg").unlink()
    out = tmp_path / "job"
    for planned in list(read_plan(out)):
        answer(out, planned.id, good(int(planned.id)))
    assert report_job(out, workers=0)["similar"] == {"hashed": 2, "unreadable": 0}


def test_answers_of_another_job_are_told_and_not_counted(tmp_path):
    out = planned_job(tmp_path, 2)
    answer(out, "0", good(0), cost=1.0)
    answer(out, "1", good(1), cost=1.0)
    plan_job(out, endpoint_job(model="other", temperature=0.5), ImageRoots([tmp_path / "images"]))
    answer(out, "0", good(0), cost=0.25)
    report = report_job(out, similar=False)
    assert (report["states"], report["remaining"], report["totals"]["cost"]) == ({"ok": 1}, 1, 0.25)
    mixed = {group["model"]: group for group in report["mixed"]["groups"]}
    assert report["mixed"]["sentence"].startswith("2 answers to other prompts, or of another model")
    assert (mixed["m"]["answers"], mixed["m"]["current"], mixed["m"]["cost"]) == (2, False, 2.0)
    assert mixed["other"]["current"] and mixed["other"]["sampling"]["temperature"] == 0.5
    page = (out / "report.md").read_text(encoding="utf-8")
    assert report["mixed"]["sentence"] in page and "| not counted | m |" in page


def test_answers_of_one_job_are_not_mixed(tmp_path):
    out = planned_job(tmp_path, 1)
    answer(out, "0", good(0))
    assert report_job(out, similar=False)["mixed"] is None


def test_rows_of_images_that_are_not_planned_any_more_are_counted(tmp_path):
    out = planned_job(tmp_path, 2)
    answer(out, "0", good(0))
    answer(out, "1", good(1))
    (tmp_path / "images/coco/train2017/1.jpg").unlink()
    plan_job(out, endpoint_job(), ImageRoots([tmp_path / "images"]))
    report = report_job(out, similar=False)
    assert (report["images"], report["totals"]["unplanned_rows"], report["mixed"]) == (1, 1, None)


def test_a_picture_under_two_names_is_one_answer(tmp_path):
    out = planned_job(tmp_path, {"coco/train2017/1.jpg": encoded(1), "coco/train2017/2.jpg": encoded(1)})
    answer(out, "1", good(1))
    report = report_job(out, workers=0)
    assert (report["planned"], report["images"], report["other_names"]) == (2, 1, 1)
    assert report["captions"]["clean"] == 1


def test_samples_follow_from_the_seed(tmp_path):
    out = planned_job(tmp_path, 12)
    for number in range(12):
        answer(out, str(number), good(number))

    def drawn(seed: int) -> list[str]:
        return [one["id"] for one in report_job(out, similar=False, samples=4, seed=seed)["captions"]["samples"]]

    assert drawn(1) == drawn(1) != drawn(2) and len(drawn(1)) == 4


def test_a_report_that_fails_leaves_the_last_one_whole(tmp_path):
    out = planned_job(tmp_path, 1)
    answer(out, "0", "A dog.")
    report_job(out, similar=False)
    before = {name: (out / name).read_bytes() for name in ("report.json", "report.md", "findings.jsonl")}
    (rows,) = (out / "rows").glob("*.jsonl")
    rows.write_bytes(rows.read_bytes() + b"{damaged}\n")
    files = sorted(out.iterdir())
    with pytest.raises(ValueError, match="line 2, is damaged"):
        report_job(out, similar=False)
    assert {name: (out / name).read_bytes() for name in before} == before and sorted(out.iterdir()) == files


def test_a_full_disk_leaves_the_last_report_whole(tmp_path):
    out = planned_job(tmp_path, 3)
    answer(out, "0", good(0))
    before = report_job(out, similar=False)
    answer(out, "1", "A dog.")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(WriteError, match="cannot be written"):
            report_job(out, similar=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == before and findings_of(out) == []
    assert report_job(out, similar=False)["images"] == 3


def test_a_folder_without_a_job_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a captioning job"):
        report_job(tmp_path)
