"""
Training on 1 to 1,024 GPUs, simulated: step efficiency, memory and cost, where more GPUs stop paying and why.

Lengths are drawn, the real planner deals them, a micro-step lasts as long as its slowest rank or its traffic,
whichever is longer. There is no peer: balance is held against what no way of dealing exceeds, and GPU-hours against
those of one node. A run stops paying where its GPU-hours exceed the least by a tenth.

```sh
python benchmarks/scale.py
```
"""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
from common import finish


TARGETS = {
    "pretrain_eff_8": 0.99,
    "pretrain_eff_16": 0.99,
    "pretrain_eff_32": 0.99,
    "finetune_eff_8": 0.99,
    "finetune_eff_16": 0.99,
    "finetune_eff_32": 0.96,
    "pretrain_cost_64": 0.95,
    "finetune_cost_32": 0.95,
}
MODEL = ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336")
STAGES = {"pretrain": (12, 1_246_901, 256, 16), "finetune": (None, 665_058, 128, 8)}  # block, samples, batch, per GPU
COUNTS, GROWN = (1, 2, 4, 8, 16, 32, 64, 128, 256), (256, 512, 1024)
CARDS, MAIN_CARD, SHARDED = ("A100-80GB", "H100"), "H100", ("FSDP2", "HSDP")
MFU, STEPS, GROWN_STEPS, SEED = 0.45, 100, 4, 5


def log(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def simulate(stage: str, card: str) -> Any:
    """The paper's run of a stage on a kind of GPU."""
    from trainers.geometry import Tuning, build_on_meta, measure
    from trainers.roofline import GPUS, WORKLOADS
    from trainers.scaling import Simulation

    block, samples, batch, per_device = STAGES[stage]
    size = measure(build_on_meta(*MODEL), Tuning(block))
    return Simulation(size, WORKLOADS[stage], samples, batch, per_device, GPUS[card], MFU, STEPS, SEED)


def memory_gb(simulation: Any, count: int, samples: float, recompute: bool) -> float:
    """What a GPU holds at least with float32 master weights, sharded over all."""
    from trainers.memory import MASTER, Batch, outermost_group, step_memory

    size, load = simulation.size, simulation.load
    tokens = load.image_share * (size.patches + load.text_tokens) + (1 - load.image_share) * load.text_only_tokens
    batch = Batch(samples * tokens, samples * load.image_share, recompute, recompute)
    held = sum(step_memory(size, MASTER, count, batch).values())
    return round((held + (outermost_group(size) if count > 1 else 0)) / 1e9, 1)


def rows_of(simulation: Any, dealt: dict[int, np.ndarray], strategy: str, fabric: Any, which: int) -> list[Any]:
    """The run by number of GPUs; `which` is 0 for the least time of the network and 1 for the most."""
    from trainers.scaling import model_traffic, network_seconds

    moved = model_traffic(strategy, simulation.size)
    return [
        simulation.row(loads, network_seconds(moved, simulation.gpu, fabric, count)[which])
        for count, loads in dealt.items()
    ]


def stop_of(rows: list[Any]) -> dict[str, Any]:
    """Up to how many GPUs a run pays, and what stops it there."""
    from trainers.scaling import pays_up_to

    gpus = pays_up_to(rows)
    following = next((row for row in rows if row.gpus > gpus), None)
    return {"gpus": gpus, "why": "batch" if following is None else following.limit}


def report_stage(stage: str) -> dict[str, Any]:
    """The stage on the main card, by number of GPUs and fabric, and what its steps weigh."""
    from trainers.scaling import FABRICS, best_balance, draw_lengths, sample_costs

    simulation = simulate(stage, MAIN_CARD)
    dealt = {count: simulation.dealt(count) for count in COUNTS if count <= simulation.batch}
    lengths, has_image = draw_lengths(simulation.load, simulation.size.patches, STEPS * simulation.batch, SEED)
    costs = sample_costs(simulation.size, lengths, has_image)
    by_fabric = {fabric.name: rows_of(simulation, dealt, "FSDP2", fabric, 0) for fabric in FABRICS}
    rows = []
    for number, (count, loads) in enumerate(dealt.items()):
        first = by_fabric[FABRICS[0].name][number]
        rows.append(
            {
                "gpus": count,
                "samples": round(first.samples, 2),
                "micro_batches": first.micro_batches,
                "balance": round(first.balance, 4),
                "bound": round(best_balance(loads, costs), 4),
                "memory_gb": memory_gb(simulation, count, first.samples, True),
                "memory_unchecked_gb": memory_gb(simulation, count, first.samples, False),
                "efficiency": {name: round(found[number].efficiency, 4) for name, found in by_fabric.items()},
                "hours": round(first.hours, 3),
                "gpu_hours": round(first.gpu_hours, 2),
            }
        )
        log(f"{stage}, {count} GPUs: {rows[-1]}")
    whole = all(np.isclose(loads.sum(), dealt[1].sum()) for loads in dealt.values())
    facts = {"mean": lengths.mean(), "sd": lengths.std(), "longest": lengths.max(), "images": has_image.mean()}
    drawn = {name: round(float(value), 3) for name, value in facts.items()}
    return {"batch": simulation.batch, "lengths": drawn, "rows": rows, "nothing_lost": bool(whole)}


def stops() -> list[dict[str, Any]]:
    """Where runs stop paying, by stage, card, fabric and strategy."""
    from trainers.scaling import FABRICS

    found = []
    for stage in STAGES:
        for card in CARDS:
            simulation = simulate(stage, card)
            dealt = {count: simulation.dealt(count) for count in COUNTS if count <= simulation.batch}
            for strategy in SHARDED:
                for fabric in FABRICS:
                    least, most = (stop_of(rows_of(simulation, dealt, strategy, fabric, which)) for which in (0, 1))
                    where = {"stage": stage, "card": card, "strategy": strategy, "fabric": fabric.name}
                    found.append({**where, "data_enters_once": least, "each_fetches": most})
    return found


def grown() -> list[dict[str, Any]]:
    """Pretraining with a batch that grows with the GPUs: another recipe, but the cost of one."""
    from trainers.scaling import FABRICS, model_traffic, network_seconds

    base = simulate("pretrain", MAIN_CARD)
    found = []
    for count in GROWN:
        simulation = replace(base.grown(count, base.per_device), steps=GROWN_STEPS)
        loads = simulation.dealt(count)
        moved = model_traffic("FSDP2", simulation.size)
        rows = {
            fabric.name: simulation.row(loads, network_seconds(moved, simulation.gpu, fabric, count)[0])
            for fabric in FABRICS
        }
        first = rows[FABRICS[0].name]
        found.append(
            {
                "gpus": count,
                "batch": simulation.batch,
                "steps": -(-simulation.samples // simulation.batch),
                "efficiency": {name: round(row.efficiency, 4) for name, row in rows.items()},
                "hours": round(first.hours, 4),
                "gpu_hours": round(first.gpu_hours, 2),
            }
        )
        log(f"grown, {count} GPUs: {found[-1]}")
    return found


def network() -> list[dict[str, Any]]:
    """Traffic of a micro-step of pretraining on the main card, by strategy and fabric."""
    from trainers.scaling import FABRICS, STRATEGIES, model_traffic, network_seconds

    simulation = simulate("pretrain", MAIN_CARD)
    found = []
    for strategy in STRATEGIES:
        moved = model_traffic(strategy, simulation.size)
        seconds = {f.name: network_seconds(moved, simulation.gpu, f, 16) for f in FABRICS}
        between = [moved.at_least, moved.at_most]
        found.append(
            {
                "strategy": strategy,
                "within_gb": round(moved.within / 1e9, 1),
                "between_gb": [round(value / 1e9, 1) for value in between],
                "seconds": {name: [round(value, 3) for value in pair] for name, pair in seconds.items()},
            }
        )
    return found


def main() -> None:
    """Simulate and report."""
    from trainers.roofline import GPUS

    stages = {stage: report_stage(stage) for stage in STAGES}
    ratios = {}
    for stage, report in stages.items():
        by_count = {row["gpus"]: row for row in report["rows"]}
        for count in (8, 16, 32):
            ratios[f"{stage}_eff_{count}"] = by_count[count]["balance"] / by_count[count]["bound"]
        most = 64 if stage == "pretrain" else 32
        ratios[f"{stage}_cost_{most}"] = by_count[8]["gpu_hours"] / by_count[most]["gpu_hours"]
    details = {
        "card": MAIN_CARD,
        "card_gb": GPUS[MAIN_CARD].memory / 1e9,
        "mfu": MFU,
        "steps": STEPS,
        "stages": stages,
        "stops": stops(),
        "grown": grown(),
        "network": network(),
    }
    finish("scale", ratios, TARGETS, details, equal=all(report["nothing_lost"] for report in stages.values()))


if __name__ == "__main__":
    main()
