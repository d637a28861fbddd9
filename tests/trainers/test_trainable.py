"""What trains, and the check that it does."""

import pytest
import torch

from tests.tiny import chat, noise_image, tiny_model
from trainers.trainable import (
    check_gradients,
    format_table,
    last_used_block,
    select_trainable,
    trainable_table,
)


def trained_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def model():
    return tiny_model()[0]


@pytest.fixture
def stepped():
    """A model after a real backward pass, and its optimizer."""
    model, processor = tiny_model()
    select_trainable(model, 1, tune_projector=True, tune_language_model=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = processor.apply_chat_template(
        chat("What is it?", noise_image(), answer="A cat."), tokenize=True, return_dict=True, return_tensors="pt"
    )
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return model, optimizer


def test_second_to_last_hidden_state_uses_all_blocks_but_the_last(model):
    assert last_used_block(model) == 2  # 4 blocks


def test_blocks_from_k_train_and_the_unreached_ones_do_not(model):
    select_trainable(model, 1, tune_projector=True, tune_language_model=True)
    blocks = {int(name.split("layers.")[1].split(".")[0]) for name in trained_names(model) if "encoder" in name}
    assert blocks == {1, 2}
    assert not [name for name in trained_names(model) if "embeddings" in name and "vision" in name]


def test_minus_one_trains_the_embeddings_of_the_tower_too(model):
    select_trainable(model, -1, tune_projector=False, tune_language_model=False)
    names = trained_names(model)
    assert any("patch_embedding" in name for name in names)
    assert any("pre_layrnorm" in name for name in names)
    assert not any("post_layernorm" in name or "layers.3." in name for name in names)
    assert all("vision_tower" in name for name in names)


def test_none_freezes_the_tower(model):
    select_trainable(model, None, tune_projector=True, tune_language_model=True)
    assert not any("vision_tower" in name for name in trained_names(model))
    assert any("multi_modal_projector" in name for name in trained_names(model))
    assert "lm_head.weight" in trained_names(model)


@pytest.mark.parametrize("block", [-2, 5, 24])
def test_a_block_that_does_not_exist_is_refused(model, block):
    with pytest.raises(ValueError, match=f"from -1 to 4, the number of blocks, got {block}"):
        select_trainable(model, block, tune_projector=True, tune_language_model=True)


@pytest.mark.parametrize("block", [3, 4])
def test_a_block_that_the_loss_does_not_reach_freezes_the_tower_and_says_so(model, block, caplog):
    select_trainable(model, block, tune_projector=True, tune_language_model=True)
    assert not any("vision_tower" in name for name in trained_names(model))
    assert "reaches block 2 at most, so the whole tower is frozen" in caplog.text


def test_nothing_to_train_is_refused(model):
    with pytest.raises(ValueError, match="Nothing trains"):
        select_trainable(model, None, tune_projector=False, tune_language_model=False)


def test_table_counts_every_parameter_once_and_names_the_unreached(model):
    select_trainable(model, 1, tune_projector=True, tune_language_model=False)
    rows = {row.module: row for row in trainable_table(model)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["vision tower, blocks 1-2"].trains
    assert not rows["vision tower, block 0"].trains
    assert rows["vision tower, block 3"].note == "not reached by the loss"
    assert rows["projector"].trains and not rows["language model"].trains
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{trained:,}" in format_table(list(rows.values()))


def test_check_accepts_a_true_step(stepped):
    check_gradients(*stepped)


def test_check_names_a_trainable_parameter_without_gradient(stepped):
    model, optimizer = stepped
    model.model.multi_modal_projector.linear_1.bias.grad = None
    with pytest.raises(RuntimeError, match="should train but got no gradient.*linear_1.bias"):
        check_gradients(model, optimizer)


def test_check_names_a_frozen_parameter_with_gradient(stepped):
    model, optimizer = stepped
    weight = model.model.vision_tower.embeddings.patch_embedding.weight
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(RuntimeError, match="are frozen but got a gradient.*patch_embedding"):
        check_gradients(model, optimizer)


def test_check_names_a_frozen_parameter_in_the_optimizer(stepped):
    model, optimizer = stepped
    optimizer.add_param_group({"params": [model.model.vision_tower.post_layernorm.weight]})
    with pytest.raises(RuntimeError, match="otherwise by the optimizer.*post_layernorm"):
        check_gradients(model, optimizer)
