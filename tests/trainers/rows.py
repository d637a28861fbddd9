"""Conversation rows and tiny processors for them, and what the processor itself makes of a row."""

from typing import Any

import numpy as np
from datasets import Dataset, Image, List

from dataset_scripts.schema import CONVERSATION_FEATURES
from modeling_sharegpt4v import ShareGPT4VConfig, build_processor
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from tests.image_files import encoded
from tests.tiny import noise_image, tiny_clip, tiny_tokenizer
from trainers.tokenised import image_length


FEATURES = CONVERSATION_FEATURES.copy()
FEATURES["images"] = List(Image(decode=False))
TEMPLATES = ("vicuna_v1", "plain")


def picture(seed: int = 0, **options: Any) -> dict[str, Any]:
    """A small picture as `datasets` stores it."""
    return {"bytes": encoded(seed, **options), "path": None}


def row(name: str, *turns: tuple[str, str], images: int = 1, source: str = "coco") -> dict[str, Any]:
    """A conversation row with so many pictures."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "source": source, "images": [picture()] * images, "messages": messages}


ROWS = [
    row("one", ("What is it?", "A cat.")),
    row("turns", ("What is it?", "A cat, two dogs."), ("And the boat?", "On a lake."), ("Red?", "No.")),
    row("text", ("Hello", "Hi"), ("12 dogs or 7?", "7"), images=0),
    row("two", ("Same?", "Yes."), ("Sure?", "Sure."), images=2),
    row("unicode", ("ça va, 日本 🦆?", "naïve 🦆🦆 日本\n\n Two  spaces"), ("é", "🦆")),
    row("spaces", ("  Describe it.  ", "  A cat.  "), ("\nWhat?\n", "\n\tA dog.\n")),
]


def shortened(sample: dict[str, Any], turns: int) -> dict[str, Any]:
    """The row with its first turns alone."""
    return {**sample, "messages": sample["messages"][: 2 * turns]}


def processor_of(template: str = "vicuna_v1", tokenizer: Any = None, **vision: Any) -> Any:
    """A processor for 4 tokens an image, unless the vision configuration says otherwise."""
    if tokenizer is None:
        tokenizer = tiny_tokenizer()
        add_image_and_pad_tokens(tokenizer)
    config = ShareGPT4VConfig(vision_config={**tiny_clip().to_dict(), **vision})
    return build_processor(config, tokenizer, chat_template=template)


PROCESSORS = {template: processor_of(template) for template in TEMPLATES}


def dataset_of(*rows: dict[str, Any]) -> Dataset:
    """A dataset in memory whose images stay as they are stored."""
    return Dataset.from_list(list(rows), features=FEATURES)


def by_processor(processor: Any, sample: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and mask of the processor, with every image's tokens in full."""
    first, *rest = sample["messages"]
    images = [{"type": "image", "image": noise_image()} for _ in sample["images"]]
    chat = [{"role": "user", "content": [*images, {"type": "text", "text": first["content"]}]}, *rest]
    out = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return np.ravel(out["input_ids"]).tolist(), np.ravel(out["assistant_masks"]).tolist()


def in_full(processor: Any, tokens: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and mask of a tokenised row, written out token by token."""
    ids, mask = [], []
    spans = list(zip(tokens["label_spans"][::2], tokens["label_spans"][1::2], strict=True))
    for place, token in enumerate(np.asarray(tokens["input_ids"]).tolist()):
        copies = image_length(processor) if token == processor.image_token_id else 1
        ids += [token] * copies
        mask += [int(any(start <= place < end for start, end in spans))] * copies
    return ids, mask
