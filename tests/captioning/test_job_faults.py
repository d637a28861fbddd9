"""
Faults of an endpoint, one after another, through `sharegpt4v annotate`: rows 1 to 12 and 14 of the fault table.

Each says what the command returns and tells, what the rows hold, what the server was asked, and how the same command
ends later. Rows 12 and 13 are also tested with processes that are killed, in `test_pipeline.py` and its neighbours,
and row 15, batch files, in `test_endpoint_batches.py`: these are a feature of the library and have no command.
"""

import json
import re
import time
from collections import Counter

import pytest

from tests.captioning.asking import PRICES
from tests.captioning.fault_runs import Annotation, command, interrupt, latest, scripted, started, wait_for
from tests.captioning.fault_server import DONE, USAGE, FaultServer, Reply, completion, delta, error, ok, stream
from tests.captioning.jobs import all_rows, number_of


CANARY = "sk-canary-7f3a9c51d2e84b60"
ECHO = f"wrong key {CANARY} in Bearer {CANARY}, asked as https://user:pa55word@proxy.example/v1"
UNTIL = r"until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
GOOD = (1, 14, 15)
LIMITED, REFUSED, UNKNOWN, STALLED, BROKEN = 0, 2, 3, 4, 5
LONG, DECLINED, SILENT, FILTERED, BLOCKED = 6, 7, 8, 9, 10
PAGE, LIST, ODD = 11, 12, 13
SURROGATE = completion("A red \ud83d square.")
SCRIPT = {
    LIMITED: [error(429, retry_after="0.5"), error(429, retry_after="0.5"), ok()],
    REFUSED: [error(400, "no such detail")],
    UNKNOWN: [error(404, "no such route")],
    STALLED: [Reply(ok().body, stall=9), ok()],
    BROKEN: [Reply(ok().body, cut=True), ok()],
    LONG: [ok("A red square and", "length")],
    DECLINED: [ok("I'm sorry, but I can't help with that.")],
    SILENT: [ok("")],
    FILTERED: [ok("A", "content_filter")],
    BLOCKED: [error(400, "blocked", code="content_filter")],
    PAGE: [Reply(b"<html><h1>It works</h1></html>", kind="text/html")],
    LIST: [Reply(b'{"choices": {"0": "A red square."}}')],
    ODD: [ok("A red\0square."), Reply(json.dumps(SURROGATE).encode())],
}
PASSING = [LIMITED, STALLED, BROKEN]
KEPT = {LONG: "truncated", DECLINED: "refused", SILENT: "empty", FILTERED: "filtered", BLOCKED: "filtered"}
FAILED = [REFUSED, UNKNOWN, PAGE, LIST, ODD]


class Story:
    """One job over the faults of single images: the run, the same again, a retry while they last, one when healed."""

    def __init__(self, folder):
        self.asked, self.rows, self.outcomes = [], [], []
        with FaultServer(route=scripted({number: [*replies] for number, replies in SCRIPT.items()})) as server:
            words = ["--read-timeout", 1.5, "--max-attempts", 3, "--circuit-failures", 50]
            self.world = Annotation(folder, server, 16, words)
            for step in (self.world.annotate, self.world.annotate, self.world.retry, self.heal, self.world.annotate):
                self.outcomes.append(step())
                self.asked.append(self.world.asked)
                self.rows.append(self.world.rows)
            self.times = {}
            for seen, number in zip(server.seen, map(number_of, server.seen), strict=True):
                self.times.setdefault(number, []).append(seen.time)

    def heal(self):
        """Ask again about everything that has no caption, at an endpoint that works."""
        self.world.server.route = None
        states = [word for state in {"failed", *KEPT.values()} for word in ("--state", state)]
        return self.world.retry(*states)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return Story(tmp_path_factory.mktemp("story"))


def test_single_images_that_fail_end_no_run_and_are_told_with_what_to_do(story):
    run = story.outcomes[0]
    assert run.code == 0 and "done 16 of 16" in run.errors and "failed 5" in run.errors and "filtered 2" in run.errors
    assert "5 images failed: `retry-failed` asks again, `report` says why." in run.output
    assert [story.rows[0][number].state for number in GOOD] == ["ok"] * 3


def test_the_same_command_asks_about_nothing_that_was_answered(story):
    assert story.outcomes[1].code == 0 and story.asked[1] == story.asked[0]


def test_all_ends_right_when_the_endpoint_works_again(story):
    assert [outcome.code for outcome in story.outcomes] == [0] * 5
    assert {row.state for row in story.rows[3].values()} == {"ok"} and len(story.rows[3]) == 16
    assert "16 ok; 0 to be asked." in story.outcomes[3].output and story.rows[4] == story.rows[3]
    assert all(story.asked[4][number] == 1 for number in GOOD)


def test_row_01_a_rate_limit_is_waited_for_and_its_requests_are_counted(story):
    row, times = story.rows[0][LIMITED], story.times[LIMITED]
    assert (row.state, row.attempts, story.asked[4][LIMITED]) == ("ok", 3, 3)
    assert all(later - earlier >= 0.5 for earlier, later in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("number", [REFUSED, UNKNOWN])
def test_row_04_a_refused_request_is_not_repeated_by_itself(story, number):
    row, (status, message) = story.rows[0][number], [("400", "no such detail"), ("404", "no such route")][number - 2]
    assert (row.state, row.attempts) == ("failed", 1) and f"HTTP {status}" in row.error and message in row.error
    assert [asked[number] for asked in story.asked] == [1, 1, 2, 3, 3]  # the two retries are asked for


def test_row_05_a_read_that_stalls_times_out_and_is_tried_again(story):
    row, times = story.rows[0][STALLED], story.times[STALLED]
    assert (row.state, row.attempts, row.caption) == ("ok", 2, "A red square.") and 1.5 <= times[1] - times[0] < 8


def test_row_06_an_answer_that_breaks_off_is_tried_again(story):
    row = story.rows[0][BROKEN]
    assert (row.state, row.attempts, row.caption) == ("ok", 2, "A red square.")


def test_row_07_an_answer_of_full_length_is_truncated_and_not_ok(story):
    row = story.rows[0][LONG]
    assert (row.state, row.caption, row.finish_reason) == ("truncated", "A red square and", "length")
    assert "token bound" in row.error


@pytest.mark.parametrize("number", [DECLINED, SILENT, FILTERED, BLOCKED])
def test_row_08_what_is_declined_is_kept_as_it_came_and_not_asked_again(story, number):
    row = story.rows[0][number]
    assert (row.state, row.attempts) == (KEPT[number], 1) and row.raw and row.error
    assert [asked[number] for asked in story.asked[:3]] == [1, 1, 1]  # `retry-failed` leaves it, too
    if number == DECLINED:
        assert row.raw["choices"][0]["message"]["content"].startswith("I'm sorry")


@pytest.mark.parametrize("number", [PAGE, LIST, ODD])
def test_row_09_an_answer_of_a_wrong_shape_fails_its_image_alone(story, number):
    row, again = story.rows[0][number], story.rows[2][number]
    reasons = {PAGE: "is no JSON", LIST: "`choices` is no list", ODD: "NUL characters, lone surrogates"}
    assert (row.state, row.caption) == ("failed", "") and reasons[number] in row.error and row.raw
    assert (again.state, again.caption) == ("failed", "") and reasons[number] in again.error
    assert "\0" not in json.dumps(row.raw)


def test_rows_05_and_06_of_streams(tmp_path):
    words = [delta("A red "), delta("squ")]
    whole = stream(*words, delta("are."), delta(None, "stop"), USAGE, DONE)
    cut, endless = stream(*words, DONE), stream(*[delta("a ")] * 100, gap=0.1)
    script = {1: [cut], 2: [cut, whole], 3: [stream(*words, stall=9), whole], 4: [endless]}
    options = ["--stream", "--read-timeout", 1.5, "--deadline", 4, "--max-attempts", 2]
    with FaultServer(route=scripted(script, then=whole)) as server:
        world = Annotation(tmp_path, server, 6, options)
        run, rows, asked = world.annotate(), world.rows, world.asked
        assert run.code == 8 and "1 of 6 images have no answer yet" in run.errors
        assert "Run the same command again" in run.errors
        assert {number: row.state for number, row in rows.items()} == {
            0: "ok", 1: "failed", 2: "ok", 3: "ok", 4: "pending", 5: "ok",
        }  # fmt: skip
        assert rows[1].caption == "" and "without a finish reason" in rows[1].error
        assert rows[1].raw["choices"][0]["message"]["content"] == "A red squ"
        assert [rows[number].attempts for number in (0, 1, 2, 3)] == [1, 2, 2, 2]
        assert "deadline" in rows[4].error and rows[4].caption == "" and 3 < rows[4].seconds < 12
        server.route, server.then = None, whole
        again = world.retry()  # what is pending is asked, too
        assert again.code == 0 and "6 ok; 0 to be asked." in again.output and world.asked == asked + Counter([1, 4])
        assert {row.caption for row in world.rows.values()} == {"A red square."}


def test_row_02_a_pause_beyond_the_bound_ends_the_run_at_once_and_says_until_when(tmp_path):
    with FaultServer(ok(), then=error(429, retry_after="600")) as server:
        world = Annotation(tmp_path, server, 6, ["--concurrency", 1])
        run = world.annotate("--max-pause", 60)
        assert run.code == 8 and re.search(rf"asks for a pause of 600 s, {UNTIL}", run.errors)
        assert "run the same command again later" in run.errors
        assert len(server.seen) == 2 and sorted(world.states.values()) == ["ok", "pending"]
        server.then = ok()
        again = world.annotate("--max-pause", 60)
    assert again.code == 0 and set(world.states.values()) == {"ok"} and sorted(world.asked.values()) == [1] * 5 + [2]


def test_rows_02_and_12_a_paused_run_says_until_when_sends_nothing_and_has_the_folder_to_itself(tmp_path):
    with FaultServer(error(429, retry_after="600")) as server:
        world = Annotation(tmp_path, server, 8, ["--concurrency", 1])
        with started(*world.command_of()) as process:
            wait_for(lambda: "paused until" in world.note)
            before = len(server.seen)
            second = world.annotate()
            time.sleep(1.5)
            assert (
                second.code == 5 and f"Another process works on {world.out}. Wait for it, or stop it." in second.errors
            )
            assert world.retry().code == 5 and world.status()["running"] and len(server.seen) == before == 1
            code, output, errors = interrupt(process)
            assert code == 130 and re.search(rf"asks to wait 600\.0 s: paused {UNTIL}", errors) and output == ""
            assert "Run the same command again to continue." in errors and len(server.seen) == 1
        again = world.annotate()
    assert again.code == 0 and set(world.states.values()) == {"ok"} and sorted(world.asked.values()) == [1] * 7 + [2]


def test_row_03_a_storm_of_errors_ends_the_run_with_the_rest_pending(tmp_path):
    options = ["--max-attempts", 3, "--circuit-failures", 4, "--circuit-trips", 2, "--circuit-seconds", 0.5]
    with FaultServer(ok(), ok(), then=error(503, "overloaded")) as server:
        world = Annotation(tmp_path, server, 20, options)
        run = world.annotate()
        stored = world.states
        assert run.code == 8 and "HTTP 503" in run.errors and "overloaded" in run.errors
        assert "run the same command again later" in run.errors
        assert Counter(stored.values())["ok"] == 2 and set(stored.values()) == {"ok", "pending"}
        assert len(server.seen) <= 2 + 4 + 4 + 2  # until the circuit opens, what was under way then, and the probe
        server.then = ok()
        asked = world.asked
        again = world.annotate()
    assert again.code == 0 and world.states == dict.fromkeys(range(20), "ok")
    assert world.asked - asked == Counter(number for number in range(20) if stored.get(number) != "ok")


def test_row_04_a_rejected_key_ends_the_run_before_more_is_sent(tmp_path):
    with FaultServer(then=error(401, "no such key")) as server:
        world = Annotation(tmp_path, server, 12, ["--concurrency", 3])
        run = world.annotate("--tasks", 2)
        assert run.code == 7 and "refuses the key" in run.errors and "no such key" in run.errors
        assert "Check the key, then run again." in run.errors
        assert 1 <= len(server.seen) <= 3 and world.states == {}
        server.then = ok()
        again = world.annotate()
    assert again.code == 0 and world.states == dict.fromkeys(range(12), "ok") and len(server.seen) <= 12 + 3


def test_row_10_the_budget_ends_the_run_before_it_is_exceeded_and_a_larger_one_goes_on(tmp_path):
    prices = [word for name, value in PRICES.items() for word in (f"--{name.replace('_', '-')}", value)]
    options = [*prices, "--max-tokens", 20, "--tokens-per-image", 50]
    with FaultServer() as server:
        world = Annotation(tmp_path, server, 12, options)
        run = world.annotate("--max-cost", 12)
        done, spent = len(server.seen), world.status()["spent"]["cost"]
        assert run.code == 6 and f"The budget of 12.0 does for no further request: {spent:.4f} is spent" in run.errors
        assert "Raise `--max-cost` to go on." in run.errors and spent == 2 * done <= 12 and done >= 3
        again = world.annotate("--max-cost", 100)
    assert again.code == 0 and world.asked == Counter(range(12)) and world.states == dict.fromkeys(range(12), "ok")
    assert world.status()["spent"]["cost"] == 24


def files_with(folder, secret):
    """Files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_row_11_the_key_is_in_nothing_that_a_run_writes(tmp_path, monkeypatch):
    for name, value in {"OPENAI_LOG": "debug", "LOGURU_LEVEL": "TRACE", "CANARY_KEY": CANARY}.items():
        monkeypatch.setenv(name, value)
    script = {
        0: [error(400, ECHO)], 1: [Reply(ECHO.encode(), kind="text/html")], 2: [ok(f"A sign with {CANARY}.")],
        3: [error(500, ECHO), error(503, ECHO), ok()], 4: [error(429, ECHO, retry_after="0.1"), ok()],
        5: [Reply(error(403, ECHO).body, 403, stall=1)],
    }  # fmt: skip
    outcomes = []
    with FaultServer(route=scripted(script)) as server:
        world = Annotation(tmp_path, server, 8, ["--api-key-env", "CANARY_KEY", "--concurrency", 8])
        outcomes.append(world.annotate())
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {CANARY}"}
        monkeypatch.delenv("CANARY_KEY")
        outcomes.append(world.annotate("--max-tokens", 99))
        assert outcomes[-1].code == 1 and "no key in the environment variable CANARY_KEY" in outcomes[-1].errors
        (tmp_path / "keys").write_text(f'export CANARY_KEY="{CANARY}"\n', encoding="utf-8")
        options = ["--env-file", tmp_path / "keys", "--max-tokens", 99]  # a new key of every row
        sabotaged = next(world.out.glob("rows/*.lock"))
        sabotaged.unlink()
        sabotaged.mkdir()
        server.route = scripted({}, then=error(500, ECHO))
        outcomes.append(world.annotate(*options, "--max-attempts", 1, "--concurrency", 1))
        server.route = None
        sabotaged.rmdir()
        outcomes.append(world.annotate(*options))
    assert [outcome.code for outcome in outcomes] == [7, 1, 4, 0]
    assert "cannot be written" in outcomes[2].errors and "Traceback" in "".join(
        path.read_text(encoding="utf-8") for path in world.out.glob("runs/*/worker-0.log")
    )
    outcomes += [command("annotate", *words, world.out) for words in (["status"], ["report", "--no-similar"])]
    said = "".join(outcome.output + outcome.errors for outcome in outcomes)
    for secret in (CANARY, CANARY[:12], "pa55word"):
        assert files_with(world.out, secret) == [] and secret not in said
    assert "A sign with [removed]" in "".join(path.read_text() for path in world.out.glob("rows/*.jsonl"))


def test_row_14_another_prompt_asks_anew_keeps_what_is_there_and_is_told(tmp_path):
    with FaultServer() as server:
        world = Annotation(tmp_path, server, 4)
        assert world.annotate().code == 0
        before = {row.key: row for row in all_rows(world.out)}
        server.then = ok("A blue circle.")
        other = world.annotate("--aesthetic-share", 1)
        assert other.code == 0 and world.asked == Counter({number: 2 for number in range(4)})
        assert "Captions of 2 prompts, models or settings are in this folder" in other.output
        rows = all_rows(world.out)
        assert before.items() <= {row.key: row for row in rows}.items() and len({row.key for row in rows}) == 8
        assert {row.caption for row in latest(world.out).values()} == {"A blue circle."}
        assert len(world.status()["variants"]) == 2
        assert world.annotate().code == 0 and len(server.seen) == 8  # back to the first prompt: all is there
        report = command("annotate", "report", world.out, "--no-similar")
    assert report.code == 0 and "are in this folder, too" in (world.out / "report.md").read_text(encoding="utf-8")
