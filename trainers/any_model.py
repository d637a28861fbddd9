"""
Finetuning of any image-text-to-text model that transformers' Auto classes load: Qwen-VL, SmolVLM, LLaVA and others.

Only ShareGPT4V's own architecture is packed: others place images, positions and tokens in ways of their own. These
train as TRL trains them, padded, with the same rows, checkpoints and signals as the other stages.
"""

import logging
import re
from typing import Any

from accelerate import DistributedType
from datasets import Dataset, Image, IterableDataset, List
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from .captions import as_conversations
from .checkpoints import CompleteCheckpoints
from .configs import AnyModelConfig
from .sharding import blank_image, run_tower_on_text
from .watch import WatchedRun


logger = logging.getLogger(__name__)

# What stands between tower and LLM, by the names that transformers' families give it; Qwen's lies within its tower.
PROJECTOR = re.compile(r"(?:^|\.)(multi_modal_projector|connector|merger|projector|mm_projector)(?:\.|$)")


class AnyModelTrainer(WatchedRun, CompleteCheckpoints, SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] for models of other families.

    Args:
        model (`PreTrainedModel`): Model of `AutoModelForImageTextToText`.
        args (`AnyModelConfig`): Arguments of the run.
        train_dataset (`Dataset` or `IterableDataset`): Conversation rows, or caption rows if `args.instruction` is
            the question that they answer.
        processing_class (`ProcessorMixin`): Processor of the model.
        kwargs: Further arguments of [`~trl.SFTTrainer`].

    Raises:
        `ValueError`: The model has no tower or LLM that can be told apart, or its chat template does not say what is
            an answer and rows have more than one.
    """

    _tag_names = ["sharegpt4v", "trl"]

    def __init__(
        self,
        model: PreTrainedModel,
        args: AnyModelConfig,
        train_dataset: Dataset | IterableDataset,
        processing_class: ProcessorMixin,
        **kwargs: Any,
    ):
        train_dataset = as_conversations(train_dataset, args.instruction).cast_column("images", List(Image()))
        marked, end = _marks_answers(processing_class), _missing_end(model, processing_class)
        if not marked:
            args.assistant_only_loss, args.completion_only_loss = False, True
        if end or not marked:
            train_dataset = _as_trained(train_dataset, type(processing_class).__name__, marked, end)
        adapters = None
        if args.lora_rank is None:
            _freeze_tower(model, args.tune_vision)
        else:
            adapters = _adapters(model, args, args.lora_rank)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            peft_config=adapters,
            **kwargs,
        )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            run_tower_on_text(model, blank_image(processing_class, model))
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info("%s trains %s parameters, padded.", type(model).__name__, f"{trained:,}")

    def run_facts(self) -> dict[str, Any]:
        """
        What `run.json` holds of the rows.

        Returns:
            `dict`: Nothing here: no row is left out or shortened.
        """
        return {}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TRL's card calls this a text-generation model. Cards are rendered from the facts of the run."""


def _marks_answers(processor: ProcessorMixin) -> bool:
    """Whether TRL can tell answers by the chat template, its own version of it for training included."""
    try:
        get_training_chat_template(processor)
    except ValueError as error:
        logger.info("Answers are told by their place, not by the chat template: %s", error)
        return False
    return True


def _missing_end(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """
    End token that answers lack, or nothing.

    The template of llava-hf/llava-1.5-7b-hf, for one, ends no answer, and a model that is trained so never stops.
    """
    tokenizer, answer = processor.tokenizer, "ANSWER"
    turns = [("user", "What?"), ("assistant", answer)]
    talk = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    _, found, behind = processor.apply_chat_template(talk, tokenize=False).rpartition(answer)
    declared = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
    if not found or not ends or ends & set(tokenizer(behind, add_special_tokens=False)["input_ids"]):
        return ""
    end = tokenizer.eos_token or tokenizer.decode([min(ends)])
    logger.warning("The chat template of %s ends no answer: %s is trained behind each.", type(processor).__name__, end)
    return end


def _as_trained(rows: Dataset | IterableDataset, processor: str, marked: bool, end: str) -> Dataset | IterableDataset:
    """Rows with the end of each answer, and as question and answer if the template marks none, when they are read."""

    def change(batch: dict[str, list]) -> dict[str, list]:
        pairs = zip(batch["id"], batch["messages"], strict=True)
        if not marked and (long := [name for name, talk in pairs if len(talk) != 2]):
            raise ValueError(
                f"Row {long[0]!r} has several turns, and the chat template of {processor} does not mark answers by "
                "{% generation %}. Add the marks to the template, or train on rows of one turn."
            )
        turns = [[_ended(turn, end) for turn in talk] for talk in batch["messages"]]
        if marked:
            return {"images": batch["images"], "messages": turns}
        sides = {"prompt": [turn[:1] for turn in turns], "completion": [turn[1:] for turn in turns]}
        return {"images": batch["images"], **sides}

    if isinstance(rows, IterableDataset):
        return rows.map(change, batched=True, remove_columns=rows.column_names)
    return rows.with_transform(change)


def _ended(turn: dict[str, str], end: str) -> dict[str, str]:
    return {**turn, "content": turn["content"] + end} if turn["role"] == "assistant" else turn


def _tower_of(model: PreTrainedModel) -> nn.Module:
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model or not isinstance(tower, nn.Module):
        raise ValueError(f"{type(model).__name__} does not say which part is its vision tower; it cannot be trained.")
    return tower


def _freeze_tower(model: PreTrainedModel, tune_vision: bool) -> None:
    for name, parameter in _tower_of(model).named_parameters():
        parameter.requires_grad = tune_vision or PROJECTOR.search(name) is not None


def _adapters(model: PreTrainedModel, args: AnyModelConfig, rank: int) -> LoraConfig:
    _tower_of(model)  # a model without one is refused here, too
    decoder = set(model.get_decoder().modules())
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module in decoder]
    whole = sorted({found.group(1) for name, _ in model.named_modules() if (found := PROJECTOR.search(name))})
    if not linear:
        raise ValueError(f"{type(model).__name__} does not say which part is its LLM; train it with `lora_rank` of 0.")
    return LoraConfig(
        r=rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=linear,
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
