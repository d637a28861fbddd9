"""
Captions a second of a 7B captioner on one GPU: our slots, against `generate` in fixed batches and as released.

The geometry is real (Vicuna-7B, CLIP ViT-L/14 at 336 pixels) and the weights are random, in bf16. 256 JPEG and PNG
files of 640 by 480 pixels are held as bytes; every side opens, resizes and tokenises them within its time, and ends
with the texts. Peers are transformers' own `generate` with its `DynamicCache` and left padding: greedy in batches of
16 and 64, and as the captioner was released (batches of 4, 3 beams, sampling; without its repetition penalty, which
would cost it a little more), on 8 of the images.

Every caption has its own number of new tokens, quantiles of N(190, 60) from 32 to 400 in a random order, the same for
all sides, and no side has an end token. A slot is free as soon as its caption has its length. A batch of `generate`
goes on until its longest caption has its length, as it does with an end token, and the other rows are cut there; only
the asked tokens count. Our guard against loops is off, since random weights do loop. A peer that would not end in time
stops after a batch and its rate is that of the images it did; best rate of all rounds for each side.

`equal`: in float32, without TF32, slots that are refilled write the same texts as `generate` with one image at a time,
to the full length of each caption; each token but the special ones is a word of its own in them. In bf16 the likeliest
two words of random weights are closer than rounding, so texts are not compared there; the engine's own trial bounds
its logits when it is made. Ratios: `images_per_second` is ours, the others are our rate over the peer's. The paper's
rate is of another model on another GPU and printed for reference only.

Needs torch >= 2.11 and transformers >= 5.23. With a GPU it writes `benchmarks/results/gpu_captioning.json`; `--tiny`
runs on the processor with as many images as `--samples`, where captions a second say nothing, and writes nothing.

```sh
python benchmarks/gpu_captioning.py
python benchmarks/gpu_captioning.py --tiny
```
"""

import gc
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import transformers
from batches import caption_inputs, efficiency_of, longest_of
from common import finish
from gpu import geometry_config
from gpu_run import NO_TIME, deadline, log, parse_arguments, reason_of, seconds_left
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from captioning.engine import CaptionEngine
from captioning.engine_cache import BUCKET
from captioning.engine_inputs import prepare
from captioning.engine_requests import CaptionRequest
from captioning.prompts import UNIFIED
from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration
from modeling_sharegpt4v.composition import build_processor
from tests.tiny import noise_image
from trainers.geometry import Tuning, measure
from trainers.roofline import GPUS, caption_rate


TARGETS = {"images_per_second": 8.0, "released": 25.0, "batch_16": 5.0, "batch_64": 1.8}
STRETCH = 14.0  # images a second
PAPER = 1.2e6 / (44 * 86_400)  # section 3.3 of arXiv:2311.12793: 1.2M captions in some 44 days of an A100
IMAGES = 256
LENGTHS, TINY_LENGTHS = (190, 60, 32, 400), (12, 4, 4, 24)  # mean, standard deviation, least, most
SLOTS, TINY_SLOTS = (128, 96, 64, 32), (6,)  # the first that fit are used
WARM_UP, ROUNDS = 4, 3  # tokens of a caption before the first round; rounds of all sides in turns
EQUAL_IMAGES, EQUAL_SLOTS = 4, 2
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """
    A way to call `generate`.

    Args:
        batch (`int`): Images at a time.
        options (`dict`): Beyond `max_new_tokens`.
        images (`int`, *optional*): Most images; all of them by default.
    """

    batch: int
    options: dict[str, Any] = field(default_factory=lambda: {"do_sample": False})
    images: int | None = None


# The slowest comes last: it is the one that may not end in time.
PEERS = {
    "batch_64": Peer(64),
    "released": Peer(4, {"num_beams": 3, "do_sample": True}, images=8),
    "batch_16": Peer(16),
}


def draw_lengths(count: int, mean: float, spread: float, least: int, most: int) -> list[int]:
    """New tokens of each caption, in that of nine orders which gives the few images of `released` medium lengths."""
    normal = NormalDist(mean, spread)
    lengths = [min(max(round(normal.inv_cdf((number + 0.5) / count)), least), most) for number in range(count)]
    orders = [np.random.default_rng(seed).permutation(lengths).tolist() for seed in range(9)]
    few = PEERS["released"]
    return sorted(orders, key=lambda order: sum(longest_of(order[: few.images], few.batch)))[len(orders) // 2]


def make_file(number: int) -> bytes:
    """A coloured image of 640 by 480 pixels or upright, JPEG or, one in four, PNG."""
    size = (480, 640) if number % 3 == 0 else (640, 480)
    buffer = io.BytesIO()
    noise_image(number).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG" if number % 4 == 0 else "JPEG")
    return buffer.getvalue()


def word_tokenizer(words: int, image_token: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for every row of the head, so that a text tells all tokens but the special ones."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    names = [*special.values(), *(f"w{number}" for number in range(len(special), words))]
    names[image_token] = "<image>"
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)


class Captioner:
    """
    A model with random weights, the files, and the lengths of their captions.

    Args:
        tiny (`bool`): Whether the geometry is small, on the processor in float32.
        images (`int`): Images to caption.
    """

    def __init__(self, tiny: bool, images: int):
        self.device = torch.device("cpu" if tiny else "cuda")
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.tiny = tiny
        config = geometry_config(tiny)
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        with self.device:
            self.model = LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(before)
        with torch.device("meta"):
            self.size = measure(ShareGPT4VForConditionalGeneration(config), Tuning())
        tokenizer = word_tokenizer(config.text_config.vocab_size, config.image_token_id)
        self.processor = build_processor(config, tokenizer)
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = tokenizer.pad_token_id
        self.files = [make_file(number) for number in range(images)]
        self.lengths = draw_lengths(images, *(TINY_LENGTHS if tiny else LENGTHS))
        self.prompt_tokens = prepare(self.processor, CaptionRequest("0", self.files[0], UNIFIED.text)).tokens
        self.max_length = -(-(self.prompt_tokens + max(self.lengths)) // BUCKET) * BUCKET
        self.threads = max(1, min(8, (os.cpu_count() or 1) // 2))
        self.preparing = 0.0  # seconds that `generate` waited for its inputs

    def engine(self, slots: int) -> CaptionEngine:
        """Our side, with memory for so many captions."""
        return CaptionEngine(self.model, self.processor, slots, self.max_length, loop_guard=None, threads=self.threads)

    def ours(self, engine: CaptionEngine, lengths: list[int]) -> list[str]:
        """Captions of the first images, one of each length, in their order."""
        requests = (
            CaptionRequest(str(number), self.files[number], UNIFIED.text, length)
            for number, length in enumerate(lengths)
        )
        results = {int(result.key): result for result in engine.caption(requests)}
        found = [results[number] for number in range(len(lengths))]
        if wrong := [one for one, length in zip(found, lengths, strict=True) if one.new_tokens != length]:
            raise RuntimeError(f"{len(wrong)} captions have another length than was asked for, first {wrong[0]}.")
        return [one.text for one in found]

    def generate(self, lengths: list[int], batch: int, **options: Any) -> Iterator[list[str]]:
        """The same by `generate`, a batch at a time."""
        for start in range(0, len(lengths), batch):
            begin = time.perf_counter()
            chosen = lengths[start : start + batch]
            inputs = caption_inputs(self.processor, UNIFIED.text, self.files[start : start + len(chosen)])
            inputs = inputs.to(self.device, self.dtype)
            self.preparing += time.perf_counter() - begin
            out = self.model.generate(**inputs, max_new_tokens=max(chosen), **options)
            new = out[:, inputs["input_ids"].shape[1] :].tolist()
            cut = [row[:length] for row, length in zip(new, chosen, strict=True)]
            yield [text.strip() for text in self.processor.tokenizer.batch_decode(cut, skip_special_tokens=True)]

    def cast(self, dtype: torch.dtype) -> None:
        """Change the type of the weights, and of nothing else: `model.to` would round the rotary frequencies too."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self.dtype = dtype

    def compare(self) -> dict[str, Any]:
        """Texts of refilled slots beside those of `generate`, one image at a time, in float32."""
        before, tf32 = self.dtype, torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False  # of the patches; products of matrices are exact by default
        self.cast(torch.float32)
        try:
            lengths = self.lengths[:EQUAL_IMAGES]
            ours = self.ours(self.engine(EQUAL_SLOTS), lengths)
            alone = [text for texts in self.generate(lengths, 1, do_sample=False) for text in texts]
        finally:
            self.cast(before)
            torch.backends.cudnn.allow_tf32 = tf32
        words = {word for text in ours for word in text.split()}
        found = {"images": len(lengths), "tokens": sum(lengths), "distinct_texts": len(set(ours))}
        return found | {"distinct_words": len(words), "texts": ours == alone}

    def release(self) -> None:
        """Give memory back, so that the next side meets an empty cache and a fresh count of the peak."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Peak of allocated memory since the last [`release`]; `None` without a GPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.device.type == "cuda" else None


class Race:
    """
    All sides, what was measured of them, and why not.

    Args:
        captioner (`Captioner`): Model and files.
        left (`Callable`): Seconds that are left.
    """

    def __init__(self, captioner: Captioner, left: Callable[[], float]):
        self.captioner, self.left = captioner, left
        self.slots = list(TINY_SLOTS if captioner.tiny else SLOTS)
        self.rows: dict[str, dict[str, Any]] = {name: {"reason": NO_TIME} for name in (OURS, *PEERS)}
        self.runs: dict[str, list[tuple[int, float]]] = {name: [] for name in self.rows}  # images and seconds
        self.equality: dict[str, Any] = {"texts": False, "reason": NO_TIME}

    def prepare(self) -> None:
        """Compare the texts, then write a few tokens on every side: this loads kernels and shows what does not fit."""
        try:
            self.equality = self.captioner.compare()
        except Exception as error:  # the rates are worth having all the same
            self.equality = {"texts": False, "reason": reason_of(error)}
        log(f"equality: {self.equality}")
        for name, row in self.rows.items():
            try:
                self._run(name, [WARM_UP] * len(self.captioner.lengths), PEERS[name].batch if name != OURS else None)
            except Exception as error:  # what a side breaks on is its result
                row["reason"] = reason_of(error)
                log(f"{name}: {row['reason']}")

    def time(self) -> None:
        """Time all sides in turns; after the first round only those that end in time."""
        for number in range(ROUNDS):
            for name, row in self.rows.items():
                runs = self.runs[name]
                if row.get("reason", NO_TIME) != NO_TIME or (runs and self.left() < 1.2 * runs[-1][1]):
                    continue
                try:
                    images, seconds = self._run(name, self.captioner.lengths)
                except Exception as error:
                    row |= {} if runs else {"reason": reason_of(error)}
                    log(f"{name}: {reason_of(error)}")
                    continue
                if images:
                    row.pop("reason", None)
                    runs.append((images, seconds))
                    peak = self.captioner.peak_gb()
                    row["peak_gb"] = peak and max(peak, row.get("peak_gb") or 0)
                log(f"round {number}, {name}: {images} images in {seconds:.2f} s")

    def _run(self, name: str, lengths: list[int], images: int | None = None) -> tuple[int, float]:
        self.captioner.release()
        if name == OURS:
            return self._run_ours(lengths)
        peer, row = PEERS[name], self.rows[name]
        lengths = lengths[: images or peer.images]
        self.captioner.preparing = 0.0
        done, slowest = 0, 0.0
        start = last = time.perf_counter()
        for texts in self.captioner.generate(lengths, peer.batch, **peer.options):
            now = time.perf_counter()
            done, slowest, last = done + len(texts), max(slowest, now - last), now
            if self.left() < 1.3 * slowest:  # the next batch might be longer
                break
        row["prepare_share"] = round(self.captioner.preparing / (last - start), 3) if done else None
        row["token_efficiency"] = round(efficiency_of(lengths[:done], peer.batch), 3) if done else None
        return done, last - start

    def _run_ours(self, lengths: list[int]) -> tuple[int, float]:
        while True:
            slots = self.slots[0]
            try:
                engine = self.captioner.engine(slots)
                start = time.perf_counter()
                texts = self.captioner.ours(engine, lengths)
                seconds = time.perf_counter() - start
            except torch.OutOfMemoryError:
                if len(self.slots) == 1:
                    raise
                log(f"{OURS}: out of memory with {slots} slots")
            else:
                stats, row = engine.stats, self.rows[OURS]
                row |= {"slots": slots, "steps": stats.steps, "prefills": stats.prefills}
                # The first token of each caption is of its prefill.
                row["mean_rows"] = round((stats.tokens - len(texts)) / stats.steps, 1)
                return len(texts), seconds
            engine = None  # its keys and values, before the next ones are made
            self.slots.pop(0)
            self.captioner.release()

    def rate(self, name: str) -> float | None:
        """Best images a second of a side."""
        return max((images / seconds for images, seconds in self.runs[name]), default=None)

    def report(self) -> None:
        """Add rates to the rows of what was timed."""
        per_image = sum(self.captioner.lengths) / len(self.captioner.lengths)
        for name, runs in self.runs.items():
            rate = self.rate(name)
            if rate is None:
                continue
            count = min(images for images, _ in runs)
            mean = sum(self.captioner.lengths[:count]) / count
            self.rows[name] |= {
                "images": count,
                "seconds": [round(seconds, 3) for _, seconds in runs],
                "images_per_second": round(rate, 3),
                "tokens_per_second": round(rate * mean, 1),
                "of_mean_length": round(mean / per_image, 3),
            }

    def roofline(self) -> dict[str, Any] | None:
        """Captions a second that the device allows at best, and our share; `None` if it is none that we know."""
        captioner, row, rate = self.captioner, self.rows[OURS], self.rate(OURS)
        name = torch.cuda.get_device_name() if captioner.device.type == "cuda" else "cpu"
        gpu = next((gpu for known, gpu in GPUS.items() if known.split("-")[0] in name), None)
        if gpu is None or "slots" not in row:
            return None
        answer = round(sum(captioner.lengths) / len(captioner.lengths))
        best = caption_rate(captioner.size, gpu, row["slots"], captioner.prompt_tokens, answer)
        kinds = {"serial": best.serial, "overlapped": best.overlapped, "compute_only": best.compute_only}
        return {
            kind: {"images_per_second": round(value, 2), "share": rate and round(rate / value, 3)}
            for kind, value in kinds.items()
        }


def describe(captioner: Captioner) -> dict[str, Any]:
    """What ran: device, packages, images and lengths."""
    lengths = captioner.lengths
    return {
        "device": torch.cuda.get_device_name() if captioner.device.type == "cuda" else "cpu",
        "geometry": "tiny" if captioner.tiny else "Vicuna-7B and CLIP ViT-L/14-336, random weights",
        "dtype": str(captioner.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "images": len(lengths),
        "file_kb": round(sum(map(len, captioner.files)) / len(lengths) / 1e3, 1),
        "prompt_tokens": captioner.prompt_tokens,
        "new_tokens": {"all": sum(lengths), "mean": round(sum(lengths) / len(lengths), 1), "most": max(lengths)},
        "max_length": captioner.max_length,
        "threads": captioner.threads,
    }


def main() -> None:
    """Measure for as long as there is time, and report."""
    arguments = parse_arguments(__doc__ or "")
    captioner = Captioner(arguments.tiny, arguments.samples if arguments.tiny else IMAGES)
    race = Race(captioner, partial(seconds_left, arguments.minutes))
    with deadline(arguments.minutes):
        race.prepare()
        race.time()
    race.report()
    ours = race.rate(OURS)
    ratios: dict[str, float | None] = dict.fromkeys(TARGETS)
    ratios |= {name: ours / rate for name in PEERS if ours and (rate := race.rate(name))}
    if not arguments.tiny:
        ratios["images_per_second"] = ours
    details = describe(captioner) | {
        "equality": race.equality,
        "stretch_images_per_second": STRETCH,
        "paper_images_per_second": round(PAPER, 3),
        "roofline": race.roofline(),
        "sides": [{"name": name, **row} for name, row in race.rows.items()],
    }
    machine = None if arguments.tiny else details["device"]
    write = ratios["images_per_second"] is not None
    finish("gpu_captioning", ratios, TARGETS, details, race.equality["texts"], machine, write)


if __name__ == "__main__":
    main()
