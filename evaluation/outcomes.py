"""
What each question, image or group adds to a figure, so that figures can be drawn again from others of their kind.

An official figure is a function of sums over units: a mean of scores, MME's sum over tasks of means over images, the
mean over categories of F1 in POPE, the ratio of two means in LLaVA-Bench. Units are what the official rule holds
together (both questions of an image in MME, all rotations of a question in MMBench), and where it averages over tasks
or categories those keep their sizes. Outcomes are kept in `out/<benchmark>/outcomes.json`, beside the predictions that
they are of.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import mme, pope
from .base import Item, ScoreResult
from .join import is_answered
from .rows import id_of


FILE = "outcomes.json"
Statistic = Literal["mean", "sum_of_means", "mean_f1", "ratio"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """
    Units of one figure.

    Args:
        statistic (`str`): How their sums make the figure: `mean` and `sum_of_means` (of the first value), `mean_f1`
            (values are true, false and missed positives, and whether the answer is right) or `ratio` (of the second
            value to the first, in percent).
        unit (`str`): What one is called.
        names (`list[str]`): Each once.
        strata (`list[str]`): Task or category of each, within which it is drawn; empty where there are none.
        values (`ndarray`): A row for each unit.
        binary (`bool`, defaults to `False`): Whether a unit is right or wrong and nothing between.
    """

    statistic: Statistic
    unit: str
    names: list[str]
    strata: list[str]
    values: Numbers
    binary: bool = False

    def scores(self) -> Numbers:
        """
        What each unit is worth by itself.

        Returns:
            `ndarray`: For `mean_f1` whether it is right, for `ratio` the model's rating.
        """
        return self.values[:, {"mean": 0, "sum_of_means": 0, "mean_f1": 3, "ratio": 1}[self.statistic]]

    def figure(self) -> float:
        """
        The figure, without the official rounding.

        Returns:
            `float`: NaN where it is none.
        """
        groups = self.groups()
        sums = np.stack([self.values[places].sum(axis=0) for places in groups])[None]
        return float(figures_of(self.statistic, sums, np.array([len(places) for places in groups]))[0])

    def groups(self) -> list[NDArray[np.intp]]:
        """
        Places of the units of each stratum.

        Returns:
            `list[ndarray]`: Units by name and strata by name, so that the order of a file does not matter.
        """
        order = np.array(sorted(range(len(self.names)), key=lambda place: self.names[place]), dtype=np.intp)
        strata = np.array(self.strata)[order]
        return [order[strata == name] for name in sorted(set(self.strata))]

    def to_json(self) -> dict[str, Any]:
        """
        For the file.

        Returns:
            `dict`: All fields.
        """
        columns = {"names": self.names, "strata": self.strata, "values": self.values.tolist()}
        return {"statistic": self.statistic, "unit": self.unit, "binary": self.binary, **columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcomes":
        """
        From the file.

        Args:
            data (`dict`): What `to_json` gave.

        Returns:
            `Outcomes`: The same.
        """
        return cls(**{**data, "values": np.array(data["values"], dtype=np.float64)})


def figures_of(statistic: Statistic, sums: Numbers, sizes: NDArray[np.intp]) -> Numbers:
    """
    Figures of many samples at once.

    Args:
        statistic (`str`): See [`Outcomes`].
        sums (`ndarray`): Sums of the values, of shape (samples, strata, values).
        sizes (`ndarray`): Units in each stratum.

    Returns:
        `ndarray`: Of shape (samples,).
    """
    if statistic == "mean":
        return sums[:, :, 0].sum(axis=1) / sizes.sum()
    if statistic == "sum_of_means":
        return (sums[:, :, 0] / sizes).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if statistic == "ratio":
            ratios: Numbers = 100 * sums[:, :, 1].sum(axis=1) / sums[:, :, 0].sum(axis=1)
            return np.where(np.isfinite(ratios), ratios, np.nan)
        whole = 2 * sums[:, :, 0] + sums[:, :, 1] + sums[:, :, 2]
        return np.where(whole > 0, 2 * sums[:, :, 0] / whole, 0.0).mean(axis=1)  # 0 of 0 is 0, as POPE's scorer has it


def outcomes_of(name: str, items: list[Item], result: ScoreResult) -> dict[str, Outcomes]:
    """
    Units of each figure of a benchmark.

    Args:
        name (`str`): The benchmark.
        items (`list[dict]`): What was scored, in its order.
        result (`ScoreResult`): Its figures, for the scores of items.

    Returns:
        `dict[str, Outcomes]`: By figure of the headline; one without units (a deviation, a list of runs, the ratings
        of the reference) is left out.
    """
    special: dict[str, Callable[[list[Item]], dict[str, Outcomes]]]
    special = {"mme": _of_mme, "pope": _of_pope, "llava_bench": _of_llava_bench}
    if name in special:
        return special[name](items)
    names, scores = _names(items), result.scores
    if not scores:
        raise ValueError(f"{name} has no scores of single items, and there is no other rule to draw them again.")
    scored = [place for place, score in enumerate(scores) if score is not None]
    unit = "group" if name.startswith("mmbench") else "question"
    binary = name in ("seed", "scienceqa", "qbench", "mmbench", "mmbench_cn", "gqa")

    def mean(places: list[int]) -> Outcomes:
        values = [[float(scores[place] or 0.0)] for place in places]
        return _outcomes("mean", unit, [names[place] for place in places], values, binary=binary)

    if name == "seed":
        kinds = {kind: [one for one in scored if items[one]["data_type"] == kind] for kind in ("image", "video")}
        chosen = {"Total accuracy": scored} | {f"{kind} accuracy": places for kind, places in kinds.items()}
    elif name == "scienceqa":
        shown = [one for one in scored if is_answered(items[one]) and _shows_image(items[one])]
        chosen = {"accuracy": scored, "img_accuracy": shown}
    else:
        chosen = {next(iter(result.headline)): scored}
    return {figure: mean(places) for figure, places in chosen.items() if places}


def write_outcomes(folder: Path, facts: dict[str, Any], outcomes: dict[str, Outcomes]) -> None:
    """
    Keep outcomes beside the predictions that they are of.

    Args:
        folder (`Path`): Of the benchmark.
        facts (`dict`): What they depend on, such as `provenance`, `rule` and `judge`.
        outcomes (`dict[str, Outcomes]`): By figure.
    """
    figures = {figure: one.to_json() for figure, one in outcomes.items()}
    write_whole(folder / FILE, json.dumps({**facts, "figures": figures}) + "\n")


def read_outcomes(folder: Path) -> tuple[dict[str, Any], dict[str, Outcomes]]:
    """
    Read outcomes.

    Args:
        folder (`Path`): Of the benchmark.

    Returns:
        `tuple[dict, dict[str, Outcomes]]`: What they depend on, and outcomes by figure.

    Raises:
        `FileNotFoundError`: There are none yet.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}. Score the evaluation first.")
    facts = json.loads(path.read_text(encoding="utf-8"))
    return facts, {figure: Outcomes.from_json(one) for figure, one in facts.pop("figures").items()}


def write_whole(path: Path, text: str) -> None:
    """
    Write a file that is whole or as it was.

    Args:
        path (`Path`): The file; its folder is made.
        text (`str`): Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _outcomes(
    statistic: Statistic,
    unit: str,
    names: list[str],
    values: list[list[float]],
    strata: list[str] | None = None,
    binary: bool = False,
) -> Outcomes:
    array = np.array(values, dtype=np.float64).reshape(len(names), -1)
    return Outcomes(statistic, unit, names, strata or [""] * len(names), array, binary)


def _of_mme(items: list[Item]) -> dict[str, Outcomes]:
    by_task: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_task[item["category"]].append(item)
    found: dict[str, Outcomes] = {}
    for figure, tasks in (("perception_total", mme.PERCEPTION), ("cognition_total", mme.COGNITION)):
        images = [(task, pair) for task in tasks if task in by_task for pair in _pairs(by_task[task])]
        if images:
            names = _once([pair[0]["question_id"] for _, pair in images])
            values = [[mme.score(pair).breakdown["tasks"][task]] for task, pair in images]
            strata = [task for task, _ in images]
            found[figure] = _outcomes("sum_of_means", "image", names, values, strata)
    return found


def _pairs(items: list[Item]) -> list[list[Item]]:
    """Images of a task, as the scorer pairs rows: by name, or one after the other where a name has not just two."""
    by_image: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_image[item["question_id"]].append(item)
    if all(len(pair) == 2 for pair in by_image.values()):
        return list(by_image.values())
    return [items[start : start + 2] for start in range(0, len(items), 2)]


def _of_pope(items: list[Item]) -> dict[str, Outcomes]:
    answered = [item for item in items if is_answered(item)]
    if not answered:
        return {}
    values = []
    for item in answered:
        said, true = pope.parse(item["response"]) == "yes", item["answer"] != "no"
        values.append([float(one) for one in (said and true, said and not true, true and not said, said == true)])
    names = _once([f"{item['category']}/{item['question_id']}" for item in answered])
    strata = [item["category"] for item in answered]
    return {"f1_score": _outcomes("mean_f1", "question", names, values, strata, binary=True)}


def _of_llava_bench(items: list[Item]) -> dict[str, Outcomes]:
    judged = [place for place, item in enumerate(items) if item.get("tuple") is not None]
    if not judged:
        return {}
    every = _names(items)
    names = [every[place] for place in judged]
    ratings = [[float(rating) for rating in items[place]["tuple"]] for place in judged]
    return {
        "relative": _outcomes("ratio", "question", names, ratings),
        "model": _outcomes("mean", "question", names, [[10 * model] for _, model in ratings]),
    }


def _names(items: list[Item]) -> list[str]:
    return _once([id_of(item, place) for place, item in enumerate(items)])


def _once(names: list[str]) -> list[str]:
    """Names that tell apart what has the same id, such as SEED-Bench's two questions 49914."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _shows_image(item: Item) -> bool:
    return bool(item["has_image"]) if "has_image" in item else item.get("image") is not None
