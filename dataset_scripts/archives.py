"""
Tar and zip files read in place: nothing is ever unpacked, so nothing can be written outside a folder.

Every image member is listed once with the position of its bytes; reading one is then one seek. Links, devices, names
that lead out of the archive and members of absurd size are listed as problems and never read.
"""

import logging
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .image_paths import IMAGE_SUFFIXES, check_image_path


logger = logging.getLogger(__name__)
MAX_IMAGE_BYTES = 256 * 2**20
MAX_RATIO = 200  # unpacked to packed; JPEG files in a zip are near 1
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field


@dataclass(frozen=True, slots=True)
class Located:
    """Where the bytes of an image lie: a file of its own, or a span of an archive."""

    file: str
    size: int
    mtime_ns: int
    offset: int | None = None
    packed: int | None = None  # bytes in a zip file; `None` in a tar file
    method: int = STORED
    crc: int = 0


@dataclass
class Archive:
    """Image members of an archive, and what of it cannot be used."""

    path: Path
    members: dict[str, Located] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def is_archive(name: str) -> bool:
    """
    Whether a file is an archive that is read in place.

    Args:
        name (`str`): File name.

    Returns:
        `bool`: True for `.tar` and `.zip`.
    """
    return name.lower().endswith((".tar", ".zip"))


def list_archive(path: Path) -> Archive:
    """
    List the images of an archive without reading them.

    Args:
        path (`Path`): Tar or zip file.

    Returns:
        `Archive`: Members by their path inside, and problems: damage, refused members.
    """
    archive = Archive(path)
    members = _tar_members if path.name.lower().endswith(".tar") else _zip_members
    try:
        for name, found in members(archive):
            if not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            try:
                name = check_image_path(name.removeprefix("./"))
            except ValueError as error:
                archive.problems.append(f"member {name!r}: {error}")
                continue
            if found.size > MAX_IMAGE_BYTES:
                archive.problems.append(f"member {name!r} unpacks to {found.size} bytes; it is not read.")
            elif found.packed is not None and found.size > MAX_RATIO * max(1, found.packed):
                archive.problems.append(
                    f"member {name!r} unpacks to {found.size // max(1, found.packed)} times its size."
                )
            else:
                archive.members[name] = found
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        archive.problems.append(f"damaged after {len(archive.members)} images: {error}. Fetch it again.")
    for problem in archive.problems:
        logger.warning("%s: %s", path, problem)
    return archive


def read_located(located: Located) -> bytes:
    """
    Read the bytes of an image.

    Args:
        located (`Located`): Where they lie.

    Returns:
        `bytes`: The encoded image.

    Raises:
        `ValueError`: The file is larger than `MAX_IMAGE_BYTES`, or a zip member does not match its checksum.
    """
    if located.size > MAX_IMAGE_BYTES:
        raise ValueError(f"{located.file} has {located.size} bytes, more than the limit of {MAX_IMAGE_BYTES}.")
    with open(located.file, "rb") as stream:
        if located.offset is None:
            return stream.read(MAX_IMAGE_BYTES)
        stream.seek(located.offset)
        if located.packed is None:
            return stream.read(located.size)
        return _read_zip_member(stream.read(LOCAL_HEADER.size), stream, located)


def _tar_members(archive: Archive) -> Iterator[tuple[str, Located]]:
    status = os.stat(archive.path)
    with tarfile.open(archive.path, "r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                archive.problems.append(f"member {member.name!r} is a link or a device; it is never followed.")
                continue
            if member.offset_data + member.size > status.st_size:
                raise EOFError(f"{member.name!r} is cut off")
            yield (
                member.name,
                Located(str(archive.path), member.size, status.st_mtime_ns, member.offset_data),
            )


def _zip_members(archive: Archive) -> Iterator[tuple[str, Located]]:
    status = os.stat(archive.path)
    with zipfile.ZipFile(archive.path) as bundle:
        for info in bundle.infolist():
            kind = info.external_attr >> 28  # upper bits of the Unix mode: 8 is a regular file, 0 is unknown
            if info.is_dir():
                continue
            if kind not in (0, 8) or info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                archive.problems.append(
                    f"member {info.filename!r} is a link, encrypted or packed in an unknown way; it is not read."
                )
                continue
            yield (
                info.filename,
                Located(
                    str(archive.path),
                    info.file_size,
                    status.st_mtime_ns,
                    info.header_offset,
                    info.compress_size,
                    info.compress_type,
                    info.CRC,
                ),
            )


def _read_zip_member(header: bytes, stream, located: Located) -> bytes:
    # Not `zipfile.ZipFile`: each process would first read the directory of half a million members.
    signature, name_length, extra_length = LOCAL_HEADER.unpack(header[: LOCAL_HEADER.size].ljust(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError(f"{located.file} is damaged at byte {located.offset}. Fetch it again.")
    stream.seek(name_length + extra_length, os.SEEK_CUR)
    data = stream.read(located.packed)
    if located.method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, located.size + 1)
        except zlib.error as error:
            raise ValueError(f"{located.file} is damaged at byte {located.offset}: {error}.") from error
    if len(data) != located.size or zlib.crc32(data) != located.crc:
        raise ValueError(f"{located.file} is damaged at byte {located.offset}: checksum differs. Fetch it again.")
    return data
