"""What an answer is worth: finish reasons, refusals, odd shapes, and characters that no store takes."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.answers import STATES, is_refusal, read_answer
from captioning.redact import Redactor
from tests.captioning.asking import ask, ask_one
from tests.captioning.fault_server import DONE, USAGE, FaultServer, Reply, completion, delta, error, event, ok, stream


REFUSED = {"message": {"refusal": "I cannot describe people."}}


@pytest.mark.parametrize(
    ("body", "state", "text"),
    [
        (completion("A cat."), "ok", "A cat."),
        (completion("A cat", "length"), "truncated", "A cat"),
        (completion("", "length"), "truncated", ""),  # the bound went into hidden reasoning
        (completion("A c", "content_filter"), "filtered", "A c"),
        (completion(None, **REFUSED), "refused", "I cannot describe people."),
        (
            completion("I'm sorry, but I can't assist with that."),
            "refused",
            "I'm sorry, but I can't assist with that.",
        ),
        (completion(""), "empty", ""),
        (completion(" \n"), "empty", " \n"),
        (completion(None), "empty", ""),
        (completion([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]), "ok", "A cat."),
        (completion("A cat.", None), "failed", ""),
        (completion("A cat.", "tool_calls"), "failed", ""),
        (completion("A cat.", 7), "failed", ""),
        (completion("A cat.", "eos"), "ok", "A cat."),
    ],
)
def test_every_ending_of_an_answer_is_a_state_that_keeps_what_was_sent(body, state, text):
    with FaultServer(then=Reply(json.dumps(body).encode())) as server:
        answer = ask_one(server)
    assert (answer.state, answer.text, answer.attempts) == (state, text, 1)
    assert answer.raw == body and (answer.error == "") == (state == "ok")
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 20)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html><body>502 Bad Gateway</body></html>", "no JSON .*502 Bad Gateway"),
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b'{"choices": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "it is a list"),
        (b"[" * 900 + b"]" * 900, "it is a list"),
        (b'{"choices": [1e999]}', "`choices` is no list"),
        (b'"text"', "it is a str"),
        (b"{}", "`choices` is no list"),
        (b'{"choices": []}', "`choices` is no list"),
        (b'{"choices": ["x"]}', "`choices` is no list"),
        (b'{"choices": [{"message": "x"}]}', "`message` is no object"),
        (b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}', "`content` is a int"),
        (json.dumps(completion("A\0cat.")).encode(), "NUL"),
        (json.dumps(completion("A \ud800 cat.")).encode(), "lone surrogates"),
    ],
)
def test_a_body_that_is_no_sound_completion_fails_its_row_alone(body, message):
    with FaultServer(ok(), Reply(body, kind="text/html")) as server:
        outcome = ask(server, 3)
    assert outcome.states == ["ok", "failed", "ok"] and len(server.seen) == 3
    failed = outcome.answers[1]
    assert failed.text == "" and failed.raw is not None
    assert re.search(message, failed.error), failed.error


def test_what_is_kept_of_an_answer_can_be_stored_anywhere():
    with FaultServer(Reply(json.dumps(completion("A\0 \ud800 cat.", id="\udfff")).encode())) as server:
        answer = ask_one(server)
    kept = json.dumps(answer.raw, ensure_ascii=False)
    assert kept.encode("utf-8") and "\0" not in kept
    assert answer.raw["choices"][0]["message"]["content"] == "A\ufffd \ufffd cat."


@pytest.mark.parametrize(
    "usage",
    [None, [], {"prompt_tokens": "many", "completion_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 10**30}],
)
def test_counts_that_are_none_are_left_out_and_the_most_is_charged(usage):
    with FaultServer(Reply(json.dumps(completion(usage=usage)).encode())) as server:
        answer = ask_one(server, input_price=0.0, output_price=1_000_000.0, max_tokens=7)
    assert (answer.state, answer.prompt_tokens, answer.completion_tokens) == ("ok", None, None)
    assert answer.cost == 7


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_filter_that_refuses_the_image_is_a_state_and_no_failure(status, code):
    with FaultServer(error(status, "flagged", code)) as server:
        outcome = ask(server, 2)
    assert outcome.states == ["filtered", "ok"]


def test_a_stream_is_put_together():
    reply = stream(delta("A "), delta("red ", role="assistant"), delta("square."), delta(None, "stop"), USAGE, DONE)
    with FaultServer(reply) as server:
        answer = ask_one(server, stream=True)
    assert (answer.state, answer.text, answer.finish_reason) == ("ok", "A red square.", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 20)
    assert server.seen[0].body["stream"] is True


@pytest.mark.parametrize(
    ("last", "state", "text"),
    [
        (delta(None, "length"), "truncated", "A cat"),
        (delta(None, "content_filter"), "filtered", "A cat"),
        (delta(None, "stop", refusal="No."), "refused", "A cat"),
    ],
)
def test_every_ending_of_a_stream_is_a_state(last, state, text):
    with FaultServer(stream(delta("A cat"), last, DONE)) as server:
        answer = ask_one(server, stream=True)
    assert (answer.state, answer.text) == (state, text)


@pytest.mark.parametrize(
    "broken",
    [
        event(b'{"choices": [{'),
        event(b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        event({"error": {"message": "overloaded"}}),
        b"data: \xff\xff\n\n",
    ],
)
def test_a_stream_that_breaks_is_asked_for_again(broken):
    good = stream(delta("A cat."), delta(None, "stop"), DONE)
    with FaultServer(stream(delta("A "), broken, DONE), then=good) as server:
        answer = ask_one(server, stream=True)
    assert (answer.state, answer.text, answer.attempts) == ("ok", "A cat.", 2)


@pytest.mark.parametrize(
    "odd",
    [
        [1, 2],
        "text",
        {"choices": "x"},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": 5}}]},
    ],
)
def test_chunks_of_another_shape_fail_the_row(odd):
    with FaultServer(stream(delta("A cat."), event(odd), delta(None, "stop"), DONE)) as server:
        answer = ask_one(server, stream=True)
    assert (answer.state, answer.text) == ("failed", "") and "another shape" in answer.error


def test_an_endpoint_that_does_not_stream_is_not_taken_for_an_empty_answer():
    with FaultServer(then=ok()) as server:
        answer = ask_one(server, stream=True, max_attempts=2)
    assert answer.state == "failed" and "without a finish reason" in answer.error


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with identifying people.",
        "I\u2019m sorry, I can\u2019t assist with that request.",
        "Sorry, I cannot describe this image.",
        "I cannot provide a description of this image.",
        "I'm unable to see the image.",
        "As an AI language model, I do not see images.",
        "Unfortunately, I am unable to describe it.",
        "There is no image attached.",
        '"I can\'t assist with that."',
    ],
)
def test_refusals_in_words_are_found(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "The image shows a sign that reads: I'm sorry, we are closed.",
        "A man cannot reach the shelf.",
        "In this image I see a dog.",
        "Sorry Day is written on the banner.",
        "Unfortunately lit, the room shows a table. Nobody can sit there.",
        "As an airplane takes off, smoke rises.",
        "I-beams cross the ceiling of the hall.",
    ],
)
def test_captions_are_not_taken_for_refusals(text):
    assert not is_refusal(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "refusal"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_the_json_there_is_a_state_and_something_to_keep(body):
    reading = read_answer(body, Redactor("secret-key"))
    assert reading.state in STATES
    json.dumps(reading.raw, ensure_ascii=False, allow_nan=False).encode("utf-8")
