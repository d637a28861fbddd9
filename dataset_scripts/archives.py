"""
Tar and zip files read in place: nothing is ever unpacked, so nothing can be written outside a folder.

Every image member is listed once with the position of its bytes; reading one is then one seek. Links, devices, names
that lead out of the archive and members of absurd size are listed as problems and never read. What lies before the
damage of a tar file stays usable; a zip file lists its members at the end, so one that is cut off has none.
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

from .image_paths import check_image_path, is_image_name


logger = logging.getLogger(__name__)
MAX_IMAGE_BYTES = 256 * 2**20
MAX_RATIO = 200  # unpacked to packed; JPEG files in a zip are near 1
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
UTF8_NAME = 0x800  # flag of a zip member
SHOWN_PROBLEMS, SHOWN_NAME = 3, 200


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
        if not path.is_file():
            raise OSError("it is no regular file")
        for name, found in members(archive):
            if is_image_name(name):
                _enter(archive, name, found)
    except Exception as error:  # damaged and hostile headers make the parsers raise anything, RecursionError included
        reason = f"{type(error).__name__}: {error}"
        archive.problems.append(f"unusable after {len(archive.members)} images ({reason}). Fetch it again.")
    for problem in archive.problems[:SHOWN_PROBLEMS]:
        logger.warning("%s: %s", path, problem)
    if len(archive.problems) > SHOWN_PROBLEMS:
        logger.warning("%s: %d more problems.", path, len(archive.problems) - SHOWN_PROBLEMS)
    return archive


def read_located(located: Located) -> bytes:
    """
    Read the bytes of an image.

    Args:
        located (`Located`): Where they lie.

    Returns:
        `bytes`: The encoded image.

    Raises:
        `ValueError`: The file is larger than `MAX_IMAGE_BYTES` or has become shorter, or a zip member does not match
            its checksum.
    """
    if located.size > MAX_IMAGE_BYTES:
        raise ValueError(f"{located.file} has {located.size} bytes, more than the limit of {MAX_IMAGE_BYTES}.")
    with open(located.file, "rb") as stream:
        stream.seek(located.offset or 0)
        if located.packed is not None:
            return _read_zip_member(stream.read(LOCAL_HEADER.size), stream, located)
        data = stream.read(located.size)
    if len(data) != located.size:
        raise ValueError(f"{located.file} has become shorter than it was. Fetch it again.")
    return data


def _enter(archive: Archive, name: str, found: Located) -> None:
    try:
        plain = check_image_path("/".join(part for part in name.split("/") if part != "."))
    except ValueError as error:
        archive.problems.append(f"member {name[:SHOWN_NAME]!r} is refused: {error}")
        return
    if max(found.size, found.packed or 0) > MAX_IMAGE_BYTES:
        archive.problems.append(f"member {name!r} has more than {MAX_IMAGE_BYTES} bytes; it is not read.")
    elif found.packed is not None and found.size > MAX_RATIO * max(1, found.packed):
        archive.problems.append(f"member {name!r} unpacks to {found.size // max(1, found.packed)} times its size.")
    else:
        archive.members[plain] = found


def _tar_members(archive: Archive) -> Iterator[tuple[str, Located]]:
    status, position = os.stat(archive.path), -1
    with tarfile.open(archive.path, "r:") as tar:
        for member in tar:
            if member.size < 0 or member.offset <= position:  # python/cpython#130577: `tarfile` goes round in circles
                raise ValueError(f"{member.name!r} has a negative size")
            position = member.offset
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                shown = member.name[:SHOWN_NAME]
                archive.problems.append(f"member {shown!r} is a link, a device or sparse; it is not read.")
                continue
            if member.offset_data + member.size > status.st_size:
                raise EOFError(f"{member.name!r} is cut off")
            yield member.name, Located(str(archive.path), member.size, status.st_mtime_ns, member.offset_data)
        _check_tar_end(archive.path, tar.offset)


def _check_tar_end(path: Path, end: int) -> None:
    # `tarfile` takes a damaged header behind the first one for the end; the real end is a block of zeros.
    with path.open("rb") as stream:
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError(f"it is damaged or cut off at byte {end}")


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
                _zip_name(info),
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


def _zip_name(info: zipfile.ZipInfo) -> str:
    # Packers on macOS and Linux write UTF-8 and do not always say so; `zipfile` then reads it as code page 437.
    if info.flag_bits & UTF8_NAME:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


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
