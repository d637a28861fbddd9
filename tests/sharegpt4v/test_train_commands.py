"""`sharegpt4v train plan` as a user sees it."""

import json
import re

import pytest

from sharegpt4v.plan_text import align, describe_plan, read_measured
from tests.commands import run_command
from trainers.plan import Machine, plan


RECIPE = """\
stage: pretrain
model: lmsys/vicuna-7b-v1.5
vision_tower: openai/clip-vit-large-patch14-336
dataset: runs/sharegpt4v
dataset_config: ShareGPT4V-PT
global_batch_size: 256
per_device_train_batch_size: 16
num_train_epochs: 1
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntune_vision_from_block: 6\n")
    return tmp_path / "base.yaml"


@pytest.fixture
def figures(recipe):
    from trainers.recipes import load_recipe

    return plan(load_recipe(recipe), Machine("A100-80GB", 16))


def sections(lines: list[str]) -> dict[str, list[str]]:
    """Lines by the first words of their section."""
    found = {}
    for block in "\n".join(lines).split("\n\n"):
        found[" ".join(re.split(r"\s+|,", block)[:2])] = block.splitlines()
    return found


def test_the_plan_is_printed(capsys, recipe):
    outcome = run_command(capsys, "train", "plan", recipe, "--gpu", "A100-80GB", "--count", 16)
    assert outcome.code == 0
    assert "Batch 256 = 16 GPUs x 16 samples x 1 micro-batch" in outcome.output
    assert re.search(r"from 12 +56\.7 +24\.0 +16\.0", outcome.output)
    assert "12.0 (192)" in outcome.output and "4,871 steps" in outcome.output
    assert max(map(len, outcome.output.splitlines()[1:])) <= 119


def test_the_same_figures_come_as_json(capsys, recipe):
    outcome = run_command(capsys, "train", "plan", recipe, "--gpu", "A100-80GB", "--count", 16, "--json")
    found = json.loads(outcome.output)
    assert found["flops"]["sample_tflop"] == pytest.approx(31.57, rel=0.001)
    assert found["recipe"] == str(recipe) and found["machine"]["count"] == 16


def test_recipes_that_extend_others_are_planned(capsys, recipe):
    outcome = run_command(capsys, "train", "plan", recipe.with_name("top.yaml"), "--json")
    tower = json.loads(outcome.output)["parts"][0]
    assert tower["trained"] == 17 * 12_596_224


def test_options_reach_the_plan(capsys, recipe):
    options = ("--samples", 1000, "--text-tokens", 100, "--peak", 798, "--mfu", 50, "--sharding", "hsdp")
    outcome = run_command(capsys, "train", "plan", recipe, "--count", 16, *options)
    assert "1,000 samples of 676 tokens" in outcome.output and "798 measured (81%)" in outcome.output
    assert "MFU of 50%" in outcome.output and "(hsdp, float32" in outcome.output


def test_one_gpu_shows_ways_to_fit_and_no_network(capsys, recipe):
    output = run_command(capsys, "train", "plan", recipe, "--gpu", "H100", "--count", 1).output
    assert "does not fit in 80" in output and "bf16, 8-bit AdamW" in output and "Network" not in output


def test_a_batch_that_cannot_be_kept_is_said_above_all(capsys, recipe):
    output = run_command(capsys, "train", "plan", recipe, "--count", 512).output
    assert output.splitlines()[3].startswith("`global_batch_size` of 256 cannot be kept on 512 GPUs")


def test_errors_name_what_is_wrong(capsys, recipe, tmp_path):
    absent = run_command(capsys, "train", "plan", tmp_path / "absent.yaml")
    assert absent.code == 1 and "absent.yaml" in absent.errors
    gone = run_command(capsys, "train", "plan", recipe, "--model", str(tmp_path / "gone"))
    assert gone.code == 1 and "gone can be read neither" in gone.errors
    assert run_command(capsys, "train", "plan", recipe, "--gpu", "K80").code == 2
    assert run_command(capsys, "train", "plan", recipe, "--count", 0).code == 2


def test_columns_are_aligned(figures):
    for lines in sections(describe_plan("r.yaml", figures, {"memory": {}, "train": {}})).values():
        table = [line for line in lines[1:] if line.startswith("  from")]
        assert len({line.index("not measured") for line in table}) <= 1
    assert align([("a", "bb"), ("ccc", "1")]) == ["a      bb", "  ccc   1"]


def test_without_a_gpu_nothing_is_called_measured(figures, tmp_path):
    measured = read_measured(tmp_path)
    assert measured == {"memory": {}, "train": {}}
    text = "\n".join(describe_plan("r.yaml", figures, measured))
    assert text.count("not measured") == 6


def test_measured_figures_stand_beside_the_floor(figures, tmp_path):
    memory = {"device": "H100", "peak_gb": {"12": 60.5, "0": 61.0, "6": None}, "floor_gb": {"12": 55.1, "0": 55.4}}
    (tmp_path / "gpu_memory.json").write_text(json.dumps({"details": memory}))
    (tmp_path / "gpu_train.json").write_text(json.dumps({"details": {"device": "H100", "mfu": 0.5}}))
    text = "\n".join(describe_plan("r.yaml", figures, read_measured(tmp_path)))
    assert re.search(r"from 12 .* 60\.5 +55\.1", text) and re.search(r"from 6 .* not measured +-", text)
    assert "Measured on H100: an MFU of 50.0%, here 4.4 (70)" in text
