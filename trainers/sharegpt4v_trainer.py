"""
The stages of ShareGPT4V as subclasses of TRL's SFTTrainer.

All read conversation rows (`images`, `messages`), or captions; they differ in the chat template and in what trains
([paper](https://huggingface.co/papers/2311.12793), section 3.4). TRL refuses packed batches of images: here rows are
tokenised once, packed without padding, dealt to ranks by cost, and the head runs on label positions only.
"""

import logging
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import DistributedType
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import seed_worker
from trl import SFTTrainer

from modeling_sharegpt4v import ShareGPT4VProcessor, chat_template_path

from .attention import backend_for, use_varlen_attention
from .captions import as_conversations, ask_one_question, is_captions
from .checkpoints import CompleteCheckpoints
from .configs import FinetuneConfig
from .geometry import measure
from .label_loss import add_label_loss, weigh_labels
from .packing import OnlineCollator, PackedCollator, normalise_pixels
from .planner import PlannedBatches
from .roofline import sample_flops
from .sharding import prepare_sharding
from .tokenised import TokeniseReport, tokenise_rows
from .trainable import TrainableCheck, format_table, trainable_table
from .watch import WatchedRun, peak_of


logger = logging.getLogger(__name__)

# A text is a pattern of full names; a list of ends would also hit the tower.
LLM_LINEARS = r".*\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


class ShareGPT4VTrainer(WatchedRun, CompleteCheckpoints, SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] that decides what trains, says so and checks it after the first backward pass.

    Args:
        model (`PreTrainedModel`): Model loaded by [`ShareGPT4VForConditionalGeneration`].
        args (`FinetuneConfig`): Arguments of the run.
        train_dataset (`Dataset` or `IterableDataset`): Conversation rows, or caption rows if `args.instruction` is
            the question that they answer.
        processing_class (`ShareGPT4VProcessor`): Processor of the model.
        kwargs: Further arguments of [`~trl.SFTTrainer`].

    Raises:
        `ValueError`: The dataset lacks a column, or nothing would train.
        `RuntimeError`: In the first step, if the gradients are not where the table says.
    """

    _tag_names = ["sharegpt4v", "llava", "trl"]
    tokenised: TokeniseReport | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: FinetuneConfig,
        train_dataset: Dataset | IterableDataset,
        processing_class: ShareGPT4VProcessor,
        **kwargs: Any,
    ):
        train_dataset = self._as_conversations(train_dataset, args)
        processing_class.chat_template = chat_template_path(args.chat_template).read_text(encoding="utf-8")
        if args.image_aspect_ratio is not None:
            processing_class.image_processor.do_pad = args.image_aspect_ratio == "pad"
        size = measure(model, args.tuning)  # which also sets what trains
        use_varlen_attention(model)
        add_label_loss(model)
        rows, collator = self._prepare(train_dataset, processing_class, args)
        self.sample_flops = lambda *sample: sum(sample_flops(size, *sample).values())
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=collator,
            processing_class=processing_class,
            peft_config=None if args.lora_rank is None else _adapters(args, args.lora_rank),
            **kwargs,
        )
        prepare_sharding(self.accelerator, model)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the numbers of the whole step already
        self.peak_flops = peak_of(self.args.device)
        self.trainable = trainable_table(model)
        if self.is_world_process_zero():
            self._log_setup()
        self._has_seen_images = False
        kind = self.accelerator.distributed_type
        is_sharded = (
            kind == DistributedType.DEEPSPEED or kind == DistributedType.FSDP and not self.accelerator.is_fsdp2
        )
        if is_sharded:
            logger.warning("Parameters are parts of flat ones, so gradients are not compared with the table above.")
        self.add_callback(TrainableCheck(self.trainable, lambda: self._has_seen_images, is_sharded))

    def get_train_dataloader(self) -> DataLoader:
        """
        Packed micro-batches of this rank: the samples of a step are those of a plain random order.

        Returns:
            `DataLoader`: Already this rank's share; accelerate must not deal it out again.
        """
        if isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        args, table = self.args, self.train_dataset.data
        images = pc.list_value_length(table.column("images")).fill_null(0)  # without reading an image
        planner = PlannedBatches(
            self._in_order(np.asarray(table.column("length"))),
            self._in_order(images.to_numpy() > 0),
            batch_size=args.step_samples,
            ranks=args.world_size,
            rank=args.process_index,
            micro_batches=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            max_tokens=args.max_tokens,
            drop_last=args.dataloader_drop_last,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=planner,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            generator=torch.Generator(),  # drawing the workers' seed must not move the generator of the model
        )
        return prepare_data_loader(loader, device=args.device, num_processes=1, process_index=0, put_on_device=True)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        Cross entropy of the labels, normalised as `loss_normalisation` says over the whole optimizer step.

        Args:
            model (`torch.nn.Module`): The model, wrapped or not.
            inputs (`dict`): Packed or padded batch with `labels` of (B, S).
            return_outputs (`bool`, defaults to `False`): Whether to return the model's outputs too.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Label tokens or samples of the whole optimizer
                step, over micro-batches and ranks; by default those of this batch.

        Returns:
            `torch.Tensor`: The loss, and the model's outputs if asked for.

        Raises:
            `ValueError`: No token of the batch is trained, or the loss is not finite; the message shows its text.
        """
        self._has_seen_images = self._has_seen_images or "pixel_values" in inputs
        if "pixel_values" in inputs and inputs["pixel_values"].dtype == torch.uint8:
            inputs = {**inputs, "pixel_values": normalise_pixels(inputs["pixel_values"], self.processing_class)}
        weights, count = weigh_labels(inputs["labels"], inputs.get("cu_seq_lens_q"), self.args.loss_normalisation)
        outputs = model(**inputs, label_weights=weights, use_cache=False)
        loss = outputs.loss / (count if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss) or count == 0:
            problem = "No token of this batch is trained" if count == 0 else f"The loss is {loss.item()}"
            raise ValueError(f"{problem}. The batch: {self._text_of(inputs)!r}.")
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Distributed training averages the gradients of the ranks, the number is of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | None:
        if not batch_samples:  # a stream that ended
            return None
        counts = [
            weigh_labels(batch["labels"], batch.get("cu_seq_lens_q"), self.args.loss_normalisation)[1]
            for batch in batch_samples
        ]
        total = torch.stack(counts).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    def _as_conversations(self, rows: Dataset | IterableDataset, args: FinetuneConfig) -> Dataset | IterableDataset:
        return as_conversations(rows, args.instruction)

    def _prepare(
        self, rows: Dataset | IterableDataset, processor: ShareGPT4VProcessor, args: FinetuneConfig
    ) -> tuple[Dataset | IterableDataset, PackedCollator]:
        if isinstance(rows, IterableDataset):
            args.require_equal_micro_batches()
            self.tokenised = None
            collator = OnlineCollator(
                processor,
                normalise=args.exact_images,
                max_length=args.max_length,
                on_too_long=args.on_too_long,
            )
            return rows, collator
        with args.main_process_first(desc="tokenising"):  # the others read its cache
            tokenised = tokenise_rows(rows, processor, args.max_length, args.on_too_long, args.dataset_num_proc)
        rows, report = tokenised
        self.tokenised = report
        _log_left_out(report, args.max_length)
        return rows, PackedCollator(processor, normalise=args.exact_images)

    def _in_order(self, values: np.ndarray) -> np.ndarray:
        # Rows that were selected or shuffled are the stored ones by their indices.
        indices = self.train_dataset._indices
        return values if indices is None else values[np.asarray(indices.column(0))]

    def _log_setup(self) -> None:
        logger.info("What trains in this run:\n%s", format_table(self.trainable))
        dtype = next(self.model.parameters()).dtype
        unit = {"tokens": "the label tokens of a step", "samples": "the samples of a step, each by its own mean"}
        logger.info(
            "Packed rows attend by %s; the loss is a mean over %s.",
            backend_for(self.args.device, torch.bfloat16 if self.args.bf16 else dtype),
            unit[self.args.loss_normalisation],
        )

    def _text_of(self, inputs: dict[str, Any]) -> str:
        ids = inputs["input_ids"][0]
        text = self.processing_class.decode(ids[ids != self.processing_class.image_token_id], skip_special_tokens=True)
        return text[:400]

    def run_facts(self) -> dict[str, Any]:
        """
        What `run.json` holds of the rows.

        Returns:
            `dict`: `samples_dropped` and `turns_dropped` by source; nothing of a stream, which is not known before.
        """
        if self.tokenised is None:
            return {}
        counts = {"samples_dropped": self.tokenised.samples_dropped, "turns_dropped": self.tokenised.turns_dropped}
        return {name: dict(of) for name, of in counts.items()}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TRL's card calls this a text-generation model. Cards are rendered from the facts of the run."""


def _log_left_out(report: TokeniseReport, max_length: int | None) -> None:
    samples, turns = report.samples_dropped, report.turns_dropped
    if samples or turns:
        logger.warning(
            "`max_length` of %s left out %s samples%s and %s turns at the end of others%s.",
            *(max_length, f"{samples.total():,}", _by_source(samples), f"{turns.total():,}", _by_source(turns)),
        )


def _by_source(counts: Counter[str]) -> str:
    listed = ", ".join(f"{source}: {count:,}" for source, count in sorted(counts.items()))
    return f" ({listed})" if listed else ""


def _adapters(args: FinetuneConfig, rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=LLM_LINEARS,
        modules_to_save=["multi_modal_projector"] if args.tune_projector else None,
        task_type="CAUSAL_LM",
    )


class PretrainTrainer(ShareGPT4VTrainer):
    """First stage: tower (from a block on), projector and LLM learn to describe images in detail."""


class FinetuneTrainer(ShareGPT4VTrainer):
    """Second stage: projector and LLM learn to converse; the tower of the first stage is kept as it is."""


class CaptionerTrainer(ShareGPT4VTrainer):
    """Share-Captioner: whatever a caption was written on, it is learned as the answer to one instruction."""

    def _as_conversations(self, rows: Dataset | IterableDataset, args: FinetuneConfig) -> Dataset | IterableDataset:
        if is_captions(rows) or {"images", "messages"} <= set(rows.column_names or ()):
            return ask_one_question(rows, str(args.instruction))
        return super()._as_conversations(rows, args)
