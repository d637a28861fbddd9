"""Processor of ShareGPT4V: upright RGB images, prompts whose `<image>` is expanded to one token a feature."""

# N images, P features of one image

import base64
import os
import urllib.request
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from transformers import LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from .images_sharegpt4v import limit_aspect, limit_side, open_image, to_rgb


NATIVE_PROCESSOR = "LlavaProcessor"
FETCH_SECONDS = 60
CHAT_TEMPLATES = {"vicuna_v1": "chat_template.jinja", "plain": "chat_template_plain.jinja"}


def chat_template_path(name: Literal["vicuna_v1", "plain"]) -> Path:
    """
    File of a chat template.

    Args:
        name (`str`): `vicuna_v1` for finetuning and use, `plain` (`<image> caption`) for pretraining on captions.

    Returns:
        `Path`: Jinja file in this package.
    """
    if name not in CHAT_TEMPLATES:
        raise ValueError(f"`chat_template` must be one of {sorted(CHAT_TEMPLATES)}, got {name!r}.")
    return Path(__file__).with_name(CHAT_TEMPLATES[name])


class ShareGPT4VProcessor(LlavaProcessor):
    """
    Processor of a ShareGPT4V model; arguments are those of [`~transformers.LlavaProcessor`].

    Two ways to make an image square, both used by the original:

    - pad (`image_processor.do_pad=True`): on a square canvas of the mean colour (122, 116, 104), then resized. Nothing
      of the image is lost. Finetuning and most evaluations of the original.
    - centre crop (`do_pad=False`): the short side is resized, the rest cut off. Pretraining of the original, and its
      evaluation scripts for LLaVA-Bench, MM-Vet, ScienceQA and Q-Bench.

    Set it for good on `processor.image_processor`, or for one call with `processor(..., do_pad=False)`.

    Images given as PIL objects, paths, addresses, base64, bytes or as `datasets` stores them all go through
    [`to_rgb`]; text that begins with the beginning-of-sequence token already does not get a second one.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        **kwargs: Any,
    ):
        # All arguments are spelled out because transformers saves only what this signature names.
        # Pillow is the reference: torchvision resizes differently (up to 0.03 after normalisation), and transformers
        # prefers it where it is installed. Set `processor.image_processor` afterwards to trade exactness for speed.
        if image_processor is not None and not isinstance(image_processor, LlavaImageProcessorPil):
            image_processor = LlavaImageProcessorPil.from_dict(image_processor.to_dict())
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any):
        """
        Same as in the parent class.

        Args:
            images (`PIL.Image.Image`, `str`, `bytes`, array, or nested lists of them, *optional*): N images.
            text (`str` or `list[str]`, *optional*): Prompts with one `<image>` an image.
            kwargs: Options of the tokenizer and the image processor, `return_tensors` and `do_pad` among them.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of (B, S), `pixel_values` of (N, 3, H, W).

        Raises:
            `ValueError`: An image cannot be read, or prompts and images do not match in number.
        """
        do_pad = kwargs.get("do_pad", (kwargs.get("images_kwargs") or {}).get("do_pad", self.image_processor.do_pad))
        if images is not None:
            images = _prepare_images(images, crops=not do_pad)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if not kwargs.get("sanitize_control_tokens"):
                self._check_counts(texts, images)
            bos = self.tokenizer.bos_token
            if bos and texts and texts[0].startswith(bos):
                kwargs["add_special_tokens"] = False
        return super().__call__(images=images, text=text, **kwargs)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Same as in the parent class, but text cannot smuggle in an image.

        Raises:
            `ValueError`: A message's text contains `<image>`. Images are content of type `image`; to keep the letters
                as they are, pass `sanitize_control_tokens=True` (with `tokenize=True`).
        """
        if not kwargs.get("sanitize_control_tokens"):
            for message in _messages_of(conversation):
                for text in _texts_of(message.get("content")):
                    if self.image_token in text:
                        raise ValueError(
                            f"The text of a {message.get('role')!r} message contains the image placeholder "
                            f"{self.image_token!r}: {text[:80]!r}. Pass images as content of type 'image' and remove "
                            "the placeholder, or pass `sanitize_control_tokens=True` to keep it as plain letters."
                        )
        return super().apply_chat_template(conversation, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Same as in the parent class, naming the processor that transformers can load without remote code."""
        return {**super().to_dict(), "processor_class": NATIVE_PROCESSOR}

    def _check_counts(self, texts: list[str], images: Any) -> None:
        by_row = (
            isinstance(images, list) and len(images) == len(texts) and all(isinstance(row, list) for row in images)
        )
        rows = zip(texts, images, strict=True) if by_row else [("".join(texts), images)]
        for number, (text, given) in enumerate(rows):
            expected, count = text.count(self.image_token), 0 if given is None else len(list(_flatten(given)))
            if expected != count:
                row = f" of row {number}" if by_row else ""
                raise ValueError(
                    f"The text{row} holds {expected} {self.image_token!r} placeholders and {count} images were given. "
                    "Pass one image for each placeholder."
                )


def _prepare_images(images: Any, crops: bool) -> Any:
    if isinstance(images, (list, tuple)):
        return [_prepare_images(image, crops) for image in images]
    if isinstance(images, dict) and {"bytes", "path"} <= images.keys():  # as `datasets` stores an image
        images = images["path"] if images["bytes"] is None else images["bytes"]
    if isinstance(images, str):
        images = _read_name(images)
    if isinstance(images, (bytes, os.PathLike)):
        images = open_image(images)
    if isinstance(images, Image.Image):
        images = to_rgb(images)
        return limit_aspect(images) if crops else limit_side(images)
    return images  # arrays


def _read_name(name: str) -> bytes | Path:
    if name.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(name, timeout=FETCH_SECONDS) as response:
                return response.read()
        except OSError as error:
            raise ValueError(f"Cannot fetch the image {name}: {error}.") from error
    if os.path.isfile(name):
        return Path(name)
    try:
        return base64.b64decode(name.partition(",")[2] if name.startswith("data:image/") else name, validate=True)
    except ValueError as error:
        raise ValueError(
            f"There is no image {name[:80]!r}: give a path, an http address, a `data:image/` address or base64."
        ) from error


def _flatten(images: Any):
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def _messages_of(conversation: Any):
    for item in getattr(conversation, "messages", conversation):
        if isinstance(item, dict):
            yield item
        else:
            yield from _messages_of(item)


def _texts_of(content: Any):
    if isinstance(content, str):
        yield content
    elif content:
        yield from (part["text"] for part in content if part.get("type") == "text")


ShareGPT4VProcessor.register_for_auto_class()
