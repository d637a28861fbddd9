"""
Which models the slots can serve: what their configuration says, and a trial against `generate` on two small images.

A family whose positions, masks or caches follow rules that the slots do not know would caption wrongly without any
error, so an engine is only made after the trial has given the logits of `generate`, one at a time.
"""

# V words

import inspect

import torch
from PIL import Image
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicLayer

from .engine_inputs import Prepared, collate, group, prepare
from .engine_model import SlotModel
from .engine_requests import CaptionRequest


ATTENTION = ("sdpa", "eager")  # those that take a mask over keys
STEPS = 3
TRIALS = (((64, 48), "What?"), ((40, 72), "What is it?"))  # sizes of images and prompts
# Root mean square of the differences of logits in the trial, in standard deviations of the logits. Another order of
# sums costs about 1e-6 and, in half precision, 1e-2 of one; a wrong position or mask in a trained model, most of one.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.25
ADVICE = "Serve it with vLLM or another server and caption through its endpoint."


def check_config(config: PreTrainedConfig, name: str) -> None:
    """
    Refuse a configuration whose decoder does not keep plain keys and values.

    Args:
        config (`PreTrainedConfig`): Configuration of the model.
        name (`str`): What to call the model in an error.

    Raises:
        `ValueError`: It is an encoder-decoder, or has layers of another kind; the message says which.
    """
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise _refusal(name, "it is an encoder-decoder, whose cross-attention keeps keys beside those of the tokens")
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if kinds:
        raise _refusal(name, f"layers of its decoder keep a {', '.join(sorted(kinds))} and no plain keys and values")


def check_model(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """
    Refuse a model or processor that cannot be driven by slots.

    Args:
        model (`PreTrainedModel`): The model.
        processor (`ProcessorMixin`): Its processor.

    Raises:
        `ValueError`: With the class and the reason.
    """
    name = type(model).__name__
    check_config(model.config, name)
    if not model.can_generate():
        raise _refusal(name, "it has no language model head")
    accepted = inspect.signature(model.forward).parameters
    needed = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
    if missing := [one for one in needed if one not in accepted]:
        raise _refusal(name, f"its forward takes no {', '.join(f'`{one}`' for one in missing)}")
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    if attention not in ATTENTION:
        raise ValueError(
            f"Slots need attention of {ATTENTION}, and {name} was loaded with {attention!r}. Load it anew."
        )
    if not isinstance(processor, ProcessorMixin) or "image_processor" not in processor.get_attributes():
        raise _refusal(name, f"{type(processor).__name__} has no image processor")
    if not processor.chat_template:
        raise _refusal(name, f"{type(processor).__name__} has no chat template to ask a question with")


def try_out(slots: SlotModel, processor: ProcessorMixin) -> None:
    """
    Compare two small images in slots with `generate`, one at a time; this also makes the buffers.

    Args:
        slots (`SlotModel`): The model with no row in use; so it is left.
        processor (`ProcessorMixin`): Its processor.

    Raises:
        `ValueError`: Images or prompts cannot be processed, or logits differ.
    """
    name, cache = type(slots.model).__name__, slots.cache
    prepared = [_trial(processor, name, *one) for one in TRIALS[: cache.slots]]
    longest = max(one.tokens for one in prepared)
    if longest + STEPS > cache.max_length:
        raise ValueError(
            f"`max_length` of {cache.max_length} is too short: an image and a short question make {longest} tokens "
            f"with {type(processor).__name__}. Give the slots room for these and for a caption."
        )
    try:
        alone = [_generate(slots, one) for one in prepared]
        together = _decode(slots, prepared, [tokens for tokens, _ in alone])
    except torch.OutOfMemoryError:  # says nothing of the model: fewer or shorter slots may fit
        raise
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        raise _refusal(name, f"a trial with two images failed ({type(error).__name__}: {error})") from error
    tolerance = TOLERANCE.get(slots.dtype, HALF_TOLERANCE)
    for (_, expected), found in zip(alone, together, strict=True):
        difference = float((found - expected).square().mean().sqrt() / expected.std().clamp_min(1e-9))
        if not difference <= tolerance:
            raise _refusal(
                name, f"its logits in slots are {difference:.2g} standard deviations from those of `generate`"
            )


def _refusal(name: str, reason: str) -> ValueError:
    return ValueError(f"{name} cannot be captioned in slots: {reason}. {ADVICE}")


def _trial(processor: ProcessorMixin, name: str, size: tuple[int, int], prompt: str) -> Prepared:
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    prepared = prepare(processor, CaptionRequest("trial", picture, prompt))
    if prepared.error:
        raise _refusal(
            name, f"{type(processor).__name__} does not turn an image and a question into inputs ({prepared.error})"
        )
    if not {"input_ids", "attention_mask"} <= set(prepared.inputs):
        raise _refusal(name, f"{type(processor).__name__} gives no token ids and mask")
    return prepared


def _generate(slots: SlotModel, prepared: Prepared) -> tuple[list[int], torch.Tensor]:
    # Tokens of `generate` and the logits before them, (STEPS, V).
    out = slots.model.generate(
        **collate([prepared], slots.pad_token_id, slots.device, slots.dtype),
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, prepared.tokens :].tolist(), torch.cat(out.logits).float()


def _decode(slots: SlotModel, prepared: list[Prepared], tokens: list[list[int]]) -> list[torch.Tensor]:
    # Logits of the slots when each row goes on with the given tokens, (STEPS, V) a row.
    order, logits = [], []
    try:
        for chosen in group(prepared):
            order += [prepared.index(one) for one in chosen]
            logits.append(slots.prefill(chosen))
        steps = [torch.cat(logits)]
        steps += [slots.step([tokens[row][step] for row in order]) for step in range(STEPS - 1)]
    finally:
        while slots.rows:
            slots.remove(slots.rows - 1)
    together = torch.stack(steps, dim=1).float()  # (R, STEPS, V)
    return [together[order.index(row)] for row in range(len(prepared))]
