"""The benchmarks of a GPU run at a tiny size, compare what they time, and claim nothing without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharegpt4v.results import GPU_TARGETS, render_readme


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
LADDER = [
    "padded stock",
    "padded TRL",
    "packed, varlen attention",
    "no checkpointing",
    "label-only head",
    "label-only head, checkpointing",
    "fused kernels",
    "compiled layers",
]


@pytest.fixture(scope="module")
def reports():
    before = {file.name: file.read_bytes() for file in RESULTS.glob("gpu_*.json")}
    runs = {
        name: subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--tiny"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | OFFLINE,
        )
        for name in GPU_TARGETS
    }
    found = {}
    for name, run in runs.items():
        output, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
        found[name] = json.loads(output.splitlines()[-1])
    assert {file.name: file.read_bytes() for file in RESULTS.glob("gpu_*.json")} == before
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", GPU_TARGETS)
def test_without_a_gpu_no_target_counts_as_met(reports, name):
    report = reports[name]
    assert report["benchmark"] == name
    assert report["targets"] == GPU_TARGETS[name]
    assert report["details"]["device"] == "cpu"
    assert not report["met"]


@pytest.mark.slow
def test_every_rung_is_measured_or_says_why_not(reports):
    rungs = reports["gpu_train"]["details"]["rungs"]
    assert [rung["name"] for rung in rungs] == LADDER
    for rung in rungs:
        assert rung.get("reason") or rung["seconds"]["steps"] >= 5, rung
    assert [rung["name"] for rung in rungs if "reason" in rung] in ([], ["fused kernels"])


@pytest.mark.slow
def test_every_rung_has_the_loss_and_gradients_of_the_stock_step(reports):
    report = reports["gpu_train"]
    assert report["equal"]
    for rung in report["details"]["rungs"][1:]:
        assert "reason" in rung or (rung["differences"]["vision_tower"] <= 1e-4 and rung["equal"])


@pytest.mark.slow
def test_memory_has_a_floor_beside_each_block_of_the_paper(reports):
    report = reports["gpu_memory"]
    details = report["details"]
    blocks = ["24", "18", "12", "6", "0"]
    assert report["equal"]
    assert list(details["peak_gb"]) == list(details["floor_gb"]) == list(details["paper_gb"]) == blocks
    assert all(peak is None for peak in details["peak_gb"].values())
    assert details["slopes"]["paper"]["peak_gb"] == pytest.approx(0.58, abs=0.01)


@pytest.mark.slow
def test_every_side_captions_the_images_or_says_why_not(reports):
    report = reports["gpu_captioning"]
    details = report["details"]
    sides = {side["name"]: side for side in details["sides"]}
    assert list(sides) == ["ours", "batch_64", "released", "batch_16"]
    assert details["images"] == 16
    assert {name: side["images"] for name, side in sides.items()} == {**dict.fromkeys(sides, 16), "released": 8}
    assert all(len(side["seconds"]) == 3 and "reason" not in side for side in sides.values())
    assert sides["ours"]["mean_rows"] <= sides["ours"]["slots"] < 16
    assert sides["batch_16"]["token_efficiency"] < 1


@pytest.mark.slow
def test_captions_of_forced_lengths_are_those_of_generate(reports):
    report = reports["gpu_captioning"]
    equality = report["details"]["equality"]
    assert report["equal"]
    assert equality["texts"]
    assert equality["distinct_texts"] == equality["images"] == 4


@pytest.mark.slow
def test_captions_a_second_of_a_trial_are_no_figure(reports):
    ratios = reports["gpu_captioning"]["ratios"]
    assert ratios["images_per_second"] is None
    assert all(ratios[name] > 0 for name in ("released", "batch_16", "batch_64"))


def test_the_readme_shows_what_was_not_measured_with_its_target(tmp_path):
    readme = "<!-- results:begin --><!-- results:end -->"
    shown = render_readme(readme, tmp_path)
    assert "| gpu_train | mfu | not measured | 0.45 | one H100 |" in shown
    measured = {"benchmark": "gpu_train", "ratios": {"mfu": 0.5}, "targets": {"mfu": 0.45}, "machine": "NVIDIA H100"}
    (tmp_path / "gpu_train.json").write_text(json.dumps(measured))
    shown = render_readme(readme, tmp_path)
    assert "| gpu_train | mfu | 0.50 | 0.45 | NVIDIA H100 |" in shown
    assert "| gpu_memory | slope | not measured | 1.0 | one H100 |" in shown
    assert "| gpu_captioning | images_per_second | not measured | 8.0 | one H100 |" in shown
