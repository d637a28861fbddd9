"""Sizes of models, counted on the real class without weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration
from tests.tiny import BLOCKS, tiny_clip, tiny_model
from trainers.geometry import Tuning, build_on_meta, measure
from trainers.sharegpt4v_trainer import LLM_LINEARS


CLIP = "openai/clip-vit-large-patch14-336"


def size_of(llm: str = "lmsys/vicuna-7b-v1.5", **tuning):
    return measure(build_on_meta(llm, CLIP), Tuning(**tuning))


def counts(size) -> dict[str, int]:
    return {part.name: part.parameters for part in size.parts}


def test_the_paper_model_has_the_parameters_of_its_checkpoints():
    size = size_of()
    assert counts(size) == {
        "vision tower": 303_507_456,
        "projector": 20_979_712,
        "language model": 6_607_343_616,
        "head": 131_072_000,
    }
    assert size.is_paper_size and size.layer_parameters == 6_476_005_376
    assert (size.patches, size.vision_tokens, size.used_blocks) == (576, 577, 23)


def test_the_larger_model_has_its_own_projector():
    size = size_of("lmsys/vicuna-13b-v1.5")
    assert size.part("projector").parameters == 31_467_520 and not size.is_paper_size
    assert size.parameters == 13_350_839_296


def test_nothing_is_allocated():
    assert {parameter.device.type for parameter in build_on_meta("lmsys/vicuna-13b-v1.5", CLIP).parameters()} == {
        "meta"
    }


@pytest.mark.parametrize(("block", "blocks"), [(None, 0), (24, 0), (23, 0), (22, 1), (12, 11), (0, 23), (-1, 23)])
def test_blocks_that_the_loss_reaches_train(block, blocks):
    size = size_of(vision_from_block=block)
    tower = size.part("vision tower")
    embeddings = 1_196_032 if block == -1 else 0
    assert size.trained_blocks == blocks and tower.trained == blocks * 12_596_224 + embeddings
    assert tower.passed == tower.trained


def test_a_frozen_llm_still_passes_gradients_on():
    llm = size_of(language_model=False).part("language model")
    assert llm.trained == 0 and llm.passed == llm.parameters


def test_adapters_are_those_of_peft():
    model, _ = tiny_model()
    size = measure(model, Tuning(lora_rank=4))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LLM_LINEARS))
    assert size.part("adapters").trained == adapted.get_nb_trainable_parameters()[0]
    assert size.part("language model").trained == size.part("head").trained == 0
    assert size.part("projector").trained == size.part("projector").parameters


def test_an_llm_with_other_names_is_counted():
    text = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=100, tie_word_embeddings=False)
    config = ShareGPT4VConfig(text_config=text, vision_config=tiny_clip())
    with torch.device("meta"):
        size = measure(ShareGPT4VForConditionalGeneration(config), Tuning())
    assert size.layer_parameters == 3 * 12 * 32**2 and (size.width, size.feed_forward, size.layers) == (32, 128, 3)


def test_a_folder_is_read(tmp_path):
    model, _ = tiny_model()
    model.config.save_pretrained(tmp_path)
    size = measure(build_on_meta(str(tmp_path)), Tuning())
    assert size.parameters == model.num_parameters() and size.blocks == BLOCKS


def test_a_published_model_is_known_without_its_files():
    whole = measure(build_on_meta("Lin-Chen/ShareGPT4V-7B"), Tuning())
    assert counts(whole) == counts(size_of())


def test_what_is_neither_known_nor_readable_is_named_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"configuration of .*gone.* can be read neither.*--model Lin-Chen"):
        build_on_meta(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="configuration of nobody/tower can be read neither"):
        build_on_meta("lmsys/vicuna-7b-v1.5", "nobody/tower")


def test_an_llm_alone_is_refused(tmp_path):
    tiny_model()[0].config.text_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a llama model and not one with a vision tower"):
        build_on_meta(str(tmp_path))
