"""The figures of `sharegpt4v train plan` as text, with what GPUs measured beside what they need at least."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import ROOT


NOT_MEASURED = "not measured"
RESULTS = ROOT / "benchmarks" / "results"


def read_measured(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """
    Read what GPUs have measured.

    Args:
        folder (`Path`): Of the reports. `gpu_memory.json` has `details` of `device`, `peak_gb` by the block that
            training begins with and `floor_gb` by the same; `gpu_train.json` of `device` and `mfu`, 0 to 1. What is
            `null` was not measured.

    Returns:
        `dict`: `memory` and `train`; empty ones if nothing was measured.
    """
    found = {}
    for name in ("memory", "train"):
        path = folder / f"gpu_{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8"))["details"] if path.is_file() else {}
    return found


def describe_plan(recipe: str, figures: dict[str, Any], measured: dict[str, dict[str, Any]]) -> list[str]:
    """
    Lay a plan out.

    Args:
        recipe (`str`): Its file.
        figures (`dict`): What `trainers.plan` worked out.
        measured (`dict`): What [`read_measured`] found.

    Returns:
        `list[str]`: Lines.
    """
    sections = [
        _header(recipe, figures),
        _parts(figures),
        _micro_step(figures),
        _memory(figures),
        _one_gpu(figures["one_gpu"]),
        _table8(figures["table8"], measured["memory"]),
        _hours(figures, measured["train"]),
        _network(figures),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines).split("\n")


def align(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """
    Lay rows out in columns, the first to the left and the others to the right.

    Args:
        rows (`Sequence[Sequence[str]]`): Cells; the first row is the heading.
        indent (`str`): In front of every line but the first.

    Returns:
        `list[str]`: Lines.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[0] = max(widths[0], *(len(row[0]) + len(indent) for row in rows[1:]))
    lines = []
    for number, row in enumerate(rows):
        first = row[0] if number == 0 else indent + row[0]
        rest = "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append((f"{first:<{widths[0]}}" + rest).rstrip())
    return lines


def _header(recipe: str, figures: dict[str, Any]) -> list[str]:
    machine, batch, flops = figures["machine"], figures["batch"], figures["flops"]
    model = " + ".join(filter(None, (figures["model"], figures["vision_tower"])))
    peak = f"{machine['tflops']:,.0f} TFLOP/s"
    if machine["reached_tflops"] != machine["tflops"]:
        share = machine["reached_tflops"] / machine["tflops"]
        peak += f" by its data sheet and {machine['reached_tflops']:,.0f} measured ({share:.0%})"
    lines = [
        f"{recipe}: {figures['stage']} of {model}",
        f"{machine['count']} x {machine['gpu']}: {peak} in bf16, {machine['tb_s']:.2f} TB/s, {machine['gb']:.0f} GB",
        f"{batch['samples']:,} samples of {batch['tokens']:,.0f} tokens: {flops['pflop']:,.0f} PFLOP",
    ]
    if batch["problem"]:
        return [*lines, batch["problem"], "The rest of this plan has one sample a GPU."]
    factors = ((machine["count"], "GPU"), (batch["per_gpu"], "sample"), (batch["micro_batches"], "micro-batch"))
    divided = " x ".join(_number(count, name) for count, name in factors)
    return [*lines, f"Batch {batch['global']} = {divided}; {batch['steps']:,} steps"]


def _parts(figures: dict[str, Any]) -> list[str]:
    rows = [("Model", "parameters", "trained", "TFLOP a sample")]
    for part in figures["parts"]:
        trained = _count(part["trained"]) if part["trained"] else "-"
        work = f"{part['tflop']:.2f}" if part["tflop"] else "in the LLM"
        rows.append((part["part"], _count(part["parameters"]), trained, work))
    parameters, trained = (sum(part[name] for part in figures["parts"]) for name in ("parameters", "trained"))
    flops = figures["flops"]
    rows.append(("total", _count(parameters), _count(trained), f"{flops['sample_tflop']:.2f}"))
    added = f"+{flops['recomputed_tflop']:.2f}"
    used = "full checkpointing adds" if flops["recompute"] else "full checkpointing (off) would add"
    return align([*rows, (used, "", "", added)])


def _micro_step(figures: dict[str, Any]) -> list[str]:
    rows = [("One GPU, one micro-batch, at best", "TFLOP", "bytes moved", "time", "bound by")]
    times = figures["batch"]["micro_batches"]
    step = [0.0, 0.0, 0.0]
    for item in figures["micro_step"]:
        once = item["part"] == "optimizer"
        name = f"{item['part']}, once a step" if once else item["part"]
        work = f"{item['tflop']:.2f}" if item["tflop"] else "-"
        rows.append((name, work, f"{item['gb']:.1f} GB", f"{item['ms']:,.1f} ms", item["bound"]))
        measures = (item["tflop"], item["gb"], item["ms"])
        step = [sum_ + (1 if once else times) * value for sum_, value in zip(step, measures, strict=True)]
    return align([*rows, ("whole step", f"{step[0]:,.2f}", f"{step[1]:,.1f} GB", f"{step[2]:,.1f} ms", "")])


def _memory(figures: dict[str, Any]) -> list[str]:
    held = figures["memory"]
    rows = [(f"Memory of a GPU at least ({held['sharding']}, {held['dtype']}, {held['optim']})", "GB")]
    rows += [(name, f"{value:.1f}") for name, value in held["gb"].items() if value]
    fits = "fits" if held["fits"] else "does not fit"
    return align([*rows, (f"total, {fits} in {figures['machine']['gb']:.0f}", f"{held['total']:.1f}")])


def _one_gpu(ways: list[dict[str, Any]]) -> list[str]:
    if not ways:
        return []
    return align(
        [("Weights, gradients and optimizer on one GPU", "GB"), *((w["way"], f"{w['gb']:.1f}") for w in ways)]
    )


def _table8(rows: list[dict[str, Any]], measured: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    peaks, floors = measured.get("peak_gb", {}), measured.get("floor_gb", {})
    counts = list(rows[0]["floor"])
    heading = [f"floor x{count}" for count in counts]
    lines = [("Memory by tuned blocks, GB", "paper x16", "stock floor x16", *heading, "measured", "its floor")]
    for row in rows:
        block = str(row["block"])
        peak, floor = ("" if kind.get(block) is None else f"{kind[block]:.1f}" for kind in (peaks, floors))
        floors_by_count = (f"{row['floor'][count]:.1f}" for count in counts)
        cells = (f"{row['paper']:.1f}", f"{row['stock']:.1f}", *floors_by_count, peak or NOT_MEASURED, floor or "-")
        lines.append((f"from {block}", *cells))
    note = "  Table 8 of the paper, 16 images a GPU on so many GPUs. Stock: all logits, no checkpointing of the tower."
    return [*align(lines), note, *([f"  Measured on {measured['device']}."] if measured else [])]


def _hours(figures: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    shares = list(figures["hours"][0]["hours"])
    rows = [("Whole run, hours (GPU-hours) at an MFU of", *shares)]
    for machine in figures["hours"]:
        cells = (_both(machine["hours"][share], machine["count"]) for share in shares)
        rows.append((f"{machine['count']} x {machine['gpu']}", *cells))
    lines = align(rows)
    if paper := figures["paper"]:
        spent = _both(paper["hours"], paper["count"])
        lines.append(f"  The paper's run on {paper['count']} x {paper['gpu']}: {spent}, an MFU of {paper['mfu']:.1%}")
    if not measured.get("mfu"):
        return [*lines, f"  MFU of our training: {NOT_MEASURED}"]
    first = figures["hours"][0]
    taken = _both(first["hours"]["100%"] / measured["mfu"], first["count"])
    return [*lines, f"  Measured on {measured['device']}: an MFU of {measured['mfu']:.1%}, here {taken}"]


def _network(figures: dict[str, Any]) -> list[str]:
    network, machine = figures["network"], figures["machine"]
    if network is None:
        return []
    fabrics = list(network["rows"][0]["seconds"])
    rows = [("Network of a micro-batch", "a GPU", "time within the node")]
    if network["nodes"] > 1:
        rows = [("Network of a micro-batch", "a GPU", "between nodes", *fabrics)]
    for row in network["rows"]:
        cells = [row["strategy"], f"{row['within']:.1f} GB"]
        if network["nodes"] > 1:
            cells += [_range(row["between"], "GB", 1), *(_range(row["seconds"][name], "s") for name in fabrics)]
        else:
            cells.append(_range(row["seconds"][fabrics[0]], "s"))
        rows.append(tuple(cells))
    lines = align(rows)
    if network["nodes"] > 1:
        lines.append("  The first figure if data enters a node once (NCCL), the second if every GPU fetches its own.")
    if network["accumulates"]:
        lines.append("  DDP sends once a step, the others in every micro-batch.")
    compute = f"{network['compute_seconds']:.2f} s at an MFU of {machine['mfu']:.0%}"
    lines.append(f"  It is hidden while it is shorter than the computation: {compute}")
    return [*lines, f"  Ranks compute {network['balance']:.1%} of the time, else wait for each other (simulated)"]


def _both(taken: float, count: int) -> str:
    spent = taken * count
    return f"{taken:,.{1 if taken >= 1 else 2}f} ({spent:,.{0 if spent >= 10 else 1}f})"


def _range(figures: Sequence[float], unit: str, digits: int = 2) -> str:
    low, high = (f"{figure:.{digits}f}" for figure in figures)
    return f"{low} {unit}" if low == high else f"{low} - {high} {unit}"


def _number(count: float, name: str) -> str:
    ending = "" if count == 1 else "es" if name.endswith("ch") else "s"
    return f"{count:.4g} {name}{ending}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M"
