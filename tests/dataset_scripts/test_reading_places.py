"""The safe reader: exact states, ranks and workers without loss, shuffling."""

import json
import pickle
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from dataset_scripts.reading import RowReport, SafeRows, open_rows, total_report
from dataset_scripts.schema import CONVERSATION_FEATURES
from tests.dataset_scripts.test_reading import conversation_row, ids, jpeg, numbered, write_files
from tests.tiny import tiny_model
from trainers.configs import FinetuneConfig
from trainers.sharegpt4v_trainer import FinetuneTrainer


def take(rows: SafeRows, count: int) -> list[int]:
    iterator = iter(rows)
    return [int(next(iterator)["id"]) for _ in range(count)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_state_continues_with_exactly_the_next_row_any_number_of_times(data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    bad = data.draw(st.sets(st.integers(0, sum(counts) - 1), max_size=5))
    with tempfile.TemporaryDirectory() as folder:
        group, world = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
        source = numbered(Path(folder) / "repo", *counts, group=group, bad=tuple(bad), max_bad=1.0)
        source = source.shard(world, data.draw(st.integers(0, world - 1)))
        if data.draw(st.booleans()):
            source = source.shuffle(data.draw(st.integers(0, 9)), data.draw(st.integers(1, 15)))
        source.set_epoch(data.draw(st.integers(0, 2)))
        state, whole, given = source.state_dict(), ids(source), []
        for cut in [*sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3))), None]:
            rows = pickle.loads(pickle.dumps(source))
            rows.set_epoch(5)
            rows.load_state_dict(json.loads(json.dumps(state)))
            given += ids(rows) if cut is None else take(rows, cut - len(given))
            assert given == whole[:cut] and rows.report.given == len(given)
            state = rows.state_dict()
        assert rows.report == source.report and rows.epoch == source.epoch
        assert ids(rows) == whole  # the next pass begins at the first row


def test_a_pass_that_was_broken_off_begins_anew(tmp_path):
    rows = numbered(tmp_path / "repo", 6, bad=(0,), max_bad=1)
    assert take(rows, 2) == [1, 2]
    assert ids(rows) == [1, 2, 3, 4, 5]
    assert rows.report.bad == {"unreadable image": 1}


def test_a_state_serves_any_number_of_times(tmp_path):
    rows = numbered(tmp_path / "repo", 6, bad=(0, 4), max_bad=2)
    take(rows, 2)
    state = rows.state_dict()
    for _ in range(2):
        rows.load_state_dict(state)
        assert ids(rows) == [3, 5]
        assert (rows.report.bad, len(rows.report.first_bad)) == ({"unreadable image": 2}, 2)


def test_another_epoch_drops_the_loaded_place_and_the_same_one_keeps_it(tmp_path):
    rows = numbered(tmp_path / "repo", 6)
    take(rows, 4)
    state = rows.state_dict()
    rows.load_state_dict(state)
    rows.set_epoch(0)
    assert ids(rows) == [4, 5]
    rows.load_state_dict(state)
    rows.set_epoch(1)
    assert rows.state_dict() == {**state, "epoch": 1, "row_report": vars(RowReport())}
    assert ids(rows) == [0, 1, 2, 3, 4, 5]


def test_a_state_of_other_rows_is_refused(tmp_path):
    rows = numbered(tmp_path / "repo", 6)
    state = rows.shuffle(1, 4).state_dict()
    rows.shuffle(1, 4).load_state_dict(state)
    for other, changed in (
        (rows, "seed 1 is now None"),
        (rows.shuffle(2, 4), "seed 1 is now 2"),
        (rows.shuffle(1, 5), "buffer_size 4 is now 5"),
        (rows.shuffle(1, 4).shard(2, 0), "world_size 1 is now 2"),
        (numbered(tmp_path / "other", 7).shuffle(1, 4), "files [0-9]+ is now [0-9]+"),
    ):
        with pytest.raises(ValueError, match=f"does not fit these rows: .*{changed}"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="rank 0 is now 1"):
        rows.shard(2, 1).load_state_dict(rows.shard(2, 0).state_dict())
    with pytest.raises(ValueError, match="worker 1 is now 0, workers 2 is now 1"):
        rows.load_state_dict(list(DataLoader(States(rows), batch_size=None, num_workers=2))[1])


class States(IterableDataset):
    """The state that the rows have in the process that reads them."""

    def __init__(self, rows: SafeRows):
        self.rows = rows

    def __iter__(self):
        return iter([self.rows.state_dict()])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cuts", [(1, 2), (3, 7), (0, 5), (6, 6), (4, 11)])
def test_a_stateful_loader_resumes_twice_with_all_counts(tmp_path, workers, cuts):
    rows = numbered(tmp_path / "repo", 11, 9, 5, bad=(2, 9, 24), max_bad=5).shuffle(3, 6)
    rows.set_epoch(4)

    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(rows, batch_size=2, num_workers=workers, collate_fn=ids)

    uninterrupted = loader()
    whole = list(uninterrupted)
    assert sorted(sum(whole, [])) == [number for number in range(25) if number not in (2, 9, 24)]
    state, given = None, []
    for cut in (*cuts, None):
        rows.set_epoch(0 if state else 4)
        resumed = loader()
        if state is not None:
            resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        iterator = iter(resumed)
        given += list(iterator) if cut is None else [next(iterator) for _ in range(cut - len(given))]
        assert given == whole[:cut]
        state = resumed.state_dict()
    total = total_report(state)
    assert (total.seen, total.given, total.bad) == (25, 22, {"unreadable image": 3})
    assert sorted(bad["id"] for bad in total.first_bad) == ["2", "24", "9"]
    assert total == total_report(uninterrupted.state_dict())
    rows.set_epoch(4)
    assert list(resumed) == whole  # the next epoch of the same loader


@pytest.mark.parametrize("workers", [0, 2])
def test_accelerate_splits_the_rows_over_ranks_and_resumes_each(tmp_path, workers):
    rows = numbered(tmp_path / "repo", 12, 9, bad=(2, 15), max_bad=5).shuffle(3, 6)

    def loader(rank: int):
        plain = DataLoader(rows, batch_size=2, num_workers=workers, collate_fn=ids)
        options = {"dispatch_batches": False, "use_stateful_dataloader": True}
        return prepare_data_loader(plain, num_processes=2, process_index=rank, **options)

    wholes = [sum(loader(rank), []) for rank in range(2)]
    assert sorted(sum(wholes, [])) == [number for number in range(21) if number not in (2, 15)]
    for rank, whole in enumerate(wholes):
        first, second = loader(rank), loader(rank)
        iterator = iter(first)
        given = [next(iterator) for _ in range(2)]
        second.load_state_dict(first.state_dict())
        assert sum([*given, *second], []) == whole
        assert total_report(second.state_dict()).given == len(whole)


def test_a_trainer_of_trl_takes_the_rows_as_they_are(tmp_path):
    model, processor = tiny_model()
    talks = [conversation_row(number, images=[jpeg(number, (40, 30))]) for number in range(6)]
    talks[3]["images"] = [{"bytes": b"no image", "path": None}]
    rows = open_rows(write_files(tmp_path / "repo", [talks], features=CONVERSATION_FEATURES)).shuffle(1, 4)
    options = {"max_steps": 5, "per_device_train_batch_size": 2, "save_strategy": "no", "report_to": "none"}
    config = FinetuneConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, disable_tqdm=True, **options)
    trainer = FinetuneTrainer(model=model, args=config, train_dataset=rows, processing_class=processor)
    trainer.train()
    assert trainer.state.global_step == 5
    assert (rows.epoch, rows.report.bad) == (1, {"unreadable image": 1})  # a pass is of three batches


def test_rows_that_accelerate_would_split_again_are_refused(tmp_path):
    rows = numbered(tmp_path / "repo", 8).shard(2, 0)
    with pytest.raises(ValueError, match="already those of rank 0 of 2"):
        prepare_data_loader(DataLoader(rows), num_processes=2, process_index=0, dispatch_batches=False)


def test_what_would_lose_the_safety_or_rows_is_refused_when_it_is_read(tmp_path):
    rows = numbered(tmp_path / "repo", 8)
    for other in (rows.map(str), rows.take(2), rows.batch(2), split_dataset_by_node(rows, 0, 2)):
        with pytest.raises(TypeError, match="Safe rows cannot be mapped"):
            next(iter(other))


def test_reports_of_ranks_add_up_in_any_nesting(tmp_path):
    rows = numbered(tmp_path / "repo", 10, bad=(1, 7, 8), max_bad=5)
    states = []
    for rank in range(3):
        part = rows.shard(3, rank)
        ids(part)
        states.append(part.state_dict())
    total = total_report([{"a": states[0], "b": 1}, (states[1],)], None, states[2])
    assert (total.seen, total.given, total.bad) == (10, 7, {"unreadable image": 3})
    assert [bad["id"] for bad in total.first_bad] == ["1", "7", "8"]


LAYOUTS = [
    ((8, 8), 4, 2, 2),
    ((5, 1, 8), 3, 2, 3),
    ((7,), 9, 3, 2),
    ((2, 1), 1, 2, 3),
    ((6, 6, 6), 2, 4, 0),
    ((4,), 4, 5, 1),
]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("counts", "group", "world", "workers"), LAYOUTS)
def test_ranks_and_workers_share_the_rows_without_loss_or_overlap(tmp_path, counts, group, world, workers, shuffled):
    rows = numbered(tmp_path / "repo", *counts, group=group)
    rows = rows.shuffle(1, 4) if shuffled else rows
    parts = [rows.shard(world, rank) for rank in range(world)]
    shares = [sum(DataLoader(part, 2, num_workers=workers, collate_fn=ids), []) for part in parts]
    assert sorted(sum(shares, [])) == list(range(sum(counts)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_does_not_read_the_files_of_the_others(tmp_path):
    rows = numbered(tmp_path / "repo", 6, 6, 6)
    (tmp_path / "repo/rows/train-00000-of-00003.parquet").unlink()
    (tmp_path / "repo/rows/train-00001-of-00003.parquet").unlink()
    assert ids(rows.shard(3, 2)) == [12, 13, 14, 15, 16, 17]


def test_ranks_are_checked_and_split_only_once(tmp_path):
    rows = numbered(tmp_path / "repo", 6)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="`index` must be from 0"):
            rows.shard(world, rank)
    with pytest.raises(ValueError, match="already those of rank 1 of 2"):
        rows.shard(2, 1).shard(2, 0)


def test_every_epoch_has_its_own_order_and_the_same_one_again(tmp_path):
    rows = numbered(tmp_path / "repo", 30, 30)
    shuffled = rows.shuffle(7, 16)
    orders = []
    for epoch in (0, 1, 0):
        shuffled.set_epoch(epoch)
        orders.append(ids(shuffled))
    first, second, again = orders
    assert first == again == ids(rows.shuffle(7, 16))
    assert sorted(first) == sorted(second) == list(range(60))
    assert len({tuple(order) for order in (first, second, ids(rows), ids(rows.shuffle(8, 16)))}) == 4
    assert len(set(np.diff(first))) > 20


@pytest.mark.parametrize(("group", "buffer_size"), [(40, 40), (2, 1)])
def test_both_the_row_groups_and_the_rows_of_a_buffer_change_places_with_the_epoch(tmp_path, group, buffer_size):
    rows = numbered(tmp_path / "repo", 40, group=group).shuffle(1, buffer_size)
    first = ids(rows)
    rows.set_epoch(1)
    assert first != ids(rows) and first != sorted(first)


def test_rows_that_were_written_together_are_spread_by_the_shuffling(tmp_path):
    order = ids(numbered(tmp_path / "repo", 400, group=10).shuffle(0, 40))
    for start in range(0, 400, 40):
        groups = Counter(number // 10 for number in order[start : start + 40])
        assert len(groups) >= 8


@pytest.mark.parametrize(("seed", "buffer_size"), [(-1, 4), (0, 0)])
def test_a_shuffling_that_means_nothing_is_refused(tmp_path, seed, buffer_size):
    with pytest.raises(ValueError, match="`seed` must be at least 0 and `buffer_size` 1"):
        numbered(tmp_path / "repo", 2).shuffle(seed, buffer_size)


def test_workers_that_live_on_follow_the_epoch(tmp_path):
    rows = numbered(tmp_path / "repo", 20).shuffle(1, 8)
    loader = DataLoader(rows, 2, num_workers=1, persistent_workers=True, collate_fn=ids)
    orders = []
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        orders.append([sum(loader, []), ids(rows)])
    assert orders[0][0] == orders[0][1] != orders[1][0] == orders[1][1]


def test_a_share_of_bad_rows_is_one_of_the_rows_that_a_rank_reads(tmp_path):
    rows = numbered(tmp_path / "repo", 8, bad=(5, 6), max_bad=0.25)
    assert ids(rows.shard(2, 0)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="More than 1 bad rows of 4"):
        ids(rows.shard(2, 1))
