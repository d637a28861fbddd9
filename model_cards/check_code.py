"""Does the code of a card parse, load what the Hub has, and say which revision?"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import Finding
from .render import CodeBlock, code_blocks
from .repo_names import is_repo_id


LOADERS = ("from_pretrained", "load_dataset", "load", "pipeline", "snapshot_download", "hf_hub_download")
NAMED = ("model", "path", "repo_id", "pretrained_model_name_or_path")
BUILDERS = ("parquet", "json", "csv", "imagefolder", "webdataset", "lance")  # of `datasets`, which take files


@dataclass(frozen=True)
class LoadCall:
    """
    A call in a card's code that loads a repository.

    Args:
        repo (`str`): What it names.
        pinned (`bool`): Whether it has a revision.
        trusts (`bool`): Whether it lets code of the repository run.
        line (`int`): In the card, from 1.
    """

    repo: str
    pinned: bool
    trusts: bool
    line: int


def load_calls(block: CodeBlock) -> list[LoadCall]:
    """
    Find what a block of Python loads.

    Args:
        block (`CodeBlock`): It must parse.

    Returns:
        `list[LoadCall]`: In order.
    """
    tree = ast.parse(block.code)
    shared = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _name(node.func) not in LOADERS:
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for keyword in node.keywords:
            if keyword.arg is None:  # `**pinned`
                options |= _options(_resolved(keyword.value, shared))
        places = node.args[1:2] if _name(node.func) == "pipeline" else node.args[:2]  # its first is the task
        values = [_resolved(one, shared) for one in (*places, *(options[name] for name in NAMED if name in options))]
        texts = [one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if texts and texts[0] not in BUILDERS:
            trusts = _resolved(options["trust_remote_code"], shared) if "trust_remote_code" in options else None
            allowed = isinstance(trusts, ast.Constant) and trusts.value is True
            found.append(LoadCall(texts[0], "revision" in options, allowed, block.line + node.lineno - 1))
    return sorted(found, key=lambda call: call.line)


def check_code(body: str, repo_id: str | None) -> Iterator[Finding]:
    """
    Check the blocks of Python in a card.

    Args:
        body (`str`): Markdown.
        repo_id (`str`, *optional*): Name that a call must load.

    Yields:
        `Finding`: In the order of the card.
    """
    calls: list[LoadCall] = []
    for number, block in enumerate((one for one in code_blocks(body) if one.language in ("python", "py")), start=1):
        try:
            calls += load_calls(block)
        except SyntaxError as error:
            yield Finding(
                "README.md", "code", f"Code block {number} is no Python: {error.msg} in its line {error.lineno}."
            )
    if not calls:
        yield Finding("README.md", "code", "No code shows how to load the repository.")
    for call in calls:
        if not is_repo_id(call.repo):
            yield Finding(
                "README.md", "code", f"Code loads {call.repo!r}, which is no name on the Hub with its owner."
            )
        elif call.trusts and not call.pinned:
            message = f"Code runs whatever {call.repo} holds on that day: add `revision` beside `trust_remote_code`."
            yield Finding("README.md", "revision", message)
        elif not call.pinned:
            yield Finding("README.md", "revision", f"Code loads {call.repo} without a `revision`.", "warning")
    if calls and repo_id is not None and repo_id not in [call.repo for call in calls]:
        yield Finding("README.md", "code", f"No code loads {repo_id}.")


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        # Of what is called `load`, only that of `evaluate` takes a repository.
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        return "" if function.attr == "load" and owner != "evaluate" else function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _resolved(node: ast.expr, shared: dict[str, ast.expr]) -> ast.expr:
    return shared.get(node.id, node) if isinstance(node, ast.Name) else node


def _options(node: ast.expr) -> dict[str, ast.expr]:
    if not isinstance(node, ast.Dict):
        return {}
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
