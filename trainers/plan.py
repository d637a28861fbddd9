"""
A recipe on paper: what it trains, how long it takes at best, what it holds in memory and sends over the network.

```python
from pathlib import Path

from trainers.plan import Machine, plan
from trainers.recipes import load_recipe

figures = plan(load_recipe(Path("recipes/demo_pretrain.yaml")), Machine("H100", 8))
```
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .geometry import Geometry
from .memory import NODE, Batch, Layout, Sharding, layout_of, one_gpu, outermost_group, shards_of, step_memory, table8
from .planned_run import PlannedRun, from_origin, read_run
from .roofline import GPUS, Gpu, hours, mean_flops, micro_step, utilisation
from .scaling import FABRICS, STRATEGIES, Simulation, model_traffic, network_seconds


GIGA, TERA, PETA = 1e9, 1e12, 1e15
# InternLM/InternLM-XComposer@0f70c3e, projects/ShareGPT4V/README.md: hours on 16 A100 of 80 GB
PAPER_HOURS = {"pretrain": 12, "finetune": 7}
PAPER_GPU, PAPER_COUNT = "A100-80GB", 16
MACHINES = (("H100", 1), ("A100-80GB", 8), ("H100", 8), ("A100-80GB", 16))
UTILISATIONS = (1.0, 0.6, 0.5, 0.4)


@dataclass(frozen=True)
class Machine:
    """
    GPUs and what is assumed of them.

    Args:
        gpu (`str`): Name in [`GPUS`].
        count (`int`): How many.
        peak (`float`, *optional*): Operations a second that a large product reached, for the time at best.
        mfu (`float`, defaults to 0.45): Utilisation while a GPU computes, 0 to 1, for network and waiting.
        sharding (`str`, defaults to `"fsdp2"`): How states are spread over more than one GPU.
    """

    gpu: str
    count: int
    peak: float | None = None
    mfu: float = 0.45
    sharding: Sharding = "fsdp2"

    def __post_init__(self):
        if self.gpu not in GPUS:
            raise ValueError(f"`gpu` must be one of {', '.join(GPUS)}, got {self.gpu!r}.")
        if self.count < 1:
            raise ValueError(f"`count` must be at least 1, got {self.count}.")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"`mfu` is a share from 0 to 1, got {self.mfu}.")

    @property
    def nominal(self) -> Gpu:
        """The GPU by its data sheet (`Gpu`)."""
        return GPUS[self.gpu]

    @property
    def reached(self) -> Gpu:
        """The GPU with its measured peak, if one is given (`Gpu`)."""
        return self.nominal.at(self.peak)

    def facts(self) -> dict[str, Any]:
        """
        What a plan says of the machine.

        Returns:
            `dict`: TFLOP/s, TB/s and GB.
        """
        gpu = self.nominal
        return {
            "gpu": gpu.name,
            "count": self.count,
            "tflops": gpu.flops / TERA,
            "reached_tflops": self.reached.flops / TERA,
            "tb_s": gpu.bandwidth / TERA,
            "gb": gpu.memory / GIGA,
            "mfu": self.mfu,
        }


def plan(
    recipe: dict[str, Any],
    machine: Machine,
    samples: int | None = None,
    text_tokens: float | None = None,
    model: str | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """
    Plan a recipe.

    Args:
        recipe (`dict`): Its fields.
        machine (`Machine`): What it runs on.
        samples (`int`, *optional*): Rows of its dataset; known for the published ones.
        text_tokens (`float`, *optional*): Mean text tokens of a sample with an image.
        model (`str`, *optional*): A model of the same size, when that of the recipe does not exist yet.
        folder (`Path`, *optional*): Folder of recipes, among which one may write the model that this one starts from.

    Returns:
        `dict`: Figures by section, in GB, TFLOP, PFLOP, seconds and hours.

    Raises:
        `ValueError`: The stage is not one of ours, the model cannot be read, or the number of samples is not known.
    """
    if model is None and folder is not None:
        recipe = from_origin(recipe, folder)
    run = read_run(recipe, machine.count, samples, text_tokens, model)
    flops, recomputed = mean_flops(run.size, run.load)
    total = sum(flops.values()) * run.samples
    return {
        "stage": run.stage,
        "model": run.model,
        "vision_tower": run.vision_tower,
        "machine": machine.facts(),
        "batch": _batch(run, machine.count),
        "parts": _parts(run.size, flops),
        "flops": {
            "sample_tflop": sum(flops.values()) / TERA,
            "recomputed_tflop": recomputed / TERA,
            "recompute": run.recompute,
            "pflop": total / PETA,
        },
        **_step(run, machine),
        "hours": _hours(total, machine),
        "paper": _paper(run, total),
        "network": _network(run, machine),
        "table8": table8(run.model, run.vision_tower) if run.stage == "pretrain" and run.size.is_paper_size else [],
        "one_gpu": one_gpu(run.model, run.vision_tower, run.size) if machine.count == 1 else [],
    }


def _parts(size: Geometry, flops: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "part": part.name,
            "parameters": part.parameters,
            "trained": part.trained,
            "tflop": flops.get(part.name, 0) / TERA,
        }
        for part in size.parts
    ]


def _batch(run: PlannedRun, count: int) -> dict[str, Any]:
    return {
        "samples": run.samples,
        "tokens": run.mean_tokens,
        "global": run.batch,
        "per_gpu": run.batch / count / run.micro_batches,
        "micro_batches": run.micro_batches,
        "steps": -(-run.samples // run.batch),
        "problem": run.problem,
    }


def _step(run: PlannedRun, machine: Machine) -> dict[str, Any]:
    """Time at best and memory of one GPU."""
    sharding: Sharding = machine.sharding if machine.count > 1 else "ddp"
    shards = shards_of(sharding, machine.count)
    layout = layout_of(run.dtype, run.optim)
    if sharding == "zero3" and layout.weight == 4:  # DeepSpeed keeps bf16 beside the float32 master
        layout = Layout(2, 2, 4 + layout.optimizer, 2)
    per_gpu = run.batch / machine.count / run.micro_batches
    batch = Batch(per_gpu * run.mean_tokens, per_gpu * run.load.image_share, run.recompute, run.recompute)
    work = micro_step(run.size, run.load, per_gpu, batch, layout, shards)
    held = step_memory(run.size, layout, shards, batch)
    if sharding in ("fsdp2", "hsdp"):
        held["outermost group"] = outermost_group(run.size)
    if shards == 1 and run.mixed:  # autocast keeps what it has cast until the end of the forward pass
        held["bf16 copies"] = 2.0 * run.size.trained
    gpu = machine.reached
    return {
        "micro_step": [
            {
                "part": name,
                "tflop": item.flops / TERA,
                "gb": item.moved / GIGA,
                "ms": 1e3 * item.seconds(gpu),
                "bound": item.bound(gpu),
            }
            for name, item in work.items()
        ],
        "memory": {
            "sharding": sharding if machine.count > 1 else "not shared",
            "optim": run.optim,
            "dtype": run.dtype,
            "gb": {name: value / GIGA for name, value in held.items()},
            "total": sum(held.values()) / GIGA,
            "fits": sum(held.values()) <= machine.nominal.memory,
        },
    }


def _hours(flops: float, machine: Machine) -> list[dict[str, Any]]:
    asked = (machine.gpu, machine.count)
    machines = [asked, *(other for other in MACHINES if other != asked)]
    return [
        {"gpu": name, "count": count, "hours": {f"{u:.0%}": hours(flops, GPUS[name], count, u) for u in UTILISATIONS}}
        for name, count in machines
    ]


def _paper(run: PlannedRun, flops: float) -> dict[str, Any] | None:
    if run.stage not in PAPER_HOURS or not run.size.is_paper_size:
        return None
    taken = PAPER_HOURS[run.stage]
    return {
        "gpu": PAPER_GPU,
        "count": PAPER_COUNT,
        "hours": taken,
        "mfu": utilisation(flops, GPUS[PAPER_GPU], PAPER_COUNT, taken),
    }


def _network(run: PlannedRun, machine: Machine) -> dict[str, Any] | None:
    if machine.count == 1:
        return None
    gpu, count = machine.nominal, machine.count
    simulation = Simulation(run.size, run.load, run.samples, run.batch, run.per_device, gpu, machine.mfu)
    loads = simulation.dealt(count)
    rows = []
    for strategy in STRATEGIES:
        moved = model_traffic(strategy, run.size)
        times = {fabric.name: network_seconds(moved, gpu, fabric, count) for fabric in FABRICS}
        between = (moved.at_least / GIGA, moved.at_most / GIGA)
        rows.append({"strategy": strategy, "within": moved.within / GIGA, "between": between, "seconds": times})
    row = simulation.row(loads, 0)
    facts = {"nodes": -(-count // NODE), "accumulates": run.micro_batches > 1, "rows": rows}
    return {**facts, "compute_seconds": row.seconds / row.micro_batches, "balance": row.balance}
