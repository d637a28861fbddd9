"""Whole jobs with real processes against a real server: nothing is asked twice, whatever happens between."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from captioning.answers import BudgetReached, EndpointDown
from captioning.feed import read_journal
from captioning.pipeline import RunOptions, job_status, run_job
from captioning.store import CaptionRow
from dataset_scripts.writing import BusyError
from tests.captioning.asking import PRICES
from tests.captioning.fault_server import FaultServer, Reply, Seen, error, ok
from tests.captioning.jobs import ROOT, JobWorld, all_rows, kill_group, number_of, put_pictures, workers


CANARY = "sk-canary-9f8e7d6c5b4a"
SLOW = Reply(ok().body, stall=0.1)


def test_two_tasks_share_a_job_and_a_rerun_asks_nothing_and_starts_nothing(tmp_path):
    with FaultServer(then=SLOW) as server:
        world = JobWorld(tmp_path, server, count=24)
        put_pictures(world.images, [3], "sam/images")  # the same picture of another source
        world.plan()
        shown: list[dict[str, int]] = []
        end = run_job(world.out, RunOptions(tasks=2), lambda one: shown.append(dict(one.done)))
        assert end.done == {"ok": 25} and shown[-1] == {"ok": 25}
        assert world.asked == {**dict.fromkeys(range(24), 1), 3: 2}
        assert {row.prompt_id for row in all_rows(world.out) if world.numbers[row.image_sha256] == 3} == {
            "v1/coco",
            "v1/sam",
        }
        shares = [json.loads(path.read_text(encoding="utf-8")) for path in world.out.glob("runs/0001/progress-?.json")]
        assert len(shares) == 2 and all(sum(one["written"]["states"].values()) for one in shares)
        assert len(list(world.out.glob("runs/0001/datatrove/completions/*"))) == 2
        before = time.monotonic()
        again = world.run(tasks=2)
        assert again.done == {"ok": 25} and time.monotonic() - before < 1
        assert len(server.seen) == 25 and not (world.out / "runs/0002").exists()
        assert job_status(world.out)["remaining"] == 0


# Rows 13 and 22: killed at random moments, and resumed with another number of processes.
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_job_killed_at_random_moments_loses_no_answer_and_repeats_only_what_was_under_way(tmp_path, kills):
    rng, count, concurrency = random.Random(kills), 30 * kills, 6
    allowed: Counter[int] = Counter(range(count))
    with FaultServer(then=SLOW) as server:
        world = JobWorld(tmp_path, server, count=count, concurrency=concurrency)
        world.plan()
        for _ in range(kills):
            stored, goal = all_rows(world.out), len(server.seen) + rng.randrange(10)
            runs = set(world.out.glob("runs/*"))
            run = world.start(tasks=2)
            while len(server.seen) < goal and run.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.choice((0.0, 0.03, 0.1)))
            assert run.poll() is None, "The job was over before it was killed: " + run.communicate()[0]
            kill_group(run)
            assert {row.key for row in stored} <= {row.key for row in all_rows(world.out)}
            under_way = [number for new in set(world.out.glob("runs/*")) - runs for number in in_flight(world, new)]
            assert len(under_way) <= concurrency
            allowed.update(under_way)
        world.run(tasks=3)
        assert world.states == dict.fromkeys(range(count), "ok")
        assert set(Counter(row.key for row in all_rows(world.out)).values()) == {1}
        assert not world.asked - allowed, "More was repeated than was under way."
        assert job_status(world.out)["states"] == {"ok": count}


def in_flight(world: JobWorld, run: Path) -> list[int]:
    """Pictures that a run had under way when it was killed, by the journals of its workers."""
    keys = [key for journal in run.glob("asked-*.txt") for key in read_journal(journal)[0]]
    return [world.numbers[key.split("/")[0]] for key in keys]


# Row 12: the same job twice.
def test_a_second_start_of_a_running_job_is_refused(tmp_path):
    refused: list[subprocess.CompletedProcess] = []
    second = "import sys; from tests.captioning.jobs import main; main('run', sys.argv[1], '1')"

    def route(seen: Seen) -> Reply:
        if not refused:
            words = [sys.executable, "-c", second, str(world.out)]
            refused.append(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30))
        return ok()

    with FaultServer(route=route) as server:
        world = JobWorld(tmp_path, server)
        world.plan()
        running: list[bool] = []

        def look(_: object) -> None:
            running.append(job_status(world.out)["running"])
            if len(running) == 1:
                with pytest.raises(BusyError, match="Another process works on"):
                    world.plan()

        run_job(world.out, RunOptions(), look)
        (outcome,) = refused
        assert all(running) and not job_status(world.out)["running"]
        assert outcome.returncode != 0
        assert f"BusyError: Another process works on {world.out}. Wait for it, or stop it." in outcome.stderr
        assert set(world.asked.values()) == {1} and world.states == dict.fromkeys(range(12), "ok")


# Row 10: the budget.
def test_a_budget_of_two_tasks_is_never_overspent_and_a_larger_one_goes_on(tmp_path):
    with FaultServer() as server:  # an answer costs 2
        world = JobWorld(tmp_path, server, count=24, max_tokens=20, **PRICES)
        world.plan(max_cost=21.0)
        with pytest.raises(BudgetReached, match=r"The budget of 21\.0 does for no further request: .*--max-cost"):
            world.run(tasks=2)
        spent = job_status(world.out)["spent"]["cost"]
        assert 0 < spent <= 21 and spent == 2 * len(server.seen) and len(world.states) == len(server.seen)
        world.plan(max_cost=60.0)
        with suppress(BudgetReached):  # each task has its part; what one cannot use the next run divides anew
            world.run(tasks=2)
        world.run()
        assert world.states == dict.fromkeys(range(24), "ok")
        assert set(world.asked.values()) == {1} and job_status(world.out)["spent"]["cost"] == 48


def test_a_budget_that_is_spent_asks_nothing(tmp_path):
    with FaultServer() as server:
        world = JobWorld(tmp_path, server, count=4, max_tokens=20, **PRICES)
        world.plan(max_cost=1.0)
        with pytest.raises(BudgetReached, match=r"The budget of 1\.0 is reached"):
            world.run_here()
        assert not server.seen and all_rows(world.out) == []


# Row 14: another prompt or model in the same folder.
@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 0.5}])
def test_another_model_or_setting_is_a_new_key_and_old_rows_are_kept(tmp_path, change):
    with FaultServer() as server:
        world = JobWorld(tmp_path, server)
        world.plan()
        world.run_here()
        old = all_rows(world.out)
        world.plan(**change)
        assert job_status(world.out)["remaining"] == 12
        world.run_here()
        rows = all_rows(world.out)
        assert set(world.asked.values()) == {2} and len({row.key for row in rows}) == len(rows) == 24
        assert set(map(by_key, old)) <= set(map(by_key, rows))
        status = job_status(world.out)
        assert len(status["variants"]) == 2 and status["states"] == {"ok": 12}
        world.plan()  # back to the first: everything is there
        world.run_here()
        assert len(server.seen) == 24 and job_status(world.out)["remaining"] == 0


def by_key(row: CaptionRow) -> tuple:
    """What tells a row from every other, and what it says."""
    return (*row.key, row.state, row.caption, row.run)


def test_images_that_come_later_are_asked_about_alone(tmp_path):
    with FaultServer() as server:
        world = JobWorld(tmp_path, server)
        world.plan()
        world.run_here()
        put_pictures(world.images, range(12, 15))
        world.plan()
        assert job_status(world.out)["remaining"] == 3
        world.run_here()
        assert world.asked == dict.fromkeys(range(15), 1)


def test_what_failed_is_asked_again_only_when_told(tmp_path):
    with FaultServer(route=lambda seen: error(400, "no") if number_of(seen) == 5 and not mended else ok()) as server:
        mended: list[bool] = []
        world = JobWorld(tmp_path, server)
        world.plan()
        world.run_here()
        assert world.states[5] == "failed" and job_status(world.out)["remaining"] == 0
        assert world.run().done == {"ok": 11, "failed": 1} and len(server.seen) == 12
        mended.append(True)
        world.run_here(again=("failed",))
        assert job_status(world.out)["states"] == {"ok": 12}
        assert world.asked == {**dict.fromkeys(range(12), 1), 5: 2}


def test_an_endpoint_that_is_down_leaves_the_images_for_the_same_command(tmp_path):
    with FaultServer(then=error(503)) as server:
        world = JobWorld(tmp_path, server, max_attempts=2, circuit_failures=3, circuit_seconds=0.05, circuit_trips=2)
        world.plan()
        with pytest.raises(EndpointDown):
            world.run_here()
        assert job_status(world.out)["remaining"] == 12
        server.then = ok()
        world.run_here()
        assert job_status(world.out)["remaining"] == 0 and world.states == dict.fromkeys(range(12), "ok")


def test_an_image_that_waits_is_not_taken_for_work_of_another_process(tmp_path):
    limited = error(429, retry_after="0.01")
    with FaultServer(route=lambda seen: limited if number_of(seen) == 5 else ok()) as server:
        world = JobWorld(tmp_path, server, max_attempts=2)
        world.plan()
        with pytest.raises(EndpointDown, match="1 of 12 images have no answer yet"):
            world.run(tasks=2)
        server.route = None
        world.run_here()
        assert job_status(world.out)["states"] == {"ok": 12}


# Row 11: the key.
def test_the_key_is_in_no_file_and_no_output_of_a_job_also_when_workers_raise(tmp_path):
    with FaultServer(then=error(401, f"Incorrect API key provided: {CANARY}")) as server:
        world = JobWorld(tmp_path, server, api_key_env="CANARY_KEY")
        world.plan()
        said = finished_by(world, 2, CANARY_KEY=CANARY)
        assert "KeyRejected" in said and len(server.seen) <= 4  # no worker goes on with it
        server.then = ok(text := f"My key is {CANARY}.", "stop")
        assert text.encode() in server.then.body
        damaged = world.out / "rows/00001.jsonl"
        damaged.write_text("no row\n", encoding="utf-8")
        said += finished_by(world, 1, CANARY_KEY=CANARY)
        assert "line 1, is damaged" in said
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {CANARY}"}
        files = [path for path in world.out.rglob("*") if path.is_file()]
        assert CANARY not in said and len(files) > 20
        assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
        assert workers(world.out) == {}


def finished_by(world: JobWorld, tasks: int, **environment: str) -> str:
    """What a run says that ends by itself; also at the level of debugging."""
    run = world.start(tasks, OPENAI_LOG="debug", **environment)
    output, _ = run.communicate(timeout=60)
    return output
