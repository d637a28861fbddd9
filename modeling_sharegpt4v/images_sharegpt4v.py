"""
From any image file to upright 8-bit RGB: the one place where that is decided.

The processor, the dataset builders and the captioner all call these functions, so training, captioning and
inference see the same pixels. Only Pillow and numpy are needed.
"""

# H height, W width

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image


BACKGROUND = (255, 255, 255)
# Beyond this ratio of sides, an image that will be centre-cropped is cut before it is resized: its long side would
# otherwise grow to gigabytes (1x5000 to 336x1,680,000) only for the middle to be kept.
MAX_CROP_ASPECT = 4
# Padding makes a square of the long side; beyond this many pixels the image is reduced first (1x60000: 11 GB else).
MAX_PAD_SIDE = 8192
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION_SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Turn an image upright and into 8-bit RGB.

    - The EXIF orientation is applied and removed, so applying this function twice changes nothing; an EXIF block
      whose orientation cannot be read counts as absent.
    - Transparency (alpha channel, palette entry or colour key) is composited on white, as a page shows it.
    - 16-bit grey is scaled to 8 bits (Pillow would clip it to white); 32-bit integer grey likewise when any value
      exceeds 255; floating-point grey is clipped to 0..255.
    - CMYK, YCbCr, LAB, HSV and bilevel images are converted by Pillow; of an animation the current frame is used.

    Args:
        image (`PIL.Image.Image`): Image of any mode, H x W.

    Returns:
        `PIL.Image.Image`: Image of mode `RGB`, H x W (W x H when the EXIF orientation says so).
    """
    image = _apply_exif_orientation(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def open_image(source: "str | os.PathLike | bytes | Image.Image") -> Image.Image:
    """
    Read an image completely and return it as [`to_rgb`] defines.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): File, encoded bytes or an open image.

    Returns:
        `PIL.Image.Image`: Upright RGB image, fully decoded.

    Raises:
        `ValueError`: The data is no image, is cut off, or exceeds Pillow's decompression limit. The message names
            the file.
    """
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the given image"
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(stream, Image.Image):
            stream.load()
            return to_rgb(stream)
        with Image.open(Path(stream) if isinstance(stream, str) else stream) as image:
            image.load()  # `verify()` accepts half a JPEG
            return to_rgb(image)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # decoders raise as they like: RuntimeError for AVIF, NotImplementedError for DDS
        raise ValueError(f"Cannot read {name} as an image: {error}. Replace or remove the file.") from error


def limit_aspect(image: Image.Image) -> Image.Image:
    """
    Cut an extremely long image to its middle, for a centre crop that follows.

    Args:
        image (`PIL.Image.Image`): Image of H x W.

    Returns:
        `PIL.Image.Image`: The image itself, or its middle with sides in the ratio `MAX_CROP_ASPECT`; what a centre
            crop keeps of either is the same.
    """
    width, height = image.size
    longest = MAX_CROP_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    longest += (max(width, height) - longest) % 2  # the same number of pixels off either end keeps the middle
    if width > height:
        left = (width - longest) // 2
        return image.crop((left, 0, left + longest, height))
    top = (height - longest) // 2
    return image.crop((0, top, width, top + longest))


def limit_side(image: Image.Image) -> Image.Image:
    """
    Reduce an image whose long side would make a huge square, for padding that follows.

    Args:
        image (`PIL.Image.Image`): Image of H x W.

    Returns:
        `PIL.Image.Image`: The image itself, or a smaller one of the same proportions (no side below one pixel) whose
            long side is `MAX_PAD_SIDE`.
    """
    width, height = image.size
    if max(width, height) <= MAX_PAD_SIDE:
        return image
    scale = MAX_PAD_SIDE / max(width, height)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    # Not `ImageOps.exif_transpose`: it also writes the other tags back, and fails where one of them is damaged. Pillow
    # parses EXIF lazily and raises all sorts of errors then; the pixels are fine (huggingface/datasets#7668).
    image.load()  # TIFF files turn themselves upright here
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    if method is None:
        return image
    upright = image.transpose(method)
    for name in ORIENTATION_SOURCES:
        upright.info.pop(name, None)
    return upright


def _high_depth_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (H, W)
    if image.mode == "F":
        grey = np.clip(np.nan_to_num(values), 0, 255)
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        grey = np.clip(values, 0, 65535) / 257
    else:
        grey = np.clip(values, 0, 255)
    return Image.fromarray(np.rint(grey).astype(np.uint8), mode="L").convert("RGB")
