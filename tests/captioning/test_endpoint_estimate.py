"""Cost and time before anything is sent: OpenAI's tiles, then means of what was measured."""

import asyncio

import pytest

from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig
from captioning.estimate import Measured, estimate_job
from captioning.payload import fitted_size, image_tokens, text_tokens
from tests.captioning.asking import PRICES, config_for, requests
from tests.captioning.fault_server import FaultServer


@pytest.mark.parametrize(
    ("size", "detail", "tokens"),
    [
        ((1024, 1024), "high", 765),  # the three examples of OpenAI's documentation
        ((2048, 4096), "high", 1105),
        ((4096, 8192), "low", 85),
        ((512, 512), "auto", 255),
        ((1, 1), "high", 255),
        ((100_000, 1), "high", 765),
    ],
)
def test_tiles_are_counted_as_openai_does(size, detail, tokens):
    assert image_tokens(*size, EndpointConfig("m", detail=detail)) == tokens


def test_a_fixed_number_of_tokens_takes_the_place_of_tiles():
    assert image_tokens(1024, 1024, EndpointConfig("m", tokens_per_image=576)) == 576


def test_an_estimate_multiplies_what_one_image_costs():
    config = EndpointConfig("m", max_tokens=100, input_price=2.0, output_price=10.0)
    estimate = estimate_job(config, 1000, ["x" * 400], [(1024, 1024), (512, 512)])
    each = text_tokens("x" * 400) + (765 + 255) / 2
    assert (estimate.prompt_tokens, estimate.completion_tokens) == (1000 * each, 100_000)
    assert estimate.cost == pytest.approx(1000 * (each * 2 + 100 * 10) / 1e6)
    assert not estimate.measured and "by rule" in estimate.lines()[0]


def test_sizes_are_those_that_will_be_sent():
    assert fitted_size(4000, 1000, 1024) == (1024, 256)
    large = estimate_job(EndpointConfig("m", image_side=512), 1, ["x"], [(4000, 4000)])
    assert large == estimate_job(EndpointConfig("m", image_side=512), 1, ["x"], [(512, 512)])


@pytest.mark.parametrize(
    ("limits", "bound_by", "seconds"),
    [({}, "latency", 1250), ({"rpm": 10}, "rpm", 6000), ({"rpm": 10, "tpm": 2000}, "tpm", 1000 * 877 * 60 / 2000)],
)
def test_the_time_is_what_the_tightest_limit_allows(limits, bound_by, seconds):
    config = EndpointConfig("m", max_tokens=100, tokens_per_image=764, **limits)
    estimate = estimate_job(config, 1000, ["x"], concurrency=8)
    assert (estimate.bound_by, estimate.seconds) == (bound_by, pytest.approx(seconds))


def test_without_prices_the_cost_is_unknown_and_never_zero():
    estimate = estimate_job(EndpointConfig("m"), 10, ["x"])
    assert estimate.cost is None and "Cost unknown" in estimate.lines()[2]


def test_an_estimate_says_how_many_images_the_budget_does_for():
    config = EndpointConfig("m", max_tokens=100, tokens_per_image=87, input_price=0, output_price=100, max_cost=0.5)
    estimate = estimate_job(config, 1000, ["x"])
    assert estimate.affordable == 50 and estimate.lines()[-1] == "The budget does for 50 of them."


def test_what_was_measured_takes_the_place_of_the_rule():
    async def run(server):
        async with EndpointAnnotator(config_for(server, **PRICES)) as annotator:
            _ = [answer async for answer in annotator.annotate_many(requests(12))]
            return annotator.measured, annotator.spent

    with FaultServer() as server:
        measured, spent = asyncio.run(run(server))
    assert (measured.answers, measured.prompt_tokens, measured.completion_tokens) == (12, 1200, 240) and spent == 24
    estimate = estimate_job(EndpointConfig("m", **PRICES), 1000, ["x"], measured=measured)
    assert estimate.measured and estimate.cost == pytest.approx(2000)
    assert (estimate.prompt_tokens, estimate.completion_tokens) == (100_000, 20_000)


def test_a_few_answers_are_not_yet_a_mean():
    assert not estimate_job(EndpointConfig("m"), 5, ["x"], measured=Measured(3, 30, 30, 1.0)).measured
