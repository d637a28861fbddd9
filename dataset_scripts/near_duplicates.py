"""Images that look the same: 64-bit perceptual hashes (`imagehash.phash`) within a few bits of each other."""

from collections import defaultdict


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
        self._entries: list[tuple[int, str]] = []
        self._bands: dict[tuple[int, int], list[int]] = defaultdict(list)

    def find(self, phash: str) -> str | None:
        """
        Name of the first entry that looks the same.

        Args:
            phash (`str`): 16 hexadecimal digits.

        Returns:
            `str` or `None`: `None` when there is none.
        """
        value = int(phash, 16)
        near = [
            entry
            for key in self._keys(value)
            for entry in self._bands.get(key, ())
            if (self._entries[entry][0] ^ value).bit_count() <= self.distance
        ]
        return self._entries[min(near)][1] if near else None

    def add(self, phash: str, name: str) -> None:
        """
        Put an entry in.

        Args:
            phash (`str`): 16 hexadecimal digits.
            name (`str`): What [`find`] gives back.
        """
        value = int(phash, 16)
        for key in self._keys(value):
            self._bands[key].append(len(self._entries))
        self._entries.append((value, name))

    def _keys(self, value: int) -> list[tuple[int, int]]:
        bands = self.distance + 1
        edges = [BITS * band // bands for band in range(bands + 1)]
        return [(band, value >> edges[band] & (1 << edges[band + 1] - edges[band]) - 1) for band in range(bands)]
