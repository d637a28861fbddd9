"""
What `test_round_trip.py` lets a user do, who has the libraries and not this repository.

The first word is the step: `push` what lies in the folder `made`; `use` it in a process with empty caches and push the
trained model; `use_again`, in another, what was pushed last.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi


MODEL, DATASET, SPACE = "tester/tiny-model", "tester/tiny-captions", "tester/mme"
QUESTION = "What is in this picture?"
facts: dict[str, Any] = {}


def load(revision: str, **options: Any) -> tuple[Any, Any]:
    """A model and its processor as of a revision."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, info = AutoModelForImageTextToText.from_pretrained(
        MODEL, revision=revision, output_loading_info=True, **options
    )
    faults = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    facts.setdefault("loaded", []).append([type(model).__name__, type(model).__module__.split(".")[0], faults])
    return model, AutoProcessor.from_pretrained(MODEL, revision=revision, **options)


def inputs_of(processor: Any, row: dict[str, Any], with_answer: bool = False) -> Any:
    """A question about the image of a row, and its caption as the answer."""
    content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": QUESTION}]
    turns = [{"role": "user", "content": content}]
    if with_answer:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": row["caption"]}]})
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(turns, add_generation_prompt=not with_answer, **options)


def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    """Logits without gradient."""
    with torch.no_grad():
        return model.eval()(**inputs).logits


def push() -> None:
    """Push a model by `push_to_hub`, and a dataset and a metric as folders."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("made/model", trust_remote_code=True)
    facts["model"] = model.push_to_hub(MODEL, private=True, max_shard_size="100KB").oid
    facts["processor"] = AutoProcessor.from_pretrained("made/model", trust_remote_code=True).push_to_hub(MODEL).oid
    api = HfApi()
    api.create_repo(DATASET, repo_type="dataset", private=True)
    facts["dataset"] = api.upload_folder(repo_id=DATASET, repo_type="dataset", folder_path="made/dataset").oid
    api.create_repo(SPACE, repo_type="space", space_sdk="static")
    facts["space"] = api.upload_folder(repo_id=SPACE, repo_type="space", folder_path="made/mme").oid


def use(revision: str, dataset_revision: str) -> None:
    """Load everything, train a step on a row from the stream, and push the model again, and the dataset's rows too."""
    from datasets import load_dataset

    rows = load_dataset(DATASET, "captions", split="train", revision=dataset_revision)
    streamed = load_dataset(DATASET, "captions", split="train", streaming=True)
    row = next(iter(streamed))
    facts["rows"] = [one["id"] for one in rows]
    facts["streamed"] = row["id"], row["caption"] == rows[0]["caption"], row["image"].size

    native, native_processor = load(revision)
    ours, processor = load(revision, trust_remote_code=True)
    inputs = inputs_of(processor, row)
    logits = logits_of(ours, inputs)
    facts["equal"] = torch.equal(logits, logits_of(native, inputs_of(native_processor, row)))

    batch = inputs_of(processor, row, with_answer=True)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    loss = ours.train()(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    facts["loss"] = float(loss), float(ours(**batch, labels=batch["input_ids"]).loss)
    facts["pushed"] = ours.push_to_hub(MODEL, commit_message="Train a step", max_shard_size="100KB").oid
    HfApi().create_tag(MODEL, tag="trained", revision=facts["pushed"])
    facts["changed"] = not torch.equal(logits, logits_of(ours, inputs))
    torch.save(logits_of(ours, inputs), "logits.pt")
    rows.remove_columns(["sha256"]).push_to_hub(f"{DATASET}-again", private=True)


def use_again(revision: str) -> None:
    """Load what was trained, both ways; the rows that `datasets` pushed; and the metric."""
    import evaluate
    from datasets import load_dataset

    rows = load_dataset(f"{DATASET}-again", split="train")
    facts["rows"] = [one["id"] for one in rows]
    expected = torch.load("logits.pt")
    both = [load("trained", code_revision=revision, trust_remote_code=True), load(revision)]
    facts["equal"] = [torch.equal(expected, logits_of(model, inputs_of(it, rows[0]))) for model, it in both]
    metric, example = evaluate.load(SPACE, module_type="metric"), json.loads(Path("example.json").read_text())
    facts["score"] = metric.compute(**example)


{"push": push, "use": use, "use_again": use_again}[sys.argv[1]](*sys.argv[2:])
sys.stdout.write(json.dumps(facts) + "\n")
