"""
Keys and values of all slots in buffers that are made once: rows are filled by prefills and grow by decoded tokens.

The rows in use are always the first ones, so a step reads one slice of each buffer. `DynamicCache` would copy all keys
and values at every token instead, and could not hold rows of different lengths without padding.
"""

# N slots, R rows in use, H heads of keys and values, C slot length, L bucket, D head width, S tokens of a prefill

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


BUCKET = 16  # a step reads keys up to a multiple of this many tokens, so that shapes repeat


class SlotLayer(CacheLayerMixin):
    """
    Keys and values of one layer.

    Args:
        slots (`int`): Rows of the buffers.
        max_length (`int`): Tokens of a row.
    """

    def __init__(self, slots: int, max_length: int):
        super().__init__()
        self.slots, self.max_length = slots, max_length
        self.first, self.rows, self.bucket = 0, 0, 0  # where a prefill begins; rows and tokens that a step reads
        self.places: tuple[torch.Tensor, torch.Tensor] | None = None  # rows and positions of the step's tokens, (R,)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """
        Make the buffers, for heads and widths as the model gives them.

        Args:
            key_states (`torch.Tensor`): `(B, H, S, D)`.
            value_states (`torch.Tensor`): `(B, H, S, D)`; its D may differ.
        """
        self.dtype, self.device = key_states.dtype, key_states.device
        shapes = [
            (self.slots, states.shape[1], self.max_length, states.shape[3]) for states in (key_states, value_states)
        ]
        self.keys, self.values = (key_states.new_zeros(shape) for shape in shapes)  # (N, H, C, D)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Store new keys and values; a prefill attends to its own, a step to all of its rows.

        Args:
            key_states (`torch.Tensor`): `(B, H, S, D)` of a prefill, `(R, H, 1, D)` of a step.
            value_states (`torch.Tensor`): Alike.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: What is attended to: the arguments, or `(R, H, L, D)` of the buffers.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.places is None:
            last, tokens = self.first + key_states.shape[0], key_states.shape[2]
            self.keys[self.first : last, :, :tokens] = key_states
            self.values[self.first : last, :, :tokens] = value_states
            self._clear(slice(self.first, last), tokens)
            return key_states, value_states
        rows, positions = self.places
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[: self.rows, :, : self.bucket], self.values[: self.rows, :, : self.bucket]

    def get_seq_length(self) -> int:
        """Tokens before the ones that are passed: none in a prefill, as far as one number can tell in a step."""
        return 0 if self.places is None else self.bucket - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that are attended to, and the first of them."""
        return (query_length if self.places is None else self.bucket), 0

    def get_max_length(self) -> int:
        """Tokens of a row."""
        return self.max_length

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` over row `target`."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]
        self._clear(slice(target, target + 1), length)

    def _clear(self, rows: slice, length: int) -> None:
        # A step reads beyond the end of a row, where the mask hides what an earlier caption left; but a caption that
        # overflowed left no numbers, and weighing them by nothing does not hide those.
        self.keys[rows, :, length:] = 0
        self.values[rows, :, length:] = 0


class SlotCache(Cache):
    """
    Keys and values of all slots, and how many tokens each row in use holds.

    Args:
        layers (`int`): Layers of the LLM.
        slots (`int`): Rows.
        max_length (`int`): Tokens of a row, prompt and caption together.
    """

    def __init__(self, layers: int, slots: int, max_length: int):
        super().__init__(layers=[SlotLayer(slots, max_length) for _ in range(layers)])
        self.slots, self.max_length = slots, max_length
        self.lengths: list[int] = []  # of the rows in use

    def begin_prefill(self) -> None:
        """Let the next forward write its rows behind those in use."""
        for layer in self.layers:
            layer.first, layer.places = len(self.lengths), None

    def end_prefill(self, lengths: list[int]) -> None:
        """Take rows into use that a prefill wrote, padded on the right, of `lengths` tokens each."""
        self.lengths += lengths

    def begin_step(self, device: torch.device) -> tuple[torch.Tensor, int]:
        """
        Let the next forward write one token behind each row.

        Args:
            device (`torch.device`): Where the model is.

        Returns:
            `tuple[torch.Tensor, int]`: Lengths of the rows without the new token, (R,), and how many tokens are read.
        """
        lengths = torch.tensor(self.lengths, device=device)  # (R,)
        places = torch.arange(len(self.lengths), device=device), lengths
        bucket = min(-(-(max(self.lengths) + 1) // BUCKET) * BUCKET, self.max_length)
        for layer in self.layers:
            layer.places, layer.rows, layer.bucket = places, len(self.lengths), bucket
        return lengths, bucket

    def end_step(self) -> None:
        """Count the tokens that a step wrote."""
        self.lengths = [length + 1 for length in self.lengths]

    def remove(self, row: int) -> None:
        """Free a row: the last one in use moves into its place."""
        last = len(self.lengths) - 1
        if row < last:
            for layer in self.layers:
                layer.move(last, row, self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
