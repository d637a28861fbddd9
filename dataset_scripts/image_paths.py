"""Which image paths of a record may be looked up at all: a record is input from elsewhere, and names a file here."""

import re
import unicodedata
from urllib.parse import unquote


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_PATH = 1024
MAX_READINGS = 32  # honest names have one or two
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates
DRIVE = re.compile(r".:")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_image_path(image: str) -> str:
    """
    Check that an image path is relative and stays below whatever root it is joined to.

    A path is also refused when only a decoder further on would make it dangerous: percent signs that spell a
    separator or dots, and full-width characters that normalise to them, in any mixture.

    Args:
        image (`str`): Path in a record, with forward slashes.

    Returns:
        `str`: The same path.

    Raises:
        `ValueError`: The path is refused; the message says why.
    """
    if not image or len(image) > MAX_PATH:
        raise ValueError(f"an image path must have 1 to {MAX_PATH} characters, got {len(image)}.")
    for reading in _readings(image):
        if FORBIDDEN.search(reading):
            raise ValueError(f"image path {image!r} holds a control character or half a surrogate pair.")
        if "\\" in reading or reading.startswith(("/", "~")) or DRIVE.match(reading) or SCHEME.match(reading):
            raise ValueError(f"image path {image!r} must be relative, with forward slashes.")
        parts = reading.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"image path {image!r} has an empty, '.' or '..' part.")
        if len(parts) != image.count("/") + 1:
            raise ValueError(f"image path {image!r} hides a separator.")
    return image


def is_image_name(name: str) -> bool:
    """
    Whether a file is an image by its name.

    Args:
        name (`str`): Name or path; macOS puts a `._cat.jpg` that is none beside every `cat.jpg` it packs.

    Returns:
        `bool`: True for the suffixes of `IMAGE_SUFFIXES` in upper or lower case.
    """
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("._")


def _readings(image: str) -> list[str]:
    # Everything the path becomes by percent decoding and compatibility normalisation, in any order and number.
    readings = [image]
    for reading in readings:
        for other in (unquote(reading), unicodedata.normalize("NFKC", reading)):
            if other not in readings:
                readings.append(other)
        if len(readings) > MAX_READINGS:
            raise ValueError(f"image path {image!r} is encoded many times over.")
    return readings
