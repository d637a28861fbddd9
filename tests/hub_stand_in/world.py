"""The way in: a running Hub, an environment for processes that use it, what they asked, and faults on demand."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.fresh_process import run_fresh
from tests.hub_stand_in.access import WRITE, Account
from tests.hub_stand_in.faults import Fault
from tests.hub_stand_in.server import Hub
from tests.hub_stand_in.store import Repository, Store
from tests.hub_stand_in.wire import Request


class HubStandIn(Hub):
    """
    A Hub that runs while it is used as a context and leaves nothing behind.

    Args:
        accounts (`dict[str, Account]`, *optional*): What each token stands for; those of `access.py` by default.
        part_size (`int`, *optional*): Larger objects are uploaded in parts of so many bytes; all whole by default.
        page_size (`int`, *optional*, defaults to 1000): Entries on a page of a tree.
        folder (`Path`, *optional*): Where bytes are kept, and stay; a folder that goes with the Hub by default.
    """

    def __init__(
        self,
        accounts: dict[str, Account] | None = None,
        part_size: int | None = None,
        page_size: int = 1000,
        folder: Path | None = None,
    ) -> None:
        self._stack = ExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-stand-in-")))
        super().__init__(folder or self._scratch / "bytes", accounts, part_size, page_size)

    def __enter__(self) -> "HubStandIn":
        super().__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._stack.close()

    @property
    def repos(self) -> Store:
        """All repositories."""
        return self.store

    def repo(self, id: str, kind: str = "model") -> Repository:
        """
        Get a repository, past all rules of access.

        Args:
            id (`str`): Its name with the namespace.
            kind (`str`, *optional*, defaults to `"model"`): Its type.

        Returns:
            `Repository`: The repository as it is now.

        Raises:
            `KeyError`: There is none.
        """
        repository = self.store.find(id, kind)
        if repository is None:
            raise KeyError(f"There is no {kind} {id}; there are {[(one.kind, one.id) for one in self.store]}.")
        return repository

    def fail(
        self,
        stage: str,
        behaviour: int | str,
        times: int = 1,
        repository: str | None = None,
        retry_after: int | None = 0,
    ) -> None:
        """
        Let requests fail from now on.

        Args:
            stage (`str`): One of `faults.STAGES`.
            behaviour (`int` or `str`): A status; `cut`: the connection is reset halfway through the body of an upload
                or download; `lost`: the work is done and the connection is reset instead of an answer.
            times (`int`, *optional*, defaults to 1): How many requests fail.
            repository (`str`, *optional*): Only those about this one; for `create`, the name as the client sends it.
            retry_after (`int`, *optional*, defaults to 0): Seconds in a header `Retry-After`, to which the client adds
                one; `None` for no header.
        """
        self.trouble.add(Fault(stage, behaviour, times, repository, retry_after))

    def mend(self) -> None:
        """Let nothing fail any more."""
        self.trouble.clear()

    def seen(self, stage: str = "", repository: str | None = None) -> list[Request]:
        """
        List what was asked so far.

        Args:
            stage (`str`, *optional*): Only at this stage.
            repository (`str`, *optional*): Only about this one.

        Returns:
            `list[Request]`: The requests.
        """
        return [
            one for one in list(self.log)
            if stage in ("", one.stage) and repository in (None, one.repository)
        ]  # fmt: skip

    def settings(self, token: str | None = WRITE) -> dict[str, str]:
        """Variables that make a Hugging Face library use this Hub, besides a home of its own."""
        given = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `evaluate` counts loads at an address that is not the Hub's
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return given | ({"HF_TOKEN": token} if token else {})

    def env(self, token: str | None = WRITE, home: Path | None = None) -> dict[str, str]:
        """
        Make the environment of a process that uses this Hub.

        Args:
            token (`str`, *optional*): Its token; `None` for nobody's.
            home (`Path`, *optional*): Folder of its caches; a new one of the Hub's own by default.

        Returns:
            `dict[str, str]`: That of this process with this Hub, and not offline.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = home or Path(tempfile.mkdtemp(dir=self._scratch, prefix="home-"))
        modules = {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules")}
        return {**kept, **self.settings(token), **modules}

    def run(self, code: str, *words: str | os.PathLike, cwd: str | os.PathLike, token: str | None = WRITE) -> Any:
        """
        Run code as `run_fresh` does, with this Hub instead of no network.

        Args:
            code (`str`): Python code; the last line that it prints is a JSON object.
            words (`str` or `os.PathLike`): Its `sys.argv[1:]`.
            cwd (`str` or `os.PathLike`): Folder to run in.
            token (`str`, *optional*): Its token; `None` for nobody's.

        Returns:
            `dict`: The printed JSON object.
        """
        chosen = f"os.environ.pop('HF_HUB_OFFLINE', None); os.environ.update({self.settings(token)!r})\n"
        return run_fresh("import os\n" + chosen + code, *words, cwd=cwd)
