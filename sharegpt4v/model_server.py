"""The server behind the guard: `transformers serve`, or vLLM where it is installed, as a child on loopback."""

import contextlib
import ctypes
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any, Literal

from .installed import NotInstalled, require_extra


Engine = Literal["auto", "transformers", "vllm"]
START_SECONDS = 1800  # gigabytes may have to be downloaded first
STOP_SECONDS = 20
POLL = 0.1
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
LOG_END = 2000  # characters of the log in an error


class ServerFailed(RuntimeError):
    """The model server could not be started, or ended; the message has the end of its log."""


class ModelServer:
    """
    A model server as a child process, stopped with its own children when the context ends.

    Args:
        model (`str`): Folder or name on the Hub of a model whose class is transformers' own.
        engine (`str`, defaults to `"auto"`): vLLM where it is installed, else `transformers serve`.
        name (`str`): What vLLM is to call the model; `transformers serve` knows it by `model`.
        device (`str`, defaults to `"auto"`): For `transformers serve`.

    Raises:
        `NotInstalled`: The engine is not there.
        `FileNotFoundError`: The model is not there.
        `ValueError`: The model is of no class that a server knows; raised when the context begins.
    """

    def __init__(self, model: str, name: str, engine: Engine = "auto", device: str = "auto") -> None:
        self.engine = choose_engine(engine)
        self.model = os.path.abspath(model) if Path(model).is_dir() else model
        self.name = name if self.engine == "vllm" else self.model
        self.key = secrets.token_urlsafe(24) if self.engine == "vllm" else ""
        self._device = device
        self.port, self.log = 0, ""
        self.process: subprocess.Popen | None = None
        self._stream: IO[bytes] | None = None
        self._keeps_log = False
        self._config = read_config(self.model)

    @property
    def url(self) -> str:
        """Its address (`str`), without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ModelServer":
        self.port = _free_port()
        handle, self.log = tempfile.mkstemp(prefix="sharegpt4v-serve-", suffix=".log")
        self._stream = os.fdopen(handle, "wb")
        environment = dict(os.environ)
        if Path(self.model).is_dir():
            environment["HF_HUB_OFFLINE"] = "1"  # everything is in the folder
        if self.key:
            environment["VLLM_API_KEY"] = self.key
        # In a session of its own: Ctrl-C reaches the guard, which answers what is under way before it stops this.
        self.process = subprocess.Popen(
            self._command(),
            env=environment,
            stdout=self._stream,
            stderr=self._stream,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            check_class(self.model, self._config)  # imports for seconds; the child does too, meanwhile
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        if self.process is not None:
            _signal_group(self.process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            _signal_group(self.process, signal.SIGKILL)  # what its own children left
            self.process.wait()
        if self._stream is not None:
            self._stream.close()
        if not self._keeps_log:
            Path(self.log).unlink(missing_ok=True)

    def failure(self) -> ServerFailed:
        """
        Why it ended.

        Returns:
            `ServerFailed`: With the end of the log.
        """
        code = self.process.poll() if self.process else None
        text = Path(self.log).read_text(encoding="utf-8", errors="replace").strip()
        return ServerFailed(
            f"The server of {self.model} ended with {code}. Its log {self.log} ends:\n{text[-LOG_END:]}"
        )

    def _command(self) -> list[str]:
        program = str(Path(sys.executable).with_name(self.engine))
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        if self.engine == "vllm":
            return [program, "serve", self.model, *where, "--served-model-name", self.name]
        return [program, "serve", self.model, *where, "--device", self._device]

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise self.failure()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(POLL)
        self._keeps_log = True
        raise ServerFailed(f"The server of {self.model} is not up after {START_SECONDS} s. See its log {self.log}.")


def choose_engine(engine: Engine) -> Literal["transformers", "vllm"]:
    """
    Which server there is.

    Args:
        engine (`str`): What was asked for.

    Returns:
        `str`: `transformers` or `vllm`.

    Raises:
        `NotInstalled`: The message says what to install.
    """
    has_vllm = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not has_vllm:
        raise NotInstalled(
            "vLLM is not installed. It wants an environment of its own, see CONTRIBUTING.md; or take "
            "--engine transformers."
        )
    if engine == "vllm" or (engine == "auto" and has_vllm):
        return "vllm"
    require_extra("serve", "`transformers serve`", "fastapi", "uvicorn")
    return "transformers"


def read_config(model: str) -> dict[str, Any] | None:
    """
    The configuration in a folder.

    Args:
        model (`str`): Folder, or a name on the Hub, which is left to the server.

    Returns:
        `dict`, *optional*: Parsed `config.json` of a folder.

    Raises:
        `FileNotFoundError`: There is no such folder, or no `config.json` in it.
    """
    folder = Path(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise FileNotFoundError(f"There is no folder {model}.")
        return None
    file = folder / "config.json"
    if not file.is_file():
        hint = " It holds an adapter: merge it first, `python -m trainers.merge`."
        hint = hint if (folder / "adapter_config.json").is_file() else ""
        raise FileNotFoundError(f"There is no config.json in {model}.{hint}")
    return json.loads(file.read_text(encoding="utf-8"))


def check_class(model: str, config: dict[str, Any] | None) -> None:
    """
    Make sure that the architecture in a configuration is one that servers know.

    Args:
        model (`str`): Folder.
        config (`dict`, *optional*): Its configuration; none is checked for a name on the Hub.

    Raises:
        `ValueError`: It is a class of the repository's own code, which no server runs, or no image-text model.
    """
    if config is None:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = str(config.get("model_type"))
    named = (config.get("architectures") or ["none"])[0]
    native = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if native is None:
        raise ValueError(f"{model} is of type {kind}, which is no image-text-to-text model of transformers.")
    if named != native:
        raise ValueError(
            f"The architecture in the config.json of {model} is {named}, which servers do not run. Set "
            f'`"architectures": ["{native}"]`; `sharegpt4v publish` does so too.'
        )


def image_token(model: str) -> str:
    """
    What stands for an image in a model's prompts.

    Args:
        model (`str`): Folder or name.

    Returns:
        `str`: From the folder's processor, `<image>` where it does not say.
    """
    for name in ("processor_config.json", "tokenizer_config.json"):
        file = Path(model) / name
        if file.is_file():
            found: Any = json.loads(file.read_text(encoding="utf-8")).get("image_token")
            if isinstance(found, str) and found:
                return found
    return "<image>"


def _die_with_parent() -> None:
    # Also when the guard is killed in a way that it cannot answer, no server is left behind without one. Linux only.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(process.pid, number)
