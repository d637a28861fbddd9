"""Figures of a benchmark by category, each with how many questions it is of, for plots."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from . import llava_bench, mmvet, seed
from .base import Figures, Item, ScoreResult


Bars = dict[str, dict[str, float | int]]
TOTALS = ("total", "std", "runs", "all")  # beside categories in the official figures, and none themselves
PERCENT = 100.0
SHARE = 1.0
MME_TASK = 200.0


def categories_of(name: str, items: list[Item], result: ScoreResult) -> dict[str, dict[str, Any]]:
    """
    Figures by category.

    Args:
        name (`str`): The benchmark.
        items (`list[dict]`): What was scored.
        result (`ScoreResult`): Its figures.

    Returns:
        `dict[str, dict]`: By section of the breakdown: `figure` (what is shown), `top` (the most that is possible)
        and `bars`, each with `value` and `n`. A category without figures or questions is left out.
    """
    found = {}
    for section, figure, top, figures, labels in _sections(name, items, result.breakdown):
        sizes = Counter(label for item in items for label in labels(item))
        bars: Bars = {}
        for label, value in figures.items():
            if label not in TOTALS and isinstance(value, (int, float)) and sizes[str(label)]:
                bars[str(label)] = {"value": float(value), "n": sizes[str(label)]}
        if bars:
            found[section] = {"figure": figure, "top": top, "bars": bars}
    return found


Section = tuple[str, str, float, Figures, Callable[[Item], Iterable[str]]]


def _sections(name: str, items: list[Item], breakdown: Figures) -> list[Section]:
    def by(field: str) -> Callable[[Item], list[str]]:
        return lambda item: [str(item.get(field))]

    if name == "mme":
        return [("tasks", "accuracy + accuracy+, of 200", MME_TASK, breakdown.get("tasks", {}), by("category"))]
    if name == "pope":
        scores = {label: figures["f1_score"] for label, figures in breakdown.get("categories", {}).items()}
        return [("categories", "F1", SHARE, scores, by("category"))]
    if name == "seed":
        return [("types", "accuracy, %", PERCENT, breakdown, _seed_type)]
    if name in ("mmbench", "mmbench_cn"):
        sections = {field: breakdown.get(field, {}) for field in ("category", "l2-category")}
        return [
            (field, "CircularEval, share", SHARE, figures, _original(field)) for field, figures in sections.items()
        ]
    if name == "mmvet":
        kinds = {"capability": mmvet.capabilities, "capability_integration": _integration}
        return [(kind, "grade, of 100", PERCENT, breakdown.get(kind, {}), labels) for kind, labels in kinds.items()]
    if name == "llava_bench":
        relative = {label: one["relative"] for label, one in breakdown.get("summary", {}).items()}
        top = max([PERCENT, *(value for value in relative.values() if value is not None)])
        return [("summary", "relative to the reference, %", top, relative, _llava_category)]
    if name == "qbench":
        counted = breakdown.get("breakdown_correct_total", {})
        shares = {label: right / total for label, (right, total) in counted.items()}
        return [("types and concerns", "accuracy, share", SHARE, shares, _qbench_groups)]
    if name in ("vqav2", "vizwiz"):
        fields = {
            "perAnswerType": "answer_type" if name == "vqav2" else "category",
            "perQuestionType": "question_type",
        }
        return [(key, "accuracy, %", PERCENT, breakdown.get(key, {}), by(field)) for key, field in fields.items()]
    if name == "gqa":
        keys = {"accuracyPerStructuralType": "structural", "accuracyPerSemanticType": "semantic"}
        return [(key, "accuracy, %", PERCENT, breakdown.get(key, {}), _gqa(kind)) for key, kind in keys.items()]
    return []


def _seed_type(item: Item) -> list[str]:
    return [seed.TYPES[int(item["question_type_id"])]]


def _original(field: str) -> Callable[[Item], list[str]]:
    def label(item: Item) -> list[str]:
        value = item.get(field, item.get("L2-category") if field == "l2-category" else None)
        return [str(value)] if int(item["index"]) < 1_000_000 else []

    return label


def _integration(item: Item) -> list[str]:
    return ["_".join(mmvet.capabilities(item))]


def _llava_category(item: Item) -> list[str]:
    name = llava_bench.category(item)
    return [] if name is None or item.get("tuple") is None else [name]


def _qbench_groups(item: Item) -> list[str]:
    return [f"type={item['question_type']}", f"concern={item['question_concern']}"]


def _gqa(kind: str) -> Callable[[Item], list[str]]:
    return lambda item: [str(item["types"][kind])] if item.get("types") and item.get("isBalanced", True) else []
