"""Recipes and the training script."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dataset_scripts.build import write_repo
from tests.exif import MAKER_AS_FRACTION, SIDEWAYS, exif_block
from tests.tiny import noise_image, tiny_model
from trainers.configs import FinetuneConfig, PretrainConfig
from trainers.loading import describe_data
from trainers.recipes import RunArguments, parse_arguments
from trainers.train import main


ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("demo_*.yaml"))  # the others: test_recipes.py


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_demo_parse(recipe):
    run, config = parse_arguments(["--config", str(recipe)])
    assert isinstance(config, {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[run.stage])
    assert config.on_too_long == "error" and config.max_length is None


def test_a_flag_overrides_the_recipe():
    run, config = parse_arguments(["--config", str(RECIPES[0]), "--learning_rate", "0.5", "--model", "other"])
    assert config.learning_rate == 0.5
    assert run.model == "other"


@pytest.mark.parametrize("argv", [["--config={}"], ["--config", "{}", "--stage=pretrain"]])
def test_flags_with_an_equals_sign_are_understood(argv):
    run, _ = parse_arguments([word.format(ROOT / "recipes" / "demo_pretrain.yaml") for word in argv])
    assert run.stage == "pretrain"


def test_an_unknown_field_of_a_recipe_is_refused(tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(RECIPES[0].read_text() + "\nlearning_rat: 1.0\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse_arguments(["--config", str(recipe)])


@pytest.mark.parametrize("argv", [[], ["--stage", "third"]])
def test_an_unknown_stage_is_refused(argv):
    with pytest.raises(ValueError, match="must be one of .'any_model', 'captioner', 'finetune', 'pretrain'."):
        parse_arguments(argv)


def row(number: int, images: int = 1) -> dict:
    return {
        "id": str(number),
        "source": "test",
        "images": [noise_image(number) for _ in range(images)],
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"Number {number}." * 2}],
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a tiny model, and a repository whose rows are image and text alone in turn."""
    folder = tmp_path_factory.mktemp("start")
    model, processor = tiny_model()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_repo(folder / "data", {}, {"talk": {"train": [row(number, number % 2) for number in range(8)]}})
    write_repo(folder / "images", {}, {"talk": {"train": [row(number) for number in range(4)]}})
    return folder


def flags(start, output, stage, **options) -> list[str]:
    options = {
        "stage": stage,
        "model": start / "base",
        "dataset": start / "images",
        "dataset_config": "talk",
        "output_dir": output,
        "use_cpu": True,
        "bf16": False,
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": 0.01,
        "activation_checkpointing": False,
        **options,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def launch(arguments: list[str], *launcher: str, module: str = "trainers.train") -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        return {name: weights.get_tensor(name) for name in weights.keys()}


def test_both_stages_run_through_accelerate_and_the_tower_of_the_first_reaches_the_second(start, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launcher = ("accelerate.commands.launch", "--num_processes", "1")
    launch(flags(start, one, "pretrain", tune_vision_from_block=0), *launcher)
    main(flags(start, two, "finetune", model=one))
    base, first, second = (
        {name: tensor for name, tensor in weights_of(folder).items() if "vision_tower" in name}
        for folder in (start / "base", one, two)
    )
    assert any((first[name] != base[name]).any() for name in base)
    assert all((second[name] == first[name]).all() for name in first)
    facts = json.loads((two / "run.json").read_text())
    assert facts["stage"] == "finetune" and facts["world_size"] == 1 and facts["samples"] == 4


def test_two_processes_train_like_one_also_when_one_has_text_alone(start, tmp_path):
    options = {"dataset": start / "data", "tune_vision_from_block": 0, "optim": "sgd", "learning_rate": 0.1}
    launcher = (
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
    )
    two = flags(start, tmp_path / "two", "pretrain", per_device_train_batch_size=1, **options)
    printed = launch(two, *launcher, module="tests.trainers.train_child")
    threads = re.findall(r"threads: (\[.*?\])", printed)
    assert len(threads) == 2 and "gloo" not in "".join(threads)  # one that runs when Python ends may abort the process
    main(flags(start, tmp_path / "one", "pretrain", per_device_train_batch_size=2, **options))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == 2
    base, one, two = (weights_of(folder) for folder in (start / "base", tmp_path / "one", tmp_path / "two"))
    assert any(np.abs(one[name] - base[name]).max() > 1e-4 for name in one)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-6, err_msg=name)


def test_a_resumed_run_ends_where_the_whole_run_does(start, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    main(flags(start, tmp_path / "whole", "finetune", **options))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    main(flags(start, tmp_path / "resumed", "finetune", **options, resume_from_checkpoint=checkpoint))
    steps = json.loads((tmp_path / "resumed" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"]
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed")
    assert steps == 4 and not (tmp_path / "resumed" / "checkpoint-2").exists()
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_picture_with_damaged_tags_trains(start, tmp_path):
    stream = io.BytesIO()
    noise_image().save(stream, format="PNG", exif=exif_block(MAKER_AS_FRACTION, SIDEWAYS))
    rows = [{**row(number), "images": [{"bytes": stream.getvalue(), "path": "a.png"}]} for number in range(2)]
    write_repo(tmp_path / "data", {}, {"talk": {"train": rows}})
    main(flags(start, tmp_path / "run", "finetune", dataset=tmp_path / "data"))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_run_says_on_how_many_samples_it_trains_and_what_was_left_out(start, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="trainers"):
        main(flags(start, tmp_path / "run", "finetune", max_steps=1))
    assert f"Training on 4 samples of {start / 'images'}/talk/train." in caplog.text
    (tmp_path / "repo" / "some").mkdir(parents=True)
    facts = {"coverage": {"total": {"found": 6, "expected": 9}}, "rows_left_out": 3}
    (tmp_path / "repo" / "some" / "build.json").write_text(json.dumps(facts))
    run = RunArguments("finetune", "model", str(tmp_path / "repo"), dataset_config="some")
    assert describe_data(run, 6).endswith("It was built with 6 of 9 images; 3 rows are left out.")


def test_caption_rows_are_refused_with_the_way_to_build_conversations(start, tmp_path):
    caption = {name: "x" for name in ("id", "source", "caption", "captioner", "prompt_id", "license", "sha256")}
    write_repo(tmp_path / "data", {"train": [{**caption, "image": noise_image()}]}, {})
    with pytest.raises(ValueError, match="--rows conversations"):
        main(flags(start, tmp_path / "run", "finetune", dataset=tmp_path / "data", dataset_config="captions"))
