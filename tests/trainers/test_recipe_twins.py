"""The recipes of `recipes/tiny`, run one after the other in a folder where a tiny model stands for the demo's."""

import gc
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dataset_scripts.build import write_repo
from dataset_scripts.rows import caption_to_conversation
from dataset_scripts.schema import CAPTION_INSTRUCTION
from tests.tiny import noise_image, tiny_clip, tiny_model
from trainers.merge import merge_adapters
from trainers.train import main


RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "tiny"
ORDER = ["llava15_stage1_7b", "llava15_finetune_7b", "pretrain_7b", "finetune_7b", "captioner_7b", "captioner_7b_lora"]
ORDER += ["captioner_any_lora"]


def caption(number: int) -> dict:
    facts = {name: "test" for name in ("source", "captioner", "prompt_id", "license", "sha256")}
    return {"id": str(number), "image": noise_image(number), "caption": f"A picture of {number} dogs.", **facts}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder `runs` after all twins: every model and dataset is found where the recipes say."""
    folder = tmp_path_factory.mktemp("work")
    model, processor = tiny_model(tiny_clip(blocks=6))  # the demo's tower has 6 blocks, too
    model.save_pretrained(folder / "runs" / "demo" / "base")
    processor.save_pretrained(folder / "runs" / "demo" / "base")
    captions = [caption(number) for number in range(6)]
    talks = [caption_to_conversation(row, "What?") for row in captions]
    more = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "On a lake."}]
    longer = [{**row, "messages": row["messages"] + more} for row in talks]
    text = {**longer[0], "id": "text", "images": []}
    parts = {"pretrain": {"train": talks}, "finetune": {"train": [*longer, text]}}
    write_repo(folder / "runs" / "demo" / "dataset", {"train": captions}, parts)
    kept = os.getcwd()
    os.chdir(folder)
    gc.freeze()  # every run collects garbage a few times, a second each among all that pytest holds
    try:
        for name in ORDER:
            main(["--config", str(RECIPES / f"{name}.yaml"), "--bf16", "false"])  # slow where a CPU has none
    finally:
        gc.unfreeze()
        os.chdir(kept)
    return folder / "runs"


def weights(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def changed(folder: Path, start: Path) -> set[str]:
    """Parts that a run has trained: `block N`, `tower` for the rest of it, `projector`, `llm`."""
    before, after, parts = weights(start), weights(folder), set()
    for name in before:
        if (before[name] != after[name]).any():
            words = name.split(".")
            block = f"block {words[words.index('layers') + 1]}" if "layers" in words else "tower"
            part = "projector" if "projector" in name else "llm"
            parts.add(block if "vision_tower" in name else part)
    return parts


def tower_hash(folder: Path) -> str:
    tower = {name: tensor.tobytes() for name, tensor in weights(folder).items() if "vision_tower" in name}
    return sha256(b"".join(tower[name] for name in sorted(tower))).hexdigest()


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def processor_of(folder: Path) -> tuple[str, bool]:
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return "vicuna" if "USER" in template else "plain", settings["image_processor"]["do_pad"]


def test_every_recipe_has_run():
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted(ORDER)


@pytest.mark.parametrize(
    ("name", "start", "parts"),
    [
        ("llava15_stage1_7b", "demo/base", {"projector"}),
        ("llava15_finetune_7b", "demo/base", {"projector", "llm"}),
        ("pretrain_7b", "demo/base", {"block 3", "block 4", "projector", "llm"}),  # the loss does not reach block 5
        ("finetune_7b", "tiny/pretrain_7b", {"projector", "llm"}),
        ("captioner_7b", "tiny/llava15_finetune_7b", {"block 3", "block 4", "projector", "llm"}),
    ],
)
def test_a_stage_trains_its_parts_alone(runs, name, start, parts):
    assert changed(runs / "tiny" / name, runs / start) == parts


def test_the_tower_of_stage_1_is_that_of_stage_2(runs):
    one, two = (tower_hash(runs / "tiny" / name) for name in ("pretrain_7b", "finetune_7b"))
    assert one == two != tower_hash(runs / "demo" / "base")


def test_later_stages_start_from_the_projector_of_the_first(runs):
    name = "model.multi_modal_projector.linear_1.weight"
    base, first, second = (weights(runs / place)[name] for place in ("demo/base", "tiny/llava15_stage1_7b", PRETRAIN))
    assert np.abs(second - first).max() < np.abs(second - base).max() / 2


PRETRAIN = "tiny/pretrain_7b"


@pytest.mark.parametrize(
    ("name", "stage", "template", "pads", "samples"),
    [
        ("llava15_stage1_7b", "pretrain", "plain", False, 6),
        ("llava15_finetune_7b", "finetune", "vicuna", True, 7),
        ("pretrain_7b", "pretrain", "plain", False, 6),
        ("finetune_7b", "finetune", "vicuna", True, 7),
        ("captioner_7b", "captioner", "vicuna", True, 6),
        ("captioner_7b_lora", "captioner", "vicuna", True, 6),
        ("captioner_any_lora", "any_model", "vicuna", True, 6),
    ],
)
def test_what_a_run_leaves_says_how_it_was_made(runs, name, stage, template, pads, samples):
    folder = runs / "tiny" / name
    found = facts(folder)
    assert (found["stage"], found["step_samples"], found["samples"], found["world_size"]) == (stage, 4, samples, 1)
    assert found["instruction"] == (None if stage == "finetune" else CAPTION_INSTRUCTION)
    assert processor_of(folder) == (template, pads)
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert state["global_step"] == 4 and len(losses) == 4 and np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("name", "start"), [("captioner_7b_lora", "tiny/llava15_finetune_7b"), ("captioner_any_lora", "demo/base")]
)
def test_the_adapters_become_a_model(runs, monkeypatch, name, start):
    monkeypatch.chdir(runs.parent)
    merge_adapters(Path("runs/tiny") / name, Path("runs/merged") / name)
    assert changed(runs / "merged" / name, runs / start) == {"projector", "llm"}
