"""
Share-Captioner end to end: the recipe makes a captioner of an open model of each family, and `sharegpt4v caption`
uses it.

Qwen's own processor has a part for videos that needs torchvision, which these tests do without. PaddleOCR-VL's makes
the same inputs of an image and has no such part, so this family too is loaded from its folder by the Auto classes.
"""

import gc
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PaddleOCRVLProcessor

from captioning.engine import load_engine
from captioning.engine_requests import CaptionRequest, LoopGuard
from captioning.plan import read_facts
from captioning.store import CaptionRow, read_rows
from dataset_scripts.build import write_repo
from dataset_scripts.schema import CAPTION_INSTRUCTION
from tests.commands import run_command
from tests.families import FAMILIES, family
from tests.image_files import encoded, picture, put
from tests.tiny import chat
from trainers.merge import main as merge
from trainers.train import main as train


ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "tiny" / "captioner_any_lora.yaml"
CAPTIONS = ["A red square.", "Two dogs on a lake.", "The cat asks for a photograph.", "A small boat."]
STEPS = 45  # enough to learn them by heart
UNSEEN = 2  # photographs that no caption was trained on
LIMIT = LoopGuard().least - 1  # most tokens of a caption: fewer than make a loop
SCALES = {"llava": 1.0, "idefics3": 10.0, "qwen2_5_vl": 10.0}  # at which the image decides what is said


def photo(number: int) -> bytes:
    return encoded(number, kind="PNG")


def caption_row(number: int) -> dict:
    facts = {name: "test" for name in ("source", "captioner", "prompt_id", "license", "sha256")}
    image = {"bytes": photo(number), "path": f"{number}.png"}
    return {"id": str(number), "image": image, "caption": CAPTIONS[number], **facts}


def auto_family(name: str):
    """A family whose processor, too, is loaded by the Auto classes."""
    model, processor = family(name, SCALES[name])
    if name == "qwen2_5_vl":
        words = processor.tokenizer
        kept = {"eos_token": words.eos_token, "pad_token": words.pad_token, "image_token": processor.image_token}
        words = type(words)(tokenizer_object=words.backend_tokenizer, **kept)
        processor = PaddleOCRVLProcessor(processor.image_processor, words, chat_template=processor.chat_template)
    return model, processor


def write_start(folder: Path, name: str) -> Path:
    """A model to start from in `base`, captions in `data`, and `photos`, more than there are captions."""
    model, processor = auto_family(name)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_repo(folder / "data", {"train": [caption_row(number) for number in range(len(CAPTIONS))]}, {})
    put(folder / "photos", {f"{number}.png": photo(number) for number in range(len(CAPTIONS) + UNSEEN)})
    return folder


def flags(folder: Path, **options) -> list[str]:
    """The recipe with the folders and the steps of a test."""
    places = {"model": folder / "base", "dataset": folder / "data", "output_dir": folder / "run"}
    options = {**places, "max_steps": STEPS, "learning_rate": 0.01, "bf16": False, **options}
    return ["--config", str(RECIPE), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def train_here(folder: Path, **options) -> Path:
    gc.freeze()  # a run collects garbage a few times, a second each among all that pytest holds
    try:
        train(flags(folder, **options))
    finally:
        gc.unfreeze()
    return folder / "run"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name == "llava" else pytest.mark.slow) for name in FAMILIES]
)
def captioner(request, tmp_path_factory):
    """A folder in which the recipe has run, and its adapters are merged."""
    folder = write_start(tmp_path_factory.mktemp(request.param), request.param)
    train_here(folder)
    assert merge([str(folder / "run"), "--output", str(folder / "merged")]) == 0
    return folder


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def one_at_a_time(folder: Path) -> list[str]:
    """Captions of all photographs by `generate`, greedy."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    texts = []
    for number in range(len(CAPTIONS) + UNSEEN):
        talk = chat(CAPTION_INSTRUCTION, picture(number))
        asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(talk, **asked)
        tokens = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return texts


def rows_by_photo(job: Path) -> list[CaptionRow]:
    """The row of each photograph; there is no second one of any."""
    facts = read_facts(job)
    rows = [row for number in range(facts["shards"]) for row in read_rows(job, number)]
    found = {row.image_sha256: row for row in rows}
    assert len(rows) == len(found) == len(CAPTIONS) + UNSEEN
    return [found[hashlib.sha256(photo(number)).hexdigest()] for number in range(len(rows))]


def caption(capsys, folder: Path, model: Path) -> list[CaptionRow]:
    """What `sharegpt4v caption` writes about the photographs, in a worker of its own."""
    words = ("--model", model, "--out", folder / "job", "--max-new-tokens", LIMIT, "--json")
    outcome = run_command(capsys, "caption", folder / "photos", *words)
    assert outcome.code == 0, outcome.errors
    assert json.loads(outcome.output)["remaining"] == 0
    return rows_by_photo(folder / "job")


def test_the_command_writes_what_was_trained_and_of_other_photographs_what_generate_says(captioner, capsys):
    rows = caption(capsys, captioner, captioner / "merged")
    assert [row.caption for row in rows] == one_at_a_time(captioner / "merged")
    assert [row.caption for row in rows[: len(CAPTIONS)]] == CAPTIONS
    assert {row.state for row in rows[: len(CAPTIONS)]} == {"ok"}  # each ended by itself
    assert {row.prompt_sha256 for row in rows} == {hashlib.sha256(CAPTION_INSTRUCTION.encode()).hexdigest()}
    assert all(row.model.startswith("merged@") for row in rows)


def test_the_loss_falls(captioner):
    found = losses(captioner / "run")
    assert len(found) == STEPS and found[-1] < 0.1 < 4 < found[0]


def test_in_full_by_flag_the_folder_of_the_run_is_the_captioner(tmp_path):
    run = train_here(write_start(tmp_path, "idefics3"), lora_rank=0)
    assert not (run / "adapter_model.safetensors").exists() and losses(run)[-1] < 0.1
    asked = [CaptionRequest(str(number), photo(number), CAPTION_INSTRUCTION) for number in range(len(CAPTIONS))]
    engine = load_engine(str(run), slots=2, max_length=128, max_new_tokens=LIMIT)
    assert {result.key: result.text for result in engine.caption(asked)} == dict(zip("0123", CAPTIONS, strict=True))


def test_an_untrained_model_says_something_else(tmp_path):
    folder = write_start(tmp_path, "idefics3")
    assert not set(one_at_a_time(folder / "base")) & set(CAPTIONS)


def test_the_stand_in_makes_the_inputs_of_qwens_own_processor():
    (_, own), (_, stand_in) = family("qwen2_5_vl"), auto_family("qwen2_5_vl")
    asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected, found = (one.apply_chat_template(chat("What?", picture(3)), **asked) for one in (own, stand_in))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank"), [("llava", 64), ("idefics3", 0)])
def test_the_commands_of_the_readme_one_after_the_other(tmp_path, name, rank):
    write_start(tmp_path, name)
    run, merged, job = (str(tmp_path / folder) for folder in ("run", "merged", "job"))
    launch = ["accelerate.commands.launch", "--num_processes", "1", "-m", "trainers.train"]
    steps = [[*launch, *flags(tmp_path, lora_rank=rank)], ["trainers.merge", run, "--output", merged]]
    model = merged if rank else run  # what is trained in full is a model already
    steps.append(["sharegpt4v.cli", "caption", str(tmp_path / "photos"), "--model", model, "--out", job])
    for words in steps if rank else [steps[0], steps[2]]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *words]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
    rows = rows_by_photo(tmp_path / "job")
    assert [row.caption for row in rows[: len(CAPTIONS)]] == CAPTIONS
