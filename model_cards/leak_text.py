"""
What must not be published, as it looks in text: secrets, places and people of the machine, and loose remote code.

Patterns of known kinds of secrets are those of detect-secrets 1.5 (https://github.com/Yelp/detect-secrets), without
its guesses by entropy, which a vocabulary is full of, and without its checks of a secret over the network.
"""

import getpass
import importlib
import os
import pkgutil
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


# Kinds of a finding.
SECRET, PERSON, PLACE, HOST, USER, CODE = "secret", "e-mail", "absolute path", "host name", "user name", "remote code"
# These detect-secrets patterns are slow or match plain words; they run only where the text names the service.
NAMED = {
    "ArtifactoryDetector": "artifactory",
    "CloudantDetector": "cloudant",
    "IbmCloudIamDetector": "ibm",
    "IbmCosHmacDetector": "ibm",
    "SoftlayerDetector": "softlayer",
}
LEFT_OUT = {"IPPublicDetector"}  # version numbers look like addresses
TOKENS = {
    "Hugging Face token": re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z]{30,}"),
    "Hugging Face OAuth token": re.compile(r"(?<![A-Za-z0-9])hf_(?:oauth|jwt|app)_[A-Za-z0-9._-]{16,}"),
    "OpenAI key": re.compile(r"(?<![A-Za-z0-9])sk-(?:proj-|svcacct-|admin-|ant-)?[A-Za-z0-9_-]{32,}"),
    "GitHub fine-grained token": re.compile(r"github_pat_[A-Za-z0-9_]{50,}"),
    "Weights & Biases key": re.compile(r"(?i:wandb[a-z_]*key\W{1,4})[0-9a-f]{40}(?![0-9a-f])"),
    "Google key": re.compile(r"(?<![A-Za-z0-9])AIza[0-9A-Za-z_-]{35}"),
    "private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "password in an address": re.compile(r"://[^\s/:@'\"<>]{1,80}:[^\s/:@'\"<>{}$]{3,80}@[\w.-]+"),
    "authorization header": re.compile(r"(?i:authorization\W{1,4}(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{16,}"),
}
EXACT = {
    b"hf_": re.compile(rb"(?<![A-Za-z0-9])hf_[A-Za-z]{34,40}(?![A-Za-z0-9])"),
    b"ghp_": re.compile(rb"ghp_[A-Za-z0-9]{36}"),
    b"PRIVATE KEY-----": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
}
EMAIL = re.compile(
    r"(?<![\w.%+/-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}"
    r"(?![\w@])"
)
# Of RFC 2606, of documentation, and logins of Git servers, which are addresses of no one.
NOBODY = re.compile(r"(?i)@(?:.*\.)?(?:example\.(?:com|org|net)|example|test|invalid|localhost)$|^git@|^noreply@")
FOLDERS = (
    "home|Users|root|mnt|data|datasets|work|workspace|tmp|var|scratch|srv|private|Volumes|media|nfs|gpfs|lustre|fsx"
)
FOLDERS += "|kaggle|content|opt|storage|export|cluster"
PATHS = (
    re.compile(rf"(?:file://|(?<![\w./~$}}-]))/(?:{FOLDERS})/[^\s\"'`<>|*?()\[\]{{}},;\\]+"),
    re.compile(
        r"(?<![A-Za-z])[A-Za-z]:\\{1,2}(?:Users|Documents and Settings|ProgramData|data|work|home)\\[^\s\"'<>|*?]+"
    ),
)
CALL_WITH_REMOTE_CODE = re.compile(r"trust_remote_code[\"']?\s*[=:]\s*True")
REMOTE_CLASS = re.compile(r"\"([\w.-]+/[\w.-]+--[\w.]+)\"")
# A commit, a tag, or a variable that holds one; a branch moves.
PINNED = re.compile(r"revision[\"']?\s*[=:]\s*(?:(['\"])(?!(?:main|master|HEAD)\1)[^'\"]+\1|[A-MO-Za-z_]\w*)")
SECRET_NAME = re.compile(r"(?i)token|key|secret|passw|credential|auth")
# Names that are of no one, and would match plain text.
COMMON_NAMES = {
    "root", "user", "users", "admin", "home", "runner", "ubuntu", "debian", "localhost", "docker", "main", "test",
    "build", "jovyan", "ec2-user", "nobody", "guest", "work", "data", "model", "image", "host", "server", "node",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """
    What identifies the machine that publishes.

    Args:
        hosts (`frozenset[str]`): Its names.
        users (`frozenset[str]`): Names of the user.
        folders (`frozenset[str]`): Folders whose names must not appear.
        secrets (`dict[str, str]`): Value of each secret to its name; only the name is ever shown.
    """

    hosts: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Match:
    """
    One occurrence.

    Args:
        kind (`str`): What it is.
        value (`str`): It, never shown as it is.
        start (`int`): Where in the text.
        excerpt (`str`): What may be shown.
    """

    kind: str
    value: str = field(repr=False)
    start: int
    excerpt: str


def this_machine() -> Machine:
    """
    The machine that this runs on, with the secrets in its environment.

    Returns:
        `Machine`: Names that are plain words, such as `root`, are left out.
    """
    from huggingface_hub import get_token

    host = socket.gethostname()
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")} | {Path.home().name}
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError):
        names.discard("")  # a container whose user has no name
    secrets = {
        value.strip(): f"${name}"
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value.strip()) >= 8 and _is_opaque(value.strip())
    }
    if token := get_token():
        secrets.setdefault(token, "the Hub token of this machine")
    folders = {str(Path.home()), os.getcwd(), tempfile.gettempdir()}
    return Machine(
        frozenset(name for name in (host, host.split(".")[0]) if _is_telling(name)),
        frozenset(name for name in names if _is_telling(name)),
        frozenset(folder for folder in folders if folder.count("/") >= 2),
        secrets,
    )


class TextRules:
    """
    Finds in text what must not be published.

    Args:
        machine (`Machine`): Whose names and secrets are looked for.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        self._names = [(HOST, _words(machine.hosts)), (USER, _words(machine.users))]
        own = "|".join(re.escape(folder) for folder in sorted(machine.folders, key=len, reverse=True))
        self._paths = [*PATHS, re.compile(rf"(?:{own})(?:/[^\s\"'`<>|*?()\[\]{{}},;\\]*)?(?![\w-])")] if own else PATHS

    def scan(self, text: str, words: bool = True) -> Iterator[Match]:
        """
        Look through a text.

        Args:
            text (`str`): Of a file, or a part of it.
            words (`bool`, defaults to `True`): Whether names, paths and e-mails count, not only secrets; a vocabulary
                has them by chance.

        Yields:
            `Match`: Occurrences.
        """
        yield from self._secrets(text)
        if not words:
            return
        if "@" in text:
            for found in EMAIL.finditer(text):
                if not NOBODY.search(found.group()):
                    name, _, domain = found.group().partition("@")
                    yield Match(PERSON, found.group(), found.start(), f"{name[0]}***@{domain}")
        for pattern in self._paths:
            for found in pattern.finditer(text):
                path = found.group().rstrip(".:/\\")
                yield Match(PLACE, path, found.start(), shorten_path(path))
        for kind, names in self._names:
            if names is not None:
                for found in names.finditer(text):
                    yield Match(kind, found.group(), found.start(), f"{found.group()[0]}***")

    def scan_exact(self, data: bytes) -> Iterator[Match]:
        """
        Look through bytes that are no text for what cannot be there by chance.

        Args:
            data (`bytes`): Of a file, or a part of it.

        Yields:
            `Match`: Secrets of this machine, and tokens of the Hub and of GitHub.
        """
        for value, name in self.machine.secrets.items():
            start = data.find(value.encode())
            if start >= 0:
                yield Match(SECRET, value, start, f"the value of {name}")
        for mark, pattern in EXACT.items():
            if mark in data:
                for found in pattern.finditer(data):
                    value = found.group().decode()
                    yield Match(SECRET, value, found.start(), f"token, {redact(value)}")

    def _secrets(self, text: str) -> Iterator[Match]:
        for value, name in self.machine.secrets.items():
            start = text.find(value)
            if start >= 0:
                yield Match(SECRET, value, start, f"the value of {name}")
        seen = set()
        for label, pattern in TOKENS.items():
            for found in pattern.finditer(text):
                seen.add(found.group())
                yield Match(SECRET, found.group(), found.start(), f"{label}, {redact(found.group())}")
        lowered = text.lower()
        for name, detector in _detectors().items():
            if name in NAMED and NAMED[name] not in lowered:
                continue
            for value in set(detector.analyze_string(text)):
                if not any(value in one for one in seen):
                    yield Match(SECRET, value, text.find(value), f"{detector.secret_type}, {redact(value)}")


def scan_card(text: str) -> Iterator[Match]:
    """
    Calls in a card or in code that let code of a repository run without naming its commit.

    Args:
        text (`str`): Markdown or Python.

    Yields:
        `Match`: Each such call.
    """
    for found in CALL_WITH_REMOTE_CODE.finditer(text):
        closed = re.search(r"[)}]", text[found.end() :])
        call = text[_opening(text, found.start()) : found.end() + closed.start() if closed else len(text)]
        if not PINNED.search(call):
            line = text[text.rfind("\n", 0, found.start()) + 1 :].split("\n", 1)[0].strip()
            yield Match(CODE, line, found.start(), f"trust_remote_code without a revision: {line[:80]}")


def scan_classes(text: str) -> Iterator[Match]:
    """
    Classes in a JSON configuration that are fetched from another repository, which `auto_map` cannot pin.

    Args:
        text (`str`): JSON.

    Yields:
        `Match`: Each such class.
    """
    for found in REMOTE_CLASS.finditer(text):
        yield Match(CODE, found.group(1), found.start(1), f"auto_map to {found.group(1)}, which has no revision")


def redact(value: str) -> str:
    """
    What may be shown of a secret.

    Args:
        value (`str`): It.

    Returns:
        `str`: Its first characters if it is long, and its length.
    """
    return f"{value[:4] if len(value) >= 20 else ''}*** ({len(value)} characters)"


def shorten_path(path: str) -> str:
    """
    What may be shown of a path of this machine.

    Args:
        path (`str`): It.

    Returns:
        `str`: Its first folder and its last name.
    """
    parts = [part for part in re.split(r"[\\/]+", path.removeprefix("file://")) if part]
    if len(parts) < 3:
        return f"/{parts[0]}/***" if parts else "/"
    return f"/{parts[0]}/***/{parts[-1]}"


@cache
def _detectors() -> dict[str, Any]:
    import detect_secrets.plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    for module in pkgutil.iter_modules(detect_secrets.plugins.__path__):
        importlib.import_module(f"{detect_secrets.plugins.__name__}.{module.name}")
    kinds = {
        kind.__name__: kind for kind in _below(RegexBasedDetector) if kind.__module__.startswith("detect_secrets")
    }
    return {name: kind() for name, kind in sorted(kinds.items()) if name not in LEFT_OUT and "Entropy" not in name}


def _below(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _opening(text: str, position: int) -> int:
    """Where the call that has this position among its arguments opens."""
    depth = 0
    for index in range(position - 1, max(-1, position - 2000), -1):
        if text[index] in ")}":
            depth += 1
        elif text[index] in "({":
            if depth == 0:
                return index
            depth -= 1
    return max(0, position - 2000)


def _words(names: Iterable[str]) -> re.Pattern | None:
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{listed})(?![A-Za-z0-9])") if listed else None


def _is_telling(name: str) -> bool:
    return len(name) >= 4 and name.lower() not in COMMON_NAMES


def _is_opaque(value: str) -> bool:
    # `SSH_AUTH_SOCK=/tmp/...` and `KEYBOARD=english` are no secrets.
    return "/" not in value[:1] and " " not in value and any(c.isdigit() or not c.isalnum() for c in value)
