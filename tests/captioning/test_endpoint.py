"""Retries, pauses, the circuit, deadlines, rates and the budget, against a server that fails as scripted."""

import asyncio
import logging
import threading
import time
from email.utils import formatdate

import pytest

from captioning.answers import BudgetReached, EndpointDown, KeyRejected
from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig
from captioning.limits import Gate, RateLimits, seconds_to_wait
from tests.captioning.asking import PRICES, PROMPT, Clock, ask, ask_one, config_for, requests
from tests.captioning.fault_server import DONE, FaultServer, Reply, completion, delta, error, ok, stream
from tests.image_files import encoded


def test_an_answer_comes_with_text_counts_cost_and_what_was_sent():
    with FaultServer() as server:
        answer = ask_one(server, **PRICES, temperature=0.2, detail="low", max_tokens_name="max_completion_tokens")
    assert (answer.state, answer.text, answer.finish_reason) == ("ok", "A red square.", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cost, answer.attempts) == (100, 20, 2.0, 1)
    assert answer.raw == completion() and answer.error == ""
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    image, text = seen.body.pop("messages")[0]["content"]
    assert seen.body == {"model": "m", "max_completion_tokens": 1024, "temperature": 0.2}
    assert text == {"type": "text", "text": PROMPT.text} and image["image_url"]["detail"] == "low"
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_two_rate_limits_are_waited_out_and_counted():
    with FaultServer(error(429, retry_after="0.5"), error(429, retry_after="0.5")) as server:
        answer = ask_one(server)
    assert (answer.state, answer.attempts) == ("ok", 3)
    assert all(0.5 <= gap < 10 for gap in server.gaps)
    assert answer.seconds >= 1


def test_a_retry_after_of_a_date_is_waited_for():
    clock = Clock()
    with FaultServer(error(429, retry_after=formatdate(time.time() + 40, usegmt=True))) as server:
        answer = ask_one(server, clock=clock)
    assert answer.state == "ok" and 38 < sum(clock.slept) < 45


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None), ("", None), ("inf", None), ("nan", None), (None, None),
        ("9" * 200, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_a_date(header, seconds):
    assert seconds_to_wait(header, now=60.0) == seconds


def test_a_long_pause_holds_the_whole_job_once_and_says_until_when(caplog):
    clock = Clock()
    with FaultServer(error(429, retry_after="600"), then=ok()) as server, caplog.at_level(logging.INFO):
        outcome = ask(server, 4, concurrency=1, clock=clock)
    assert outcome.states == ["ok"] * 4 and len(server.seen) == 5
    assert len(clock.slept) == 1 and 600 <= clock.slept[0] <= 601
    assert [record.levelname for record in caplog.records if "paused until 20" in record.message] == ["WARNING"]


def test_no_request_is_sent_during_a_pause_that_another_one_met():
    clock = Clock()
    script = [error(429, retry_after="600"), Reply(ok().body, stall=0.2), Reply(ok().body, stall=0.2)]
    with FaultServer(*script) as server:
        outcome = ask(server, 9, concurrency=3, clock=clock)
    assert outcome.states == ["ok"] * 9
    assert clock.now >= 600 and len(clock.slept) <= 4  # one wait for each of the requests at a time, no busy loop


def test_a_pause_beyond_the_bound_ends_the_job_at_once():
    clock = Clock()
    with FaultServer(then=error(429, retry_after="90000")) as server:
        outcome = ask(server, 5, clock=clock)
    assert isinstance(outcome.stopped, EndpointDown) and "asks for a pause of 90000 s, until 20" in str(
        outcome.stopped
    )
    assert outcome.states == ["pending"] and len(server.seen) == 1 and clock.slept == []


def test_a_storm_of_errors_opens_the_circuit_and_leaves_rows_pending():
    clock = Clock()
    options = {"max_attempts": 3, "circuit_failures": 4, "circuit_trips": 3, "circuit_seconds": 30}
    with FaultServer(then=error(503)) as server:
        outcome = ask(server, 100, clock=clock, **options)
    assert isinstance(outcome.stopped, EndpointDown) and "HTTP 503" in str(outcome.stopped)
    assert set(outcome.states) == {"pending"}
    assert len(server.seen) == 4 + 2  # until it opens, and one probe for each of two more times
    assert len([seconds for seconds in clock.slept if 29.9 < seconds < 30.1]) == 2
    assert [answer.attempts for answer in outcome.answers] == [3, 1, 1, 1]


def test_the_circuit_closes_when_a_probe_is_answered():
    clock = Clock()
    with FaultServer(*[Reply(error(500).body, 500, stall=0.5)] * 4) as server:  # all under way when one fails
        outcome = ask(server, 12, concurrency=4, clock=clock, max_attempts=1, circuit_failures=4)
    assert outcome.stopped is None and outcome.states == ["pending"] * 4 + ["ok"] * 8
    assert max(clock.slept) > 29.9


def test_only_one_request_probes_a_half_open_circuit():
    async def run():
        clock = Clock()
        gate = Gate(EndpointConfig("m", circuit_failures=1), clock, clock.sleep)
        gate.failed("down")
        entering = {asyncio.create_task(gate.enter()) for _ in range(5)}
        done, waiting = await asyncio.wait(entering, timeout=0.1)
        probes = [await task for task in done]
        gate.succeeded()
        gate.leave()
        return probes, sorted([await task for task in waiting])

    assert asyncio.run(run()) == ([True], [False] * 4)


def test_a_row_that_fails_while_others_succeed_has_failed():
    def route(seen):
        url = seen.body["messages"][0]["content"][0]["image_url"]["url"]
        poison = poisoned.setdefault("url", url) == url
        return error(500, "cannot read this image") if poison else ok()

    poisoned = {}
    with FaultServer(route=route) as server:
        outcome = ask(server, 6, concurrency=2, max_attempts=3, backoff=0.1)
    assert sorted(outcome.states) == ["failed"] + ["ok"] * 5
    (failed,) = (answer for answer in outcome.answers if answer.state == "failed")
    assert failed.attempts == 3 and "cannot read this image" in failed.error


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_request_is_marked_without_another_attempt(status):
    with FaultServer(ok(), error(status, "no such thing")) as server:
        outcome = ask(server, 3)
    assert outcome.states == ["ok", "failed", "ok"] and len(server.seen) == 3
    assert f"HTTP {status}" in outcome.answers[1].error and "no such thing" in outcome.answers[1].error
    assert outcome.answers[1].raw["error"]["message"] == "no such thing"


def test_a_model_that_is_not_there_ends_the_job_instead_of_failing_every_row():
    with FaultServer(then=error(404, "no such model")) as server:
        outcome = ask(server, 500, clock=Clock(), circuit_failures=5, circuit_trips=2)
    assert isinstance(outcome.stopped, EndpointDown) and "no such model" in str(outcome.stopped)
    assert len(server.seen) == 6


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_stops_the_job_before_more_is_sent(status):
    with FaultServer(then=error(status, "bad key")) as server:
        outcome = ask(server, 50)
    assert isinstance(outcome.stopped, KeyRejected) and "bad key" in str(outcome.stopped)
    assert len(server.seen) == 1 and outcome.answers == []


def test_answers_under_way_when_the_key_is_rejected_are_not_lost():
    with FaultServer(Reply(ok().body, stall=0.8), Reply(ok().body, stall=0.8), error(401)) as server:
        outcome = ask(server, 50, concurrency=3)
    assert outcome.states == ["ok", "ok"] and len(server.seen) == 3


def test_after_a_rejected_key_nothing_is_sent_any_more():
    async def run(server):
        async with EndpointAnnotator(config_for(server)) as annotator:
            for _ in range(3):
                with pytest.raises(KeyRejected):
                    await annotator.annotate(encoded(), PROMPT, "k")

    with FaultServer(then=error(401)) as server:
        asyncio.run(run(server))
    assert len(server.seen) == 1


def test_an_account_without_money_stops_the_job():
    with FaultServer(then=error(429, code="insufficient_quota")) as server:
        outcome = ask(server, 50)
    assert isinstance(outcome.stopped, BudgetReached) and len(server.seen) == 1 and outcome.states == ["pending"]


def test_a_stalled_answer_times_out_and_is_asked_for_again():
    with FaultServer(Reply(ok().body, stall=5)) as server:
        answer = ask_one(server, read_timeout=0.3)
    assert (answer.state, answer.attempts) == ("ok", 2) and 0.3 <= server.gaps[0] < 10


@pytest.mark.parametrize("trickle", [False, True])
def test_the_deadline_bounds_all_attempts_together(trickle):
    slow = stream(*[delta("a ")] * 100, gap=0.1) if trickle else Reply(ok().body, stall=5)
    start = time.monotonic()
    with FaultServer(then=slow) as server:
        answer = ask_one(server, read_timeout=0.5, deadline=1.2, stream=trickle, max_attempts=50)
    assert answer.state == "pending" and answer.text == ""
    assert 1 < answer.seconds < 5 and time.monotonic() - start < 10
    assert trickle or len(server.seen) >= 2


def test_a_connection_that_breaks_is_tried_again():
    with FaultServer(Reply(ok().body, cut=True)) as server:
        answer = ask_one(server)
    assert (answer.state, answer.attempts) == ("ok", 2)


def test_an_endpoint_that_is_not_there_leaves_rows_pending():
    with FaultServer() as server:
        pass
    answer = ask_one(server, max_attempts=2)
    assert answer.state == "pending" and "Connect" in answer.error and answer.attempts == 2
    assert answer.cost is None


def test_a_stream_cut_without_a_finish_reason_has_failed_and_keeps_its_pieces_apart():
    with FaultServer(then=stream(delta("A red "), delta("squ"), DONE)) as server:
        answer = ask_one(server, stream=True, max_attempts=3, **PRICES)
    assert (answer.state, answer.text, answer.attempts) == ("failed", "", 3)
    assert answer.raw["choices"][0]["message"]["content"] == "A red squ"
    assert "without a finish reason" in answer.error
    assert answer.cost > 3 * 0.05 * 1024  # nobody knows what was charged, so the most counts


def test_rates_are_kept_from_the_first_second_on():
    async def run(limits, times, tokens):
        start = time.monotonic()
        for _ in range(times):
            await limits.acquire(tokens)
        return time.monotonic() - start

    assert 0.9 < asyncio.run(run(RateLimits(rpm=600, tpm=None), 20, 1)) < 6  # 10 at once, 10 more in a second
    assert 0.9 < asyncio.run(run(RateLimits(rpm=None, tpm=60_000), 4, 500)) < 6
    assert 0.9 < asyncio.run(run(RateLimits(rpm=None, tpm=6_000), 1, 200)) < 6  # one of more than a second's share


def test_the_budget_ends_the_job_before_it_is_exceeded():
    with FaultServer() as server:
        outcome = ask(server, 500, concurrency=4, max_cost=100.0, max_tokens=100, tokens_per_image=50, **PRICES)
    assert isinstance(outcome.stopped, BudgetReached) and "Raise `max_cost`" in str(outcome.stopped)
    assert 90 < outcome.annotator.spent <= 100
    done = outcome.states.count("ok")
    assert done == len(server.seen) == outcome.annotator.spent / 2
    assert set(outcome.states) == {"ok", "pending"} and len(outcome.answers) <= done + 4


def test_what_earlier_runs_spent_counts_against_the_budget():
    async def run(server):
        config = config_for(server, max_cost=100.0, max_tokens=100, tokens_per_image=50, **PRICES)
        async with EndpointAnnotator(config, spent=99.0) as annotator:
            return await annotator.annotate(encoded(), PROMPT, "k")

    with FaultServer() as server:
        assert asyncio.run(run(server)).state == "pending"
    assert server.seen == []


def test_a_rate_limit_that_lasts_ends_the_job_instead_of_trying_every_row():
    with FaultServer(then=error(429)) as server:
        outcome = ask(server, 500, clock=Clock(), max_attempts=3, circuit_failures=2, circuit_trips=2)
    assert isinstance(outcome.stopped, EndpointDown) and set(outcome.states) == {"pending"}
    assert len(server.seen) == 3 + 3 + 1


def test_an_endpoint_that_asks_to_come_back_at_once_is_not_hammered():
    clock = Clock()
    with FaultServer(*[error(429, retry_after="0")] * 3) as server:
        answer = ask_one(server, clock=clock, backoff=2.0)
    assert answer.state == "ok" and sum(clock.slept) >= 2 + 4 + 8


def test_requests_are_read_only_as_there_is_room():
    read = []

    def lazily():
        for request in requests(20):
            read.append(request.key)
            yield request

    async def run(server):
        async with EndpointAnnotator(config_for(server)) as annotator:
            ahead = []
            async for _ in annotator.annotate_many(lazily(), concurrency=3):
                ahead.append(len(read))
            return ahead

    with FaultServer() as server:
        ahead = asyncio.run(run(server))
    assert len(ahead) == 20 and all(seen <= number + 3 for number, seen in enumerate(ahead))


def test_answers_come_while_the_source_waits_for_them():
    async def asynchronously(answered):
        for request in requests(3):
            yield request
            await asyncio.wait_for(answered.wait(), 20)

    def blocking(answered):
        for request in requests(3):
            yield request
            assert answered.wait(20)

    async def run(server, source, answered):
        keys = []
        async with EndpointAnnotator(config_for(server)) as annotator:
            async for answer in annotator.annotate_many(source(answered), concurrency=4):
                keys.append(answer.key)
                answered.set()
        return keys

    with FaultServer() as server:
        for source, answered in ((asynchronously, asyncio.Event()), (blocking, threading.Event())):
            keys = asyncio.run(run(server, source, answered))
            assert keys[0] == "0" and sorted(keys) == ["0", "1", "2"]


def test_a_source_that_waits_for_more_does_not_hold_up_the_end_of_the_job():
    async def endless():
        yield requests(1)[0]
        await asyncio.Event().wait()

    async def run(server):
        async with EndpointAnnotator(config_for(server)) as annotator:
            with pytest.raises(KeyRejected):
                await anext(annotator.annotate_many(endless()))
            return len(asyncio.all_tasks())

    with FaultServer(then=error(401)) as server:
        assert asyncio.run(asyncio.wait_for(run(server), 20)) <= 2


def test_a_retry_whose_deadline_passes_in_the_queue_of_the_rate_limit_is_not_sent():
    with FaultServer(error(503)) as server:
        answer = ask_one(server, rpm=60, deadline=0.5, **PRICES)
    assert (answer.state, answer.attempts, answer.cost) == ("pending", 1, 0.0) and len(server.seen) == 1
    assert "passes before the request may be sent" in answer.error


def test_a_source_that_breaks_does_not_lose_what_is_under_way():
    def breaking():
        yield from requests(3)
        raise OSError("the disk is gone")

    async def run(server):
        keys = []
        async with EndpointAnnotator(config_for(server)) as annotator:
            with pytest.raises(OSError, match="the disk is gone"):
                async for answer in annotator.annotate_many(breaking(), concurrency=8):
                    keys.append(answer.key)
        return keys

    with FaultServer() as server:
        assert sorted(asyncio.run(run(server))) == ["0", "1", "2"]


def test_stragglers_of_an_outage_are_not_taken_for_probes():
    clock = Clock()
    gate = Gate(EndpointConfig("m", circuit_failures=1, circuit_trips=2), clock, clock.sleep)
    gate.failed("down")

    async def probe():
        assert await gate.enter()
        gate.failed("a straggler")
        gate.failed("another straggler")
        assert gate.down == ""
        gate.failed("the probe", probe=True)
        assert "the probe" in gate.down

    asyncio.run(probe())


def test_a_job_that_is_left_early_ends_its_requests():
    async def run(server):
        async with EndpointAnnotator(config_for(server)) as annotator:
            job = annotator.annotate_many(requests(20), concurrency=4)
            await anext(job)
            await job.aclose()
            return len(asyncio.all_tasks())

    with FaultServer(ok(), then=Reply(ok().body, stall=3)) as server:
        assert asyncio.run(run(server)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "`model` is empty"),
        ({"base_url": "ftp://x/v1"}, "must begin with http"),
        ({"base_url": "https://x/v1?key=abc"}, "must not hold"),
        ({"max_cost": 5.0}, "needs `input_price` and `output_price`"),
        ({"rpm": 0}, "`rpm` must be above 0, got 0"),
        ({"image_quality": 100}, "from 40 to 95, got 100"),
        ({"temperature": -1.0}, "`temperature` must be at least 0"),
        ({"input_price": -1.0}, "must be at least 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig(**{"model": "m", **options})
