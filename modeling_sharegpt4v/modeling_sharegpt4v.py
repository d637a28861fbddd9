"""
ShareGPT4V: a CLIP-style tower, a two-layer projector and a decoder LLM, after LLaVA-1.5.

The forward pass, generation and masks are those of transformers' Llava. What is added here: any published layout of
the weights loads without a silently initialised tensor, and what is saved is what transformers' own class reads.
"""

# B batch, S sequence, N images, P features of one image (576 for 336 px and patch 14), V vision width, D text width
# vision tower       (N, 3, H, W) -> hidden_states[-2] (N, 1 + P, V) -> class token dropped (N, P, V)
# projector          (N, P, V) -> (N, P, D)
# scatter            (N * P, D) into the embeddings (B, S, D) where input_ids == image_token_id; S never changes
# language model     (B, S, D) -> (B, S, D) -> lm_head (B, S, vocabulary)

import os
from typing import Any

from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .configuration_sharegpt4v import ShareGPT4VConfig


# Published names -> names of the live modules. Names that are already live pass through unchanged.
KEY_MAPPING = {
    # ShareGPT4V and LLaVA-1.5 as released; a training checkpoint of theirs carries the tower with a doubled prefix
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    # transformers before 5 (llava-hf)
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model\.": "model.language_model.",
    r"^vision_tower\.(vision_model\.)?": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}


class ShareGPT4VModel(LlavaModel):
    """
    The model without its language-modeling head, [`~transformers.LlavaModel`] under our configuration.

    It exists because transformers renames the weights of its own nested class when it saves; this one is left alone.
    """

    config_class = ShareGPT4VConfig

    def __init__(self, config: ShareGPT4VConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()


class ShareGPT4VForConditionalGeneration(LlavaForConditionalGeneration):
    """
    ShareGPT4V with its language-modeling head ([paper](https://huggingface.co/papers/2311.12793), section 3.4).

    Use it as [`~transformers.LlavaForConditionalGeneration`]: `forward`, `generate` and `get_image_features` take and
    return the same. The headless model is `.model`.

    Example:

    ```python
    >>> from transformers import AutoModelForImageTextToText
    >>> model = AutoModelForImageTextToText.from_pretrained("path/or/repo", trust_remote_code=True)
    ```
    """

    config_class = ShareGPT4VConfig

    def __init__(self, config: ShareGPT4VConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = ShareGPT4VModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self._keep_live_names()
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Same as [`~transformers.PreTrainedModel.from_pretrained`], with two differences.

        Weights under the names of the original release, of LLaVA-1.5 and of llava-hf are renamed while they load
        (pass `key_mapping` for names of your own); they are saved under the live names, which transformers' own Llava
        reads too. And a tensor that the checkpoint lacks is an error instead of a random initialisation.

        Raises:
            `ValueError`: The checkpoint lacks tensors; the message names them.
        """
        asked_for_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", KEY_MAPPING)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model._keep_live_names()
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(
                f"{len(missing)} tensors are missing in {pretrained_model_name_or_path}: {', '.join(missing[:8])}"
                f"{', ...' if len(missing) > 8 else ''}. Convert the checkpoint with "
                "`python -m modeling_sharegpt4v.convert_weights import`, or pass a `key_mapping` for its names."
            )
        return (model, info) if asked_for_info else model

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """
        Same as in the parent class, but never at the price of gradients.

        Reentrant checkpointing passes gradients on only if an input of the block needs them, and pixels never do: the
        trainable blocks of the tower would stop training without a word.

        Raises:
            `ValueError`: `use_reentrant=True` while any parameter of the vision tower is trainable.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}  # torch's own default is reentrant
        if options["use_reentrant"] and any(
            parameter.requires_grad for parameter in self.model.vision_tower.parameters()
        ):
            raise ValueError(
                "`use_reentrant=True` would silently stop the gradients of the vision tower. Pass "
                "`use_reentrant=False`, or freeze the tower before you enable gradient checkpointing."
            )
        self._activation_checkpointing_enable(options, **kwargs)

    def enable_input_require_grads(self) -> None:
        """
        Same as in the parent class, for the embeddings of text only.

        Gradient checkpointing and PEFT call it. The parent class would also make the patch embeddings of the tower
        require gradients, and then a frozen tower is run again and backwards in full, for gradients nobody uses.
        """
        embeddings = self.get_input_embeddings()
        self._require_grads_hooks = [embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_(True))]
        self._require_grads_hook = self._require_grads_hooks[0]

    def _keep_live_names(self) -> None:
        # `from_pretrained` remembers the renames it applied and `save_pretrained` would undo them (transformers 5.23,
        # `revert_weight_conversion`); an empty list means: save what is there, names that load natively and here.
        self._weight_conversions: list = []


ShareGPT4VForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
