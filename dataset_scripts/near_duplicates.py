"""Images that look the same: 64-bit perceptual hashes (`imagehash.phash`) within a few bits of each other."""

from array import array
from collections import defaultdict

import numpy as np


BITS = 64


class NearDuplicates:
    """
    Index of perceptual hashes that finds every entry within a distance.

    Two hashes that differ in at most `distance` bits agree completely in one of `distance + 1` bands (pigeonhole), so
    only entries that share a band are compared.

    Args:
        distance (`int`, defaults to 4): Bits that may differ, 0 to 16.

    Raises:
        `ValueError`: The distance is out of range.
    """

    def __init__(self, distance: int = 4):
        if not 0 <= distance <= 16:
            raise ValueError(f"`distance` must be 0 to 16 bits of {BITS}, got {distance}.")
        self.distance = distance
        edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
        self._cuts = [(first, (1 << last - first) - 1) for first, last in zip(edges, edges[1:], strict=False)]
        self._names: dict[int, tuple[int, str]] = {}
        self._bands: dict[tuple[int, int], array] = defaultdict(lambda: array("Q"))

    def find(self, phash: str) -> str | None:
        """
        Name of the first entry that looks the same.

        Args:
            phash (`str`): 16 hexadecimal digits.

        Returns:
            `str` or `None`: `None` when there is none.
        """
        value = int(phash, 16)
        near: list[int] = []
        for key in self._keys(value):
            if key in self._bands:
                band = np.frombuffer(self._bands[key], np.uint64)
                near += band[np.bitwise_count(band ^ np.uint64(value)) <= self.distance].tolist()
        return min(self._names[other] for other in near)[1] if near else None

    def add(self, phash: str, name: str) -> None:
        """
        Put an entry in; of equal hashes only the first is kept, since [`find`] names no other.

        Args:
            phash (`str`): 16 hexadecimal digits.
            name (`str`): What [`find`] gives back.
        """
        value = int(phash, 16)
        if value in self._names:  # thousands of "image not found" pictures would make the search quadratic
            return
        self._names[value] = (len(self._names), name)
        for key in self._keys(value):
            self._bands[key].append(value)

    def _keys(self, value: int) -> list[tuple[int, int]]:
        return [(first, value >> first & mask) for first, mask in self._cuts]
