"""Traffic, simulated steps and cost."""

from functools import cache

import numpy as np
import pytest

from trainers.geometry import Geometry, Tuning, build_on_meta, measure
from trainers.planner import step_efficiency
from trainers.roofline import GPUS, WORKLOADS, hours
from trainers.scaling import (
    FABRICS,
    ScaleRow,
    Simulation,
    best_balance,
    deal_steps,
    draw_lengths,
    model_traffic,
    network_seconds,
    pays_up_to,
    sample_costs,
    traffic,
)


H100, A100 = GPUS["H100"], GPUS["A100-80GB"]
LLM_AND_PROJECTOR = 6_759_395_328
NEAR = {"rel": 0.02}


@cache
def size_of(block: int | None = 12) -> Geometry:
    return measure(build_on_meta("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"), Tuning(block))


def simulation(stage: str = "pretrain", gpu=H100, **changes) -> Simulation:
    options = {"pretrain": (12, 1_246_901, 256, 16), "finetune": (None, 665_058, 128, 8)}[stage]
    block, samples, batch, per_device = options
    return Simulation(size_of(block), WORKLOADS[stage], samples, batch, per_device, gpu, mfu=0.45, **changes)


def all_trained(strategy: str):
    return traffic(strategy, LLM_AND_PROJECTOR, LLM_AND_PROJECTOR, LLM_AND_PROJECTOR)


@pytest.mark.parametrize(
    ("strategy", "gigabytes"), [("ZeRO-3", 40.6), ("FSDP2", 40.6), ("FSDP2, no reshard", 27), ("HSDP", 3.4)]
)
def test_bytes_of_a_micro_step(strategy, gigabytes):
    assert all_trained(strategy).at_most / 1e9 == pytest.approx(gigabytes, **NEAR)


@pytest.mark.parametrize(("fabric", "seconds"), zip(FABRICS, (0.90, 1.84, 14.5), strict=True))
def test_time_if_every_gpu_fetches_for_itself(fabric, seconds):
    assert network_seconds(all_trained("ZeRO-3"), H100, fabric, 16)[1] == pytest.approx(seconds, **NEAR)


def test_data_that_enters_a_node_once_takes_an_eighth_of_the_network():
    moved = all_trained("FSDP2")
    assert moved.at_least * 8 == moved.at_most == moved.within
    least, most = network_seconds(moved, H100, FABRICS[2], 16)
    assert most == pytest.approx(8 * least)


def test_one_node_needs_no_network_and_one_gpu_no_links():
    moved = all_trained("FSDP2")
    assert network_seconds(moved, H100, FABRICS[2], 1) == (0, 0)
    assert network_seconds(moved, H100, FABRICS[2], 8) == pytest.approx((moved.within / 360e9,) * 2)


def test_ddp_averages_gradients_alone():
    moved = all_trained("DDP")
    assert moved.within == 2 * 4 * LLM_AND_PROJECTOR and moved.at_least == moved.within / 8


def test_a_frozen_tower_is_gathered_once_and_sends_no_gradient():
    tuned, frozen = (model_traffic("FSDP2", size_of(block)) for block in (12, None))
    assert tuned.within - frozen.within == 2 * 2 * 11 * 12_596_224


@pytest.mark.parametrize(("gpu", "seconds"), [(A100, 3.6), (H100, 1.13)])
def test_computation_of_sixteen_samples(gpu, seconds):
    loads = simulation(gpu=gpu).dealt(16)
    assert loads.mean() == pytest.approx(seconds, **NEAR)


def test_drawn_lengths_have_the_means_of_the_stage():
    lengths, has_image = draw_lengths(WORKLOADS["finetune"], 576, 20_000)
    assert has_image.mean() == pytest.approx(0.94, abs=0.01)
    assert lengths[has_image].mean() == pytest.approx(800, rel=0.01)
    assert lengths[~has_image].mean() == pytest.approx(1100, rel=0.06)  # cut at 2,048


def test_an_image_costs_twenty_tokens():
    costs = sample_costs(size_of(), np.array([776, 776]), np.array([True, False]))
    assert costs[0] - costs[1] == pytest.approx(20, **NEAR)


def test_dealing_loses_nothing_and_one_gpu_never_waits():
    run = simulation(steps=4)
    whole = run.dealt(1)
    assert whole.shape == (4, 16, 1)
    for ranks in (3, 8, 256):
        assert run.dealt(ranks).sum() == pytest.approx(whole.sum())
    row = run.row(whole, 0.0)
    assert row.efficiency == pytest.approx(1)
    flops = run.batch * 31.57e12
    assert row.seconds == pytest.approx(flops / (H100.flops * 0.45), **NEAR)


def test_the_balance_is_that_of_the_planner():
    run = simulation("finetune", steps=4)
    loads = run.dealt(32)
    assert run.row(loads, 0.0).balance == pytest.approx(step_efficiency(loads.reshape(-1, 32)), rel=0.01)


def test_no_plan_is_better_than_the_bound():
    size = size_of(None)
    lengths, has_image = draw_lengths(WORKLOADS["finetune"], 576, 512)
    costs = sample_costs(size, lengths, has_image)
    for ranks in (16, 64, 128):
        loads = deal_steps(costs, lengths, has_image, 128, ranks, 1)
        bound = best_balance(loads, costs)
        assert step_efficiency(loads.reshape(-1, ranks)) <= bound <= 1
    assert bound == pytest.approx(np.mean([step.mean() / step.max() for step in costs.reshape(-1, 128)]))


def test_waiting_for_the_network_shows_once_it_is_longer_than_the_computation():
    run = simulation(steps=2)
    loads = run.dealt(16)
    hidden, shown = (run.row(loads, share * loads.max()) for share in (0.5, 2))
    assert hidden.network == 1 and shown.network == pytest.approx(0.5, rel=0.02)
    assert shown.limit == "network" and shown.hours == pytest.approx(2 * hidden.hours, rel=0.02)


def test_gpu_hours_are_flat_until_gpus_wait():
    run = simulation(steps=4)
    rows = [run.row(run.dealt(count), 0.0) for count in (1, 8, 64, 256)]
    assert rows[2].gpu_hours == pytest.approx(rows[0].gpu_hours, rel=0.01)
    assert rows[3].gpu_hours > 1.2 * rows[0].gpu_hours and rows[3].limit == "balance"
    assert rows[0].hours == pytest.approx(hours(1_246_901 * 31.57e12, H100, 1, 0.45), rel=0.01)


def test_a_run_pays_up_to_a_tenth_more():
    costs = {8: 1.0, 16: 1.05, 32: 1.5}
    rows = [ScaleRow(n, 1, 1, 1, 1, 1, cost / n) for n, cost in costs.items()]
    assert pays_up_to(rows) == 16


def test_more_gpus_than_samples_of_a_step_are_refused_and_a_grown_batch_fits():
    run = simulation(steps=1)
    with pytest.raises(ValueError, match="256 cannot be kept on 512 GPUs"):
        run.dealt(512)
    assert run.grown(512, 8).dealt(512).shape == (1, 1, 512)
