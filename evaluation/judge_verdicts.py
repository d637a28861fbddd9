"""
What judges decided, and whether figures may be made of it.

Figures are withheld while an answer is unjudged, where several models answered, and where more than a tenth of the
verdicts could not be read from replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from .base import OFFICIAL, Item, ScoreResult
from .judge_prompts import template_sha256


NONSENSE = 0.1  # share of verdicts that may be unreadable


@dataclass(frozen=True)
class Verdicts:
    """
    What judges decided, and how far that can be trusted.

    Args:
        benchmark (`str`): Name of the benchmark.
        total (`int`): Verdicts that are needed: one for each answer and run.
        judged (`int`): Verdicts that are there.
        unparsed (`int`): Of these, those that were put there because no reply could be read.
        models (`dict[str, int]`): Replies that count, by the model that gave them.
        others (`dict[str, int]`): Replies by other models in the transcript, which do not count.
        failure (`str`, *optional*): Why the judge gave no more replies.
        fields (`dict[int, dict]`): What each item gets, by its place; an item that lacks a verdict gets nothing.
        requests (`int`): Replies that came in this run.
    """

    benchmark: str
    total: int
    judged: int
    unparsed: int
    models: dict[str, int]
    others: dict[str, int]
    failure: str | None
    fields: dict[int, dict[str, Any]] = field(repr=False)
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Whether figures may be given (`bool`): all judged, by one model, nine tenths of it readable."""
        return self.judged == self.total and len(self.models) <= 1 and not self._nonsense

    @property
    def _nonsense(self) -> bool:
        return self.unparsed > NONSENSE * self.judged

    @property
    def flags(self) -> list[str]:
        """What a reader of figures must know (`list[str]`)."""
        found = []
        if self.judged < self.total:
            found.append(f"{self.judged} of {self.total} judged: {self.failure or 'the judge was not asked'}")
        if self.unparsed:
            weight = ", too many for a figure" if self._nonsense else ""
            found.append(f"{self.unparsed} of {self.judged} verdicts could not be read from replies{weight}")
        if len(self.models) > 1:
            found.append(f"the judge changed: {_listed(self.models)}; ask one of them by its own name")
        if self.others:
            found.append(f"replies by other judges do not count: {_listed(self.others)}")
        return found

    def to_json(self) -> dict[str, Any]:
        """
        For reports.

        Returns:
            `dict`: `judged` (n of n), `unparsed`, `models`, `flags`, `prompt_sha256` of the official texts.
        """
        facts = {"judged": f"{self.judged} of {self.total}", "unparsed": self.unparsed, "models": self.models}
        return {**facts, "flags": self.flags, "prompt_sha256": template_sha256(self.benchmark)}

    def apply(self, items: Sequence[Item]) -> list[Item]:
        """
        Items with their verdicts.

        Args:
            items (`Sequence[dict]`): Those that were judged, in the same order.

        Returns:
            `list[dict]`: Copies.
        """
        return [{**item, **self.fields.get(place, {})} for place, item in enumerate(items)]

    def score(
        self, module: ModuleType, items: Sequence[Item], rule: str = OFFICIAL, allow_partial: bool = False
    ) -> ScoreResult:
        """
        Score the items with their verdicts.

        Args:
            module (`ModuleType`): Of the benchmark.
            items (`Sequence[dict]`): Those that were judged, in the same order.
            rule (`str`, defaults to `"official"`): Scoring rule.
            allow_partial (`bool`, defaults to `False`): Give figures although they should be withheld.

        Returns:
            `ScoreResult`: See [`Verdicts.guard`].
        """
        partial = {"allow_partial": allow_partial} if module.BENCHMARK.judge else {}
        return self.guard(module.score(self.apply(items), rule, **partial), allow_partial)

    def guard(self, result: ScoreResult, allow_partial: bool = False) -> ScoreResult:
        """
        Withhold figures that the verdicts do not carry.

        Args:
            result (`ScoreResult`): Of items with their verdicts.
            allow_partial (`bool`, defaults to `False`): Give them nevertheless.

        Returns:
            `ScoreResult`: With `judge` in its breakdown, and `to_judge`, `judged` and `judge_unparsed` in its counts;
            the headline `None` and no other breakdown where it is withheld.
        """
        counts = {**result.counts, "to_judge": self.total, "judged": self.judged, "judge_unparsed": self.unparsed}
        breakdown = {**result.breakdown, "judge": self.to_json()}
        if self.complete or allow_partial:
            return replace(result, breakdown=breakdown, counts=counts)
        return replace(
            result, headline=dict.fromkeys(result.headline), breakdown={"judge": self.to_json()}, counts=counts
        )


def _listed(models: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in models.items())
