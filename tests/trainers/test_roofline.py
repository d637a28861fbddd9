"""Operations, time and captions a second, against figures that were worked out by hand from the published sizes."""

from dataclasses import replace
from functools import cache

import pytest

from trainers.geometry import Geometry, Tuning, build_on_meta, measure
from trainers.memory import MASTER, Batch
from trainers.roofline import (
    GPUS,
    WORKLOADS,
    caption_rate,
    caption_seconds,
    hours,
    mean_flops,
    micro_step,
    recomputed_flops,
    sample_flops,
    utilisation,
)


CLIP = "openai/clip-vit-large-patch14-336"
H100, A100 = GPUS["H100"], GPUS["A100-80GB"]
MEASURED = H100.at(798e12, 3.0e12)
NEAR = {"rel": 0.02}


@cache
def size_of(block: int | None = 12, llm: str = "lmsys/vicuna-7b-v1.5") -> Geometry:
    return measure(build_on_meta(llm, CLIP), Tuning(block))


def tflop(size: Geometry, tokens: int, scored: int, images: int = 1) -> float:
    return sum(sample_flops(size, tokens, scored, images).values()) / 1e12


def stage_flops(stage: str, samples: int) -> float:
    size = size_of(12 if stage == "pretrain" else None)
    return samples * sum(mean_flops(size, WORKLOADS[stage])[0].values())


PRETRAIN, FINETUNE = 1_200_000, 665_058  # samples; the paper says 1.2M, the file has 1,246,901


@pytest.mark.parametrize(("block", "expected"), [(12, 31.6), (None, 31.2), (0, 32.0)])
def test_a_pretraining_sample(block, expected):
    assert tflop(size_of(block), 776, 200) == pytest.approx(expected, **NEAR)


def test_finetuning_samples():
    assert tflop(size_of(None), 800, 100) == pytest.approx(32.1, **NEAR)
    assert tflop(size_of(None), 1100, 550, images=0) == pytest.approx(44.2, **NEAR)


def test_components_of_a_pretraining_sample():
    flops = sample_flops(size_of(), 776, 200, 1)
    assert flops["vision tower"] / 1e12 == pytest.approx(0.366 + 0.349, **NEAR)
    assert flops["projector"] / 1e12 == pytest.approx(0.073, **NEAR)
    assert (flops["language model"] + flops["head"]) / 1e12 == pytest.approx(10.26 + 20.52, **NEAR)


def test_full_checkpointing_adds_a_forward_pass():
    assert recomputed_flops(size_of(), 776, 1) / 1e12 == pytest.approx(10.2, **NEAR)


def test_the_larger_model_costs_twice_as_much():
    ratio = tflop(size_of(12, "lmsys/vicuna-13b-v1.5"), 776, 200) / tflop(size_of(), 776, 200)
    assert ratio == pytest.approx(1.95, **NEAR)


def test_what_is_frozen_costs_less():
    model = build_on_meta("lmsys/vicuna-7b-v1.5", CLIP)
    projector_only = measure(model, Tuning(language_model=False))
    assert tflop(projector_only, 776, 200) / tflop(size_of(None), 776, 200) == pytest.approx(2 / 3, rel=0.02)
    adapters = measure(model, Tuning(lora_rank=128))
    assert 2 / 3 < tflop(adapters, 776, 200) / tflop(size_of(None), 776, 200) < 0.75


def test_runs_of_the_paper():
    assert stage_flops("pretrain", PRETRAIN) / 1e15 == pytest.approx(37_900, **NEAR)
    assert stage_flops("finetune", FINETUNE) / 1e15 == pytest.approx(21_900, **NEAR)
    assert utilisation(stage_flops("pretrain", PRETRAIN), A100, 16, 12) == pytest.approx(0.176, **NEAR)
    assert utilisation(stage_flops("finetune", FINETUNE), A100, 16, 7) == pytest.approx(0.174, **NEAR)


@pytest.mark.parametrize(
    ("gpu", "count", "pretrain", "finetune"),
    [
        (H100, 1, (10.6, 17.7, 21.3, 26.6), (6.1, 10.2, 12.3, 15.3)),
        (A100, 8, (4.2, 7.0, 8.4, 10.5), (2.4, 4.1, 4.9, 6.1)),
        (H100, 8, (1.3, 2.2, 2.7, 3.3), (0.8, 1.3, 1.5, 1.9)),
        (A100, 16, (2.1, 3.5, 4.2, 5.3), (1.2, 2.0, 2.4, 3.0)),
    ],
)
def test_hours_by_machine_and_utilisation(gpu, count, pretrain, finetune):
    for share, *expected in zip((1, 0.6, 0.5, 0.4), pretrain, finetune, strict=True):
        flops = (stage_flops("pretrain", PRETRAIN), stage_flops("finetune", FINETUNE))
        found = [hours(of_stage, gpu, count, share) for of_stage in flops]
        for value, figure in zip(found, expected, strict=True):  # the figures have one decimal
            assert value == pytest.approx(figure, rel=0.02, abs=0.055)


@pytest.mark.parametrize(
    ("gpu", "serial", "overlapped", "compute_only"),
    [
        (A100, (2.6, 6.3, 10.0, 11.0), 16.8, 27.9),
        (H100, (4.5, 12.1, 21.0, 24.0), 36.7, 88.6),
        (MEASURED, (4.0, 10.6, 18.2, 20.7), 32.9, 71.4),
        (GPUS["H200"], (6.2, 16.1, 26.6, 29.9), 52.6, 88.6),
    ],
)
def test_captions_a_second(gpu, serial, overlapped, compute_only):
    for batch, expected in zip((4, 16, 64, 128), serial, strict=True):
        assert caption_rate(size_of(), gpu, batch).serial == pytest.approx(expected, **NEAR)
    full = caption_rate(size_of(), gpu, 128)
    assert (full.overlapped, full.compute_only) == pytest.approx((overlapped, compute_only), **NEAR)


def test_seconds_of_a_caption_by_part():
    seconds = caption_seconds(size_of(), H100)
    assert seconds.prompt == pytest.approx(8.59e12 / (0.6 * 989e12), **NEAR)
    assert seconds.weights == pytest.approx(13.21e9 / 3.35e12, **NEAR)
    assert seconds.context == pytest.approx(512 * 1024 / 3.35e12, **NEAR)
    assert seconds.steps(1, 64, 64 * 720) == pytest.approx(0.0112, **NEAR)


def test_decode_steps_add_up():
    seconds = caption_seconds(size_of(), H100)
    parts = seconds.steps(30, 8, 5_000) + seconds.steps(70, 8, 5_000 + 8 * 30)
    assert seconds.steps(100, 8, 5_000) == pytest.approx(parts)


def test_large_micro_batches_are_bound_by_compute_and_the_optimizer_by_memory():
    load = WORKLOADS["pretrain"]
    work = micro_step(size_of(), load, 16, Batch(16 * 776, 16, True, True), MASTER, 16)
    assert {name: item.bound(H100) for name, item in work.items() if name != "optimizer"}.keys() == {
        "vision tower",
        "projector",
        "language model",
        "head",
        "recomputation",
    }
    assert work["language model"].bound(H100) == "compute" and work["optimizer"].bound(H100) == "memory"
    assert sum(item.flops for item in work.values()) == pytest.approx(16 * (31.57 + 10.38) * 1e12, rel=0.01)


def test_a_measured_peak_takes_the_place_of_the_nominal_one():
    work = micro_step(size_of(), WORKLOADS["pretrain"], 16, Batch(16 * 776, 16, False, False), MASTER, 16)
    item = work["language model"]
    assert item.seconds(H100.at(798e12)) == pytest.approx(item.seconds(H100) * 989 / 798)


def test_text_only_samples_count_by_their_share():
    load = replace(WORKLOADS["finetune"], image_share=0.5)
    flops, _ = mean_flops(size_of(None), load)
    assert sum(flops.values()) / 1e12 == pytest.approx((32.1 + 44.2) / 2, **NEAR)
