"""
What trains: chosen by three switches, shown as a table, checked against the gradients of the first step with images.

The original marked the last tower block as trainable although the loss never reaches it (features come from the
second-to-last hidden state), which wastes optimizer memory and breaks distributed training without
`find_unused_parameters` (InternLM/InternLM-XComposer@0f70c3e, `share4v/train/train.py`, `unlock_vit`).
Here such tensors are frozen and named.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass
class TrainableRow:
    """One line of the table: a part of the model that trains as a whole or not at all."""

    module: str
    parameters: int
    trains: bool
    dtype: str
    note: str = ""


def last_used_block(model: PreTrainedModel) -> int:
    """
    Index of the last tower block whose output reaches the projector.

    Args:
        model (`PreTrainedModel`): LLaVA-style model.

    Returns:
        `int`: 22 for 24 blocks and hidden state -2; later blocks and the final norm never get a gradient.
    """
    blocks = model.config.vision_config.num_hidden_layers
    layers = model.config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    return max(layer - 1 if layer >= 0 else blocks + layer for layer in layers)


def select_trainable(
    model: PreTrainedModel, tune_vision_from_block: int | None, tune_projector: bool, tune_language_model: bool
) -> None:
    """
    Set `requires_grad` of every parameter.

    Args:
        model (`PreTrainedModel`): LLaVA-style model, changed in place.
        tune_vision_from_block (`int`, *optional*): Tower blocks from this one on train; -1 trains the whole tower with
            its embeddings, `None` freezes it. The paper's pretraining uses 12 of 24 (Table 8). Blocks that the loss
            does not reach stay frozen, so 23 and 24 freeze a tower of 24 blocks, the first row of that table.
        tune_projector (`bool`): Whether the projector trains.
        tune_language_model (`bool`): Whether the LLM with its head trains.

    Raises:
        `ValueError`: Nothing would train, or the block does not exist.
    """
    last, blocks = last_used_block(model), model.config.vision_config.num_hidden_layers
    if tune_vision_from_block is not None and not -1 <= tune_vision_from_block <= blocks:
        raise ValueError(
            f"`tune_vision_from_block` must be null or from -1 to {blocks}, the number of blocks, got "
            f"{tune_vision_from_block}."
        )
    if tune_vision_from_block is not None and tune_vision_from_block > last:
        logger.warning("The loss reaches block %d at most, so the whole tower is frozen.", last)
    for name, parameter in model.named_parameters():
        if ".vision_tower." in name:
            part = _tower_part(name)
            parameter.requires_grad = tune_vision_from_block is not None and (
                tune_vision_from_block <= part <= last if part is not None else False
            )
        elif ".multi_modal_projector." in name:
            parameter.requires_grad = tune_projector
        else:
            parameter.requires_grad = tune_language_model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Nothing trains: set `tune_language_model`, `tune_projector` or `tune_vision_from_block`.")


def trainable_table(model: PreTrainedModel) -> list[TrainableRow]:
    """
    Describe what trains, from the parameters themselves.

    Args:
        model (`PreTrainedModel`): LLaVA-style model.

    Returns:
        `list[TrainableRow]`: Tower, projector and LLM in order; neighbouring tower blocks of one kind share a row.
    """
    last = last_used_block(model)
    rows: dict[tuple, TrainableRow] = {}
    for name, parameter in model.named_parameters():
        module, note = _module_of(name, last)
        dtype = str(parameter.dtype).removeprefix("torch.")
        key = (module, parameter.requires_grad, dtype, note)
        row = rows.setdefault(key, TrainableRow(module, 0, parameter.requires_grad, dtype, note))
        row.parameters += parameter.numel()
    return _merge_blocks(list(rows.values()))


def format_table(rows: list[TrainableRow]) -> str:
    """
    Lay the table out as text.

    Args:
        rows (`list[TrainableRow]`): Rows of [`trainable_table`].

    Returns:
        `str`: One line a row and a line of totals.
    """
    width = max(len(row.module) for row in rows)
    lines = [f"{'module':<{width}}  {'parameters':>13}  trains  dtype"]
    for row in rows:
        note = f"  ({row.note})" if row.note else ""
        lines.append(
            f"{row.module:<{width}}  {row.parameters:>13,}  {'yes' if row.trains else 'no':<6}  {row.dtype}{note}"
        )
    trained, total = sum(row.parameters for row in rows if row.trains), sum(row.parameters for row in rows)
    lines.append(f"{'trained / total':<{width}}  {trained:>13,}  of {total:,}")
    return "\n".join(lines)


class TrainableCheck(TrainerCallback):
    """
    Saves the table with the run, and stops a run whose first step with images does not train what the table says.

    A step of text alone leaves tower and projector without gradients and proves nothing, so the check waits. Where
    parameters are sharded as parts of flat ones (DeepSpeed, the first FSDP) they cannot be matched with the
    optimizer's, and the table is only saved.

    Args:
        rows (`list[TrainableRow]`): Rows of [`trainable_table`].
        has_seen_images (`Callable[[], bool]`): Whether the steps since the start had images.
        is_sharded (`bool`): Whether parameters are parts of flat ones that are spread over ranks.
    """

    def __init__(self, rows: list[TrainableRow], has_seen_images: Callable[[], bool], is_sharded: bool):
        self.rows = rows
        self.has_seen_images = has_seen_images
        self.is_done = is_sharded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write `trainable.json` into the output folder."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "trainable.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n", encoding="utf-8")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare gradients and optimizer with `requires_grad`, once."""
        if not self.is_done and self.has_seen_images():
            check_gradients(kwargs["model"], kwargs["optimizer"])
            self.is_done = True


def check_gradients(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """
    Check that exactly the trainable parameters have a gradient and are held by the optimizer.

    Args:
        model (`torch.nn.Module`): Model after a backward pass.
        optimizer (`torch.optim.Optimizer`): Its optimizer.

    Raises:
        `RuntimeError`: A trainable parameter got no gradient, a frozen one got one, or the optimizer disagrees.
    """
    parameters = dict(model.named_parameters())
    without = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
    frozen_with = [name for name, p in parameters.items() if not p.requires_grad and p.grad is not None]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    disagree = [name for name, p in parameters.items() if p.requires_grad != (id(p) in held)]
    for names, problem in (
        (without, "should train but got no gradient"),
        (frozen_with, "are frozen but got a gradient"),
        (disagree, "are treated otherwise by the optimizer than the table says"),
    ):
        if names:
            raise RuntimeError(f"{len(names)} parameters {problem}, first: {', '.join(names[:4])}.")


def _tower_part(name: str) -> int | None:
    # -1 for what stands before the blocks, the block's index, None for what stands behind them
    match = BLOCK.search(name)
    if match:
        return int(match.group(1))
    return -1 if ".embeddings." in name or ".pre_layrnorm." in name else None


def _module_of(name: str, last: int) -> tuple[str, str]:
    if ".vision_tower." in name:
        part = _tower_part(name)
        if part is None:
            return "vision tower, behind the blocks", "not reached by the loss"
        if part == -1:
            return "vision tower, embeddings", ""
        return f"vision tower, block {part}", "not reached by the loss" if part > last else ""
    if ".multi_modal_projector." in name:
        return "projector", "before this run" if ".original_module." in name else ""
    if ".lora_" in name:
        return "language model, adapters", ""
    return ("language-modeling head", "") if name.startswith("lm_head") else ("language model", "")


def _merge_blocks(rows: list[TrainableRow]) -> list[TrainableRow]:
    merged: list[TrainableRow] = []
    for row in rows:
        block = re.fullmatch(r"vision tower, block (\d+)", row.module)
        previous = merged[-1] if merged else None
        start = re.fullmatch(r"vision tower, blocks? (\d+)(?:-\d+)?", previous.module) if previous else None
        same = previous and (previous.trains, previous.dtype, previous.note) == (row.trains, row.dtype, row.note)
        if block and start and same and previous:
            previous.module = f"vision tower, blocks {start.group(1)}-{block.group(1)}"
            previous.parameters += row.parameters
        else:
            merged.append(row)
    return merged
