"""Configuration of ShareGPT4V: LLaVA-1.5's, plus the map to the code that is saved beside it."""

from typing import Any

from transformers import LlavaConfig


NATIVE_ARCHITECTURE = "LlavaForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_sharegpt4v.ShareGPT4VConfig",
    "AutoModel": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration",
}


class ShareGPT4VConfig(LlavaConfig):
    """
    Configuration of a ShareGPT4V model ([paper](https://huggingface.co/papers/2311.12793), section 3.4).

    The fields are those of [`~transformers.LlavaConfig`] and the defaults describe ShareGPT4V-7B: CLIP ViT-L/14 at
    336 pixels, the output of its second-to-last block without the class token (576 features an image), a two-layer
    projector and a 7B Llama. The model type stays `llava` and a saved configuration names the architecture of
    transformers itself, so one repository loads in two ways:

    - without a flag, as [`~transformers.LlavaForConditionalGeneration`];
    - with `trust_remote_code=True`, as the classes named in `auto_map`.
    """

    model_type = "llava"

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        # Every auto class of the Hub leads to the class that generates; `register_for_auto_class` knows only one.
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}

    def to_dict(self) -> dict[str, Any]:
        """
        Same as in the parent class, with the architecture that transformers can load without remote code.

        `save_pretrained` of a model writes its own class name into `architectures`; every file that leaves this
        configuration (checkpoints of a trainer too) must name the native one, or loading without a flag fails.
        """
        fields = super().to_dict()
        if fields.get("architectures"):
            fields["architectures"] = [NATIVE_ARCHITECTURE]
        return fields


ShareGPT4VConfig.register_for_auto_class()
