"""Which image paths of a record may be looked up at all: a record is input from elsewhere, and names a file here."""

import re
import unicodedata
from urllib.parse import unquote


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_PATH = 1024
DRIVE = re.compile(r"[A-Za-z]:")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_image_path(image: str) -> str:
    """
    Check that an image path is relative and stays below whatever root it is joined to.

    A path is also refused when only a decoder further on would make it dangerous: percent signs that spell a
    separator or dots, and full-width characters that normalise to them.

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
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in reading):
            raise ValueError(f"image path {image!r} holds a control character.")
        if "\\" in reading or reading.startswith(("/", "~")) or DRIVE.match(reading) or SCHEME.match(reading):
            raise ValueError(f"image path {image!r} must be relative, with forward slashes.")
        parts = reading.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"image path {image!r} has an empty, '.' or '..' part.")
        if len(parts) != image.count("/") + 1:
            raise ValueError(f"image path {image!r} hides a separator.")
    return image


def _readings(image: str) -> list[str]:
    # What the path becomes after any number of percent decodings and after compatibility normalisation.
    readings = [image]
    while (decoded := unquote(readings[-1])) != readings[-1]:
        readings.append(decoded)
    return [form for reading in readings for form in dict.fromkeys((reading, unicodedata.normalize("NFKC", reading)))]
