"""Recipes and the training script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_scripts.build import write_repo
from tests.tiny import noise_image, tiny_model
from trainers.sharegpt4v_trainer import FinetuneConfig, PretrainConfig
from trainers.train import main, parse_arguments


ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(recipe):
    run, config = parse_arguments(["--config", str(recipe)])
    assert isinstance(config, {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[run.stage])
    assert config.assistant_only_loss and config.max_length is None


def test_a_flag_overrides_the_recipe():
    run, config = parse_arguments(["--config", str(RECIPES[0]), "--learning_rate", "0.5", "--model", "other"])
    assert config.learning_rate == 0.5
    assert run.model == "other"


def test_an_unknown_field_of_a_recipe_is_refused(tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(RECIPES[0].read_text() + "\nlearning_rat: 1.0\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments(["--config", str(recipe)])


@pytest.mark.parametrize("argv", [[], ["--stage", "third"]])
def test_an_unknown_stage_is_refused(argv):
    with pytest.raises(ValueError, match="must be one of .'finetune', 'pretrain'."):
        parse_arguments(argv)


def row(number: int) -> dict:
    return {
        "id": str(number),
        "source": "test",
        "images": [noise_image(number)],
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"Number {number}."}],
    }


def test_both_stages_run_through_accelerate_and_the_tower_of_the_first_reaches_the_second(tmp_path):
    model, processor = tiny_model()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    write_repo(tmp_path / "data", {}, {"talk": {"train": [row(n) for n in range(4)]}})
    shared = ["--dataset", str(tmp_path / "data"), "--dataset_config", "talk", "--use_cpu", "--bf16", "false"]
    shared += ["--max_steps", "2", "--report_to", "none", "--save_strategy", "no", "--learning_rate", "0.01"]
    first = ["--stage", "pretrain", "--model", str(tmp_path / "base"), "--output_dir", str(tmp_path / "one")]
    second = ["--stage", "finetune", "--model", str(tmp_path / "one"), "--output_dir", str(tmp_path / "two")]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "-m", "trainers.train"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [*command, *first, "--tune_vision_from_block", "0", *shared],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=240,
    )
    main([*second, *shared])
    towers = [tower_of(tmp_path / name) for name in ("base", "one", "two")]
    assert towers[0] != towers[1]
    assert towers[1] == towers[2]
    facts = json.loads((tmp_path / "two" / "run.json").read_text())
    assert facts["stage"] == "finetune" and facts["world_size"] == 1 and facts["samples"] == 4


def tower_of(folder: Path) -> dict[str, bytes]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as weights:
        return {name: weights.get_tensor(name).tobytes() for name in weights.keys() if "vision_tower" in name}
