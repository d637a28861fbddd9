"""The batch planner: same samples a step as the plain order, none lost or doubled, and no rank that waits."""

import logging

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, prepare_data_loader
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from trainers.planner import PlannedBatches, assign, step_efficiency, training_cost


PROPERTY = settings(deadline=None, max_examples=200)
RANKS, MICRO_BATCHES = st.integers(1, 5), st.integers(1, 4)


@st.composite
def batches(draw):
    """Lengths, which samples have an image, ranks and micro-batches; ties and extremes are likely."""
    ranks, micro_batches = draw(RANKS), draw(MICRO_BATCHES)
    places = ranks * micro_batches
    count = draw(st.integers(places, places + 30))
    length = st.integers(1, 3) | st.integers(1, 3000)
    lengths = np.array(draw(st.lists(length, min_size=count, max_size=count)))
    has_image = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return lengths, has_image, ranks, micro_batches


def flat(plan) -> list[np.ndarray]:
    return [part for rank in plan for part in rank]


def loads_of(plan, costs) -> list[float]:
    return [sum(costs[part].sum() for part in rank) for rank in plan]


def captions(count: int, seed: int = 0) -> np.ndarray:
    return 576 + np.random.default_rng(seed).lognormal(5.2, 0.31, count).astype(int)


def planned(lengths, **changes) -> PlannedBatches:
    options = {"batch_size": 16, "ranks": 2, "rank": 0, "micro_batches": 2, "seed": 3}
    return PlannedBatches(**{"lengths": lengths, "has_image": np.ones(len(lengths), bool), **options, **changes})


def steps_of(lengths, epoch: int = 0, **changes) -> list[list[list[list[int]]]]:
    """By step, rank and micro-batch, the indices that the samplers of all ranks give."""
    samplers = [planned(lengths, rank=rank, **changes) for rank in range(changes.get("ranks", 2))]
    parts = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
    size = changes.get("micro_batches", 2)
    return [[own[begin : begin + size] for own in parts] for begin in range(0, len(parts[0]), size)]


def samples_of(step) -> list[int]:
    return [index for rank in step for part in rank for index in part]


def plain_order(count: int, seed: int, epoch: int) -> list[int]:
    sampler = SeedableRandomSampler(range(count), data_seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@PROPERTY
@given(batches())
def test_every_sample_has_one_place_and_every_micro_batch_a_sample(batch):
    lengths, has_image, ranks, micro_batches = batch
    plan = assign(training_cost(lengths, has_image), lengths, ranks, micro_batches, None, has_image)
    assert [len(rank) for rank in plan] == [micro_batches] * ranks
    assert all(len(part) for part in flat(plan))
    assert sorted(np.concatenate(flat(plan))) == list(range(len(lengths)))


@PROPERTY
@given(batches())
def test_images_go_to_as_many_micro_batches_as_they_can(batch):
    lengths, has_image, ranks, micro_batches = batch
    plan = assign(training_cost(lengths, has_image), lengths, ranks, micro_batches, None, has_image)
    pictures = [has_image[part].sum() for part in flat(plan)]
    assert sum(count > 0 for count in pictures) == min(has_image.sum(), ranks * micro_batches)


@PROPERTY
@given(batches(), st.integers(1, 9000))
def test_no_micro_batch_exceeds_the_bound(batch, max_tokens):
    lengths, has_image, ranks, micro_batches = batch
    costs = training_cost(lengths, has_image)
    try:
        plan = assign(costs, lengths, ranks, micro_batches, max_tokens)
    except ValueError as error:
        assert f"`max_tokens` is {max_tokens}" in str(error)
        assert (
            max(lengths[part].sum() for part in flat(assign(costs, lengths, ranks, micro_batches, None))) > max_tokens
        )
    else:
        assert max(lengths[part].sum() for part in flat(plan)) <= max_tokens


@PROPERTY
@given(batches())
def test_no_rank_has_more_than_the_mean_and_one_sample(batch):
    lengths, _, ranks, _ = batch
    loads = loads_of(assign(lengths, lengths, ranks, 1, None), lengths)
    assert max(loads) <= lengths.sum() / ranks + lengths.max()


@PROPERTY
@given(batches())
def test_micro_batches_of_a_rank_begin_with_the_dearest(batch):
    lengths, has_image, ranks, micro_batches = batch
    costs = training_cost(lengths, has_image)
    for rank in assign(costs, lengths, ranks, micro_batches, None, has_image):
        loads = [costs[part].sum() for part in rank]
        assert all(first >= second - 1e-6 for first, second in zip(loads, loads[1:], strict=False))
        assert all(list(part) == sorted(part) for part in rank)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8, 16]), st.integers(4, 12), st.floats(0.05, 1.0))
def test_planning_is_never_worse_than_dealing_in_order(seed, ranks, each, spread):
    steps = np.random.default_rng(seed).lognormal(6, spread, (8, ranks * each))
    plans = np.array([loads_of(assign(lengths, lengths, ranks, 1, None), lengths) for lengths in steps])
    assert step_efficiency(plans) > step_efficiency(steps.reshape(8, ranks, each).sum(axis=2))


def test_exchanges_find_the_even_split_that_dealing_alone_misses():
    costs = np.array([3, 3, 2, 2, 2])
    assert loads_of(assign(costs, costs, 2, 1, None), costs) == [6, 6]


def test_a_sample_is_given_away_when_nothing_is_worth_taking():
    costs = np.array([2, 11, 5, 2])
    assert sorted(loads_of(assign(costs, costs, 2, 1, None), costs)) == [9, 11]


def test_nothing_is_exchanged_that_makes_the_heaviest_heavier():
    costs = np.array([1, 2, 3, 13])
    assert sorted(loads_of(assign(costs, costs, 2, 1, None), costs)) == [6, 13]


def test_the_heaviest_turns_to_others_when_the_lightest_has_nothing_to_offer():
    costs = np.array([7, 5, 5, 13, 13, 3])
    assert max(loads_of(assign(costs, costs, 3, 1, None), costs)) == 17


def test_global_batches_of_the_recipe_are_even_at_every_micro_batch():
    lengths = captions(256 * 20)
    costs = training_cost(lengths, np.ones(len(lengths), bool))
    for ranks, micro_batches in ((8, 2), (16, 1)):
        steps = steps_of(lengths, batch_size=256, ranks=ranks, micro_batches=micro_batches)
        loads = [[costs[rank[number]].sum() for rank in step] for step in steps for number in range(micro_batches)]
        assert step_efficiency(np.array(loads)) >= 0.999


def test_ties_are_broken_the_same_way_everywhere():
    plan = assign(np.full(8, 5.0), np.full(8, 5), 2, 2, None)
    assert [[part.tolist() for part in rank] for rank in plan] == [[[0, 4], [2, 6]], [[1, 5], [3, 7]]]


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), (4, 1), (0, 1)])
def test_too_few_samples_are_refused_by_numbers(ranks, micro_batches):
    with pytest.raises(ValueError, match=f"3 samples cannot fill {ranks} ranks x {micro_batches} micro-batches"):
        assign(np.ones(3), np.ones(3, int), ranks, micro_batches, None)


def test_a_bound_that_only_an_even_split_of_tokens_keeps_is_kept():
    costs, lengths = np.array([3.0, 1.0, 1.0, 1.0]), np.full(4, 100)
    assert sorted(len(part) for part in flat(assign(costs, lengths, 2, 1, None))) == [1, 3]
    assert [len(part) for part in flat(assign(costs, lengths, 2, 1, 200))] == [2, 2]


def test_a_bound_that_cannot_hold_names_what_is_needed():
    with pytest.raises(
        ValueError, match="needs 200 tokens, `max_tokens` is 199; the longest of these 4 samples has 100"
    ):
        assign(np.ones(4), np.full(4, 100), 2, 1, 199)


def test_cost_is_proportional_to_the_multiplications():
    layers, hidden, inner = 32, 4096, 11008
    lengths = np.array([1, 776, 2624])
    weights = layers * (4 * hidden**2 + 3 * hidden * inner)
    forward = 2 * weights * lengths + 2 * layers * hidden * lengths.astype(float) ** 2
    np.testing.assert_allclose(training_cost(lengths, np.zeros(3, bool)), forward / (2 * weights))
    narrow = training_cost(lengths, np.zeros(3, bool), hidden_size=64, intermediate_size=128)
    np.testing.assert_allclose(narrow, lengths + lengths**2 / 640)


def test_an_image_costs_its_way_through_the_tower_too():
    both = np.array([True, False])
    assert np.diff(training_cost(np.array([700, 700]), both)) == -20
    assert np.diff(training_cost(np.array([700, 700]), both, image_cost=11)) == -11


def test_efficiency_is_useful_work_over_the_pace_of_the_slowest():
    assert step_efficiency(np.array([[1, 1], [1, 3]])) == pytest.approx((1 + 4 / 6) / 2)
    assert step_efficiency(np.array([[4, 4], [4, 4]]), useful=np.array([6, 8])) == pytest.approx((6 / 8 + 1) / 2)


@pytest.mark.parametrize("loads", [np.ones(3), np.ones((0, 4)), np.ones((4, 0)), np.array([[1, 2], [0, 0]])])
def test_loads_without_work_have_no_efficiency(loads):
    with pytest.raises(ValueError, match="must be \\(steps, ranks\\)"):
        step_efficiency(loads)


@pytest.mark.parametrize("epoch", [0, 3])
def test_steps_hold_the_samples_of_the_plain_random_order(epoch):
    order = plain_order(100, seed=3, epoch=epoch)
    steps = steps_of(captions(100), epoch)
    assert [sorted(samples_of(step)) for step in steps] == [
        sorted(order[begin : begin + 16]) for begin in range(0, 100, 16)
    ]


def test_epochs_and_seeds_differ():
    first, second = steps_of(captions(64), 0), steps_of(captions(64), 1)
    assert sorted(samples_of(first[0])) != sorted(samples_of(second[0]))
    assert sorted(samples_of(first[0])) != sorted(samples_of(steps_of(captions(64), seed=4)[0]))


def test_the_same_epoch_can_be_gone_through_again():
    sampler = planned(captions(64))
    assert list(sampler) == list(sampler)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 90), st.integers(1, 40), RANKS, MICRO_BATCHES, st.booleans(), st.integers(0, 2))
def test_an_epoch_holds_every_sample_that_is_not_counted_as_dropped(
    samples, batch_size, ranks, micro_batches, drop_last, epoch
):
    places = ranks * micro_batches
    assume(places <= batch_size and samples >= (batch_size if drop_last else places))
    options = {"batch_size": batch_size, "ranks": ranks, "micro_batches": micro_batches, "drop_last": drop_last}
    steps = steps_of(captions(samples), epoch, **options)
    seen = [index for step in steps for index in samples_of(step)]
    dropped = planned(captions(samples), **options).dropped
    assert len(seen) == len(set(seen)) == samples - dropped
    assert all(len(part) for step in steps for rank in step for part in rank)
    assert all(places <= len(samples_of(step)) <= batch_size for step in steps)
    if drop_last or batch_size + samples % batch_size < 2 * places:
        assert dropped < batch_size
    else:
        assert dropped == 0
    assert sorted(seen) == sorted(plain_order(samples, 3, epoch)[: len(seen)])


@pytest.mark.parametrize(
    ("samples", "changes", "sizes", "dropped"),
    [
        (48, {}, [16, 16, 16], 0),
        (36, {}, [16, 16, 4], 0),  # just enough for 2 x 2
        (34, {}, [16, 14, 4], 0),  # the step before lends two
        (4, {}, [4], 0),
        (34, {"drop_last": True}, [16, 16], 2),
        (46, {"drop_last": True}, [16, 16], 14),
        (9, {"batch_size": 6}, [5, 4], 0),  # lending leaves no place empty
        (7, {"batch_size": 6}, [6], 1),  # it would
    ],
)
def test_an_incomplete_last_batch(samples, changes, sizes, dropped):
    assert [len(samples_of(step)) for step in steps_of(captions(samples), **changes)] == sizes
    assert planned(captions(samples), **changes).dropped == dropped


def test_dropped_samples_are_reported_once(caplog):
    with caplog.at_level(logging.WARNING):
        planned(captions(34), drop_last=True, rank=1)
        planned(captions(32), drop_last=True)
    assert not caplog.records
    planned(captions(34), drop_last=True)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 34 samples are left out of every epoch, each time others."
    ]


def test_every_micro_batch_has_an_image_where_some_samples_have_none():
    lengths, has_image = captions(64), np.arange(64) % 2 == 0
    lengths[~has_image] += 5000
    for step in steps_of(lengths, has_image=has_image):
        assert all(has_image[part].any() for rank in step for part in rank)


def test_a_loader_that_resumes_goes_on_where_it_stopped():
    sampler = planned(captions(100), rank=1)
    sampler.set_epoch(2)
    loader = DataLoader(range(100), batch_sampler=sampler, collate_fn=list)
    assert list(skip_first_batches(loader, 5)) == list(loader)[5:] == list(sampler)[5:]


def test_accelerate_passes_the_epoch_on():
    loader = DataLoader(range(64), batch_sampler=planned(captions(64)), collate_fn=list)
    loader = prepare_data_loader(loader, num_processes=1, process_index=0)
    loader.set_epoch(1)
    assert [list(loader), list(loader)] == [
        [part for step in steps_of(captions(64), epoch) for part in step[0]] for epoch in (1, 2)
    ]


def test_the_wrapper_of_transformers_trainer_leaves_batches_as_they_are():
    sampler = planned(captions(100))
    assert list(BatchSamplerShard(sampler)) == list(sampler)
    assert len(BatchSamplerShard(sampler)) == len(sampler)


def test_a_batch_that_does_not_fit_stops_the_epoch_before_its_first_step():
    lengths = captions(160, seed=3)
    needed = [max(lengths[part].sum() for rank in step for part in rank) for step in steps_of(lengths)]
    bound = max(needed) - 60
    assert needed[0] <= bound
    with pytest.raises(ValueError, match=f"A micro-batch needs {max(needed)} tokens, `max_tokens` is {bound}"):
        next(iter(planned(lengths, max_tokens=bound)))
    assert list(planned(lengths, max_tokens=max(needed))) == list(planned(lengths))


def test_a_sample_beyond_the_bound_is_named():
    lengths = captions(64)
    lengths[17] = 5000
    with pytest.raises(ValueError, match="Sample 17 has 5000 tokens, `max_tokens` is 4999"):
        planned(lengths, max_tokens=4999)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_image": np.ones(5, bool)}, "`lengths` has 64 samples, `has_image` has 5"),
        ({"rank": 2}, "`rank` must be from 0 to 1, got 2"),
        ({"rank": -1}, "`rank` must be from 0 to 1, got -1"),
        ({"batch_size": 3}, "at least ranks x micro-batches, got 3 for 2 x 2"),
        ({"micro_batches": 0}, "at least ranks x micro-batches, got 16 for 2 x 0"),
        ({"batch_size": 65, "drop_last": True}, "64 samples make no step of 65 for 2 ranks x 2 micro-batches"),
        ({"batch_size": 200, "micro_batches": 40}, "64 samples make no step of 200 for 2 ranks x 40 micro-batches"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        planned(captions(64), **changes)
