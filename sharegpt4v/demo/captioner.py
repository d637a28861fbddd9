"""
Caption photographs in a process that knows nothing of this repository.

The demo runs this file with `python -I -S` and only the folder of installed packages on the path, so the model must
load from what was saved. It imports nothing of ours on purpose.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path


BATCH_SIZE = 16  # about 0.3 GB of keys and values for the demo's model


def main(argv: Sequence[str]) -> None:
    """
    Read `requests.json` (a list of `{"image": path, "prompt": text}`), write the captions in the same order.

    Args:
        argv (`Sequence[str]`): Command line without the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Folder of the saved model.")
    parser.add_argument("--requests", type=Path, required=True, help="JSON list of image and prompt.")
    parser.add_argument("--output", type=Path, required=True, help="Where the captions go.")
    parser.add_argument("--site-packages", nargs="+", required=True, help="Folders of the installed packages.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Load the classes saved beside the weights.")
    parser.add_argument("--max-new-tokens", type=int, default=320, help="Upper bound of a caption, in tokens.")
    arguments = parser.parse_args(argv)
    sys.path.extend(arguments.site_packages)
    if importlib.util.find_spec("modeling_sharegpt4v") is not None:
        raise RuntimeError("This process can import the repository, so it would not prove that the saved model loads.")

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trust = arguments.trust_remote_code
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=trust)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=trust, dtype=torch.float32)
    chats = [
        [{"role": "user", "content": [{"type": "image", "path": r["image"]}, {"type": "text", "text": r["prompt"]}]}]
        for r in json.loads(arguments.requests.read_text(encoding="utf-8"))
    ]
    answers: list[str] = []
    for start in range(0, len(chats), BATCH_SIZE):
        inputs = processor.apply_chat_template(
            chats[start : start + BATCH_SIZE],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
        answers += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    result = {
        "model_class": type(model).__name__,
        "model_module": type(model).__module__.partition(".")[0],
        "processor_class": type(processor).__name__,
        "captions": [answer.strip() for answer in answers],
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
