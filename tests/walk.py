"""
`make walk`: what the demo made is published on a Hub of this machine and used as people use it.

Every command is printed before it runs; the last thing is a table of what worked. The Hub is the stand-in of the tests
(`tests/hub_stand_in`), which the real clients meet over HTTP. Without the demo's output, or with `--tiny`, models of a
few thousand parameters take its place.

```sh
python -m tests.walk           # what `make demo` has written
python -m tests.walk --tiny    # a minute
```
"""

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.metrics import write_metric
from tests.hub_stand_in.access import USER
from tests.hub_stand_in.world import HubStandIn
from tests.image_files import encoded


ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs" / "demo"
CLI = [sys.executable, "-m", "sharegpt4v.cli"]
CARDS = ROOT / "examples" / "cards"  # what a person knows of the demo's model and dataset
PIPELINE = """
from transformers import pipeline
describe = pipeline("image-text-to-text", model={repo!r}, revision={commit!r})
question = {{"type": "text", "text": "Describe this photograph in detail."}}
chat = [{{"role": "user", "content": [{{"type": "image", "path": "photo.jpg"}}, question]}}]
print(describe(text=chat, max_new_tokens=12, return_full_text=False)[0]["generated_text"])
"""
REMOTE = """
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({repo!r}, revision={commit!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({repo!r}, revision={commit!r}, trust_remote_code=True)
question = {{"type": "text", "text": "Describe this photograph in detail."}}
chat = [{{"role": "user", "content": [{{"type": "image", "path": "photo.jpg"}}, question]}}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(type(model).__name__, model.generate(**inputs, max_new_tokens=12, do_sample=False).shape)
"""
STREAM = """
from datasets import load_dataset
row = next(iter(load_dataset({repo!r}, "captions", split="train", streaming=True, revision={commit!r})))
print(row["image"].size, row["caption"][:60])
"""
ADAPTER = """
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base = AutoModelForImageTextToText.from_pretrained({base!r}, revision={base_commit!r})
model = PeftModel.from_pretrained(base, {repo!r}, revision={commit!r})
print(type(model).__name__, sum("lora" in name for name, _ in model.named_parameters()), "LoRA weights")
"""
METRIC = """
import evaluate
metric = evaluate.load({repo!r}, revision={commit!r})
rows = [{{"question_id": 1, "image_id": 1, "question": "Is it red?", "question_type": "is it", "answer_type": "yes/no",
    "multiple_choice_answer": "yes", "answers": [{{"answer": "yes", "answer_id": n}} for n in range(10)]}}]
print(metric.compute(predictions=["yes"], references=rows)["headline"])
"""
CLIENT = """
import base64, openai
client = openai.OpenAI(base_url={url!r}, api_key="walk-key")
image = "data:image/jpeg;base64," + base64.b64encode(open("photo.jpg", "rb").read()).decode()
content = [{{"type": "image_url", "image_url": {{"url": image}}}}, {{"type": "text", "text": "What is it?"}}]
answer = client.chat.completions.create(
    model=client.models.list().data[0].id, messages=[{{"role": "user", "content": content}}], max_tokens=12
)
print(answer.choices[0].finish_reason, repr(answer.choices[0].message.content[:60]))
"""


@dataclass
class Walk:
    """A walk on a Hub: its commands run in an empty folder, and each one's outcome is kept."""

    hub: HubStandIn
    folder: Path
    outcomes: list[tuple[str, bool, float]] = field(default_factory=list)

    def run(self, title: str, command: Sequence[str | Path], cwd: Path | None = None, timeout: float = 300) -> str:
        """Run a command, show it and the end of what it says; gives its standard output, empty if it failed."""
        words = [str(word) for word in command]
        shown = shlex.join([re.sub(re.escape(sys.executable), "python", word) for word in words])
        print(f"\n## {title}\n$ {shown}", flush=True)
        start = time.monotonic()
        environment = {**self.hub.env(home=self.folder / "home"), "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(
                words, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=timeout
            )
            worked, said, told = done.returncode == 0, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            worked, said, told = False, "", f"it took more than {timeout} s"
        print("\n".join((said if worked else said + told).strip().splitlines()[-12:]), flush=True)
        self.outcomes.append((title, worked, time.monotonic() - start))
        return said if worked else ""

    def publish(self, kind: str, path: Path, name: str, **facts: str) -> tuple[str, str]:
        """Publish something; gives its name on the Hub and its commit."""
        repo = f"{USER}/{name}"
        given = [word for fact, value in facts.items() for word in ("--fact", f"{fact}={value}")]
        said = self.run(
            f"publish the {kind}", [*CLI, "publish", kind, path, "--repo", repo, *given, "--json"], cwd=ROOT
        )
        return repo, json.loads(said)["published"]["commit"] if said else "main"

    def use(self, title: str, code: str, **values: str) -> None:
        """Run code that has the libraries and not this repository."""
        hidden = "import sys; sys.path = [p for p in sys.path if p]\n"
        self.run(title, [sys.executable, "-I", "-c", hidden + code.format(**values).strip()])

    def serve(self, repo: str) -> None:
        """Serve a published model and ask it with the client of OpenAI."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*CLI, "serve", repo, "--port", str(port), "--api-key-env", "WALK_KEY"]
        print(f"\n## serve the model\n$ WALK_KEY=walk-key {shlex.join(command[1:])} &", flush=True)
        environment = {**self.hub.env(home=self.folder / "home"), "WALK_KEY": "walk-key"}
        with (self.folder / "serve.log").open("wb") as log:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                waited = time.monotonic()
                while not self._answers(port) and server.poll() is None and time.monotonic() - waited < 120:
                    time.sleep(0.5)
                url = f"http://127.0.0.1:{port}/v1"
                self.use("ask it with the openai client", CLIENT, url=url)
            finally:
                server.terminate()
                server.wait(timeout=30)

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            return False


def make_tiny(folder: Path) -> tuple[Path, Path]:
    """A model, and a dataset of captions and of conversations, of a few thousand bytes."""
    from dataset_scripts.build import write_repo
    from dataset_scripts.rows import caption_to_conversation
    from tests.tiny import tiny_model

    for part in tiny_model():
        part.save_pretrained(folder / "model")
    rows = [
        {
            "id": str(number), "image": {"bytes": encoded(number, (64, 48)), "path": f"{number}.jpg"},
            "source": "walk", "caption": f"A picture of number {number}.", "captioner": "human", "prompt_id": "p1",
            "license": "CC0-1.0", "sha256": "0" * 64,
        }
        for number in range(8)
    ]  # fmt: skip
    turns = [caption_to_conversation(row, "What is it?") for row in rows]
    write_repo(folder / "dataset", {"train": rows}, {"pretrain": {"train": turns}})
    return folder / "model", folder / "dataset"


def train(walk: Walk, model: Path, dataset: Path, recipe: str, output: Path, *flags: str) -> Path:
    """A few steps, after which the folder holds what a card tells."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trainers.train", "--config", recipe]
    command += ["--model", str(model), "--dataset", str(dataset), "--output_dir", str(output), *flags]
    walk.run(f"train by {recipe}", command, cwd=ROOT)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk; 0 if everything worked."""
    parser = argparse.ArgumentParser(prog="python -m tests.walk", description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="Small models instead of what the demo has written.")
    tiny = parser.parse_args(arguments).tiny or not (DEMO / "model" / "config.json").is_file()
    with tempfile.TemporaryDirectory(prefix="walk-") as scratch, HubStandIn() as hub:
        walk = Walk(hub, Path(scratch))
        Path(scratch, "photo.jpg").write_bytes(encoded(3, (160, 120)))
        model, dataset = make_tiny(Path(scratch)) if tiny else (DEMO / "model", DEMO / "dataset")
        if tiny:
            model = train(walk, model, dataset, "recipes/tiny/captioner_7b.yaml", Path(scratch, "trained"))
        lora = "recipes/tiny/captioner_7b_lora.yaml"
        adapters = train(walk, model, dataset, lora, Path(scratch, "adapters"), "--lora_rank", "4")
        for folder, card in ((model, "model"), (adapters, "model"), (dataset, "dataset")):
            shutil.copy(CARDS / f"{card}.yaml", folder / "card.yaml")
        captions, rows = walk.publish("dataset", dataset, "walk-captions")
        name, commit = walk.publish("model", model, "walk-model", datasets=captions)
        base = {"base_model": name, "base_model_revision": commit}
        lora_name, lora_commit = walk.publish("adapter", adapters, "walk-adapter", datasets=captions, **base)
        metric, metric_commit = walk.publish("metric", write_metric("vqav2", Path(scratch)), "vqav2")
        walk.use("the pipeline, by transformers' own class", PIPELINE, repo=name, commit=commit)
        walk.use("our class, from the repository's code", REMOTE, repo=name, commit=commit)
        walk.use("the dataset as a stream", STREAM, repo=captions, commit=rows)
        adapter = {"base": name, "base_commit": commit}
        walk.use("the adapters by peft", ADAPTER, repo=lora_name, commit=lora_commit, **adapter)
        walk.use("the metric by evaluate", METRIC, repo=metric, commit=metric_commit)
        walk.serve(name)
    print("\n| step | worked | seconds |\n|---|---|---|")
    for title, worked, seconds in walk.outcomes:
        print(f"| {title} | {'yes' if worked else 'NO'} | {seconds:.0f} |")
    return 0 if all(worked for _, worked, _ in walk.outcomes) else 1


if __name__ == "__main__":
    os.environ.pop("HF_HUB_OFFLINE", None)
    sys.exit(main())
