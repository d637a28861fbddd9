"""A projector alone, from LLaVA's file into safetensors."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sharegpt4v.convert_projector import main
from tests.original_checkpoints import Canary


LAYERS = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
NEW = {name: name.replace("0.", "linear_1.").replace("2.", "linear_2.") for name in LAYERS}


def projector(prefix: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{prefix}{name}": torch.randn(shape).bfloat16() for name, shape in LAYERS.items()}


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "base_model.model.model.mm_projector.", "mm_projector."])
def test_llavas_file_becomes_safetensors_with_the_same_numbers(tmp_path, prefix):
    torch.save(projector(prefix), tmp_path / "mm_projector.bin")
    assert main([str(tmp_path / "mm_projector.bin"), str(tmp_path / "new" / "projector.safetensors")]) == 0
    tensors = load_file(tmp_path / "new" / "projector.safetensors")
    assert set(tensors) == {f"model.multi_modal_projector.{name}" for name in NEW.values()}
    for old, name in NEW.items():
        assert torch.equal(tensors[f"model.multi_modal_projector.{name}"], projector("")[old])


def test_a_projector_within_a_whole_checkpoint_is_found(tmp_path):
    named = {f"multi_modal_projector.{NEW[name]}": tensor for name, tensor in projector("").items()}
    save_file({**named, "language_model.lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert main([str(tmp_path / "model.safetensors"), str(tmp_path / "projector.safetensors")]) == 0
    assert len(load_file(tmp_path / "projector.safetensors")) == 4


def test_what_is_no_projector_is_refused(tmp_path, caplog):
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert main([str(tmp_path / "model.safetensors"), str(tmp_path / "out.safetensors")]) == 1
    assert "holds no projector of two layers (mlp2x_gelu): found none of its tensors" in caplog.text
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, caplog):
    (tmp_path / "mm_projector.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    assert main([str(tmp_path / "mm_projector.bin"), str(tmp_path / "out.safetensors")]) == 1
    assert "would run code while it loads, which is refused" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_an_existing_output_is_not_replaced(tmp_path, caplog):
    torch.save(projector("model.mm_projector."), tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"mine")
    assert main([str(tmp_path / "a.bin"), str(tmp_path / "b.safetensors")]) == 1
    assert "is there already" in caplog.text and (tmp_path / "b.safetensors").read_bytes() == b"mine"
