"""
One call that joins a vision tower and a language model into a ShareGPT4V model with its processor.

```python
from modeling_sharegpt4v import compose

model, processor = compose("openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5", dtype="bfloat16")
model.save_pretrained("model")
processor.save_pretrained("model")
```
"""

import os
from typing import Literal

import torch
from transformers import (
    MODEL_MAPPING,
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .configuration_sharegpt4v import ShareGPT4VConfig
from .modeling_sharegpt4v import ShareGPT4VForConditionalGeneration
from .processing_sharegpt4v import ShareGPT4VProcessor, chat_template_path


IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
# Relative to the largest logit: equal modules differ only by the blocking of a matrix product. In half precision they
# differ by rounding, also of what is not a weight: `llm.to(torch.bfloat16)` rounds the rotary frequencies too.
TOLERANCE, HALF_TOLERANCE = 1e-5, 0.1


def compose(
    vision: str | os.PathLike | PreTrainedModel | PreTrainedConfig,
    text: str | os.PathLike | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_aspect_ratio: Literal["pad", "crop"] = "pad",
    chat_template: Literal["vicuna_v1", "plain"] = "vicuna_v1",
    vision_feature_layer: int = -2,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
) -> tuple[ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor]:
    """
    Compose a model from any CLIP- or SigLIP-style tower and any decoder LLM of transformers.

    The tokenizer gets an `<image>` token and, if it has no padding token of its own (none, or the end token, which
    padding would then hide), a `<pad>` token; the embeddings grow with it. The projector is new, tower and LLM keep
    their weights, and the composed model is checked to give the LLM's own logits on text.

    Loaded models are used up: the composed model takes over their tensors.

    Args:
        vision (`str`, `os.PathLike`, `PreTrainedModel` or `PreTrainedConfig`): Tower: a Hub id or folder (of the tower
            alone or of a whole CLIP or SigLIP), a loaded tower, or a vision configuration for a new tower.
        text (`str`, `os.PathLike` or `PreTrainedModel`): Causal LM: a Hub id or folder, or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed only if `text` is a loaded model; changed in place.
        image_aspect_ratio (`str`, defaults to `"pad"`): `pad` or `crop`, see [`ShareGPT4VProcessor`].
        chat_template (`str`, defaults to `"vicuna_v1"`): `vicuna_v1` or `plain`.
        vision_feature_layer (`int`, defaults to -2): Hidden state of the tower that is projected.
        dtype (`str` or `torch.dtype`, defaults to `"auto"`): Of the composed model; `auto` takes the LLM's.
        attn_implementation (`str`, *optional*): Attention of tower and LLM, for example `sdpa`.

    Returns:
        `tuple[ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor]`: Ready to train, save or publish.

    Raises:
        `ValueError`: The tower is no CLIP or SigLIP kind, or the LLM does more behind its last hidden state than a
            bias-free linear head (soft-capped or scaled logits), which LLaVA's architecture cannot express.
    """
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if not isinstance(text, PreTrainedModel):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(text)
        text = AutoModelForCausalLM.from_pretrained(text, dtype=dtype, **options)
    if tokenizer is None:
        raise ValueError("`tokenizer` is required when `text` is a loaded model. Pass the LLM's tokenizer.")
    dtype = text.dtype if dtype == "auto" else dtype
    tower = _load_tower(vision, dtype)
    probe, expected = _probe_text(text)
    head = _prepare_text(text, tokenizer)
    config = _build_config(tower, text, tokenizer, vision_feature_layer)
    weights = _join_weights(config, tower, text, head)
    model = ShareGPT4VForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, key_mapping=None, **options
    )
    model.generation_config = _generation_config(text, tokenizer)
    _check_same_text_logits(model, probe, expected)
    return model, build_processor(config, tokenizer, image_aspect_ratio, chat_template)


def build_processor(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_aspect_ratio: Literal["pad", "crop"] = "pad",
    chat_template: Literal["vicuna_v1", "plain"] = "vicuna_v1",
) -> ShareGPT4VProcessor:
    """
    Processor that fits a configuration, so that the number of `<image>` tokens equals the number of features.

    Args:
        config (`PreTrainedConfig`): A LLaVA configuration with its vision configuration.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer that knows `<image>`; pads on the left from now on.
        image_aspect_ratio (`str`, defaults to `"pad"`): `pad` or `crop`, see [`ShareGPT4VProcessor`].
        chat_template (`str`, defaults to `"vicuna_v1"`): `vicuna_v1` or `plain`.

    Returns:
        `ShareGPT4VProcessor`: Processor with Pillow as its backend, the reference of the original.
    """
    if image_aspect_ratio not in ("pad", "crop"):
        raise ValueError(f"`image_aspect_ratio` must be 'pad' or 'crop', got {image_aspect_ratio!r}.")
    # A batch is padded in front, so that every row goes on where its prompt ends; `init_kwargs` is what gets saved.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    for name in ("is_local", "local_files_only"):  # how it was loaded here, which transformers would save too
        tokenizer.init_kwargs.pop(name, None)
    vision = config.vision_config
    is_siglip = vision.model_type.startswith("siglip")
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
        do_pad=image_aspect_ratio == "pad",
        image_mean=[0.5] * 3 if is_siglip else OPENAI_CLIP_MEAN,
        image_std=[0.5] * 3 if is_siglip else OPENAI_CLIP_STD,
    )
    return ShareGPT4VProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if is_siglip else 1,  # the class token, which the strategy `default` drops
        chat_template=chat_template_path(chat_template).read_text(encoding="utf-8"),
    )


def add_image_and_pad_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Give a tokenizer the tokens that a model with images needs; what it has already is kept.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Changed in place: `<image>` becomes one special token, and `<pad>` the
            padding token unless there is one that differs from the end and unknown tokens.
    """
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None or tokenizer.pad_token in (tokenizer.eos_token, tokenizer.unk_token):
        tokenizer.add_special_tokens({"pad_token": AddedToken(PAD_TOKEN, special=True, normalized=False)})


def _load_tower(vision: str | os.PathLike | PreTrainedModel | PreTrainedConfig, dtype: str | torch.dtype):
    if isinstance(vision, PreTrainedModel):
        return getattr(vision, "vision_model", vision)  # a whole CLIP or SigLIP holds its tower there
    config = vision if isinstance(vision, PreTrainedConfig) else AutoConfig.from_pretrained(vision)
    config = getattr(config, "vision_config", config)
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"{type(config).__name__} is not a vision tower that transformers knows.")
    if isinstance(vision, PreTrainedConfig):
        return AutoModel.from_config(config, dtype=dtype)
    tower, info = MODEL_MAPPING[type(config)].from_pretrained(
        vision, config=config, dtype=dtype, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{vision} lacks tensors of its tower: {', '.join(sorted(info['missing_keys'])[:8])}.")
    return tower


def _build_config(
    tower: PreTrainedModel, text: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vision_feature_layer: int
) -> ShareGPT4VConfig:
    image_size, patch_size = (getattr(tower.config, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(image_size, int) or not isinstance(patch_size, int) or image_size % patch_size:
        raise ValueError(
            f"{type(tower).__name__} is no CLIP- or SigLIP-style tower: `image_size` must be a multiple of "
            f"`patch_size`, got {image_size} and {patch_size}."
        )
    patches = (image_size // patch_size) ** 2
    pixels = torch.zeros(1, 3, image_size, image_size, dtype=tower.dtype, device=tower.device)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    if not -len(states) <= vision_feature_layer < len(states):
        raise ValueError(f"`vision_feature_layer` must index one of {len(states)} states, got {vision_feature_layer}.")
    features = states[vision_feature_layer].shape[1]
    if features - patches not in (0, 1):
        raise ValueError(
            f"{type(tower).__name__} gives {features} features for {patches} patches; LLaVA knows towers with "
            "one class token in front (CLIP) or none (SigLIP)."
        )
    return ShareGPT4VConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=patches,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default" if features > patches else "full",
        tie_word_embeddings=text.config.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
    )


def _prepare_text(text: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    vocabulary = text.get_input_embeddings().num_embeddings
    if len(tokenizer) < vocabulary // 2:  # transformers makes an almost empty tokenizer of a folder without its files
        raise ValueError(
            f"The tokenizer knows {len(tokenizer)} tokens and the LLM {vocabulary}. Check that the tokenizer's files "
            "are complete, or pass the right `tokenizer`."
        )
    add_image_and_pad_tokens(tokenizer)
    if len(tokenizer) > vocabulary:
        text.resize_token_embeddings(len(tokenizer))
    text.config.pad_token_id = tokenizer.pad_token_id
    head = text.get_output_embeddings().weight
    # Llava ties its head to `language_model.embed_tokens`; an LLM that names or nests its embedding otherwise (GPT-2,
    # OPT) gets a head of its own, which holds the same numbers.
    if text.config.tie_word_embeddings and "embed_tokens" not in dict(text.base_model.named_children()):
        text.config.tie_word_embeddings = False
        head = head.clone()
    return head


def _join_weights(
    config: ShareGPT4VConfig, tower: PreTrainedModel, text: PreTrainedModel, head: torch.Tensor
) -> dict[str, torch.Tensor]:
    parts = {
        "model.vision_tower": tower.state_dict(),
        "model.language_model": text.base_model.state_dict(),
        # torch's own initialisation, as in the original
        "model.multi_modal_projector": LlavaMultiModalProjector(config).state_dict(),
        "lm_head": {"weight": head},
    }
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _generation_config(text: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    config = GenerationConfig.from_dict(text.generation_config.to_dict())
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = sorted({tokenizer.eos_token_id, *(end for end in ends if end is not None)})
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    return config


def _probe_text(text: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    head = text.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(text).__name__} has no bias-free output head, which LLaVA's architecture requires.")
    text.eval()
    probe = torch.arange(3, 19, device=text.device).remainder(head.weight.shape[0])[None]  # (1, 16)
    with torch.no_grad():
        logits = text(input_ids=probe).logits  # (1, 16, vocabulary)
        linear = head(text.base_model(input_ids=probe).last_hidden_state)
    difference = _relative_difference(linear, logits)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{type(text).__name__} does more than a linear head behind its last hidden state (its logits differ by "
            f"{difference:.2g} of the largest), which LLaVA's architecture cannot express."
        )
    return probe, logits


def _check_same_text_logits(
    model: ShareGPT4VForConditionalGeneration, probe: torch.Tensor, expected: torch.Tensor
) -> None:
    with torch.no_grad():
        logits = model.eval()(input_ids=probe).logits[..., : expected.shape[-1]]
    difference = _relative_difference(logits, expected)
    if not difference <= (TOLERANCE if logits.dtype == expected.dtype == torch.float32 else HALF_TOLERANCE):
        raise ValueError(
            f"The composed model gives other logits than the LLM alone (different by {difference:.2g} of the largest)."
        )


def _relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (logits.float() - expected.float()).abs().max().item()
    return difference / max(1.0, expected.float().abs().max().item())
