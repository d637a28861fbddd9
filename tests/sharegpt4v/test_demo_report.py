"""The demo's report: what is checked, and that its page is inert and complete in itself."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sharegpt4v.demo.photos import Photo
from sharegpt4v.demo.report import build_report, write_report
from sharegpt4v.results import render_readme
from tests.tiny import noise_image


ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a red cup on a table", "two dogs run over wet grass", "the tower stands above a lake"]
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def run(tmp_path):
    """Artefacts of a run of three photographs as the training script and the captioner write them."""
    photos = []
    for number, text in enumerate(TEXTS):
        path = tmp_path / f"{number}.png"
        noise_image(number).save(path)
        photos.append(Photo(id=str(number), path=path, caption=text, split="heldout" if number == 2 else "train"))
    for folder, losses in (("pretrained", [4.0, 1.0]), ("model", [0.9, 0.2])):
        (tmp_path / folder).mkdir()
        history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)] + [{"train_runtime": 1}]
        row = {"module": "projector", "parameters": 1234567, "trains": True, "dtype": "float32", "note": ""}
        facts = {"stage": "x", "samples": 2, "world_size": 1, "bf16": False, "seconds": 1.0, "peak_memory_gb": 1.0}
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        (tmp_path / folder / "trainable.json").write_text(json.dumps([row]))
        (tmp_path / folder / "run.json").write_text(json.dumps(facts))
    return tmp_path, photos


def captions(texts: list[str], remote: list[str] | None = None) -> dict:
    way = {"model_class": "Llava", "model_module": "transformers", "processor_class": "P"}
    return {
        "native": {**way, "captions": texts},
        "remote_code": {**way, "captions": remote or texts},
        "exchanged": ["0", "1"],
    }


def evaluation(answered: int = 2, figure: float | None = 0.5) -> dict:
    judge = {"name": "demo-judge"}
    counts = {"answered": answered}
    one = {"title": "POPE", "headline": {"f1": figure}, "questions": 2, "counts": counts, "judge": judge}
    return {"benchmarks": {"pope": one}}


def report_of(run, texts, remote=None, **figures):
    times = {"dataset": 1.0, "base": 2.5}
    return build_report(*run, captions(texts, remote), evaluation(**figures), times, 3.0)


def holds(report) -> list[bool]:
    return [check["holds"] for check in report["checks"]]


def test_a_run_that_learned_its_captions_passes(run):
    report = report_of(run, [*TEXTS, TEXTS[1], TEXTS[0]])
    assert holds(report) == [True] * 5
    assert report["photos"][0]["rouge_l"] == 1.0
    assert report["seconds"]["total"] == 3.5


def test_different_text_of_the_two_ways_fails(run):
    texts = [*TEXTS, TEXTS[1], TEXTS[0]]
    assert holds(report_of(run, texts, remote=["another", *texts[1:]]))[0] is False


def test_a_loss_that_does_not_halve_fails(run):
    path = run[0] / "model" / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.5}]}))
    assert holds(report_of(run, [*TEXTS, TEXTS[1], TEXTS[0]]))[1] is False


def test_captions_of_other_photographs_fail(run):
    assert holds(report_of(run, [TEXTS[0], TEXTS[0], TEXTS[2], TEXTS[0], TEXTS[0]]))[2] is False


@pytest.mark.parametrize("exchanged", [[TEXTS[0], TEXTS[1]], ["something", "else"]])
def test_a_model_that_does_not_see_its_image_fails(run, exchanged):
    assert holds(report_of(run, [*TEXTS, *exchanged]))[3] is False


def test_one_caption_for_all_photographs_is_no_exchange(run):
    assert holds(report_of(run, [TEXTS[0]] * 5))[3] is False


@pytest.mark.parametrize("figures", [{"answered": 1}, {"figure": None}])
def test_a_benchmark_without_an_answer_or_a_figure_fails(run, figures):
    assert holds(report_of(run, [*TEXTS, TEXTS[1], TEXTS[0]], **figures)) == [True] * 4 + [False]


class Page(HTMLParser):
    """Collects the tags, addresses and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data):
        self.text += data


def test_a_caption_with_markup_stays_text_and_nothing_is_loaded_from_outside(run):
    folder, photos = run
    photos[0].caption = ATTACK
    photos[1].attribution = ATTACK
    report = report_of(run, [ATTACK, *TEXTS[1:], TEXTS[1], TEXTS[0]])
    write_report(folder / "report.html", photos, report)
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    assert page.tags.count("img") == len(photos) + 1
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.text.count(ATTACK) == 3
    assert "1,234,567" in page.text


@pytest.mark.parametrize(
    ("exchanged", "text"), [([TEXTS[1], TEXTS[0]], "sees its images"), (["a", "b"], "check below fails")]
)
def test_the_page_claims_only_what_the_checks_show(run, exchanged, text):
    folder, photos = run
    write_report(folder / "report.html", photos, report_of(run, [*TEXTS, *exchanged]))
    claims = {
        claim for claim in ("sees its images", "check below fails") if claim in (folder / "report.html").read_text()
    }
    assert claims == {text}


def test_readme_figures_are_those_of_the_committed_report():
    readme = (ROOT / "README.md").read_text()
    assert render_readme(readme, ROOT / "benchmarks" / "results") == readme


def test_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="lacks the markers"):
        render_readme("# nothing", ROOT)
