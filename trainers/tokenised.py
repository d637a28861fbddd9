"""
Conversation rows as tokens: rendered and tokenised once before the training, instead of in every batch.

A row keeps one token an image here; [`~trainers.packing.PackedCollator`] inserts the others as numbers. What is
trained is kept as spans of tokens, two numbers an answer.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import transformers
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher

from modeling_sharegpt4v import ShareGPT4VProcessor

from .encoding import Tokens, encode_conversations


logger = logging.getLogger(__name__)

LAYOUT = 1  # raise it when the same rows give other columns than before: caches of the old code are not read then
ROW_COLUMNS = ["id", "source", "images"]  # kept beside the tokens
SHOWN = 5  # samples named in an error
SHOWN_TEXT = 200  # characters of a sample's text in an error


@dataclass
class TokeniseReport:
    """What a tokenisation kept and left out, by source: trailing turns of kept samples, and whole samples."""

    samples: int
    turns_dropped: Counter[str] = field(default_factory=Counter)
    samples_dropped: Counter[str] = field(default_factory=Counter)


def tokenise_rows(
    dataset: Dataset,
    processor: ShareGPT4VProcessor,
    max_length: int | None,
    on_too_long: Literal["error", "drop_turns"] = "error",
    num_proc: int | None = None,
) -> tuple[Dataset, TokeniseReport]:
    """
    Tokenise conversation rows with the processor's chat template; the result is cached beside the dataset.

    Ids and trained positions are those of `processor.apply_chat_template(..., return_assistant_tokens_mask=True)` with
    the row's images in front of its first question. Images are neither read nor copied, unless rows were selected or
    shuffled before: then `datasets` writes them out once.

    Args:
        dataset (`Dataset`): Conversation rows.
        processor (`ShareGPT4VProcessor`): Processor with a fast tokenizer and a chat template that marks answers.
        max_length (`int`, *optional*): Most tokens of a sample, an image counted as one as in the original: 2,048
            allows 2,623 where an image is 576.
        on_too_long (`str`, defaults to `"error"`): What happens to longer samples. `error` stops, `drop_turns` leaves
            out as many whole turns at the end as needed, or the sample where not even its first turn fits.
        num_proc (`int`, *optional*): Processes. The tokenizer uses all cores of one process, the template does not.

    Returns:
        `tuple[Dataset, TokeniseReport]`: Rows with `id`, `source`, `images`, `input_ids` (one token an image),
            `label_spans` (start, end, start, end, ... over `input_ids`) and `length` (tokens with the images in full);
            and what was left out.

    Raises:
        `ValueError`: The dataset is empty or lacks columns, a sample is too long, trains nothing, or has another
            number of images than image tokens, or the tokenizer is not a fast one.
    """
    _check_options(processor, on_too_long)
    if missing := {*ROW_COLUMNS, "messages"} - set(dataset.column_names):
        raise ValueError(f"The dataset lacks the columns {sorted(missing)} of a conversation row.")
    if not len(dataset):
        raise ValueError("The dataset has no rows. Check its split and what was left out when it was built.")
    fit_to = max_length if on_too_long == "drop_turns" else None
    tokens = dataset.with_format("arrow").map(
        partial(_tokenise_table, processor=processor, fit_to=fit_to),
        batched=True,
        remove_columns=dataset.column_names,
        new_fingerprint=_fingerprint(dataset, processor, fit_to),
        num_proc=num_proc,
        desc="Tokenising",
    )
    rows = concatenate_datasets([dataset.select_columns(ROW_COLUMNS), tokens], axis=1)
    sizes = pc.list_value_length(rows.data.column("input_ids")).to_numpy()
    if on_too_long == "error":
        _check_sizes(rows.data.column("id"), sizes, max_length)
    turns = rows.data.column("turns_dropped").to_numpy()
    report = TokeniseReport(
        samples=int(np.count_nonzero(sizes)),
        turns_dropped=_count_by_source(rows, np.where(sizes > 0, turns, 0)),
        samples_dropped=_count_by_source(rows, sizes == 0),
    )
    rows = rows.remove_columns("turns_dropped")
    if report.samples_dropped:
        rows = rows.select(np.flatnonzero(sizes))
    return rows, report


def tokenise_batch(
    rows: Sequence[dict[str, Any]],
    processor: ShareGPT4VProcessor,
    max_length: int | None = None,
    on_too_long: Literal["error", "drop_turns"] = "error",
) -> list[dict[str, Any]]:
    """
    Tokenise a few conversation rows at once, for datasets that are streamed.

    Args:
        rows (`Sequence[dict]`): Rows with `id`, `images` and `messages`.
        processor (`ShareGPT4VProcessor`): As for [`tokenise_rows`].
        max_length (`int`, *optional*): As for [`tokenise_rows`].
        on_too_long (`str`, defaults to `"error"`): As for [`tokenise_rows`]; a sample that is left out is logged.

    Returns:
        `list[dict]`: Rows with `id`, `images`, `input_ids` and `label_spans`, fewer where samples were left out.

    Raises:
        `ValueError`: As for [`tokenise_rows`], or no sample is left.
    """
    _check_options(processor, on_too_long)
    ids = [row["id"] for row in rows]
    counts = [len(row["images"] or ()) for row in rows]
    fit_to = max_length if on_too_long == "drop_turns" else None
    tokens = _tokenise(ids, [row["messages"] for row in rows], counts, processor, fit_to)
    sizes = np.array([len(sample.ids) for sample in tokens])
    if on_too_long == "error":
        _check_sizes(ids, sizes, max_length)
    for place in np.flatnonzero(sizes == 0):
        logger.warning("Sample %r is left out: its first turn exceeds %d tokens.", ids[place], max_length)
    if not sizes.any():
        raise ValueError(f"No sample of the batch fits into `max_length`={max_length}. Raise it.")
    return [
        {"id": row["id"], "images": row["images"], "input_ids": sample.ids, "label_spans": sample.spans}
        for row, sample in zip(rows, tokens, strict=True)
        if len(sample.ids)
    ]


def image_length(processor: ShareGPT4VProcessor) -> int:
    """
    Tokens that an image becomes.

    Args:
        processor (`ShareGPT4VProcessor`): Processor of the model.

    Returns:
        `int`: 576 for 336 pixels and patches of 14.
    """
    crop = processor.image_processor.crop_size
    patches = (crop["height"] // processor.patch_size) * (crop["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped


def _check_options(processor: ShareGPT4VProcessor, on_too_long: str) -> None:
    if on_too_long not in ("error", "drop_turns"):
        raise ValueError(f"`on_too_long` must be 'error' or 'drop_turns', got {on_too_long!r}.")
    if not processor.tokenizer.is_fast:
        raise ValueError(
            f"{type(processor.tokenizer).__name__} is a tokenizer written in Python, which does not say where in the "
            "text a token stands. Load a fast one (`tokenizer.json` or `tokenizer.model`) with `AutoTokenizer`."
        )


def _check_sizes(ids: Any, sizes: np.ndarray, max_length: int | None) -> None:
    if max_length is None or not (longer := np.flatnonzero(sizes > max_length)).size:
        return
    shown = ", ".join(f"{ids[int(place)]} ({sizes[place]:,})" for place in longer[:SHOWN])
    raise ValueError(
        f"{longer.size:,} of {len(sizes):,} samples have more than `max_length`={max_length:,} tokens (an image is "
        f"one of them), first: {shown}. Raise `max_length`, or leave last turns out by `on_too_long='drop_turns'`."
    )


def _fingerprint(dataset: Dataset, processor: ShareGPT4VProcessor, fit_to: int | None) -> str:
    # `map` would pickle the processor, whose tokenizer remembers the padding and truncation of its last call.
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    content = {name: value for name, value in tokenizer.items() if name not in ("padding", "truncation")}
    special = processor.tokenizer.special_tokens_map
    image = (processor.image_token_id, image_length(processor))
    versions = (LAYOUT, transformers.__version__)
    return Hasher.hash(
        [versions, dataset._fingerprint, json.dumps(content), special, image, processor.chat_template, fit_to]
    )


def _tokenise_table(table: pa.Table, processor: ShareGPT4VProcessor, fit_to: int | None) -> pa.Table:
    counts = pc.fill_null(pc.list_value_length(table["images"]), 0).to_numpy()
    tokens = _tokenise(table["id"].to_pylist(), table["messages"].to_pylist(), counts.tolist(), processor, fit_to)
    sizes = np.array([len(sample.ids) for sample in tokens])
    return pa.table(
        {
            "input_ids": pa.array([sample.ids for sample in tokens], pa.list_(pa.int32())),
            "label_spans": pa.array([sample.spans for sample in tokens], pa.list_(pa.int32())),
            "length": np.where(sizes > 0, sizes + counts * (image_length(processor) - 1), 0),
            "turns_dropped": np.array([sample.turns_dropped for sample in tokens]),
        }
    )


def _tokenise(
    ids: Sequence[str],
    conversations: Sequence[list[dict[str, Any]]],
    counts: Sequence[int],
    processor: ShareGPT4VProcessor,
    fit_to: int | None,
) -> list[Tokens]:
    tokens = encode_conversations(conversations, counts, processor)
    for place, (name, messages, count) in enumerate(zip(ids, conversations, counts, strict=True)):
        if fit_to is not None and len(tokens[place].ids) > fit_to:
            tokens[place] = _shorten(messages, count, tokens[place], processor, fit_to)
        if len(tokens[place].ids):
            _check_sample(name, tokens[place], count, processor)
    return tokens


def _shorten(
    messages: list[dict[str, Any]], count: int, whole: Tokens, processor: ShareGPT4VProcessor, fit_to: int
) -> Tokens:
    later = [place for place, message in enumerate(messages) if message["role"] == "user"][1:]  # where turns begin
    fitting = sum(end <= fit_to for end in whole.spans[1::2])
    for turns in range(min(fitting, len(later)), 0, -1):
        (shorter,) = encode_conversations([messages[: later[turns - 1]]], [count], processor)
        if len(shorter.ids) <= fit_to:
            return shorter._replace(turns_dropped=len(later) + 1 - turns)
    return Tokens([], [], len(later) + 1)


def _check_sample(name: str, tokens: Tokens, count: int, processor: ShareGPT4VProcessor) -> None:
    found = tokens.ids.count(processor.image_token_id)
    if found != count:
        raise ValueError(
            f"Sample {name!r} has {count} images and {found} {processor.image_token!r} tokens. Remove them from its "
            "text, give it a question to put its images in front of, and use a chat template that writes them."
        )
    if all(end <= 1 for end in tokens.spans[1::2]):  # nothing predicts the first token
        text = processor.tokenizer.decode(tokens.ids)
        raise ValueError(
            f"No token of sample {name!r} is trained. Either it has no answer or the chat template marks none by "
            f"{{% generation %}}: {text[:SHOWN_TEXT]!r}."
        )


def _count_by_source(rows: Dataset, amounts: np.ndarray) -> Counter[str]:
    places = np.flatnonzero(amounts)
    sources = rows.data.column("source").take(pa.array(places)).to_pylist()
    total: Counter[str] = Counter()
    for source, amount in zip(sources, amounts[places].tolist(), strict=True):
        total[source] += int(amount)
    return total
