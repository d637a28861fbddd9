"""Rows of keys and values, loops, and groups of a prefill."""

import pytest
import torch

from captioning.engine_cache import BUCKET, SlotCache
from captioning.engine_inputs import PREFILL_REQUESTS, PREFILL_TOKENS, Prepared, group
from captioning.engine_requests import CaptionRequest, LoopGuard


HEADS, WIDTH, LENGTH = 2, 4, 100


def states(rows, tokens, value=None):
    made = torch.randn(rows, HEADS, tokens, WIDTH)
    return made if value is None else made.fill_(value)


def filled(lengths):
    """A cache of one layer whose row i holds the number i + 1."""
    cache = SlotCache(1, slots=6, max_length=LENGTH)
    for row, length in enumerate(lengths):
        cache.begin_prefill()
        made = states(1, length, row + 1)
        cache.update(made, made, 0)
        cache.end_prefill([length])
    return cache


def test_a_prefill_attends_to_its_own_keys_and_leaves_other_rows_alone():
    cache = filled([3, 5])
    before = cache.layers[0].keys[:2].clone()
    cache.begin_prefill()
    made = states(2, 7)
    keys, _ = cache.update(made, made, 0)
    assert keys is made and cache.get_seq_length() == 0 and cache.get_mask_sizes(7, 0) == (7, 0)
    cache.end_prefill([7, 4])
    assert cache.lengths == [3, 5, 7, 4]
    assert torch.equal(cache.layers[0].keys[:2], before)
    assert torch.equal(cache.layers[0].values[2:4, :, :7], made)


def test_a_step_writes_behind_each_row_and_reads_the_rows_in_use():
    cache = filled([3, 40])
    lengths, bucket = cache.begin_step(torch.device("cpu"))
    new = states(2, 1)
    keys, values = cache.update(new, -new, 0)
    assert lengths.tolist() == [3, 40] and bucket == 3 * BUCKET
    assert keys.shape == values.shape == (2, HEADS, bucket, WIDTH)
    for row, length in enumerate((3, 40)):
        assert torch.equal(keys[row, :, length], new[row, :, 0]) and torch.equal(
            values[row, :, length], -new[row, :, 0]
        )
        assert (keys[row, :, :length] == row + 1).all()
    cache.end_step()
    assert cache.lengths == [4, 41]


def test_what_overflowed_in_a_row_is_not_left_to_the_next_caption_in_it():
    cache = filled([3, 5])
    for kept in (cache.layers[0].keys, cache.layers[0].values):
        kept[:, :, 5:] = float("nan")
    cache.begin_prefill()
    cache.update(states(1, 4), states(1, 4), 0)
    cache.end_prefill([4])
    cache.remove(0)  # the last row moves into its place
    for kept in (cache.layers[0].keys, cache.layers[0].values):
        assert not kept[0].isnan().any() and not kept[2].isnan().any()


def test_a_step_never_reads_beyond_the_slot():
    cache = filled([LENGTH - 1])
    assert cache.begin_step(torch.device("cpu"))[1] == LENGTH


def test_the_last_row_takes_the_place_of_a_freed_one():
    cache = filled([3, 5, 9])
    cache.remove(0)
    assert cache.lengths == [9, 5]
    assert (cache.layers[0].keys[0, :, :9] == 3).all() and (cache.layers[0].keys[1, :, :5] == 2).all()
    cache.remove(1)
    assert cache.lengths == [9]


def test_buffers_are_made_once():
    cache = filled([3])
    place = cache.layers[0].keys.data_ptr()
    for _ in range(3):
        cache.begin_step(torch.device("cpu"))
        cache.update(states(1, 1), states(1, 1), 0)
        cache.end_step()
    assert cache.layers[0].keys.data_ptr() == place


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([1, 2, 3] * 4, 3),
        ([9, 9, 8, 7] + [5] * 12, 1),
        ([4, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], None),
        ([1, 2, 3, 4] * 2 + [1, 2, 3, 5] * 2, None),
        ([5] * 11, None),
        ([], None),
    ],
    ids=["phrase", "token", "unfinished", "changed", "short", "empty"],
)
def test_a_loop_is_one_phrase_repeated_at_the_end(tokens, period):
    assert LoopGuard(longest=8, repeats=4, least=12).period(tokens) == period


def test_a_loop_is_looked_for_when_it_is_due():
    guard = LoopGuard(longest=8, repeats=2, least=4, every=6)
    assert [guard.stops([7] * count) for count in (4, 5, 6, 7)] == [False, False, True, False]


def prepared(key, tokens, **others):
    ids = torch.ones(1, tokens, dtype=torch.long)
    return Prepared(CaptionRequest(key, b"", ""), {"input_ids": ids, "attention_mask": ids} | others)


def keys(groups):
    return [[one.request.key for one in chosen] for chosen in groups]


def test_requests_of_several_image_shapes_have_several_prefills():
    one, two = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 4)
    asked = [prepared("a", 5, pixels=one), prepared("b", 5, pixels=two), prepared("c", 6, pixels=one)]
    assert keys(group(asked)) == [["a", "c"], ["b"]]


def test_patches_of_any_number_share_a_prefill():
    asked = [prepared("a", 5, pixels=torch.zeros(4, 12)), prepared("b", 5, pixels=torch.zeros(9, 12))]
    assert keys(group(asked)) == [["a", "b"]]


def test_a_prefill_is_not_padded_to_more_than_twice_its_shortest():
    assert keys(group([prepared("a", 30), prepared("b", 10), prepared("c", 20)])) == [["b", "c"], ["a"]]


def test_a_prefill_holds_a_bounded_number_of_requests():
    sizes = [len(chosen) for chosen in group([prepared("r", 4) for _ in range(2 * PREFILL_REQUESTS + 1)])]
    assert sizes == [PREFILL_REQUESTS, PREFILL_REQUESTS, 1]


def test_a_prefill_holds_a_bounded_number_of_tokens():
    half = PREFILL_TOKENS // 2
    assert keys(group([prepared(key, half) for key in "abc"])) == [["a", "b"], ["c"]]
