"""From any image to what is sent: upright RGB, resized, JPEG within a byte budget, and the body of the request."""

import base64
import io
import math
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from modeling_sharegpt4v.images_sharegpt4v import REDUCING_GAP, open_image

from .endpoint_config import EndpointConfig
from .prompts import Prompt


Source = str | os.PathLike | bytes | Image.Image
LEAST_QUALITY = 40
QUALITY_STEP = 10
LEAST_SIDE = 32  # below this a picture says nothing any more
# OpenAI's rule for GPT-4 with vision: the image is brought within 2048 x 2048, then its short side to 768; each square
# of 512 pixels that it touches costs 170 tokens, and every image 85 (all there is to pay for `low`).
TILE, TILE_TOKENS, BASE_TOKENS, TILED_LONG, TILED_SHORT = 512, 170, 85, 2048, 768
BYTES_PER_TOKEN = 4  # of English text
MESSAGE_TOKENS = 12  # roles and separators


class Request(NamedTuple):
    """One image to ask about; `key` is what its answer will be called."""

    image: Source
    prompt: Prompt
    key: str


@dataclass(frozen=True)
class Picture:
    """
    An image as it is sent.

    Args:
        data (`bytes`): JPEG file.
        width (`int`): In pixels.
        height (`int`): In pixels.
    """

    data: bytes = field(repr=False)
    width: int
    height: int

    @property
    def url(self) -> str:
        """The image as a data URL (`str`)."""
        return "data:image/jpeg;base64," + base64.b64encode(self.data).decode("ascii")


def encode_image(source: Source, config: EndpointConfig) -> Picture:
    """
    Make an image small enough to send.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): File, encoded bytes or image.
        config (`EndpointConfig`): Side, quality and byte budget.

    Returns:
        `Picture`: JPEG file without EXIF or other metadata. The quality goes down to 40 where the budget asks for it,
            then the sides by a quarter at a time.

    Raises:
        `ValueError`: It cannot be read as an image, or cannot be made that small.
        `FileNotFoundError`: The file is missing.
    """
    image = open_image(source, reduce_to=math.ceil(REDUCING_GAP * config.image_side))
    if 0 in image.size:
        raise ValueError(f"The image has no pixels: {image.width}x{image.height}. Leave it out.")
    image = _within(image, config.image_side).copy()
    image.info = {}  # Pillow would write the comment of the original again
    while True:
        for quality in range(config.image_quality, LEAST_QUALITY - 1, -QUALITY_STEP):
            data = _jpeg(image, quality)
            if len(data) <= config.image_bytes:
                return Picture(data, *image.size)
        if max(image.size) <= LEAST_SIDE:
            raise ValueError(
                f"The image still takes {len(data)} bytes at {image.width}x{image.height} pixels, `image_bytes` is "
                f"{config.image_bytes}. Raise it."
            )
        image = _within(image, max(LEAST_SIDE, max(image.size) * 3 // 4))


def chat_body(picture: Picture, prompt: Prompt, config: EndpointConfig) -> dict[str, Any]:
    """
    Body of a chat request about one image.

    Args:
        picture (`Picture`): The image.
        prompt (`Prompt`): What is asked.
        config (`EndpointConfig`): Model, bounds and detail.

    Returns:
        `dict`: JSON object; the image comes before the text.
    """
    image = {"type": "image_url", "image_url": {"url": picture.url, "detail": config.detail}}
    content = [image, {"type": "text", "text": prompt.text}]
    body: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": content}]}
    body[config.max_tokens_name] = config.max_tokens
    if config.temperature is not None:
        body["temperature"] = config.temperature
    return body


def image_tokens(width: int, height: int, config: EndpointConfig) -> int:
    """
    Tokens that an image is taken to cost until answers tell.

    Args:
        width (`int`): As sent, in pixels.
        height (`int`): As sent, in pixels.
        config (`EndpointConfig`): `tokens_per_image` if it is set, else the tiles rule of OpenAI for its `detail`.

    Returns:
        `int`: For example 765 for 1024x1024, 85 for any image in low detail.
    """
    if config.tokens_per_image is not None:
        return config.tokens_per_image
    if config.detail == "low":
        return BASE_TOKENS
    scale = min(1.0, TILED_LONG / max(width, height))
    scale = min(scale, TILED_SHORT / min(width, height))
    tiles = math.prod(max(1, math.ceil(round(side * scale, 3) / TILE)) for side in (width, height))
    return BASE_TOKENS + TILE_TOKENS * tiles


def text_tokens(text: str) -> int:
    """
    Tokens that a text is taken to cost.

    Args:
        text (`str`): The prompt.

    Returns:
        `int`: A quarter of its UTF-8 bytes, rounded up, and 12 for the message around it.
    """
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) + MESSAGE_TOKENS


def fitted_size(width: int, height: int, side: int) -> tuple[int, int]:
    """
    Size of an image whose long side is bounded.

    Args:
        width (`int`): In pixels.
        height (`int`): In pixels.
        side (`int`): Bound of the long side in pixels.

    Returns:
        `tuple[int, int]`: Width and height of the same proportions, at least one pixel each; never enlarged.
    """
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _within(image: Image.Image, side: int) -> Image.Image:
    size = fitted_size(*image.size, side)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
