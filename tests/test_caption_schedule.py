"""The simulation of captioning jobs: it keeps every image, agrees with closed forms, and its audit can fail."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.caption_events import Audit, Outcome, Setting, Simulation, Store, audit, draw_lengths
from trainers.geometry import Geometry, Tuning, build_on_meta, measure
from trainers.roofline import GPUS, CaptionSeconds, caption_rate, caption_seconds


H100 = GPUS["H100"]
SHARD = 64
SCHEDULES = ["slots", "static", "compact"]


@cache
def geometry() -> Geometry:
    return measure(build_on_meta("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"), Tuning())


@cache
def costs() -> CaptionSeconds:
    return caption_seconds(geometry(), H100)


def finished(setting: Setting, lengths: list[int], shard: int = SHARD, store: Store | None = None) -> Outcome:
    return Simulation(setting, lengths, shard, store).run()


def audited(setting: Setting, lengths: list[int], store: Store | None = None) -> Audit:
    return audit(finished(setting, lengths, store=store), lengths, SHARD)


def often_killed(**changed) -> Setting:
    return replace(Setting(costs(), 16, workers=4, kill_every=20, load=5), **changed)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("steals", [False, True])
def test_every_image_has_one_row_whatever_is_killed(schedule, drains, steals):
    lengths = draw_lengths(190, 100, 2_500, 3)
    setting = often_killed(schedule=schedule, drains=drains, steals=steals, slow=1)
    found = audited(setting, lengths)
    assert found.holds
    assert found.tokens == sum(lengths)
    assert found.in_flight > 0 and found.repeated == found.in_flight


def test_a_job_without_kills_repeats_nothing():
    found = audited(Setting(costs(), 16, workers=4), draw_lengths(190, 60, 1_000, 3))
    assert found.holds and found.repeated == 0


class NeverLooks(Store):
    """Appends without looking at what is there."""

    def answered(self, shard: int) -> set[int]:
        return set()


class LooksAtNothingButTheMarker(Store):
    """Takes a shard with any row for a finished one."""

    def answered(self, shard: int) -> set[int]:
        images = range(shard * SHARD, (shard + 1) * SHARD)
        return set(images) if self.rows[shard] else set()


class KeepsRowsInMemory(Store):
    """Drops every 100th row."""

    def append(self, shard: int, image: int, tokens: int) -> None:
        if image % 100:
            super().append(shard, image, tokens)


class WritesToTheNextShard(Store):
    """Confuses shards."""

    def append(self, shard: int, image: int, tokens: int) -> None:
        super().append((shard + 1) % len(self.rows), image, tokens)


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        (NeverLooks, "doubled"),
        (LooksAtNothingButTheMarker, "missing"),
        (KeepsRowsInMemory, "missing"),
        (WritesToTheNextShard, "wrong"),
    ],
)
def test_the_audit_finds_what_a_broken_store_does(store, fault):
    lengths = draw_lengths(190, 60, 40 * SHARD, 3)
    found = audited(often_killed(), lengths, store(40))
    assert not found.holds
    assert getattr(found, fault) > 0


def test_the_audit_finds_work_that_was_repeated_without_a_kill():
    lengths = [190] * 100
    outcome = finished(Setting(costs(), 16), lengths)
    outcome.begun += 1
    assert not audit(outcome, lengths, SHARD).holds


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("slots", [16, 128])
def test_equal_lengths_take_the_time_of_the_closed_form(schedule, slots):
    lengths = [190] * (10 * slots)
    outcome = finished(Setting(costs(), slots, schedule), lengths, len(lengths))
    rate = caption_rate(geometry(), H100, slots, 625, 190).serial
    assert len(lengths) / outcome.seconds == pytest.approx(rate, rel=0.02)


def test_full_slots_take_the_time_of_the_mean_caption():
    lengths = draw_lengths(190, 60, 30_000, 3)
    outcome = finished(Setting(costs(), 128), lengths, len(lengths))
    tokens = np.array(lengths)
    contexts = tokens * 625 + tokens**2 / 2
    each = costs().prompt + costs().weights * tokens.mean() / 128 + costs().context * contexts.mean()
    assert outcome.seconds / len(lengths) == pytest.approx(each, rel=0.01)


def test_a_batch_lasts_as_long_as_its_longest_caption():
    setting = Setting(costs(), 2, "static")
    assert finished(setting, [100, 300], 2).seconds == pytest.approx(finished(setting, [300, 300], 2).seconds)
    compact = replace(setting, schedule="compact")
    expected = 2 * costs().prompt + costs().steps(100, 2, 2 * 625) + costs().steps(200, 1, 725)
    assert finished(compact, [100, 300], 2).seconds == pytest.approx(expected)


def test_stealing_beats_a_fixed_split_with_one_straggler():
    lengths = draw_lengths(190, 60, 80 * SHARD, 3)
    setting = Setting(costs(), 16, workers=4, slow=1)
    split = finished(replace(setting, steals=False), lengths)
    stealing = finished(setting, lengths)
    assert split.stolen == 0 < stealing.stolen
    assert stealing.seconds < split.seconds / 1.5  # 8/7 of the even time against twice of it


def test_a_shard_of_a_killed_worker_goes_on_with_another():
    lengths = draw_lengths(190, 60, 20 * SHARD, 3)
    setting = often_killed(kill_every=200, load=400, seed=2)
    stealing, split = (finished(replace(setting, steals=steals), lengths) for steals in (True, False))
    assert stealing.kills == 1 and stealing.in_flight > 0
    assert stealing.seconds < 400 < split.seconds  # before the killed one is back, and only once it is


def test_shards_may_follow_each_other_in_the_slots():
    lengths = draw_lengths(190, 60, 20 * SHARD, 3)
    following = finished(Setting(costs(), 16), lengths)
    assert following.seconds == pytest.approx(finished(Setting(costs(), 16), lengths, len(lengths)).seconds)
    assert following.seconds < finished(Setting(costs(), 16, drains=True), lengths).seconds


def test_more_workers_finish_sooner_and_the_same_seed_the_same():
    lengths = draw_lengths(190, 60, 64 * SHARD, 3)
    one, eight, again = (finished(Setting(costs(), 16, workers=count), lengths) for count in (1, 8, 8))
    assert 7.2 < one.seconds / eight.seconds <= 8.01
    assert (eight.seconds, eight.store.rows) == (again.seconds, again.store.rows)


def test_killed_jobs_are_the_same_by_seed():
    lengths = draw_lengths(190, 60, 1_000, 3)
    first, again, other = (finished(often_killed(seed=seed), lengths) for seed in (1, 1, 2))
    assert (first.seconds, first.kills, first.store.rows) == (again.seconds, again.kills, again.store.rows)
    assert other.seconds != first.seconds
