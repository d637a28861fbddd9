"""
From facts to a card: templates in which a name without a fact is an error, and every value is inert.

What a template inserts is escaped for Markdown unless a filter has made it code, so a caption, a title or a licence
text cannot become a link, a heading, HTML or a fence.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .croissant import complete_croissant
from .facts import collect
from .front_matter import join_card
from .metadata import dataset_metadata, metric_metadata, model_metadata


PARAMETERS_FOR_GPU = 10**9
BYTES_TO_DOWNLOAD = 10**9
PUNCTUATION = re.compile(r"([\\`*_\[\]<>|#~&!$])")
BEGINNING = re.compile(r"^(?=[-+=])|(?<=^\d)(?=[.)]\s)|(?<=^\d\d)(?=[.)]\s)")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)")
NEEDS = re.compile(r"<!-- needs: (\w+) -->")
METADATA: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(("model", "captioner", "adapter"), model_metadata),
    **{"dataset": dataset_metadata, "metric": metric_metadata},
}


@dataclass(frozen=True)
class CodeBlock:
    """
    A block of code in a card.

    Args:
        language (`str`): As its fence says; empty for none.
        code (`str`): What stands in it.
        line (`int`): Of its first line in the card, from 1.
        needs (`str`, *optional*): `gpu` or `download` for what a small machine cannot run as it stands.
    """

    language: str
    code: str
    line: int
    needs: str | None


class Verbatim(str):
    """Text that a filter has made safe."""


def write_card(kind: str, source: Path, target: Path, repo_id: str, given: dict[str, Any]) -> Path:
    """
    Write `README.md`, and `.eval_results` where there are figures for it.

    Args:
        kind (`str`): `model`, `captioner`, `adapter`, `dataset` or `metric`.
        source (`Path`): Folder with the facts: of the run, the build or the metric.
        target (`Path`): Folder that is published; may be the source.
        repo_id (`str`): Name on the Hub, with its owner.
        given (`dict`): Facts that no file has; `revision` above all. `evaluation` is what
            `sharegpt4v.card_facts.evaluation_facts` reads.

    Returns:
        `Path`: The card.

    Raises:
        `CardError`: Facts are missing or cannot be true; all of them are listed.
    """
    facts = collect(kind, source, repo_id, given)
    text = render_card(facts)
    target.mkdir(parents=True, exist_ok=True)
    card = target / "README.md"
    card.write_text(text, encoding="utf-8")
    if kind == "dataset":
        complete_croissant(target / "croissant.json", facts)
    if facts["evaluation"] is not None:
        _write_figures(target / ".eval_results", facts["evaluation"]["eval_results"])
    return card


def render_card(facts: dict[str, Any]) -> str:
    """
    Render a card.

    Args:
        facts (`dict`): Of [`model_cards.facts.collect`].

    Returns:
        `str`: Metadata and Markdown.
    """
    large = facts["bytes"] > BYTES_TO_DOWNLOAD
    needs = "gpu" if (facts["parameters"] or 0) > PARAMETERS_FOR_GPU else "download" if large else None
    body = _environment().get_template(f"{facts['kind']}.md.jinja").render(**facts, needs=needs)
    body = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", body, flags=re.MULTILINE))
    return join_card(METADATA[facts["kind"]](facts), body)


def code_blocks(card: str) -> list[CodeBlock]:
    """
    Find the fenced blocks of a card.

    Args:
        card (`str`): Text of a `README.md`.

    Returns:
        `list[CodeBlock]`: In order; those of `python` can be run one after another in one process.
    """
    blocks, needs, fence = [], None, ""
    language, start = "", 0
    lines: list[str] = []
    for number, line in enumerate(card.splitlines(), start=1):
        found = FENCE.match(line)
        if fence:
            if found and found.group(1).startswith(fence) and not line.strip(" `~"):
                blocks.append(CodeBlock(language, "\n".join(lines) + "\n", start, needs))
                needs, fence = None, ""
            else:
                lines.append(line)
        elif found:
            fence, language, start, lines = found.group(1), found.group(2), number + 1, []
        elif marked := NEEDS.search(line):
            needs = marked.group(1)
    return blocks


def escape(value: Any) -> str:
    """
    Make a value inert in Markdown.

    Args:
        value (`Any`): Anything; its text is one line afterwards.

    Returns:
        `str`: Control characters and marks of direction are gone, punctuation of Markdown and HTML is escaped.
    """
    if isinstance(value, Verbatim) or _is_number(value):
        return str(value)
    return BEGINNING.sub(r"\\", PUNCTUATION.sub(r"\\\1", _one_line(value)))


def _write_figures(folder: Path, texts: dict[str, str]) -> None:
    for file in folder.glob("*.yaml"):  # of an earlier evaluation
        file.unlink()
    for benchmark, text in texts.items():
        if not re.fullmatch(r"[\w-]+", benchmark):
            raise ValueError(f"A benchmark's name has letters, digits, '-' and '_' only, got {benchmark!r}.")
        folder.mkdir(exist_ok=True)
        (folder / f"{benchmark}.yaml").write_text(text, encoding="utf-8")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(value: Any) -> str:
    text = re.sub(r"\s+", " ", str(value)).strip()
    return "".join(one for one in text if unicodedata.category(one) not in ("Cc", "Cf"))


def _code(value: Any) -> Verbatim:
    """Inline code, in a fence longer than every run of backticks within."""
    text = _one_line(value)
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return Verbatim(f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}")


def _cell(value: Any) -> Verbatim:
    """Inline code in a table, where a bar ends the cell even within code."""
    return Verbatim(_code(value).replace("|", "\\|"))


def _literal(value: Any) -> Verbatim:
    """A Python literal on one line, in double quotes where it has no quotes itself."""
    text = repr(value)
    plain = isinstance(value, str) and not set(value) & set("'\"")
    return Verbatim(f'"{text[1:-1]}"' if plain else text)


def _block(value: Any, language: str = "text") -> Verbatim:
    """A fenced block in a fence longer than every run of backticks within."""
    text = str(value).strip("\n")
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return Verbatim(f"{ticks}{language}\n{text}\n{ticks}")


def _count(value: int) -> Verbatim:
    return Verbatim(f"{value:,}")


def _figure(value: float) -> Verbatim:
    return Verbatim(f"{value:.6g}" if isinstance(value, float) else f"{value:,}")


def _link(value: Any) -> Verbatim:
    """An address as a link; everything that could end it is written as its code."""
    return Verbatim("<" + re.sub(r"[\s<>|\\]", lambda one: f"%{ord(one.group()):02X}", str(value)) + ">")


def _duration(seconds: float) -> Verbatim:
    if seconds < 120:
        return Verbatim(f"{seconds:.0f} s")
    return Verbatim(f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, jinja2.Undefined) else escape(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "cell": _cell, "literal": _literal, "block": _block, "count": _count}
    environment.filters |= {"verbatim": Verbatim, "figure": _figure, "link": _link, "duration": _duration}
    return environment
