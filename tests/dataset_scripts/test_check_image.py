"""The check of one image: every usable kind passes with its upright size, everything else gets a reason."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import imagehash
import pytest
from PIL import Image, PngImagePlugin

from dataset_scripts.archives import Located, list_archive
from dataset_scripts.check_image import Check, check_image, crashed, describe
from tests.exif import MAKER_AS_FRACTION, SIDEWAYS, exif_block
from tests.image_files import encoded, pack_tar, pack_zip, picture, png_bomb


ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def locate(path: Path) -> Located:
    return Located(str(path), path.stat().st_size, path.stat().st_mtime_ns)


def checked(tmp_path: Path, data: bytes, name: str = "a.jpg") -> Check:
    (tmp_path / name).write_bytes(data)
    return check_image(locate(tmp_path / name))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def damaged_xmp() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><not closed \0 \x01 tiff:Orientation")
    return saved(picture(), "PNG", pnginfo=info)


def jpeg_with(segment: bytes) -> bytes:
    data = encoded()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def sixteen_bit() -> Image.Image:
    return Image.new("I;16", (48, 32), 40_000)


def palette_with_alpha() -> bytes:
    return saved(picture().quantize(16), "PNG", transparency=bytes(range(0, 160, 10)))


USABLE = {
    "JPEG": (encoded(), (48, 32)),
    "progressive": (encoded(progressive=True), (48, 32)),
    "PNG": (encoded(kind="PNG"), (48, 32)),
    "WebP": (encoded(kind="WEBP"), (48, 32)),
    "BMP": (encoded(kind="BMP"), (48, 32)),
    "TIFF": (encoded(kind="TIFF"), (48, 32)),
    "grey": (saved(picture().convert("L"), "JPEG"), (48, 32)),
    "one bit": (saved(picture().convert("1"), "PNG"), (48, 32)),
    "CMYK": (saved(picture().convert("CMYK"), "JPEG"), (48, 32)),
    "16 bits": (saved(sixteen_bit(), "PNG"), (48, 32)),
    "palette with alpha": (palette_with_alpha(), (48, 32)),
    "alpha": (saved(picture().convert("RGBA"), "PNG"), (48, 32)),
    "animated": (saved(picture(1), "GIF", save_all=True, append_images=[picture(2), picture(3)]), (48, 32)),
    "sideways": (encoded(exif=exif_block(SIDEWAYS)), (32, 48)),
    "sideways, damaged tag": (encoded(exif=exif_block(SIDEWAYS, MAKER_AS_FRACTION)), (32, 48)),
    "invalid EXIF": (encoded(exif=b"Exif\0\0MM\0*" + b"\xff" * 40), (48, 32)),
    "invalid XMP in PNG": (damaged_xmp(), (48, 32)),
    "invalid XMP in JPEG": (jpeg_with(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xff\xfe"), (48, 32)),
    "1x1": (encoded(size=(1, 1)), (1, 1)),
    "1x5000": (encoded(size=(1, 5000)), (1, 5000)),
    "5000x1": (encoded(size=(5000, 1), kind="PNG"), (5000, 1)),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(("data", "size"), USABLE.values(), ids=USABLE)
def test_every_usable_kind_passes_with_its_upright_size(tmp_path, data, size):
    check = checked(tmp_path, data)
    assert check.problem == ""
    assert (check.width, check.height) == size
    assert check.sha256 == hashlib.sha256(data).hexdigest()
    assert len(check.phash) == 16 and int(check.phash, 16) >= 0


def test_the_perceptual_hash_is_that_of_the_upright_picture(tmp_path):
    upright = picture(size=(96, 64))
    turned = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_block(SIDEWAYS))
    assert checked(tmp_path, turned).phash == str(imagehash.phash(upright))


@pytest.mark.parametrize("pack", [pack_tar, pack_zip])
def test_a_member_of_an_archive_is_checked_like_a_file(tmp_path, pack):
    path = pack(tmp_path / f"a.{'tar' if pack is pack_tar else 'zip'}", {"a.jpg": encoded(1), "b.jpg": b"text"})
    members = list_archive(path).members
    assert check_image(members["a.jpg"]) == checked(tmp_path, encoded(1))
    assert check_image(members["b.jpg"]).problem == "UnidentifiedImageError: cannot identify image file"


BAD = {
    "half a JPEG": (encoded(size=(300, 200))[:1500], "OSError: image file is truncated"),
    "half a PNG": (encoded(size=(300, 200), kind="PNG")[:1500], "truncated"),
    "half a GIF": (encoded(size=(300, 200), kind="GIF")[:1500], "truncated"),
    "no byte": (b"", "UnidentifiedImageError: cannot identify image file"),
    "text": (b"<html>404 Not Found</html>", "UnidentifiedImageError: cannot identify image file"),
    "zeros": (bytes(5000), "UnidentifiedImageError: cannot identify image file"),
    "damaged PNG": (encoded(kind="PNG").replace(b"IDAT", b"IDAT\xff", 1), ""),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_gets_a_reason_in_one_line_that_is_the_same_every_time(tmp_path, data, reason):
    check = checked(tmp_path, data)
    assert check.problem and reason in check.problem
    assert "\n" not in check.problem and "0x" not in check.problem
    assert check == Check(problem=check.problem) == checked(tmp_path, data)


def test_a_file_that_has_vanished_gets_a_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    located = locate(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert check_image(located).problem.startswith("FileNotFoundError: ")


@contextmanager
def without_privileges():
    if os.geteuid() != 0:  # permissions do not hold for root
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("this root cannot become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_gets_a_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    located = locate(tmp_path / "a.jpg")
    os.chmod(tmp_path / "a.jpg", 0)
    with without_privileges():
        check = check_image(located)
    assert check.problem.startswith("PermissionError: ")


MEASURE = """
import json, re, resource, sys
from pathlib import Path
from dataset_scripts.archives import Located
from dataset_scripts.check_image import check_image

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, bomb, large = (Located(path, Path(path).stat().st_size, 0) for path in sys.argv[1:])
check_image(small)
before = kilobytes("VmHWM")
refused = check_image(bomb).problem
grown = kilobytes("VmHWM") - before
resource.setrlimit(resource.RLIMIT_AS, (kilobytes("VmSize") * 1024 + 120 * 2**20,) * 2)
short = check_image(large).problem
heavy = sorted({"datasets", "torch", "transformers"} & set(sys.modules))
after = check_image(small).problem
print(json.dumps({"heavy": heavy, "refused": refused, "grown": grown, "short": short, "after": after}))
"""


def test_a_bomb_is_refused_unopened_and_a_lack_of_memory_costs_one_image(tmp_path):
    files = {"small.png": encoded(kind="PNG"), "bomb.png": png_bomb(14_000), "large.png": png_bomb(9_000)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert len(files["bomb.png"]) < 200_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *(tmp_path / name for name in files)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["refused"].startswith("DecompressionBombError: Image size (196000000 pixels) exceeds limit")
    assert facts["grown"] < 10_000
    assert facts["heavy"] == []  # every worker would import it
    assert facts["short"].startswith("MemoryError") and facts["after"] == ""


def test_an_image_that_ended_its_process_is_named():
    assert crashed(Located("a/b.jpg", 1, 0)) == Check(
        problem="decoding a/b.jpg ended the worker process (crash or out of memory)"
    )


def test_a_reason_is_that_of_the_cause():
    try:
        try:
            raise OSError("image file is\ntruncated <_io.BytesIO object at 0x7f3b>  now")
        except OSError as error:
            raise ValueError("Cannot read the image.") from error
    except ValueError as error:
        assert describe(error) == "OSError: image file is truncated now"
    assert describe(ValueError("plain")) == "ValueError: plain"
