"""What workers are given: everything once, whoever dies; and an image that ends its worker is found out."""

import math
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

import pytest

from captioning.feed import Feed, Work, read_journal, suspect
from captioning.pipeline import key_of
from captioning.plan import FACTS, PLAN, make_plan, read_facts, read_plan
from captioning.store import finished
from dataset_scripts.images import ImageRoots
from tests.captioning.jobs import ROOT, all_rows, done_by, endpoint_job, put_pictures, states_of


JOB = endpoint_job()
COUNT = 70  # more than the most that are under way together
BLOCKED = 0.02  # seconds without a new request after which a worker goes on with what it has


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Folders of planned jobs on the same pictures, by their number of shards."""
    folder = tmp_path_factory.mktemp("plans")
    roots = ImageRoots([put_pictures(folder / "images", range(COUNT))])
    for shards in (1, 5, 16):
        make_plan(folder / str(shards), roots, shards=shards)
    return folder


@pytest.fixture
def new_job(plans, tmp_path):
    """A function that gives the folder of a new job with so many shards."""

    def copy(shards: int, name: str = "job") -> Path:
        out = tmp_path / name
        out.mkdir()
        for file in (PLAN, FACTS):
            shutil.copy(plans / str(shards) / file, out / file)
        return out

    return copy


def all_keys(out: Path) -> list[str]:
    """Key of every request of a job."""
    keys = (key_of(JOB, one.source, one.sha256) for one in read_plan(out))
    return sorted(f"{key.image}/{key.prompt[:12]}" for key in keys)


# Everything once.
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_given_once_however_workers_take_turns_and_end(new_job, workers, seed):
    rng = random.Random(f"{workers}/{seed}")
    out = new_job(rng.choice((1, 5, 16)))
    answered, lost = Counter(), Counter()
    feeds: dict[int, tuple[Feed, object, list[str]]] = {}
    while len(answered) < COUNT:
        rank = rng.randrange(workers)
        if rank not in feeds:
            feed = Feed(out, JOB, rank, workers, run="0001", together=4)
            feeds[rank] = feed, iter(feed), []
        feed, works, under_way = feeds[rank]
        action = rng.random()
        if action < 0.02:  # it ends here, with what it has under way
            lost.update(under_way)
            feed.close()
            del feeds[rank]
        elif under_way and (action < 0.5 or len(under_way) == 4):
            key = under_way.pop(rng.randrange(len(under_way)))
            feed.answer(key, "ok")
            answered[key] += 1
        elif work := next(works, None):
            under_way.append(work.key)
        elif not under_way:
            feed.close()
            del feeds[rank]
    for feed, works, _ in feeds.values():
        assert next(works, None) is None
        feed.close()
    assert sorted(answered) == all_keys(out) and set(answered.values()) == {1}
    assert len(all_rows(out)) == COUNT
    assert lost.keys() <= answered.keys()


def test_all_shards_are_finished_when_all_is_answered(new_job):
    out = new_job(16)
    feeds = [Feed(out, JOB, rank, 2) for rank in range(2)]
    for feed in feeds:
        done_by(feed, iter(feed))
    digest = read_facts(out)["digest"]
    assert all(finished(out, number, JOB, digest) for number in range(16))
    again = Feed(out, JOB)
    assert done_by(again, iter(again)) == [] and len(all_rows(out)) == COUNT


def test_every_request_is_stored_once_by_several_processes_that_are_killed(new_job):
    out, said, deaths = new_job(16), Counter(), 0
    for ends in ((3, 7, 12), (-1, -1)):  # after so many requests; or never
        commands = [
            [sys.executable, "-m", "tests.captioning.jobs", "feed", out, str(rank), str(len(ends)), "0001", str(end)]
            for rank, end in enumerate(ends)
        ]
        processes = [subprocess.Popen(one, cwd=ROOT, stdout=subprocess.PIPE, text=True) for one in commands]
        for process in processes:
            said.update(process.communicate(timeout=60)[0].split())
            deaths += process.returncode != 0
    assert deaths == 3 and sorted(said) == all_keys(out)
    assert sum(said.values()) <= COUNT + deaths  # one was under way at each death
    assert set(Counter(row.key for row in all_rows(out)).values()) == {1} and len(all_rows(out)) == COUNT


def test_a_worker_begins_with_shards_of_its_own(new_job):
    out = new_job(16)
    shards = {}
    for number in range(16):
        for one in read_plan(out, number):
            shards[one.sha256] = number
    for rank in range(3):
        feed = Feed(out, JOB, rank, 3)
        first = next(iter(feed))
        assert shards[first.planned.sha256] % 3 == rank
        feed.close()


# A gentle end, and requests that were never made.
def test_a_feed_that_is_told_to_stop_gives_nothing_more_and_takes_what_is_under_way(new_job):
    out = new_job(1)
    feed = Feed(out, JOB)
    works = iter(feed)
    first, second = next(works), next(works)
    feed.answer(first.key, "ok")
    feed.stop(interrupted=True)
    assert next(works, None) is None and feed.interrupted
    feed.answer(second.key, "ok")
    feed.close()
    assert len(all_rows(out)) == 2 and finished(out, 0, JOB, read_facts(out)["digest"]) is None
    rest = Feed(out, JOB)
    assert len(done_by(rest, iter(rest))) == COUNT - 2


def test_stopping_wakes_a_thread_that_waits_for_suspects(new_job):
    out = new_job(1)
    suspect(out, all_keys(out)[:1])
    feed = Feed(out, JOB)
    given: list[Work] = []
    reader = threading.Thread(target=lambda: given.extend(feed))
    reader.start()
    while len(given) < 1:
        reader.join(0.01)
    feed.stop()
    reader.join(10)
    assert not reader.is_alive() and len(given) <= COUNT - 1
    feed.close()


def test_a_request_that_was_never_made_is_given_again_by_the_next_run(new_job):
    out = new_job(1)
    feed = Feed(out, JOB)
    works = iter(feed)
    unasked = next(works).key
    feed.put_back(unasked)
    assert len(done_by(feed, works)) == COUNT - 1
    assert finished(out, 0, JOB, read_facts(out)["digest"]) is None
    rest = Feed(out, JOB)
    assert done_by(rest, iter(rest)) == [unasked]
    assert finished(out, 0, JOB, read_facts(out)["digest"]) is not None


@pytest.mark.parametrize("state", ["failed", "bad_image", "refused"])
def test_a_state_is_asked_again_only_when_told_and_once_by_all_workers_of_a_run(new_job, state):
    out = new_job(5)
    feed = Feed(out, JOB, run="0001")
    for number, work in enumerate(feed):
        feed.answer(work.key, state if number < 6 else "ok")
    feed.close()
    untold = Feed(out, JOB, run="0002")
    assert done_by(untold, iter(untold)) == []
    given = Counter()
    for rank in range(3):
        feed = Feed(out, JOB, rank, 3, run="0003", again=(state,))
        for work in feed:
            given[work.key] += 1
            feed.answer(work.key, state)  # once more without success
        feed.close()
    assert len(given) == 6 and set(given.values()) == {1}
    assert Counter(states_of(out).values()) == {state: 6, "ok": COUNT - 6}


def test_an_image_that_waits_for_better_days_is_asked_again(new_job):
    out = new_job(1)
    feed = Feed(out, JOB, run="0001")
    for number, work in enumerate(feed):
        feed.answer(work.key, "pending" if number == 3 else "ok")
    feed.close()
    assert finished(out, 0, JOB, read_facts(out)["digest"]) is None
    feed = Feed(out, JOB, run="0002")
    assert len(done_by(feed, iter(feed))) == 1 and set(states_of(out).values()) == {"ok"}


# Images that end the worker that looks at them.
class Died(Exception):
    """The process of a worker is gone."""


class Worker:
    """
    A worker that has several requests under way and dies when it looks at a poisoned one.

    It reads requests in a thread of its own, as a process of the pipeline does.
    """

    def __init__(self, out: Path, poison: set[str], together: int, rank: int = 0, world: int = 1):
        self.out, self.poison, self.together = out, poison, together
        self.journal = out / f"asked-{rank}.txt"
        self.feed = Feed(out, JOB, rank, world, run="0001", together=together, journal=self.journal)
        self.works, self.under_way = iter(self.feed), list[str]()
        self.reader = ThreadPoolExecutor(1)
        self.reading: Future | None = None

    def look(self) -> bool:
        """Read what there is, then look at one request; whether there was one."""
        while len(self.under_way) < self.together:
            self.reading = self.reading or self.reader.submit(next, self.works, None)
            if self.under_way and not wait_for([self.reading], BLOCKED).done:
                break
            work, self.reading = self.reading.result(), None
            if work is None:
                break
            self.under_way.append(work.key)
        if not self.under_way:
            return False
        key = self.under_way.pop(0)
        if key in self.poison:
            raise Died
        self.feed.answer(key, "ok")
        return True

    def end(self) -> list[str]:
        """Let go of everything, as the end of a process does; gives what it had under way by its journal."""
        keys, _ = read_journal(self.journal)
        self.feed.close()
        self.reader.shutdown()
        return keys


def deaths_of(out: Path, poison: set[str], together: int) -> int:
    """Let one worker after the other do the job; gives how many died."""
    for deaths in range(100):
        worker = Worker(out, poison, together)
        try:
            while worker.look():
                continue
        except Died:
            suspect(out, worker.end())
            continue
        worker.end()
        return deaths
    raise AssertionError("The workers die for ever.")


def failed(out: Path) -> set[str]:
    """Requests that have failed."""
    keys = {key.split("/")[0]: key for key in all_keys(out)}
    return {keys[sha256] for sha256, state in states_of(out).items() if state != "ok"}


@pytest.mark.parametrize("together", [1, 2, 8, 64])
@pytest.mark.parametrize("shards", [1, 5])
def test_an_image_that_ends_its_worker_is_found_out_and_the_others_have_their_captions(new_job, together, shards):
    out = new_job(shards)
    poison = {all_keys(out)[COUNT // 2]}
    deaths = deaths_of(out, poison, together)
    assert failed(out) == poison and len(states_of(out)) == COUNT
    assert 3 <= deaths <= math.log2(together) + 3
    (row,) = [row for row in all_rows(out) if row.state == "failed"]
    assert row.error == f"{deaths} workers died while they looked at it, the last at nothing else"
    assert len(all_rows(out)) == COUNT


@pytest.mark.parametrize("together", [2, 8])
def test_several_images_that_end_their_workers_are_all_found_out(new_job, together):
    out = new_job(5)
    poison = set(random.Random(together).sample(all_keys(out), 3))
    assert deaths_of(out, poison, together) <= 3 * (math.log2(together) + 3)
    assert failed(out) == poison and len(states_of(out)) == COUNT


def test_workers_that_started_before_the_deaths_blame_no_other_image(new_job):
    out = new_job(1)
    poison = {all_keys(out)[3]}
    # All wait for the only shard; who gets it looks at the same images as the one that has just died.
    queue = [Worker(out, poison, 4, rank, 6) for rank in range(6)]
    while queue:
        worker = queue.pop(0)
        try:
            while worker.look():
                continue
        except Died:
            suspect(out, worker.end())
        else:
            worker.end()
    deaths_of(out, poison, 4)
    assert failed(out) == poison and len(states_of(out)) == COUNT


def test_a_shard_that_is_taken_before_a_death_is_noted_blames_no_other_image(new_job):
    out = new_job(1)
    poison = {all_keys(out)[3]}
    late: list[list[str]] = []
    for _ in range(5):  # each takes the shard the moment that the one before lets go of it
        worker = Worker(out, poison, 4)
        try:
            while worker.look():
                continue
        except Died:
            late.append(worker.end())
    for keys in late:
        suspect(out, keys)
    deaths_of(out, poison, 4)
    assert failed(out) == poison and len(states_of(out)) == COUNT


def test_a_journal_lists_what_is_under_way_and_what_was_paid(new_job, tmp_path):
    feed = Feed(new_job(1), JOB, journal=tmp_path / "journal")
    works = iter(feed)
    keys = [next(works).key for _ in range(5)]
    feed.answer(keys[1], "ok", cost=0.25)
    feed.answer(keys[3], "failed", cost=0.5)
    feed.put_back(keys[4])
    assert read_journal(tmp_path / "journal") == ([keys[0], keys[2]], 0.75)
    feed.close()
    assert read_journal(tmp_path / "nothing") == ([], 0.0)
