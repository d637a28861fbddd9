"""
The stages of ShareGPT4V as subclasses of TRL's SFTTrainer.

Both stages read conversation rows (`images`, `messages`); they differ in the chat template and in what trains
([paper](https://huggingface.co/papers/2311.12793), section 3.4).
"""

# B batch, S sequence, K positions that predict a label in any row of the batch

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import DistributedType
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from modeling_sharegpt4v import ShareGPT4VProcessor, chat_template_path

from .trainable import TrainableCheck, format_table, select_trainable, trainable_table


logger = logging.getLogger(__name__)

IGNORED = -100


@dataclass
class FinetuneConfig(SFTConfig):
    """
    Arguments of [`FinetuneTrainer`]: TRL's [`~trl.SFTConfig`] with the fields below.

    Other defaults than in the parent class: `assistant_only_loss=True` (answers and end tokens are trained, questions
    are not), `max_length=None` (TRL's 1,024 cuts answers or image tokens off without a word).
    """

    chat_template: Literal["vicuna_v1", "plain"] = field(
        default="vicuna_v1", metadata={"help": "Template of the conversations; it is saved with the model."}
    )
    tune_vision_from_block: int | None = field(
        default=None,
        metadata={"help": "Tower blocks from this one on train; -1: the whole tower; unset: the tower is frozen."},
    )
    tune_projector: bool = field(default=True, metadata={"help": "Whether the projector trains."})
    tune_language_model: bool = field(default=True, metadata={"help": "Whether the LLM and its head train."})
    assistant_only_loss: bool = field(default=True, metadata={"help": "Train on answers and end tokens only."})
    max_length: int | None = field(default=None, metadata={"help": "Upper bound of tokens, images included."})

    def __post_init__(self):
        super().__post_init__()
        if self.chat_template_path is not None:  # type: ignore[has-type]  # declared in SFTConfig
            raise ValueError("Set `chat_template` (vicuna_v1 or plain) instead of `chat_template_path`.")
        self.chat_template_path = str(chat_template_path(self.chat_template))


@dataclass
class PretrainConfig(FinetuneConfig):
    """Arguments of [`PretrainTrainer`]: plain template, and blocks 12 to 22 of the paper's 24 train with the rest."""

    chat_template: Literal["vicuna_v1", "plain"] = field(
        default="plain", metadata={"help": "Template of the captions; it is saved with the model."}
    )
    tune_vision_from_block: int | None = field(
        default=12,
        metadata={"help": "Tower blocks from this one on train; -1: the whole tower; unset: the tower is frozen."},
    )


class ShareGPT4VTrainer(SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] that decides what trains, says so and checks it after the first backward pass.

    Args:
        model (`PreTrainedModel`): Model loaded by [`ShareGPT4VForConditionalGeneration`].
        args (`FinetuneConfig` or `PretrainConfig`): Arguments of the run.
        train_dataset (`Dataset` or `IterableDataset`): Conversation rows.
        processing_class (`ShareGPT4VProcessor`): Processor of the model.
        kwargs: Further arguments of [`~trl.SFTTrainer`].

    Raises:
        `ValueError`: The dataset lacks a column, or nothing would train.
        `RuntimeError`: In the first step, if the gradients are not where the table says.
    """

    _tag_names = ["sharegpt4v", "llava", "trl"]

    def __init__(
        self,
        model: PreTrainedModel,
        args: FinetuneConfig,
        train_dataset: Dataset | IterableDataset,
        processing_class: ShareGPT4VProcessor,
        **kwargs: Any,
    ):
        missing = {"images", "messages"} - set(train_dataset.column_names or ())
        if missing:
            raise ValueError(
                f"The dataset lacks the columns {sorted(missing)} of a conversation row. Captions are built for "
                "training with `sharegpt4v data build` or `join` and `--rows conversations`."
            )
        select_trainable(model, args.tune_vision_from_block, args.tune_projector, args.tune_language_model)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs
        )
        self.trainable = trainable_table(model)
        if self.is_world_process_zero():
            logger.info("What trains in this run:\n%s", format_table(self.trainable))
        self._has_seen_images = False
        is_sharded = self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        if is_sharded:
            logger.warning("Parameters are sharded over ranks, so gradients are not compared with the table above.")
        self.add_callback(TrainableCheck(self.trainable, lambda: self._has_seen_images, is_sharded))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Mean cross entropy over label tokens; on a CPU with logits only where some row of the batch has a label.

        TRL does the same on devices with Triton. Elsewhere it scores every position, image and prompt positions too,
        which with a large vocabulary is most of the step. Other losses than plain cross entropy are TRL's as well.

        Args:
            model (`torch.nn.Module`): The model, wrapped or not.
            inputs (`dict`): Batch of the collator with `labels` of (B, S).
            return_outputs (`bool`, defaults to `False`): Whether to return the model's outputs too.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Label tokens of the whole optimizer step, over
                micro-batches and ranks; by default those of this batch.

        Returns:
            `torch.Tensor`: The loss, and the model's outputs if asked for.

        Raises:
            `ValueError`: No token of the batch is trained; the message shows its text.
        """
        self._has_seen_images = self._has_seen_images or "pixel_values" in inputs
        is_plain = self.args.loss_type == "nll" and not self.aux_loss_enabled
        is_plain = is_plain and self.label_smoother is None and self.compute_loss_func is None
        if inputs["input_ids"].device.type != "cpu" or not is_plain:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["labels"][:, 1:]  # (B, S - 1), the token that each position predicts
        positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (K,)
        if positions.numel() == 0:
            text = self.processing_class.decode(inputs["input_ids"][0], skip_special_tokens=True)
            raise ValueError(f"No token of this batch is trained. Its first sample has no answer: {text[:200]!r}.")
        features = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**features, use_cache=False, logits_to_keep=positions)
        losses = torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),  # (B * K, vocabulary)
            targets[:, positions].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        if num_items_in_batch is None:
            loss = losses / (targets != IGNORED).sum()
        else:
            loss = losses / num_items_in_batch
            if self.args.average_tokens_across_devices:  # distributed training averages the gradients of the ranks
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TRL's card calls this a text-generation model. Cards are rendered from the facts of the run."""


class PretrainTrainer(ShareGPT4VTrainer):
    """First stage: tower (from a block on), projector and LLM learn to describe images in detail."""


class FinetuneTrainer(ShareGPT4VTrainer):
    """Second stage: projector and LLM learn to converse; the tower of the first stage is kept as it is."""
