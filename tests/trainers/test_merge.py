"""Adapters joined with their base: what generates with them generates the same without them."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from dataset_scripts.build import write_repo
from modeling_sharegpt4v import ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor
from tests.families import family
from tests.tiny import chat, noise_image, tiny_model
from trainers.merge import main as merge
from trainers.train import main as train


def row(number: int) -> dict:
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A red square."}]
    return {"id": str(number), "source": "test", "images": [noise_image(number)], "messages": talk}


def train_adapters(folder, stage: str, model, processor) -> None:
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_repo(folder / "data", {}, {"talk": {"train": [row(number) for number in range(4)]}})
    options = {
        "stage": stage,
        "model": folder / "base",
        "dataset": folder / "data",
        "dataset_config": "talk",
        "output_dir": folder / "adapters",
        "lora_rank": 4,
        "learning_rate": 0.05,
        "max_steps": 3,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "activation_checkpointing": False,
    }
    train([word for name, value in options.items() for word in (f"--{name}", str(value))])


@pytest.mark.parametrize("stage", ["captioner", "any_model"])
def test_the_merged_model_gives_the_logits_of_base_and_adapters(tmp_path, stage):
    ours = stage == "captioner"
    train_adapters(tmp_path, stage, *(tiny_model() if ours else family("idefics3")))
    assert merge([str(tmp_path / "adapters"), "--output", str(tmp_path / "merged")]) == 0
    model_class, processor_class = (AutoModelForImageTextToText, AutoProcessor)
    if ours:
        model_class, processor_class = (ShareGPT4VForConditionalGeneration, ShareGPT4VProcessor)
    processor = processor_class.from_pretrained(tmp_path / "merged")
    base = model_class.from_pretrained(tmp_path / "base").eval()
    question = chat("What?", noise_image())
    inputs = processor.apply_chat_template(
        question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        before = base(**inputs).logits
        expected = PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()(**inputs).logits
        merged = model_class.from_pretrained(tmp_path / "merged").eval()(**inputs).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-3)
    ends = GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id
    assert processor.tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])  # where answers ended


def test_an_existing_output_is_not_replaced(tmp_path, caplog):
    assert merge([str(tmp_path), "--output", str(tmp_path)]) == 1
    assert "is there already. Name a new folder." in caplog.text


def test_a_folder_without_adapters_is_refused(tmp_path, caplog):
    assert merge([str(tmp_path), "--output", str(tmp_path / "new")]) == 1
    assert "adapter_config.json" in caplog.text and not (tmp_path / "new").exists()
