"""`sharegpt4v chat`: questions about one image, answered as they are written."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, show, visible


DEMO_MODEL = "runs/demo/model"
PROMPT = "> "
NO_KEY = "none"  # the client insists on one

ImageFile = Annotated[Path, typer.Argument(help="The image.")]
Words = Annotated[list[str] | None, typer.Argument(help="First question; more are read from standard input.")]
Model = Annotated[str | None, typer.Option(help=f"Folder or name; {DEMO_MODEL}, or the endpoint's first, by default.")]
Endpoint = Annotated[str | None, typer.Option(help="Address up to `/v1` of a server that has the model.")]
KeyName = Annotated[str, typer.Option("--api-key-env", help="Variable with its key; empty if it wants none.")]
Question = Annotated[str | None, typer.Option(help="Ask only this.")]
Bound = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Upper bound on an answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling; 0 takes the likeliest token.")]
Device = Annotated[str, typer.Option(help="`auto`: a GPU if there is one; or a device.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights; that of the files by default.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Let code of the model's repository run.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch on the Hub.")]


def chat(
    image: ImageFile,
    words: Words = None,
    model: Model = None,
    endpoint: Endpoint = None,
    api_key_env: KeyName = "",
    question: Question = None,
    max_new_tokens: Bound = 512,
    temperature: Temperature = 0.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Talk about an image with a model, in the terminal."""
    if question and words:
        raise typer.BadParameter("Give the question once: as words or as the option.", param_hint="--question")
    from modeling_sharegpt4v.images_sharegpt4v import open_image

    from .chat import Conversation, EndpointTalker, LocalOptions, LocalTalker

    picture = open_image(image)  # before gigabytes of weights are read
    talker: Any
    if endpoint:
        talker = EndpointTalker(endpoint, _key(api_key_env), model, max_new_tokens, temperature)
    else:
        given = (device, dtype, max_new_tokens, temperature, trust_remote_code, revision)
        talker = LocalTalker(LocalOptions(_model(model), *given))
    conversation = Conversation(talker, picture)
    for one in [question] if question else _questions(" ".join(words or []), quiet=as_json):
        for piece in conversation.ask(one):
            if not as_json:
                typer.echo(visible(piece), nl=False)
        if not as_json:
            typer.echo()
    if not conversation.turns:
        raise ValueError("There was no question. Give one after the image, or on standard input.")
    if as_json:
        turns = [vars(turn) for turn in conversation.turns]
        show({"image": str(image), "model": talker.name, "turns": turns}, [], True)


def _questions(first: str, quiet: bool) -> Iterator[str]:
    if first:
        yield first
    asks = sys.stdin.isatty() and not quiet
    while True:
        if asks:
            typer.echo(PROMPT, nl=False)
        line = sys.stdin.readline()
        if not line:
            if asks:
                typer.echo()
            return
        if line.strip():
            yield line.strip()


def _model(model: str | None) -> str:
    if model is not None:
        return model
    if not Path(DEMO_MODEL, "config.json").is_file():
        raise FileNotFoundError(f"There is no model in {DEMO_MODEL}. Run `make demo`, or give one: --model FOLDER.")
    return DEMO_MODEL


def _key(name: str) -> str:
    if not name:
        return NO_KEY
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"There is no key in the environment variable {name}. Set it.")
    return key
