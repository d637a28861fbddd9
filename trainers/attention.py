"""
Attention over packed rows behind one name, `sharegpt4v_varlen`: no sample sees another, and no dense mask is built.

transformers' own SDPA path recognises packed rows by their positions and builds a mask of (tokens x tokens), which
costs more than the padding that packing saves. Here the boundaries come as `cu_seq_lens_q`, and the best kernel of the
machine works between them: flash-attn where it is installed, torch's own varlen kernel on CUDA, and SDPA sample by
sample elsewhere. Batches that are not packed get transformers' SDPA, so the same model also evaluates and generates.
"""

# H heads, G key-value heads, T tokens of all samples, E width of a head

from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available


VARLEN = "sharegpt4v_varlen"
HALF = (torch.float16, torch.bfloat16)


def use_varlen_attention(model: PreTrainedModel) -> None:
    """
    Let the language model of a ShareGPT4V model attend by [`varlen_attention`]; the tower keeps what it has.

    Args:
        model (`PreTrainedModel`): Model with a `text_config`.
    """
    model.set_attn_implementation({"text_config": VARLEN})


def backend_for(device: torch.device, dtype: torch.dtype) -> str:
    """
    Name of the kernel that packed rows get.

    Args:
        device (`torch.device`): Where the model is.
        dtype (`torch.dtype`): Type of queries and keys; the CUDA kernels take half precision only.

    Returns:
        `str`: `flash_attn`, `torch_varlen` or `sdpa_by_sample`.
    """
    if device.type == "cuda" and dtype in HALF:
        return "flash_attn" if is_flash_attn_2_available() else "torch_varlen"
    return "sdpa_by_sample"


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Causal attention within each sample of a packed row.

    Args:
        module (`torch.nn.Module`): Attention layer.
        query (`torch.Tensor`): (1, H, T, E) for a packed row.
        key (`torch.Tensor`): (1, G, T, E).
        value (`torch.Tensor`): (1, G, T, E).
        attention_mask (`torch.Tensor`, *optional*): Of a padded batch; packed rows have none.
        scaling (`float`, *optional*): Factor of the scores.
        dropout (`float`, defaults to 0): Share of attention weights dropped.
        kwargs: `cu_seq_lens_q` of (samples + 1,) and `max_length_q` make a row a packed one.

    Returns:
        `tuple[torch.Tensor, None]`: (1, T, H, E), and no weights.

    Raises:
        `ValueError`: Boundaries and tokens do not fit, or positions restart without boundaries.
    """
    boundaries = kwargs.get("cu_seq_lens_q")
    if boundaries is None:
        _refuse_unmarked_samples(module, kwargs.get("position_ids"), attention_mask)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.shape[0] != 1 or attention_mask is not None or key.shape[2] != query.shape[2]:
        raise ValueError("A packed row has a batch size of 1, no attention mask and no cache.")
    backend = backend_for(query.device, query.dtype)
    if backend == "sdpa_by_sample":
        return _sdpa_by_sample(query, key, value, boundaries, scaling, dropout), None
    triple = tuple(tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H or G, E)
    run = _flash_attn if backend == "flash_attn" else _torch_varlen
    return run(triple, boundaries, kwargs["max_length_q"], scaling, dropout).unsqueeze(0), None  # (1, T, H, E)


def _flash_attn(
    triple: tuple[torch.Tensor, ...], boundaries: torch.Tensor, longest: int, scaling: float | None, dropout: float
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    options = {"dropout_p": dropout, "softmax_scale": scaling, "causal": True}
    return flash_attn_varlen_func(*triple, boundaries, boundaries, longest, longest, **options)


def _torch_varlen(
    triple: tuple[torch.Tensor, ...], boundaries: torch.Tensor, longest: int, scaling: float | None, dropout: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise ValueError("torch's varlen kernel has no dropout; install flash-attn or set attention_dropout to 0.")
    query, key, value = triple
    grouped = query.shape[1] != key.shape[1]
    before = (-1, 0)  # everything before, nothing after
    lengths = (boundaries, boundaries, longest, longest)
    output = varlen_attn(query, key, value, *lengths, scale=scaling, window_size=before, enable_gqa=grouped)
    return cast(torch.Tensor, output)


def _sdpa_by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    edges = boundaries.tolist()
    if edges[0] != 0 or edges[-1] != query.shape[2]:
        raise ValueError(f"The boundaries run from {edges[0]} to {edges[-1]}, the row has {query.shape[2]} tokens.")
    lengths = [end - start for start, end in zip(edges, edges[1:], strict=False)]
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            rows, columns, values, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
        for rows, columns, values in zip(
            query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)  # (1, T, H, E)


def _refuse_unmarked_samples(
    module: torch.nn.Module, positions: torch.Tensor | None, attention_mask: torch.Tensor | None
) -> None:
    # Without a mask every token would see the samples before its own. One look a forward pass is enough.
    if positions is None or attention_mask is not None or getattr(module, "layer_idx", 0) != 0:
        return
    if positions.shape[-1] > 1 and bool((positions[..., 1:] <= positions[..., :-1]).any()):
        raise ValueError("Positions restart within a row, but `cu_seq_lens_q` is missing: use the packed collator.")


def _mask_of_padding(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    whole = kwargs.get("q_length") == kwargs.get("kv_length")
    if attention_mask is None and whole:  # packed, or a single sequence: causal attention needs no mask
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, _mask_of_padding)
