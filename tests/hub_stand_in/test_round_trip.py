"""Push, load in a fresh process both ways, stream, train a step and push again, with the real libraries."""

import json
from pathlib import Path
from typing import Any

import pytest

from dataset_scripts.build import write_repo
from dataset_scripts.rows import caption_to_conversation
from evaluation.catalogue import module
from evaluation.metrics import example, write_metric
from tests.hub_stand_in.world import HubStandIn
from tests.image_files import encoded
from tests.tiny import tiny_model


pytestmark = pytest.mark.slow
pytest.importorskip("evaluate", reason="`evaluate` is not installed")

PROGRAM = Path(__file__).with_name("programs") / "round_trip.py"
NO_FAULTS: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
MODEL, DATASET, SPACE = "tester/tiny-model", "tester/tiny-captions", "tester/mme"
ROWS = 40  # of noise, so that the table is much larger than its footer
NATIVE, OURS = "LlavaForConditionalGeneration", "ShareGPT4VForConditionalGeneration"


def caption_row(number: int) -> dict[str, Any]:
    """A row of a dataset."""
    return {
        "id": str(number),
        "image": {"bytes": encoded(number, (64, 48), "PNG"), "path": f"{number}.png"},
        "source": "test",
        "caption": f"A picture of number {number}.",
        "captioner": "human",
        "prompt_id": "p1",
        "license": "CC0-1.0",
        "sha256": "0" * 64,
    }


@pytest.fixture(scope="module")
def hub():
    """A Hub of nothing yet."""
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the user works; what is to be pushed lies in `made`."""
    folder = tmp_path_factory.mktemp("user")
    model, processor = tiny_model()
    model.save_pretrained(folder / "made" / "model")
    processor.save_pretrained(folder / "made" / "model")
    rows = [caption_row(number) for number in range(ROWS)]
    turns = [caption_to_conversation(row, "What is it?") for row in rows]
    write_repo(folder / "made" / "dataset", {"train": rows}, {"pretrain": {"train": turns}})
    write_metric("mme", folder / "made")
    (folder / "example.json").write_text(json.dumps(example("mme")), encoding="utf-8")
    return folder


def step(hub: HubStandIn, folder: Path, *words: str) -> dict[str, Any]:
    """What a user finds at a step, and what they asked for."""
    start = len(hub.log)
    found = hub.run(PROGRAM.read_text(encoding="utf-8"), *words, cwd=folder)
    return found | {"asked": hub.log[start:]}


@pytest.fixture(scope="module")
def pushed(hub, folder):
    """The first push."""
    return step(hub, folder, "push")


@pytest.fixture(scope="module")
def used(hub, folder, pushed):
    """The use of it in a fresh process, pinned to what was pushed."""
    return step(hub, folder, "use", pushed["processor"], pushed["dataset"])


@pytest.fixture(scope="module")
def used_again(hub, folder, used):
    """The use of what was pushed then, in another."""
    return step(hub, folder, "use_again", used["pushed"])


def test_a_push_is_private_and_whole(hub, pushed):
    model, dataset = hub.repo(MODEL), hub.repo(DATASET, "dataset")
    assert model.private and dataset.private and model.head.sha == pushed["processor"]
    assert {"config.json", "modeling_sharegpt4v.py", "tokenizer.json"} <= set(model.names)
    assert model.uploaded == {file.sha256 for file in model.head.files.values() if file.is_large}
    assert len([name for name in model.names if name.endswith(".safetensors")]) > 1
    assert {"README.md", "croissant.json", "captions/train-00000-of-00001.parquet"} <= set(dataset.names)


def test_a_pinned_model_loads_both_ways_with_equal_logits(used):
    assert used["loaded"] == [[NATIVE, "transformers", NO_FAULTS], [OURS, "transformers_modules", NO_FAULTS]]
    assert used["equal"] is True


def test_a_dataset_loads_and_streams(used):
    assert used["rows"] == [str(number) for number in range(ROWS)]
    assert used["streamed"] == ["0", True, [64, 48]]


def test_a_stream_reads_ranges_of_a_table(used):
    ranges = [one for one in used["asked"] if one.stage == "storage" and one.status == 206]
    assert ranges and not any("authorization" in one.headers for one in ranges)


def test_a_step_on_a_streamed_row_is_pushed_on_top(hub, pushed, used):
    before, after = used["loss"]
    assert after < before and used["changed"] is True
    assert hub.repo(MODEL).tags == {"trained": used["pushed"]} and hub.repo(MODEL).head.sha == used["pushed"]
    assert hub.repo(MODEL).history("main")[1].sha == pushed["processor"]


def test_what_was_trained_loads_both_ways_elsewhere(used_again):
    assert used_again["loaded"] == [[OURS, "transformers_modules", NO_FAULTS], [NATIVE, "transformers", NO_FAULTS]]
    assert used_again["equal"] == [True, True]


def test_rows_that_the_library_pushed_come_back(hub, used_again):
    assert used_again["rows"] == [str(number) for number in range(ROWS)]
    assert hub.repo(f"{DATASET}-again", "dataset").private


def test_a_metric_space_scores_as_its_scorer(used_again):
    given = example("mme")
    items = [{**row, "response": said} for row, said in zip(given["references"], given["predictions"], strict=True)]
    assert used_again["score"] == json.loads(json.dumps(module("mme").score(items).to_json()))
    assert any(one.stage == "resolve" and one.repository == SPACE for one in used_again["asked"])
