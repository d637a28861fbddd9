"""The trainers on a tiny model: what is learned, what is not, and what is refused."""

import json
import logging

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTTrainer

from dataset_scripts.schema import CAPTION_FEATURES, CAPTION_INSTRUCTION, CONVERSATION_FEATURES
from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor
from tests.tiny import noise_image, tiny_model
from trainers.configs import CaptionerConfig, FinetuneConfig, PretrainConfig
from trainers.label_loss import add_label_loss
from trainers.sharegpt4v_trainer import CaptionerTrainer, FinetuneTrainer, PretrainTrainer


OPTIONS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
}


def conversation(number: int, images: int = 1, turns: int = 1) -> dict:
    messages = []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"What is in picture {number}, {turn}?"},
            {"role": "assistant", "content": "A red square " * (number + 1)},
        ]
    return {
        "id": str(number),
        "source": "test",
        "images": [noise_image(number) for _ in range(images)],
        "messages": messages,
    }


def dataset(*rows: dict) -> Dataset:
    return Dataset.from_list(list(rows), features=CONVERSATION_FEATURES)


def captions(count: int = 4) -> Dataset:
    facts = {name: "x" for name in ("source", "captioner", "prompt_id", "license", "sha256")}
    rows = [
        {"id": str(n), "image": noise_image(n), "caption": "A red square " * (n + 1), **facts} for n in range(count)
    ]
    return Dataset.from_list(rows, features=CAPTION_FEATURES)


def trainer_of(tmp_path, stage="finetune", rows=None, **options):
    model, processor = tiny_model()
    config_class, trainer_class = {
        "pretrain": (PretrainConfig, PretrainTrainer),
        "finetune": (FinetuneConfig, FinetuneTrainer),
        "captioner": (CaptionerConfig, CaptionerTrainer),
    }[stage]
    if stage == "pretrain":
        options.setdefault("tune_vision_from_block", 1)
    config = config_class(output_dir=str(tmp_path / "run"), **{**OPTIONS, **options})
    rows = rows or [conversation(0), conversation(1, turns=2), conversation(2, images=2), conversation(3, images=0)]
    rows = rows if isinstance(rows, Dataset) else dataset(*rows)
    return trainer_class(model=model, args=config, train_dataset=rows, processing_class=processor)


def batch_of(trainer):
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))


def test_finetuning_changes_everything_but_the_tower(tmp_path):
    trainer = trainer_of(tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)


def test_pretraining_changes_the_tower_from_its_block_to_the_last_used(tmp_path):
    trainer = trainer_of(tmp_path, "pretrain", [conversation(0), conversation(1)])
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    blocks = {name.split("layers.")[1].split(".")[0] for name in changed if "encoder.layers" in name}
    assert blocks == {"1", "2"}
    assert not any("embeddings" in name and "vision" in name or "post_layernorm" in name for name in changed)


def test_labels_are_answers_and_end_tokens_only(tmp_path):
    trainer = trainer_of(tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[1]])
    labels = batch["labels"][0]
    text = trainer.processing_class.tokenizer.decode(labels[labels != -100])
    assert text == " A red square A red square </s>" * 2


def test_pretraining_teaches_the_end_token(tmp_path):
    trainer = trainer_of(tmp_path, "pretrain", [conversation(0), conversation(1)])
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["labels"][0, -1] == trainer.processing_class.tokenizer.eos_token_id
    prompt = trainer.processing_class.decode(batch["input_ids"][0])
    assert "USER" not in prompt and "What is in picture" not in prompt


def test_loss_on_label_positions_equals_trls_loss_in_value_and_gradient(tmp_path):
    trainer = trainer_of(tmp_path, tune_vision_from_block=-1)
    batch = batch_of(trainer)

    def measure(compute):
        trainer.model.zero_grad()
        loss = compute(trainer.model, dict(batch), num_items_in_batch=torch.tensor(50))
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}

    loss, gradients = measure(trainer.compute_loss)
    expected, expected_gradients = measure(lambda *a, **k: SFTTrainer.compute_loss(trainer, *a, **k))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5)


def test_loss_equals_the_models_own_mean_over_labels(tmp_path):
    trainer = trainer_of(tmp_path)
    batch = batch_of(trainer)
    ours, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert ours.item() == pytest.approx(trainer.model(**batch).loss.item(), rel=1e-5)
    assert outputs.logits is None


def test_two_micro_batches_train_like_one_batch(tmp_path):
    rows = [conversation(number) for number in range(4)]
    one = trainer_of(tmp_path / "a", rows=rows, per_device_train_batch_size=4, max_steps=1)
    two = trainer_of(
        tmp_path / "b", rows=rows, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1
    )
    one.train()
    two.train()
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_a_batch_without_answers_stops_the_run(tmp_path):
    trainer = trainer_of(tmp_path)
    batch = batch_of(trainer)
    batch["labels"][:] = -100
    with pytest.raises(ValueError, match="No token of this batch is trained.*What is in picture"):
        trainer.compute_loss(trainer.model, batch)


def test_the_table_is_logged_and_saved_with_the_run(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="trainers"):
        trainer = trainer_of(tmp_path)
    assert "projector" in caplog.text and "trained / total" in caplog.text
    trainer.train()
    saved = json.loads((tmp_path / "run" / "trainable.json").read_text())
    assert [row["trains"] for row in saved if row["module"] == "projector"] == [True]


def test_a_run_that_trains_something_else_than_its_table_stops_at_the_first_step(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(RuntimeError, match="should train but got no gradient.*multi_modal_projector"):
        trainer.train()


def test_the_saved_model_holds_weights_processor_template_and_code(tmp_path):
    trainer = trainer_of(tmp_path, "pretrain", [conversation(0), conversation(1)])
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    model = ShareGPT4VForConditionalGeneration.from_pretrained(folder)
    processor = ShareGPT4VProcessor.from_pretrained(folder)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "plain, for pretraining" in processor.chat_template
    assert {"modeling_sharegpt4v.py", "processing_sharegpt4v.py"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    trainer.create_model_card()
    assert not (folder / "README.md").exists()


def test_steps_of_text_alone_do_not_stop_the_run_and_the_check_waits_for_images(tmp_path):
    texts = [conversation(number, images=0) for number in range(4)]
    trainer_of(tmp_path / "a", rows=texts).train()
    trainer = trainer_of(tmp_path / "b", rows=[*texts, conversation(4)], per_device_train_batch_size=1, max_steps=5)
    trainer.model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(RuntimeError, match="should train but got no gradient"):
        trainer.train()


@pytest.mark.parametrize("options", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}, {"packing": True}])
def test_what_packed_training_does_not_do_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FinetuneConfig(output_dir=str(tmp_path), **OPTIONS, **options)


def test_adapters_train_the_llm_alone_and_are_saved_with_the_projector(tmp_path):
    trainer = trainer_of(tmp_path, lora_rank=4)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    trainer.save_model()
    batch = batch_of(trainer)
    expected = trainer.compute_loss(trainer.model.eval(), dict(batch)).item()
    base, _ = tiny_model()
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "run"))
    add_label_loss(loaded.get_base_model())
    assert trainer.compute_loss(loaded.eval(), dict(batch)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{"lora_rank": 4}, {}])
def test_nothing_goes_backward_through_a_frozen_tower_with_checkpointing(tmp_path, options):
    trainer = trainer_of(tmp_path, gradient_checkpointing=True, activation_checkpointing=None, **options)
    needs: set[bool] = set()
    tower = trainer.model.get_base_model() if options else trainer.model
    for module in tower.model.vision_tower.modules():
        module.register_forward_hook(lambda module, args, output: needs.add(requires_grad(output)))
    trainer.train()
    assert trainer.model.is_gradient_checkpointing and needs == {False}


def requires_grad(output) -> bool:
    if isinstance(output, torch.Tensor):
        return output.requires_grad
    return any(requires_grad(part) for part in (output.values() if isinstance(output, dict) else output or ()))


def prompts_of(trainer) -> list[str]:
    rows = [trainer.train_dataset[place] for place in range(len(trainer.train_dataset))]
    return [trainer.processing_class.decode(row["input_ids"]) for row in rows]


@pytest.mark.parametrize("rows", [captions(), [conversation(number) for number in range(4)]])
def test_a_captioner_learns_every_caption_as_the_answer_to_one_instruction(tmp_path, rows):
    trainer = trainer_of(tmp_path, "captioner", rows)
    asked = {prompt.partition(" ASSISTANT:")[0] for prompt in prompts_of(trainer)}
    assert len(asked) == 1 and asked.pop().endswith(f"USER: <image> \n{CAPTION_INSTRUCTION}")
    answers = [prompt.partition("ASSISTANT:")[2] for prompt in prompts_of(trainer)]
    assert answers == [f" {'A red square ' * (number + 1)}</s>" for number in range(4)]
    trainer.train()


def test_a_captioner_refuses_rows_of_several_turns(tmp_path):
    with pytest.raises(ValueError, match="2 rows are not one image with one caption, first: 1, 2"):
        trainer_of(tmp_path, "captioner", [conversation(0), conversation(1, turns=2), conversation(2, images=2)])


def test_a_captioner_without_instruction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="A captioner needs an `instruction`"):
        CaptionerConfig(output_dir=str(tmp_path), instruction="", **OPTIONS)


def test_pretraining_takes_caption_rows_as_they_are(tmp_path):
    trainer = trainer_of(tmp_path, "pretrain", captions(2))
    assert prompts_of(trainer) == [f"<s><image> {'A red square ' * (number + 1)}</s>" for number in range(2)]
    trainer.train()


@pytest.mark.parametrize("shape", ["pad", "crop"])
def test_images_become_squares_as_the_recipe_says_and_the_saved_processor_does_so_too(tmp_path, shape):
    trainer = trainer_of(tmp_path, image_aspect_ratio=shape)
    trainer.save_model()
    saved = ShareGPT4VProcessor.from_pretrained(tmp_path / "run")
    expected = saved(images=[noise_image(0)], text="<image>", return_tensors="pt")["pixel_values"]
    pixels = trainer.data_collator([trainer.train_dataset[0]])["pixel_values"]
    assert saved.image_processor.do_pad is (shape == "pad") and torch.equal(pixels, expected)


def test_a_global_batch_that_does_not_divide_is_kept(tmp_path):
    rows = [conversation(number) for number in range(6)]
    trainer = trainer_of(tmp_path, rows=rows, global_batch_size=5, per_device_train_batch_size=2, num_train_epochs=1)
    batches = list(trainer.get_train_dataloader())
    samples = [len(batch["cu_seq_lens_q"]) - 1 for batch in batches]
    assert trainer.args.gradient_accumulation_steps == 3 and sum(samples[:3]) + sum(samples[3:]) == 6
    assert [sum(samples[:3]), sum(samples[3:])] in ([5, 1], [3, 3])  # what is left of an epoch fills three places too


def test_the_table_tells_adapters_and_the_copy_of_the_projector_apart(tmp_path):
    rows = {(row.module, row.note): row.trains for row in trainer_of(tmp_path, lora_rank=4).trainable}
    assert rows["language model, adapters", ""] and not rows["language model", ""]
    assert rows["projector", ""] and not rows["projector", "before this run"]


def test_adapters_and_a_tuned_tower_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Adapters do not hold a tuned tower"):
        trainer_of(tmp_path, "pretrain", lora_rank=4)


def test_normalisation_by_samples_weighs_a_short_answer_like_a_long_one(tmp_path):
    trainer = trainer_of(tmp_path, loss_normalisation="samples")
    batches = [trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i]])) for i in range(3)]
    alone = [trainer.compute_loss(trainer.model, dict(batch)).item() for batch in batches]
    together = trainer.compute_loss(trainer.model, batch_of(trainer)).item()
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)
    by_tokens = trainer_of(tmp_path).compute_loss(trainer.model, batch_of(trainer)).item()
    assert by_tokens != pytest.approx(together, rel=1e-3)


def test_eight_bit_pixels_train_like_exact_ones(tmp_path):
    exact, fast = trainer_of(tmp_path), trainer_of(tmp_path, exact_images=False)
    batch = batch_of(fast)
    assert batch["pixel_values"].dtype == torch.uint8
    expected = exact.compute_loss(exact.model, batch_of(exact)).item()
    assert fast.compute_loss(exact.model, batch).item() == pytest.approx(expected, rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run_with_the_text(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.model.lm_head.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="The loss is nan. The batch: .*What is in picture"):
        trainer.train()


def test_a_sample_that_is_too_long_stops_the_run_before_its_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"first: 1 \(106\)"):
        trainer_of(tmp_path, max_length=100)
    trainer = trainer_of(tmp_path, max_length=100, on_too_long="drop_turns")
    assert trainer.tokenised.turns_dropped == {"test": 1} and trainer.tokenised.samples == 4


def test_a_dataset_without_images_column_is_refused(tmp_path):
    model, processor = tiny_model()
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}]}])
    config = FinetuneConfig(output_dir=str(tmp_path), **OPTIONS)
    with pytest.raises(ValueError, match="lacks the columns .'images'."):
        FinetuneTrainer(model=model, args=config, train_dataset=rows, processing_class=processor)


def test_chat_template_is_chosen_by_name_not_by_path(tmp_path):
    with pytest.raises(ValueError, match="Set `chat_template`"):
        FinetuneConfig(output_dir=str(tmp_path), chat_template_path="x.jinja", **OPTIONS)
