"""
Which samples of a global batch go to which rank and micro-batch, so that no rank waits for another.

An optimizer step holds the samples that a plain seeded random order gives it; only their places within the step are
chosen, so training is the same as without a planner. The samples, sorted by cost, are dealt to the ranks like cards;
then the rank with the most exchanges samples with those that have little until all are even. A rank's micro-batches
are made the same way. The usual greedy rule (the dearest first, each to the lightest rank) ends with uneven numbers of
samples, which exchanges hardly repair: for the SFT mix at 32 ranks it stops at 0.96, where dealing reaches 0.98.

Every rank makes the same plan from the same seed, so nothing is communicated. Costs are added one by one in a fixed
order and never by numpy, whose sums depend on the processor, so ranks on different machines agree too.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Sampler


logger = logging.getLogger(__name__)

Plan = list[list[np.ndarray]]
TOLERANCE = 1e-3  # ranks this close to their mean are even enough
PARTNERS = 16  # lightest places that the heaviest one tries to exchange with
ROUNDS = 3  # most exchanges, times the number of places


def training_cost(
    lengths: np.ndarray,
    has_image: np.ndarray,
    hidden_size: int = 4096,
    intermediate_size: int = 11008,
    image_cost: float = 20.0,
) -> np.ndarray:
    """
    What training on each sample costs, in tokens: 1 is what the linear layers of the LLM need for one token.

    A token needs `4 hidden² + 3 hidden * intermediate` multiplications in a layer, and causal attention over `S`
    tokens adds `hidden * S` on average, so a sample costs `S + S² / (4 hidden + 3 intermediate)`; the number of
    layers cancels out. The defaults are those of Vicuna-7B and CLIP-L/336: 1.5 % of a caption's cost is attention.

    Args:
        lengths (`np.ndarray`): (samples,) tokens, those of images included.
        has_image (`np.ndarray`): (samples,) bool, whether the sample goes through the vision tower.
        hidden_size (`int`, defaults to 4096): Width of the LLM.
        intermediate_size (`int`, defaults to 11008): Width of its feed-forward layers.
        image_cost (`float`, defaults to 20): Tower and projector for one image: 20 with blocks 12 to 22 trained, 11
            with a frozen tower.

    Returns:
        `np.ndarray`: (samples,) float64.
    """
    tokens = np.asarray(lengths, np.float64)
    return tokens + tokens * tokens / (4 * hidden_size + 3 * intermediate_size) + image_cost * np.asarray(has_image)


def step_efficiency(loads: np.ndarray, useful: np.ndarray | None = None) -> float:
    """
    Share of the ranks' time that goes into samples: useful work over what all could do at the slowest rank's pace.

    Args:
        loads (`np.ndarray`): (steps, ranks) work of each rank up to where it waits for the others, padding included.
        useful (`np.ndarray`, *optional*): (steps,) work of all ranks without padding, by default the sum of the loads.

    Returns:
        `float`: Mean over steps of `useful / (ranks * largest load)`, 1 when nobody waits and nothing is padded.

    Raises:
        `ValueError`: There is no step, or a step without work.
    """
    loads = np.asarray(loads, np.float64)
    if loads.ndim != 2 or not loads.size or not loads.any(axis=1).all():
        raise ValueError(f"`loads` must be (steps, ranks) with work in every step, got the shape {loads.shape}.")
    done = loads.sum(axis=1) if useful is None else np.asarray(useful, np.float64)
    return float(np.mean(done / (loads.shape[1] * loads.max(axis=1))))


def assign(
    costs: np.ndarray,
    lengths: np.ndarray,
    ranks: int,
    micro_batches: int,
    max_tokens: int | None,
    has_image: np.ndarray | None = None,
) -> Plan:
    """
    Deal one global batch to ranks and micro-batches of nearly equal cost.

    Args:
        costs (`np.ndarray`): (samples,) what each sample costs, as of [`training_cost`].
        lengths (`np.ndarray`): (samples,) tokens.
        ranks (`int`): Processes that train.
        micro_batches (`int`): Gradient accumulation steps.
        max_tokens (`int`, *optional*): Upper bound for the tokens of a micro-batch.
        has_image (`np.ndarray`, *optional*): (samples,) bool. Every micro-batch gets an image if there are as many as
            micro-batches, and if there are fewer, each gets into another one: a tower that is sharded over the ranks
            hangs when one of them has no image. By default images do not matter.

    Returns:
        `list[list[np.ndarray]]`: By rank and micro-batch, positions in the batch, ascending. A rank's micro-batches
        begin with the dearest, so that those of the same number meet and memory runs out early if it does.

    Raises:
        `ValueError`: There are fewer samples than micro-batches, or a micro-batch would exceed `max_tokens`.
    """
    if not 1 <= ranks * micro_batches <= len(costs):
        raise ValueError(
            f"{len(costs)} samples cannot fill {ranks} ranks x {micro_batches} micro-batches, and a rank without a "
            "sample would hang the others. Raise the batch size or lower the gradient accumulation steps."
        )
    images = [False] * len(costs) if has_image is None else np.asarray(has_image, bool).tolist()
    plan = _plan(np.asarray(costs, np.float64).tolist(), images, ranks, micro_batches)
    if max_tokens is None or _most_tokens(plan, lengths) <= max_tokens:
        return plan
    # What is even in cost is not in tokens: attention and images count too.
    plan = _plan(np.asarray(lengths, np.float64).tolist(), images, ranks, micro_batches)
    if (needed := _most_tokens(plan, lengths)) > max_tokens:
        raise ValueError(
            f"A micro-batch needs {needed} tokens, `max_tokens` is {max_tokens}; the longest of these {len(lengths)} "
            f"samples has {np.max(lengths)}. Raise it, the gradient accumulation steps or the number of ranks."
        )
    return plan


class PlannedBatches(Sampler[list[int]]):
    """
    Micro-batches of one rank, for `DataLoader(batch_sampler=...)`; they are already those of the rank alone, so the
    sampler must not be sharded again.

    The order of an epoch is that of accelerate's `SeedableRandomSampler` with the same seed, cut into global batches.
    When the last one is incomplete but can fill every micro-batch, it is a smaller step, as in transformers. When it
    cannot, the step before lends it the samples it lacks, the last ones of its order. Samples are left out only if
    that step would then be too small itself, or with `drop_last`; `dropped` counts them, and each epoch leaves out
    others.

    With `max_tokens` an epoch is planned as a whole when it begins, so that a batch that does not fit stops the run
    before its first step and not hours later. A loader that resumes plans the steps that it skips, too, at less than
    two milliseconds each.

    Args:
        lengths (`np.ndarray`): (samples,) tokens, those of images included.
        has_image (`np.ndarray`): (samples,) bool; see [`assign`] for the places of samples without one.
        batch_size (`int`): Samples of an optimizer step, over all ranks and micro-batches.
        ranks (`int`): Processes that train.
        rank (`int`): Which of them this is.
        micro_batches (`int`): Gradient accumulation steps.
        seed (`int`): Of the order; the epoch is added to it.
        max_tokens (`int`, *optional*): Upper bound for the tokens of a micro-batch.
        drop_last (`bool`, defaults to `False`): Whether to leave out an incomplete last batch.

    Raises:
        `ValueError`: The numbers do not fit each other, no step can be made, or a sample is longer than `max_tokens`.
    """

    # No public `batch_size` or `drop_last`: accelerate reads them from a batch sampler and expects even batches then.

    def __init__(
        self,
        lengths: np.ndarray,
        has_image: np.ndarray,
        batch_size: int,
        ranks: int,
        rank: int,
        micro_batches: int,
        seed: int,
        max_tokens: int | None = None,
        drop_last: bool = False,
    ):
        self._lengths, self._has_image = np.asarray(lengths, np.int64), np.asarray(has_image, bool)
        samples, places = len(self._lengths), ranks * micro_batches
        if len(self._has_image) != samples:
            raise ValueError(f"`lengths` has {samples} samples, `has_image` has {len(self._has_image)}.")
        if not 0 <= rank < ranks:
            raise ValueError(f"`rank` must be from 0 to {ranks - 1}, got {rank}.")
        if micro_batches < 1 or batch_size < places:
            raise ValueError(
                f"`batch_size` must be at least ranks x micro-batches, got {batch_size} for {ranks} x {micro_batches}."
            )
        self._edges = _step_edges(samples, batch_size, places, drop_last)
        if len(self._edges) == 1:
            raise ValueError(
                f"{samples} samples make no step of {batch_size} for {ranks} ranks x {micro_batches} micro-batches "
                f"(`drop_last` is {drop_last}). Lower the batch size or the gradient accumulation steps."
            )
        longest = int(self._lengths.argmax())
        if max_tokens is not None and self._lengths[longest] > max_tokens:
            raise ValueError(
                f"Sample {longest} has {self._lengths[longest]} tokens, `max_tokens` is {max_tokens}. Raise it, or "
                "leave such samples out of the dataset."
            )
        self._costs = training_cost(self._lengths, self._has_image)
        self._ranks, self._rank, self._micro_batches = ranks, rank, micro_batches
        self._seed, self._max_tokens, self.epoch = seed, max_tokens, 0
        self.dropped = samples - self._edges[-1]
        if self.dropped and rank == 0:
            logger.warning("%d of %d samples are left out of every epoch, each time others.", self.dropped, samples)

    def set_epoch(self, epoch: int) -> None:
        """
        Choose the epoch that the next iteration goes through.

        Args:
            epoch (`int`): Its number, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of an epoch, the same number on every rank."""
        return (len(self._edges) - 1) * self._micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the dataset, a list for each micro-batch of this rank, in the order of the steps."""
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).numpy()
        batches = (order[begin:end] for begin, end in pairwise(self._edges))
        steps: Iterable[list[list[int]]] = map(self._own_part, batches)
        if self._max_tokens is not None:
            steps = list(steps)
        for step in steps:
            yield from step

    def _own_part(self, batch: np.ndarray) -> list[list[int]]:
        costs, lengths, has_image = self._costs[batch], self._lengths[batch], self._has_image[batch]
        plan = assign(costs, lengths, self._ranks, self._micro_batches, self._max_tokens, has_image)
        return [batch[positions].tolist() for positions in plan[self._rank]]


def _step_edges(samples: int, batch_size: int, places: int, drop_last: bool) -> list[int]:
    """Where steps begin and end in the order of an epoch."""
    edges = list(range(0, samples + 1, batch_size))
    rest = samples - edges[-1]
    if rest and not drop_last:
        if rest >= places:
            edges.append(samples)
        elif len(edges) > 1 and batch_size + rest >= 2 * places:
            edges[-1] = samples - places
            edges.append(samples)
    return edges


def _most_tokens(plan: Plan, lengths: np.ndarray) -> int:
    lengths = np.asarray(lengths)
    return max(int(lengths[positions].sum()) for rank in plan for positions in rank)


def _plan(cost: list[float], is_image: list[bool], ranks: int, micro_batches: int) -> Plan:
    plan = []
    for share in _share_out(list(range(len(cost))), cost, is_image, ranks, micro_batches):
        parts = _share_out(share, cost, is_image, micro_batches, 1)
        parts.sort(key=lambda part: -sum(cost[sample] for sample in part))
        plan.append([np.array(sorted(part)) for part in parts])
    return plan


def _share_out(
    samples: list[int], cost: list[float], is_image: list[bool], places: int, least: int
) -> list[list[int]]:
    """Split samples into `places` lists of nearly equal cost, each of `least` samples and, if there are, images."""
    if places == 1:
        return [samples]
    # Images first, so that they go round before the rest does; sorted, so that no round is far from even.
    order = sorted(samples, key=lambda sample: (not is_image[sample], cost[sample]))
    parts = [order[place::places] for place in range(places)]
    _exchange(parts, cost, is_image, least)
    return parts


def _exchange(parts: list[list[int]], cost: list[float], is_image: list[bool], least: int) -> None:
    """Let the heaviest place give a sample to a light one, for a cheaper one or nothing, while that evens them out."""
    loads = [sum(cost[sample] for sample in part) for part in parts]
    goal = sum(loads) / len(loads) * (1 + TOLERANCE)
    for _ in range(ROUNDS * len(parts)):
        heavy = loads.index(max(loads))
        if loads[heavy] <= goal:
            return
        given = parts[heavy]
        for light in sorted(range(len(parts)), key=loads.__getitem__)[:PARTNERS]:
            taken = parts[light]
            half = (loads[heavy] - loads[light]) / 2
            gain = np.subtract.outer([cost[sample] for sample in given], [*(cost[sample] for sample in taken), 0.0])
            miss = np.abs(gain - half)
            _forbid(miss, [is_image[sample] for sample in given], [is_image[sample] for sample in taken], least)
            first, second = divmod(int(miss.argmin()), len(taken) + 1)
            if miss[first, second] < half * (1 - TOLERANCE):
                break
        else:
            return
        taken.append(given.pop(first))
        if second < len(taken) - 1:
            given.append(taken.pop(second))
        loads[heavy] -= float(gain[first, second])
        loads[light] += float(gain[first, second])


def _forbid(miss: np.ndarray, given: list[bool], taken: list[bool], least: int) -> None:
    """Rule out exchanges that leave a place with fewer samples or images than `least`; the last column takes none."""
    if len(given) <= least:
        miss[:, -1] = np.inf
    if sum(given) <= least:
        miss[np.ix_(given, [not image for image in taken] + [True])] = np.inf
    if sum(taken) <= least:
        miss[np.ix_([not image for image in given], [*taken, False])] = np.inf
