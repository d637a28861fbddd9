"""MMBench-CN: [`evaluation.mmbench`] with its Chinese request for a letter, as a benchmark of its own name."""

from dataclasses import replace

from .base import OFFICIAL, Item, ScoreResult
from .mmbench import BENCHMARK_CN as BENCHMARK
from .mmbench import leftovers, options, parse, read_items, write_submission
from .mmbench import prompt_cn as prompt
from .mmbench import score as score_mmbench


__all__ = ["BENCHMARK", "leftovers", "options", "parse", "prompt", "read_items", "score", "write_submission"]


def score(items: list[Item], rule: str = OFFICIAL) -> ScoreResult:
    """
    CircularEval, see [`evaluation.mmbench.score`].

    Args:
        items (`list[dict]`): Rows with their responses, in any order.
        rule (`str`, defaults to `"official"`): How choices are read from answers.

    Returns:
        `ScoreResult`: As of MMBench.
    """
    return replace(score_mmbench(items, rule), benchmark=BENCHMARK.name)
