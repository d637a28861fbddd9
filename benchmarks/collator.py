"""
Tokens and labels of a batch: ours, against LLaVA's steps and TRL's collator for images and text.

Text alone is timed. Pixels are the business of `images.py`: TRL's processor gets a tensor that was made before, and
the other sides make none. Every side works on the same 16 rows a batch, with one tokenizer and one thread.

- `llava`: written after what LLaVA does. A record is copied and its image put first, it becomes a prompt, the text
  before and behind the image is tokenised by itself, -200 stands for the image. Then every turn and the question in it
  are tokenised once more, and their lengths say what of the ids is masked. At last the batch is padded and gets its
  mask. The 576 places of an image are not part of it: LLaVA makes them within the model. Where LLaVA subtracts fixed
  numbers that fit one tokenizer, later turns stand behind an end token here, so that lengths are exact; calls and text
  are as many.
- `trl`: its `DataCollatorForVisionLanguageModeling` with `assistant_only_loss`, through our processor.
- `pretok`: rows fetched from the memory-mapped result of `tokenise_rows` and packed. Fetching is part of our time; the
  records and rows of the peers are in memory.
- `online`: conversation rows rendered, tokenised and packed at once.

Ids and labels of ours equal TRL's, and the reference's where its -200 stands for 576. A ratio is the lower one of
captions and conversations.
"""

import ast
import copy
import importlib.util
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any


os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import sentencepiece
import torch
from common import best_of, finish
from datasets import Dataset, Image, List, disable_progress_bars, load_from_disk
from PIL import Image as PillowImage
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from dataset_scripts.schema import CONVERSATION_FEATURES
from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VProcessor, build_processor
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from trainers.packing import IGNORED, pack_rows
from trainers.tokenised import tokenise_batch, tokenise_rows


VOCABULARY, IMAGE_TOKENS, BATCH, BATCHES = 32_000, 576, 16, 4
KINDS = ("captions", "sft")
ROUNDS = {"llava": 25, "trl": 9}
LLAVA_IMAGE = -200
TARGETS = {"pretok_vs_llava": 10, "online_vs_llava": 2.5, "online_vs_trl": 25}
PROSE = (
    "sklearn",
    "numpy",
    "torch",
    "transformers",
    "skimage",
    "matplotlib",
)  # packages, whose docstrings are English
SYSTEM = "A chat between a curious user and an artificial intelligence assistant. "
SYSTEM += "The assistant gives helpful, detailed, and polite answers to the user's questions."
TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
FEATURES = CONVERSATION_FEATURES.copy()
FEATURES["images"] = List(Image(decode=False))


class GivenPixels(LlavaImageProcessorPil):
    """Image processor that hands out pixels made before, so that TRL's time is that of its text."""

    pixels = torch.zeros(BATCH, 3, 336, 336)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As many squares as there are images in the rows."""
        return BatchFeature({"pixel_values": self.pixels[: sum(len(row) for row in images)]})


def read_prose() -> Iterator[str]:
    """Docstrings of installed packages, each as one line."""
    for package in PROSE:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"The package {package!r} is not installed. Run `make setup`.")
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))[:300]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    text = " ".join((ast.get_docstring(node) or "").split())
                    if len(text) > 200:
                        yield text


def train_tokenizer(folder: Path, prose: list[str]) -> PreTrainedTokenizerBase:
    """A sentencepiece BPE as Llama's, loaded from the files that a checkpoint of ShareGPT4V has."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        max_sentence_length=100_000,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_image_and_pad_tokens(tokenizer)
    return tokenizer


def make_rows(kind: str, words: list[str]) -> list[dict[str, Any]]:
    """Rows of `captions` (one long answer) or `sft` (several turns, one row in sixteen without image)."""
    rng = random.Random(kind)

    def prose(count: float) -> str:
        start = rng.randrange(len(words) - 1000)
        return " ".join(words[start : start + max(1, int(count))]).replace("<", "(")

    stream = io.BytesIO()
    PillowImage.new("RGB", (8, 8)).save(stream, "JPEG")
    picture = {"bytes": stream.getvalue(), "path": None}
    rows = []
    for number in range(BATCH * BATCHES):
        answers = [rng.gauss(115, 30)]
        if kind == "sft":
            answers = [rng.choice([1, 3, 15, 50]) for _ in range(rng.randint(2, 10))]
        messages = []
        for length in answers:
            messages.append({"role": "user", "content": prose(rng.randint(5, 15))})
            messages.append({"role": "assistant", "content": prose(length)})
        images = [] if kind == "sft" and number % 16 == 0 else [picture]
        rows.append({"id": str(number), "source": kind, "images": images, "messages": messages})
    return rows


def tokenise_around_images(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, each piece between its images tokenised by itself."""
    first, *others = (tokenizer(piece).input_ids for piece in text.split("<image>"))
    ids = list(first)
    for piece in others:
        ids += [LLAVA_IMAGE, *piece[1:]]  # but for its beginning token
    return ids


def llava_example(
    tokenizer: PreTrainedTokenizerBase, record: list[dict[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets of one record: all is trained but the beginning and, turn by turn, the question."""
    turns = copy.deepcopy(record)  # since the placeholder is moved within it
    for turn in turns:
        if "<image>" in turn["value"]:
            turn["value"] = "<image>\n" + turn["value"].replace("<image>", "").strip()
    prompt = f"{SYSTEM} "
    for turn in turns:
        prompt += f"USER: {turn['value']} " if turn["from"] == "human" else f"ASSISTANT: {turn['value']}</s>"
    ids = torch.tensor(tokenise_around_images(tokenizer, prompt))
    targets, place = ids.clone(), 0
    for number, turn in enumerate(prompt.removesuffix("</s>").split("</s>")):
        turn = f"</s>{turn}" if number else turn
        instruction = turn.split("ASSISTANT: ")[0] + "ASSISTANT:"
        length = len(tokenise_around_images(tokenizer, turn)) - (number > 0)  # what came before ends in this end token
        asked = len(tokenise_around_images(tokenizer, instruction)) - (number > 0)
        targets[place + (number > 0) : place + asked] = IGNORED
        place += length
    if place + 1 != len(ids):
        raise SystemExit(f"The turns of a record have {place + 1} tokens, its prompt has {len(ids)}: {prompt[:200]}")
    return ids, targets


def llava_record(row: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation of a row as the released files spell it."""
    speakers = {"user": "human", "assistant": "gpt"}
    record = [{"from": speakers[message["role"]], "value": message["content"]} for message in row["messages"]]
    record[0]["value"] += "\n<image>" * len(row["images"])
    return record


def llava_batch(tokenizer: PreTrainedTokenizerBase, records: list[list[dict[str, str]]]) -> dict[str, torch.Tensor]:
    """The peer's batch: padded ids and targets, and the mask."""
    examples = [llava_example(tokenizer, record) for record in records]
    pad = tokenizer.pad_token_id
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in examples], batch_first=True, padding_value=pad)
    labels = torch.nn.utils.rnn.pad_sequence(
        [targets for _, targets in examples], batch_first=True, padding_value=IGNORED
    )
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(pad)}


def cut(batch: dict[str, Any], image: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of every sample of a packed or padded batch, with one -200 for the tokens of an image."""
    samples = []
    if "cu_seq_lens_q" in batch:
        bounds = batch["cu_seq_lens_q"].tolist()
        parts = [(0, slice(start, end)) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    else:
        parts = [(place, mask.bool()) for place, mask in enumerate(batch["attention_mask"])]
    for place, part in parts:
        ids, labels = batch["input_ids"][place][part].numpy(), batch["labels"][place][part].numpy()
        images = ids == image
        kept = ~images | (images.cumsum() % IMAGE_TOKENS == 1)
        samples.append((np.where(images, LLAVA_IMAGE, ids)[kept].tolist(), labels[kept].tolist()))
    return samples


def measure(kind: str, processor: ShareGPT4VProcessor, words: list[str], folder: Path) -> dict[str, Any]:
    """Ratios and times of one kind of rows, after the sides were found equal."""
    rows = make_rows(kind, words)
    Dataset.from_list(rows, features=FEATURES).save_to_disk(folder / kind)
    tokens, _ = tokenise_rows(load_from_disk(folder / kind), processor, None)
    opened = PillowImage.new("RGB", (8, 8))
    trl = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    seconds = {pair: {"ours": 0.0, "peer": 0.0} for pair in TARGETS}
    samples = []
    for first in range(0, len(rows), BATCH):
        places = list(range(first, first + BATCH))
        batch = [rows[place] for place in places]
        shown = [{**row, "images": [opened] * len(row["images"])} for row in batch]
        sides = {
            "pretok": partial(pack_fetched, tokens, places, processor),
            "online": partial(pack_online, batch, processor),
            "llava": partial(llava_batch, processor.tokenizer, [llava_record(row) for row in batch]),
            "trl": partial(trl, shown),
        }
        found = {name: cut(side(), processor.image_token_id) for name, side in sides.items()}
        for name in ("online", "trl", "llava"):
            if found[name] != found["pretok"]:
                raise SystemExit(f"{kind}: ids or labels of {name} differ from those of the pre-tokenised rows.")
        samples += found["pretok"]
        for pair, total in seconds.items():  # by pairs, so that both sides find the caches as a like side left them
            ours, peer = pair.split("_vs_")
            for name, value in best_of(ROUNDS[peer], ours=sides[ours], peer=sides[peer]).items():
                total[name] += value
    trained = [sum(label != IGNORED for label in labels) for _, labels in samples]
    return {
        "samples": len(rows),
        "mean_text_tokens": round(float(np.mean([len(ids) for ids, _ in samples])), 1),
        "mean_trained_tokens": round(float(np.mean(trained)), 1),
        "ratios": {pair: round(total["peer"] / total["ours"], 2) for pair, total in seconds.items()},
        "microseconds_per_sample": {
            pair: {name: round(1e6 * value / len(rows), 1) for name, value in total.items()}
            for pair, total in seconds.items()
        },
    }


def pack_fetched(tokens: Dataset, places: list[int], processor: ShareGPT4VProcessor) -> dict[str, Any]:
    """Ours, pre-tokenised: rows as a data loader fetches them, packed."""
    return pack_rows(tokens.__getitems__(places), processor)


def pack_online(rows: list[dict[str, Any]], processor: ShareGPT4VProcessor) -> dict[str, Any]:
    """Ours, without tokenising before."""
    return pack_rows(tokenise_batch(rows, processor), processor)


def main() -> None:
    """Measure both kinds of rows."""
    torch.set_num_threads(1)
    disable_progress_bars()
    details: dict[str, Any] = {
        "tokenizer": f"sentencepiece BPE of {VOCABULARY:,}, trained on docstrings of {', '.join(PROSE)}",
        "pixels": "not timed: TRL's processor gets a tensor made before, the others none",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prose = list(read_prose())
        processor = build_processor(ShareGPT4VConfig(), train_tokenizer(folder, prose))
        processor.image_processor = GivenPixels.from_dict(processor.image_processor.to_dict())
        for kind in KINDS:
            details[kind] = measure(kind, processor, " ".join(prose).split(), folder)
            print(f"{kind}: {details[kind]}", file=sys.stderr)
    ratios = {pair: min(details[kind]["ratios"][pair] for kind in KINDS) for pair in TARGETS}
    finish("collator", ratios, TARGETS, details, equal=True)


if __name__ == "__main__":
    main()
