"""Small image files, and archives of them, sound and hostile."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth random pattern; two seeds differ in about half of the bits of the perceptual hash."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def encoded(seed: int = 0, size: tuple[int, int] = (48, 32), kind: str = "JPEG", **options) -> bytes:
    """The pattern as the bytes of a file."""
    stream = io.BytesIO()
    picture(seed, size).save(stream, kind, **options)
    return stream.getvalue()


def put(root: Path, images: dict[str, bytes]) -> Path:
    """Write files below a folder, by their paths."""
    for name, data in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tar_member(name: str, data: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member with any attributes, such as `type` and `linkname`."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def pack_tar(path: Path, images: dict[str, bytes], *others: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Write a tar file of images, then of other members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, data in [*(tar_member(name, data) for name, data in images.items()), *others]:
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The block before a member, with any size, also a negative one."""
    block = bytearray(tar_member(name, type=kind)[0].tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pack_zip(path: Path, images: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip file of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as bundle:
        for name, data in images.items():
            bundle.writestr(zipfile.ZipInfo(name), data, method)
    return path


def png_bomb(side: int) -> bytes:
    """A black PNG file of a few hundred kilobytes at most, however large its picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def replace_in_place(path: Path, data: bytes) -> None:
    """Give a file other bytes of the same number, and its former time of change: nothing a listing shows differs."""
    status = path.stat()
    if len(data) != status.st_size:
        raise ValueError(f"{path} has {status.st_size} bytes, not {len(data)}.")
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
