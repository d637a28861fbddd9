"""The next token of each row, as `generate` would choose it: the model's own settings, then greedy or by a draw."""

# R rows, V words

import hashlib

import torch
from transformers import (
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .engine_requests import Sampling


# They treat every row by itself, and a token that stands twice in its history as one that stands once.
KNOWN = (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class TokenChooser:
    """
    Chooses tokens by the model's generation settings.

    Args:
        model (`PreTrainedModel`): The model; its `generation_config` decides end tokens and penalties.
        sampling (`Sampling`, *optional*): How tokens are drawn; greedy without it.

    Raises:
        `ValueError`: The generation settings ask for something that depends on more than a row and its tokens.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling | None):
        self.sampling = sampling
        options: dict = {"do_sample": False}
        if sampling is not None:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            options = {"do_sample": True, **drawn}
        # Private, but the only way to what `generate` itself would apply; there since transformers 2.
        config, _ = model._prepare_generation_config(None, num_beams=1, **options)
        self.processors = model._get_logits_processor(config, input_ids_seq_length=1, device=str(model.device))
        if unknown := [type(one).__name__ for one in self.processors if not isinstance(one, KNOWN)]:
            raise ValueError(
                f"The generation settings of {type(model).__name__} ask for {', '.join(unknown)}, which slots do not "
                "support. Unset them in `model.generation_config`, or caption with `generate`."
            )
        self.needs_history = any(isinstance(one, RepetitionPenaltyLogitsProcessor) for one in self.processors)
        ends = config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def generator(self, key: str) -> torch.Generator | None:
        """
        Source of the draws of one request, the same whatever else is captioned.

        Args:
            key (`str`): Key of the request.

        Returns:
            `torch.Generator` or `None`: `None` for greedy.
        """
        if self.sampling is None:
            return None
        digest = hashlib.blake2b(f"{self.sampling.seed}/{key}".encode(errors="surrogatepass"), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)

    @torch.inference_mode()
    def choose(
        self, logits: torch.Tensor, histories: list[list[int]], generators: list[torch.Generator | None]
    ) -> list[int]:
        """
        Choose one token a row.

        Args:
            logits (`torch.Tensor`): (R, V).
            histories (`list[list[int]]`): Prompt and caption so far of each row; read if `needs_history`.
            generators (`list[torch.Generator]`): Sources of the draws.

        Returns:
            `list[int]`: The tokens.
        """
        scores = logits.float()
        if self.processors:
            scores = self.processors(self._joined(histories, scores), scores)
        if self.sampling is None:
            return scores.argmax(dim=-1).tolist()
        # One number a row from its own generator, and the word in whose share of the probabilities it falls: neither
        # the other rows nor the device change it.
        drawn = torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])  # (R,)
        shares = scores.softmax(dim=-1).double().cumsum(dim=-1)  # (R, V)
        targets = drawn.to(shares.device)[:, None] * shares[:, -1:]
        return torch.searchsorted(shares, targets, right=True).clamp_(max=shares.shape[1] - 1)[:, 0].tolist()

    def _joined(self, histories: list[list[int]], scores: torch.Tensor) -> torch.Tensor:
        # Shorter histories are filled up with their own first token, which says nothing new of them.
        if not self.needs_history:
            return torch.zeros((scores.shape[0], 1), dtype=torch.long, device=scores.device)
        longest = max(len(history) for history in histories)
        rows = [history + history[:1] * (longest - len(history)) for history in histories]
        return torch.tensor(rows, device=scores.device)  # (R, longest)
