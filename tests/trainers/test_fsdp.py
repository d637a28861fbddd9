"""Training with parameters sharded over two processes (FSDP2) is that of one process on the same global batches."""

import json
from functools import cache

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration
from tests.tiny import tiny_model, tiny_siglip
from tests.trainers.fsdp_child import CASES, CHUNK, STEPS, run_pair, run_trainer, train
from trainers.sharding import complete_fsdp_plugin, run_tower_on_text


EXACT, SINGLE = 1e-9, 2e-6  # of double precision, and of single precision after two steps


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """By rank and case, what two processes have found."""
    return run_pair(tmp_path_factory.mktemp("cases"), "cases")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Folder of two processes that ran the pretraining stage, and the weights of the whole and the resumed run."""
    folder = tmp_path_factory.mktemp("stage")
    return folder, run_pair(folder, "stage")[0]


@cache
def alone(name: str) -> dict:
    return train(CASES[name])


def facts(pair, name: str, fact: str) -> list[tuple]:
    """Of each micro-batch, a fact on both ranks."""
    return [(one[fact], other[fact]) for one, other in zip(*(found[name]["facts"] for found in pair), strict=True)]


def assert_trained_alike(pair, name: str) -> None:
    found, expected = pair[0][name], alone(name)
    assert found["losses"] == pytest.approx(expected["losses"], rel=EXACT)
    for step in range(STEPS):
        assert_close(found["gradients"][step], expected["gradients"][step])
    assert_close(found["weights"], expected["weights"])


def assert_close(found: dict, expected: dict, tolerance: float = EXACT) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_sharded_steps_are_those_of_one_process(pair):
    assert_trained_alike(pair, "plain")


@pytest.mark.parametrize("normalisation", ["tokens", "samples"])
def test_gradients_accumulate_over_micro_batches_of_unequal_lengths(pair, normalisation):
    name = f"accumulated by {normalisation}"
    lengths = facts(pair, name, "tokens")
    assert len(lengths) == 2 * STEPS and all(one != other for one, other in lengths)
    assert_trained_alike(pair, name)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("text alone")])
def test_a_rank_with_text_alone_trains_the_tower_with_the_others(pair, name):
    assert (True, False) in facts(pair, name, "has_image")
    assert_trained_alike(pair, name)
    trained = {key.split(".")[1] for key in pair[0][name]["gradients"][0] if key.startswith("model.")}
    assert trained >= {"multi_modal_projector", "language_model"}
    assert ("vision_tower" in trained) == (CASES[name].tune_from is not None)


def test_adapters_train_sharded(pair):
    assert_trained_alike(pair, "adapters")
    names = set(pair[0]["adapters"]["gradients"][0])
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("lora_A" in name for name in names) and any("modules_to_save" in name for name in names)


def test_checkpointed_blocks_get_gradients_where_the_tower_trains(pair):
    assert_trained_alike(pair, "checkpointing")
    names = [name for name in pair[0]["checkpointing"]["gradients"][0] if ".vision_tower." in name]
    assert {name.split("layers.")[1].split(".")[0] for name in names if "layers." in name} == {"1", "2"}
    assert all("layers." in name for name in names)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("chunks")])
def test_ranks_run_the_head_in_unequal_numbers_of_chunks(pair, name):
    chunks = facts(pair, name, "chunks")
    assert CASES[name].chunk == CHUNK and max(map(max, chunks)) > 1 and any(one != other for one, other in chunks)
    assert_trained_alike(pair, name)


def test_what_accelerate_shards_trains_alike(pair):
    assert_trained_alike(pair, "accelerate")


def test_half_precision_rounds_neither_the_loss_nor_the_gradients_added_up(pair):
    name = "accelerate, half precision"
    found, expected = pair[0][name], alone(name)
    assert facts(pair, name, "dtype") == [(torch.float32, torch.float32)] * STEPS
    assert found["losses"] == pytest.approx(expected["losses"], rel=0.02)
    gradients = found["gradients"][0]
    assert gradients.keys() == expected["gradients"][0].keys()
    assert any((tensor != tensor.bfloat16()).any() for tensor in gradients.values())


def test_the_stage_trains_sharded_as_in_one_process(stage, tmp_path):
    _, found = stage
    assert_close(found["whole"], run_trainer(tmp_path, 1), SINGLE)


def test_a_resumed_sharded_run_ends_where_the_whole_run_does(stage):
    _, found = stage
    assert_close(found["resumed"], found["whole"], 0)


def test_a_model_saved_from_shards_holds_its_own_code_and_weights(stage):
    folder, found = stage
    weights = found["whole"]
    for place in (folder / "whole", folder / "whole" / "checkpoint-1"):
        assert not list(place.glob("_fsdp*"))
        for name in json.loads((place / "config.json").read_text())["auto_map"].values():
            module, kind = name.split(".")
            assert f"class {kind}(" in (place / f"{module}.py").read_text()
    model = ShareGPT4VForConditionalGeneration.from_pretrained(folder / "whole")
    assert_close(dict(model.named_parameters()), weights, 0)


def test_a_blank_image_changes_nothing_but_that_the_tower_gets_gradients():
    for vision in (None, tiny_siglip()):
        model, processor = tiny_model(vision)
        inputs = processor(text="USER: What? ASSISTANT:", return_tensors="pt")
        expected = model(**inputs).logits
        words = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        run_tower_on_text(model)
        logits = model(**inputs).logits
        assert torch.equal(logits, expected)
        logits.sum().backward()
        projector = model.model.multi_modal_projector.linear_1.weight
        assert projector.grad is not None and not projector.grad.any()
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), words)


def test_what_the_user_chose_for_fsdp_is_kept():
    model, _ = tiny_model()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, transformer_cls_names_to_wrap=["CLIPEncoderLayer"], mixed_precision_policy=policy
    )
    complete_fsdp_plugin(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == ["CLIPEncoderLayer"] and plugin.mixed_precision_policy == policy
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    complete_fsdp_plugin(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"] and plugin.mixed_precision_policy is None
