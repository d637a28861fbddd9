"""
Two models on the same questions: how far apart they are, and whether that could be chance.

The bootstrap draws the same questions for both. Where an answer is right or wrong and nothing between, McNemar's exact
test (https://doi.org/10.1007/BF02295996) asks whether the questions that only one of them gets right are divided as a
fair coin would.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from .bootstrap import LEVEL, RESAMPLES, SEED, Interval, paired_difference
from .catalogue import NAMES
from .outcomes import FILE, Outcomes, read_outcomes
from .predictions import read_predictions
from .results import COUNTED, RUN_FACTS, read_run


NAMED = 3  # questions that a message names


def compare(out_a: Path, out_b: Path, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Any]:
    """
    Compare two evaluations in pairs.

    Args:
        out_a (`Path`): Folder of the first, scored.
        out_b (`Path`): Folder of the second, scored.
        resamples (`int`, defaults to 1000): How often units are drawn.
        seed (`int`, defaults to 0): Of the draws.

    Returns:
        `dict`: `a` and `b` (what answered), `benchmarks` with `figures` (`a`, `b`, `difference` a minus b, `low`,
        `high`, `n`, `unit`, `wins`, `losses`, `ties` and `mcnemar`) and `notes`, and `only_a` and `only_b`.

    Raises:
        `FileNotFoundError`: An evaluation is not scored.
        `ValueError`: Questions, scoring rule or judge differ; the message names them.
    """
    names_a, names_b = _scored(out_a), _scored(out_b)
    common = [name for name in names_a if name in names_b]
    if not common:
        raise ValueError(f"{out_a} has {', '.join(names_a)}, and {out_b} {', '.join(names_b)}: none in common.")
    benchmarks = {name: _compared(name, out_a / name, out_b / name, resamples, seed) for name in common}
    return {
        "a": _model(out_a / common[0]),
        "b": _model(out_b / common[0]),
        "bootstrap": {"level": LEVEL, "resamples": resamples, "seed": seed},
        "benchmarks": benchmarks,
        "only_a": [name for name in names_a if name not in names_b],
        "only_b": [name for name in names_b if name not in names_a],
    }


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """
    McNemar's exact test.

    Args:
        one (`ndarray`): What each unit is worth to the first model: 0, or more where it is right.
        other (`ndarray`): To the second.

    Returns:
        `dict`: `only_a` and `only_b` (units that only one gets right) and the two-sided `p`; 1 where there are none.
    """
    only_one, only_other = int(((one > 0) & (other == 0)).sum()), int(((other > 0) & (one == 0)).sum())
    discordant = only_one + only_other
    p = float(binomtest(only_one, discordant, 0.5).pvalue) if discordant else 1.0
    return {"only_a": only_one, "only_b": only_other, "p": p}


def _scored(out: Path) -> list[str]:
    found = [name for name in NAMES if (out / name / FILE).is_file()]
    if not found:
        raise FileNotFoundError(f"{out} has no scored benchmark. Score the evaluation first.")
    return found


def _model(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in read_run(folder).items() if name not in (*RUN_FACTS, *COUNTED)}


def _compared(name: str, folder_a: Path, folder_b: Path, resamples: int, seed: int) -> dict[str, Any]:
    (facts_a, outcomes_a), (facts_b, outcomes_b) = read_outcomes(folder_a), read_outcomes(folder_b)
    runs = read_run(folder_a), read_run(folder_b)
    for folder, run, facts in ((folder_a, runs[0], facts_a), (folder_b, runs[1], facts_b)):
        if run["provenance"] != facts["provenance"]:
            raise ValueError(f"{folder} was run again after it was scored. Score the evaluation first.")
    notes = _check_questions(name, folder_a, folder_b, runs)
    if facts_a["rule"] != facts_b["rule"]:
        raise ValueError(f"{name}: one is scored by {facts_a['rule']!r}, the other by {facts_b['rule']!r}.")
    _check_judges(name, facts_a["judge"], facts_b["judge"])
    figures = {}
    for figure in dict.fromkeys([*outcomes_a, *outcomes_b]):
        if figure not in outcomes_a or figure not in outcomes_b:
            notes.append(f"{figure} is withheld for one of the two")
            continue
        one, other, left_out = _on_common_units(outcomes_a[figure], outcomes_b[figure])
        if left_out:
            notes.append(f"{figure}: {left_out} units that only one of the two has are left out")
        if one.names:
            figures[figure] = _figure(one, other, resamples, seed)
    return {"figures": figures, "notes": notes}


def _check_questions(name: str, folder_a: Path, folder_b: Path, runs: tuple[dict[str, Any], ...]) -> list[str]:
    """Refuse different questions; what else is asked differently is a note."""
    run_a, run_b = runs
    if (run_a["rows"], run_a["questions"]) != (run_b["rows"], run_b["questions"]):
        a, b = ({(row["index"], row["id"]): row for row in read_predictions(one)} for one in (folder_a, folder_b))
        lone = [key for key in [*a, *b] if (key in a) != (key in b)]
        other = [key for key in a if key in b and a[key]["prompt"] != b[key]["prompt"]]
        if lone:
            what = f"{len(lone)} are in one of them only, first {_named(lone)}"
        elif other:
            what = f"{len(other)} have the same id and another text, first {_named(other)}"
        else:
            what = "texts and ids are the same, and references or other fields of the rows differ"
        raise ValueError(
            f"{name}: {folder_a} has {run_a['questions']} questions and {folder_b} {run_b['questions']}, and they are "
            f"not the same: {what}. Run both on the same data and limit."
        )
    notes = []
    if run_a["prompts"] != run_b["prompts"]:
        notes.append("the questions were put in other words to one of the two")
    if run_a["images"] != run_b["images"]:
        notes.append(f"images were prepared as {run_a['images']} and as {run_b['images']}")
    return notes


def _check_judges(name: str, a: dict[str, Any] | None, b: dict[str, Any] | None) -> None:
    for field, what in (("name", "judge"), ("prompt_sha256", "prompt of the judge"), ("demo", "kind of judge")):
        one, other = (a or {}).get(field), (b or {}).get(field)
        if one != other:
            raise ValueError(f"{name}: the {what} differs, {one} and {other}. Judge both by the same.")


def _named(keys: list[tuple[int, str]]) -> str:
    return ", ".join(f"{identity!r} (row {index})" for index, identity in islice(keys, NAMED))


def _on_common_units(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes, int]:
    """Both in the order of the first, without units that the other lacks."""
    places = {name: place for place, name in enumerate(b.names)}
    kept = [place for place, name in enumerate(a.names) if name in places]
    left_out = len(a.names) + len(b.names) - 2 * len(kept)
    return _chosen(a, kept), _chosen(b, [places[a.names[place]] for place in kept]), left_out


def _chosen(outcomes: Outcomes, places: list[int]) -> Outcomes:
    names = [outcomes.names[place] for place in places]
    strata = [outcomes.strata[place] for place in places]
    return Outcomes(outcomes.statistic, outcomes.unit, names, strata, outcomes.values[places], outcomes.binary)


def _figure(a: Outcomes, b: Outcomes, resamples: int, seed: int) -> dict[str, Any]:
    difference, found = paired_difference(a, b, resamples, seed)
    ends: Interval | None = found
    one, other = a.scores(), b.scores()
    return {
        "a": a.figure(),
        "b": b.figure(),
        "difference": difference,
        "low": None if ends is None else ends.low,
        "high": None if ends is None else ends.high,
        "n": len(a.names),
        "unit": a.unit,
        "wins": int((one > other).sum()),
        "losses": int((one < other).sum()),
        "ties": int((one == other).sum()),
        "mcnemar": mcnemar(one, other) if a.binary else None,
    }
