"""
`make demo`: the whole story, each step in a process of its own as a user would run it.

```sh
python -m sharegpt4v.demo
python -m sharegpt4v.demo --data my_folder --output runs/mine
```

A folder given by `--data` or `SHAREGPT4V_DEMO_DATA` holds pictures and one jsonl file, see `photos.py`.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars

from modeling_sharegpt4v import open_image

from .judge import MODEL, DemoJudge
from .miniatures import write_miniatures
from .photos import CAPTION_PROMPT, Photo, build_dataset, find_photos, read_photos
from .report import build_report, write_report


logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
WAYS = {"native": [], "remote_code": ["--trust-remote-code"]}
MARKER = ".sharegpt4v-demo"
CARDS = ROOT / "examples" / "cards"  # what a person knows of the demo's model and dataset
STEPS = 7
QUESTIONS = 1  # of each benchmark; all of them take a quarter of an hour
RECIPES = {"pretrain": "recipes/demo_pretrain.yaml", "finetune": "recipes/demo_finetune.yaml"}


def build_parser() -> argparse.ArgumentParser:
    """
    Command line of the demo.

    Returns:
        `argparse.ArgumentParser`: Its parser.
    """
    parser = argparse.ArgumentParser(prog="python -m sharegpt4v.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SHAREGPT4V_DEMO_DATA") or None,
        help="Folder of your own pictures and one jsonl file (default: photographs that pip packages ship).",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo", help="Where everything is written.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    Args:
        argv (`Sequence[str]`, *optional*): Command line, defaults to that of the process.

    Returns:
        `int`: 0 if every check of the report holds, 1 if one does not, 2 if the photographs or the output folder
            cannot be used, 3 if a step failed. Of your own photographs nothing is known, so only that both ways of
            loading agree decides.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    disable_progress_bars()
    arguments = build_parser().parse_args(argv)
    try:
        photos = find_photos(Path(arguments.data)) if arguments.data else read_photos(ROOT / "examples/photos.jsonl")
        output = _empty_output(arguments.output, photos)
    except (OSError, ValueError) as error:
        logger.error("The demo cannot start. %s", error)
        return 2
    try:
        facts = _run_steps(photos, output, own_words=not arguments.data)  # of your photographs nothing is known
    except subprocess.CalledProcessError as error:
        logger.error("A step of the demo failed, see above: %s", " ".join(error.cmd))
        return 3
    for check in facts["checks"]:
        logger.info("%s %s: %s", "ok  " if check["holds"] else "FAIL", check["name"], check["figure"])
    logger.info("Report: %s", output / "report.html")
    decisive = facts["checks"][:1] if arguments.data else facts["checks"]
    return 0 if all(check["holds"] for check in decisive) else 1


def _run_steps(photos: list[Photo], output: Path, own_words: bool) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    with _timed("dataset", seconds, f"{len(photos)} photographs to a Parquet repository"):
        build_dataset(photos, output / "dataset")
    with _timed("base", seconds, "language model, new tower and projector to one model"):
        _run([sys.executable, "-m", "sharegpt4v.demo.base", str(output / "base")], output)
    for stage, recipe in RECIPES.items():
        with _timed(stage, seconds, f"training by {recipe}"):
            _run(_launch(stage, recipe, output), output)
    with _timed("caption", seconds, "captions from the saved model, in two fresh processes"):
        captions = _caption_both_ways(photos, output)
    with _timed("benchmarks", seconds, "answers to miniatures of the benchmarks, scored as officially"):
        evaluation = _evaluate(output)
    if own_words:
        with _timed("publication", seconds, "a dry run of publishing, with rendered cards"):
            _publish(output)
    facts = build_report(output, photos, captions, evaluation, seconds, _peak_memory_gb())
    write_report(output / "report.html", photos, facts)
    (output / "report.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def _publish(output: Path) -> None:
    """Make the folders that a publication would send, with their cards; nothing is sent."""
    for kind in ("dataset", "model"):
        shutil.copy(CARDS / f"{kind}.yaml", output / kind / "card.yaml")
        command = [sys.executable, "-m", "sharegpt4v.cli", "publish", kind, str(output / kind), "--dry-run"]
        command += ["--repo", f"me/sharegpt4v-demo-{kind}", "--stage", str(output / "published" / kind)]
        _run([*command, *(["--evaluation", str(output / "evaluation")] if kind == "model" else [])], output)


def _empty_output(folder: Path, photos: list[Photo]) -> Path:
    # Only what an earlier run left is removed: a slip of the pen in `--output` must not cost anyone a folder.
    folder = folder.resolve()
    if inside := [photo.path for photo in photos if photo.path.is_relative_to(folder)]:
        raise ValueError(
            f"The output folder {folder} is emptied first and holds {inside[0]}. Name another by --output."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise ValueError(f"The output folder {folder} holds files that no demo wrote. Name another by --output.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def _launch(stage: str, recipe: str, output: Path) -> list[str]:
    model, result = {"pretrain": ("base", "pretrained"), "finetune": ("pretrained", "model")}[stage]
    # Autocast to bf16 pays only where the processor computes in it; elsewhere the same steps run in float32.
    capabilities = torch.cpu.get_capabilities()
    bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [
        *launcher,
        *("-m", "trainers.train", "--config", recipe),
        *("--model", str(output / model), "--dataset", str(output / "dataset"), "--output_dir", str(output / result)),
        *("--bf16", str(bf16)),
    ]


def _caption_both_ways(photos: list[Photo], output: Path) -> dict[str, Any]:
    # The last two requests show the first two trained photographs exchanged.
    first, second = (photo for photo in [p for p in photos if p.split == "train"][:2])
    # Both ways get the pixels that training saw: transformers' own processor reads 16-bit files otherwise.
    (output / "pictures").mkdir()
    pictures = {photo.id: output / "pictures" / f"{number}.png" for number, photo in enumerate(photos)}
    for photo in photos:
        open_image(photo.path).save(pictures[photo.id])
    shown = [pictures[photo.id] for photo in [*photos, second, first]]
    requests = output / "requests.json"
    requests.write_text(json.dumps([{"image": str(path), "prompt": CAPTION_PROMPT} for path in shown]) + "\n")
    results: dict[str, Any] = {"exchanged": [first.id, second.id]}
    for way, flags in WAYS.items():
        answer = output / f"captions_{way}.json"
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("captioner.py")), *flags]
        command += ["--model", str(output / "model"), "--requests", str(requests), "--output", str(answer)]
        _run([*command, "--site-packages", *site.getsitepackages()], output)
        results[way] = json.loads(answer.read_text(encoding="utf-8"))
    return results


def _evaluate(output: Path) -> dict[str, Any]:
    # A model that was taught captions of twelve photographs knows no answers: this shows the way, not its skill.
    data = write_miniatures(output / "benchmarks")
    with DemoJudge() as judge:
        command = [sys.executable, "-m", "sharegpt4v.cli", "evaluate", str(output / "model"), "--data", str(data)]
        command += ["--out", str(output / "evaluation"), "--limit", str(QUESTIONS), "--images", "pad"]
        command += ["--judge-model", MODEL, "--judge-endpoint", judge.url, "--judge-key-env", "", "--json"]
        return json.loads(_run(command, output, keep=True))


def _run(command: list[str], output: Path, keep: bool = False) -> str:
    environment = {
        **os.environ,
        "HF_HOME": str(output / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # accelerate's launcher would set one thread; glibc would return every large buffer to the system at once.
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    where = subprocess.PIPE if keep else None
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, stdout=where).stdout or ""


def _peak_memory_gb() -> float:
    # Linux reports kilobytes; the steps run one after the other, so the largest child is the peak.
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2)


@contextmanager
def _timed(name: str, seconds: dict[str, float], what: str) -> Iterator[None]:
    logger.info("[%d/%d] %s", len(seconds) + 1, STEPS, what)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)
    logger.info("[%d/%d] done in %.0f s", len(seconds), STEPS, seconds[name])
