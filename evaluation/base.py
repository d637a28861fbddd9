"""
What every benchmark module has, and what scoring gives back.

A benchmark is data (a [`Benchmark`]) and a few pure functions in a module of its name:

- `prompt(row)`: the text that a model is asked, after its image;
- `parse(response, row)`: what an answer is taken for, by the official rule;
- `score(items, rule)`: a [`ScoreResult`] of items, which are rows with the model's `response`; the order of items and
  rows that are left out of a file (`response` is `None`) are part of the official rules;
- `read_items(predictions, references)`: items from the files that the official scorer reads.

Scoring is separate from generating, so figures are computed again without asking a model again.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


Item = dict[str, Any]  # a row of the benchmark with `response`: text, or `None` where there is no answer
Figures = dict[str, Any]
OFFICIAL = "official"
# What LLaVA's and ShareGPT4V's scripts append to a question (haotian-liu/LLaVA@c121f043, docs/Evaluation.md).
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark as data.

    Args:
        name (`str`): How commands call it.
        title (`str`): Its name in tables.
        column (`str`, *optional*): Its column in Table 3 of the paper; `None` for one that is not there.
        dataset (`str`): Id on the Hub.
        config (`str`, *optional*): Configuration of the dataset.
        split (`str`): The split that the paper's figure is of, or the nearest whose labels are public.
        fields (`dict[str, str]`): Columns of a row, with what they hold.
        questions (`int`): Rows of that split.
        images (`str`): How ShareGPT4V's script brings an image to a square: `pad`, or `crop` (centre crop).
        max_new_tokens (`int`): Bound of an answer in that script.
        rules (`tuple[str, ...]`): Names of the scoring rules, the official one first.
        judge (`bool`): Whether answers are graded by a language model.
        images_config (`str`): Configuration that has the images by `id`, where they are not in the rows.
        submission (`str`): Name of the file that the benchmark's server takes; empty where there is none.
        note (`str`): What a figure of this split is not comparable to, or where it is submitted.
    """

    name: str
    title: str
    column: str | None
    dataset: str
    split: str
    fields: dict[str, str]
    questions: int
    config: str | None = None
    images: Literal["pad", "crop"] = "pad"
    max_new_tokens: int = 128
    rules: tuple[str, ...] = (OFFICIAL,)
    judge: bool = False
    images_config: str = ""
    submission: str = ""
    note: str = ""

    def check_rule(self, rule: str) -> None:
        """
        Refuse a rule that the benchmark has not.

        Args:
            rule (`str`): Name of the rule.

        Raises:
            `ValueError`: There is no such rule.
        """
        if rule not in self.rules:
            raise ValueError(f"{self.name} has no rule {rule!r}. Choose among {', '.join(self.rules)}.")


@dataclass(frozen=True)
class ScoreResult:
    """
    What a scorer found.

    Args:
        benchmark (`str`): Its name.
        headline (`dict[str, float]`): Official figures by their official names, in official units and rounding.
        breakdown (`dict`): Figures by category, by official names.
        counts (`dict[str, int]`): Rows: `questions`, `answered`, `missing`, `unparsed`, `duplicates` and what else
            says how far the figures can be trusted.
        rule (`str`, defaults to `"official"`): Scoring rule.
        scores (`list[float]`, *optional*): Of each item in its order, where the figure is a mean of them.
    """

    benchmark: str
    headline: Figures
    breakdown: Figures
    counts: dict[str, int]
    rule: str = OFFICIAL
    scores: list[float | None] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        """
        The figures.

        Returns:
            `dict`: `benchmark`, `headline`, `breakdown`, `counts`, `rule`.
        """
        named = {"benchmark": self.benchmark, "headline": self.headline, "breakdown": self.breakdown}
        return {**named, "counts": self.counts, "rule": self.rule}
