"""
Captioning a million images on 1 to 64 GPUs, simulated: slots against batches, stragglers, kills, and an exact audit.

- `slots_128`: images a second of one H100 whose 128 slots are refilled at once, over batches of 128 that end with
  their longest caption; captions of 190 tokens on average with a standard deviation of 0.3 of that.
- `workers_64`: efficiency of 64 H100s on the 1.2 million images of Share-Captioner (Chen et al. 2023,
  arXiv:2311.12793, section 3.3), once models are loaded; `details` has it with the load too.
- `stragglers_16`: time of a fixed split of the shards over that with stealing; 4 of 16 workers run at half speed.
- `kills_16`: time without kills over that with one kill of each of 16 workers in 15 minutes on average.

`equal`: every setting ends with exactly one row of each image and repeats no more than kills had in flight, and all
schedules store the same tokens.

Assumptions: a GPU takes what `trainers.roofline.caption_seconds` says, which is the least; greedy captions of a 7B
model with keys and values of every head in bf16 and 625 tokens before the caption, 576 of them of the image; reading
prompts stops decoding for its time. A static batch goes on reading the keys and values of ended rows, as padded
tensors do. Most of the gain is there: over `compact`, which waits too but reads only rows in use, slots gain far less.
An A100 gains less than an H100, because prompts weigh more and no schedule saves any. Memory is no limit: `memory_gb`
says what a setting holds at most, which for static batches of 128 is more than 80 GB.

The spread of caption lengths is not published: 60 tokens is a guess, 100 stands beside it. Lengths are normal, cut to
8 to 512, and belong to the image, so a repeated one has the same. Images, claims, appends and locks take no time, and
a lock is free the moment its holder dies. Shards have 1,000 images, as those of `captioning.plan`. A kill takes the
machine, also while it loads a model; it is back after 60 s, and since its supervisor is gone too, nothing that was
under way is suspect.

```sh
python benchmarks/caption_schedule.py
```
"""

import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from caption_events import Audit, Outcome, Setting, Simulation, audit, draw_lengths  # noqa: E402 - needs our packages
from common import finish

from trainers.geometry import Tuning, build_on_meta, measure  # noqa: E402
from trainers.roofline import GPUS, CaptionSeconds, caption_rate, caption_seconds  # noqa: E402


TARGETS = {"slots_128": 1.5, "workers_64": 0.95, "stragglers_16": 1.2, "kills_16": 0.9}
MODEL = ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336")
CARDS, MAIN_CARD = ("H100", "A100-80GB"), "H100"
MEAN, SPREADS, SPREAD, SEED = 190, (0, 57, 60, 100), 60, 5
SLOTS, MAIN_SLOTS, SCHEDULES = (16, 64, 128), 128, ("slots", "static", "compact")
ONE_GPU, FEW, WHOLE = 16_384, 300_000, 1_200_000  # images
SHARD, SHARDS = 1000, (125, 250, 500, 1000, 2000, 4000)
COUNTS, MANY, LOAD = (1, 2, 4, 8, 16, 32, 64), 16, 60
SLOW, MAIN_SLOW = (1, 4, 8), 4
KILLS, MAIN_KILL = (300, 900, 3600), 900
AUDITS: list[Audit] = []


def log(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


@cache
def seconds_of(card: str) -> CaptionSeconds:
    """What a card needs for the parts of a caption."""
    return caption_seconds(measure(build_on_meta(*MODEL), Tuning()), GPUS[card])


def simulate(setting: Setting, lengths: list[int], shard_images: int) -> tuple[Outcome, Audit]:
    """A job and its audit, which is kept."""
    outcome = Simulation(setting, lengths, shard_images).run()
    AUDITS.append(audit(outcome, lengths, shard_images))
    return outcome, AUDITS[-1]


def compare_schedules(card: str, spread: float) -> list[dict[str, Any]]:
    """One GPU by number of slots: images a second of each schedule, and what it holds."""
    lengths = draw_lengths(MEAN, spread, ONE_GPU, SEED)
    seconds, gpu, size = seconds_of(card), GPUS[card], measure(build_on_meta(*MODEL), Tuning())
    found = []
    for slots in SLOTS:
        ends = {name: simulate(Setting(seconds, slots, name), lengths, ONE_GPU) for name in SCHEDULES}
        if len({checked.tokens for _, checked in ends.values()}) > 1:
            raise SystemExit(f"{card}, {slots} slots: the schedules stored different tokens.")
        rates = {name: ONE_GPU / outcome.seconds for name, (outcome, _) in ends.items()}
        most = {name: seconds.weights + seconds.context * outcome.most_tokens for name, (outcome, _) in ends.items()}
        found.append(
            {
                "card": card,
                "spread": spread,
                "mean": round(float(np.mean(lengths)), 1),
                "sd": round(float(np.std(lengths)), 1),
                "slots": slots,
                "images_per_s": {name: round(rate, 2) for name, rate in rates.items()},
                "closed_form": round(caption_rate(size, gpu, slots, answer=MEAN).serial, 2),
                "over_static": round(rates["slots"] / rates["static"], 4),
                "over_compact": round(rates["slots"] / rates["compact"], 4),
                "memory_gb": {name: round(value * gpu.bandwidth / 1e9, 1) for name, value in most.items()},
            }
        )
        log(f"{found[-1]}")
    return found


def job(lengths: list[int], **changed: Any) -> dict[str, Any]:
    """A job of the main card with the default shards, in figures."""
    setting = replace(Setting(seconds_of(MAIN_CARD), MAIN_SLOTS, load=LOAD, seed=SEED), **changed)
    outcome, checked = simulate(setting, lengths, SHARD)
    found = {
        "workers": setting.workers,
        "steals": setting.steals,
        "slow": setting.slow,
        "kill_every_s": setting.kill_every,
        "images": len(lengths),
        "seconds": round(outcome.seconds, 1),
        "images_per_s": round(len(lengths) / outcome.seconds, 2),
        "stolen_shards": outcome.stolen,
        "kills": outcome.kills,
        "in_flight_at_kills": outcome.in_flight,
        "repeated": checked.repeated,
        "holds": checked.holds,
    }
    log(f"{found}")
    return found


def scale_workers(lengths: list[int]) -> list[dict[str, Any]]:
    """The whole job by number of workers."""
    rows = [job(lengths, workers=count) for count in COUNTS]
    for row in rows:
        for name, load in (("efficiency", 0), ("efficiency_with_load", LOAD)):
            row[name] = round((rows[0]["seconds"] + load) / (row["workers"] * (row["seconds"] + load)), 4)
        row["hours_with_load"] = round((row["seconds"] + LOAD) / 3600, 3)
    return rows


def size_shards(lengths: list[int]) -> list[dict[str, Any]]:
    """The smaller job on most workers by images a shard: shards that follow each other in the slots, or drain them."""
    found = []
    for images in SHARDS:
        setting = Setting(seconds_of(MAIN_CARD), MAIN_SLOTS, workers=COUNTS[-1])
        rates = {
            name: round(len(lengths) / simulate(replace(setting, drains=drains), lengths, images)[0].seconds, 1)
            for name, drains in (("follow", False), ("drain", True))
        }
        found.append({"images_per_shard": images, "images_per_s": rates})
        log(f"{found[-1]}")
    return found


def main() -> None:
    """Simulate and report."""
    schedules = [row for card in CARDS for spread in SPREADS for row in compare_schedules(card, spread)]
    whole, few = (draw_lengths(MEAN, SPREAD, count, SEED) for count in (WHOLE, FEW))
    workers = scale_workers(whole)
    slow = [(job(few, workers=MANY, slow=n, steals=False), job(few, workers=MANY, slow=n)) for n in SLOW]
    kills = [job(whole, workers=MANY, kill_every=every) for every in KILLS]
    undisturbed = next(row["seconds"] for row in workers if row["workers"] == MANY)
    for row in kills:
        row["of_undisturbed"] = round(undisturbed / row["seconds"], 4)
    main_case = (MAIN_CARD, 0.3 * MEAN, MAIN_SLOTS)
    main_row = next(row for row in schedules if (row["card"], row["spread"], row["slots"]) == main_case)
    split, stealing = slow[SLOW.index(MAIN_SLOW)]
    ratios = {
        "slots_128": main_row["over_static"],
        "workers_64": workers[-1]["efficiency"],
        "stragglers_16": split["seconds"] / stealing["seconds"],
        "kills_16": kills[KILLS.index(MAIN_KILL)]["of_undisturbed"],
    }
    details = {
        "card": MAIN_CARD,
        "shard_images": SHARD,
        "load_s": LOAD,
        "schedules": schedules,
        "workers": workers,
        "stragglers": [{"split": one, "stealing": other} for one, other in slow],
        "kills": kills,
        "kills_split": job(whole, workers=MANY, kill_every=MAIN_KILL, steals=False),
        "together": job(whole, workers=COUNTS[-1], slow=8, kill_every=MAIN_KILL),
        "shards": size_shards(few),
        "audits": len(AUDITS),
    }
    finish("caption_schedule", ratios, TARGETS, details, equal=all(checked.holds for checked in AUDITS))


if __name__ == "__main__":
    main()
