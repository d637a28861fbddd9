"""
What must not be published, as it hides in files: pickles, places in photographs, rows that name files, packed text.

Nothing is read whole. Of safetensors only the header is read, text comes in blocks, and Parquet by row group and
column; a photograph is read only as far as its metadata (https://exiv2.org/tags.html for the tag of GPS).
"""

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from PIL import Image, UnidentifiedImageError

from .leak_text import Match, TextRules


BLOCK = 1 << 20
OVERLAP = 4096  # longer than what any rule matches, so that nothing is missed at an edge
PICKLE, GPS, OUTSIDE = "pickle", "GPS position", "file outside"
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".mar", ".npz"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".gif", ".bmp"}
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"II*\0", b"MM\0*", b"GIF8")
TEXT_SUFFIXES = {".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml", ".csv", ".tsv", ".jinja", ".html", ".toml"}
GPS_IFD = 0x8825
MEMBER_LIMIT = 64 << 20
# Columns whose texts name files: `datasets` embeds what they point to when it pushes them as images.
FILE_COLUMN = r"(?:[\w.]*(?:image|img|file|path|photo|picture|mask|audio|video)\w*)"
FILE_COLUMN_NAME = re.compile(rf"(?i)^{FILE_COLUMN}$")
FILE_FIELD = re.compile(rf"(?i)\"{FILE_COLUMN}\"\s*:\s*(\"(?:[^\"\\]|\\.)*\"|\[[^\[\]{{}}]{{0,4000}}\])")
IDENTIFIER = re.compile(r"^[A-Za-z_][\w.]* [A-Za-z_][\w.]*$")
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"}
Found = tuple[str, Match]  # a place in the file, and what is there


def scan_pickle(path: Path, head: bytes) -> Iterator[Found]:
    """
    Whether a file is, or holds, a pickle, whatever its name says.

    Args:
        path (`Path`): File.
        head (`bytes`): Its first bytes.

    Yields:
        `tuple[str, Match]`: Place and finding.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    start = file.read(4096)
                if member.endswith((".pkl", ".pickle")) or is_pickle(start):
                    yield member, Match(PICKLE, member, 0, f"{member} is a pickle: loading it can run code")
                    return
    if path.suffix.lower() in PICKLE_SUFFIXES:
        yield "name", Match(PICKLE, path.suffix, 0, f"{path.suffix} files are pickles by custom; publish safetensors")
    elif is_pickle(head):
        yield "byte 0", Match(PICKLE, path.name, 0, "its bytes are a pickle: loading it can run code")


def is_pickle(head: bytes) -> bool:
    """
    Whether bytes begin a pickle.

    Args:
        head (`bytes`): Start of a file.

    Returns:
        `bool`: Also for pickles without a mark at their start, if they name a class or function.
    """
    marked = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    count, named = 0, False
    try:
        for opcode, argument, _ in pickletools.genops(head):
            count += 1
            if opcode.name in ("GLOBAL", "INST"):
                named = named or bool(IDENTIFIER.match(str(argument)))
            named = named or opcode.name == "STACK_GLOBAL"
            if named and opcode.name in CALLS:
                return True
    except Exception:  # bytes of any kind go in here, and the reader fails on them in any way
        return marked and count >= 3
    return marked or named


def scan_image(data: bytes | Path, place: str) -> Iterator[Found]:
    """
    Whether a photograph tells where it was taken.

    Args:
        data (`bytes` or `Path`): It.
        place (`str`): Where it is.

    Yields:
        `tuple[str, Match]`: Place and finding.
    """
    raw = data if isinstance(data, bytes) else b""
    # Most pictures of a data set have no metadata; a look for its marks is a hundred times faster than opening them.
    marks = (b"Exif", b"eXIf", b"EXIF", b"GPSLatitude", b"II*\0", b"MM\0*", b"Raw profile type")
    if raw and not any(mark in raw for mark in marks):
        return
    if b"GPSLatitude" in raw:
        yield place, Match(GPS, place, 0, "XMP with a GPS position")
        return
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            position = image.getexif().get_ifd(GPS_IFD)
            packet = str(image.info.get("xmp", "")) + str(image.info.get("XML:com.adobe.xmp", ""))
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        KeyError,
        TypeError,
        Image.DecompressionBombError,
    ):
        # No picture, or a broken one, which a viewer cannot read a position from either.
        return
    if any(position.get(tag) for tag in (2, 4)) or "GPSLatitude" in packet:
        yield place, Match(GPS, place, 0, "EXIF with a GPS position")


def scan_text_file(file: IO[bytes], rules: TextRules, words: bool = True, rows: bool = False) -> Iterator[Found]:
    """
    Look through text by blocks.

    Args:
        file (`IO[bytes]`): Open file.
        rules (`TextRules`): What is looked for.
        words (`bool`, defaults to `True`): See [`TextRules.scan`].
        rows (`bool`, defaults to `False`): Whether its fields may name files, as JSON rows do.

    Yields:
        `tuple[str, Match]`: Place, as `line 3`, and finding.
    """
    lines, kept = 1, b""
    while block := file.read(BLOCK):
        data = kept + block
        text = data.decode("utf-8", errors="replace")
        for match in rules.scan(text, words):
            yield f"line {lines + text.count(chr(10), 0, match.start)}", match
        if rows:
            for start, value in _named_files(text):
                for match in scan_name(value):
                    yield f"line {lines + text.count(chr(10), 0, start)}", match
        kept = data[-OVERLAP:]
        lines += data.count(b"\n") - kept.count(b"\n")


def scan_bytes(file: IO[bytes], rules: TextRules) -> Iterator[Found]:
    """
    Look through a binary file for secrets alone; anything else is there by chance.

    Args:
        file (`IO[bytes]`): Open file.
        rules (`TextRules`): What is looked for.

    Yields:
        `tuple[str, Match]`: Place, as `byte 20`, and finding.
    """
    position, kept = 0, b""
    while block := file.read(BLOCK):
        data = kept + block
        for match in rules.scan_exact(data):
            yield f"byte {position + match.start}", match
        kept = data[-OVERLAP:]
        position += len(data) - len(kept)


def scan_safetensors(path: Path, rules: TextRules) -> Iterator[Found]:
    """
    Look through the header of a safetensors file (https://github.com/huggingface/safetensors#format).

    Args:
        path (`Path`): It.
        rules (`TextRules`): What is looked for.

    Yields:
        `tuple[str, Match]`: Place and finding.

    Raises:
        `ValueError`: The file has no such header.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(100 << 20, path.stat().st_size - 8):
            raise ValueError(f"{path.name} is not a safetensors file: its header would have {size} bytes.")
        header = file.read(size)
    if not isinstance(json.loads(header), dict):
        raise ValueError(f"{path.name} is not a safetensors file: its header is no JSON object.")
    for match in rules.scan(header.decode("utf-8", errors="replace")):
        yield "header", match


def scan_name(value: str) -> Iterator[Match]:
    """
    Whether a text that names a file leads out of the folder that it belongs to.

    Args:
        value (`str`): Path as a row has it.

    Yields:
        `Match`: At most one.
    """
    plain = unquote(value).replace("\\", "/").strip()
    address = re.match(r"(?i)([a-z][a-z0-9+.-]+):", plain)
    if address and address.group(1).lower() != "file":
        return  # https://, hf:// and zip:// are no files of this machine
    leads_out = (
        plain.startswith(("/", "~")) or bool(re.match(r"(?i)(file:|[a-z]:/)", plain)) or ".." in plain.split("/")
    )
    if leads_out:
        last = plain.rstrip("/").rsplit("/", 1)[-1]
        yield Match(OUTSIDE, value, 0, f"a row names a file that is not in the folder: ***/{last}")


def scan_links(folder: Path, path: Path) -> Iterator[Found]:
    """
    Whether a link leads out of its folder.

    Args:
        folder (`Path`): What is published.
        path (`Path`): Entry of it.

    Yields:
        `tuple[str, Match]`: Place and finding.
    """
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        target = path.resolve()
        yield "link", Match(OUTSIDE, str(target), 0, f"a symbolic link to ***/{target.name}, outside the folder")


def scan_archive(path: Path, rules: TextRules) -> Iterator[Found]:
    """
    Look through the files in a zip or tar archive.

    Args:
        path (`Path`): It.
        rules (`TextRules`): What is looked for.

    Yields:
        `tuple[str, Match]`: Place and finding.
    """
    for name, data in _members(path):
        for match in scan_name(name):
            yield name, match
        if is_pickle(data[:4096]):
            yield name, Match(PICKLE, name, 0, f"{name} is a pickle: loading it can run code")
        suffix = Path(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES or data.startswith(IMAGE_STARTS):
            yield from scan_image(data, name)
        elif suffix in TEXT_SUFFIXES:
            for place, match in scan_text_file(io.BytesIO(data), rules, rows=suffix in (".json", ".jsonl")):
                yield f"{name}, {place}", match
        else:
            for place, match in scan_bytes(io.BytesIO(data), rules):
                yield f"{name}, {place}", match


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    import tarfile

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as member:
                        yield entry.filename, member.read(MEMBER_LIMIT)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for one in archive:
                file = archive.extractfile(one) if one.isfile() else None
                yield one.name, file.read(MEMBER_LIMIT) if file is not None else b""


def _named_files(text: str) -> Iterator[tuple[int, str]]:
    for found in FILE_FIELD.finditer(text):
        try:
            value: Any = json.loads(found.group(1))
        except ValueError:
            continue  # cut at the edge of a block: the next one has it whole
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                yield found.start(), one
