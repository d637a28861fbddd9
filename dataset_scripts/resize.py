"""
Pictures at the size a CLIP tower takes, for shards that are decoded in every epoch.

A photograph of 2250x1500 costs fifty times as much to decode and reduce as its 336 pixels would.
"""

import io
from typing import Literal

import numpy as np
from PIL import Image

from modeling_sharegpt4v.images_sharegpt4v import fit_image, open_image


# On 160 COCO photographs, padded to 336: 35 KB and a difference of 0.018 on average (normalised, mean absolute), 60 KB
# and 0.030 at most. Full colour at quality 93 differs as much, in larger files that take longer to decode; quartered
# colour exceeds 0.03 in 11 of them even at 95.
QUALITY, SUBSAMPLING = 94, "4:2:2"


def shrink_to_jpeg(data: bytes, side: int, mode: Literal["pad", "crop"] = "pad", quality: int = QUALITY) -> bytes:
    """
    Encode a picture anew at the size that a model with images of `side` pixels will see.

    With `pad` the result is the picture alone, and the reader adds the border ([`fit_image`], or the processor's
    `do_pad`). It is cut out of the padded square after that was resized, not resized by itself: a picture of 400x500
    covers columns 33.6 to 302.4 of 336, and only so the reader's columns lie where the original's do. Where an edge
    falls inside a pixel, that pixel is mixed with CLIP's grey, as in the original.

    Args:
        data (`bytes`): Encoded image of any kind that [`open_image`] reads.
        side (`int`): Side of the model's images in pixels.
        mode (`str`, defaults to `"pad"`): `pad` brings the long side to `side`; a picture that is not longer keeps
            its pixels, since the reader enlarges it as the original does. `crop` keeps the middle, `side` x `side`.
        quality (`int`, defaults to 94): JPEG quality, 1 to 100.

    Returns:
        `bytes`: Upright RGB JPEG without EXIF, colour profile or comment; equal data give equal bytes.

    Raises:
        `ValueError`: The image cannot be read (see [`open_image`]), or an argument is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"`quality` must be from 1 to 100, got {quality}.")
    image = open_image(data)
    longest = max(image.size)
    if mode == "pad" and longest <= side:
        pixels = np.asarray(image)
    else:
        pixels = fit_image(image, side, mode=mode, exact=True)
    if mode == "pad" and longest > side:
        left, top = ((longest - length) // 2 * side // longest for length in image.size)
        pixels = pixels[top : side - top, left : side - left]
    stream = io.BytesIO()
    # From bare pixels: Pillow would write the comment of an image that it read.
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=SUBSAMPLING, optimize=True)
    return stream.getvalue()
