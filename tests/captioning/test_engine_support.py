"""Models that slots cannot serve are refused by name, with the reason."""

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Florence2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen3_5Config,
)

from captioning.engine import CaptionEngine, load_engine
from captioning.engine_requests import CaptionRequest, LoopGuard, Sampling
from captioning.engine_support import check_model
from tests.families import family
from tests.tiny import tiny_clip


class PlainPositions(LlavaForConditionalGeneration):
    """A LLaVA that counts positions by itself and wrongly in slots."""

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Forward without the positions."""
        given = {"input_ids": input_ids, "pixel_values": pixel_values, "attention_mask": attention_mask}
        return super().forward(**given, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **kwargs)


def saved(tmp_path, config):
    config.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        (Florence2Config(), "Florence2", "encoder-decoder"),
        (Qwen3_5Config(), "Qwen3_5", "LinearAttentionLayer"),
        (
            LlavaConfig(vision_config=tiny_clip(), text_config=MistralConfig(sliding_window=64)),
            "LlavaConfig",
            "DynamicSlidingWindowLayer",
        ),
        (LlamaConfig(), "LlamaConfig", "no image-text-to-text model"),
    ],
    ids=["encoder-decoder", "linear", "sliding", "text"],
)
def test_a_configuration_is_refused_before_weights_are_read(tmp_path, config, name, reason):
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        load_engine(saved(tmp_path, config))


def test_a_model_whose_forward_takes_no_cache_is_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        qformer_config=sizes | {"vocab_size": 40, "encoder_hidden_size": 32},
        text_config=sizes | {"model_type": "opt", "vocab_size": 40, "ffn_dim": 64, "word_embed_proj_dim": 32},
    )
    _, processor = family("llava")
    with pytest.raises(ValueError, match="Blip2ForConditionalGeneration.*`past_key_values`"):
        check_model(Blip2ForConditionalGeneration(config), processor)


def test_a_processor_without_a_chat_template_is_refused():
    model, processor = family("llava")
    processor.chat_template = None
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration.*has no chat template"):
        CaptionEngine(model, processor, max_length=64)


def test_a_processor_that_makes_another_number_of_image_tokens_is_refused():
    model, processor = family("llava")
    processor.patch_size = 7
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration.*trial.*tokens"):
        CaptionEngine(model, processor, max_length=128)


def test_a_model_whose_logits_differ_in_slots_is_refused():
    model, processor = family("llava")
    shifted = PlainPositions(model.config)
    shifted.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="PlainPositions.*standard deviations from those of `generate`"):
        CaptionEngine(shifted, processor, max_length=64)


def test_settings_that_need_more_than_a_row_are_refused_by_name():
    model, processor = family("llava")
    model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ValueError, match="NoRepeatNGramLogitsProcessor"):
        CaptionEngine(model, processor, max_length=64)


def test_attention_without_masks_over_keys_is_refused():
    model, processor = family("llava")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="flex_attention"):
        CaptionEngine(model, processor, max_length=64)


def test_slots_too_short_for_an_image_are_refused():
    with pytest.raises(ValueError, match="`max_length` of 8 is too short"):
        CaptionEngine(*family("llava"), max_length=8)


def test_the_trial_leaves_no_row_in_use():
    engine = CaptionEngine(*family("llava"), max_length=64, slots=1)
    assert engine.slots.rows == 0 and engine.slots.deltas == []


def test_eager_attention_serves_too():
    model, processor = family("llava")
    model.set_attn_implementation("eager")
    assert CaptionEngine(model.to(torch.float32), processor, max_length=64).stats.steps == 0


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CaptionRequest("r", b"", "What?", 0), "max_new_tokens"),
        (lambda: Sampling(temperature=0), "temperature"),
        (lambda: Sampling(top_p=0), "top_p"),
        (lambda: Sampling(top_k=-1), "top_k"),
        (lambda: LoopGuard(repeats=1), "repeats"),
        (lambda: CaptionEngine(*family("llava"), slots=0), "slots"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()
