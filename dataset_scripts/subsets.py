"""
Row streams, and choices from them that a seed alone decides: a part of one (`subset`), images of several (`add`).

A *row stream* is a function without arguments that begins a new pass over conversation rows whose images are paths:
`{"id", "source", "images": [path, ...], "messages"}`. Choosing takes one pass and writing another, so that 1.25
million rows never sit in memory: 64 bits of each are kept.
"""

import json
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, compress, repeat
from typing import Any

import numpy as np


Rows = Callable[[], Iterator[dict[str, Any]]]
Manifest = dict[str, Any]


def fingerprint(*parts: str | int) -> int:
    """
    Number of 64 bits that stands for some values, equal on every machine and in every process, unlike `hash`.

    Args:
        parts (`str` or `int`): The values; their order counts.

    Returns:
        `int`: The number. Of 1.25 million images two share it with a chance of one in twenty million.
    """
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def smallest(draws: np.ndarray, count: int) -> np.ndarray:
    """
    Mark the smallest of some numbers, among equal ones those that come first.

    Args:
        draws (`np.ndarray` of shape `(N,)`): Any numbers.
        count (`int`): How many to mark, at most N.

    Returns:
        `np.ndarray` of shape `(N,)` and type `bool`: `count` times true.
    """
    if count == 0:
        return np.zeros(len(draws), bool)
    limit = np.partition(draws, count - 1)[count - 1]
    marks = draws < limit
    marks[np.flatnonzero(draws == limit)[: count - marks.sum()]] = True
    return marks


class SteadyRows:
    """
    Row stream that holds another one to its word: every pass must give the ids and images of the first.

    What was chosen in one pass is taken out in the next. A stream that is exhausted after one pass, or shuffled anew,
    would otherwise lose rows or take the wrong ones without a sign.

    Args:
        rows (`Callable`): Row stream.
    """

    def __init__(self, rows: Rows):
        self._rows = rows
        self._first: tuple[int, bytes] | None = None

    def __call__(self) -> Iterator[dict[str, Any]]:
        """
        Begin a pass.

        Yields:
            `dict`: The rows, unchanged.

        Raises:
            `ValueError`: At the end of a pass that was not like the first.
        """
        count, digest = 0, blake2b(digest_size=16)
        for row in self._rows():
            count += 1
            digest.update("\0".join((row["id"], *row["images"], "\0")).encode("utf-8", "surrogatepass"))
            yield row
        seen = count, digest.digest()
        if self._first is None:
            self._first = seen
        elif seen != self._first:
            raise ValueError(
                f"A row stream gave {self._first[0]} rows at first and {count} other rows later. Pass a function that "
                "opens the data anew in every call and gives the same rows in the same order."
            )


def images_in(rows: Rows) -> Iterator[str]:
    """
    Paths of all images in a set of rows, as `subset` takes them.

    Args:
        rows (`Callable`): Row stream.

    Yields:
        `str`: One path an image and row.
    """
    for row in rows():
        yield from row["images"]


def image_keys(images: Iterable[str]) -> np.ndarray:
    """
    Compact form of a set of images.

    Args:
        images (`Iterable[str]`): Paths, each any number of times.

    Returns:
        `np.ndarray` of type `uint64`: Fingerprints of the paths, sorted, each once.
    """
    return np.unique(np.fromiter(map(fingerprint, images), np.uint64))


def checked_captions(captions: Rows) -> Iterator[dict[str, Any]]:
    """
    Begin a pass over captions that stops at the first row which is none.

    Args:
        captions (`Callable`): Row stream.

    Yields:
        `dict`: The rows, unchanged.

    Raises:
        `ValueError`: A row has no or several images or an empty message, or there are no rows.
    """
    number = -1
    for number, row in enumerate(captions()):
        if len(row["images"]) != 1:
            raise ValueError(f"Caption row {number} (id {row['id']!r}) must have one image, got {len(row['images'])}.")
        if not all(message["content"].strip() for message in row["messages"]):
            raise ValueError(f"Caption row {number} (id {row['id']!r}) has an empty message.")
        yield row
    if number < 0:
        raise ValueError("A set of captions has no rows.")


def subset(
    rows: Rows,
    size: int | None = None,
    seed: int = 0,
    sources: Collection[str] | None = None,
    images: Iterable[str] | None = None,
) -> tuple[Rows, Manifest]:
    """
    Choose rows by source, by image and by number.

    Memory takes 12 bytes a row and 9 a listed image, and for a moment twice that.

    With one seed a smaller subset lies within every larger one, since a row's luck depends on nothing but its id and
    images. `subset(captions, images=images_in(others))` brings two sets of captions to the same images.

    Args:
        rows (`Callable`): Row stream.
        size (`int`, *optional*): How many of the rows that fit to choose by chance; all by default.
        seed (`int`, defaults to 0): Seed of the choice.
        sources (`Collection[str]`, *optional*): Sources that fit.
        images (`Iterable[str]`, *optional*): Images that fit: a row fits if it has images and all are listed.

    Returns:
        `tuple[Callable, dict]`: Row stream in the order of the file, and a manifest ready for JSON.

    Raises:
        `ValueError`: A source is unknown, nothing fits, or less than `size` does.
    """
    if size is not None and size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    rows = SteadyRows(rows)
    listed = None if images is None else _Listed(images)
    names, kinds, draws = _survey(rows, seed, sources, listed)
    fitting = np.flatnonzero(kinds)
    if size is not None:
        if size > len(fitting):
            raise ValueError(f"`size` is {size}, only {len(fitting)} of {len(kinds)} rows fit. Lower it.")
        kinds[fitting[~smallest(draws, size)]] = 0
    counts = np.bincount(kinds, minlength=len(names) + 1)
    manifest = {
        "seed": seed,
        "size": size,
        "sources": None if sources is None else sorted(sources),
        "images": None if listed is None else {"listed": len(listed.met), "found": sum(listed.met)},
        "rows": {"base": len(kinds), "fitting": len(fitting), "result": int(counts[1:].sum())},
        "by_source": {name: int(counts[kind]) for name, kind in names.items() if counts[kind]},
    }
    mask = (kinds > 0).tobytes()
    # The padding lets a second pass that is longer run to its end, where `SteadyRows` notices.
    return lambda: compress(rows(), chain(mask, repeat(0))), manifest


def add(base: Rows, captions: Rows, shared_with: Sequence[Rows], count: int, seed: int) -> tuple[Rows, Manifest]:
    """
    Put captions behind a mix, of the same images whichever of several sets of captions is used.

    Images that the mix shows already are not chosen: it may hold one of the captions that are to be compared. Of
    several captions of one image in a set, the first is taken.

    Args:
        base (`Callable`): Row stream of the mix.
        captions (`Callable`): Row stream of the captions to put in, one image a row.
        shared_with (`Sequence[Callable]`): Row streams of the sets that it is compared with; it may be among them.
        count (`int`): Images to choose among those in every set; the paper has 8,000.
        seed (`int`): Seed of the choice.

    Returns:
        `tuple[Callable, dict]`: Row stream of the mix and then the captions, whose images come in the same order for
            every set, and a manifest ready for JSON.

    Raises:
        `ValueError`: The sets share too few images outside the mix, or a caption row is not one.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    base, captions = SteadyRows(base), SteadyRows(captions)
    keys = _caption_keys(captions)
    for other in shared_with:
        keys = np.intersect1d(keys, _caption_keys(other), assume_unique=True)
    by_source: Counter[str] = Counter()
    fresh = np.setdiff1d(keys, image_keys(_counted_images(base, by_source)), assume_unique=True)
    if len(fresh) < count:
        raise ValueError(
            f"{count} images are asked for; the sets share {len(keys)}, and {len(fresh)} of these are new to the mix. "
            "Lower `count`, or check that the sets name their images alike."
        )
    draws = np.fromiter((fingerprint("add", seed, int(key)) for key in fresh), np.uint64, len(fresh))
    chosen: dict[int, dict[str, Any] | None] = dict.fromkeys(fresh[np.argsort(draws)][:count].tolist())
    for row in captions():
        key = fingerprint(row["images"][0])
        if key in chosen and chosen[key] is None:
            chosen[key] = row
    added = [row for row in chosen.values() if row is not None]
    new = Counter(row["source"] for row in added)
    manifest = {
        "seed": seed,
        "rows": {"base": by_source.total(), "inserted": count, "result": by_source.total() + count},
        "images": {"shared": len(keys), "new": len(fresh)},
        "by_source": {"inserted": dict(sorted(new.items())), "result": dict(sorted((by_source + new).items()))},
        "inserted": [{"id": row["id"], "image": row["images"][0], "source": row["source"]} for row in added],
    }
    texts = [json.dumps(row) for row in added]  # every pass hands out rows of its own, which a user may change
    return lambda: chain(base(), map(json.loads, texts)), manifest


def _survey(
    rows: Rows, seed: int, sources: Collection[str] | None, listed: "_Listed | None"
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    # Sources numbered from 1, of every row the number of its source or 0 if it does not fit, draws of those that fit.
    names: dict[str, int] = {}
    kinds, draws, example = array("I"), array("Q"), None
    for row in rows():
        kind = names.setdefault(row["source"], len(names) + 1)
        example = example or next(iter(row["images"]), None)
        fits = (sources is None or row["source"] in sources) and (listed is None or listed.has(row["images"]))
        kinds.append(kind if fits else 0)
        if fits:
            draws.append(fingerprint("subset", seed, row["id"], *row["images"]))
    if unknown := sorted(set(sources or ()) - set(names)):
        raise ValueError(f"`sources` names {unknown}, the rows come from {sorted(names)}.")
    if not draws:
        hint = f" The rows name images like {example!r}, the list like {listed.example!r}." if listed else ""
        raise ValueError(f"None of the {len(kinds)} rows fits.{hint}")
    return names, np.array(kinds), np.array(draws)


class _Listed:
    """Set of image paths that remembers which of them it was asked for."""

    def __init__(self, images: Iterable[str]):
        images = iter(images)
        self.example = next(images, None)
        if self.example is None:
            raise ValueError("`images` is empty; leave it out to choose among all.")
        # `bisect` is twice as fast on a view as on the array itself.
        self._keys = image_keys(chain([self.example], images)).data
        self.met = bytearray(len(self._keys))

    def has(self, images: list[str]) -> bool:
        places = []
        for image in images:
            key = fingerprint(image)
            place = bisect_left(self._keys, key)
            if place == len(self._keys) or self._keys[place] != key:
                return False
            places.append(place)
        for place in places:
            self.met[place] = 1
        return bool(places)


def _caption_keys(captions: Rows) -> np.ndarray:
    return image_keys(row["images"][0] for row in checked_captions(captions))


def _counted_images(base: Rows, by_source: Counter[str]) -> Iterator[str]:
    for row in base():
        by_source[row["source"]] += 1
        yield from row["images"]
