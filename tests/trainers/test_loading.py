"""What a recipe names, loaded."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.original_checkpoints import Canary
from tests.tiny import tiny_clip, tiny_llm, tiny_model, tiny_tokenizer
from trainers.loading import load_model, take_projector
from trainers.recipes import RunArguments


def run_of(model: Path, **options) -> RunArguments:
    return RunArguments("pretrain", str(model), "unused", **options)


def projector_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.multi_modal_projector.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A saved model with another projector than that of `tiny_model()`."""
    folder = tmp_path_factory.mktemp("trained")
    model, processor = tiny_model(seed=5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_projector_comes_from_a_model_and_the_rest_stays(trained, tmp_path):
    base, processor = tiny_model()
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _ = load_model(run_of(tmp_path, projector_from=str(trained)))
    assert equal(projector_of(model), projector_of(tiny_model(seed=5)[0]))
    assert not equal(projector_of(model), projector_of(base))
    for name, tensor in base.state_dict().items():
        assert "multi_modal_projector" in name or torch.equal(model.state_dict()[name], tensor)


def test_a_projector_comes_from_shards_and_from_a_file(tmp_path):
    trained, _ = tiny_model(seed=5)
    trained.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    save_file(
        {f"x.multi_modal_projector.{n}": t for n, t in projector_of(trained).items()}, tmp_path / "p.safetensors"
    )
    for source in (tmp_path / "shards", tmp_path / "p.safetensors"):
        model, _ = tiny_model()
        take_projector(model, str(source))
        assert equal(projector_of(model), projector_of(trained))


def test_an_llm_and_a_tower_are_joined_with_a_projector(trained, tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_llm(len(tokenizer)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    tower, _ = tiny_model(vision=tiny_clip())
    tower.model.vision_tower.save_pretrained(tmp_path / "tower")
    options = {"vision_tower": str(tmp_path / "tower"), "projector_from": str(trained), "dtype": "bfloat16"}
    model, processor = load_model(run_of(tmp_path / "llm", **options))
    assert model.dtype == torch.bfloat16 and processor.image_token_id == model.config.image_token_index
    expected = {name: tensor.bfloat16() for name, tensor in projector_of(tiny_model(seed=5)[0]).items()}
    assert equal(projector_of(model), expected)


def test_a_projector_of_another_shape_is_refused(tmp_path):
    model, _ = tiny_model()
    before = projector_of(model)
    save_file({"multi_modal_projector.linear_1.weight": torch.zeros(3, 3)}, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="does not fit: expected .*'linear_1.weight': .64, 32..* got .*3, 3"):
        take_projector(model, str(tmp_path / "p.safetensors"))
    save_file({"other": torch.zeros(3)}, tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="got no projector at all. One as LLaVA publishes it is converted"):
        take_projector(model, str(tmp_path / "q.safetensors"))
    assert equal(projector_of(model), before)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "mm_projector.bin"])
def test_a_pickle_is_never_opened(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    model, _ = tiny_model()
    for source in (folder, folder / name):
        with pytest.raises(
            ValueError, match="has no safetensors file to take a projector from. One as LLaVA publishes"
        ):
            take_projector(model, str(source))
    assert not (tmp_path / "ran").exists()
