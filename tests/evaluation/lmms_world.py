"""
The real lmms-eval on local tasks: miniatures as its data sets, its own prompts and scorers, our model as its plugin.

It is optional and wants an environment of its own, in which `tests/evaluation/test_lmms_plugin.py` runs all of this.
"""

import os
import subprocess
import sys
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

from evaluation.files import read_json_lines
from evaluation.rows import ROWS


# Each task takes prompts, images and scores from the module of lmms-eval's own task.
TASKS = {
    "mme": ("mme", "answer", ("mme_perception_score", "mme_cognition_score"), "!function utils.mme_total", 128),
    "pope": ("pope", "answer", ("pope_accuracy",), "!function utils.pope_aggregate_accuracy", 128),
    "scienceqa": ("sqa", "!function utils.sqa_doc_to_target", ("exact_match",), "mean", 1024),
}
CHOICE = "\\nAnswer with the option's letter from the given choices directly."
SHORT = "\\nAnswer the question using a single word or phrase."
YAML = """task: sharegpt4v_{name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {folder}/{name}.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{prefix}_doc_to_visual
doc_to_text: !function utils.{prefix}_doc_to_text
doc_to_target: {target}
process_results: !function utils.{prefix}_process_results
generation_kwargs:
  max_new_tokens: {bound}
  temperature: 0
  do_sample: false
lmms_eval_specific_kwargs:
  default:
    format: default
    pre_prompt: ""
    post_prompt: "{ending}"
metric_list:
{metrics}metadata:
  - version: 0.0
"""
UTILS = """from lmms_eval.tasks.mme.utils import *
from lmms_eval.tasks.mme.utils import mme_aggregate_results as mme_total
from lmms_eval.tasks.pope.utils import *
from lmms_eval.tasks.scienceqa.utils import *
"""


def write_tasks(folder: Path, data: Path) -> None:
    """Write a task of each of `TASKS` and its miniature as Parquet."""
    folder.mkdir(parents=True)
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    for name, (prefix, target, metrics, aggregation, bound) in TASKS.items():
        rows = list(read_json_lines(data / name / ROWS))
        for row in rows:
            path = row["image"]
            row["image"] = None if path is None else {"path": path, "bytes": (data / name / path).read_bytes()}
        features = Features({key: _feature(key, value) for key, value in rows[0].items()})
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
        listed = "".join(
            f"  - metric: {metric}\n    aggregation: {aggregation}\n    higher_is_better: true\n" for metric in metrics
        )
        ending = CHOICE if name == "scienceqa" else SHORT
        text = YAML.format(
            name=name, folder=folder, prefix=prefix, target=target, bound=bound, ending=ending, metrics=listed
        )
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def run_lmms(model: Path, tasks: Path, out: Path, batch_size: int = 4, processes: int = 1) -> None:
    """Run `python -m lmms_eval` on all tasks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "lmms_eval", "--model", "sharegpt4v"]
    command += ["--model_args", f"pretrained={model},device=cpu", "--include_path", str(tasks)]
    command += ["--tasks", ",".join(f"sharegpt4v_{name}" for name in TASKS), "--batch_size", str(batch_size)]
    command += ["--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if processes > 1:
        environment["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` sets it; lmms-eval makes the group
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    told = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, told
    assert all(list(out.glob(f"*/*_samples_sharegpt4v_{name}.jsonl")) for name in TASKS), told  # it ends in 0 anyway


def samples_of(out: Path, name: str) -> Path:
    """The file of a task's samples."""
    (path,) = out.glob(f"*/*_samples_sharegpt4v_{name}.jsonl")
    return path


def _feature(key: str, value: object) -> object:
    if key == "image":
        return Image()
    return List(Value("string")) if isinstance(value, list) else Value("int64" if isinstance(value, int) else "string")
