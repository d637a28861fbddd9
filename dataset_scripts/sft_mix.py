"""
The mix of supervised fine-tuning: captions that show the images in the place of descriptions that imagine them.

The paper takes the 23K detailed descriptions, which GPT-4 wrote without seeing an image, out of LLaVA's 665K mix and
puts 23K GPT4-V captions in (section 3.4, Table 1, Figure 6). Row streams are explained in `dataset_scripts.subsets`.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, Literal, NamedTuple

import numpy as np

from .layouts import LAYOUTS
from .rows import DETAIL_QUESTIONS
from .subsets import Manifest, Rows, SteadyRows, checked_captions, fingerprint, smallest


# Sources that a quota names by one word.
GROUPS = {"diverse": ("textcaps", "web-celebrity", "web-landmark", "wikiart")}
# The released mix is called `cap23k_coco-ap9k_lcs3k_sam9k_div2k`; of the diverse ones 1,998 exist.
RELEASED_QUOTA = {"coco": 9_000, "lcs": 3_000, "sam": 9_000, "diverse": 2_000}
FINAL_MARKS = " \t\r\n.?!'\""
_BARE_QUESTIONS = frozenset(question.rstrip(FINAL_MARKS) for question in DETAIL_QUESTIONS)


def is_detailed_description(row: dict[str, Any]) -> bool:
    """
    Say whether a row is one of LLaVA's detailed descriptions, by source and question.

    The released mix answers the same questions with its new captions: the base of a swap is LLaVA's own mix.

    Args:
        row (`dict`): Conversation row.

    Returns:
        `bool`: True for one COCO image with one question of `DETAIL_QUESTIONS`; marks at its end do not count.
    """
    if row["source"] != "coco" or len(row["images"]) != 1 or len(row["messages"]) != 2:
        return False
    return row["messages"][0]["content"].strip().rstrip(FINAL_MARKS) in _BARE_QUESTIONS


def listed_records(rows: Rows) -> Callable[[dict[str, Any]], bool]:
    """
    Build the test whether a row is in another file, such as LLaVA's own `detail_23k.json`.

    Args:
        rows (`Callable`): Row stream of that file.

    Returns:
        `Callable`: Says of a row whether one of the file has its id and its first answer.

    Raises:
        `ValueError`: The file has no rows.
    """

    def key(row: dict[str, Any]) -> int:
        return fingerprint(row["id"], row["messages"][1]["content"])

    if not (keys := set(map(key, rows()))):
        raise ValueError("The file that lists the records to replace has no rows.")
    return lambda row: key(row) in keys


def swap(
    base: Rows,
    captions: Rows,
    quota: Mapping[str, int],
    seed: int,
    keep_total: bool = True,
    is_replaced: Callable[[dict[str, Any]], bool] = is_detailed_description,
    on_short: Literal["fill", "error"] = "fill",
) -> tuple[Rows, Manifest]:
    """
    Take some rows out of a mix and put captions in their places; the rest stays as and where it is.

    No image comes in twice, nor one that was taken out with a row. Which of the other captions come in depends on
    their images and the seed alone, so that the mixes of several models get the same ones (Figure 6).

    Args:
        base (`Callable`): Row stream of the mix.
        captions (`Callable`): Row stream of the captions, one image a row. The chosen rows stay in memory as text.
        quota (`dict[str, int]`): Captions to put in, by source or name in `GROUPS`; the release's is `RELEASED_QUOTA`.
        seed (`int`): Seed of every choice.
        keep_total (`bool`, defaults to `True`): As many go out as come in: of more matches than the quota a part is
            chosen, for fewer the quota is scaled down. Otherwise all matches go out and the whole quota comes in, at
            the end where places are lacking; that the released mix has 240 rows less than LLaVA's looks like this.
        is_replaced (`Callable`, defaults to `is_detailed_description`): Says of a row whether it matches.
        on_short (`str`, defaults to `"fill"`): What happens when a part of the quota has too few captions: `fill`
            takes more of the other parts, the largest first; `error` stops.

    Returns:
        `tuple[Callable, dict]`: Row stream of the new mix, and a manifest ready for JSON that names every row that
            went out or came in.

    Raises:
        `ValueError`: The quota cannot be used or met, no row matches, or a caption row is not one.
    """
    names = _names_of_sources(quota, on_short)
    base, captions = SteadyRows(base), SteadyRows(captions)
    by_source, matched = _find(base, is_replaced)
    target = _scale(quota, len(matched)) if keep_total else dict(quota)
    draws = [fingerprint("out", seed, row.id, *row.images) for row in matched]
    exchanged = smallest(np.array(draws, np.uint64), min(sum(target.values()), len(matched)))
    places = [row.number for row in compress(matched, exchanged)]
    removed = list(compress(matched, exchanged)) if keep_total else matched
    candidates = _candidates(captions, names, seed, {image for row in removed for image in row.images})
    taken = _fill(quota, target, {name: len(numbers) for name, numbers in candidates.items()}, on_short)
    numbers = np.concatenate([candidates[name][:count] for name, count in taken.items()])
    inserted = sorted(_pick(captions, numbers), key=lambda row: fingerprint("place", seed, row["images"][0]))
    manifest = {
        "seed": seed,
        "keep_total": keep_total,
        "quota": {"asked": dict(quota), "target": target, "taken": taken},
        "filled": {name: count - target[name] for name, count in taken.items() if count > target[name]},
        **_account(by_source, len(matched), removed, inserted),
    }
    return _exchange(base, places, {row.number for row in removed}, inserted), manifest


class _Match(NamedTuple):
    number: int
    id: str
    source: str
    images: list[str]


def _names_of_sources(quota: Mapping[str, int], on_short: str) -> dict[str, str]:
    # Every source that a quota covers, with the name it covers it by.
    if on_short not in ("fill", "error"):
        raise ValueError(f"`on_short` must be 'fill' or 'error', got {on_short!r}.")
    names: dict[str, str] = {}
    for name, number in quota.items():
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"The quota of {name!r} must be a whole number from 0, got {number!r}.")
        for source in GROUPS.get(name, (name,)):
            if source in names:
                raise ValueError(f"The quota names the source {source!r} twice, by {names[source]!r} and by {name!r}.")
            names[source] = name
    if not any(quota.values()):
        raise ValueError(f"The quota asks for no captions, got {dict(quota)}.")
    return names


def _find(base: Rows, is_replaced: Callable[[dict[str, Any]], bool]) -> tuple[Counter[str], list[_Match]]:
    by_source: Counter[str] = Counter()
    matched = []
    for number, row in enumerate(base()):
        by_source[row["source"]] += 1
        if is_replaced(row):
            matched.append(_Match(number, row["id"], row["source"], row["images"]))
    if not matched:
        raise ValueError(f"None of the {by_source.total()} rows of the mix is to be replaced; is it LLaVA's own mix?")
    return by_source, matched


def _scale(quota: Mapping[str, int], total: int) -> dict[str, int]:
    # Largest remainders: whole numbers in the proportions of the quota whose sum is `total`, never above the quota.
    whole = sum(quota.values())
    if total >= whole:
        return dict(quota)
    scaled = {name: number * total // whole for name, number in quota.items()}
    order = sorted(quota, key=lambda name: (-(quota[name] * total % whole), name))
    for name in order[: total - sum(scaled.values())]:
        scaled[name] += 1
    return scaled


def _candidates(captions: Rows, names: Mapping[str, str], seed: int, excluded: set[str]) -> dict[str, np.ndarray]:
    # Numbers of the captions that may come in by name in the quota, one an image, in the order of their draws.
    quota = list(dict.fromkeys(names.values()))
    sources: Counter[str] = Counter()
    draws, kinds = array("Q"), array("h")
    for row in checked_captions(captions):
        image, name = row["images"][0], names.get(row["source"])
        sources[row["source"]] += 1
        draws.append(fingerprint("in", seed, image))
        kinds.append(-1 if name is None or image in excluded else quota.index(name))
    known = {*GROUPS, *sources, *(layout.source for layout in LAYOUTS)}
    if unknown := [name for name in quota if name not in known]:
        raise ValueError(f"The quota names {unknown}; there are {sorted(known)}.")
    kind_of = np.array(kinds)
    fitting = np.flatnonzero(kind_of >= 0)
    # Equal images have equal draws, so this sorts and leaves one row an image, the first.
    fitting = fitting[np.unique(np.array(draws)[fitting], return_index=True)[1]]
    return {name: fitting[kind_of[fitting] == kind] for kind, name in enumerate(quota)}


def _fill(
    quota: Mapping[str, int], target: Mapping[str, int], available: Mapping[str, int], on_short: str
) -> dict[str, int]:
    taken = {name: min(number, available[name]) for name, number in target.items()}
    missing = sum(target.values()) - sum(taken.values())
    numbers = f"The quota is {dict(target)}, captions of images that are not taken out exist for {dict(available)}."
    if missing and on_short == "error":
        raise ValueError(f"{numbers} Lower it, or pass `on_short='fill'`.")
    for name in sorted(quota, key=lambda name: (-quota[name], name)):
        extra = min(missing, available[name] - taken[name]) if quota[name] else 0
        taken[name] += extra
        missing -= extra
    if missing:
        raise ValueError(f"{numbers} That is {missing} too few, lower the quota.")
    return taken


def _pick(captions: Rows, numbers: np.ndarray) -> list[dict[str, Any]]:
    wanted = set(numbers.tolist())
    return [row for number, row in enumerate(captions()) if number in wanted]


def _account(
    by_source: Mapping[str, int], matched: int, removed: Sequence[_Match], inserted: Sequence[dict[str, Any]]
) -> Manifest:
    new = Counter(row["source"] for row in inserted)
    result = Counter(by_source) + new
    result.subtract(row.source for row in removed)
    counts = {"base": sum(by_source.values()), "matched": matched, "removed": len(removed), "inserted": len(inserted)}
    return {
        "rows": {**counts, "result": result.total()},
        "by_source": {"inserted": dict(sorted(new.items())), "result": dict(sorted((+result).items()))},
        "removed": [
            {"number": row.number, "id": row.id, "image": row.images[0] if row.images else None} for row in removed
        ],
        "inserted": [{"id": row["id"], "image": row["images"][0], "source": row["source"]} for row in inserted],
    }


def _exchange(base: Rows, places: list[int], gone: set[int], inserted: Sequence[dict[str, Any]]) -> Rows:
    # As text the rows take half the memory, and every pass hands out rows of its own that a user may change.
    texts = [json.dumps(row) for row in inserted]
    at = dict(zip(places, texts, strict=False))

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(base()):
            if number in at:
                yield json.loads(at[number])
            elif number not in gone:
                yield row
        yield from map(json.loads, texts[len(places) :])

    return rows
