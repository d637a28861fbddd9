"""Models of other families, trained as TRL trains them."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file

from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES
from tests.families import FAMILIES, UNMARKED, family
from tests.tiny import noise_image
from tests.trainers.test_sharegpt4v_trainer import OPTIONS
from trainers.any_model import PROJECTOR, AnyModelTrainer
from trainers.configs import AnyModelConfig
from trainers.sharding import blank_image, run_tower_on_text


QUESTION, ANSWER = "What is it?", "A red square."


def rows(turns: int = 1) -> Dataset:
    talk = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}] * turns
    made = [{"id": str(n), "source": "test", "images": [noise_image(n)], "messages": talk} for n in range(4)]
    return Dataset.from_list(made, features=CONVERSATION_FEATURES)


def captions() -> Dataset:
    facts = {name: "x" for name in ("source", "captioner", "prompt_id", "license", "sha256")}
    made = [{"id": str(n), "image": noise_image(n), "caption": ANSWER, **facts} for n in range(4)]
    return Dataset.from_list(made, features=CAPTION_FEATURES)


def trainer_of(tmp_path, name, train_dataset=None, **options):
    model, processor = family(name)
    config = AnyModelConfig(output_dir=str(tmp_path / "run"), **{**OPTIONS, **options})
    return AnyModelTrainer(model, config, rows() if train_dataset is None else train_dataset, processor)


def trained_text(trainer) -> str:
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"][0]
    return trainer.processing_class.tokenizer.decode(labels[labels != -100]).strip()


def changed(trainer) -> set[str]:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    return {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_alone_are_trained_whatever_the_template_marks(tmp_path, name):
    text = trained_text(trainer_of(tmp_path, name))
    assert text.startswith(ANSWER) and QUESTION not in text


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_trained_with_one_end_also_where_the_template_has_none(tmp_path, name):
    trainer = trainer_of(tmp_path, name)
    assert trained_text(trainer) == ANSWER + trainer.processing_class.tokenizer.eos_token


def test_every_answer_ends_where_the_template_marks_answers_but_not_their_ends(tmp_path, caplog):
    model, processor = family("llava")
    answer = "{% generation %}{{ c.text }}{% endgeneration %}"
    both = f"{{% if m.role == 'user' %}}{{{{ c.text }}}}{{% else %}}{answer}{{% endif %}}"
    processor.chat_template = marked = UNMARKED.replace("{{ c.text }}", both)
    config = AnyModelConfig(output_dir=str(tmp_path / "run"), **OPTIONS)
    text = trained_text(AnyModelTrainer(model, config, rows(turns=2), processor))
    assert text == f"{ANSWER}</s> {ANSWER}</s>"
    assert "ends no answer: </s> is trained behind each." in caplog.text
    assert processor.chat_template == marked  # what asks is not changed


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_train_the_llm_and_the_projector_whole_and_leave_the_tower(tmp_path, name):
    names = changed(trainer_of(tmp_path, name, lora_rank=4))
    assert all("lora_" in one or "modules_to_save" in one for one in names)
    assert {"lora_" in one for one in names} == {True, False}
    tower = ("visual.blocks", "vision_model", "vision_tower")
    assert not any(part in one for one in names for part in tower)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_adapters_llm_and_projector_train(tmp_path, name):
    names = changed(trainer_of(tmp_path, name, lora_rank=0))
    assert any("layers" in one and "visi" not in one for one in names)
    assert any(part in one for one in names for part in ("merger", "connector", "multi_modal_projector"))
    assert not any(part in one for one in names for part in ("visual.blocks", "vision_model", "vision_tower"))


def test_the_tower_trains_when_it_is_told_to(tmp_path):
    names = changed(trainer_of(tmp_path, "idefics3", lora_rank=0, tune_vision=True))
    assert any("vision_model" in one for one in names)


def test_adapters_are_saved_and_load_on_their_base(tmp_path):
    trainer = trainer_of(tmp_path, "qwen2_5_vl", lora_rank=4)
    trainer.train()
    trainer.save_model()
    loaded = PeftModel.from_pretrained(family("qwen2_5_vl")[0], str(tmp_path / "run"))
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    batch = {name: tensor for name, tensor in next(iter(trainer.get_train_dataloader())).items()}
    expected = trainer.model.eval()(**batch).loss
    assert len(stored) and torch.allclose(loaded.eval()(**batch).loss, expected, atol=1e-6)


def test_captions_are_trained_as_answers_to_the_instruction(tmp_path):
    trainer = trainer_of(tmp_path, "qwen2_5_vl", captions(), instruction="Say what you see.")
    batch = next(iter(trainer.get_train_dataloader()))
    assert "Say what you see." in trainer.processing_class.tokenizer.decode(batch["input_ids"][0])
    assert trained_text(trainer).startswith(ANSWER)


def test_several_turns_are_trained_where_the_template_marks_answers(tmp_path):
    assert trained_text(trainer_of(tmp_path, "idefics3", rows(turns=2))).count(ANSWER) == 2


def test_several_turns_without_marks_are_refused_by_name(tmp_path, caplog):
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match="Row '.' has several turns, and the"),
    ):
        trainer_of(tmp_path, "llava", rows(turns=2)).train()
    assert "Answers are told by their place, not by the chat template" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 100}, "`max_length` cuts through images here"),
        ({"tune_vision": True}, "Adapters do not hold a tuned tower"),
        ({"global_batch_size": 5}, "`global_batch_size` of 5 must be a multiple of 2"),
    ],
)
def test_what_padded_training_does_not_do_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        AnyModelConfig(output_dir=str(tmp_path), **{**OPTIONS, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sharded_model_runs_its_tower_on_text_alone_and_learns_the_same(name):
    """So that no rank waits for one without an image; see `trainers.sharding`."""
    model, processor = family(name)
    ids = processor.tokenizer("A red square on a white background.", return_tensors="pt")["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    expected = gradients_of(model, batch)
    run_tower_on_text(model, blank_image(processor, model))
    found = gradients_of(model, batch)
    tower = {name for name, parameter in model.named_parameters() if parameter.grad is not None} - set(expected)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert any(PROJECTOR.search(name) for name in tower) and all(not found[name].any() for name in tower)


def gradients_of(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
