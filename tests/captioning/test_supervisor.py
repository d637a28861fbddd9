"""Workers as real processes: one that dies is replaced, one that raises is told, and all end gently when told to."""

import json
import os
import signal
import threading

import pytest

from captioning.feed import SUSPECTS
from captioning.pipeline import job_status
from captioning.work import Interrupted
from tests.captioning.fault_server import FaultServer, Reply, Seen, ok
from tests.captioning.jobs import JobWorld, all_rows, number_of, workers


SLOW = Reply(ok().body, stall=0.2)


# Row 21: a worker that is killed, by chance or by an image.
def test_a_killed_worker_is_replaced_and_repeats_only_what_it_had_under_way(tmp_path):
    killed: list[int] = []

    def route(seen: Seen) -> Reply:
        if not killed and len(server.seen) > 10 and world.kill_worker_with(number := number_of(seen)):
            killed.append(number)
        return SLOW

    with FaultServer(route=route) as server:
        world = JobWorld(tmp_path, server, count=24)
        world.plan()
        end = world.run(tasks=2)
        assert killed and end.deaths == 1
        assert world.states == dict.fromkeys(range(24), "ok") and end.done == {"ok": 24}
        repeated = {number for number, times in world.asked.items() if times > 1}
        assert killed[0] in repeated and len(repeated) <= 2 and max(world.asked.values()) == 2
        assert len(all_rows(world.out)) == 24


def test_an_image_that_kills_its_worker_each_time_fails_alone(tmp_path):
    def route(seen: Seen) -> Reply:
        if number_of(seen) == 5:
            world.kill_worker_with(5)
        return SLOW

    with FaultServer(route=route) as server:
        world = JobWorld(tmp_path, server, count=12, concurrency=2)
        world.plan()
        end = world.run()
        assert world.states == {**dict.fromkeys(range(12), "ok"), 5: "failed"}
        assert end.deaths == 3 and end.done == {"ok": 11, "failed": 1}
        (row,) = [row for row in all_rows(world.out) if row.state == "failed"]
        assert row.error == "3 workers died while they looked at it, the last at nothing else"
        # Each death repeats at most the other one that was under way.
        assert world.asked[5] == 3 and sum(world.asked.values()) <= 3 + 11 + 3
        before = len(server.seen)
        assert world.run().deaths == 0 and len(server.seen) == before
        assert (world.out / SUSPECTS).is_file()


def test_a_gentle_end_stores_what_is_under_way_and_the_rerun_repeats_nothing(tmp_path):
    def route(seen: Seen) -> Reply:
        if len(server.seen) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return SLOW

    with FaultServer(route=route) as server:
        world = JobWorld(tmp_path, server, count=24)
        world.plan()
        with pytest.raises(Interrupted, match="what is done is stored"):
            world.run(tasks=2)
        asked = set(world.asked)
        assert 9 <= len(asked) < 24 and world.states == dict.fromkeys(asked, "ok")
        assert workers(world.out) == {} and not job_status(world.out)["running"]
        outcome = json.loads((world.out / "runs/0001/outcome.json").read_text(encoding="utf-8"))
        assert outcome["error"] == "Interrupted" and outcome["done"] == {"ok": len(asked)}
        world.run_here()
        assert world.states == dict.fromkeys(range(24), "ok") and set(world.asked.values()) == {1}


def test_workers_end_when_the_process_that_watches_them_is_killed(tmp_path):
    reached = threading.Event()

    def route(seen: Seen) -> Reply:
        if len(server.seen) == 6:
            reached.set()
        return SLOW

    with FaultServer(route=route) as server:
        world = JobWorld(tmp_path, server, count=40)
        world.plan()
        run = world.start()
        assert reached.wait(30)
        orphans = list(workers(world.out).values())
        run.kill()  # the supervisor alone
        run.communicate()
        for orphan in orphans:
            orphan.wait(10)
        asked = set(world.asked)
        assert len(orphans) == 1 and len(asked) < 40
        assert world.states == dict.fromkeys(asked, "ok")  # they stored what was under way


def test_a_worker_that_raises_is_told_and_the_others_do_their_share(tmp_path):
    with FaultServer() as server:
        world = JobWorld(tmp_path, server, count=24)
        world.plan()
        damaged = world.out / "rows/00001.jsonl"
        damaged.parent.mkdir()
        damaged.write_text("no row\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"00001\.jsonl, line 1, is damaged: .*Delete the line"):
            job_status(world.out)
        with pytest.raises(ValueError, match=r"00001\.jsonl, line 1, is damaged: .*Delete the line"):
            world.run(tasks=2)
        damaged.write_bytes(b"")
        world.run_here()
        assert world.states == dict.fromkeys(range(24), "ok") and set(world.asked.values()) == {1}
