"""
How large a model is and what of it trains, counted on the real model class without its weights.

The model is built on torch's meta device, so a plan needs neither the weights nor the network. Published sizes are
those of the `config.json` of the models in `TEXT` and `VISION`; the projector is LLaVA-1.5's `mlp2x_gelu`, which
[`ShareGPT4VConfig`] describes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VForConditionalGeneration

from .trainable import last_used_block, select_trainable, trainable_table


VICUNA = {"vocab_size": 32_000, "max_position_embeddings": 4096, "tie_word_embeddings": False}
VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32}
VICUNA_13B = {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT = {"lmsys/vicuna-7b-v1.5": VICUNA_7B, "lmsys/vicuna-13b-v1.5": VICUNA_13B, "lmsys/vicuna-7b-v1.3": VICUNA_7B}
VISION = {
    "openai/clip-vit-large-patch14-336": {**CLIP_L, "image_size": 336, "patch_size": 14},
    "openai/clip-vit-large-patch14": {**CLIP_L, "image_size": 224, "patch_size": 14},
}
WHOLE = {
    "Lin-Chen/ShareGPT4V-7B": ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"),
    "Lin-Chen/ShareGPT4V-13B": ("lmsys/vicuna-13b-v1.5", "openai/clip-vit-large-patch14-336"),
}
PAPER_LLM = 6_738_415_616  # parameters of Vicuna-7B with its head, the model of the paper's tables


@dataclass(frozen=True)
class Tuning:
    """
    What trains, by the fields of a recipe.

    Args:
        vision_from_block (`int`, *optional*): Tower blocks from this one on; -1: all of it; `None`: none.
        projector (`bool`, defaults to `True`): Whether the projector trains.
        language_model (`bool`, defaults to `True`): Whether the LLM with its head trains.
        lora_rank (`int`, *optional*): Rank of adapters that train in place of the LLM.
    """

    vision_from_block: int | None = None
    projector: bool = True
    language_model: bool = True
    lora_rank: int | None = None


@dataclass(frozen=True)
class Part:
    """A component of the model: its parameters, how many train, and how many a backward pass goes through."""

    name: str
    parameters: int
    trained: int
    passed: int


@dataclass(frozen=True)
class Geometry:
    """
    Sizes that FLOPs, memory and traffic follow from.

    Args:
        parts (`tuple[Part, ...]`): Tower, projector, LLM, head and, with LoRA, adapters.
        layers (`int`): Layers of the LLM.
        width (`int`): Its hidden size.
        feed_forward (`int`): Its intermediate size.
        vocabulary (`int`): Rows of its head.
        layer_parameters (`int`): Elements of the matrices in all its layers.
        blocks (`int`): Blocks of the tower.
        used_blocks (`int`): Those whose output reaches the projector.
        trained_blocks (`int`): Those of them that train.
        vision_width (`int`): The tower's hidden size.
        vision_feed_forward (`int`): Its intermediate size.
        patches (`int`): Features of an image, which become tokens of the LLM.
        vision_tokens (`int`): Tokens inside the tower, a class token included.
        patch_values (`int`): Values of a patch, 3 colours of `patch_size`².
    """

    parts: tuple[Part, ...]
    layers: int
    width: int
    feed_forward: int
    vocabulary: int
    layer_parameters: int
    blocks: int
    used_blocks: int
    trained_blocks: int
    vision_width: int
    vision_feed_forward: int
    patches: int
    vision_tokens: int
    patch_values: int

    def part(self, name: str) -> Part:
        """The component of this name; one without parameters if there is none."""
        return next((part for part in self.parts if part.name == name), Part(name, 0, 0, 0))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model (`int`)."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Parameters that train (`int`)."""
        return sum(part.trained for part in self.parts)

    @property
    def is_paper_size(self) -> bool:
        """Whether the LLM is as large as that of the paper's tables (`bool`)."""
        return self.part("language model").parameters + self.part("head").parameters == PAPER_LLM


def build_on_meta(model: str, vision_tower: str | None = None) -> ShareGPT4VForConditionalGeneration:
    """
    Build a model without its weights.

    Args:
        model (`str`): Folder or Hub id of a LLaVA-layout model, or of the LLM beside `vision_tower`.
        vision_tower (`str`, *optional*): Folder or Hub id of a tower.

    Returns:
        `ShareGPT4VForConditionalGeneration`: On the meta device.

    Raises:
        `ValueError`: The configuration is neither known here nor readable, or of another kind of model.
    """
    if vision_tower is None and model in WHOLE and not Path(model).is_dir():
        model, vision_tower = WHOLE[model]
    if vision_tower is None:
        config = _read(model)
        if not {"vision_config", "text_config"} <= set(config.to_dict()):
            raise ValueError(
                f"{model} is a {config.model_type} model and not one with a vision tower. Name a tower by "
                "`vision_tower`, or a model of LLaVA's layout."
            )
    else:
        config = ShareGPT4VConfig(text_config=_text(model), vision_config=_vision(vision_tower))
    with torch.device("meta"):
        return ShareGPT4VForConditionalGeneration(config)


def measure(model: ShareGPT4VForConditionalGeneration, tuning: Tuning) -> Geometry:
    """
    Count a model.

    Args:
        model (`ShareGPT4VForConditionalGeneration`): Of any device; what requires gradients is changed in place.
        tuning (`Tuning`): What trains.

    Returns:
        `Geometry`: Its sizes.

    Raises:
        `ValueError`: Nothing would train, or the tower lacks the block.
    """
    used = last_used_block(model) + 1
    begin = tuning.vision_from_block
    select_trainable(model, begin, tuning.projector, tuning.language_model)
    begin = None if begin is not None and begin >= used else begin  # no block that the loss reaches
    config = model.config
    text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    matrices = _matrices(model.model.language_model)
    return Geometry(
        parts=_parts(model, tuning, matrices),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        feed_forward=max(max(matrix.shape) for matrix in matrices),
        vocabulary=text.vocab_size,
        layer_parameters=sum(matrix.numel() for matrix in matrices),
        blocks=vision.num_hidden_layers,
        used_blocks=used,
        trained_blocks=0 if begin is None else used - max(begin, 0),
        vision_width=vision.hidden_size,
        vision_feed_forward=vision.intermediate_size,
        patches=patches,
        vision_tokens=patches + (config.vision_feature_select_strategy == "default"),
        patch_values=3 * vision.patch_size**2,
    )


def _matrices(llm: nn.Module) -> list[torch.Tensor]:
    # By shape: the names of layers and of their sizes differ among families, and GPT-2's are no `nn.Linear`.
    modules = [module for module in llm.modules() if not isinstance(module, nn.Embedding)]
    own = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return [parameter for parameter in own if parameter.dim() == 2]


def _parts(
    model: ShareGPT4VForConditionalGeneration, tuning: Tuning, matrices: list[torch.Tensor]
) -> tuple[Part, ...]:
    names = {"projector": "projector", "language model": "language model", "language-modeling head": "head"}
    parameters = dict.fromkeys(("vision tower", *names.values()), 0)
    trained = dict(parameters)
    for row in trainable_table(model):
        name = names.get(row.module, "vision tower")
        parameters[name] += row.parameters
        trained[name] += row.parameters * row.trains
    # The LLM's gradient goes on to the projector or to its own embeddings, so it passes all of it, frozen or not.
    passed = parameters | {"vision tower": trained["vision tower"]}
    if tuning.lora_rank:
        trained |= {"language model": 0, "head": 0}
        parameters["adapters"] = sum(tuning.lora_rank * sum(matrix.shape) for matrix in matrices)
        trained["adapters"] = passed["adapters"] = parameters["adapters"]
    return tuple(Part(name, parameters[name], trained[name], passed[name]) for name in parameters)


def _text(name: str) -> PreTrainedConfig:
    if name in TEXT and not Path(name).is_dir():
        return LlamaConfig(**VICUNA, **TEXT[name])  # type: ignore[arg-type]
    return _read(name)


def _vision(name: str) -> PreTrainedConfig:
    if name in VISION and not Path(name).is_dir():
        return CLIPVisionConfig(**VISION[name])  # type: ignore[arg-type]
    config = _read(name)
    fields = config.to_dict()
    return config.vision_config if "vision_config" in fields else config


def _read(name: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The configuration of {name} can be read neither from a folder nor from the Hub, and is not one of "
            f"{', '.join([*TEXT, *VISION, *WHOLE])}. A model that is yet to be trained is planned by naming one of "
            f"its size: `--model Lin-Chen/ShareGPT4V-7B`. ({str(error).splitlines()[0]})"
        ) from error
