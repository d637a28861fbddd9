"""Images that look the same: the index finds what comparing every pair finds, and photographs in other sizes."""

import io
from pathlib import Path

import imagehash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_scripts.near_duplicates import BITS, NearDuplicates
from sharegpt4v.demo.photos import read_photos


ROOT = Path(__file__).resolve().parents[2]
HASHES = st.integers(0, 2**BITS - 1)
FLIPS = st.lists(st.integers(0, BITS - 1), max_size=20).map(lambda bits: sum({1 << bit for bit in bits}))


@st.composite
def families(draw: st.DrawFn) -> list[int]:
    """Hashes of which many differ in a few bits."""
    parents = draw(st.lists(HASHES, min_size=1, max_size=3))
    return draw(st.lists(st.builds(int.__xor__, st.sampled_from(parents), FLIPS), min_size=1, max_size=25))


def digits(value: int) -> str:
    return f"{value:016x}"


@settings(deadline=None, max_examples=150)
@given(families(), st.integers(0, 16))
def test_it_finds_the_first_entry_that_comparing_every_pair_finds(values, distance):
    index, known = NearDuplicates(distance), []
    for number, value in enumerate(values):
        near = [name for other, name in known if (other ^ value).bit_count() <= distance]
        assert index.find(digits(value)) == (near[0] if near else None)
        name = f"{99 - number:02d}.jpg"  # the first entry is not the first name
        index.add(digits(value), name)
        known.append((value, name))


def test_bits_up_to_the_distance_may_differ_wherever_they_are():
    for distance in range(17):
        index = NearDuplicates(distance)
        index.add(digits(0), "zero")
        for start in range(BITS):
            within, beyond = (sum(1 << (start + 7 * bit) % BITS for bit in range(distance + more)) for more in (0, 1))
            assert index.find(digits(within)) == "zero"
            assert index.find(digits(beyond)) is None


def test_thousands_of_equal_pictures_are_found_quickly():
    index = NearDuplicates()
    for number in range(20_000):
        assert index.find("8000000000000000") == (None if number == 0 else "0")
        index.add("8000000000000000", str(number))


@pytest.mark.parametrize("distance", [-1, 17])
def test_a_distance_out_of_range_is_refused(distance):
    with pytest.raises(ValueError, match=f"`distance` must be 0 to 16 bits of 64, got {distance}"):
        NearDuplicates(distance)


def again(image: Image.Image, scale: float, kind: str, quality: int) -> Image.Image:
    """The picture as it comes back from elsewhere on the web."""
    stream = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.LANCZOS).save(stream, kind, quality=quality)
    return Image.open(stream)


def test_photographs_are_found_after_resizing_and_recompression_and_not_taken_for_one_another():
    index = NearDuplicates()
    photos = {photo.id: Image.open(photo.path).convert("RGB") for photo in read_photos(ROOT / "examples/photos.jsonl")}
    assert len(photos) >= 10
    for name, image in photos.items():
        phash = str(imagehash.phash(image))
        assert index.find(phash) is None, name
        index.add(phash, name)
    for name, image in photos.items():
        for scale, kind, quality in ((1, "JPEG", 30), (0.5, "JPEG", 60), (0.25, "JPEG", 80), (0.5, "WEBP", 60)):
            assert index.find(str(imagehash.phash(again(image, scale, kind, quality)))) == name
