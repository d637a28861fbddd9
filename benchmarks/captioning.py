"""
96 captions by our slots, against `generate` one image at a time and in fixed batches of 16.

All three run the same model in the same process, from the same files of images and with the same processor, greedily.
Every request has its own number of tokens, and no end token is set, so that each side writes exactly as many. A fixed
batch goes on until its longest caption is done and cuts the others, as `generate` does. Texts are compared before
anything is timed. Prompts of 51 tokens, 36 of them the image's, take about a sixth of the time of the slots, which is
what prompts of 625 tokens beside captions of 190 come to by the arithmetic of a GPU with 16 slots.

```sh
python benchmarks/captioning.py
```
"""

import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batches import caption_inputs, efficiency_of, small_model
from common import best_of, finish
from transformers import LlavaForConditionalGeneration


REQUESTS, SLOTS, VOCABULARY = 96, 16, 4_000
PROMPT = "Describe the image in detail."
TARGETS = {"one_at_a_time": 5.0, "static_16": 1.2}
# Tokens of a caption: mean, standard deviation, least and most; how often each side runs. The second is the length of
# real captions, N(190, 60), halved to end in minutes on a CPU.
LENGTHS = {"48": (48, 20, 8, 128, 7), "190_halved": (95, 30, 8, 255, 3)}
MAX_LENGTH = 320


def build_model() -> tuple[Any, Any]:
    """Make a small LLaVA: 36 image tokens, a vocabulary of 4,000 words, 4 layers of width 128."""
    from tests.families import UNMARKED

    composed, processor = small_model(VOCABULARY, width=128, feed_forward=344, heads=4, side=84, initializer_range=0.1)
    model = LlavaForConditionalGeneration(composed.config)
    model.load_state_dict(composed.state_dict())
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    processor.chat_template = UNMARKED
    return model.float().eval(), processor


class Sides:
    """The three ways to the same captions."""

    def __init__(self, folder: str):
        from captioning.engine import CaptionEngine
        from tests.tiny import noise_image

        self.model, self.processor = build_model()
        # One thread reads and one decodes: there are two cores.
        self.engine = CaptionEngine(self.model, self.processor, SLOTS, MAX_LENGTH, loop_guard=None, threads=1)
        self.files = [f"{folder}/{index}.jpg" for index in range(REQUESTS)]
        for index, file in enumerate(self.files):
            noise_image(index, (160, 120)).save(file)

    def generate(self, lengths: list[int], size: int) -> list[str]:
        """Captions by `generate`, `size` at a time."""
        texts = []
        for start in range(0, REQUESTS, size):
            chosen = lengths[start : start + size]
            inputs = caption_inputs(self.processor, PROMPT, self.files[start : start + size])
            out = self.model.generate(**inputs, max_new_tokens=max(chosen), do_sample=False)
            new = out[:, inputs["input_ids"].shape[1] :].tolist()
            cut = [row[:length] for row, length in zip(new, chosen, strict=True)]
            texts += [text.strip() for text in self.processor.tokenizer.batch_decode(cut, skip_special_tokens=True)]
        return texts

    def run_ours(self, lengths: list[int]) -> list[str]:
        """Captions by the slots, in the order of the files."""
        from captioning.engine_requests import CaptionRequest

        requests = (
            CaptionRequest(str(index), file, PROMPT, length)
            for index, (file, length) in enumerate(zip(self.files, lengths, strict=True))
        )
        texts = {result.key: result.text for result in self.engine.caption(requests)}
        return [texts[str(index)] for index in range(REQUESTS)]


def draw_lengths(mean: float, spread: float, least: int, most: int) -> list[int]:
    """Tokens of each caption: of nine draws the one whose fixed batches are filled to the median of the nine."""
    drawn = [np.random.default_rng(seed).normal(mean, spread, REQUESTS) for seed in range(9)]
    draws = [np.clip(np.rint(one), least, most).astype(int).tolist() for one in drawn]
    return sorted(draws, key=lambda lengths: efficiency_of(lengths, SLOTS))[len(draws) // 2]


def main() -> None:
    """Compare the texts, then time each side in turns."""
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(folder)
        for name, (mean, spread, least, most, rounds) in LENGTHS.items():
            lengths = draw_lengths(mean, spread, least, most)
            runs: dict[str, Callable[[], list[str]]] = {
                "ours": lambda lengths=lengths: sides.run_ours(lengths),
                "one_at_a_time": lambda lengths=lengths: sides.generate(lengths, 1),
                "static_16": lambda lengths=lengths: sides.generate(lengths, SLOTS),
            }
            texts = {side: run() for side, run in runs.items()}
            equal &= texts["ours"] == texts["one_at_a_time"] == texts["static_16"]
            seconds = best_of(rounds, **runs)
            found = {side: seconds[side] / seconds["ours"] for side in TARGETS}
            if not ratios:
                ratios = found
            details[name] = {
                "tokens": sum(lengths),
                "static_token_efficiency": round(efficiency_of(lengths, SLOTS), 3),
                "distinct_texts": len(set(texts["ours"])),
                "ratios": {side: round(value, 3) for side, value in found.items()},
                "seconds": {side: round(value, 3) for side, value in seconds.items()},
            }
            print(name, equal, details[name], file=sys.stderr)
    finish("captioning", ratios, TARGETS, details, equal)


if __name__ == "__main__":
    main()
