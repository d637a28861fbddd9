"""
From any image file to upright 8-bit RGB: the one place where that is decided.

The processor, the dataset builders and the captioner all call these functions, so training, captioning and
inference see the same pixels. [`fit_image`] goes on to the square that a CLIP tower takes, several times faster than
the steps of the original where its last digits are not asked for. Only Pillow and numpy are needed.
"""

# H height, W width

import io
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image


BACKGROUND = (255, 255, 255)
CLIP_GREY = (122, 116, 104)  # int(255 * mean) of CLIP, what the original pads with
# How many times larger than its square a picture stays when it may be decoded or averaged smaller first. At this limit
# halves and quarters of 174 COCO photographs differ from the exact way by 0.006 to 0.010 on average (normalised, mean
# absolute), and 2 of 696 results by more than 0.02; at 1.7 these are 61. SAM's 1500 pixels still halve for 336.
REDUCING_GAP = 2.2
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
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
MIRRORED = ((2, 3, 6, 7), (3, 4, 7, 8))  # orientations after which left and right, top and bottom are exchanged
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


def open_image(
    source: "str | os.PathLike | bytes | Image.Image",
    reduce_to: int | None = None,
    mode: Literal["pad", "crop"] = "pad",
) -> Image.Image:
    """
    Read an image completely and return it as [`to_rgb`] defines.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): File, encoded bytes or an open image.
        reduce_to (`int`, *optional*): Pixels that are enough: a JPEG file is then decoded to a half, a quarter or an
            eighth of its sides, in a fraction of the time, as long as this many remain. Other files are read whole.
        mode (`str`, defaults to `"pad"`): Which side must keep `reduce_to` pixels: the long one if the image will be
            padded to a square (`pad`), the short one if it will be cut to one (`crop`).

    Returns:
        `PIL.Image.Image`: Upright RGB image, fully decoded.

    Raises:
        `ValueError`: The data is no image, is cut off, or exceeds Pillow's decompression limit. The message names
            the file.
    """
    _check_mode(mode)
    if reduce_to is not None and reduce_to < 1:
        raise ValueError(f"`reduce_to` must be at least 1, got {reduce_to}.")
    return _read(source, reduce_to, mode).image


def fit_image(
    source: "str | os.PathLike | bytes | Image.Image",
    side: int,
    background: tuple[int, int, int] = CLIP_GREY,
    mode: Literal["pad", "crop"] = "pad",
    exact: bool = False,
) -> np.ndarray:
    """
    Read an image into the square that a CLIP tower takes.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): As for [`open_image`], whose rules and errors
            hold.
        side (`int`): Side of the square in pixels.
        background (`tuple[int, int, int]`, defaults to `(122, 116, 104)`): Colour beside a picture that is padded.
        mode (`str`, defaults to `"pad"`): `pad` centres the whole picture on a square of the background, `crop`
            brings the short side to `side` and keeps the middle. Both are bicubic.
        exact (`bool`, defaults to `False`): Whether every pixel must equal what the original's padding and CLIP's
            image processor give ([`limit_side`] and [`limit_aspect`] come first, as in our processor). If not, large
            pictures are decoded smaller and no padding is resized; see `REDUCING_GAP` for what that changes.

    Returns:
        `np.ndarray`: `(side, side, 3)` array of `uint8`, not normalised.

    Raises:
        `ValueError`: The image cannot be read (see [`open_image`]), `side` is not positive, or `mode` is unknown.
    """
    _check_mode(mode)
    if side < 1:
        raise ValueError(f"`side` must be at least 1, got {side}.")
    picture = _read(source, None if exact else int(np.ceil(REDUCING_GAP * side)), mode)
    if mode == "crop":
        return np.array(_crop_whole(picture.image, side) if exact else _crop_box(picture, side))
    if max(picture.image.size) > MAX_PAD_SIDE:
        image = limit_side(picture.image)
        picture = _Picture(image, image.size)
    width, height = picture.size
    if max(width, height) == side:
        return _place(picture.image, ((side - width) // 2, (side - height) // 2), side, background)
    if exact or max(width, height) < side:
        return np.array(_pad_whole(picture.image, side, background))
    return _pad_border(picture, side, background)


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


class _Picture(NamedTuple):
    """An upright RGB image, decoded smaller than it is in its file if `scale` is below 1."""

    image: Image.Image
    size: tuple[int, int]  # in the file, upright
    scale: float = 1.0  # pixels of `image` for one of the file
    origin: tuple[float, float] = (0.0, 0.0)  # where the file's upper left corner lies in `image`


def _check_mode(mode: str) -> None:
    if mode not in ("pad", "crop"):
        raise ValueError(f"`mode` must be 'pad' or 'crop', got {mode!r}.")


def _read(source: "str | os.PathLike | bytes | Image.Image", reduce_to: int | None, mode: str) -> _Picture:
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the given image"
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(stream, Image.Image):
            stream.load()
            image = to_rgb(stream)
            return _Picture(image, image.size)
        with Image.open(Path(stream) if isinstance(stream, str) else stream) as image:
            return _decode(image, reduce_to, mode)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # decoders raise as they like: RuntimeError for AVIF, NotImplementedError for DDS
        raise ValueError(f"Cannot read {name} as an image: {error}. Replace or remove the file.") from error


def _decode(image: Image.Image, reduce_to: int | None, mode: str) -> _Picture:
    size, drafted = image.size, None
    if reduce_to is not None:
        least = [reduce_to, reduce_to]
        if mode == "pad":
            least[size.index(min(size))] = 1  # only the long side must keep its pixels
        drafted = image.draft(None, (least[0], least[1]))  # mode None: the colours are left to `to_rgb`
    image.load()  # `verify()` accepts half a JPEG
    if drafted is None:
        image = to_rgb(image)
        return _Picture(image, image.size)
    # Where the sides are no multiples, the last row and column stand for less than a whole pixel: 2250 / 4 = 562.5.
    extent = drafted[1][2:]
    scale, rest = extent[0] / size[0], (image.width - extent[0], image.height - extent[1])
    orientation = _orientation(image)
    if orientation in SIDEWAYS:
        size, rest = size[::-1], rest[::-1]
    origin = (rest[0] * (orientation in MIRRORED[0]), rest[1] * (orientation in MIRRORED[1]))
    return _Picture(to_rgb(image), size, scale, origin)


def _pad_whole(image: Image.Image, side: int, background: tuple[int, int, int]) -> Image.Image:
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), background)
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _pad_border(picture: _Picture, side: int, background: tuple[int, int, int]) -> np.ndarray:
    # The filter reaches two pixels of the result far, so with a border of three the edges come out as they do of the
    # whole square; what lies farther out is plain background.
    longest = max(picture.size)
    step = picture.scale * longest / side  # pixels of the image for one of the result
    axes = []
    for length, pixels, origin in zip(picture.size, picture.image.size, picture.origin, strict=True):
        before = (longest - length) // 2
        after = longest - length - before
        first = max(0, before * side // longest - 2)
        last = min(side, side - after * side // longest + 2)
        border = [int(np.ceil(min(3 * step + 1, picture.scale * gap))) for gap in (before, after)]
        total = pixels + sum(border)
        zero = border[0] + origin - picture.scale * before  # where the square begins, in the bordered image
        axes.append((first, last, border[0], total, zero + step * first, min(total, zero + step * last)))  # rounding
    (left, right, x, width, *horizontal), (top, bottom, y, height, *vertical) = axes
    bordered = Image.new("RGB", (width, height), background)
    bordered.paste(picture.image, (x, y))
    box = (horizontal[0], vertical[0], horizontal[1], vertical[1])
    size = (right - left, bottom - top)
    content = bordered.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=REDUCING_GAP)
    return _place(content, (left, top), side, background)


def _place(content: Image.Image, corner: tuple[int, int], side: int, background: tuple[int, int, int]) -> np.ndarray:
    left, top = corner
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = np.tile(np.array(background, dtype=np.uint8), (side, 1))  # by rows: by pixels takes ten times as long
    square[top : top + content.height, left : left + content.width] = np.asarray(content)
    return square


def _crop_whole(image: Image.Image, side: int) -> Image.Image:
    image = limit_aspect(image)
    width, height = _grown(image.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _crop_box(picture: _Picture, side: int) -> Image.Image:
    # Only what the crop keeps is resized; the filter sees the pixels beside the box, as if the whole image were.
    # Rounding between Pillow's two passes can differ, so this is not the exact way.
    bounds = []
    grown = _grown(picture.size, side)
    for length, pixels, origin, target in zip(picture.size, picture.image.size, picture.origin, grown, strict=True):
        step, cut = picture.scale * length / target, (target - side) // 2
        bounds.append((origin + step * cut, min(float(pixels), origin + step * (cut + side))))
    (left, right), (top, bottom) = bounds
    return picture.image.resize(
        (side, side), Image.Resampling.BICUBIC, (left, top, right, bottom), reducing_gap=REDUCING_GAP
    )


def _grown(size: tuple[int, int], side: int) -> tuple[int, int]:
    width, height = (side if length == min(size) else int(side * length / min(size)) for length in size)
    return width, height


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    # Not `ImageOps.exif_transpose`: it also writes the other tags back, and fails where one of them is damaged.
    image.load()  # TIFF files turn themselves upright here
    method = UPRIGHT.get(_orientation(image))
    if method is None:
        return image
    upright = image.transpose(method)
    for name in ORIENTATION_SOURCES:
        upright.info.pop(name, None)
    return upright


def _orientation(image: Image.Image) -> int:
    # Pillow parses EXIF lazily and raises all sorts of errors then; the pixels are fine (huggingface/datasets#7668).
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _high_depth_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (H, W)
    if image.mode == "F":
        grey = np.clip(np.nan_to_num(values), 0, 255)
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        grey = np.clip(values, 0, 65535) / 257
    else:
        grey = np.clip(values, 0, 255)
    return Image.fromarray(np.rint(grey).astype(np.uint8), mode="L").convert("RGB")
