"""Arguments of the stages: TRL's `SFTConfig` with what the stages of ShareGPT4V need beside it."""

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig

from dataset_scripts.schema import CAPTION_INSTRUCTION
from modeling_sharegpt4v import chat_template_path

from .geometry import Tuning


CHAT_TEMPLATE = {"help": "Template of the conversations; it is saved with the model."}
TUNE_VISION = {"help": "Tower blocks from this one on train; -1: the whole tower; unset: the tower is frozen."}
INSTRUCTION = {"help": "Question that every caption answers; caption rows can then be trained on."}


@dataclass
class StageConfig(SFTConfig):
    """Arguments of every stage: TRL's [`~trl.SFTConfig`] with the fields below."""

    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Samples of an optimizer step over all GPUs; sets `gradient_accumulation_steps`."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train low-rank adapters of the LLM, with the projector whole; 0 or unset: no adapters."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    instruction: str | None = field(default=None, metadata=INSTRUCTION)
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes what it needs."})
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "What a run sends to the Hub is private, a trackio Space too."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.lora_rank = self.lora_rank or None
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = accumulation_for(
                self.global_batch_size, self.per_device_train_batch_size, self.world_size
            )

    @property
    def step_samples(self) -> int:
        """Samples of an optimizer step, over all ranks and micro-batches (`int`)."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        return self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps

    def require_equal_micro_batches(self) -> None:
        """
        Check that equal batches, which streams and padded training are cut into, make the steps of the recipe.

        Raises:
            `ValueError`: `global_batch_size` is no multiple of what the ranks take at a time.
        """
        at_once = self.per_device_train_batch_size * self.world_size
        if self.step_samples != at_once * self.gradient_accumulation_steps:
            raise ValueError(
                f"Streams and padded training have equal batches, so `global_batch_size` of {self.global_batch_size} "
                f"must be a multiple of {at_once}, `per_device_train_batch_size` on {self.world_size} processes. "
                "Change one of them."
            )


@dataclass
class FinetuneConfig(StageConfig):
    """
    Arguments of [`FinetuneTrainer`].

    Always so, whatever the parent's fields say: answers and their end tokens are trained, questions are not; rows are
    packed without padding; no sample is cut within an answer.
    """

    chat_template: Literal["vicuna_v1", "plain"] = field(default="vicuna_v1", metadata=CHAT_TEMPLATE)
    image_aspect_ratio: Literal["pad", "crop"] | None = field(
        default=None,
        metadata={"help": "How images become squares; saved with the model. Unset: as its processor says."},
    )
    tune_vision_from_block: int | None = field(default=None, metadata=TUNE_VISION)
    tune_projector: bool = field(default=True, metadata={"help": "Whether the projector trains."})
    tune_language_model: bool = field(default=True, metadata={"help": "Whether the LLM and its head train."})
    max_length: int | None = field(
        default=None, metadata={"help": "Most text tokens of a sample; image tokens come on top (2048 in the paper)."}
    )
    on_too_long: Literal["error", "drop_turns"] = field(
        default="error", metadata={"help": "A longer sample stops the run, or loses whole turns at its end."}
    )
    loss_normalisation: Literal["tokens", "samples"] = field(
        default="tokens",
        metadata={"help": "Mean over the label tokens of a step, or over the samples' own means."},
    )
    max_tokens: int | None = field(default=None, metadata={"help": "Most tokens of a packed micro-batch."})
    exact_images: bool = field(
        default=True, metadata={"help": "Pixels as the processor makes them; else faster, 8-bit until on the device."}
    )

    @property
    def tuning(self) -> Tuning:
        """What trains (`Tuning`)."""
        return Tuning(self.tune_vision_from_block, self.tune_projector, self.tune_language_model, self.lora_rank)

    def __post_init__(self):
        super().__post_init__()
        if self.chat_template_path is not None:  # type: ignore[has-type]  # declared in SFTConfig
            raise ValueError("Set `chat_template` (vicuna_v1 or plain) instead of `chat_template_path`.")
        if self.loss_type != "nll" or self.label_smoothing_factor or self.packing or self.padding_free:
            raise ValueError(
                "Rows are always packed, and the loss is plain cross entropy: leave `loss_type`, "
                "`label_smoothing_factor`, `packing` and `padding_free` at their defaults."
            )
        if self.lora_rank is not None and self.tune_vision_from_block is not None:
            raise ValueError(
                "Adapters do not hold a tuned tower: leave `tune_vision_from_block` or `lora_rank` unset."
            )
        self.chat_template_path = str(chat_template_path(self.chat_template))


@dataclass
class PretrainConfig(FinetuneConfig):
    """Arguments of [`PretrainTrainer`]: plain template, and blocks 12 to 22 of the paper's 24 train with the rest."""

    chat_template: Literal["vicuna_v1", "plain"] = field(default="plain", metadata=CHAT_TEMPLATE)
    tune_vision_from_block: int | None = field(default=12, metadata=TUNE_VISION)
    instruction: str | None = field(default=CAPTION_INSTRUCTION, metadata=INSTRUCTION)


@dataclass
class CaptionerConfig(FinetuneConfig):
    """
    Arguments of [`CaptionerTrainer`]: every caption answers one instruction, whatever it was written for.

    The paper's Share-Captioner learned from captions written with a prompt for each source to describe any image on
    one general request (section 3.3).
    """

    instruction: str | None = field(default=CAPTION_INSTRUCTION, metadata=INSTRUCTION)

    def __post_init__(self):
        super().__post_init__()
        if not self.instruction:
            raise ValueError("A captioner needs an `instruction`, the question that all its captions answer.")


@dataclass
class AnyModelConfig(StageConfig):
    """
    Arguments of [`AnyModelTrainer`]: adapters by default, `lora_rank` of 0 trains LLM and projector.

    Rows are padded and not packed, and never cut: an image may be hundreds of tokens.
    """

    max_length: int | None = field(default=None, metadata={"help": "Unset: a cut would go through an image."})
    lora_rank: int | None = field(default=64, metadata={"help": "Rank of the adapters; 0: LLM and projector train."})
    assistant_only_loss: bool = field(default=True, metadata={"help": "Answers are trained, questions are not."})
    tune_vision: bool = field(default=False, metadata={"help": "Whether the vision tower trains, without adapters."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_length is not None:
            raise ValueError("`max_length` cuts through images here. Leave it unset, and too long samples out.")
        if self.tune_vision and self.lora_rank:
            raise ValueError("Adapters do not hold a tuned tower: set `lora_rank` to 0 or `tune_vision` to false.")
        self.require_equal_micro_batches()


def accumulation_for(global_batch_size: int, per_device: int, world_size: int) -> int:
    """
    Gradient accumulation steps that keep a global batch on any number of GPUs.

    The samples of a step are dealt to ranks and micro-batches by cost, so their number need not divide: 256 samples
    on 24 GPUs with at most 16 each are 24 micro-batches of 10 or 11.

    Args:
        global_batch_size (`int`): Samples of an optimizer step.
        per_device (`int`): Samples that a micro-batch of one GPU has at most, on average over ranks.
        world_size (`int`): GPUs.

    Returns:
        `int`: Steps.

    Raises:
        `ValueError`: There are more GPUs than samples, or a micro-batch has none.
    """
    if per_device < 1:
        raise ValueError(f"`per_device_train_batch_size` must be at least 1, got {per_device}.")
    if global_batch_size < world_size:
        raise ValueError(
            f"`global_batch_size` of {global_batch_size} cannot be kept on {world_size} GPUs: each needs a sample of "
            "its own in every step. Use fewer GPUs, or another batch size, which is another recipe."
        )
    steps = -(-global_batch_size // (per_device * world_size))
    return min(steps, global_batch_size // world_size)
