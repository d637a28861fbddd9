"""Small folders of everything that can be published, with all the facts that their cards need."""

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file


REPO = "tester/little"
PERSON = {
    "base_model": "lmsys/vicuna-7b-v1.5",
    "datasets": ["tester/captions"],
    "license": "llama2",
    "language": "en",
    "sources": ["vicuna", "clip"],
    "limits": ["It sees what is not there."],
    "hardware": "2 CPU cores",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
RUN = {
    "stage": "finetune", "instruction": None, "samples": 12, "samples_dropped": {}, "turns_dropped": {},
    "step_samples": 2, "world_size": 1, "bf16": True, "seconds": 97.6, "peak_memory_gb": 4.29,
}  # fmt: skip
STATE = {
    "global_step": 6, "epoch": 1.0,
    "log_history": [{"loss": 3.2, "learning_rate": 2e-5}, {"loss": 2.1, "learning_rate": 0.0}],
}  # fmt: skip
TRAINABLE = [{"module": "projector", "parameters": 443520, "trains": True, "dtype": "float32", "note": ""}]
OURS = "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration"


def write_json(path: Path, content: object) -> None:
    """Write JSON, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def run_facts(folder: Path, **person: object) -> None:
    """What training and a person leave beside weights."""
    write_json(folder / "run.json", RUN)
    write_json(folder / "trainer_state.json", STATE)
    write_json(folder / "trainable.json", TRAINABLE)
    (folder / "card.yaml").write_text(yaml.safe_dump({**PERSON, **person}), encoding="utf-8")


def model_folder(folder: Path, **person: object) -> Path:
    """A model as our class saves it and a native class saves it again: our name, `auto_map`, and no code files."""
    run_facts(folder, **person)
    config = {
        "architectures": ["ShareGPT4VForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_sharegpt4v.ShareGPT4VConfig",
            "AutoModel": OURS,
            "AutoModelForImageTextToText": OURS,
        },
        "model_type": "llava",
        "text_config": {"model_type": "llama", "_name_or_path": "/data/weights/vicuna"},
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "processor_config.json", {"auto_map": {"AutoProcessor": "processing_sharegpt4v.ShareGPT4VProcessor"}}
    )
    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    (folder / "checkpoint-6").mkdir()
    (folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"\x80\x04.")
    return folder


def adapter_folder(folder: Path, base: str = "/data/base", **person: object) -> Path:
    """Adapters that name a folder of the machine as their base model."""
    run_facts(folder, **person)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base, "target_modules": ["q"]}
    write_json(folder / "adapter_config.json", config)
    save_file({"weight": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")
    return folder
