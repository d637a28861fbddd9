"""What a run says about itself: rates, the first batch as text, a curve."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainers.test_any_model import trainer_of as any_trainer
from tests.trainers.test_sharegpt4v_trainer import conversation, trainer_of
from trainers.geometry import measure
from trainers.roofline import sample_flops
from trainers.watch import CURVE, DRIVER_NAMES, count_samples, peak_of, plot_history, show_labels


RATES = {"samples_per_second", "tokens_per_second", "label_tokens_per_second", "step_efficiency"}


def logs_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_every_log_of_a_loss_has_the_rates(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3)
    trainer.train()
    assert len(logs_of(trainer)) == 3
    for entry in logs_of(trainer):
        assert RATES <= set(entry) and "mfu" not in entry  # no GPU
        assert entry["label_tokens_per_second"] < entry["tokens_per_second"]
        assert entry["samples_per_second"] > 0 and entry["step_efficiency"] == 1  # one rank waits for nobody


def test_rates_are_counts_over_time(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, max_steps=2, logging_steps=2)
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("trainers.watch.time.perf_counter", lambda: next(clock))
    trainer.peak_flops = 1e6
    batches = list(trainer.get_train_dataloader())
    trainer.train()
    entry = logs_of(trainer)[0]
    samples = [sample for batch in batches for sample in count_samples(batch)]
    assert entry["samples_per_second"] == len(samples) / 4 == 1
    assert entry["tokens_per_second"] == pytest.approx(sum(sample[0] for sample in samples) / 4, rel=1e-3)
    assert entry["label_tokens_per_second"] == pytest.approx(sum(sample[1] for sample in samples) / 4, rel=1e-3)
    size = measure(trainer.model, trainer.args.tuning)
    flops = sum(sum(sample_flops(size, *sample).values()) for sample in samples)
    assert entry["mfu"] == pytest.approx(flops / 4 / 1e6, rel=1e-3)


def test_packed_samples_are_counted_with_their_images(tmp_path):
    trainer = trainer_of(tmp_path)
    rows = [trainer.train_dataset[place] for place in range(4)]
    counts = count_samples(trainer.data_collator(rows))
    labels = [sum(end - start for start, end in np.reshape(row["label_spans"], (-1, 2))) for row in rows]
    assert [count[0] for count in counts] == [row["length"] for row in rows]
    assert [count[1] for count in counts] == labels
    assert sum(count[2] for count in counts) == sum(len(row["images"]) for row in rows) == 4


def test_padding_does_not_count():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, 6, 7, 8], [-100, 6, -100, -100]]),
    }
    assert count_samples(batch) == [(4.0, 3.0, 0.0), (2.0, 1.0, 0.0)]


def test_the_first_batch_is_shown_with_its_trained_part_in_brackets(tmp_path, caplog):
    trainer = trainer_of(tmp_path, rows=[conversation(0), conversation(1, turns=2)], per_device_train_batch_size=2)
    with caplog.at_level(logging.INFO, logger="trainers"):
        trainer.train()
    shown = [record.message for record in caplog.records if "The first batch" in record.message]
    assert len(shown) == 1
    lines = shown[0].splitlines()[1:]
    assert len(lines) == 2
    assert sorted(line.count("[ A red square ") for line in lines) == [1, 2]
    assert all(line.rstrip().endswith("</s>]") and "USER: <image> x 4 " in line for line in lines)


def test_padded_batches_are_shown_without_padding(tmp_path):
    trainer = any_trainer(tmp_path, "idefics3")
    text = show_labels(next(iter(trainer.get_train_dataloader())), trainer.processing_class)
    assert "[ A red square.<end_of_utterance>" in text and "<pad>" not in text


def test_a_run_ends_with_a_curve(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3)
    trainer.train()
    with Image.open(tmp_path / "run" / CURVE) as curve:
        assert curve.size == (960, 720) and len(curve.convert("RGB").getcolors(10**6)) > 10


def test_a_history_from_before_the_rates_is_drawn_too(tmp_path):
    plot_history([{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}, {"eval_loss": 3.0}], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_bar_shows_loss_and_rates(tmp_path, capsys):
    trainer_of(tmp_path, disable_tqdm=False).train()
    printed = capsys.readouterr().err
    assert "samples/s=" in printed and "label tok/s=" in printed and "loss=" in printed


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA H100 PCIe", None),
        ("Some other", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_driver_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda")) == peak
    assert peak_of(torch.device("cpu")) is None and set(DRIVER_NAMES) >= {"A100", "H100", "H200"}


def test_tensorboard_gets_the_rates_with_the_loss(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing import event_accumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer_of(tmp_path, report_to="tensorboard").train()
    events = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert {"train/loss", *(f"train/{rate}" for rate in RATES)} <= set(events.Tags()["scalars"])


def test_rates_are_written_with_the_state_of_the_run(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_state()
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert set(history[0]) >= RATES
