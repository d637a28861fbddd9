"""The square a CLIP tower takes: exactly as LLaVA and CLIP make it, or nearly so and in a fraction of the time."""

import io
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from modeling_sharegpt4v.images_sharegpt4v import MAX_PAD_SIDE, REDUCING_GAP, fit_image, open_image


GREY = tuple(int(255 * value) for value in OPENAI_CLIP_MEAN)
SIDE = 84
MODES = pytest.mark.parametrize("mode", ["pad", "crop"])


def picture(size, seed=0):
    """A picture with the 1/f spectrum of photographs, in colour."""
    rng = np.random.default_rng(seed)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = np.stack([np.fft.rfft2(rng.normal(size=(height, width))) / frequency for _ in range(3)])
    planes = np.fft.irfft2(planes, s=(height, width))
    mixed = planes[:1] + 0.3 * planes
    values = 128 + 50 * mixed / max(mixed.std(), 1e-9)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def encode(image, format="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **({"quality": 92} if format == "JPEG" else {}) | options)
    return stream.getvalue()


def clip_steps(image, side, **options):
    """What CLIP's image processor of transformers makes of an image, as (side, side, 3)."""
    square = {"height": side, "width": side}
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square, **options)
    return processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def llava_square(image):
    """The original's padding."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), GREY)
    square.paste(image, tuple((longest - length) // 2 for length in image.size))
    return square


def reference(image, side, mode, **options):
    return clip_steps(llava_square(image) if mode == "pad" else image, side, **options)


def reference_pixels(image, side, mode):
    return reference(image, side, mode, do_rescale=False, do_normalize=False)


def difference(pixels, expected):
    """Mean absolute difference of two arrays of pixels, normalised."""
    return float(np.mean(np.abs(pixels.astype(float) - expected) / 255 / np.array(OPENAI_CLIP_STD)))


# Exactly


@MODES
@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(1, 120))
def test_the_exact_way_equals_the_original_for_any_shape(mode, width, height, side):
    if mode == "crop":  # longer ones are cut first
        width, height = min(width, 4 * height), min(height, 4 * width)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    pixels = fit_image(image, side, mode=mode, exact=True)
    np.testing.assert_array_equal(pixels, reference_pixels(image, side, mode))


@MODES
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (336, 336), (1101, 733), (120, 90)])
def test_the_exact_way_equals_the_original_when_normalised(mode, size):
    data = encode(picture(size))
    pixels = fit_image(data, 336, mode=mode, exact=True).astype(np.float32)
    normalised = (pixels / 255 - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD)
    expected = reference(Image.open(io.BytesIO(data)).convert("RGB"), 336, mode)
    np.testing.assert_allclose(normalised, expected, rtol=0, atol=1e-6)


def test_the_square_is_padded_with_the_given_colour():
    for size in ((60, 20), (84, 20), (400, 100)):
        pixels = fit_image(picture(size), SIDE, background=(1, 2, 3))
        np.testing.assert_array_equal(pixels[[0, -1]], np.broadcast_to(np.uint8([1, 2, 3]), (2, SIDE, 3)))


@MODES
@pytest.mark.parametrize("size", [(60, 20), (84, 20), (400, 100)])
@pytest.mark.parametrize("exact", [True, False])
def test_the_result_is_an_array_that_may_be_written_to(mode, size, exact):
    pixels = fit_image(picture(size), SIDE, mode=mode, exact=exact)
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous


# Fast

SHAPES = {
    "landscape, halved": (433, 331),
    "portrait, halved": (301, 433),
    "landscape, quartered": (1101, 735),
    "portrait, quartered": (731, 1109),
    "square, quartered": (1003, 1003),
    "nearly square": (1000, 1003),
    "an eighth": (2213, 1477),
    "not reduced": (203, 101),
    "same long side": (84, 51),
    "smaller": (31, 20),
    "one column": (1, 700),
    "one row": (700, 1),
    "thin": (1500, 7),
}


@MODES
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_fast_way_is_near_the_exact_one(mode, format, size):
    data = encode(picture(size), format)
    assert difference(fit_image(data, SIDE, mode=mode), fit_image(data, SIDE, mode=mode, exact=True)) < 0.02


@MODES
@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 700), height=st.integers(1, 700), side=st.integers(20, 120))
def test_the_fast_way_is_near_the_original_for_any_shape(mode, width, height, side):
    data = encode(picture((width, height)))
    assert difference(fit_image(data, side, mode=mode), reference_pixels(open_image(data), side, mode)) < 0.025


@pytest.mark.parametrize("size", [(150, 113), (113, 150), (151, 150), (150, 150), (175, 51)])
def test_only_the_border_is_left_out_where_nothing_is_reduced(size):
    image = picture(size)
    levels = np.abs(fit_image(image, SIDE).astype(int) - fit_image(image, SIDE, exact=True))
    assert levels.max() <= 1 and levels.mean() < 0.01


@pytest.mark.parametrize("size", [(84, 51), (83, 84), (31, 20), (1, 50), (1, 1)])
def test_a_picture_that_is_not_longer_than_the_side_is_the_same_either_way(size):
    data = encode(picture(size))
    np.testing.assert_array_equal(fit_image(data, SIDE), fit_image(data, SIDE, exact=True))


@MODES
@pytest.mark.parametrize("size", [(1024, 768), (768, 1024)])
def test_the_fast_way_decodes_a_jpeg_smaller(mode, size):
    data = encode(picture(size))
    small = open_image(data, reduce_to=int(np.ceil(REDUCING_GAP * SIDE)), mode=mode)
    assert max(small.size) == 256
    np.testing.assert_array_equal(fit_image(data, SIDE, mode=mode), fit_image(small, SIDE, mode=mode))


@MODES
def test_a_picture_that_cannot_be_decoded_smaller_is_averaged_first(mode):
    image = picture((1020, 1020))  # 12 times the side: by 5, so that at least `REDUCING_GAP` remains
    np.testing.assert_array_equal(fit_image(image, SIDE, mode=mode), fit_image(image.reduce(5), SIDE, mode=mode))


# Decoding smaller


@pytest.mark.parametrize(
    ("size", "reduce_to", "mode", "expected"),
    [
        ((800, 600), 400, "pad", (400, 300)),
        ((800, 600), 401, "pad", (800, 600)),
        ((600, 800), 200, "pad", (150, 200)),
        ((801, 600), 100, "pad", (101, 75)),
        ((800, 600), 300, "crop", (400, 300)),
        ((800, 600), 301, "crop", (800, 600)),
        ((600, 801), 150, "crop", (150, 201)),
        ((800, 3), 100, "pad", (400, 2)),
        ((800, 600), 1, "crop", (100, 75)),
    ],
)
def test_a_jpeg_is_decoded_as_small_as_allowed(size, reduce_to, mode, expected):
    assert open_image(encode(picture(size)), reduce_to=reduce_to, mode=mode).size == expected


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 200), st.sampled_from(["pad", "crop"]))
def test_the_side_that_matters_keeps_its_pixels(width, height, reduce_to, mode):
    data = encode(Image.new("RGB", (width, height)))
    side = {"pad": max, "crop": min}[mode]
    assert side(open_image(data, reduce_to=reduce_to, mode=mode).size) >= min(reduce_to, side(width, height))


def test_other_formats_are_read_whole():
    for format in ("PNG", "WEBP", "TIFF"):
        assert open_image(encode(picture((300, 200)), format), reduce_to=10).size == (300, 200)


def test_without_the_keyword_a_jpeg_is_read_whole():
    image = picture((300, 200))
    assert open_image(encode(image)).size == (300, 200)


def test_an_image_of_the_caller_is_not_reduced():
    image = Image.open(io.BytesIO(encode(picture((900, 600)))))
    pixels = fit_image(image, SIDE)
    assert image.size == (900, 600)
    assert difference(pixels, fit_image(encode(picture((900, 600))), SIDE, exact=True)) < 0.02


def test_a_multi_picture_jpeg_is_decoded_smaller():
    stream = io.BytesIO()
    first, second = picture((801, 600)), Image.new("RGB", (801, 600))
    first.save(stream, "MPO", save_all=True, append_images=[second])
    assert open_image(stream.getvalue(), reduce_to=200).size == (201, 150)
    assert difference(fit_image(stream.getvalue(), SIDE), fit_image(stream.getvalue(), SIDE, exact=True)) < 0.02


# Orientation and modes


@MODES
@pytest.mark.parametrize("size", [(1101, 731), (731, 1101), (1003, 1009)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_decode_is_turned_upright_in_place(orientation, size, mode):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(picture(size), exif=exif)
    pixels = fit_image(data, SIDE, mode=mode)
    assert difference(pixels, fit_image(data, SIDE, mode=mode, exact=True)) < 0.015
    expected = (1, 0) if orientation >= 5 else (0, 1)
    whole, small = open_image(data).size, open_image(data, reduce_to=100, mode=mode).size
    assert whole == tuple(size[axis] for axis in expected)
    assert max(small) < 300 and (small[0] < small[1]) == (whole[0] < whole[1])


@MODES
@pytest.mark.parametrize("jpeg_mode", ["L", "CMYK"])
def test_the_colours_of_a_smaller_decode_are_those_of_the_whole(jpeg_mode, mode):
    data = encode(picture((1101, 731)).convert(jpeg_mode))
    assert Image.open(io.BytesIO(data)).mode == jpeg_mode
    pixels = fit_image(data, SIDE, mode=mode)
    assert difference(pixels, reference_pixels(open_image(data), SIDE, mode)) < 0.02


@MODES
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["16-bit", "palette", "alpha", "colour key", "bilevel"])
def test_every_mode_follows_the_rules_of_open_image(name, exact, mode):
    image = picture((203, 101))
    pixels = np.asarray(image.convert("L"))
    saved, options = {
        "16-bit": (Image.fromarray(pixels.astype(np.uint16) * 257), {}),
        "palette": (image.quantize(16), {"transparency": 3}),
        "alpha": (Image.fromarray(np.dstack([np.asarray(image), pixels])), {}),
        "colour key": (image, {"transparency": image.getpixel((0, 0))}),
        "bilevel": (image.convert("1"), {}),
    }[name]
    data = encode(saved, "PNG", **options)
    result = fit_image(data, SIDE, mode=mode, exact=exact)
    expected = reference_pixels(open_image(data), SIDE, mode)
    assert np.abs(result.astype(int) - expected).max() <= (0 if exact else 1) + (2 if name == "bilevel" else 0)


# Extreme shapes


@MODES
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 40_000)])
def test_an_extremely_long_image_needs_little_memory(size, exact, mode):
    red, blue = Image.new("RGB", size, (255, 0, 0)), Image.new("RGB", size, (0, 0, 255))
    red.paste(blue, (size[0] // 2, 0) if size[0] > size[1] else (0, size[1] // 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = fit_image(red, SIDE, mode=mode, exact=exact)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB; the whole square takes 14 GB
    if mode == "pad":
        assert (pixels[0, 0] == GREY).all() and (pixels[-1, -1] == GREY).all()
    else:
        assert pixels[..., 1].max() <= 1 and pixels[0, 0, 0] >= 250 and pixels[-1, -1, 2] >= 250


def test_a_long_side_beyond_the_bound_is_reduced_first():
    image = picture((2 * MAX_PAD_SIDE, 50))
    for exact in (True, False):
        pixels = fit_image(image, SIDE, exact=exact)
        expected = fit_image(image.resize((MAX_PAD_SIDE, 25), Image.Resampling.BICUBIC), SIDE, exact=exact)
        np.testing.assert_array_equal(pixels, expected)


# Errors


@MODES
@pytest.mark.parametrize("exact", [True, False])
def test_a_file_that_is_cut_off_is_an_error_that_names_it(tmp_path, exact, mode):
    data = encode(picture((1101, 731)))
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="Cannot read .*half.jpg as an image: .*truncated"):
        fit_image(path, SIDE, mode=mode, exact=exact)


def test_a_decompression_bomb_is_an_error_even_if_it_would_be_decoded_smaller(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="Cannot read the given image as an image: .*decompression bomb"):
        fit_image(encode(picture((800, 600))), 10)


def test_what_is_no_image_is_an_error():
    with pytest.raises(ValueError, match="Cannot read the given image as an image"):
        fit_image(b"<html>404</html>", SIDE)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        fit_image(tmp_path / "missing.jpg", SIDE)


def test_arguments_out_of_range_are_refused():
    image = picture((20, 10))
    with pytest.raises(ValueError, match="`side` must be at least 1, got 0"):
        fit_image(image, 0)
    with pytest.raises(ValueError, match="`mode` must be 'pad' or 'crop', got 'square'"):
        fit_image(image, SIDE, mode="square")
    with pytest.raises(ValueError, match="`mode` must be 'pad' or 'crop', got 'square'"):
        open_image(image, mode="square")
    with pytest.raises(ValueError, match="`reduce_to` must be at least 1, got 0"):
        open_image(image, reduce_to=0)
