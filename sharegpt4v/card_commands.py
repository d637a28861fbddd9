"""`sharegpt4v card`: render the card of a repository from facts, and check any."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .exit_codes import ExitCode
from .options import AsJson, show


Kind = Literal["model", "captioner", "adapter", "dataset", "metric"]
Repo = Annotated[str, typer.Option("--repo", help="Name on the Hub with its owner.")]
Fact = Annotated[
    list[str] | None, typer.Option("--fact", help="name=value, before what `card.yaml` says; twice makes a list.")
]
app = typer.Typer(help="Render and check the cards of repositories.", no_args_is_help=True)


@app.command(epilog="Example: sharegpt4v card check runs/demo/dataset --json")
def check(
    path: Annotated[Path, typer.Argument(help="Folder of a model, adapters, a dataset or a metric.")],
    repo: Annotated[str | None, typer.Option("--repo", help="Name that the card's code must load.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a card against the folder that it describes; the exit code is 3 when it must not be published."""
    from dataclasses import asdict

    from model_cards.check import check_folder

    findings = check_folder(path, repo)
    errors = sum(one.level == "error" for one in findings)
    lines = [f"{one.level}: {one.file}: {one.rule}: {one.message}" for one in findings]
    lines.append(f"{errors} errors, {len(findings) - errors} warnings in {path}.")
    facts = {"path": str(path), "errors": errors, "findings": [asdict(one) for one in findings]}
    show(facts, lines, as_json)
    if errors:
        raise typer.Exit(ExitCode.NOT_ENOUGH)


@app.command(epilog="Example: sharegpt4v card render model runs/demo/model --repo me/demo --fact revision=v1.0")
def render(
    kind: Annotated[Kind, typer.Argument(help="What the folder holds.")],
    path: Annotated[Path, typer.Argument(help="Folder of the run, the build or the metric.")],
    repo: Repo,
    fact: Fact = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the model's evaluation.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder that gets README.md; shown without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Render a card from what the folder's files, `card.yaml` in it and --fact say; a missing fact is an error."""
    from model_cards.facts import collect
    from model_cards.render import code_blocks, render_card, write_card

    from .card_facts import evaluation_facts

    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder.")
    given = {**evaluation_facts(results or path, repo), **parse_facts(fact or [])}
    if output is None:
        text = render_card(collect(kind, path, repo, given))
        show({"card": text}, [text], as_json)
        return
    card = write_card(kind, path, output, repo, given)
    blocks = len(code_blocks(card.read_text(encoding="utf-8")))
    show({"card": str(card), "code_blocks": blocks}, [f"{card} with {blocks} blocks of code."], as_json)


def parse_facts(words: list[str]) -> dict[str, Any]:
    """
    Facts of the command line.

    Args:
        words (`list[str]`): `name=value`; a value in brackets or braces is YAML, every other one is text.

    Returns:
        `dict`: By name; a name that is given several times has a list.

    Raises:
        `ValueError`: A word has no `=`, or brackets that are no YAML.
    """
    import yaml

    facts: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"A fact is given as name=value, got {word!r}.")
        try:
            read = yaml.safe_load(value) if value[:1] in ("[", "{") else value
        except yaml.YAMLError as error:
            raise ValueError(f"The value of --fact {name} is no YAML: {error}") from error
        earlier = facts.get(name)
        facts[name] = read if earlier is None else [*(earlier if isinstance(earlier, list) else [earlier]), read]
    return facts
