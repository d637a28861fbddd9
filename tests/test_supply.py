"""Supply: every dependency is pinned and real, no code of others runs unasked, no test uses the network (row 56)."""

import ast
import importlib.metadata
import re
import socket
import tomllib
import urllib.request

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.network import ATTEMPTS, NetworkUse, is_here
from tests.test_house import LIBRARY, ROOT, TREES


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
    for pin in [Requirement(line)]
}
TESTED_EXTRAS = ("demo", "serve", "dev")
OWN = "sharegpt4v"
OF_THE_ENVIRONMENT = {"setuptools"}  # builds this project before anything is installed; torch names it too


def direct() -> list[Requirement]:
    """What this project asks for itself, in the extras that the tests run with."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in TESTED_EXTRAS for line in extras[extra])]
    return [one for one in map(Requirement, lines) if one.name != OWN]


def reached() -> set[str]:
    """Names of all that these bring along, by the metadata of what is installed."""
    waiting, found = direct(), {}
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if one.extras <= found.get(name, {None}) - {None} and name in found:
            continue
        found[name] = found.get(name, set()) | one.extras
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *found[name])]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in wanted):
                waiting.append(needed)
    return set(found) - OF_THE_ENVIRONMENT


def test_every_dependency_is_pinned_to_the_version_that_is_tested():
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in PINS.values())
    assert sorted(reached() - set(PINS)) == []
    for name in sorted(reached()):
        installed, pin = Version(importlib.metadata.version(name)), PINS[name]
        assert pin.specifier.contains(installed, prereleases=True), f"{name} {installed} is tested, not {pin}"


def test_lower_bounds_admit_the_pinned_versions():
    for one in direct():
        (pin,) = PINS[canonicalize_name(one.name)].specifier
        assert one.specifier.contains(pin.version, prereleases=True), one


@pytest.mark.parametrize("name", sorted({canonicalize_name(one.name) for one in direct()}))
def test_no_dependency_is_a_placeholder(name):
    found = importlib.metadata.distribution(name)
    code = [file for file in found.files or [] if file.suffix in (".py", ".so", ".pyi") or file.parts[0] == ".."]
    assert code, f"{name} installs nothing"
    version = Version(found.version)
    assert version.major < 900 or version.major > 1990, f"{name} {version} is a version that holds a place"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_of_a_repository_runs_unless_the_user_says_so(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.keyword):
            assert not (node.arg == "trust_remote_code" and is_true(node.value)), f"line {node.value.lineno}"
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                named = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                assert not (named and is_true(value)), f"line {node.lineno}"
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert not (node.target.id == "trust_remote_code" and is_true(node.value)), f"line {node.lineno}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for name, default in defaults_of(node.args):
                assert not (name == "trust_remote_code" and is_true(default)), f"line {node.lineno}"


def test_no_recipe_runs_code_of_a_repository():
    for path in sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("examples/**/*.yaml")]):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert not (isinstance(content, dict) and content.get("trust_remote_code")), path


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("::1", True), (None, True), ("10.0.0.1", False), ("huggingface.co", False)],
)
def test_what_counts_as_this_machine(host, here):
    assert is_here(host) is here


def test_a_test_that_uses_the_network_fails():
    with pytest.raises(NetworkUse):
        urllib.request.urlopen("http://huggingface.co", timeout=1)
    with socket.socket() as one, pytest.raises(NetworkUse):
        one.connect(("192.0.2.1", 80))
    assert len(ATTEMPTS) == 2
    ATTEMPTS.clear()  # what this test did on purpose is no fault of its own


def is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def defaults_of(arguments: ast.arguments) -> list[tuple[str, ast.AST | None]]:
    named = [*arguments.posonlyargs, *arguments.args]
    plain = named[len(named) - len(arguments.defaults) :]
    pairs = [
        *zip(plain, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [(one.arg, default) for one, default in pairs]
