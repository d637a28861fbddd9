"""
How an image becomes the square that a tower takes, as the script of each benchmark has it.

ShareGPT4V's scripts differ: some pad an image to a square of CLIP's mean colour, others resize its short side and cut
out the centre (ShareGPT4Omni/ShareGPT4V@b6f70e9, `share4v/eval/`). Both are done here, so that a processor that would
pad or crop by itself finds nothing left to do.
"""

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageOps


ImageMode = Literal["official", "pad", "crop", "native"]
DEFAULT_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's


@dataclass(frozen=True)
class Question:
    """
    What a model is asked.

    Args:
        text (`str`): After the image.
        image (`PIL.Image.Image`, *optional*): `None` for a question about none.
        mode (`str`): How the image becomes a square: `pad`, `crop`, or `native` for as it is.
        max_new_tokens (`int`): Bound of the answer.
    """

    text: str
    image: Image.Image | None
    mode: str
    max_new_tokens: int


def square_side(processor: Any) -> int | None:
    """
    Side of the square that an image processor makes.

    Args:
        processor (`ProcessorMixin`): Processor of a model.

    Returns:
        `int`, *optional*: In pixels; `None` if it takes images of any shape.
    """
    image_processor = getattr(processor, "image_processor", None)
    for size in (getattr(image_processor, "crop_size", None), getattr(image_processor, "size", None)):
        height, width = (size or {}).get("height"), (size or {}).get("width")
        if height and height == width:
            return int(height)
    return None


def bring_to_square(image: Image.Image, mode: str, side: int, mean: tuple[float, ...] = DEFAULT_MEAN) -> Image.Image:
    """
    Make an image square.

    Args:
        image (`PIL.Image.Image`): Any mode and size.
        mode (`str`): `pad` (to the long side, in the mean colour), or `crop` (short side to `side`, then the centre).
        side (`int`): Of the square that the processor makes, in pixels.
        mean (`tuple[float, ...]`, *optional*): Mean of the processor, 0 to 1 a channel.

    Returns:
        `PIL.Image.Image`: RGB; for `crop` of the size `side`, for `pad` of the long side.

    Raises:
        `ValueError`: The mode is unknown.
    """
    upright = ImageOps.exif_transpose(image).convert("RGB")
    width, height = upright.size
    if mode == "pad":
        if width == height:
            return upright
        longest = max(width, height)
        canvas = Image.new("RGB", (longest, longest), tuple(int(255 * value) for value in mean))
        canvas.paste(upright, ((longest - width) // 2, (longest - height) // 2))
        return canvas
    if mode == "crop":
        scale = side / min(width, height)
        # The long side is cut off, not rounded: torchvision's and transformers' rule for the shortest edge.
        size = (side, int(height * scale)) if width <= height else (int(width * scale), side)
        resized = upright.resize(size, Image.Resampling.BICUBIC)
        left, top = (resized.width - side) // 2, (resized.height - side) // 2
        return resized.crop((left, top, left + side, top + side))
    raise ValueError(f"`mode` must be `pad` or `crop`, got {mode!r}.")
