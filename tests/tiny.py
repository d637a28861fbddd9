"""Tiny random ingredients: a real tokenizer trained in code, a 4-block tower, a 2-layer LLM. Nothing is downloaded."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from modeling_sharegpt4v import compose


IMAGE_SIZE, PATCH_SIZE, BLOCKS = 28, 14, 4
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is in this picture? ASSISTANT: A red square on a white background.",
    "Describe the image in detail. The photograph shows a cat, two dogs and a small boat on a lake.",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<unk>`, `<s>` and `</s>`; no padding and no image token yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_clip(blocks: int = BLOCKS) -> CLIPVisionConfig:
    """Configuration of a CLIP tower with 4 patches an image."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def tiny_siglip() -> SiglipVisionConfig:
    """Configuration of a SigLIP tower with 4 patches an image and no class token."""
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def tiny_llm(vocab_size: int, tie_word_embeddings: bool = False) -> LlamaForCausalLM:
    """A Llama of 2 layers and width 64, with weights large enough that greedy choices are clear."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tiny_model(vision: PreTrainedConfig | None = None, seed: int = 0, **options):
    """A composed model and its processor, in float32 and eval mode."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    llm = tiny_llm(len(tokenizer), options.pop("tie_word_embeddings", False))
    model, processor = compose(vision or tiny_clip(), llm, tokenizer, **options)
    return model.eval(), processor


def noise_image(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A reproducible RGB image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(question: str, *images: Image.Image, answer: str | None = None) -> list[dict]:
    """One user turn with its images in front, and the answer if given."""
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
    turns: list[dict] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns
