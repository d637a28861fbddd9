"""Pixels: what the processor makes of an image, and what any image file turns into before that."""

import base64
import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageOps, features

from modeling_sharegpt4v import ShareGPT4VConfig, ShareGPT4VProcessor, build_processor, open_image, to_rgb
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from modeling_sharegpt4v.images_sharegpt4v import limit_aspect
from tests.exif import MAKER_AS_FRACTION, SIDEWAYS, exif_block
from tests.fresh_process import run_fresh
from tests.tiny import chat, noise_image, tiny_tokenizer


SIDE = 336
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
LEVEL = 1 / 255 / STD.min()  # one grey level, normalised


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    add_image_and_pad_tokens(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def pad(tokenizer):
    return build_processor(ShareGPT4VConfig(), tokenizer, image_aspect_ratio="pad")


@pytest.fixture(scope="module")
def crop(tokenizer):
    return build_processor(ShareGPT4VConfig(), tokenizer, image_aspect_ratio="crop")


def pixels_of(processor, image, **options):
    """The (3, H, W) pixels of one image."""
    return processor(images=[image], return_tensors="np", **options)["pixel_values"][0]


def normalised(image):
    return ((np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def padded_by_hand(image):
    """The original's `expand2square` and resize."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return normalised(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def cropped_by_hand(image):
    """CLIP's resize of the short side and centre crop."""
    short = min(image.size)
    size = tuple(SIDE if side == short else int(SIDE * side / short) for side in image.size)
    left, top = ((side - SIDE) // 2 for side in size)
    return normalised(image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE)))


# Square

SHAPES = {"wide": (100, 41), "tall": (41, 100), "square": (60, 60), "large": (640, 480)}
ANY_SHAPE = pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)


@ANY_SHAPE
def test_padding_equals_the_original(pad, size):
    image = noise_image(0, size)
    np.testing.assert_allclose(pixels_of(pad, image), padded_by_hand(image), rtol=0, atol=1e-6)


@ANY_SHAPE
def test_centre_crop_equals_the_original(crop, size):
    image = noise_image(0, size)
    np.testing.assert_allclose(pixels_of(crop, image), cropped_by_hand(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"do_pad": False}, {"images_kwargs": {"do_pad": False}}])
def test_centre_crop_can_be_chosen_for_one_call(pad, crop, options):
    image = noise_image(0, (100, 10))  # so long that it is cut before it is resized
    np.testing.assert_array_equal(pixels_of(pad, image, **options), pixels_of(crop, image))
    np.testing.assert_allclose(pixels_of(pad, image), padded_by_hand(image), rtol=0, atol=1e-6)


def test_padding_can_be_chosen_for_one_call(pad, crop):
    image = noise_image(0, (100, 10))
    np.testing.assert_array_equal(pixels_of(crop, image, do_pad=True), pixels_of(pad, image))


def test_centre_crop_can_be_chosen_with_the_chat_template(pad, crop):
    image = noise_image(0, (100, 41))
    options = dict(tokenize=True, return_dict=True, return_tensors="np", processor_kwargs={"do_pad": False})
    chosen = pad.apply_chat_template(chat("What is it?", image), **options)["pixel_values"][0]
    np.testing.assert_array_equal(chosen, pixels_of(crop, image))


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_the_choice_is_saved(request, tmp_path, mode):
    processor = request.getfixturevalue(mode)
    processor.save_pretrained(tmp_path)
    image = noise_image(0, (100, 41))
    loaded = ShareGPT4VProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(pixels_of(loaded, image), pixels_of(processor, image))


# Extremely long images


@pytest.mark.parametrize("size", [(10, 100), (100, 10), (10, 101), (101, 10), (7, 93)])
def test_cutting_a_long_image_first_leaves_the_centre_crop_as_it_is(crop, size):
    image = noise_image(0, size)
    assert max(limit_aspect(image).size) < max(size)
    np.testing.assert_allclose(pixels_of(crop, image), cropped_by_hand(image), rtol=0, atol=2.5 * LEVEL)


@pytest.mark.parametrize(("size", "limited"), [((1, 5000), (1, 4)), ((5000, 1), (4, 1)), ((40, 10), (40, 10))])
def test_sides_are_limited_to_four_to_one(size, limited):
    assert limit_aspect(Image.new("RGB", size)).size == limited


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_centre_crop_of_an_extremely_long_image_needs_little_memory(crop, size):
    red, blue = Image.new("RGB", size, (255, 0, 0)), Image.new("RGB", size, (0, 0, 255))
    red.paste(blue, (size[0] // 2, 0) if size[0] > 1 else (0, size[1] // 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = pixels_of(crop, red)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; resized whole it is 1.7 GB
    for corner, colour in ((pixels[:, 0, 0], (255, 0, 0)), (pixels[:, -1, -1], (0, 0, 255))):
        np.testing.assert_allclose(corner, normalised(Image.new("RGB", (1, 1), colour))[:, 0, 0], rtol=0, atol=LEVEL)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_padding_of_an_extremely_long_image_equals_the_original(pad, size):
    image = noise_image(0, size)
    np.testing.assert_allclose(pixels_of(pad, image), padded_by_hand(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_an_image_of_one_pixel_fills_the_square(request, mode):
    pixels = pixels_of(request.getfixturevalue(mode), Image.new("RGB", (1, 1), (255, 0, 10)))
    expected = normalised(Image.new("RGB", (SIDE, SIDE), (255, 0, 10)))
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


# EXIF orientation

UPRIGHT = {  # rows of the picture as a viewer shows it, by orientation
    1: "abc/def",
    2: "cba/fed",
    3: "fed/cba",
    4: "def/abc",
    5: "ad/be/cf",
    6: "da/eb/fc",
    7: "fc/eb/da",
    8: "cf/be/ad",
}
RGB_VALUES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (250, 250, 0), (0, 99, 99)]
COLOURS = dict(zip("abcdef", RGB_VALUES, strict=True))
ORIENTATIONS = pytest.mark.parametrize("orientation", UPRIGHT)


def draw(rows):
    return Image.fromarray(np.array([[COLOURS[letter] for letter in row] for row in rows.split("/")], dtype=np.uint8))


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def with_orientation(orientation, format="PNG"):
    exif = Image.Exif()
    exif[274] = orientation
    return encode(draw(UPRIGHT[1]), format, exif=exif)


def assert_shows(image, rows):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(draw(rows)))


@ORIENTATIONS
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation_is_applied(orientation, format):
    assert_shows(open_image(with_orientation(orientation, format)), UPRIGHT[orientation])


@ORIENTATIONS
def test_orientation_is_applied_once_however_often_it_is_asked_for(orientation):
    once = to_rgb(Image.open(io.BytesIO(with_orientation(orientation))))
    assert_shows(to_rgb(once), UPRIGHT[orientation])
    assert_shows(open_image(once), UPRIGHT[orientation])
    assert_shows(ImageOps.exif_transpose(once), UPRIGHT[orientation])


@ORIENTATIONS
def test_every_source_of_an_image_gives_the_same_pixels(tmp_path, orientation):
    data = with_orientation(orientation)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    rows = {"image": [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]}
    decoded = Dataset.from_dict(rows, features=Features({"image": ImageFeature()}))
    sources = [path, str(path), data, Image.open(path), *(row["image"] for row in decoded)]
    for source in sources:
        assert_shows(open_image(source), UPRIGHT[orientation])


def test_the_processor_takes_every_source_upright(pad, tmp_path):
    data = with_orientation(6)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, Image.open(path), address):
        np.testing.assert_allclose(pixels_of(pad, source), padded_by_hand(draw(UPRIGHT[6])), rtol=0, atol=1e-6)


def test_the_image_that_was_given_stays_as_it_is():
    image = Image.open(io.BytesIO(with_orientation(6)))
    to_rgb(image)
    assert image.size == (3, 2) and image.getexif()[274] == 6


def test_orientation_in_xmp_is_applied_once():
    image = draw(UPRIGHT[1])
    image.info["xmp"] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert_shows(to_rgb(to_rgb(image)), UPRIGHT[6])


BROKEN_EXIF = {
    "no block": b"Exif\0\0garbage, no TIFF header",
    "cut off": exif_block(SIDEWAYS)[:18],
    "offset outside": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "orientation as text": exif_block((274, 2, 4, b"six\0")),
    "orientation 9": exif_block((274, 3, 1, b"\x09\0\0\0")),
    "values outside": exif_block((274, 3, 900, b"\xff\xff\xff\x7f")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_a_broken_exif_block_leaves_the_image_usable(block):
    assert_shows(open_image(encode(draw(UPRIGHT[1]), exif=block)), UPRIGHT[1])


def test_orientation_is_applied_where_another_tag_is_damaged():
    data = encode(draw(UPRIGHT[1]), exif=exif_block(MAKER_AS_FRACTION, SIDEWAYS))
    with pytest.raises(AttributeError):  # what Pillow itself does with it
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert_shows(open_image(data), UPRIGHT[6])


# Modes

W, K = (255, 255, 255), (0, 0, 0)


def grey(*values):
    return [(value, value, value) for value in values]


def row(mode, values, transparency=None):
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def palette(transparency):
    image = row("P", [0, 1], transparency)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return image


def array(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


MODES = {
    "CMYK": (row("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)]), [(255, 0, 0), K, W]),
    "16-bit grey": (array([0, 257, 32896, 65535], np.uint16), grey(0, 1, 128, 255)),
    "32-bit grey of 8 bits": (array([0, 7, 255], np.int32), grey(0, 7, 255)),
    "32-bit grey of 16 bits": (array([-5, 0, 32896, 65535, 70000], np.int32), grey(0, 0, 128, 255, 255)),
    "float": (array([-3, 0.4, 127.6, 300, np.nan, np.inf], np.float32), grey(0, 0, 128, 255, 0, 255)),
    "palette, a transparent entry": (palette(1), [(255, 0, 0), W]),
    "palette, alpha of entries": (palette(bytes([255, 128])), [(255, 0, 0), (127, 127, 255)]),
    "LA": (row("LA", [(0, 0), (0, 128), (100, 255)]), grey(255, 127, 100)),
    "RGBA": (row("RGBA", [(255, 0, 0, 255), (255, 0, 0, 128), (255, 0, 0, 0)]), [(255, 0, 0), (255, 127, 127), W]),
    "RGB, colour key": (row("RGB", [(1, 2, 3), (3, 2, 1)], transparency=(1, 2, 3)), [W, (3, 2, 1)]),
    "L, colour key": (row("L", [7, 8], transparency=7), grey(255, 8)),
    "L": (row("L", [0, 7]), grey(0, 7)),
    "1-bit": (row("1", [0, 255]), [K, W]),
}


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES)
def test_every_mode_has_its_documented_colours(image, expected):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and [tuple(pixel) for pixel in np.asarray(rgb)[0].tolist()] == expected


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_the_processor_takes_every_mode(request, mode, image, expected):
    processor = request.getfixturevalue(mode)
    by_hand = {"pad": padded_by_hand, "crop": cropped_by_hand}[mode](Image.fromarray(np.array([expected], np.uint8)))
    np.testing.assert_allclose(pixels_of(processor, image), by_hand, rtol=0, atol=1.5 * LEVEL)


@pytest.mark.parametrize("name", ["16-bit grey", "palette, alpha of entries", "RGB, colour key", "LA", "1-bit"])
def test_a_png_keeps_the_colours_of_its_mode(name):
    image, expected = MODES[name]
    assert [tuple(pixel) for pixel in np.asarray(open_image(encode(image)))[0].tolist()] == expected


# Files that are no image


def huge_png():
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDAT")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD_FILES = {
    "truncated.jpg": (encode(noise_image(0, (200, 200)), "JPEG")[:9000], "truncated"),
    "empty.jpg": (b"", "cannot identify"),
    "text.jpg": (b"<html>404 not found</html>", "cannot identify"),
    "bomb.png": (huge_png(), "decompression bomb"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, name):
    data, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"Cannot read .*{name} as an image: .*{reason}"):
        open_image(path)


@pytest.mark.parametrize(("data", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_bytes_are_an_error(data, reason):
    with pytest.raises(ValueError, match=f"Cannot read the given image as an image: .*{reason}"):
        open_image(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")
def test_an_error_that_only_one_decoder_raises_is_the_same_error():
    data = encode(noise_image(), "AVIF").replace(b"av01", b"av99")
    with pytest.raises(ValueError, match="Cannot read the given image as an image"):
        open_image(data)


def test_the_processor_names_a_bad_file(pad, tmp_path):
    path = tmp_path / "truncated.jpg"
    path.write_bytes(BAD_FILES["truncated.jpg"][0])
    with pytest.raises(ValueError, match="Cannot read .*truncated.jpg as an image"):
        pixels_of(pad, str(path))


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        open_image(tmp_path / "missing.jpg")


def test_a_broken_data_address_is_an_error(pad):
    with pytest.raises(ValueError, match="There is no image 'data:image/png;base64,@@@': give a path"):
        pixels_of(pad, "data:image/png;base64,@@@")


def test_the_image_helpers_need_no_torch(tmp_path):
    code = """
import json
sys.path.insert(0, sys.argv[1])
from modeling_sharegpt4v import open_image, to_rgb
print(json.dumps({"heavy": sorted({"torch", "transformers"} & sys.modules.keys())}))
"""
    assert run_fresh(code, Path(__file__).parents[2], cwd=tmp_path) == {"heavy": []}
