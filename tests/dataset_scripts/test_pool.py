"""The pool of processes: everything arrives in order, and a worker that dies costs one item."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset_scripts.pool import default_workers, map_ordered


ROOT = Path(__file__).resolve().parents[2]


def double(item: int) -> tuple[int, int]:
    return 2 * item, os.getpid()


def double_or_die(item: int) -> int:
    if item in (5, 31):
        os._exit(1)
    if item == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def refuse(item: int) -> int:
    if item == 3:
        raise KeyError(f"item {item}")
    return item


def dead(item: int) -> str:
    return f"{item} died"


def test_results_come_in_order_from_all_cores_and_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(1, 201):
            taken.append(item)
            yield item

    processes, ahead = set(), 4 * (2 * default_workers() + 1)
    for number, (result, process) in enumerate(map_ordered(double, items(), dead, chunk=4), start=1):
        processes.add(process)
        assert result == 2 * number
        assert len(taken) <= number + ahead
    assert number == 200
    assert os.getpid() not in processes and len(processes) <= default_workers()
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_costs_one_item_each_time():
    results = list(map_ordered(double_or_die, range(40), dead, workers=2, chunk=4))
    assert results == [dead(item) if item in (5, 6, 31) else 2 * item for item in range(40)]
    assert multiprocessing.active_children() == []


def test_a_worker_may_die_while_the_caller_is_busy():
    results = map_ordered(double_or_die, range(4, 9), dead, workers=1, chunk=1)
    received = [next(results)]
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
    assert [*received, *results] == [8, "5 died", "6 died", 14, 16]


def test_what_the_function_raises_arrives_and_ends_the_pool():
    results = map_ordered(refuse, range(100), dead, workers=1, chunk=3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="item 3"):
        next(results)
    assert multiprocessing.active_children() == []


def test_leaving_early_leaves_no_process_behind():
    results = map_ordered(double, iter(range(10**9)), dead, workers=1, chunk=1)
    assert next(results)[0] == 0
    assert multiprocessing.active_children()
    results.close()
    assert multiprocessing.active_children() == []


def test_without_workers_everything_happens_here_and_one_by_one():
    items = iter(range(5))
    results = map_ordered(double, items, dead, workers=0)
    assert next(results) == (0, os.getpid())
    assert next(items) == 1
    assert [result for result, _ in results] == [4, 6, 8]


def test_no_items_are_no_results():
    assert list(map_ordered(double, [], dead, workers=1)) == []


def test_as_many_workers_as_there_are_cores_for_this_process():
    assert 1 <= default_workers() <= (os.cpu_count() or 1)
    assert default_workers() == len(os.sched_getaffinity(0))


def test_a_script_that_starts_itself_anew_is_told_so_instead_of_losing_its_items(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dataset_scripts.pool import map_ordered\n"
        "print(list(map_ordered(abs, range(3), str, workers=1)))  # not below `if __name__ == '__main__':`\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode != 0 and ended.stdout == ""
    assert "RuntimeError: Worker processes end before they have begun." in ended.stderr
