"""Judges over real HTTP: transcripts, caches, resumption, and figures that are withheld."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluation import llava_bench, mmbench, mmvet
from evaluation.judge import JudgeConfig, judge
from evaluation.judge_transcript import Transcript
from tests.captioning.fault_server import FaultServer, Reply, error
from tests.evaluation.judge_world import (
    KEY_ENV,
    MODEL,
    config_of,
    judged,
    lines,
    llava_items,
    mmvet_items,
    reply,
)


ROOT = Path(__file__).resolve().parents[2]


def half(seen):
    return reply("0.5")


def test_grades_become_figures(tmp_path):
    items = mmvet_items(6)
    verdicts, seen = judged(half, items, tmp_path / "judge.jsonl")
    result = verdicts.score(mmvet, items)
    assert result.headline == {"total": 50.0, "std": 0.0, "runs": "[50.0]"}
    assert result.breakdown["judge"]["judged"] == "6 of 6"
    assert result.breakdown["judge"]["models"] == {MODEL: 6}
    assert verdicts.complete and verdicts.flags == []
    assert len(seen) == verdicts.requests == 6
    body = seen[0].body
    assert {name: body[name] for name in ("model", "temperature", "max_tokens")} == {
        "model": MODEL, "temperature": 0.0, "max_tokens": 3,
    }  # fmt: skip
    assert body["messages"][0]["content"].endswith(" | ")


def test_the_transcript_says_who_judged_what_when_and_how(tmp_path):
    judged(lambda seen: reply("0.5", "judge-1-2023"), mmvet_items(1), tmp_path / "judge.jsonl")
    (line,) = lines(tmp_path / "judge.jsonl")
    assert line["judge"] == "judge-1-2023"
    assert line["request"]["model"] == MODEL
    assert (line["benchmark"], line["id"], line["run"], line["attempt"]) == ("mmvet", "v1_0", 0, 0)
    assert (line["content"], line["parsed"]) == ("0.5", 0.5)
    assert len(line["prompt_sha256"]) == len(line["response_sha256"]) == len(line["request"]["sent_sha256"]) == 64
    assert line["date"].endswith("+00:00")


def test_a_rerun_asks_nothing(tmp_path):
    items = mmvet_items(4)
    first, _ = judged(half, items, tmp_path / "judge.jsonl")
    before = (tmp_path / "judge.jsonl").read_bytes()
    second, seen = judged(half, items, tmp_path / "judge.jsonl")
    assert seen == [] and second.fields == first.fields
    assert (tmp_path / "judge.jsonl").read_bytes() == before


def test_stored_replies_are_scored_without_an_endpoint_or_a_key(tmp_path):
    items = mmvet_items(4)
    first, _ = judged(half, items, tmp_path / "judge.jsonl")
    config = JudgeConfig(model=MODEL, base_url="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_VARIABLE")
    verdicts = judge("mmvet", items, config, tmp_path / "judge.jsonl", ask=False)
    assert verdicts.score(mmvet, items) == first.score(mmvet, items)


def test_only_a_changed_answer_is_asked_again(tmp_path):
    items = mmvet_items(4)
    judged(half, items, tmp_path / "judge.jsonl")
    items[2] = {**items[2], "response": "something else"}
    verdicts, seen = judged(half, items, tmp_path / "judge.jsonl")
    assert len(seen) == 1 and "something else" in seen[0].body["messages"][0]["content"]
    assert verdicts.complete


def test_several_runs_are_averaged_as_officially(tmp_path):
    grades = iter(["0.0", "1.0", "0.5"])
    items = mmvet_items(1)
    verdicts, _ = judged(lambda seen: reply(next(grades)), items, tmp_path / "judge.jsonl", runs=3, concurrency=1)
    assert verdicts.score(mmvet, items).headline == {"total": 50.0, "std": 40.8, "runs": "[0.0, 100.0, 50.0]"}
    one, seen = judged(half, items, tmp_path / "judge.jsonl")
    assert seen == [] and one.total == 1


def test_a_reply_that_is_no_grade_is_asked_again_as_officially(tmp_path):
    def route(seen):
        return reply("0.3" if seen.body["temperature"] == 0.5 else "Hm.")

    verdicts, seen = judged(route, mmvet_items(1), tmp_path / "judge.jsonl")
    assert [one.body["temperature"] for one in seen] == [0.0, 0.0, 0.5]
    assert [one.body["messages"][0]["content"].endswith("(digit): ") for one in seen] == [False, True, True]
    assert verdicts.fields[0]["grades"] == [0.3]
    assert [line["parsed"] for line in lines(tmp_path / "judge.jsonl")] == [None, None, 0.3]


def test_a_judge_that_talks_nonsense_is_flagged_and_carries_no_figure(tmp_path):
    items = mmvet_items(3)
    verdicts, seen = judged(lambda seen: reply("banana"), items, tmp_path / "judge.jsonl")
    assert len(seen) == 18
    assert (verdicts.judged, verdicts.unparsed) == (3, 3)
    result = verdicts.score(mmvet, items)
    assert result.headline == {"total": None, "std": None, "runs": None}
    assert result.breakdown["judge"]["flags"] == [
        "3 of 3 verdicts could not be read from replies, too many for a figure"
    ]
    assert verdicts.score(mmvet, items, allow_partial=True).headline["total"] == 0.0


def test_a_few_unread_replies_are_counted_and_stay_in_the_figure(tmp_path):
    def route(seen):
        return reply("?" if "answer 3 " in seen.body["messages"][0]["content"] else "1.0")

    items = mmvet_items(20)
    verdicts, _ = judged(route, items, tmp_path / "judge.jsonl")
    result = verdicts.score(mmvet, items)
    assert result.headline["total"] == 95.0
    assert result.counts["judge_unparsed"] == 1
    assert verdicts.flags == ["1 of 20 verdicts could not be read from replies"]


def test_a_refusal_without_content_is_a_reply_that_cannot_be_read(tmp_path):
    verdicts, _ = judged(lambda seen: reply(None), llava_items(1), tmp_path / "judge.jsonl", benchmark="llava_bench")
    assert verdicts.fields[0]["tuple"] == [-1.0, -1.0]


def test_a_judge_that_is_down_leaves_no_figure_and_is_asked_again_later(tmp_path):
    items = mmvet_items(30)
    verdicts, seen = judged(lambda seen: error(503), items, tmp_path / "judge.jsonl", concurrency=2)
    assert verdicts.judged == 0
    assert len(seen) <= 10  # it gives up soon
    result = verdicts.score(mmvet, items)
    assert result.headline["total"] is None and result.counts["to_judge"] == 30
    assert verdicts.flags == ["0 of 30 judged: the endpoint answers with HTTP 503"]
    later, seen = judged(half, items, tmp_path / "judge.jsonl")
    assert later.complete and len(seen) == 30


def test_nobody_at_the_address_is_told(tmp_path):
    with FaultServer() as server:
        address = server.url
    verdicts = judge("mmvet", mmvet_items(2), config_of(address, attempts=1), tmp_path / "judge.jsonl")
    assert verdicts.flags == ["0 of 2 judged: the endpoint cannot be reached"]


def test_half_a_judgement_says_how_much_it_is(tmp_path):
    def route(seen):
        return error(400) if "answer 1 " in seen.body["messages"][0]["content"] else reply("1.0")

    items = mmvet_items(4)
    verdicts, _ = judged(route, items, tmp_path / "judge.jsonl")
    result = verdicts.score(mmvet, items)
    assert result.headline["total"] is None
    assert set(result.breakdown) == {"judge"}
    assert result.breakdown["judge"]["judged"] == "3 of 4"
    partial = verdicts.score(mmvet, items, allow_partial=True)
    assert partial.headline["total"] == 100.0
    assert partial.breakdown["judge"]["judged"] == "3 of 4"


def test_an_answer_that_lacks_a_run_has_no_grades(tmp_path):
    replies = [reply("1.0"), error(400)]
    items = mmvet_items(1)
    verdicts, _ = judged(lambda seen: replies.pop(0), items, tmp_path / "judge.jsonl", runs=2, concurrency=1)
    assert (verdicts.judged, verdicts.total, verdicts.fields) == (1, 2, {})
    assert verdicts.score(mmvet, items, allow_partial=True).headline["total"] is None


def test_a_passing_fault_is_tried_again(tmp_path):
    faults = [error(500), error(429, retry_after="0"), Reply(b"<html>", kind="text/html"), Reply(b"{"), Reply(b"{}")]

    def route(seen):
        return faults.pop(0) if faults else reply("1.0")

    verdicts, seen = judged(route, mmvet_items(1), tmp_path / "judge.jsonl", attempts=6)
    assert verdicts.complete and len(seen) == 6


@pytest.mark.parametrize("status, code", [(401, None), (404, None), (429, "insufficient_quota")])
def test_a_refusal_of_all_requests_is_not_tried_again(tmp_path, status, code):
    verdicts, seen = judged(
        lambda seen: error(status, code=code), mmvet_items(9), tmp_path / "judge.jsonl", concurrency=1
    )
    assert len(seen) == 1
    assert verdicts.flags == [f"0 of 9 judged: the endpoint answers with HTTP {status}"]


def test_a_judge_that_changed_between_runs_is_flagged_and_carries_no_figure(tmp_path):
    items = mmvet_items(4)
    judged(lambda seen: reply("1.0", "judge-1-june"), items[:2], tmp_path / "judge.jsonl")
    verdicts, seen = judged(lambda seen: reply("0.0", "judge-1-july"), items, tmp_path / "judge.jsonl")
    assert len(seen) == 2
    assert verdicts.models == {"judge-1-july": 2, "judge-1-june": 2}
    assert verdicts.score(mmvet, items).headline["total"] is None
    assert "the judge changed: judge-1-july (2), judge-1-june (2)" in verdicts.flags[0]


def test_the_rest_can_be_asked_of_one_judge_by_its_own_name(tmp_path):
    items = mmvet_items(4)
    judged(lambda seen: reply("1.0", "judge-1-june"), items[:2], tmp_path / "judge.jsonl")
    judged(lambda seen: reply("0.0", "judge-1-july"), items, tmp_path / "judge.jsonl")
    verdicts, seen = judged(
        lambda seen: reply("0.5", "judge-1-july"), items, tmp_path / "judge.jsonl", model="judge-1-july"
    )
    assert len(seen) == 2
    assert verdicts.complete
    assert verdicts.score(mmvet, items).headline["total"] == 25.0


def test_another_judge_is_asked_anew(tmp_path):
    items = mmvet_items(3)
    judged(half, items, tmp_path / "judge.jsonl")
    verdicts, seen = judged(lambda seen: reply("1.0", "judge-2"), items, tmp_path / "judge.jsonl", model="judge-2")
    assert len(seen) == 3
    assert verdicts.score(mmvet, items).headline["total"] == 100.0
    assert verdicts.flags == ["replies by other judges do not count: judge-1 (3)"]


def test_ratings_become_figures(tmp_path):
    items = llava_items(3)
    verdicts, seen = judged(lambda seen: reply("8 6\nWell."), items, tmp_path / "judge.jsonl", benchmark="llava_bench")
    assert verdicts.score(llava_bench, items).headline == {"relative": 75.0, "gpt4": 80.0, "model": 60.0}
    assert verdicts.fields[0]["judge"] == {"model": MODEL, "content": ["8 6\nWell."]}
    assert (seen[0].body["temperature"], seen[0].body["max_tokens"]) == (0.2, 1024)


def test_a_judge_reads_what_mmbenchs_rule_cannot(tmp_path):
    row = {"question": "Which animal?", "A": "cat", "B": "dog", "answer": "A"}
    items = [{**row, "index": 1, "response": "A"}, {**row, "index": 2, "response": "a kitten"}]
    verdicts, seen = judged(lambda seen: reply("A"), items, tmp_path / "judge.jsonl", benchmark="mmbench")
    assert len(seen) == 1
    result = verdicts.score(mmbench, items)
    assert result.headline == {"Overall": 1.0}
    assert result.counts["to_judge"] == result.counts["judged"] == 1


def test_two_items_with_one_prompt_are_asked_once(tmp_path):
    items = mmvet_items(1) * 2
    verdicts, seen = judged(half, items, tmp_path / "judge.jsonl")
    assert len(seen) == 1 and verdicts.judged == verdicts.total == 2


def test_requests_at_a_time_are_bounded(tmp_path):
    def route(seen):
        return Reply(reply("1.0").body, stall=0.05)

    _, seen = judged(route, mmvet_items(12), tmp_path / "judge.jsonl", concurrency=3)
    times = [one.time for one in seen]
    # Each request waited for one of the three before it.
    assert all(later - earlier >= 0.045 for earlier, later in zip(times, times[3:], strict=False))


def test_the_key_comes_from_the_environment_and_is_never_stored(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_ENV, "sk-test-secret")
    verdicts, seen = judged(
        lambda seen: reply("0.5 sk-test-secret"), mmvet_items(1), tmp_path / "judge.jsonl", api_key_env=KEY_ENV
    )
    assert seen[0].headers["authorization"] == "Bearer sk-test-secret"
    assert "sk-test-secret" not in (tmp_path / "judge.jsonl").read_text(encoding="utf-8")
    assert verdicts.fields[0]["grades"] == [0.5]


def test_a_key_that_is_not_there_is_demanded_by_name(tmp_path):
    with FaultServer() as server, pytest.raises(ValueError, match="environment variable NO_SUCH_VARIABLE"):
        judge("mmvet", mmvet_items(1), config_of(server, api_key_env="NO_SUCH_VARIABLE"), tmp_path / "judge.jsonl")


@pytest.mark.parametrize("address", ["ftp://host/v1", "http://user:word@host/v1", "host/v1", "https://host/v1?key=1"])
def test_an_address_with_secrets_or_without_host_is_refused(address):
    with pytest.raises(ValueError, match="not shown here") as refused:
        JudgeConfig(model=MODEL, base_url=address)
    assert "word" not in str(refused.value).replace("password", "")


def test_options_are_checked():
    with pytest.raises(ValueError, match="`concurrency` must be more than 0, got 0"):
        JudgeConfig(model=MODEL, concurrency=0)
    with pytest.raises(ValueError, match="`model`"):
        JudgeConfig(model="")


def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path):
    path, items = tmp_path / "judge.jsonl", mmvet_items(3)
    judged(half, items, path, concurrency=1)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for torn in (last + 1, last + 40, len(whole) - 1):
        path.write_bytes(whole[:torn])
        verdicts, seen = judged(half, items, path)
        assert verdicts.complete and len(seen) == 1
        assert len(lines(path)) == 3


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "judge.jsonl"
    judged(half, mmvet_items(2), path)
    for damage, message in ((b"{oops\n", "line 1, is damaged"), (b"{}\n", "line 1, is no judge's reply")):
        path.write_bytes(damage + path.read_bytes().split(b"\n", 1)[1])
        with pytest.raises(ValueError, match=message):
            judge("mmvet", mmvet_items(2), JudgeConfig(model=MODEL), path, ask=False)


def test_two_judgements_do_not_write_to_one_file(tmp_path):
    with Transcript(tmp_path / "judge.jsonl"), pytest.raises(RuntimeError, match="Another process is judging"):
        Transcript(tmp_path / "judge.jsonl")


KILLED = """
import sys
from pathlib import Path
from evaluation.judge import judge
from tests.evaluation.judge_world import config_of, mmvet_items

judge("mmvet", mmvet_items(24), config_of(sys.argv[1], concurrency=3), Path(sys.argv[2]))
"""


def test_a_killed_judgement_goes_on_where_it_was(tmp_path):
    def route(seen):
        if isinstance(seen.body, bytes):  # torn: its sender was killed
            return Reply()
        unread = "answer 7 " in seen.body["messages"][0]["content"] and seen.body["temperature"] < 1.0
        return Reply(reply("?" if unread else "0.5").body, stall=0.02)

    path, items = tmp_path / "judge.jsonl", mmvet_items(24)
    with FaultServer(route=route) as server:
        for least in (5, 14):
            process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(path)], cwd=ROOT)
            while process.poll() is None and (not path.is_file() or path.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        killed = path.read_bytes()
        verdicts = judge("mmvet", items, config_of(server), path)
    stored = killed.count(b"\n")
    assert stored >= 14 and path.read_bytes().startswith(killed[: killed.rfind(b"\n") + 1])
    assert verdicts.complete and verdicts.score(mmvet, items).headline["total"] == 50.0
    # 24 answers, one of which is asked for four times: temperatures 0, 0, 0.5 and 1.
    keys = [(line["id"], line["attempt"]) for line in lines(path)]
    assert len(keys) == len(set(keys)) == 27 == stored + verdicts.requests
