"""
How much of the ranks' time goes into samples: planned batches against the samplers people use, at 8 to 64 ranks.

- `pretrain_eff_*`: global batch 256, captions of 190 tokens on average, 576 image tokens, at 8 and 16 ranks.
- `finetune_eff_*`: global batch 128 of a model of the SFT mix, 94 % with an image.

The ratios are the step efficiency itself: useful work over what all ranks could do at the pace of the slowest, where
work is counted by `training_cost` and ranks wait for each other at every micro-batch, as sharded training does. A rank
has at most the recipe's samples a micro-batch (16 and 8); the peers pad each micro-batch to its longest sample. The
spread of the caption lengths is not published, so 60 tokens is a guess, and 100 and 200 stand beside it; the lengths
of the SFT mix are guesses for each source. Steps must hold exactly the samples of accelerate's plain random order.

```sh
python benchmarks/planner.py
```
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from common import best_of, finish
from transformers.trainer_pt_utils import BatchRebalanceSampler, get_length_grouped_indices


TARGETS = {"pretrain_eff_8": 0.99, "pretrain_eff_16": 0.99, "finetune_eff_8": 0.96, "finetune_eff_16": 0.96}
BATCH, PER_RANK = {"pretrain": 256, "finetune": 128}, {"pretrain": 16, "finetune": 8}
RANKS, STEPS, SEED = (8, 16, 32, 64), 100, 5
PLANS, ROUNDS, MOST_MS = 4, 40, 2.0
IMAGE_TOKENS, TEMPLATE, LONGEST = 576, 3, 2048
# Thousands of records, whether they have an image, mean and spread of the text tokens, the template's 40 included.
MIX = (
    (58, True, 300, 120),  # LLaVA-Instruct, conversations
    (77, True, 285, 60),  # LLaVA-Instruct, reasoning
    (23, True, 255, 70),  # captions of GPT4-V
    (83, True, 185, 60),  # VQAv2, several questions an image
    (72, True, 245, 110),  # GQA
    (75, True, 110, 50),  # OK-VQA and A-OKVQA
    (80, True, 215, 50),  # OCR-VQA
    (22, True, 95, 15),  # TextCaps
    (48, True, 310, 160),  # RefCOCO
    (86, True, 390, 220),  # Visual Genome
    (40.7, False, 1150, 600),  # ShareGPT, text only, cut at 2,048
)
Steps = Iterator[list[list[np.ndarray]]]  # by rank and micro-batch, indices of the dataset


def log(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def lognormal(random: np.random.Generator, mean: float, spread: float, count: int) -> np.ndarray:
    """Log-normal numbers of this mean and standard deviation."""
    variance = np.log(1 + (spread / mean) ** 2)
    return random.lognormal(np.log(mean) - variance / 2, variance**0.5, count)


def draw_pretrain(count: int, spread: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of captions with their image, and that all have one."""
    text = np.clip(lognormal(np.random.default_rng(SEED), 190, spread, count), 8, LONGEST - TEMPLATE)
    return text.astype(np.int64) + TEMPLATE + IMAGE_TOKENS, np.ones(count, bool)


def draw_finetune(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the samples of the mix, and which have an image; one text token is the image's placeholder."""
    random = np.random.default_rng(SEED)
    shares = np.array([source[0] for source in MIX])
    source = random.choice(len(MIX), count, p=shares / shares.sum())
    text = np.empty(count)
    for number, (_, _, mean, spread) in enumerate(MIX):
        text[source == number] = lognormal(random, mean, spread, int((source == number).sum()))
    has_image = np.array([entry[1] for entry in MIX])[source]
    return np.clip(text, 50, LONGEST).astype(np.int64) + has_image * (IMAGE_TOKENS - 1), has_image


class Setting:
    """One dataset at one number of ranks."""

    def __init__(self, lengths: np.ndarray, has_image: np.ndarray, stage: str, ranks: int):
        from trainers.planner import training_cost

        self.lengths, self.has_image, self.batch, self.ranks = lengths, has_image, BATCH[stage], ranks
        self.per_rank = min(PER_RANK[stage], self.batch // ranks)
        self.micro_batches = self.batch // ranks // self.per_rank
        self.costs = training_cost(lengths, has_image)
        self.steps = len(lengths) // self.batch

    def order(self) -> list[int]:
        """The plain random order."""
        return list(SeedableRandomSampler(range(len(self.lengths)), data_seed=SEED))

    def deal(self, order: list[int]) -> Steps:
        """Micro-batches of consecutive samples to the ranks in turns, as accelerate deals them."""
        used = np.array(order[: self.steps * self.batch])
        for step in used.reshape(self.steps, self.micro_batches, self.ranks, self.per_rank):
            yield [list(rank) for rank in step.swapaxes(0, 1)]

    def ours(self) -> Steps:
        """Planned batches, each rank's by its own sampler."""
        from trainers.planner import PlannedBatches

        ranks = [
            PlannedBatches(self.lengths, self.has_image, self.batch, self.ranks, rank, self.micro_batches, SEED)
            for rank in range(self.ranks)
        ]
        flat = zip(*ranks, strict=True)
        for first in flat:
            parts = [first] + [next(flat) for _ in range(self.micro_batches - 1)]
            yield [[np.array(part[rank]) for part in parts] for rank in range(self.ranks)]

    def without_image_rule(self) -> Steps:
        """Planned as if it did not matter which micro-batches have images."""
        from trainers.planner import assign

        for batch in np.array(self.order()).reshape(self.steps, self.batch):
            plan = assign(self.costs[batch], self.lengths[batch], self.ranks, self.micro_batches, None)
            yield [[batch[positions] for positions in rank] for rank in plan]

    def random(self) -> Steps:
        """Plain random order."""
        yield from self.deal(self.order())

    def length_grouped(self) -> Steps:
        """Order of transformers' `LengthGroupedSampler`, with the batch size that its Trainer passes."""
        yield from self.deal(get_length_grouped_indices(self.lengths.tolist(), self.per_rank * self.micro_batches))

    def batch_rebalance(self) -> Steps:
        """Transformers' `BatchRebalanceSampler`; its plan of a step, which every rank makes for itself."""
        order, peer = self.order(), self.rebalance_sampler()
        for begin in range(0, self.steps * self.batch, self.batch):
            batch = order[begin : begin + self.batch]
            plan = peer._assign(batch, [peer.lengths[index] for index in batch])
            yield [[np.array(part) for part in rank] for rank in plan]

    def rebalance_sampler(self) -> BatchRebalanceSampler:
        """Transformers' sampler for this setting."""
        return BatchRebalanceSampler(self.lengths.tolist(), self.batch, self.ranks, self.micro_batches, seed=SEED)

    def modality_grouped(self) -> Steps:
        """LLaVA's `group_by_modality_length`: steps of one modality, sorted by words and dealt evenly, then mixed."""
        random = np.random.default_rng(SEED)
        words = self.lengths - self.has_image * IMAGE_TOKENS
        whole, rest = [], []
        for members in (np.flatnonzero(self.has_image), np.flatnonzero(~self.has_image)):
            members = random.permutation(members)
            cut = len(members) // self.batch * self.batch
            whole += list(members[:cut].reshape(-1, self.batch))
            rest += members[cut:].tolist()
        steps = [whole[number] for number in random.permutation(len(whole))]
        if len(rest) >= self.batch:
            steps.append(np.array(rest[: self.batch]))
        for step in steps:
            parts: list[list[int]] = [[] for _ in range(self.ranks * self.micro_batches)]
            for index in step[np.argsort(-words[step], kind="stable")]:
                open_parts = [part for part in parts if len(part) < self.per_rank]
                min(open_parts, key=lambda part: words[part].sum()).append(index)
            yield [[np.array(part) for part in parts[rank :: self.ranks]] for rank in range(self.ranks)]

    def efficiency(self, steps: Steps, padded: bool) -> dict[str, float]:
        """Efficiency when ranks wait at every micro-batch, and when they wait once a step."""
        from trainers.planner import step_efficiency, training_cost

        work, useful = [], []
        for step in steps:
            useful.append([[self.costs[part].sum() for part in rank] for rank in step])
            if padded:
                longest = [[np.full(len(part), self.lengths[part].max()) for part in rank] for rank in step]
                pairs = [zip(long, rank, strict=True) for long, rank in zip(longest, step, strict=True)]
                work.append([[training_cost(a, self.has_image[b]).sum() for a, b in rank] for rank in pairs])
        real = np.array(useful)  # (steps, ranks, micro-batches)
        load = np.array(work) if padded else real
        by_part = load.swapaxes(1, 2).reshape(-1, self.ranks)
        real_by_part = real.swapaxes(1, 2).reshape(-1, self.ranks).sum(axis=1)
        return {
            "every_micro_batch": round(step_efficiency(by_part, real_by_part), 4),
            "once_a_step": round(step_efficiency(load.sum(axis=2), real.sum(axis=(1, 2))), 4),
        }

    def bound(self) -> float:
        """Efficiency that no plan exceeds: a micro-batch has at least the mean load, and one the dearest sample."""
        batches = self.costs[np.array(self.order()).reshape(self.steps, self.batch)]
        mean = batches.sum(axis=1) / (self.ranks * self.micro_batches)
        return round(float(np.mean(mean / np.maximum(mean, batches.max(axis=1)))), 4)

    def is_plain_order(self) -> bool:
        """Whether our steps hold the samples of the plain random order, each once."""
        plain = np.array(self.order()).reshape(self.steps, self.batch)
        found = [np.concatenate([part for rank in step for part in rank]) for step in self.ours()]
        return len(found) == self.steps and all(
            np.array_equal(np.sort(step), np.sort(batch)) for step, batch in zip(found, plain, strict=True)
        )


def measure(setting: Setting) -> dict[str, Any]:
    """Efficiencies of all sides."""
    sides: dict[str, tuple[Callable[[], Steps], bool]] = {
        "ours": (setting.ours, False),
        "ours_without_image_rule": (setting.without_image_rule, False),
        "random_packed": (setting.random, False),
        "random": (setting.random, True),
        "length_grouped": (setting.length_grouped, True),
        "modality_grouped": (setting.modality_grouped, True),
        "batch_rebalance": (setting.batch_rebalance, True),
    }
    if setting.has_image.all():
        del sides["ours_without_image_rule"]
    found = {"per_rank": setting.per_rank, "micro_batches": setting.micro_batches, "bound": setting.bound()}
    return found | {name: setting.efficiency(side(), padded) for name, (side, padded) in sides.items()}


def planning_ms(lengths: np.ndarray, has_image: np.ndarray, stage: str) -> dict[str, dict[str, float]]:
    """Milliseconds to plan one global batch, at each number of ranks."""
    from trainers.planner import PlannedBatches

    found = {}
    for ranks in RANKS:
        count = PLANS * BATCH[stage]
        setting = Setting(lengths[:count], has_image[:count], stage, ranks)
        parts = setting.micro_batches
        planned = PlannedBatches(setting.lengths, setting.has_image, setting.batch, ranks, 0, parts, SEED)
        peer = setting.rebalance_sampler()
        seconds = best_of(ROUNDS, ours=lambda side=planned: list(side), batch_rebalance=lambda side=peer: list(side))
        found[f"{stage}_{ranks}"] = {name: round(value / PLANS * 1e3, 3) for name, value in seconds.items()}
        log(f"planning {stage}_{ranks}: {found[f'{stage}_{ranks}']}")
        if (worst := found[f"{stage}_{ranks}"]["ours"]) > MOST_MS:
            raise SystemExit(f"Planning a global batch at {ranks} ranks takes {worst} ms, more than {MOST_MS}.")
    return found


def main() -> None:
    """Draw the lengths, compare, and report."""
    inputs = {f"pretrain_sd{spread}": draw_pretrain(STEPS * BATCH["pretrain"], spread) for spread in (60, 100, 200)}
    inputs["finetune"] = draw_finetune(STEPS * BATCH["finetune"])
    details: dict[str, Any] = {"steps": STEPS, "lengths": {}, "efficiency": {}, "planning_ms": {}}
    ratios = {}
    for name, (lengths, has_image) in inputs.items():
        stage = name.split("_")[0]
        figures = {"mean": lengths.mean(), "sd": lengths.std(), "longest": lengths.max(), "images": has_image.mean()}
        details["lengths"][name] = {key: round(float(value), 3) for key, value in figures.items()}
        for ranks in RANKS:
            setting = Setting(lengths, has_image, stage, ranks)
            if not setting.is_plain_order():
                raise SystemExit(f"{name}, {ranks} ranks: a step does not hold the samples of the plain random order.")
            found = details["efficiency"][f"{name}_{ranks}"] = measure(setting)
            log(f"{name}_{ranks}: {found}")
            if f"{stage}_eff_{ranks}" in TARGETS and name in ("pretrain_sd60", "finetune"):
                ratios[f"{stage}_eff_{ranks}"] = found["ours"]["every_micro_batch"]
        if name in ("pretrain_sd60", "finetune"):
            details["planning_ms"] |= planning_ms(lengths, has_image, stage)
    finish("planner", ratios, TARGETS, details, equal=True)


if __name__ == "__main__":
    main()
