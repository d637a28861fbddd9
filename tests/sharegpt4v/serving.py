"""`sharegpt4v serve` as a process of its own, with a tiny model, and images as requests carry them."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.tiny import noise_image, tiny_model


KEY = "a-key-of-the-tests"
KEY_NAME = "SHAREGPT4V_TEST_KEY"


@dataclass
class Served:
    """A running server: its process, address, name of the model, and its own child."""

    process: subprocess.Popen
    url: str
    model: str
    child: psutil.Process
    folder: Path

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def child_is_gone(self) -> bool:
        """Whether the model server ended too."""
        try:
            self.child.wait(10)
        except psutil.TimeoutExpired:
            return False
        return True


def save_tiny(folder: Path) -> Path:
    """A tiny model and its processor, saved."""
    for part in tiny_model():
        part.save_pretrained(folder)
    return folder


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """Serve a folder with a key on a free port."""
    command = [
        Path(sys.executable).with_name("sharegpt4v"),
        "serve",
        folder,
        "--port",
        "0",
        "--device",
        "cpu",
        "--json",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", KEY_NAME: KEY}
    environment |= {"HF_HOME": str(folder.parent / "home"), "TMPDIR": str(folder.parent)}
    with open(folder.parent / "errors", "w+b") as errors:
        process = subprocess.Popen(
            [*command, "--api-key-env", KEY_NAME, *options], env=environment, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError((folder.parent / "errors").read_text()[-3000:])
            facts = json.loads(line)
            (child,) = psutil.Process(process.pid).children()
            yield Served(process, facts["url"], facts["model"], child, folder)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
            process.stdout.close()


def image_bytes(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    noise_image(0, size).save(stream, kind)
    return stream.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    """Data as a URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(url: str, text: str = "What is this?") -> list[dict]:
    """Messages of a question about an image."""
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]
