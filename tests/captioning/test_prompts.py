"""Prompts: built from versioned data, the same for an image whatever the others are."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.prompts import BUILT_IN, PAPER_SOURCES, UNIFIED, load_prompts
from dataset_scripts.select_images import PAPER_QUOTA_100K


BUILT_IN_SHA256 = "e73fcf149892a848f891376d55e32ecf7b539b3ce31ca226bb529ace9c8590da"


def test_every_source_of_the_paper_has_a_prompt_of_its_own():
    prompts = load_prompts()
    assert set(prompts.sources) == set(PAPER_SOURCES) == set(PAPER_QUOTA_100K)
    texts = {source: prompts.for_image(source, "x").text for source in PAPER_SOURCES}
    assert len(set(texts.values())) == len(PAPER_SOURCES)
    for source, text in texts.items():
        assert text.startswith(prompts.base) and text.endswith(prompts.sources[source])
    assert prompts.for_image("web-landmark", "x").id == "v1/web-landmark"


def test_the_texts_of_a_version_never_change():
    """Captions name the version they were written on: a new text is a new version, in a file of its own."""
    assert hashlib.sha256(BUILT_IN.read_bytes()).hexdigest() == BUILT_IN_SHA256


def test_an_unknown_source_gets_the_base_alone():
    prompts = load_prompts()
    assert prompts.for_image("mine", "x").text == prompts.base
    assert prompts.for_image("mine", "x").id == "v1/base"


def test_a_captioner_is_asked_one_thing():
    assert UNIFIED.text == "Describe this image in detail." and UNIFIED.id == "share-captioner"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), st.integers())
def test_the_choice_for_an_image_does_not_depend_on_the_others(keys, seed):
    prompts = load_prompts()
    chosen = {key: prompts.for_image("coco", key, 0.5, seed) for key in keys}
    assert chosen == {key: prompts.for_image("coco", key, 0.5, seed) for key in reversed(keys)}
    assert all(prompt.id in ("v1/coco", "v1/coco+aesthetic") for prompt in chosen.values())


def test_the_share_of_aesthetic_prompts_is_kept_and_the_seed_moves_it():
    prompts = load_prompts()
    drawn = [[prompts.for_image("sam", str(n), 0.3, seed) for n in range(2000)] for seed in (0, 1)]
    for one in drawn:
        assert 540 < sum("aesthetic" in prompt.id for prompt in one) < 660
    assert drawn[0] != drawn[1]
    assert all(prompt.text.endswith(prompts.aesthetic) for prompt in drawn[0] if "aesthetic" in prompt.id)


def test_none_and_all_are_none_and_all():
    prompts = load_prompts()
    for share, expected in ((0.0, "v1/coco"), (1.0, "v1/coco+aesthetic")):
        assert {prompts.for_image("coco", str(n), share).id for n in range(200)} == {expected}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="`aesthetic_share` must be from 0 to 1"):
        load_prompts().for_image("coco", "x", share)


def test_a_file_of_ones_own_adds_replaces_and_removes_sources(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: ours\nsources:\n  chart: Read the axes.\n  coco: Mine.\n  sam: null\n")
    prompts = load_prompts(path)
    assert prompts.base == load_prompts().base
    assert prompts.for_image("chart", "x").id == "ours/chart"
    assert prompts.for_image("coco", "x").text == f"{prompts.base} Mine."
    assert prompts.for_image("sam", "x").id == "ours/base"
    assert prompts.for_image("lcs", "x").text == load_prompts().for_image("lcs", "x").text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {}\n", "needs a `name` of its own"),
        ("name: v1\n", "'v1' is taken"),
        ("name: a/b\n", "must be a word without / and +"),
        ("name: a\nbase: ''\n", "The prompt 'base' of 'a' must be a text"),
        ("name: a\nsources:\n  x: Look at <image>.\n", "The prompt 'x' of 'a' must be a text without <image>"),
        ("name: a\nsources: [x]\n", "`sources` of .* must be a mapping"),
        ("name: a\nsource: {}\n", "must be a mapping with the fields name, base, sources, aesthetic"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "is no YAML file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "mine.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no prompt file .*none.yaml"):
        load_prompts(tmp_path / "none.yaml")


def test_another_text_has_another_hash():
    prompts = load_prompts()
    assert prompts.for_image("coco", "x").sha256 != prompts.for_image("sam", "x").sha256
    assert len(prompts.for_image("coco", "x").sha256) == 64
