"""A small set of released records with images, to break and mend through the command line."""

import json
from pathlib import Path

from datasets import load_dataset

from tests.commands import run_command
from tests.tiny import noise_image


FOLDERS = ("coco/train2017/{}.jpg", "sam/images/sa_{}.jpg", "wikiart/images/{}.jpg")


class World:
    """Nine records with their images, three of each of three sources, and the commands that use them."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys = folder, capsys
        self.images, self.file, self.repo = folder / "data", folder / "released.json", folder / "repo"
        self.records = [self.record(number, FOLDERS[number % 3].format(number)) for number in range(9)]
        for record in self.records:
            self.write_image(record["image"])
        self.save()

    @staticmethod
    def record(number: int, image: str, question: str = "<image>\nWhat is it?", answer: str | None = None) -> dict:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer or f"Picture {number}."}]
        return {"id": f"{number:012d}", "image": image, "conversations": turns}

    def save(self) -> None:
        self.file.write_text(json.dumps(self.records), encoding="utf-8")

    def path(self, number: int) -> Path:
        return self.images / self.records[number]["image"]

    def write_image(self, image: str) -> None:
        path = self.images / image
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = int("".join(filter(str.isdigit, path.stem)))
        noise_image(seed, (8, 8)).resize((96, 80)).save(path)  # coarse, so that no two look the same

    def verify(self, *more: object):
        command = ("data", "verify", self.file, "--images", self.images, "--output", self.folder / "report")
        return run_command(self.capsys, *command, "--workers", 0, *more)

    def build(self, *more: object):
        command = ("data", "build", self.file, "--repo", self.repo, "--config", "ShareGPT4V", "--workers", 0)
        return run_command(self.capsys, *command, *more)

    def join(self, *more: object):
        return self.build("--images", self.images, *more)

    def ids(self) -> list[str]:
        cache = str(self.folder / "cache")
        return load_dataset(str(self.repo), "ShareGPT4V", split="train", cache_dir=cache)["id"][:]

    def lost(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "report" / "lost.jsonl").read_text().splitlines()]
