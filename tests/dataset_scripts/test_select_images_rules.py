"""The rules of choosing images, on outcomes that are made up instead of decoded: who is chosen, and who stays."""

import functools
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_scripts.check_image import Check
from dataset_scripts.image_store import CheckedImages
from dataset_scripts.images import ImageRoots
from dataset_scripts.select_images import read_selection, select


# A few groups of hashes, in which some images are alike and some nearly.
SOURCES, EACH = ("a", "b", "c"), 7
NAMES = [f"{source}/{number}.jpg" for source in SOURCES for number in range(EACH)]
UNLIKE = [int(hashlib.sha256(bytes([number])).hexdigest()[:16], 16) for number in range(len(NAMES))]  # by 20 bits
HASHES = st.builds(
    lambda group, flips: UNLIKE[group] ^ sum(1 << 7 * flip for flip in flips),
    *(st.integers(0, 9), st.sets(st.integers(0, 8), max_size=5)),
)
CHECKS = st.lists(HASHES | st.none(), min_size=len(NAMES), max_size=len(NAMES)) | st.just(UNLIKE)
QUOTAS = st.dictionaries(st.sampled_from(SOURCES), st.integers(1, EACH), min_size=1)
RELAXED = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def choice(tmp_path_factory):
    """Choose among images whose outcomes are given, so that nothing is decoded."""
    folder = tmp_path_factory.mktemp("choice")
    for name in NAMES:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).touch()
    roots, listed = ImageRoots([folder / "images"]), folder / "list.txt"

    def run(hashes, quota, seed, banned=()) -> tuple[list[str], dict]:
        with CheckedImages(folder / "out" / "images.sqlite") as store:
            for name, value in zip(NAMES, hashes, strict=True):
                check = Check("damaged") if value is None else Check("", "0" * 64, 1, 1, f"{value:016x}")
                store[name, roots.locate(name)] = check
        listed.write_text("".join(f"{name}\n" for name in banned), encoding="utf-8")
        report = select(roots, folder / "out", quota, seed, None, listed, 4, True, 0)
        return [row["image"] for row in read_selection(folder / "out")], report

    return run


@functools.cache
def order_of(choice, source, seed) -> list[str]:
    """The images of a source as they are chosen when nothing stands in their way."""
    return choice(UNLIKE, {source: EACH}, seed)[0]


@RELAXED
@given(CHECKS, QUOTAS, st.integers(0, 3), st.sets(st.sampled_from(NAMES), max_size=2))
def test_exactly_those_that_look_like_nothing_before_them_are_chosen(choice, hashes, quota, seed, banned):
    chosen, report = choice(hashes, quota, seed, banned)
    value_of = dict(zip(NAMES, hashes, strict=True))
    taken: list[str] = []
    for source in sorted(quota):
        mine: list[str] = []
        for name in order_of(choice, source, seed):
            others = [value_of[other] for other in [*taken, *mine, *banned] if value_of[other] is not None]
            fits = value_of[name] is not None and all((value_of[name] ^ other).bit_count() > 4 for other in others)
            mine += [name] if fits and len(mine) < quota[source] else []
        taken += mine
    assert chosen == taken
    assert report["short"] == {
        source: count - missing
        for source, count in quota.items()
        if (missing := sum(name.startswith(f"{source}/") for name in taken)) < count
    }


@RELAXED
@given(CHECKS, QUOTAS, QUOTAS, st.integers(0, 3))
def test_larger_quotas_lose_nothing_up_to_the_first_that_grew_nor_where_sources_share_nothing(
    choice, hashes, quota, more, seed
):
    larger = {source: max(quota.get(source, 0), more.get(source, 0)) for source in {*quota, *more}}
    grown = min((source for source in larger if larger[source] != quota.get(source)), default="z")
    before, after = (choice(hashes, asked, seed)[0] for asked in (quota, larger))
    assert {name for name in before if name.split("/")[0] <= grown} <= set(after)
    if hashes == UNLIKE:
        assert set(before) <= set(after)
