"""What the commands of this repository really write: a trained tiny model, adapters, a dataset, a metric."""

import shutil

import pytest

from dataset_scripts.build import write_repo
from evaluation.metrics import write_metric
from tests.tiny import noise_image, tiny_model
from trainers.train import main as train


OPTIONS = {
    "dataset_config": "talk",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.001,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "activation_checkpointing": False,
}


def conversation(number):
    """A conversation row about noise."""
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"Picture {number}."}]
    return {"id": str(number), "source": "coco", "images": [noise_image(number)], "messages": talk}


def caption(number):
    """A caption row about noise."""
    names = {"captioner": "Share-Captioner", "prompt_id": "p1", "license": "cc-by-nc-4.0", "sha256": None}
    own = {"id": str(number), "image": noise_image(number), "source": ("coco", "textcaps")[number % 2]}
    return {**own, "caption": f"Picture {number}.", **names}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folders `base`, `dataset`, `model`, `captioner`, `adapter` and `mme`; tests copy what they change."""
    folder = tmp_path_factory.mktemp("made")
    model, processor = tiny_model()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    rows = [conversation(number) for number in range(4)]
    captions = {"train": [caption(number) for number in range(4)], "heldout": [caption(4)]}
    write_repo(folder / "dataset", captions, {"talk": {"train": rows}})
    given = {**OPTIONS, "model": folder / "base", "dataset": folder / "dataset"}
    for name, own in {
        "model": {"stage": "finetune"},
        "captioner": {"stage": "captioner"},
        "adapter": {"stage": "captioner", "lora_rank": 4},
    }.items():
        words = {**given, **own, "output_dir": folder / name}
        train([word for option, value in words.items() for word in (f"--{option}", str(value))])
    write_metric("mme", folder)
    return folder


@pytest.fixture
def copy_of(made, tmp_path):
    """Copies a folder of `made`, so that a test may change it."""

    def copy(name):
        return shutil.copytree(made / name, tmp_path / "copy" / name, dirs_exist_ok=True)

    return copy
