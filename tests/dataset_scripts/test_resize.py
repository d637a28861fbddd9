"""Pictures re-encoded at the size the model sees: what a reader gets back, and what is gone."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import skimage
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from dataset_scripts.resize import shrink_to_jpeg
from modeling_sharegpt4v import ShareGPT4VConfig, build_processor
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from modeling_sharegpt4v.images_sharegpt4v import fit_image, open_image
from tests.modeling_sharegpt4v.test_fit_image import difference, encode, picture, reference, reference_pixels
from tests.tiny import tiny_tokenizer


SIDE = 336
MODES = pytest.mark.parametrize("mode", ["pad", "crop"])
CLASSES = pytest.mark.parametrize("size", [(640, 480), (400, 500), (499, 333), (500, 499), (1125, 750)])
PHOTOS = {
    "coffee": Path(skimage.__file__).parent / "data" / "coffee.png",
    "china": Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
    "grace_hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
}


def photo(size, name="coffee"):
    """A photograph brought to a size, its middle where the shape differs."""
    return ImageOps.fit(open_image(PHOTOS[name]), size)


def decode(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# What a reader gets back


@CLASSES
@MODES
@pytest.mark.parametrize("name", PHOTOS)
def test_a_reader_sees_nearly_what_the_original_makes_of_the_whole_file(name, size, mode):
    data = encode(photo(size, name))
    shrunk = shrink_to_jpeg(data, SIDE, mode)
    expected = reference_pixels(open_image(data), SIDE, mode)
    assert difference(fit_image(shrunk, SIDE, mode=mode), expected) < 0.03
    assert len(shrunk) < 55_000


@CLASSES
def test_our_processor_sees_the_same(size):
    tokenizer = tiny_tokenizer()
    add_image_and_pad_tokens(tokenizer)
    processor = build_processor(ShareGPT4VConfig(), tokenizer, image_aspect_ratio="pad")
    data = encode(photo(size))
    pixels = processor(images=[shrink_to_jpeg(data, SIDE)], return_tensors="np")["pixel_values"][0]
    assert np.abs(pixels.transpose(1, 2, 0) - reference(open_image(data), SIDE, "pad")).mean() < 0.03


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(61, 400), st.booleans())
def test_the_picture_lies_where_the_original_puts_it(width, height, turned):
    size = (height, width) if turned else (width, height)
    image = picture(size).convert("L").convert("RGB")  # no colour to lose: only the place can differ
    shrunk = shrink_to_jpeg(encode(image, "PNG"), 60, quality=100)
    levels = np.abs(fit_image(shrunk, 60).astype(int) - reference_pixels(image, 60, "pad"))
    assert levels.mean() < 0.7


@MODES
def test_a_large_picture_is_resized_exactly(mode):
    data = encode(picture((1020, 1020)), "PNG")  # twelve times the side: the fast way would average it first
    pixels = fit_image(shrink_to_jpeg(data, 84, mode, quality=100), 84, mode=mode)
    exact, fast = (fit_image(data, 84, mode=mode, exact=exact) for exact in (True, False))
    assert difference(pixels, exact) < difference(pixels, fast)


def test_shrinking_again_changes_little():
    once = shrink_to_jpeg(encode(photo((640, 480))), SIDE)
    twice = shrink_to_jpeg(once, SIDE)
    assert decode(twice).size == decode(once).size
    assert difference(fit_image(twice, SIDE), fit_image(once, SIDE)) < 0.01


# Size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (336, 252)),
        ((480, 640), (252, 336)),
        ((500, 500), (336, 336)),
        ((400, 500), (270, 336)),
        ((337, 3), (336, 4)),
        ((1, 5000), (2, 336)),
        ((20_000, 1), (336, 2)),
        ((336, 200), (336, 200)),
        ((100, 30), (100, 30)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_long_side_becomes_the_models_unless_it_is_shorter(size, expected):
    assert decode(shrink_to_jpeg(encode(picture(size), "PNG"), SIDE)).size == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 120))
def test_nothing_is_enlarged_and_shapes_are_kept(width, height, side):
    small = decode(shrink_to_jpeg(encode(Image.new("RGB", (width, height)), "PNG"), side)).size
    assert max(small) == min(side, max(width, height))
    scale = max(small) / max(width, height)
    assert abs(small[0] - scale * width) < 3 and abs(small[1] - scale * height) < 3


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 30), (2, 900)])
def test_a_crop_is_a_square(size):
    assert decode(shrink_to_jpeg(encode(picture(size)), SIDE, "crop")).size == (SIDE, SIDE)


# What is written


def exif_with_place():
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker of cameras"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.0)
    return exif


@MODES
@pytest.mark.parametrize("size", [(640, 480), (100, 30)])
def test_nothing_but_the_picture_is_carried_over(size, mode):
    options = {"exif": exif_with_place(), "comment": b"private words", "icc_profile": b"a colour profile"}
    data = encode(picture(size), dpi=(300, 300), xmp=b"<x:xmpmeta>private</x:xmpmeta>", **options)
    shrunk = shrink_to_jpeg(data, SIDE, mode)
    for secret in (b"Exif", b"Maker", b"private", b"profile"):
        assert secret in data and secret not in shrunk
    assert set(decode(shrunk).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert decode(shrunk).info.get("jfif_density", (1, 1)) == (1, 1)


def test_texts_of_a_png_are_left_behind():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "private words")
    assert b"private" not in shrink_to_jpeg(encode(picture((100, 30)), "PNG", pnginfo=texts), SIDE)


@MODES
@pytest.mark.parametrize("size", [(640, 480), (100, 30)])
def test_the_picture_is_written_upright(size, mode):
    exif = Image.Exif()
    exif[274] = 6
    data = encode(photo(size), exif=exif)
    shrunk = shrink_to_jpeg(data, SIDE, mode)
    if mode == "pad":
        assert decode(shrunk).height > decode(shrunk).width
    assert difference(fit_image(shrunk, SIDE, mode=mode), reference_pixels(open_image(data), SIDE, mode)) < 0.03


@pytest.mark.parametrize("image_mode", ["L", "CMYK", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(640, 480), (100, 30)])
def test_every_kind_of_picture_becomes_rgb(image_mode, size):
    if image_mode == "I;16":
        image = Image.fromarray(np.asarray(photo(size).convert("L")).astype(np.uint16) * 257)
    else:
        image = photo(size).convert(image_mode)
    data = encode(image, "JPEG" if image_mode == "CMYK" else "PNG")
    shrunk = shrink_to_jpeg(data, SIDE)
    assert decode(shrunk).mode == "RGB" and decode(shrunk).format == "JPEG"
    assert difference(fit_image(shrunk, SIDE), reference_pixels(open_image(data), SIDE, "pad")) < 0.03


@MODES
def test_equal_data_give_equal_bytes(mode):
    data = encode(picture((640, 480)))
    assert shrink_to_jpeg(data, SIDE, mode) == shrink_to_jpeg(bytes(bytearray(data)), SIDE, mode)


def test_a_higher_quality_is_larger_and_nearer():
    data = encode(photo((640, 480)))
    low, high = (shrink_to_jpeg(data, SIDE, quality=quality) for quality in (70, 98))
    expected = reference_pixels(open_image(data), SIDE, "pad")
    assert len(low) < len(high)
    assert difference(fit_image(low, SIDE), expected) > difference(fit_image(high, SIDE), expected)


# Errors


def test_a_file_that_is_cut_off_is_an_error():
    data = encode(picture((640, 480)))
    with pytest.raises(ValueError, match="Cannot read the given image as an image: .*truncated"):
        shrink_to_jpeg(data[: len(data) // 2], SIDE)


@pytest.mark.parametrize("size", [(640, 480), (10, 10)])
def test_arguments_out_of_range_are_refused(size):
    data = encode(picture(size))
    with pytest.raises(ValueError, match="`side` must be at least 1, got 0"):
        shrink_to_jpeg(data, 0)
    with pytest.raises(ValueError, match="`mode` must be 'pad' or 'crop', got 'square'"):
        shrink_to_jpeg(data, SIDE, "square")
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"`quality` must be from 1 to 100, got {quality}"):
            shrink_to_jpeg(data, SIDE, quality=quality)
