"""
A run that can be watched: rates beside the loss in every log, what is trained as text, and a curve at the end.

Trackers (`report_to`: trackio, tensorboard, wandb) get the rates with the loss, as everything that is logged.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .label_loss import IGNORED
from .roofline import GPUS


logger = logging.getLogger(__name__)

SHOWN_SAMPLES, SHOWN_TEXT = 3, 300  # of the first batch, samples and characters of each
BAR = {"loss": "loss", "samples_per_second": "samples/s", "label_tokens_per_second": "label tok/s", "mfu": "MFU"}
CURVE = "loss_curve.png"
# Within what the driver calls a GPU, and its name in the table of data sheets.
DRIVER_NAMES = {"A100": "A100-80GB", "H100": "H100", "H200": "H200", "L40S": "L40S", "RTX 4090": "RTX-4090"}
SampleFlops = Callable[[float, float, float], float]  # of tokens, label tokens and images


class WatchedRun(Trainer):
    """
    A [`~transformers.Trainer`], or the first base of a class with another one, that says how fast it is.

    Every log of a loss has, over the steps since the last one and over all ranks: `samples_per_second`,
    `tokens_per_second`, `label_tokens_per_second`, `step_efficiency` (tokens over what all ranks would have done at
    the pace of the one with the most) and, where a GPU's peak and the model's operations are known, `mfu`. Saves and
    evaluations between two logs count as time. Nothing is gathered between logs.
    """

    sample_flops: SampleFlops | None = None
    peak_flops: float | None = None  # of one GPU

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._steps: list[list[float]] = []
        self._since: float | None = None
        self._has_shown = False
        if self.pop_callback(ProgressCallback) is not None:  # there is none with `disable_tqdm`
            self.add_callback(RateBar)
        self.add_callback(LossCurve)

    def get_batch_samples(self, iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """
        As in the parent class, and counts what the step is made of.

        Args:
            iterator (`Iterator`): Micro-batches.
            num_batches (`int`): Micro-batches of a step.
            device (`torch.device`): Where their number of items is needed.

        Returns:
            `tuple[list, Any]`: Micro-batches and their number of items.
        """
        self._since = time.perf_counter() if self._since is None else self._since
        batches, items = super().get_batch_samples(iterator, num_batches, device)
        counts = [sample for batch in batches for sample in count_samples(batch)]
        flops = 0.0 if self.sample_flops is None else sum(self.sample_flops(*sample) for sample in counts)
        tokens, labels = (sum(sample[place] for sample in counts) for place in (0, 1))
        self._steps.append([len(counts), tokens, labels, flops])
        if batches and not self._has_shown and self.is_world_process_zero():
            self._has_shown = True
            logger.info("%s", show_labels(batches[0], self.processing_class))
        return batches, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        As in the parent class, with the rates beside a loss.

        Args:
            logs (`dict`): What is logged; the rates are added.
            start_time (`float`, *optional*): As in the parent class.
        """
        if "loss" in logs and self._steps and self._since is not None:
            logs.update(self._rates(time.perf_counter() - self._since))
            self._steps, self._since = [], None
        super().log(logs, start_time)

    def _rates(self, seconds: float) -> dict[str, float]:
        local = torch.tensor(self._steps, dtype=torch.float64)  # (steps, 4): samples, tokens, labels, operations
        if self.args.device.type == "mps":
            local = local.float()
        ranks = self.accelerator.gather(local[None].to(self.args.device)).cpu()  # (ranks, steps, 4)
        samples, tokens, labels, flops = ranks.sum(dim=(0, 1)).tolist()
        slowest = ranks[:, :, 1].max(dim=0).values.sum().item() * len(ranks)
        rates = {
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "label_tokens_per_second": labels / seconds,
            "step_efficiency": tokens / slowest if slowest else 1.0,
        }
        if flops and self.peak_flops:
            rates["mfu"] = flops / seconds / (self.peak_flops * len(ranks))
        return {name: float(f"{value:.4g}") for name, value in rates.items()}


class RateBar(ProgressCallback):
    """transformers' progress bar with the loss and the rates behind it; the time that is left is the bar's own."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss and rates in the bar, and everything that was logged above it."""
        if self.training_bar is not None and logs is not None:
            self.training_bar.set_postfix(
                {shown: f"{logs[name]:.4g}" for name, shown in BAR.items() if name in logs}, refresh=False
            )
        super().on_log(args, state, control, logs=logs, **kwargs)


class LossCurve(TrainerCallback):
    """Draws `loss_curve.png` into the output folder when a run ends, also one that a signal ended."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw, on the first process."""
        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            plot_history(state.log_history, Path(args.output_dir) / CURVE)


def peak_of(device: torch.device) -> float | None:
    """
    Peak of a GPU by its data sheet.

    Args:
        device (`torch.device`): Where the model is.

    Returns:
        `float`, *optional*: Dense bf16 operations a second; `None` for what is not in the table, and for PCIe cards,
            whose clocks are lower.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [GPUS[gpu].flops for called, gpu in DRIVER_NAMES.items() if called in name and "PCIe" not in name]
    return known[0] if known else None


def count_samples(batch: dict[str, Any]) -> list[tuple[float, float, float]]:
    """
    Tokens, label tokens and images of every sample of a micro-batch, padding left out.

    Args:
        batch (`dict`): A packed row with `cu_seq_lens_q`, or padded rows with `attention_mask`.

    Returns:
        `list[tuple[float, float, float]]`: One entry a sample. Which sample has which image is not known any more, so
            images are spread evenly.
    """
    scored = batch["labels"] != IGNORED
    if "cu_seq_lens_q" in batch:
        parts = list(pairwise(batch["cu_seq_lens_q"].tolist()))
        tokens = [end - start for start, end in parts]
        labels = [int(scored[0, start:end].sum()) for start, end in parts]
    else:
        tokens, labels = batch["attention_mask"].sum(dim=1).tolist(), scored.sum(dim=1).tolist()
    images = len(batch["pixel_values"]) / len(tokens) if "pixel_values" in batch else 0.0
    return [(float(token), float(label), images) for token, label in zip(tokens, labels, strict=True)]


def show_labels(batch: dict[str, Any], processor: Any) -> str:
    """
    The first samples of a batch as text, what is trained in brackets.

    Args:
        batch (`dict`): A packed row, or padded rows.
        processor (`ProcessorMixin`): Processor of the model.

    Returns:
        `str`: A line a sample.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    image = processor.image_token
    images = re.compile(f"(?:{re.escape(image)}){{2,}}")
    ids, trained = batch["input_ids"], batch["labels"] != IGNORED
    if "cu_seq_lens_q" in batch:
        places = [(0, slice(start, end)) for start, end in pairwise(batch["cu_seq_lens_q"].tolist())]
    else:
        places = [(row, mask.bool()) for row, mask in enumerate(batch["attention_mask"])]
    lines = ["The first batch; in brackets what is trained:"]
    for row, part in places[:SHOWN_SAMPLES]:
        marks, spans = torch.unique_consecutive(trained[row][part], return_counts=True)
        pieces = ids[row][part].split(spans.tolist())
        texts = [tokenizer.decode(piece) for piece in pieces]
        texts = [_shorten(images.sub(lambda run: f"{image} x {run[0].count(image)}", text)) for text in texts]
        shown = [f"[{text}]" if mark else text for text, mark in zip(texts, marks.tolist(), strict=True)]
        lines.append("  " + "".join(shown).replace("\n", "\\n"))
    return "\n".join(lines)


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """
    Draw the loss, and below it the speed and how evenly the ranks were loaded.

    Args:
        history (`list[dict]`): `log_history` of the trainer's state.
        path (`Path`): PNG file.
    """
    entries = [entry for entry in history if "loss" in entry]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    upper.plot(steps, [entry["loss"] for entry in entries], linewidth=1)
    upper.set_ylabel("loss, nats a token")
    upper.grid(alpha=0.3)
    rated = [entry for entry in entries if "label_tokens_per_second" in entry]
    if rated:
        at = [entry["step"] for entry in rated]
        lower.plot(at, [entry["label_tokens_per_second"] for entry in rated], linewidth=1)
        lower.set_ylabel("label tokens/s")
        lower.set_ylim(bottom=0)
        share = lower.twinx()
        share.plot(at, [entry["step_efficiency"] for entry in rated], color="tab:orange", linewidth=1)
        share.set_ylabel("step efficiency", color="tab:orange")
        share.set_ylim(0, 1.05)
    lower.set_xlabel("optimizer step")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT // 2]} ... {text[-SHOWN_TEXT // 2 :]}"
