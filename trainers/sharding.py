"""
What a ShareGPT4V model needs to train with its parameters shared out among ranks (FSDP, DeepSpeed ZeRO-3).

Ranks that share parameters gather them and reduce their gradients together, module by module. A rank whose
micro-batch is text alone would leave the vision tower out: the others would wait for it, or add its gradients of other
modules to theirs. The planner gives every micro-batch an image where there are enough; here is what happens where
there are not.
"""

# B batch, S sequence, P features of an image, D width of the LLM

from dataclasses import replace
from functools import wraps
from inspect import signature
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from PIL import Image
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, ProcessorMixin


def prepare_sharding(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """
    Make a model fit to be sharded by accelerate; without FSDP or DeepSpeed nothing changes.

    Args:
        accelerator (`Accelerator`): Of the run, before it prepares the model.
        model (`PreTrainedModel`): LLaVA-style model, without the wrappers of PEFT; changed in place.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        run_tower_on_text(model)
    if kind == DistributedType.FSDP:
        complete_fsdp_plugin(accelerator.state.fsdp_plugin, model)
        _save_under_own_name(model)


def run_tower_on_text(model: PreTrainedModel, blank: dict[str, torch.Tensor] | None = None) -> None:
    """
    Let a batch of text alone pass a blank image through tower and projector, which adds zero, and gradients of zero.

    The original does so in its collator. Here the model does it where it runs images, so that parts of a tower that
    are sharded on their own are gathered and reduced in the same order on all ranks. A step without any image then
    gives tower and projector gradients of zero instead of none.

    Args:
        model (`PreTrainedModel`): Image-text-to-text model with an inner one, changed in place.
        blank (`dict`, *optional*): What its `get_image_features` takes of one image, by default a LLaVA's square.
    """
    inner = model.model
    plain_forward = inner.forward

    @wraps(plain_forward.__func__)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        given = [kwargs.get(name) is not None for name in ("input_ids", "pixel_values", "past_key_values")]
        if given == [True, False, False]:  # a cache belongs to `generate`, whose steps have no image
            embeds = self.get_input_embeddings()(kwargs.pop("input_ids"))  # (B, S, D)
            kwargs["inputs_embeds"] = embeds + _nothing_of_a_blank_image(self, blank).to(embeds.dtype)
        return plain_forward(*args, **kwargs)

    inner.forward = MethodType(forward, inner)


def complete_fsdp_plugin(plugin: Any, model: PreTrainedModel) -> None:
    """
    Replace what accelerate chooses for FSDP by what this model needs; what the user has chosen is kept.

    Sharded on their own are the decoder layers of the LLM: accelerate looks for every class that transformers lists
    for CLIP, and stops because a LLaVA has no text tower. And with mixed precision gradients are added up in float32,
    and neither the weights of labels nor the loss are rounded to half precision.

    Args:
        plugin (`FullyShardedDataParallelPlugin`): Changed in place.
        model (`PreTrainedModel`): LLaVA-style model.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        layers = model.get_decoder().layers
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    policy = plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy):  # that of FSDP2
        half = policy.param_dtype
        if policy == MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half, output_dtype=half):
            plugin.mixed_precision_policy = replace(
                policy, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
            )


def blank_image(processor: ProcessorMixin, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    What a model's `get_image_features` takes of a small black image.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
        model (`PreTrainedModel`): Image-text-to-text model.

    Returns:
        `dict[str, torch.Tensor]`: Keyword arguments, on the CPU.
    """
    content = [{"type": "image", "image": Image.new("RGB", (28, 28))}, {"type": "text", "text": "x"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    taken = signature(model.model.get_image_features).parameters
    return {name: tensor for name, tensor in inputs.items() if name in taken}


def _nothing_of_a_blank_image(model: PreTrainedModel, blank: dict[str, torch.Tensor] | None) -> torch.Tensor:
    if blank is None:
        vision = model.config.vision_config
        blank = {"pixel_values": torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)}
    blank = {name: tensor.to(model.device) for name, tensor in blank.items()}
    features = model.get_image_features(**blank, return_dict=True).pooler_output[0]  # (P, D)
    return features.flatten()[:0].sum()  # of no feature, so that it is 0 even if one is infinite


def _save_under_own_name(model: PreTrainedModel) -> None:
    # FSDP2 gives a model a class of its own, made in a file of torch, and `save_pretrained` would copy that file and
    # its neighbours into the saved model instead of ours (transformers 5.23, `custom_object_save`).
    plain_save, own = model.save_pretrained, type(model)

    @wraps(plain_save.__func__)
    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        sharded = type(self)
        sharded.__name__, sharded.__module__ = own.__name__, own.__module__
        plain_save(*args, **kwargs)

    model.save_pretrained = MethodType(save_pretrained, model)  # type: ignore[method-assign]
