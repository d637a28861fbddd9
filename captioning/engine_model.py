"""A model with rows: prefills add rows of any length, a step adds one token to each, any row can be freed."""

# R rows in use, B requests of a prefill, V words, L bucket of the cache

import torch
from transformers import PreTrainedModel

from .engine_cache import SlotCache
from .engine_inputs import Prepared, collate


class SlotModel:
    """
    Forward passes of a model over the rows of a [`SlotCache`].

    Positions on several axes (Qwen-VL and its kin) are the model's own: its prefill leaves behind how far they are
    from the plain count (`rope_deltas`), and every later token of the row keeps that distance on all axes.

    Args:
        model (`PreTrainedModel`): Model that passed [`~captioning.engine_support.check_model`].
        slots (`int`): Most rows.
        max_length (`int`): Most tokens of a row, prompt and caption together.
        pad_token_id (`int`): What stands behind shorter prompts of a prefill.
    """

    def __init__(self, model: PreTrainedModel, slots: int, max_length: int, pad_token_id: int):
        self.model, self.pad_token_id = model.eval(), pad_token_id
        self.device, self.dtype = model.device, model.dtype
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.cache = SlotCache(layers, slots, max_length)
        self.several_axes = "rope_deltas" in vars(model.base_model)
        self.deltas: list[int] = []  # of the rows in use

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self.cache.lengths)

    @torch.inference_mode()
    def prefill(self, prepared: list[Prepared]) -> torch.Tensor:
        """
        Encode images and prompts of one group into new rows behind those in use.

        Args:
            prepared (`list[Prepared]`): Requests of one of [`~captioning.engine_inputs.group`]'s groups.

        Returns:
            `torch.Tensor`: Logits of the first token of each caption, (B, V).
        """
        if self.several_axes:
            self.model.base_model.rope_deltas = None  # those of the last prefill
        inputs = collate(prepared, self.pad_token_id, self.device, self.dtype)
        lengths = [one.tokens for one in prepared]
        kept = sorted(set(lengths))
        last = torch.tensor(kept, device=self.device) - 1
        self.cache.begin_prefill()
        logits = self.model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=last).logits
        self.cache.end_prefill(lengths)
        deltas = self.model.base_model.rope_deltas if self.several_axes else None
        self.deltas += [0] * len(lengths) if deltas is None else deltas.flatten().tolist()
        return torch.stack([logits[row, kept.index(length)] for row, length in enumerate(lengths)])  # (B, V)

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> torch.Tensor:
        """
        Add one token to every row.

        Args:
            tokens (`list[int]`): The tokens, in the order of the rows.

        Returns:
            `torch.Tensor`: Logits of the tokens that follow, (R, V).
        """
        device = self.device
        lengths, bucket = self.cache.begin_step(device)
        positions = lengths[:, None]  # (R, 1)
        if self.several_axes:
            positions = (positions + torch.tensor(self.deltas, device=device)[:, None]).expand(3, -1, -1)  # (3, R, 1)
        hidden = torch.arange(bucket, device=device) > lengths[:, None]  # (R, L)
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=device)
        mask = mask.masked_fill_(hidden, torch.finfo(self.dtype).min)[:, None, None]  # (R, 1, 1, L)
        logits = self.model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits  # (R, 1, V)
        self.cache.end_step()
        return logits[:, -1]

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Free a row: the last one in use moves into its place."""
        self.cache.remove(row)
        self.deltas[row] = self.deltas[-1]
        self.deltas.pop()
