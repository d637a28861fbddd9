"""Where the official samples of the scorers lie, and small files of our own."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest


FOLDER = os.environ.get("SHAREGPT4V_SAMPLES")
SAMPLES = Path(FOLDER or "absent") / "scorer-samples"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="SHAREGPT4V_SAMPLES names no folder with scorer-samples"
)


def read_sample(name: str) -> Any:
    """A JSON file of the samples."""
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines, plain or packed."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines, packed if the name says so."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
