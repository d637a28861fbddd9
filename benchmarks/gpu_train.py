"""
Training steps of ShareGPT4V-7B on one GPU: ours against padded transformers and TRL, and what each change brings.

The geometry is real (Vicuna-7B, CLIP ViT-L/14 at 336 pixels, blocks 12 to 22 train) and the weights are random, in
bf16. A step trains on 16 samples with one image and log-normal captions (190 label tokens, standard deviation 60), the
same for all. Every rung of the ladder adds one change to the one before:

padded stock -> packed, varlen attention -> no checkpointing -> label-only head -> fused kernels -> compiled layers

Peers are transformers' own Llava (the first rung) and TRL's loss with its fused head, both padded with SDPA and
checkpointing, by the same optimizer in the same precision. A rung that runs out of memory divides its 16 samples into
more micro-batches until it fits, which is reported. Loss and gradient norms of every rung are compared with those of
the padded stock step. Ratios: `trl` and `stock` of a step's time over that of our fastest rung, and its `mfu` itself,
real tokens without recomputation over the data sheet's peak.

Needs torch >= 2.11 and transformers >= 5.23. With torchao the steps include its 8-bit AdamW, else they are forward and
backward only. Without trl and datasets the peer `trl` is skipped, without liger_kernel the fused kernels are; the
report says so. With a GPU it writes `benchmarks/results/gpu_train.json`; `--tiny` runs on the processor and writes
nothing.

```sh
python benchmarks/gpu_train.py
python benchmarks/gpu_train.py --tiny
```
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from common import finish
from gpu import STOCK, Trainee, Way, describe, gemm_ceiling
from gpu_run import NO_TIME, data_sheet_peak, deadline, log, parse_arguments, reason_of, seconds_left

from trainers.geometry import Geometry


TARGETS = {"trl": 1.6, "stock": 1.6, "mfu": 0.45}
STRETCH_MFU = 0.55
TUNE_FROM = 12
LADDER = (
    STOCK,
    Way("packed, varlen attention", label_only=False),
    Way("no checkpointing", label_only=False, checkpointing=False),
    Way("label-only head", checkpointing=False),
    Way("fused kernels", checkpointing=False, kernels=True),
    Way("compiled layers", checkpointing=False, kernels=True, compiled=True),
)
TRL = Way("padded TRL", packed=False, label_only=False, trl=True)
CHECKPOINTED = Way("label-only head, checkpointing")  # beside the ladder: what a full GPU falls back to
WARM_UP, ROUNDS, TIMED = 3, 2, 3  # steps before the first round, rounds of all ways in turns, timed steps in each
COMPILE_SECONDS = 90


class Ladder:
    """
    All ways, what was measured of them, and why not.

    Args:
        trainee (`Trainee`): The model.
        left (`Callable`): Seconds that are left.
    """

    def __init__(self, trainee: Trainee, left: Callable[[], float]):
        self.trainee, self.left = trainee, left
        self.size: Geometry = trainee.tune_from(TUNE_FROM * trainee.config.vision_config.num_hidden_layers // 24)
        self.ways = {way.name: way for way in (*LADDER[:1], TRL, *LADDER[1:4], CHECKPOINTED, *LADDER[4:])}
        self.rows: dict[str, dict[str, Any]] = {name: {"reason": NO_TIME} for name in self.ways}
        self.times: dict[str, list[float]] = {}
        self.reference: dict[str, float] = {}
        self.last: dict[str, float] = {}  # seconds of a step of each way

    def prepare(self) -> None:
        """Run every way once: find the micro-batches that fit, and compare its loss and gradients."""
        for name in self.ways:
            way = self._without_what_failed(name)
            needed = 4 * max(self.last.values(), default=0) + COMPILE_SECONDS * (
                way.compiled and not self.trainee.tiny
            )
            if self.left() < needed:
                continue
            try:
                if way.trl:
                    self.trainee.start_trl()
                self.trainee.switch(way)
                self.rows[name] = self._fit(way)
            except Exception as error:  # what a way breaks on is its result
                self.rows[name] = {"reason": reason_of(error)}
            log(f"{name}: {self.rows[name]}")

    def _without_what_failed(self, name: str) -> Way:
        way = self.ways[name]
        if way.compiled and "reason" in self.rows["fused kernels"]:
            way = self.ways[name] = Way(name, checkpointing=False, compiled=True)
        return way

    def _fit(self, way: Way) -> dict[str, Any]:
        count = len(self.trainee.samples)
        for parts in (number for number in range(1, count + 1) if count % number == 0):
            self.trainee.release()
            try:
                return self._first_step(way, parts)
            except torch.OutOfMemoryError:
                log(f"{way.name}: out of memory with {parts} micro-batches")
        return {"reason": "out of memory with one sample a micro-batch"}

    def _first_step(self, way: Way, parts: int) -> dict[str, Any]:
        trainee = self.trainee
        found = trainee.fingerprint(trainee.forward_backward(way, parts))
        if trainee.optimizer is not None:
            try:
                trainee.optimizer.step()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # its kernels need a compiler
                trainee.drop_optimizer(error)
        # A compiled way may compile again at the second step, for the sizes of the other micro-batches.
        self.last[way.name] = min(trainee.seconds(way, parts) for _ in range(2))
        row: dict[str, Any] = {"micro_batches": parts, "loss": round(found["loss"], 5)}
        if way is STOCK:
            self.reference = found
            return row
        if not self.reference:
            return row | {"equal": False}
        row["differences"], row["equal"] = trainee.differences(found, self.reference)
        return row

    def time(self) -> None:
        """Time all ways in turns."""
        for number in range(ROUNDS):
            for name, way in self.ways.items():
                row = self.rows[name]
                if "reason" in row:
                    continue
                warm_up = WARM_UP if number == 0 else 1
                if self.left() < (warm_up + TIMED) * 1.2 * self.last[name]:
                    if name not in self.times:
                        row["reason"] = NO_TIME
                    continue
                try:
                    self._time_round(name, way, warm_up)
                except torch.OutOfMemoryError as error:
                    row |= {} if name in self.times else {"reason": reason_of(error)}

    def _time_round(self, name: str, way: Way, warm_up: int) -> None:
        row = self.rows[name]
        parts = row["micro_batches"]
        self.trainee.switch(way)
        self.trainee.release()
        for _ in range(warm_up):
            self.trainee.step(way, parts)
        times = [self.trainee.seconds(way, parts) for _ in range(TIMED)]
        self.times[name] = self.times.get(name, []) + times
        peak = self.trainee.peak_gb()
        row["peak_gb"] = peak and round(max(peak, row.get("peak_gb") or 0), 2)
        log(f"{name}: {[round(value, 3) for value in times]} s")

    def report(self, peak: float | None, ceiling: float) -> None:
        """Add rates and floors to the rows of what was timed."""
        flops = self.trainee.flops(self.size)
        samples = len(self.trainee.samples)
        tokens = sum(len(sample["input_ids"]) for sample in self.trainee.samples)
        for name, times in self.times.items():
            row, best = self.rows[name], min(times)
            row |= {
                "seconds": {"best": round(best, 4), "median": round(median(times), 4), "steps": len(times)},
                "floor_seconds": round(flops / (peak or ceiling), 4),
                "floor_gb": round(self.trainee.floor_gb(self.ways[name], row["micro_batches"], self.size), 2),
                "samples_per_second": round(samples / best, 2),
                "tokens_per_second": round(tokens / best),
                "mfu": round(flops / best / peak, 4) if peak else None,
                "mfu_of_gemm": round(flops / best / ceiling, 4),
            }
        self._add_gains()

    def _add_gains(self) -> None:
        measured = [way.name for way in LADDER if way.name in self.times]
        for before, name in zip(measured, measured[1:], strict=False):
            gain = min(self.times[before]) / min(self.times[name])
            self.rows[name]["gain"] = {"over": before, "ratio": round(gain, 3)}

    def fastest(self) -> str | None:
        """Name of our fastest way."""
        ours = [name for name in self.times if self.ways[name].packed]
        return min(ours, key=lambda name: min(self.times[name]), default=None)

    def is_equal(self) -> bool:
        """Whether every way that ran gave the loss and gradients of the stock step."""
        return bool(self.reference) and all(row.get("equal", True) for row in self.rows.values())


def main() -> None:
    """Measure for as long as there is time, and report."""
    arguments = parse_arguments(__doc__ or "")
    trainee = Trainee(arguments.tiny, arguments.samples)
    details = describe(trainee)
    ceiling, peak = gemm_ceiling(trainee), data_sheet_peak(details["device"])
    ladder = Ladder(trainee, partial(seconds_left, arguments.minutes))
    with deadline(arguments.minutes):
        ladder.prepare()
        ladder.time()
    ladder.report(peak, ceiling)
    ours = ladder.fastest()
    ratios: dict[str, float | None] = dict.fromkeys(TARGETS)
    if ours:
        best = {name: min(times) for name, times in ladder.times.items()}
        peers = {"stock": STOCK.name, "trl": TRL.name}
        ratios |= {key: best[name] / best[ours] for key, name in peers.items() if name in best}
        ratios["mfu"] = ladder.rows[ours]["mfu"]
    details |= {
        "optimizer": trainee.optimizer_note,
        "data_sheet_tflops": peak and peak / 1e12,
        "gemm_tflops": round(ceiling / 1e12, 2),
        "tflop_per_step": round(trainee.flops(ladder.size) / 1e12, 4),
        "ours": ours,
        "mfu": ratios["mfu"],
        "stretch_mfu": STRETCH_MFU,
        "rungs": [{"name": name, **row} for name, row in ladder.rows.items()],
    }
    machine = None if arguments.tiny else details["device"]
    finish("gpu_train", ratios, TARGETS, details, ladder.is_equal(), machine, write=ratios["mfu"] is not None)


if __name__ == "__main__":
    main()
