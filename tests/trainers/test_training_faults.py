"""Faults of a training run, through the script that users launch: what it says, how it ends, a rerun that is right."""

import hashlib
import json
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest

from dataset_scripts.build import write_repo
from tests.original_checkpoints import Canary
from tests.tiny import noise_image, tiny_model
from tests.trainers.stage_child import run_stage
from trainers.checkpoint_folders import list_checkpoints, newest_complete, verify_checkpoint
from trainers.save_on_signal import EXIT_TERMINATED


STEPS = 6
KILLS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 3 else []) for seed in range(20)]


def row(number: int, images: int, words: int = 3) -> dict:
    answer = {"role": "assistant", "content": f"Number {number}. " + "red " * words}
    return {
        "id": f"row-{number}",
        "source": "test",
        "images": [noise_image(number) for _ in range(images)],
        "messages": [{"role": "user", "content": "What?"}, answer],
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model, and rows with and without images that make two and a half epochs of six steps."""
    folder = tmp_path_factory.mktemp("start")
    model, processor = tiny_model()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_repo(folder / "data", {}, {"talk": {"train": [row(n, n % 3 > 0, words=3 + 5 * n) for n in range(10)]}})
    return folder


def command(start: Path, output: Path, **options) -> list[str]:
    """A run with dropout and workers of the loader: everything that a resumed run must put back."""
    options = {
        "stage": "finetune",
        "model": start / "base",
        "dataset": start / "data",
        "dataset_config": "talk",
        "output_dir": output,
        "use_cpu": True,
        "bf16": False,
        "max_steps": STEPS,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "lora_rank": 4,
        "lora_dropout": 0.5,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "activation_checkpointing": False,
        **options,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def outcome(folder: Path) -> tuple[str, dict[int, float]]:
    """Hash of what was trained, and the losses of all steps."""
    file = folder / "adapter_model.safetensors"
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    return hashlib.sha256(file.read_bytes()).hexdigest(), losses


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What an uninterrupted run ends with."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_stage(folder, command(start, folder / "run"))[0] == [0]
    return outcome(folder / "run")


@pytest.fixture(scope="module")
def pair_folder(start, tmp_path_factory):
    """Folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    assert run_stage(folder, command(start, folder / "run"), processes=2)[0] == [0, 0]
    return folder / "run"


@pytest.fixture(scope="module")
def pair(pair_folder):
    """What an uninterrupted run of two processes ends with."""
    return outcome(pair_folder)


def test_two_processes_train_the_same_steps(whole, pair):
    assert len(whole[1]) == len(pair[1]) == STEPS


def test_the_rates_of_two_processes_are_those_of_both(pair_folder):
    history = json.loads((pair_folder / "trainer_state.json").read_text())["log_history"]
    rates = [entry for entry in history if "samples_per_second" in entry]
    assert len(rates) == STEPS and all(0.5 < entry["step_efficiency"] <= 1 for entry in rates)
    assert any(entry["step_efficiency"] < 1 for entry in rates)  # samples differ in length, so ranks cannot be even
    ratio = [entry["tokens_per_second"] / entry["samples_per_second"] for entry in rates]
    assert min(ratio) > 50  # tokens a sample: both were summed over the same ranks


@pytest.mark.parametrize("seed", KILLS)
def test_a_run_killed_at_any_time_resumes_as_if_it_had_not_been(start, whole, tmp_path, seed):
    argv = command(start, tmp_path / "run", resume_from_checkpoint=True)
    seconds = random.Random(seed).uniform(0.01, 0.9)
    codes, _ = run_stage(tmp_path, argv, {"killed_after": seconds})
    assert codes in ([0], [-signal.SIGALRM])
    assert all(verify_checkpoint(folder) == [] for folder in list_checkpoints(tmp_path / "run"))
    assert run_stage(tmp_path, argv)[0] == [0]
    assert outcome(tmp_path / "run") == whole


def test_sigterm_saves_ends_with_its_own_code_and_the_same_command_goes_on(start, whole, tmp_path):
    argv = command(start, tmp_path / "run", resume_from_checkpoint=True)
    codes, log = run_stage(tmp_path, argv, {"signal": (signal.SIGTERM, 3, "begin")})
    assert codes == [EXIT_TERMINATED] and "SIGTERM ended the run after step 3." in log
    assert newest_complete(tmp_path / "run") == (tmp_path / "run" / "checkpoint-3", [])
    assert not (tmp_path / "run" / "run.json").exists()
    assert run_stage(tmp_path, argv)[0] == [0]
    assert outcome(tmp_path / "run")[0] == whole[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_resume_as_if_uninterrupted(start, pair, tmp_path, number):
    argv = command(start, tmp_path / "run", resume_from_checkpoint=True)
    if number == signal.SIGTERM:
        assert run_stage(tmp_path, argv, {"signal": (number, 3, "begin")}, 2)[0] == [EXIT_TERMINATED] * 2
    else:
        assert run_stage(tmp_path, argv, {"signal": (number, 4, "save")}, 2)[0][1] == -number
    assert run_stage(tmp_path, argv, processes=2)[0] == [0, 0]
    assert outcome(tmp_path / "run")[0] == pair[0]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(start, whole, tmp_path, harm):
    assert run_stage(tmp_path, command(start, tmp_path / "run"))[0] == [0]
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")
    file = tmp_path / "run" / "checkpoint-4" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if harm != "remove":
        file.write_bytes(content if harm == "flip" else content[:100])
    codes, log = run_stage(tmp_path, command(start, tmp_path / "run", resume_from_checkpoint=True))
    assert codes == [0] and "checkpoint-4 is not used: optimizer.pt " in log
    assert outcome(tmp_path / "run") == whole
    assert (tmp_path / "run" / "checkpoint-4.refused").is_dir()


def test_a_sample_that_is_too_long_is_named_before_the_first_step_and_can_be_shortened(start, tmp_path):
    codes, log = run_stage(tmp_path, command(start, tmp_path / "run", max_length=150))
    assert codes == [1] and not (tmp_path / "run" / "trainer_state.json").exists()
    assert "2 of 10 samples have more than `max_length`=150 tokens" in log and "first: row-8 (" in log
    codes, log = run_stage(tmp_path, command(start, tmp_path / "run", max_length=150, on_too_long="drop_turns"))
    assert codes == [0] and "`max_length` of 150 left out 2 samples (test: 2) and 0 turns at the end of others." in log
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["samples"] == 8 and facts["samples_dropped"] == {"test": 2} and facts["turns_dropped"] == {}


def test_a_loss_that_is_no_number_ends_the_run_with_the_text_of_the_batch(start, whole, tmp_path):
    model, processor = tiny_model()
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    codes, log = run_stage(tmp_path, command(start, tmp_path / "run", model=tmp_path / "base"))
    assert codes == [1] and "The loss is nan. The batch: " in log and "What?" in log
    assert list_checkpoints(tmp_path / "run") == []
    assert run_stage(tmp_path, command(start, tmp_path / "run"))[0] == [0]
    assert outcome(tmp_path / "run") == whole


def test_a_base_model_in_a_pickle_is_refused_and_runs_no_code(start, tmp_path):
    shutil.copytree(start / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    codes, log = run_stage(tmp_path, command(start, tmp_path / "run", model=tmp_path / "base"))
    assert codes == [1] and "safetensors" in log and "modeling_sharegpt4v.convert_weights import" in log
    assert not (tmp_path / "ran").exists()
    assert run_stage(tmp_path, command(start, tmp_path / "run"))[0] == [0]
