"""EXIF blocks byte by byte: Pillow writes only sound ones."""

import struct


def exif_block(*entries):
    """EXIF bytes from (tag, type, count, value) entries, followed by the fraction 6/1."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + struct.pack("<II", 6, 1)


SIDEWAYS = (274, 3, 1, b"\x06\0\0\0")
MAKER_AS_FRACTION = (271, 5, 1, struct.pack("<I", 38))
