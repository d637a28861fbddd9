"""
Training on many GPUs: what they send each other, how long they wait, and what a run then costs.

Traffic follows Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 7) and Zhao et al. 2023 (FSDP,
arXiv:2304.11277): weights are gathered for the forward and for the backward pass and gradients are scattered. HSDP
does so within a node only and averages each shard's gradients over nodes.

Between nodes there are two figures. *At most*: every GPU fetches all it needs over its own share of the network. *At
least*: data enters a node once and goes on over NVLink, as in NCCL's rings (NVIDIA/nccl#687: "enter/exit the node
once"; NVIDIA/nccl#412: 24 GB/s for each of 8 GPUs behind one 200 Gb/s card).

Waiting is simulated: drawn lengths are dealt by the planner that trains, and ranks meet at every micro-batch.
Computation and traffic overlap fully, and a GPU's rate does not fall with its tokens, so efficiencies are bounds.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .configs import accumulation_for
from .geometry import Geometry
from .memory import NODE
from .planner import assign, step_efficiency, training_cost
from .roofline import Gpu, Workload, hours, mean_flops, sample_flops


Strategy = Literal["FSDP2", "ZeRO-3", "FSDP2, no reshard", "HSDP", "DDP"]
STRATEGIES: tuple[Strategy, ...] = ("FSDP2", "ZeRO-3", "FSDP2, no reshard", "HSDP", "DDP")
# Of the nominal rates, what collectives of large messages reach: 24 of 25 GB/s and 160 of 200 GB/s in NVIDIA/nccl#412,
# 366 of 400 GB/s on four nodes in NVIDIA/nccl-tests#309; the first is an estimate a little below these.
NETWORK_SHARE, LINK_SHARE = 0.89, 0.8
LONGEST, SHORTEST = 2048, 8  # text tokens of a sample
BYTES = 2  # of a weight or gradient on its way


@dataclass(frozen=True)
class Fabric:
    """A network between nodes, by its name and nominal bits a second and GPU."""

    name: str
    bits: float

    @property
    def rate(self) -> float:
        """Bytes a second and GPU that collectives reach (`float`)."""
        return self.bits / 8 * NETWORK_SHARE


FABRICS = (
    Fabric("400 Gb/s a GPU", 400e9),
    Fabric("200 Gb/s a GPU", 200e9),
    Fabric("200 Gb/s a node", 200e9 / NODE),
)


@dataclass(frozen=True)
class Traffic:
    """
    Bytes that one GPU receives in a micro-step.

    Args:
        within (`float`): Of other GPUs, over the links of its node.
        at_least (`float`): Over its share of the network, if data enters a node once.
        at_most (`float`): Over its share of the network, if every GPU fetches for itself.
    """

    within: float
    at_least: float
    at_most: float


def traffic(strategy: Strategy, parameters: int, passed: int, trained: int) -> Traffic:
    """
    Bytes of a micro-step on more than one node.

    Args:
        strategy (`str`): How parameters are spread. ZeRO-3 moves what FSDP2 does; without resharding after the forward
            pass (as ZeRO-2) they are gathered once. DDP averages gradients, also in float32, once a step.
        parameters (`int`): Of the model.
        passed (`int`): Those that a backward pass goes through, so that they are gathered again.
        trained (`int`): Those with gradients.

    Returns:
        `Traffic`: `3 * 2P` for ZeRO-3 if all train; `2 * 2P / 8` between nodes for HSDP.
    """
    if strategy == "DDP":
        total = 2 * 2 * BYTES * trained
        return Traffic(total, total / NODE, total)
    again = 0 if strategy == "FSDP2, no reshard" else passed
    total = BYTES * (parameters + again + trained)
    if strategy == "HSDP":
        between = 2 * BYTES * trained / NODE
        return Traffic(total, between, between)
    return Traffic(total, total / NODE, total)


def model_traffic(strategy: Strategy, size: Geometry) -> Traffic:
    """
    Bytes of a micro-step for a model whose parts are all sharded.

    Args:
        strategy (`str`): How parameters are spread.
        size (`Geometry`): The model and what trains.

    Returns:
        `Traffic`: Bytes of one GPU.
    """
    return traffic(strategy, size.parameters, sum(part.passed for part in size.parts), size.trained)


def network_seconds(moved: Traffic, gpu: Gpu, fabric: Fabric, count: int) -> tuple[float, float]:
    """
    Time of the traffic of a micro-step.

    Args:
        moved (`Traffic`): Bytes.
        gpu (`Gpu`): Which, for the links within a node.
        fabric (`Fabric`): The network between nodes.
        count (`int`): GPUs; up to 8 need no network, one alone no links.

    Returns:
        `tuple[float, float]`: Seconds at least and at most.
    """
    if count == 1:
        return 0.0, 0.0
    within = moved.within / (gpu.link * LINK_SHARE)
    if count <= NODE:
        return within, within
    return max(within, moved.at_least / fabric.rate), max(within, moved.at_most / fabric.rate)


def draw_lengths(load: Workload, patches: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Samples of a stage: log-normal text lengths of its means and spreads.

    Args:
        load (`Workload`): The stage.
        patches (`int`): Tokens of an image.
        count (`int`): Samples.
        seed (`int`, defaults to 0): Of the draw.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: (samples,) tokens with those of images, and (samples,) bool, with an image.
    """
    random = np.random.default_rng(seed)
    has_image = random.random(count) < load.image_share
    text = np.where(
        has_image,
        _lognormal(random, load.text_tokens, load.text_spread, count),
        _lognormal(random, load.text_only_tokens, load.text_only_spread, count),
    )
    return np.clip(text, SHORTEST, LONGEST).astype(np.int64) + patches * has_image, has_image


def sample_costs(size: Geometry, lengths: np.ndarray, has_image: np.ndarray) -> np.ndarray:
    """
    What the planner takes a sample for, with this model's own price of an image.

    Args:
        size (`Geometry`): The model and what trains.
        lengths (`np.ndarray`): (samples,) tokens.
        has_image (`np.ndarray`): (samples,) bool.

    Returns:
        `np.ndarray`: (samples,) cost, in tokens of the LLM.
    """
    flops = sample_flops(size, 1, 0, 1)
    image = (flops["vision tower"] + flops["projector"]) / flops["language model"]
    return training_cost(lengths, has_image, size.width, size.feed_forward, image)


def deal_steps(
    costs: np.ndarray, lengths: np.ndarray, has_image: np.ndarray, batch: int, ranks: int, micro_batches: int
) -> np.ndarray:
    """
    Deal consecutive global batches by the planner.

    Args:
        costs (`np.ndarray`): (samples,) of [`sample_costs`].
        lengths (`np.ndarray`): (samples,) tokens.
        has_image (`np.ndarray`): (samples,) bool.
        batch (`int`): Samples of an optimizer step.
        ranks (`int`): GPUs.
        micro_batches (`int`): Gradient accumulation steps.

    Returns:
        `np.ndarray`: (steps, micro-batches, ranks) cost of every micro-batch.
    """
    loads = []
    for begin in range(0, len(costs) - batch + 1, batch):
        step = slice(begin, begin + batch)
        plan = assign(costs[step], lengths[step], ranks, micro_batches, None, has_image[step])
        loads.append([[costs[step][part].sum() for part in rank] for rank in plan])
    return np.array(loads).swapaxes(1, 2)


@dataclass(frozen=True)
class ScaleRow:
    """
    A run on so many GPUs.

    Args:
        gpus (`int`): How many.
        samples (`float`): Samples of a micro-batch of one GPU, on average.
        micro_batches (`int`): Gradient accumulation steps.
        balance (`float`): Share of the time that no GPU waits for the one with the dearest samples, 0 to 1.
        network (`float`): Share of the rest that no GPU waits for the network, 0 to 1.
        seconds (`float`): Of an optimizer step.
        hours (`float`): Wall time of the run.
    """

    gpus: int
    samples: float
    micro_batches: int
    balance: float
    network: float
    seconds: float
    hours: float

    @property
    def efficiency(self) -> float:
        """Share of the GPUs' time that goes into samples (`float`)."""
        return self.balance * self.network

    @property
    def gpu_hours(self) -> float:
        """What the run costs (`float`)."""
        return self.hours * self.gpus

    @property
    def limit(self) -> str:
        """What costs more of the time (`str`)."""
        return "balance" if self.balance < self.network else "network"


@dataclass(frozen=True)
class Simulation:
    """
    What a run on any number of GPUs is simulated from.

    Args:
        size (`Geometry`): The model and what trains.
        load (`Workload`): Its samples.
        samples (`int`): How many a run has.
        batch (`int`): Samples of an optimizer step.
        per_device (`int`): Samples of a micro-batch of one GPU at most.
        gpu (`Gpu`): Which.
        mfu (`float`): Share of its peak that it reaches while it computes, 0 to 1.
        steps (`int`, defaults to 20): Optimizer steps that are dealt.
        seed (`int`, defaults to 0): Of the draw.
    """

    size: Geometry
    load: Workload
    samples: int
    batch: int
    per_device: int
    gpu: Gpu
    mfu: float
    steps: int = 20
    seed: int = 0

    def dealt(self, ranks: int) -> np.ndarray:
        """
        Steps on this many GPUs, each micro-batch's cost in seconds.

        Args:
            ranks (`int`): GPUs.

        Returns:
            `np.ndarray`: (steps, micro-batches, ranks) seconds.

        Raises:
            `ValueError`: There are more GPUs than samples of a step.
        """
        micro_batches = accumulation_for(self.batch, self.per_device, ranks)
        lengths, has_image = draw_lengths(self.load, self.size.patches, self.steps * self.batch, self.seed)
        costs = sample_costs(self.size, lengths, has_image)
        flops = sum(mean_flops(self.size, self.load)[0].values())
        seconds = costs * (flops / costs.mean() / (self.gpu.flops * self.mfu))
        return deal_steps(seconds, lengths, has_image, self.batch, ranks, micro_batches)

    def row(self, loads: np.ndarray, waiting: float) -> ScaleRow:
        """
        A run whose micro-steps take no less than their traffic.

        Args:
            loads (`np.ndarray`): (steps, micro-batches, ranks) seconds, of [`~Simulation.dealt`].
            waiting (`float`): Seconds of the traffic of a micro-step.

        Returns:
            `ScaleRow`: Its figures.
        """
        steps, micro_batches, ranks = loads.shape
        slowest = loads.max(axis=2)  # (steps, micro-batches)
        taken = np.maximum(slowest, waiting)
        seconds = float(taken.sum() / steps)
        balance = float(loads.sum() / (ranks * slowest.sum()))
        network = float(slowest.sum() / taken.sum())
        flops = self.samples * sum(mean_flops(self.size, self.load)[0].values())
        taken_hours = hours(flops, self.gpu, ranks, self.mfu * balance * network)
        per_gpu = self.batch / ranks / micro_batches
        return ScaleRow(ranks, per_gpu, micro_batches, balance, network, seconds, taken_hours)

    def grown(self, ranks: int, per_gpu: int) -> "Simulation":
        """The same run with a batch that grows with the GPUs, which is another recipe."""
        return replace(self, batch=ranks * per_gpu, per_device=per_gpu)


def best_balance(loads: np.ndarray, costs: np.ndarray) -> float:
    """
    Efficiency that no way of dealing exceeds: a micro-batch has the mean load at least, one the dearest sample.

    Args:
        loads (`np.ndarray`): (steps, micro-batches, ranks) of [`deal_steps`].
        costs (`np.ndarray`): (samples,) cost of the samples that were dealt, in their order.

    Returns:
        `float`: 0 to 1.
    """
    steps, places = len(loads), loads[0].size
    by_step = costs[: len(costs) // steps * steps].reshape(steps, -1)
    mean, dearest = by_step.sum(axis=1) / places, by_step.max(axis=1)
    return step_efficiency(np.stack([mean, np.maximum(mean, dearest)], axis=1), mean * 2)


def pays_up_to(rows: list[ScaleRow], tolerance: float = 0.1) -> int:
    """
    Largest number of GPUs whose run costs hardly more than the cheapest.

    Args:
        rows (`list[ScaleRow]`): By GPUs, ascending.
        tolerance (`float`, defaults to 0.1): GPU-hours more than the least, as a share.

    Returns:
        `int`: GPUs.
    """
    most = min(row.gpu_hours for row in rows) * (1 + tolerance)
    return max(row.gpus for row in rows if row.gpu_hours <= most)


def _lognormal(random: np.random.Generator, mean: float, spread: float, count: int) -> np.ndarray:
    if not mean:
        return np.zeros(count)
    variance = np.log(1 + (spread / mean) ** 2)
    return random.lognormal(np.log(mean) - variance / 2, variance**0.5, count)
