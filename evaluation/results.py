"""
All figures of an evaluation in one file, each with what it is of and how far it can be trusted.

`out/results.json` has `model` (what answered), `bootstrap` (how intervals were drawn) and, for each of `benchmarks`,
`headline`, `breakdown` and `counts` in official names and units, the scoring `rule`, `questions` of how many in the
split, `limited` (a toy run), `intervals`, `judge`, `withheld`, `categories`, `wrong_answers` and facts of the `run`.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .base import Benchmark, Item, ScoreResult
from .bootstrap import LEVEL, RESAMPLES, SEED, interval
from .categories import categories_of
from .files import read_json_lines
from .judge_prompts import FIELDS
from .outcomes import Outcomes, outcomes_of, write_outcomes, write_whole
from .predictions import read_predictions
from .rows import Rows
from .runner import JUDGEMENTS, RUN, items_of
from .wrong_answers import wrong_answers


logger = logging.getLogger(__name__)
FILE = "results.json"
RUN_FACTS = ("rows", "prompts", "images", "max_new_tokens", "provenance", "options", "versions", "world")
COUNTED = ("benchmark", "questions", "of")
# By how much an official figure may be rounded; LLaVA-Bench rounds means to three decimals, their ratio to one.
ROUNDED = {"seed": 0.006, "scienceqa": 0.006, "vqav2": 0.006, "vizwiz": 0.006, "textvqa": 0.006, "gqa": 0.006}
ROUNDED |= {"mmvet": 0.06, "llava_bench": 0.1}
EXACT = 1e-6
DEMO = "demo"


def facts_of(rows: Rows, out: Path, benchmark: Benchmark, judge: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    What [`collect`] needs of a benchmark beside its figures.

    Args:
        rows (`Rows`): Its questions.
        out (`Path`): Folder of the evaluation, scored.
        benchmark (`Benchmark`): Which one.
        judge (`dict`, *optional*): What the figures' breakdown and the judge's transcript do not say: `demo` for one
            that grades by a rule for show. A judge whose name begins with `demo` is one anyway.

    Returns:
        `dict`: `items` as they were scored, verdicts included, and `judge`.
    """
    folder = out / benchmark.name
    predictions = read_predictions(folder)
    items = items_of(rows, predictions)
    for item, prediction in zip(items, predictions, strict=True):
        if prediction.get("judge") is not None:
            item[FIELDS[benchmark.name]] = prediction["judge"]
    judge = {**({"date": date} if (date := _judged_on(folder)) else {}), **(judge or {})} or None
    return {"items": items, "judge": judge}


def collect(
    out: Path,
    scored: list[tuple[Benchmark, ScoreResult, dict[str, Any]]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """
    Put together what an evaluation found; writes each benchmark's outcomes, by which two models are compared.

    Args:
        out (`Path`): Folder of the evaluation.
        scored (`list[tuple[Benchmark, ScoreResult, dict]]`): Each with the facts of [`facts_of`].
        resamples (`int`, defaults to 1000): How often units are drawn for an interval.
        seed (`int`, defaults to 0): Of the draws.

    Returns:
        `dict`: Ready for JSON.

    Raises:
        `FileNotFoundError`: A benchmark was not run to its end.
        `ValueError`: Benchmarks were answered by different models, or there is none.
    """
    if not scored:
        raise ValueError("There is nothing to report: score at least one benchmark.")
    model: dict[str, Any] = {}
    benchmarks = {}
    for benchmark, result, facts in scored:
        run = read_run(out / benchmark.name)
        own = {name: value for name, value in run.items() if name not in (*RUN_FACTS, *COUNTED)}
        if model and own != model:
            raise ValueError(
                f"{out / benchmark.name} was answered by {own}, other benchmarks by {model}. Run one of them again, "
                "or use a folder for each model."
            )
        model = own
        benchmarks[benchmark.name] = _entry(out, benchmark, result, facts, run, resamples, seed)
    bootstrap = {"level": LEVEL, "resamples": resamples, "seed": seed}
    return {"model": model, "bootstrap": bootstrap, "benchmarks": benchmarks}


def write_results(out: Path, results: dict[str, Any]) -> Path:
    """
    Write `results.json`.

    Args:
        out (`Path`): Folder of the evaluation.
        results (`dict`): What [`collect`] gave.

    Returns:
        `Path`: The file, whole or as it was.
    """
    write_whole(out / FILE, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return out / FILE


def read_results(out: Path) -> dict[str, Any]:
    """
    Read `results.json`.

    Args:
        out (`Path`): Folder of the evaluation.

    Returns:
        `dict`: What [`collect`] gave.

    Raises:
        `FileNotFoundError`: There is none.
    """
    if not (out / FILE).is_file():
        raise FileNotFoundError(f"{out} has no {FILE}. Score the evaluation first.")
    return json.loads((out / FILE).read_text(encoding="utf-8"))


def read_run(folder: Path) -> dict[str, Any]:
    """
    Read how a benchmark was run.

    Args:
        folder (`Path`): Of the benchmark.

    Returns:
        `dict`: Facts of the run.

    Raises:
        `FileNotFoundError`: The benchmark was not run to its end.
    """
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"{folder} has no {RUN}. Run the evaluation to its end first.")
    return json.loads((folder / RUN).read_text(encoding="utf-8"))


def _entry(
    out: Path,
    benchmark: Benchmark,
    result: ScoreResult,
    facts: dict[str, Any],
    run: dict[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    items: list[Item] = facts["items"]
    judge = _judge(benchmark, result, facts.get("judge"))
    outcomes = outcomes_of(benchmark.name, items, result)
    shown = {figure: one for figure, one in outcomes.items() if result.headline.get(figure) is not None}
    intervals, without = _intervals(result, shown, resamples, seed)
    depends = {"benchmark": benchmark.name, "rule": result.rule, "provenance": run["provenance"], "judge": judge}
    write_outcomes(out / benchmark.name, depends, shown)
    told = {name: value for name, value in asdict(benchmark).items() if name not in ("name", "fields", "questions")}
    return {
        **told,
        "rule": result.rule,
        "headline": result.headline,
        "breakdown": {name: value for name, value in result.breakdown.items() if name != "judge"},
        "counts": result.counts,
        "questions": run["questions"],
        "of": benchmark.questions,
        "limited": run["questions"] < run["of"] or run["questions"] < benchmark.questions,
        "figures": list(outcomes) or [name for name in result.headline if name not in ("std", "runs", "gpt4")],
        "intervals": intervals,
        "without_interval": without,
        "judge": judge,
        "withheld": _withheld(result, judge),
        "categories": categories_of(benchmark.name, items, result),
        "wrong_answers": wrong_answers(benchmark.name, items, result, seed=seed),
        "run": {name: run[name] for name in RUN_FACTS if name in run},
    }


def _intervals(
    result: ScoreResult, outcomes: dict[str, Outcomes], resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Intervals of figures, and why a figure has none."""
    intervals, without = {}, {}
    for figure, one in outcomes.items():
        official, again = result.headline[figure], one.figure()
        if not abs(official - again) <= ROUNDED.get(result.benchmark, EXACT):
            without[figure] = f"its units give {again:.4f} and the official rule gives {official}"
            logger.warning("%s, %s: no interval, as %s.", result.benchmark, figure, without[figure])
            continue
        found = interval(one, resamples, seed)
        if found is None:
            without[figure] = "some draws have no figure"
        else:
            intervals[figure] = found.to_json()
    return intervals, without


def _judge(benchmark: Benchmark, result: ScoreResult, told: dict[str, Any] | None) -> dict[str, Any] | None:
    """Who judged, from the figures and from what was told beside them; `None` where nothing was to be judged."""
    facts = {**(result.breakdown.get("judge") or {}), **(told or {})}
    counts = result.counts
    total = counts.get("to_judge", counts.get("judged", 0) + counts.get("unjudged", 0))
    name = facts.get("name") or ", ".join(facts.get("models", {})) or None
    if not benchmark.judge and (not facts or (not total and name is None)):
        return None
    demo = bool(facts.get("demo")) or str(name).lower().startswith(DEMO)
    judged = f"{counts.get('judged', 0)} of {total}"
    known: dict[str, Any] = {"flags": [], "models": {}, "unparsed": counts.get("unparsed", 0), "judged": judged}
    return {"date": None, "prompt_sha256": None, **known, **facts, "name": name, "demo": demo}


def _judged_on(folder: Path) -> str | None:
    """When a judge replied last, by its transcript."""
    path = folder / JUDGEMENTS
    if not path.is_file():
        return None
    dates = [row["date"] for row in read_json_lines(path) if isinstance(row.get("date"), str)]
    return max(dates, default=None)


def _withheld(result: ScoreResult, judge: dict[str, Any] | None) -> str | None:
    if any(value is not None for value in result.headline.values()):
        return None
    if judge is None:
        return "there is no figure"
    return "; ".join(judge["flags"]) or f"{judge['judged']} judged"
