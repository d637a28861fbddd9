"""What the demo shows: figures from the artefacts of the run, and one HTML page without outside files."""

import base64
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from rouge_score.rouge_scorer import RougeScorer

from modeling_sharegpt4v import open_image

from .photos import Photo


matplotlib.use("Agg")

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
STAGES = {"pretrain": "pretrained", "finetune": "model"}
# Of the trained photographs, so many captions must be nearer to their own reference than to any other.
MIN_NEAREST = 6
THUMBNAIL = 240


def build_report(
    output: Path,
    photos: list[Photo],
    captions: dict[str, Any],
    evaluation: dict[str, Any],
    seconds: dict[str, float],
    peak_memory_gb: float,
) -> dict[str, Any]:
    """
    Collect the figures of a run and check what it promises.

    Args:
        output (`Path`): Folder of the run.
        photos (`list[Photo]`): Photographs in the order of the captions.
        captions (`dict`): `native` and `remote_code` results of the captioner, and the ids that were `exchanged`.
        evaluation (`dict`): What the evaluation of the miniatures wrote as JSON.
        seconds (`dict[str, float]`): Wall time of each step.
        peak_memory_gb (`float`): Largest resident memory of a step.

    Returns:
        `dict`: `stages`, `photos`, `benchmarks`, `checks`, `machine`, `seconds`, `peak_memory_gb`, ready for JSON.
    """
    native, remote = captions["native"], captions["remote_code"]
    generated = native["captions"][: len(photos)]
    rows = _compare(photos, generated)
    stages = {stage: _read_stage(output / folder) for stage, folder in STAGES.items()}
    losses = {name: (stage["losses"][0][1], stage["losses"][-1][1]) for name, stage in stages.items()}
    trained = [row for row in rows if row["split"] == "train"]
    nearest = sum(row["nearest"] == row["id"] for row in trained)
    needed = min(MIN_NEAREST, len(trained))
    by_id = {photo.id: text for photo, text in zip(photos, generated, strict=True)}
    one, other = captions["exchanged"]
    exchanged = native["captions"][-2:]
    benchmarks = [_figures_of(one) for one in evaluation["benchmarks"].values()]
    scored = sum(one["answered"] == one["questions"] and None not in one["headline"].values() for one in benchmarks)
    checks = [
        ("Both ways of loading write the same captions", native["captions"] == remote["captions"],
         " and ".join(f"{way['model_class']} of {way['model_module']}" for way in (native, remote))),
        ("The loss falls below half of its first value", all(last < first / 2 for first, last in losses.values()),
         ", ".join(f"{name} {first:.2f} to {last:.2f}" for name, (first, last) in losses.items())),
        ("Captions are nearest to their own reference", nearest >= needed,
         f"{nearest} of {len(trained)} trained photographs by ROUGE-L, at least {needed} needed"),
        ("Exchanging two images exchanges their captions",
         exchanged == [by_id[other], by_id[one]] and by_id[one] != by_id[other], f"{one} and {other}"),
        ("Every benchmark is answered and scored", scored == len(benchmarks),
         f"{scored} of {len(benchmarks)} miniatures"),
    ]  # fmt: skip
    return {
        "checks": [{"name": name, "holds": bool(holds), "figure": figure} for name, holds, figure in checks],
        "stages": stages,
        "photos": rows,
        "benchmarks": benchmarks,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "peak_memory_gb": peak_memory_gb,
    }


def write_report(path: Path, photos: list[Photo], facts: dict[str, Any]) -> None:
    """
    Render the page; every text of the run is escaped, so a caption cannot become markup.

    Args:
        path (`Path`): HTML file to write.
        photos (`list[Photo]`): Photographs.
        facts (`dict`): Result of [`build_report`].
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("demo_report.html.jinja").render(
        facts=facts,
        curve=_data_address(_loss_curve(facts["stages"]), "png"),
        pictures={photo.id: _data_address(_thumbnail(photo.path), "jpeg") for photo in photos},
    )
    path.write_text(page, encoding="utf-8")


def _figures_of(benchmark: dict[str, Any]) -> dict[str, Any]:
    named = {name: benchmark[name] for name in ("title", "headline", "questions")}
    judge = (benchmark["judge"] or {}).get("name")
    return {**named, "answered": benchmark["counts"]["answered"], "judge": judge}


def _compare(photos: list[Photo], generated: list[str]) -> list[dict[str, Any]]:
    scorer = RougeScorer(["rougeL"])
    rows = []
    for photo, text in zip(photos, generated, strict=True):
        scores = {other.id: scorer.score(other.caption, text)["rougeL"].fmeasure for other in photos}
        rows.append(
            {
                "id": photo.id,
                "split": photo.split,
                "reference": photo.caption,
                "generated": text,
                "rouge_l": round(scores[photo.id], 3),
                "nearest": max(scores, key=lambda name: scores[name]),
                "license": photo.license,
                "attribution": photo.attribution,
            }
        )
    return rows


def _read_stage(folder: Path) -> dict[str, Any]:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {
        "run": json.loads((folder / "run.json").read_text(encoding="utf-8")),
        "trainable": json.loads((folder / "trainable.json").read_text(encoding="utf-8")),
        "losses": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
    }


def _loss_curve(stages: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, (name, stage) in zip(figure.subplots(1, len(stages)), stages.items(), strict=True):
        axes.plot(*zip(*stage["losses"], strict=True), marker="o", markersize=3)
        axes.set(title=name, xlabel="step", ylabel="loss, nats a token", ylim=(0, None))
        axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _thumbnail(path: Path) -> bytes:
    image = open_image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=80)
    return stream.getvalue()


def _data_address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
