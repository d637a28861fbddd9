"""Tiny random models of other families with their processors: Qwen2.5-VL, Idefics3, and transformers' own LLaVA."""

from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl.chat_template_utils import idefics3_chat_template, qwen2_5_vl_chat_template

from tests.tiny import tiny_model, tiny_tokenizer


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
UNMARKED = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class ImagesOnly(Qwen2_5_VLProcessor):
    """Qwen's processor without its part for videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _tokenizer(*special: str, end: str):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, end], "pad_token": "<pad>"})
    tokenizer.eos_token = end
    return tokenizer


def _qwen() -> tuple[PreTrainedModel, ProcessorMixin]:
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(*marks, end="<|im_end|>")
    start, first, last, image, video = tokenizer.convert_tokens_to_ids(marks)
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": start,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    tokens = {"image_token_id": image, "video_token_id": video}
    tokens |= {"vision_start_token_id": first, "vision_end_token_id": last}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    return model, ImagesOnly(images, tokenizer, chat_template=qwen2_5_vl_chat_template)


def _idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _tokenizer("<fake_token_around_image>", "<image>", "<global-img>", end="<end_of_utterance>")
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        text_config={
            **TEXT,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 14},
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=idefics3_chat_template)
    return Idefics3ForConditionalGeneration(config), processor


def _llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    ours, processor = tiny_model()
    model = LlavaForConditionalGeneration(ours.config)
    model.load_state_dict(ours.state_dict())
    processor.chat_template = UNMARKED
    return model, processor


FAMILIES = {"qwen2_5_vl": _qwen, "idefics3": _idefics3, "llava": _llava}


def family(name: str, scale: float = 1.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    A model of `FAMILIES` with its processor; the chat template of `llava` does not mark answers.

    `scale` multiplies all matrices: at 10 what the models say depends on their image, and not only on the prompt.
    """
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model, processor
