"""A recipe on paper."""

import pytest
import yaml

from tests.tiny import tiny_model
from trainers.plan import Machine, plan


PAPER = Machine("A100-80GB", 16)
PRETRAIN = {
    "stage": "pretrain",
    "model": "lmsys/vicuna-7b-v1.5",
    "vision_tower": "openai/clip-vit-large-patch14-336",
    "dataset": "runs/sharegpt4v",
    "dataset_config": "ShareGPT4V-PT",
    "global_batch_size": 256,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 1,
}
FINETUNE = {
    **PRETRAIN,
    "stage": "finetune",
    "dataset_config": "ShareGPT4V-Mix665K",
    "global_batch_size": 128,
    "per_device_train_batch_size": 8,
}


def write(path, fields: dict):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(fields))


def test_the_paper_pretraining():
    figures = plan(PRETRAIN, PAPER, samples=1_200_000)
    assert figures["flops"]["pflop"] == pytest.approx(37_900, rel=0.02)
    assert figures["paper"] == {
        "gpu": "A100-80GB",
        "count": 16,
        "hours": 12,
        "mfu": pytest.approx(0.176, rel=0.02),
    }
    assert figures["hours"][0]["hours"]["60%"] == pytest.approx(3.5, rel=0.02)
    assert len(figures["table8"]) == 5 and figures["one_gpu"] == []


def test_the_paper_finetuning():
    figures = plan(FINETUNE, PAPER)
    assert figures["flops"]["pflop"] == pytest.approx(21_900, rel=0.02)
    assert figures["paper"]["mfu"] == pytest.approx(0.174, rel=0.02)
    assert figures["batch"]["steps"] == 5196 and figures["table8"] == []


def test_published_sets_bring_their_samples_and_epochs_count():
    assert plan(PRETRAIN, PAPER)["batch"]["samples"] == 1_246_901
    assert plan({**PRETRAIN, "num_train_epochs": 2}, PAPER)["batch"]["samples"] == 2 * 1_246_901
    assert plan({**PRETRAIN, "max_steps": 10}, PAPER)["batch"]["samples"] == 2560
    subset = {**PRETRAIN, "dataset_config": "ShareGPT4V-PT-400K"}
    assert plan(subset, PAPER)["batch"]["samples"] == 400_000


def test_an_unknown_set_needs_the_number_of_samples():
    recipe = {**PRETRAIN, "dataset_config": "my_own"}
    with pytest.raises(ValueError, match="How many samples my_own has is not known.*--samples"):
        plan(recipe, PAPER)
    assert plan(recipe, PAPER, samples=500)["batch"]["steps"] == 2


@pytest.mark.parametrize(("count", "micro_batches", "per_gpu"), [(1, 16, 16), (8, 2, 16), (24, 1, 10.67), (64, 1, 4)])
def test_the_batch_is_kept_on_any_number_of_gpus(count, micro_batches, per_gpu):
    batch = plan(PRETRAIN, Machine("H100", count))["batch"]
    assert (batch["global"], batch["micro_batches"], batch["problem"]) == (256, micro_batches, None)
    assert batch["per_gpu"] == pytest.approx(per_gpu, abs=0.01)


def test_a_batch_that_cannot_be_kept_is_said():
    assert "256 cannot be kept on 512 GPUs" in plan(PRETRAIN, Machine("H100", 512))["batch"]["problem"]


def test_without_a_global_batch_the_accumulation_of_the_recipe_counts():
    recipe = {**PRETRAIN, "global_batch_size": None, "gradient_accumulation_steps": 3}
    batch = plan(recipe, Machine("H100", 4))["batch"]
    assert (batch["global"], batch["micro_batches"]) == (4 * 16 * 3, 3)


def test_checkpointing_follows_the_recipe_and_trl_default():
    checked = plan(PRETRAIN, PAPER)
    open_ = plan({**PRETRAIN, "activation_checkpointing": False}, PAPER)
    assert checked["flops"]["recompute"] and not open_["flops"]["recompute"]
    assert open_["memory"]["gb"]["LLM activations"] > 10 * checked["memory"]["gb"]["LLM activations"]
    assert "recomputation" not in [item["part"] for item in open_["micro_step"]]


def test_the_optimizer_and_sharding_decide_about_memory():
    whole = plan(PRETRAIN, Machine("H100", 1))["memory"]
    assert whole["sharding"] == "not shared" and whole["gb"]["bf16 copies"] == pytest.approx(13.8, rel=0.01)
    assert not whole["fits"] and plan(PRETRAIN, Machine("H200", 1))["memory"]["fits"]
    eight_bit = {**PRETRAIN, "dtype": "bfloat16", "optim": "adamw_torch_8bit"}
    small = plan(eight_bit, Machine("H100", 1))["memory"]
    states = sum(small["gb"][name] for name in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(41.7, rel=0.02) and small["fits"]
    assert (
        plan(PRETRAIN, Machine("H100", 64, sharding="hsdp"))["memory"]["total"]
        > (plan(PRETRAIN, Machine("H100", 64))["memory"]["total"])
    )


def test_every_gpu_of_ddp_holds_the_whole_model():
    shared, whole = (plan(PRETRAIN, Machine("H200", 8, sharding=way))["memory"] for way in ("fsdp2", "ddp"))
    assert whole["gb"]["weights"] == pytest.approx(8 * shared["gb"]["weights"]) and "outermost group" in shared["gb"]


def test_zero3_keeps_bf16_beside_the_master_weights():
    held = plan(PRETRAIN, Machine("A100-80GB", 16, sharding="zero3"))["memory"]["gb"]
    assert held["gradients"] == pytest.approx(6.898 * 2 / 16, rel=0.01)
    assert held["optimizer"] == pytest.approx(6.898 * 12 / 16, rel=0.01)


def test_adapters_train_in_place_of_the_llm():
    parts = {part["part"]: part for part in plan({**FINETUNE, "lora_rank": 128}, Machine("H100", 1))["parts"]}
    assert parts["language model"]["trained"] == 0 and parts["adapters"]["trained"] == 319_815_680


def test_a_measured_peak_changes_the_time_at_best_and_not_the_hours():
    nominal, reached = (plan(PRETRAIN, Machine("H100", 8, peak=peak)) for peak in (None, 798e12))
    assert nominal["hours"] == reached["hours"]
    first, second = (figures["micro_step"][2]["ms"] for figures in (nominal, reached))
    assert second == pytest.approx(first * 989 / 798)


def test_a_folder_is_planned_and_has_no_paper_beside_it(tmp_path):
    tiny_model()[0].config.save_pretrained(tmp_path)
    recipe = {"stage": "pretrain", "model": str(tmp_path), "dataset": "d", "max_steps": 6}
    figures = plan({**recipe, "tune_vision_from_block": -1}, Machine("L40S", 2))
    assert figures["paper"] is None and figures["table8"] == [] and figures["memory"]["fits"]


def test_a_model_that_is_yet_to_come_is_planned_with_one_of_its_size():
    recipe = {**FINETUNE, "model": "runs/pretrained", "vision_tower": None}
    with pytest.raises(ValueError, match="configuration of runs/pretrained"):
        plan(recipe, PAPER)
    assert plan(recipe, PAPER, model="Lin-Chen/ShareGPT4V-7B")["paper"]["hours"] == 7


def test_a_model_that_another_recipe_writes_is_found_through_it(tmp_path):
    parts = {"model": PRETRAIN["model"], "vision_tower": PRETRAIN["vision_tower"]}
    write(tmp_path / "first.yaml", {**parts, "output_dir": "runs/first"})
    write(tmp_path / "table" / "second.yaml", {"model": "runs/first", "output_dir": "runs/second"})
    (tmp_path / "table" / "notes.yaml").write_text("- no recipe\n")
    third = {**FINETUNE, "model": "runs/second", "vision_tower": None}
    figures = plan(third, PAPER, folder=tmp_path / "table")
    assert {name: figures[name] for name in parts} == parts
    write(tmp_path / "table" / "second.yaml", {"model": "runs/second", "output_dir": "runs/second"})
    with pytest.raises(ValueError, match="configuration of runs/second"):
        plan(third, PAPER, folder=tmp_path / "table")


@pytest.mark.parametrize("change", [{"stage": "any_model"}, {"stage": None}, {"model": None}])
def test_what_is_no_stage_of_ours_is_refused(change):
    with pytest.raises(ValueError, match="A plan knows the stages|names no `model`"):
        plan({**PRETRAIN, **change}, PAPER)


@pytest.mark.parametrize(("options", "text"), [(("K80", 1), "`gpu`"), (("H100", 0), "`count`")])
def test_an_impossible_machine_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Machine(*options)
