"""Samples with one image each laid out as padded rows or as one packed row, and fixed batches of captions."""

from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM


IGNORED = -100
WORDS = (10, 300)  # ids that stand for words


def draw_samples(
    count: int, mean: float, spread: float, image_token: int, image_tokens: int, text: int
) -> list[dict[str, torch.Tensor]]:
    """
    Draw samples whose numbers of label tokens are log-normal.

    Args:
        count (`int`): Samples.
        mean (`float`): Label tokens of a sample.
        spread (`float`): Their standard deviation.
        image_token (`int`): Placeholder of a feature of the image.
        image_tokens (`int`): Features of an image.
        text (`int`): Tokens of the question before it.

    Returns:
        `list[dict[str, torch.Tensor]]`: `input_ids` and `labels` of each.
    """
    # Evenly spaced quantiles instead of draws: 16 draws would miss the wanted efficiency by far.
    sigma = np.log(1 + (spread / mean) ** 2) ** 0.5
    quantiles = [NormalDist().inv_cdf((number + 0.5) / count) for number in range(count)]
    lengths = np.round(mean * np.exp(sigma * np.array(quantiles) - sigma**2 / 2)).astype(int)
    random = np.random.default_rng(3)
    random.shuffle(lengths)
    samples = []
    for length in lengths:
        words = torch.from_numpy(random.integers(*WORDS, text + int(length)))
        ids = torch.cat([words[:text], torch.full((image_tokens,), image_token), words[text:]])
        labels = torch.cat([torch.full((text + image_tokens,), IGNORED), words[text:]])
        samples.append({"input_ids": ids, "labels": labels})
    return samples


def pad(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Lay the samples out as the usual collators do: one a row, padded to the longest."""
    sequence = torch.nn.utils.rnn.pad_sequence
    ids = sequence([sample["input_ids"] for sample in samples], batch_first=True)
    labels = sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORED)
    mask = sequence([torch.ones_like(sample["input_ids"]) for sample in samples], batch_first=True)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def pack(samples: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Lay the samples out one behind the other."""
    lengths = torch.tensor([0, *(len(sample["input_ids"]) for sample in samples)])
    boundaries = lengths.cumsum(0).int()
    labels = [torch.cat([sample["labels"].new_tensor([IGNORED]), sample["labels"][1:]]) for sample in samples]
    longest = int(lengths.max())
    return {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths[1:]])[None],
        "labels": torch.cat(labels)[None],
        **{"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries},
        **{"max_length_q": longest, "max_length_k": longest},
    }


def longest_of(lengths: list[int], batch: int) -> list[int]:
    """New tokens after which each fixed batch of captions ends."""
    return [max(lengths[start : start + batch]) for start in range(0, len(lengths), batch)]


def efficiency_of(lengths: list[int], batch: int) -> float:
    """Share of a fixed batch's tokens that are part of a caption: each batch goes on until its longest is done."""
    sizes = [len(lengths[start : start + batch]) for start in range(0, len(lengths), batch)]
    return sum(lengths) / sum(size * longest for size, longest in zip(sizes, longest_of(lengths, batch), strict=True))


def caption_inputs(processor: Any, prompt: str, files: list[Any]) -> Any:
    """Inputs of a batch of images, paths or encoded bytes, padded on the left as `generate` needs it."""
    from modeling_sharegpt4v.images_sharegpt4v import open_image
    from tests.tiny import chat

    return processor.apply_chat_template(
        [chat(prompt, open_image(file)) for file in files],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def small_model(
    vocabulary: int, width: int, feed_forward: int, heads: int, side: int, **options: Any
) -> tuple[Any, Any]:
    """
    Make a small model of the real architecture, always with the same weights: 4 layers, patches of 14 pixels.

    Args:
        vocabulary (`int`): Words.
        width (`int`): Of the language model.
        feed_forward (`int`): Width of its feed-forward layers.
        heads (`int`): Its attention heads.
        side (`int`): Of an image, in pixels.
        options: More of its configuration.

    Returns:
        `tuple`: Model and processor.
    """
    from modeling_sharegpt4v import compose
    from tests.tiny import tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    layers = {"hidden_size": width, "intermediate_size": feed_forward, "num_hidden_layers": 4, **options}
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads}
    llm = LlamaForCausalLM(LlamaConfig(**layers, **attention, vocab_size=len(tokenizer), max_position_embeddings=4096))
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    model, processor = compose(CLIPVisionConfig(**tower, image_size=side, patch_size=14), llm, tokenizer)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model, processor
