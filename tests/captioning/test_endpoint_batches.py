"""Batch jobs: split at the limits, joined by id, what got no answer submitted again, continued after a stop."""

import asyncio
import json

import pytest

from captioning.answers import BudgetReached, EndpointDown, JobStopped, KeyRejected
from captioning.batch_files import BatchConfig
from captioning.batches import BatchJob, BusyError
from captioning.payload import Request
from tests.captioning.asking import PRICES, PROMPT, Clock, config_for, requests
from tests.captioning.batch_endpoint import BatchEndpoint, answered, complete, refused, unanswered
from tests.captioning.fault_server import Reply, error
from tests.image_files import encoded


def job_for(server, folder, clock=None, batch=None, **options) -> BatchJob:
    clock = clock or Clock()
    return BatchJob(
        config_for(server, **options), folder, BatchConfig(**{"retries": 0, **(batch or {})}), sleep=clock.sleep
    )


def answers_of(job: BatchJob) -> dict:
    async def run():
        try:
            return [answer async for answer in job.run()]
        finally:
            await job.aclose()

    answers = asyncio.run(run())
    assert len({answer.key for answer in answers}) == len(answers)
    return {answer.key: answer for answer in answers}


def states(answers: dict) -> dict:
    return {key: answers[key].state for key in sorted(answers, key=int)}


def test_outputs_in_any_order_are_joined_by_id(tmp_path):
    clock = Clock()
    with BatchEndpoint(looks=3) as server:
        job = job_for(server, tmp_path, clock, **PRICES)
        assert job.prepare(requests(5)) == [] and server.seen == []
        answers = answers_of(job)
    assert {key: answer.text for key, answer in answers.items()} == {str(n): f"Caption of {n}." for n in range(5)}
    assert all((answer.state, answer.cost, answer.prompt_tokens) == ("ok", 2.0, 100) for answer in answers.values())
    assert clock.slept == [60.0] * 3
    (line, *_) = server.requests_of("batch-0")
    assert line["method"] == "POST" and line["url"] == "/v1/chat/completions" and line["body"]["model"] == "m"
    assert server.batches["batch-0"]["completion_window"] == "24h"


def test_files_are_split_at_the_number_of_requests(tmp_path):
    with BatchEndpoint() as server:
        job = job_for(server, tmp_path, batch={"max_requests": 2, "active": 2})
        job.prepare(requests(5))
        answers = answers_of(job)
        assert [len(server.requests_of(name)) for name in server.batches] == [2, 2, 1]
    assert set(states(answers).values()) == {"ok"} and len(answers) == 5


def test_files_are_split_at_their_size(tmp_path):
    with BatchEndpoint() as server:
        probe = job_for(server, tmp_path / "probe")
        probe.prepare(requests(1))
        size = (tmp_path / "probe" / "requests-00000.jsonl").stat().st_size
        job = job_for(server, tmp_path / "job", batch={"max_bytes": int(2.5 * size)})
        job.prepare(requests(6))
        assert len(answers_of(job)) == 6
    files = sorted((tmp_path / "job").glob("requests-*.jsonl"))
    assert len(files) == 3 and all(path.stat().st_size <= 2.5 * size for path in files)


def test_what_cannot_be_sent_is_told_apart_and_not_written(tmp_path):
    with BatchEndpoint() as server:
        job = job_for(server, tmp_path, batch={"max_bytes": 50_000})
        large = Request(encoded(size=(1600, 1200), quality=99), PROMPT, "8")
        refused_ones = job.prepare([*requests(2), Request(b"text", PROMPT, "7"), large])
        answers = answers_of(job)
    assert {answer.key: answer.state for answer in refused_ones} == {"7": "bad_image", "8": "failed"}
    assert states(answers) == {"0": "ok", "1": "ok"}


def test_two_requests_of_one_key_are_refused(tmp_path):
    with BatchEndpoint() as server, pytest.raises(ValueError, match="Two requests have the key '0'"):
        job_for(server, tmp_path).prepare([*requests(1), *requests(1)])


def test_a_folder_with_a_job_is_not_written_over(tmp_path):
    with BatchEndpoint() as server:
        job_for(server, tmp_path).prepare(requests(2))
        with pytest.raises(FileExistsError, match="has a batch job already"):
            job_for(server, tmp_path).prepare(requests(3))


def test_error_files_are_read_and_only_what_may_pass_is_submitted_again(tmp_path):
    def ending(lines):
        errors = [refused(lines[0], 400, "bad image"), refused(lines[1], 500), refused(lines[2], 429)]
        return {"status": "completed", "output": [answered(lines[3])], "errors": errors}

    with BatchEndpoint(ending) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(4))
        answers = answers_of(job)
        assert [line["custom_id"] for line in server.requests_of("batch-1")] == ["1", "2"]
    assert states(answers) == {"0": "failed", "1": "ok", "2": "ok", "3": "ok"}
    assert "bad image" in answers["0"].error and answers["1"].attempts == 2


def test_an_expired_batch_gives_what_it_has_and_the_rest_goes_into_another(tmp_path):
    def expired(lines):
        return {"status": "expired", "output": [answered(lines[2])], "errors": [unanswered(lines[0])]}

    with BatchEndpoint(expired) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(4))
        answers = answers_of(job)
        assert [line["custom_id"] for line in server.requests_of("batch-1")] == ["0", "1", "3"]
    assert set(states(answers).values()) == {"ok"}


def test_a_batch_that_is_done_but_has_no_files_is_submitted_a_bounded_number_of_times(tmp_path):
    silent = [lambda lines: {"status": "completed"}] * 10
    with BatchEndpoint(*silent) as server:
        job = job_for(server, tmp_path, batch={"max_rounds": 3})
        job.prepare(requests(2))
        answers = answers_of(job)
        assert len(server.batches) == 3
    assert states(answers) == {"0": "pending", "1": "pending"}
    assert "says nothing about this request" in answers["0"].error


def test_a_cancelled_batch_is_not_submitted_again(tmp_path):
    with BatchEndpoint(lambda lines: {"status": "cancelled", "output": [answered(lines[0])]}) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(2))
        assert states(answers_of(job)) == {"0": "ok", "1": "pending"} and len(server.batches) == 1


def test_a_line_that_the_endpoint_refuses_fails_and_the_others_go_on(tmp_path):
    problem = {"code": "invalid_json_line", "line": 2, "message": "This line is bad."}
    with BatchEndpoint(lambda lines: {"status": "failed", "problems": [problem]}) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(3))
        answers = answers_of(job)
    assert states(answers) == {"0": "ok", "1": "failed", "2": "ok"} and "This line is bad" in answers["1"].error


def test_lines_that_are_no_answers_are_counted_and_left_out(tmp_path, caplog):
    def torn(lines):
        good = [json.dumps(answered(line)).encode() for line in lines]
        other = json.dumps(answered({"custom_id": "never asked"})).encode()
        again = json.dumps(answered(lines[0], "Another text.")).encode()
        return {"status": "completed", "output": b"\n".join([*good, b"", other, again, b"[1]", good[0][:40]])}

    with BatchEndpoint(torn) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(2))
        answers = answers_of(job)
    assert {key: answer.text for key, answer in answers.items()} == {"0": "Caption of 0.", "1": "Caption of 1."}
    assert "4 lines of batch outputs" in caplog.text


def test_answers_of_a_batch_have_the_same_states(tmp_path):
    def mixed(lines):
        output = [
            answered(lines[0], "A cat", finish_reason="length"), answered(lines[1], "I'm sorry, I can't help."),
            answered(lines[2], "A\0cat"), {"custom_id": "3"},
        ]  # fmt: skip
        return {"status": "completed", "output": output}

    with BatchEndpoint(mixed) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(4))
        answers = answers_of(job)
    assert states(answers) == {"0": "truncated", "1": "refused", "2": "failed", "3": "failed"}


def test_a_run_that_ended_while_batches_worked_is_continued_without_another_batch(tmp_path):
    with BatchEndpoint(looks=2) as server:
        first = job_for(server, tmp_path)
        first.prepare(requests(2))
        server.faults["GET /batches/batch-0"] = [error(404)]
        with pytest.raises(JobStopped, match="HTTP 404"):
            answers_of(first)
        assert states(answers_of(job_for(server, tmp_path))) == {"0": "ok", "1": "ok"}
        assert len(server.batches) == 1
        assert states(answers_of(job_for(server, tmp_path))) == {"0": "ok", "1": "ok"}  # and told again from its files
        assert len(server.batches) == 1


def test_a_batch_whose_id_was_lost_is_found_again_and_not_paid_twice(tmp_path):
    with BatchEndpoint() as server:
        first = job_for(server, tmp_path)
        first.prepare(requests(2))
        server.faults["POST /batches"] = [Reply(b"{}" * 10, cut=True)]  # created, but the answer never arrives
        with pytest.raises(EndpointDown, match="Run again to continue"):
            answers_of(first)
        assert len(server.batches) == 1
        assert states(answers_of(job_for(server, tmp_path))) == {"0": "ok", "1": "ok"}
        assert len(server.batches) == 1


def test_what_was_submitted_again_is_not_submitted_once_more_by_the_next_run(tmp_path):
    with BatchEndpoint(lambda lines: {"status": "expired", "output": [answered(lines[0])]}) as server:
        for _ in range(2):
            job = job_for(server, tmp_path)
            if not job.parts:
                job.prepare(requests(2))
            assert states(answers_of(job)) == {"0": "ok", "1": "ok"}
        assert len(server.batches) == 2


def test_a_job_that_is_run_twice_at_a_time_pays_once(tmp_path):
    async def run(one, two):
        first = one.run()
        await anext(first)
        with pytest.raises(BusyError, match="Another process works on the batches"):
            await anext(two.run())
        return 1 + len([answer async for answer in first])

    with BatchEndpoint() as server:
        one = job_for(server, tmp_path)
        one.prepare(requests(3))
        assert asyncio.run(run(one, job_for(server, tmp_path))) == 3
        assert len(server.batches) == 1


def test_an_object_made_before_another_has_run_does_not_submit_again(tmp_path):
    with BatchEndpoint() as server:
        one, unaware = job_for(server, tmp_path), job_for(server, tmp_path)
        one.prepare(requests(2))
        two = job_for(server, tmp_path)
        assert len(answers_of(one)) == len(answers_of(two)) == 2
        assert len(server.batches) == 1
        with pytest.raises(FileExistsError, match="has a batch job already"):
            unaware.prepare(requests(3))


def test_a_batch_for_which_too_much_is_queued_waits_and_counts_as_no_round(tmp_path):
    full = {"status": "failed", "problems": [{"code": "token_limit_exceeded", "message": "Enqueued token limit."}]}
    clock = Clock()
    with BatchEndpoint(*[lambda lines: full] * 4, looks=0) as server:
        job = job_for(server, tmp_path, clock, batch={"max_rounds": 1})
        job.prepare(requests(2))
        answers = answers_of(job)
        assert len(server.batches) == 5 and len(server.files) == 2  # the requests went up once
    assert states(answers) == {"0": "ok", "1": "ok"} and answers["0"].attempts == 1
    assert clock.slept == [60.0] * 4


def test_a_lost_batch_is_found_on_a_later_page_and_one_that_was_not_taken_is_not(tmp_path):
    class Paged(BatchEndpoint):
        def _answer(self, seen, path):
            reply = super()._answer(seen, path)
            if (seen.method, path) != ("GET", "/batches"):
                return reply
            rows = json.loads(reply.body)["data"]
            after = seen.path.partition("after=")[2].partition("&")[0]
            first = [row["id"] for row in rows].index(after) + 1 if after else 0
            return self._json({"object": "list", "data": rows[first : first + 1], "has_more": first + 1 < len(rows)})

    async def lose_the_next_answer(seconds):
        server.faults["POST /batches"] = [Reply(b"{}" * 10, cut=True)]

    full = {"status": "failed", "problems": [{"code": "token_limit_exceeded", "message": "Enqueued token limit."}]}
    with Paged(lambda lines: full, looks=0) as server:
        first = BatchJob(config_for(server), tmp_path, BatchConfig(retries=0), sleep=lose_the_next_answer)
        first.prepare(requests(2))
        with pytest.raises(EndpointDown):
            answers_of(first)
        assert len(server.batches) == 2
        assert states(answers_of(job_for(server, tmp_path))) == {"0": "ok", "1": "ok"}
        assert len(server.batches) == 2


def test_parts_have_a_cost_only_with_prices(tmp_path):
    with BatchEndpoint() as server:
        free, priced = job_for(server, tmp_path / "a"), job_for(server, tmp_path / "b", **PRICES)
        for job in (free, priced):
            job.prepare(requests(1))
    assert free.parts[0].cost is None and priced.parts[0].cost > 0


def test_a_rejected_key_is_told_apart(tmp_path):
    with BatchEndpoint() as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(2))
        server.faults["POST /files"] = [error(401)]
        with pytest.raises(KeyRejected):
            answers_of(job)
        assert server.batches == {}


def test_batches_that_could_cost_more_than_the_budget_are_not_sent(tmp_path):
    with BatchEndpoint() as server:
        job = job_for(server, tmp_path, max_cost=1.0, **PRICES)
        job.prepare(requests(2))
        with pytest.raises(BudgetReached, match="`max_cost` is 1.0"):
            answers_of(job)
        assert server.seen == []
        assert len(answers_of(job_for(server, tmp_path, max_cost=10_000.0, **PRICES))) == 2


def test_a_download_that_breaks_leaves_no_half_file(tmp_path):
    with BatchEndpoint(complete) as server:
        job = job_for(server, tmp_path)
        job.prepare(requests(3))
        server.faults["GET /files/output-batch-0/content"] = [Reply(b"x" * 100, cut=True)] * 2
        with pytest.raises(EndpointDown):
            answers_of(job)
        assert not list(tmp_path.glob("output*"))
        server.faults.clear()
        assert set(states(answers_of(job_for(server, tmp_path))).values()) == {"ok"}


@pytest.mark.parametrize("name", ["max_requests", "max_bytes", "active", "poll_seconds", "max_rounds"])
def test_a_limit_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be above 0, got 0"):
        BatchConfig(**{name: 0})
