"""
How far a figure would move with other questions: percentile bootstrap (Efron, https://doi.org/10.1214/aos/1176344552).

Units are drawn with replacement within their stratum, with the same seed each time. Two models are compared on the
same draws, so what makes questions easy or hard for both cancels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .outcomes import Numbers, Outcomes, figures_of


LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
DIGITS = 6
CHUNK = 1 << 22  # units drawn at a time; bounds memory for VQA's 214,354 questions


@dataclass(frozen=True)
class Interval:
    """
    Where a figure lies.

    Args:
        low (`float`): Lower end.
        high (`float`): Upper end.
        n (`int`): Units that were drawn from.
        unit (`str`): What they are.
    """

    low: float
    high: float
    n: int
    unit: str

    def to_json(self) -> dict[str, Any]:
        """
        For reports.

        Returns:
            `dict`: All fields, and `flat` where both ends are one, which says that the sample has no spread and not
            that the figure is certain.
        """
        return {**self.__dict__, "flat": self.low == self.high}


def interval(outcomes: Outcomes, resamples: int = RESAMPLES, seed: int = SEED) -> Interval | None:
    """
    95 % interval of a figure.

    Args:
        outcomes (`Outcomes`): Its units.
        resamples (`int`, defaults to 1000): How often they are drawn.
        seed (`int`, defaults to 0): Of the draws.

    Returns:
        `Interval`, *optional*: `None` where a draw has no figure (a ratio to nothing).
    """
    sums, sizes = _resampled_sums(outcomes.groups(), outcomes.values, resamples, seed)
    return _percentiles(figures_of(outcomes.statistic, sums, sizes), outcomes)


def paired_difference(
    one: Outcomes, other: Outcomes, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, Interval | None]:
    """
    How much a figure of one model is above that of another, on the same units.

    Args:
        one (`Outcomes`): Of the first model.
        other (`Outcomes`): Of the second, with the same names in the same order.
        resamples (`int`, defaults to 1000): How often they are drawn.
        seed (`int`, defaults to 0): Of the draws.

    Returns:
        `tuple[float, Interval | None]`: First minus second, and its 95 % interval.

    Raises:
        `ValueError`: The units are different ones.
    """
    if one.names != other.names or one.strata != other.strata or one.statistic != other.statistic:
        raise ValueError("Only the same units can be compared in pairs.")
    both = np.concatenate([one.values, other.values], axis=1)
    sums, sizes = _resampled_sums(one.groups(), both, resamples, seed)
    width = one.values.shape[1]
    differences = figures_of(one.statistic, sums[:, :, :width], sizes)
    differences = differences - figures_of(one.statistic, sums[:, :, width:], sizes)
    return one.figure() - other.figure(), _percentiles(differences, one)


def _resampled_sums(
    groups: list[NDArray[np.intp]], values: Numbers, resamples: int, seed: int
) -> tuple[Numbers, NDArray[np.intp]]:
    """Sums of drawn values (resamples, strata, values), and the sizes of the strata."""
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, len(groups), values.shape[1]))
    for stratum, places in enumerate(groups):
        own, size = values[places], len(places)
        step = max(1, CHUNK // size)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            drawn = generator.integers(0, size, (count, size), dtype=np.int32)
            for column in range(values.shape[1]):
                sums[start : start + count, stratum, column] = own[:, column][drawn].sum(axis=1)
    return sums, np.array([len(places) for places in groups], dtype=np.intp)


def _percentiles(figures: Numbers, outcomes: Outcomes) -> Interval | None:
    if np.isnan(figures).any():
        return None
    tail = (1 - LEVEL) / 2
    low, high = (round(float(end), DIGITS) + 0.0 for end in np.quantile(figures, (tail, 1 - tail)))
    return Interval(low, high, len(outcomes.names), outcomes.unit)
