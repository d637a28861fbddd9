"""
Cross entropy where something is learned, in chunks: logits of images, questions and the whole batch never exist.

The head runs inside the model's own `forward`, so that the hooks of DDP, FSDP2 and PEFT, which sit around that call,
see every parameter that gets a gradient. And the chunks run inside one call of the head: where FSDP2 shards the head
alone, it reduces gradients once a call, and a rank with more chunks than the others would wait for them forever.
"""

# B batch, S sequence, K positions that predict a label, D width of the LLM, V vocabulary

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


IGNORED = -100
CHUNK = 2048  # positions whose logits exist at a time: 0.26 GB in float32 for 32,000 words
Normalisation = Literal["tokens", "samples"]
Head = Callable[[torch.Tensor], torch.Tensor]


def add_label_loss(model: PreTrainedModel) -> None:
    """
    Give a model's `forward` the keyword `label_weights`: with it, the output's `loss` is a weighted sum of cross
    entropies over the positions that predict a label, and there are no logits. Without it nothing changes.

    Args:
        model (`PreTrainedModel`): The base model, without the wrappers of PEFT or DDP; changed in place.
    """
    plain_forward, plain_head = model.forward, model.lm_head.forward

    def head(self: torch.nn.Module, hidden: torch.Tensor, *scores: torch.Tensor) -> torch.Tensor:
        return _weighted_sum(plain_head, hidden, *scores) if scores else plain_head(hidden)

    @wraps(plain_forward.__func__)  # `generate` looks at the names of the arguments
    def forward(self: PreTrainedModel, *args: Any, label_weights: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if label_weights is None:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.model(*args, **kwargs).last_hidden_state  # (B, S, D)
        return CausalLMOutputWithPast(loss=self.lm_head(*_scored(hidden, labels, label_weights)))

    model.lm_head.forward = MethodType(head, model.lm_head)
    model.forward = MethodType(forward, model)  # type: ignore[method-assign]


def weigh_labels(
    labels: torch.Tensor, boundaries: torch.Tensor | None, normalisation: Normalisation
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Weight of every label, and what the weighted sum of a global batch is divided by.

    Args:
        labels (`torch.Tensor`): (B, S), -100 where nothing is learned.
        boundaries (`torch.Tensor`, *optional*): (samples + 1,) of a packed row; without it each row is a sample.
        normalisation (`str`): `tokens`: mean over the label tokens of the global batch, as transformers has it.
            `samples`: mean of the samples' own means, as LLaVA under DeepSpeed has it with one sample a micro-batch.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Weights of (B, S) in float32, and the number of tokens or samples.
    """
    scored = labels != IGNORED
    scored[:, 0] = False  # nothing predicts the first token
    if normalisation == "tokens":
        return scored.float(), scored.sum()
    if boundaries is None:
        counts = scored.sum(dim=1, keepdim=True).expand_as(labels)
        samples = (counts[:, 0] > 0).sum()
    else:
        lengths = boundaries.diff()
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=labels.device), lengths)  # (S,)
        by_sample = torch.zeros(len(lengths), dtype=torch.long, device=labels.device)
        by_sample.index_add_(0, owner, scored[0].long())
        counts, samples = by_sample[owner].unsqueeze(0), (by_sample > 0).sum()
    return scored / counts.clamp(min=1), samples


def _scored(hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    targets, weights = labels[:, 1:].flatten(), weights[:, 1:].flatten()
    positions = (targets != IGNORED).nonzero().squeeze(1)  # (K,)
    return hidden[:, :-1].flatten(0, 1)[positions], targets[positions], weights[positions]  # (K, D), (K,), (K,)


def _weighted_sum(head: Head, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if len(hidden) <= CHUNK:
        return _chunk_loss(head, hidden, targets, weights)
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), weights.split(CHUNK), strict=True)
    # Each chunk's logits are computed again in the backward pass instead of being kept.
    losses = [checkpoint(_chunk_loss, head, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()


def _chunk_loss(head: Head, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    logits = head(hidden)  # (K, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum()
