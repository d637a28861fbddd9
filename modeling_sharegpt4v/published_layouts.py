"""
What published checkpoints hold: their names for tensors, their configuration, and where the vision tower is.

ShareGPT4V (ShareGPT4Omni/ShareGPT4V@b6f70e9) and LLaVA-1.5 (haotian-liu/LLaVA@c121f04) keep LLM and projector in one
folder and the tower in another; their training checkpoints carry it inside; llava-hf keeps everything in one place.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.utils import logging

from .checkpoint_files import StoredTensor, find_weight_files, read_json, scan_tensors, stream_tensors
from .configuration_sharegpt4v import ShareGPT4VConfig
from .modeling_sharegpt4v import KEY_MAPPING, ShareGPT4VForConditionalGeneration


logger = logging.get_logger(__name__)
TOWER = "model.vision_tower."
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
# Live names -> names of a layout, the inverse of `KEY_MAPPING`. The layout `llava` has its tower in another folder.
EXPORT_NAMES = {
    "llava": {
        TOWER: "vision_model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.language_model.": "model.",
    },
    "llava-hf": {
        TOWER: "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
}
SELECT_STRATEGIES: dict[str, Literal["default", "full"]] = {"patch": "default", "cls_patch": "full"}
# Older configurations spell the rotary embedding in two fields of their own.
TEXT_FIELDS = {*LlamaConfig.__annotations__, "rope_theta", "rope_scaling"} - {"rope_parameters", "pad_token_id"}
VISION_FIELDS = set(CLIPVisionConfig.__annotations__)
# Buffers that older versions of transformers stored and newer ones compute, and the half of a CLIP that reads text.
COMPUTED = re.compile(r"(\.rotary_emb\.inv_freq|embeddings\.position_ids)$")
CLIP_TEXT = re.compile(r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)")
OPENAI_TOWER = re.compile(r"clip-vit-(base|large)-patch\d+")
TUNED_TOWER = re.compile(r"sharegpt4v|share4v|vit-large336-l\d+", re.IGNORECASE)
PUBLISHED_TOWER = re.compile(r"vit-large336-l\d+")


@dataclass
class Source:
    """A checkpoint: its `tensors` by their live names, and its `tower` if that has a folder of its own."""

    folder: Path
    fields: dict[str, Any]
    layout: Literal["sharegpt4v", "llava", "llava-hf"]
    tensors: dict[str, StoredTensor]
    dropped: list[str]
    tower: Path | None


def live_name(name: str) -> str | None:
    """
    Name of a tensor in the live model.

    Args:
        name (`str`): Published name, in any layout, or a live name.

    Returns:
        `str`: Live name; `None` for buffers that the model computes itself.
    """
    if COMPUTED.search(name):
        return None
    for pattern, replacement in KEY_MAPPING.items():
        name = re.sub(pattern, replacement, name)
    return name


def export_name(name: str, layout: Literal["llava", "llava-hf"]) -> str:
    """
    Name of a tensor in a layout.

    Args:
        name (`str`): Live name.
        layout (`str`): `llava` or `llava-hf`.

    Returns:
        `str`: Published name; for the tower of `llava` its name in the tower's folder.
    """
    for prefix, published in EXPORT_NAMES[layout].items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def open_source(model: Path, vision_tower: Path | None = None) -> Source:
    """
    Find out what a checkpoint folder holds; no data of tensors is read.

    Args:
        model (`Path`): Folder of the checkpoint.
        vision_tower (`Path`, *optional*): Folder of its tower, where the layout keeps it apart.

    Returns:
        `Source`: Layout, configuration and tensors.

    Raises:
        `FileNotFoundError`: A folder lacks its configuration or its weights.
        `ValueError`: The layout is unknown, or there is no tower or more than one.
    """
    for folder in (model, vision_tower):
        if folder is not None and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json. Give a local folder; `hf download` fetches one.")
    fields = read_json(model / "config.json")
    layout = _find_layout(model, fields)
    tensors, dropped = scan_tensors(find_weight_files(model), live_name)
    is_inside = any(name.startswith(TOWER) for name in tensors)
    own_tower = _own_tower(model, fields)
    if vision_tower and (is_inside or own_tower):
        raise ValueError(
            f"Two vision towers: {model} brings one ({'among its weights' if is_inside else own_tower}), and "
            f"`--vision-tower` names {vision_tower}. Leave `--vision-tower` out."
        )
    tower = None if is_inside else vision_tower or own_tower
    if tower:
        tower_tensors, tower_dropped = scan_tensors(find_weight_files(tower), _live_tower_name)
        tensors, dropped = tensors | tower_tensors, dropped + tower_dropped
    elif not is_inside and layout != "llava-hf":
        raise ValueError(
            f"{model} has no vision tower (its configuration names {fields.get('mm_vision_tower')!r}). Give the "
            "folder of the tower with `--vision-tower`."
        )
    logger.info("%s: layout %s, %d tensors, vision tower %s", model, layout, len(tensors), tower or "inside")
    if dropped:
        logger.info("Dropped %d tensors that the model computes or does not use: %s, ...", len(dropped), dropped[0])
    return Source(model, fields, layout, tensors, dropped, tower)


def _live_tower_name(name: str) -> str | None:
    return None if CLIP_TEXT.match(name) else live_name(f"vision_tower.{name}")


def _find_layout(model: Path, fields: dict[str, Any]) -> Literal["sharegpt4v", "llava", "llava-hf"]:
    model_type = fields.get("model_type")
    if model_type == "share4v":
        return "sharegpt4v"
    if model_type == "llava" and "vision_config" in fields and "text_config" in fields:
        return "llava-hf"
    if model_type in ("llava", "llava_llama"):
        return "llava"
    raise ValueError(f"The model type of {model} must be 'share4v' or 'llava', got {model_type!r}.")


def _own_tower(model: Path, fields: dict[str, Any]) -> Path | None:
    # Only a folder inside of the checkpoint, as `export` writes it; a name such as `openai/...` is never looked up.
    folder = (model / str(fields.get("mm_vision_tower") or "")).resolve()
    return folder if model.resolve() in folder.parents and folder.is_dir() else None


def read_config(source: Source) -> ShareGPT4VConfig:
    """
    Configuration of a checkpoint, with the vocabulary it has.

    Args:
        source (`Source`): Checkpoint.

    Returns:
        `ShareGPT4VConfig`: Configuration; tokens for images and padding are not set yet.

    Raises:
        `ValueError`: The checkpoint uses something that this model has not.
    """
    fields = source.fields
    if source.layout == "llava-hf":
        unused = ("_name_or_path", "vocab_size")  # the latter once repeated what `text_config` says
        return ShareGPT4VConfig.from_dict({name: value for name, value in fields.items() if name not in unused})
    if (projector := fields.get("mm_projector_type")) != "mlp2x_gelu":
        raise ValueError(f"`mm_projector_type` of {source.folder} must be 'mlp2x_gelu', got {projector!r}.")
    for name in ("mm_use_im_start_end", "mm_use_im_patch_token"):
        if fields.get(name):
            raise ValueError(f"`{name}` of {source.folder} must be false: this model has no such tokens.")
    select = fields.get("mm_vision_select_feature", "patch")
    if select not in SELECT_STRATEGIES:
        raise ValueError(f"`mm_vision_select_feature` must be one of {sorted(SELECT_STRATEGIES)}, got {select!r}.")
    return ShareGPT4VConfig(
        text_config=LlamaConfig(**{name: fields[name] for name in TEXT_FIELDS & fields.keys()}),
        vision_config=_vision_config(source),
        vision_feature_layer=fields.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=SELECT_STRATEGIES[select],
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )


def read_image_aspect_ratio(source: Source) -> Literal["pad", "crop"]:
    """
    How a checkpoint wants images to be made square.

    Args:
        source (`Source`): Checkpoint.

    Returns:
        `str`: `pad` or `crop`, which LLaVA calls `square` or leaves out.
    """
    if source.layout != "llava-hf":
        return "pad" if source.fields.get("image_aspect_ratio") == "pad" else "crop"
    for name in ("processor_config.json", "preprocessor_config.json"):
        fields = read_json(source.folder / name) if (source.folder / name).is_file() else {}
        if fields.get("image_processor", fields).get("do_pad"):
            return "pad"
    return "crop"


def _vision_config(source: Source) -> CLIPVisionConfig:
    if source.tower is None:
        return _vision_config_of_training(source)
    fields = read_json(source.tower / "config.json")
    if fields.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(f"The tower {source.tower} must be a CLIP, got the type {fields.get('model_type')!r}.")
    fields = fields.get("vision_config", fields)
    return CLIPVisionConfig(**{name: fields[name] for name in VISION_FIELDS & fields.keys()})


def _vision_config_of_training(source: Source) -> CLIPVisionConfig:
    # A training checkpoint has no configuration of its tower, but LLaVA's start from OpenAI's CLIP: 64 channels a head
    # and quick GELU (the default). The rest is in the shapes.
    name = str(source.fields.get("mm_vision_tower"))
    if not OPENAI_TOWER.search(name) and not TUNED_TOWER.search(name):
        raise ValueError(f"{source.folder} has a tower inside and no configuration for it: {name!r} is not OpenAI's.")
    shapes = {name.removeprefix(TOWER): stored.shape for name, stored in source.tensors.items()}
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise ValueError(f"The tower inside of {source.folder} lacks {error}.") from error
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in shapes),
        num_attention_heads=max(1, width // 64),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
    )


def llava_fields(
    config: PreTrainedConfig, vocab_size: int, image_aspect_ratio: Literal["pad", "crop"]
) -> dict[str, Any]:
    """
    Configuration of the layout `llava`, what `read_config` undoes.

    Args:
        config (`PreTrainedConfig`): Configuration of the model.
        vocab_size (`int`): Size of the vocabulary in that layout.
        image_aspect_ratio (`str`): How the processor makes an image square, `pad` or `crop`.

    Returns:
        `dict[str, Any]`: Content of `config.json`.

    Raises:
        `ValueError`: LLaVA's own code has no such model.
    """
    text, vision = config.text_config, config.vision_config
    rope = dict(text.rope_parameters)
    rope_type, rope_theta, factor = rope["rope_type"], rope["rope_theta"], rope.get("factor")
    wanted = {
        "text model": (text.model_type, "llama"),
        "vision tower": (vision.model_type, "clip_vision_model"),
        "tie_word_embeddings": (config.tie_word_embeddings, False),
        "projector_hidden_act": (config.projector_hidden_act, "gelu"),
        "multimodal_projector_bias": (config.multimodal_projector_bias, True),
        "single vision_feature_layer": (isinstance(config.vision_feature_layer, int), True),
        "rope_type": (rope_type, rope_type if rope_type in ("linear", "dynamic") else "default"),
    }
    if unfit := [f"{name} must be {want!r}, got {got!r}" for name, (got, want) in wanted.items() if got != want]:
        raise ValueError(f"The layout `llava` cannot express this model: {'; '.join(unfit)}.")
    return {
        **{name: getattr(text, name) for name in sorted(TEXT_FIELDS & LlamaConfig.__annotations__.keys())},
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": vocab_size,
        # LLaVA pads with the unknown token, which is the first of Llama's vocabulary.
        "pad_token_id": text.pad_token_id if (text.pad_token_id or 0) < vocab_size else 0,
        "rope_theta": rope_theta,
        "rope_scaling": None if rope_type == "default" else {"type": rope_type, "factor": factor},
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
        "mm_vision_tower": "vision_tower",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "freeze_mm_mlp_adapter": False,
        "tune_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad" if image_aspect_ratio == "pad" else "square",
        "image_grid_pinpoints": None,
    }


def check_tensors(source: Source, config: ShareGPT4VConfig) -> ShareGPT4VForConditionalGeneration:
    """
    Compare the tensors of a checkpoint with those of the model that its configuration describes.

    Args:
        source (`Source`): Checkpoint.
        config (`ShareGPT4VConfig`): Its configuration, with the vocabulary it has.

    Returns:
        `ShareGPT4VForConditionalGeneration`: The model without data, on the meta device.

    Raises:
        `ValueError`: Tensors are missing, unexpected or of another shape; the message names them.
    """
    with torch.device("meta"):
        model = ShareGPT4VForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    found = source.tensors
    problems = {
        "missing": sorted(expected.keys() - found.keys() - tied),
        "unexpected": sorted(found[name].name for name in found.keys() - expected.keys()),
        "of another shape": [
            f"{found[name].name} is {found[name].shape}, expected {expected[name]}"
            for name in sorted(found.keys() & expected.keys())
            if found[name].shape != expected[name]
        ],
    }
    texts = [f"{len(names)} {kind}: {', '.join(names[:8])}" for kind, names in problems.items() if names]
    if texts:
        raise ValueError(f"The tensors of {source.folder} do not fit its configuration. {'; '.join(texts)}.")
    return model


def check_tower(source: Source, reference: Path | None = None, allow_untuned: bool = False) -> None:
    """
    Refuse a tower that was never tuned for a model that was trained with a tuned one.

    Args:
        source (`Source`): Checkpoint with its tower.
        reference (`Path`, *optional*): Folder of OpenAI's tower. Its tensors decide where it is given: they are better
            evidence than the name in a configuration, which a tuned tower may have kept from the one it started as.
        allow_untuned (`bool`, defaults to `False`): Warn instead.

    Raises:
        `ValueError`: A ShareGPT4V checkpoint comes with an untuned tower.
    """
    reason = _untuned_reason(source, reference)
    declared = source.fields.get("mm_vision_tower")
    if reason is None or not (source.layout == "sharegpt4v" or TUNED_TOWER.search(str(declared))):
        return
    if not allow_untuned:
        raise ValueError(
            f"The vision tower looks untuned: {reason}. The model was trained with one of its own ({declared!r}); "
            "with another it still answers, only worse. Give the right folder with `--vision-tower`, show with "
            "`--reference-tower` that this one differs from OpenAI's, or insist with `--allow-untuned-tower`."
        )
    logger.warning("The vision tower is untuned: %s.", reason)


def _untuned_reason(source: Source, reference: Path | None) -> str | None:
    fields = read_json(source.tower / "config.json") if source.tower else {}
    if fields.get("model_type") == "clip" or any(name.startswith("text_model.") for name in source.dropped):
        return f"{source.tower} is a whole CLIP with its text model"
    if reference is not None:
        return _compare_with(reference, source)
    if (name := str(fields.get("_name_or_path"))).startswith(("openai/", "laion/")):
        return f"its configuration calls it {name!r}"
    # A copy of OpenAI's CLIP saved by transformers 5 bears no name, so silence proves nothing. What does: a tower that
    # came inside of the checkpoint, or a folder named as the tuned towers were published.
    if source.tower is None or source.folder.resolve() in source.tower.resolve().parents:
        return None
    if any(PUBLISHED_TOWER.search(part) for part in source.tower.parts[-3:]):
        return None
    return f"nothing about {source.tower} shows that it was tuned (published ones are named ..._vit-large336-l12)"


def _compare_with(reference: Path, source: Source) -> str | None:
    original = dict(stream_tensors(scan_tensors(find_weight_files(reference), _live_tower_name)[0]))
    ours = {name: stored for name, stored in source.tensors.items() if name.startswith(TOWER)}
    if original.keys() != ours.keys():
        raise ValueError(f"`--reference-tower` {reference} has other tensors than the tower of {source.folder}.")
    # Trained in bfloat16 from float32 weights: what was not trained is equal after that cast.
    changed = {n for n, tensor in stream_tensors(ours) if not torch.equal(tensor.bfloat16(), original[n].bfloat16())}
    blocks = 1 + max(int(block) for name in ours for block in re.findall(r"encoder\.layers\.(\d+)\.", name))
    trained = {f"{TOWER}encoder.layers.{block}." for block in range(blocks // 2, blocks - 1)}
    if others := sorted(name for name in changed if not name.startswith(tuple(trained))):
        logger.warning(
            "%d tensors that ShareGPT4V never trains differ from %s: %s", len(others), reference, others[:4]
        )
    if len(others) == len(changed):
        return f"its blocks {blocks // 2} to {blocks - 2} equal those of {reference}"
    return None
