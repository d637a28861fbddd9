"""
Peak memory of a training step of ShareGPT4V-7B on one GPU, by the tower block that training begins with.

For 24, 18, 12, 6 and 0, as in Table 8 of the paper: fresh gradients of 16 samples with one image each, and a step of
the optimizer, whose moments are there already. Random weights in bf16, real geometry. Ways: `ours` (packed,
checkpointing of LLM and tower, head on label positions), `stock` (transformers' Llava of today, padded, both
checkpointed) and `llm_only` (padded, only the LLM checkpointed, as the release trained). The floors are those of the
planner.

Table 8 was measured with states shared by 16 GPUs, here one GPU holds all of them. So the ratio compares the slope (GB
per block that trains, least squares) with 15 sixteenths of the tower's moments taken away: `slope` is 0.05 over it.
Gradients of the tower stay in, wherever the peak contains them. The slope of the peaks as they are stands beside it.

Needs torch >= 2.11 and transformers >= 5.23; with torchao the steps include its 8-bit AdamW, else there is none, and
the report says so. With a GPU it writes `benchmarks/results/gpu_memory.json`, which `sharegpt4v plan` reads; `--tiny`
runs on the processor, where no peak is measured, and writes nothing.

```sh
python benchmarks/gpu_memory.py
python benchmarks/gpu_memory.py --tiny
```
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import finish
from gpu import STOCK, Trainee, Way, describe
from gpu_run import NO_TIME, deadline, log, parse_arguments, reason_of, seconds_left

from trainers.geometry import Geometry
from trainers.memory import PAPER_GPUS, PAPER_TABLE8


TARGETS = {"slope": 1.0}
SLOPE_GB = 0.05  # per block at 16 images
WAYS = {
    "ours": Way("ours"),
    "stock": STOCK,
    "llm_only": Way("llm_only", packed=False, label_only=False, tower_checkpointing=False),
}


class Peaks:
    """
    Peaks of all ways and blocks.

    Args:
        trainee (`Trainee`): The model.
        left (`Callable`): Seconds that are left.
    """

    def __init__(self, trainee: Trainee, left: Callable[[], float]):
        self.trainee, self.left = trainee, left
        blocks = trainee.config.vision_config.num_hidden_layers
        self.blocks = {block: block * blocks // 24 for block in PAPER_TABLE8}  # by the paper's number, in this model
        self.rows: dict[str, dict[int, dict[str, Any]]] = {
            name: {block: {"reason": NO_TIME} for block in self.blocks} for name in WAYS
        }
        self.losses: dict[str, float] = {}
        self.equal = True
        self.last = 0.0

    def measure(self) -> None:
        """Go through the blocks, and through the ways at each."""
        for block, own_block in self.blocks.items():
            for name, way in WAYS.items():
                if self.left() < self.last:
                    continue
                start = self.left()
                try:
                    self.rows[name][block] = self._peak(name, way, own_block)
                except Exception as error:  # what a way breaks on is its result
                    self.rows[name][block] = {"reason": reason_of(error)}
                self.last = start - self.left()
                log(f"from {block}, {name}: {self.rows[name][block]}")
            self.equal &= self._compare()

    def _peak(self, name: str, way: Way, block: int) -> dict[str, Any]:
        trainee = self.trainee
        size = trainee.tune_from(block)
        trainee.switch(way)
        self.losses.pop(name, None)
        try:
            trainee.step(way)  # the optimizer makes its moments
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if trainee.optimizer is None:
                raise
            trainee.drop_optimizer(error)
            trainee.step(way)
        trainee.release()
        self.losses[name] = float(trainee.step(way))
        peak = trainee.peak_gb()
        return {
            "peak_gb": peak and round(peak, 3),
            "floor_gb": round(trainee.floor_gb(way, 1, size), 3),
            "trained_blocks": size.trained_blocks,
            "optimizer": trainee.optimizer_note,
            "like_table8_gb": peak and round(peak - self._own_moments(size), 3),
        }

    def _own_moments(self, size: Geometry) -> float:
        # of the tower, in GB: what a GPU would not hold if the paper's 16 GPUs shared them
        tower = size.part("vision tower").trained
        return tower * self.trainee.layout.optimizer * (1 - 1 / PAPER_GPUS) / 1e9

    def _compare(self) -> bool:
        if "stock" not in self.losses or "ours" not in self.losses:
            return True
        stock, ours = ({"loss": self.losses[name]} for name in ("stock", "ours"))
        return self.trainee.differences(ours, stock)[1]

    def slope(self, name: str, kind: str) -> float | None:
        """GB per block that trains, by least squares; `None` if fewer than two peaks are known."""
        rows = [row for row in self.rows[name].values() if row.get(kind) is not None]
        if len({row["trained_blocks"] for row in rows}) < 2:
            return None
        return float(np.polyfit([row["trained_blocks"] for row in rows], [row[kind] for row in rows], 1)[0])

    def column(self, name: str, kind: str) -> dict[str, float | None]:
        """One figure by block; the planner reads those of `ours`."""
        return {str(block): row[kind] for block, row in self.rows[name].items() if kind in row}

    def details(self) -> dict[str, Any]:
        """Everything that was measured."""
        slopes = ("peak_gb", "like_table8_gb", "floor_gb")
        paper = float(np.polyfit([24 - block for block in PAPER_TABLE8], list(PAPER_TABLE8.values()), 1)[0])
        found: dict[str, Any] = {
            "peak_gb": self.column("ours", "peak_gb"),
            "floor_gb": self.column("ours", "floor_gb"),
            "paper_gb": {str(block): value for block, value in PAPER_TABLE8.items()},
            "paper_source": f"Table 8 of the paper, {PAPER_GPUS} GPUs share the states",
            "ways": {
                name: [{"block": block, **row} for block, row in rows.items()] for name, rows in self.rows.items()
            },
            "slopes": {name: {kind: self.slope(name, kind) for kind in slopes} for name in WAYS},
        }
        found["slopes"]["paper"] = {"peak_gb": round(paper, 3)}
        return found


def main() -> None:
    """Measure for as long as there is time, and report."""
    arguments = parse_arguments(__doc__ or "")
    trainee = Trainee(arguments.tiny, arguments.samples)
    peaks = Peaks(trainee, partial(seconds_left, arguments.minutes))
    with deadline(arguments.minutes):
        peaks.measure()
    details = describe(trainee) | {"target_slope_gb": SLOPE_GB} | peaks.details()
    slope = peaks.slope("ours", "like_table8_gb")
    # A slope of nothing, or less by noise, counts as a hundredth of the target.
    ratio = None if slope is None else SLOPE_GB / max(slope, SLOPE_GB / 100)
    equal = peaks.equal and {"stock", "ours"} <= set(peaks.losses)
    machine = None if arguments.tiny else details["device"]
    finish("gpu_memory", {"slope": ratio}, TARGETS, details, equal, machine, write=ratio is not None)


if __name__ == "__main__":
    main()
