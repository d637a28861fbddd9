"""Packed batches: each sample comes out as it would alone, with the pixels of the processor and nothing padded."""

import copy
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration
from modeling_sharegpt4v.images_sharegpt4v import fit_image
from tests.tiny import noise_image, tiny_model, tiny_siglip
from tests.trainers.rows import PROCESSORS, ROWS, by_processor, dataset_of, picture, processor_of, row
from trainers.packing import IGNORED, OnlineCollator, PackedCollator, normalise_pixels, pack_rows
from trainers.tokenised import tokenise_rows


PROCESSOR = PROCESSORS["vicuna_v1"]
IMAGE = PROCESSOR.image_token_id
PICTURES = [picture(1, size=(40, 90)), picture(2, size=(90, 30)), picture(3, size=(28, 28)), picture(4, size=(9, 7))]
MIXED = [
    {**ROWS[0], "images": PICTURES[:1]},
    ROWS[2],
    {**ROWS[3], "images": PICTURES[1:3]},
    {**ROWS[1], "images": PICTURES[3:]},
]


@pytest.fixture(scope="module")
def model():
    model, _ = tiny_model(attn_implementation="sdpa")
    return model


def tokenised(*rows: dict, processor=PROCESSOR) -> Dataset:
    return tokenise_rows(dataset_of(*rows), processor, None)[0]


def cut(batch: dict, name: str) -> list[list[int]]:
    """A field of every sample."""
    bounds = batch["cu_seq_lens_q"].tolist()
    return [batch[name][0, start:end].tolist() for start, end in zip(bounds[:-1], bounds[1:], strict=True)]


# Tokens


@st.composite
def token_rows(draw) -> dict:
    ids = draw(st.lists(st.sampled_from([5, 6, 7, IMAGE]), min_size=1, max_size=12))
    edges = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return {"input_ids": ids, "label_spans": edges[: len(edges) // 2 * 2]}


def spelled_out(sample: dict) -> tuple[list[int], list[int]]:
    """Ids and labels of one row, token by token."""
    spans = list(zip(sample["label_spans"][::2], sample["label_spans"][1::2], strict=True))
    ids, labels = [], []
    for place, token in enumerate(sample["input_ids"]):
        copies = 4 if token == IMAGE else 1
        is_trained = place > 0 and any(start <= place < end for start, end in spans)
        ids += [token] * copies
        labels += [token if is_trained else IGNORED] * copies
    return ids, labels


@given(st.lists(token_rows(), min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_cutting_a_packed_batch_gives_back_each_sample(rows, as_arrays):
    given_rows = [{name: np.array(values, np.int64) for name, values in sample.items()} for sample in rows]
    batch = pack_rows(given_rows if as_arrays else rows, PROCESSOR)
    expected = [spelled_out(sample) for sample in rows]
    assert cut(batch, "input_ids") == [ids for ids, _ in expected]
    assert cut(batch, "labels") == [labels for _, labels in expected]
    assert cut(batch, "position_ids") == [list(range(len(ids))) for ids, _ in expected]
    assert all(labels[0] == IGNORED for labels in cut(batch, "labels"))
    assert batch["max_length_q"] == batch["max_length_k"] == max(len(ids) for ids, _ in expected)
    assert batch["cu_seq_lens_k"].tolist() == batch["cu_seq_lens_q"].tolist()


def test_the_shapes_and_types_of_a_batch():
    batch = PackedCollator(PROCESSOR)(list(tokenised(*MIXED)))
    total = sum(len(by_processor(PROCESSOR, sample)[0]) for sample in MIXED)
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == (1, total) and batch[name].dtype == torch.int64
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert batch[name].shape == (len(MIXED) + 1,) and batch[name].dtype == torch.int32
    assert type(batch["max_length_q"]) is type(batch["max_length_k"]) is int
    assert "attention_mask" not in batch


@pytest.mark.parametrize("template", PROCESSORS)
def test_ids_and_labels_are_the_processors(template):
    processor = PROCESSORS[template]
    batch = PackedCollator(processor)(list(tokenised(*MIXED, processor=processor)))
    expected = [by_processor(processor, sample) for sample in MIXED]
    assert cut(batch, "input_ids") == [ids for ids, _ in expected]
    assert cut(batch, "labels") == [
        [token if on else IGNORED for token, on in zip(ids, mask, strict=True)] for ids, mask in expected
    ]


def test_packed_samples_get_the_logits_they_get_alone(model):
    batch = PackedCollator(PROCESSOR)(list(tokenised(*MIXED)))
    bounds = batch["cu_seq_lens_q"].tolist()
    del batch["labels"]
    batch["pixel_values"] = batch["pixel_values"].double()
    model = copy.deepcopy(model).double()  # where sums in another order differ by nothing that counts
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits[0]
        for sample, start, end in zip(MIXED, bounds[:-1], bounds[1:], strict=True):
            ids, _ = by_processor(PROCESSOR, sample)
            pixels = PROCESSOR(images=sample["images"], return_tensors="pt") if sample["images"] else {}
            pixels = {name: tensor.double() for name, tensor in pixels.items()}
            alone = model(input_ids=torch.tensor([ids]), **pixels).logits[0]
            torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_packed_batch_is_that_of_its_samples(model):
    assert isinstance(model, ShareGPT4VForConditionalGeneration)
    rows = list(tokenised(*MIXED))
    collator = PackedCollator(PROCESSOR)
    with torch.no_grad():
        together = model(**collator(rows), use_cache=False).loss
        parts = [collator([sample]) for sample in rows]
        losses = torch.stack([model(**part, use_cache=False).loss for part in parts])
    counts = torch.tensor([(part["labels"] != IGNORED).sum() for part in parts])
    torch.testing.assert_close(together, (losses * counts).sum() / counts.sum())


# Pixels


@pytest.mark.parametrize("do_pad", [True, False], ids=["pad", "crop"])
@pytest.mark.parametrize("by_argument", [True, False])
def test_pixels_are_exactly_the_processors(do_pad, by_argument):
    processor = processor_of()
    processor.image_processor.do_pad = do_pad != by_argument
    collator = PackedCollator(processor, pad=do_pad if by_argument else None)
    pixels = collator(list(tokenised(*MIXED)))["pixel_values"]
    expected = processor(images=PICTURES, do_pad=do_pad, return_tensors="pt")["pixel_values"]
    assert pixels.dtype == torch.float32 and torch.equal(pixels, expected)


def test_pixels_for_a_siglip_tower_are_exactly_the_processors():
    _, processor = tiny_model(tiny_siglip())
    pixels = PackedCollator(processor)(list(tokenised(*MIXED, processor=processor)))["pixel_values"]
    assert torch.equal(pixels, processor(images=PICTURES, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_pixels_can_stay_8_bit(mode):
    collator = PackedCollator(PROCESSOR, pad=mode == "pad", normalise=False)
    pixels = collator(list(tokenised(*MIXED)))["pixel_values"]
    expected = np.stack([fit_image(image["bytes"], 28, mode=mode) for image in PICTURES])
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 28, 28)
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)


def test_8_bit_pixels_of_large_images_are_decoded_the_fast_way():
    images = [picture(1, size=(400, 300))]
    (sample,) = tokenised({**ROWS[0], "images": images})
    pixels = PackedCollator(PROCESSOR, normalise=False)([sample])["pixel_values"]
    fast, exact = (fit_image(images[0]["bytes"], 28, exact=exact) for exact in (False, True))
    assert not np.array_equal(fast, exact)
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), fast)


@pytest.mark.parametrize("vision", [None, tiny_siglip()], ids=["clip", "siglip"])
def test_normalising_later_gives_exactly_the_processors_pixels(vision):
    _, processor = tiny_model(vision)
    image = noise_image(0, (28, 28))  # nothing to resize
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(normalise_pixels(pixels, processor), expected)


def test_a_batch_without_images_has_no_pixels():
    assert "pixel_values" not in PackedCollator(PROCESSOR)(list(tokenised(ROWS[2], {**ROWS[2], "images": None})))


def test_images_may_be_files_bytes_or_open(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(PICTURES[0]["bytes"])
    (sample,) = tokenised(MIXED[0])
    expected = PackedCollator(PROCESSOR)([sample])["pixel_values"]
    opened = noise_image(3, (40, 90))
    for image in ({"bytes": None, "path": str(path)}, str(path), PICTURES[0]["bytes"]):
        assert torch.equal(PackedCollator(PROCESSOR)([{**sample, "images": [image]}])["pixel_values"], expected)
    pixels = PackedCollator(PROCESSOR)([{**sample, "images": [opened]}])["pixel_values"]
    assert torch.equal(pixels, PROCESSOR(images=opened, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    "image",
    [{"bytes": PICTURES[0]["bytes"][:300], "path": None}, {"bytes": None, "path": "no/such/file.jpg"}],
    ids=["cut off", "missing"],
)
def test_an_image_that_cannot_be_read_is_named(image, normalise):
    rows = [*tokenised(MIXED[0]), {**tokenised(ROWS[0])[0], "id": "the bad one", "images": [image]}]
    with pytest.raises(ValueError, match="An image of sample 'the bad one' cannot be read: "):
        PackedCollator(PROCESSOR, normalise=normalise)(rows)


@pytest.mark.parametrize(
    "change",
    [{"crop_size": {"height": 28, "width": 42}}, {"size": {"shortest_edge": 32}}],
    ids=["no square", "a margin is cut off"],
)
def test_squares_that_would_differ_from_the_processors_are_refused(change):
    processor = processor_of()
    images = processor.image_processor
    processor.image_processor = type(images).from_dict({**images.to_dict(), **change})
    with pytest.raises(ValueError, match="Images must be resized and cropped to one square, got 28 x "):
        PackedCollator(processor)


# Online, and in a data loader


def same(batch: dict, expected: dict) -> bool:
    assert list(batch) == list(expected)
    return all(torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(expected[name])) for name in batch)


@pytest.mark.parametrize("normalise", [True, False])
def test_collating_online_is_tokenising_and_collating(normalise):
    stream = dataset_of(*MIXED).to_iterable_dataset()
    batch = OnlineCollator(PROCESSOR, pad=False, normalise=normalise)(list(stream))
    assert same(batch, PackedCollator(PROCESSOR, pad=False, normalise=normalise)(list(tokenised(*MIXED))))


def test_collating_online_refuses_long_samples_by_default():
    with pytest.raises(ValueError, match=r"1 of 4 samples have more than `max_length`=90 tokens.*first: turns \(98\)"):
        OnlineCollator(PROCESSOR, max_length=90)(MIXED)


def test_collating_online_leaves_out_turns_and_samples_that_do_not_fit(caplog):
    collator = OnlineCollator(PROCESSOR, max_length=90, on_too_long="drop_turns")
    long = row("long", ("What is it? " * 20, "A cat."))
    shorter = {**MIXED[3], "messages": MIXED[3]["messages"][:4]}
    with caplog.at_level(logging.WARNING, "trainers.tokenised"):
        batch = collator([MIXED[3], long, MIXED[0]])
    assert same(batch, PackedCollator(PROCESSOR)(list(tokenised(shorter, MIXED[0]))))
    assert "Sample 'long' is left out" in caplog.text


def test_workers_of_a_data_loader_give_the_same_batches():
    rows = tokenised(*MIXED)
    collator = PackedCollator(PROCESSOR, normalise=False)
    batches = list(DataLoader(rows, batch_size=2, num_workers=1, collate_fn=collator))
    assert len(batches) == 2
    for batch, part in zip(batches, (range(2), range(2, 4)), strict=True):
        assert same(batch, collator([rows[place] for place in part]))
