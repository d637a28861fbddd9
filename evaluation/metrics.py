"""
The scorers as metrics of the library `evaluate`: a folder each, which loads from a disk or from a Space.

```bash
python -m evaluation.metrics mme pope --output metrics
```

A folder is complete in itself: the scorer's own source and the files that it imports lie in it unchanged, so figures
are those of [`evaluation.score`]. `evaluate` 0.4.6 sets the shape: the script is called as its folder, imports one
package a line, and names every file beside it, because only files that it imports itself are copied; none of them may
have the script's name (https://github.com/huggingface/evaluate/blob/v0.4.6/src/evaluate/loading.py).
"""

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from .base import Benchmark
from .catalogue import ALL, NAMES, benchmarks_of, module


REQUIREMENTS = {"datasets": "datasets>=5.2", "evaluate": "evaluate>=0.4.6", "numpy": "numpy>=2.0"}
RULES_OF = {"mmbench_cn": "mmbench"}  # whose module says more about it
USE = """\
Args:
    predictions (list of `str`): Answers of a model; `None` for a question that it did not answer.
    references (list of `dict`, or of their JSON texts): Rows of the benchmark in the same order; fields that are
        not needed may stay.
    rule (`str`, defaults to "official"): Scoring rule: {rules}.
{options}
Returns:
    `dict`: `benchmark`, `headline`, `breakdown`, `counts`, `rule`.

Examples:

    >>> import evaluate
    >>> metric = evaluate.load("{name}")
    >>> predictions = {predictions}
    >>> references = [
{references}
    ... ]
    >>> results = metric.compute(predictions=predictions, references=references)
    >>> print(results["headline"])
    {headline}"""
PARTIAL = """\
    allow_partial (`bool`, defaults to `False`): Give figures although not everything is judged.
"""
BIBTEX = """\
@misc{{{name},
  title = {{{{{title}}}}},
  author = {{{author}}},
  year = {{{year}}},
  eprint = {{{arxiv}}},
  archivePrefix = {{arXiv}},
}}"""


def write_metric(name: str, folder: Path) -> Path:
    """
    Write a metric.

    Args:
        name (`str`): Name of the benchmark.
        folder (`Path`): Where its folder goes; files of the same names there are replaced.

    Returns:
        `Path`: The folder `folder/name`, for `evaluate.load`, or to upload as a Space.

    Raises:
        `ValueError`: There is no such benchmark.
    """
    target, scorer = folder / name, f"{name}_scorer"
    sources = _closure(name)
    facts = _facts(name)
    facts |= {"scorer": scorer, "files": sorted(source for source in sources if source != name)}
    target.mkdir(parents=True, exist_ok=True)
    for source, text in sources.items():
        (target / f"{scorer if source == name else source}.py").write_text(text, encoding="utf-8")
    templates = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda template: template is not None and ".html" in template,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    quoted = {key: _in_quotes(facts[key]) for key in ("description", "citation", "inputs")}
    (target / f"{name}.py").write_text(templates.get_template("metric.py.jinja").render(facts | quoted), "utf-8")
    (target / "README.md").write_text(templates.get_template("metric_card.md.jinja").render(facts), "utf-8")
    (target / "index.html").write_text(templates.get_template("metric_page.html.jinja").render(facts), "utf-8")
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements(sources)), "utf-8")
    return target


def build_parser() -> argparse.ArgumentParser:
    """
    Command line of the metrics.

    Returns:
        `argparse.ArgumentParser`: Its parser.
    """
    parser = argparse.ArgumentParser(prog="python -m evaluation.metrics", description="Write metrics for `evaluate`.")
    parser.add_argument("names", nargs="+", choices=[*NAMES, ALL], metavar="NAME", help=", ".join([*NAMES, ALL]))
    parser.add_argument("--output", type=Path, required=True, help="Folder that gets a folder for each.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*): Of the command line; those of the process by default.

    Returns:
        `int`: Exit code.

    Raises:
        `SystemExit`: With 2, the command line is wrong; with 0, help was asked for.
    """
    given = build_parser().parse_args(arguments)
    try:
        folders = [write_metric(found.name, given.output) for found, _ in benchmarks_of(given.names)]
    except OSError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{folder}\n" for folder in folders))
    return 0


def example(name: str) -> dict[str, list[Any]]:
    """
    The example that a metric shows.

    Args:
        name (`str`): Name of the benchmark.

    Returns:
        `dict[str, list]`: `predictions` and `references`.
    """
    return _data()[name]["example"]


@cache
def _data() -> dict[str, dict[str, Any]]:
    return json.loads((files(__package__) / "data" / "metrics.json").read_text(encoding="utf-8"))


def _template(name: str) -> str:
    return (files(__package__) / "data" / name).read_text(encoding="utf-8")


def _source(name: str) -> str:
    return (files(__package__) / f"{name}.py").read_text(encoding="utf-8")


def _closure(name: str) -> dict[str, str]:
    """Sources of a module and of all that it imports from this package, by name."""
    module(name)
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = _source(current)
            nodes = ast.walk(ast.parse(found[current]))
            waiting += [
                node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level and node.module
            ]
    return found


def _requirements(sources: dict[str, str]) -> list[str]:
    """Packages that are imported at the top of the sources; those of single functions read files, not answers."""
    roots = {"datasets", "evaluate"}
    for text in sources.values():
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                roots.add(node.module.partition(".")[0])
    return [REQUIREMENTS[root] for root in sorted(roots - sys.stdlib_module_names)]


def _facts(name: str) -> dict[str, Any]:
    found: Benchmark = module(name).BENCHMARK
    data = _data()[name]
    says = [data["about"], *(str(module(one).__doc__).strip() for one in (name, RULES_OF.get(name)) if one)]
    if found.note:
        says.append(f"Note: {found.note}")
    return {
        "name": name,
        "title": found.title,
        "about": data["about"],
        "class_name": "".join(map(str.capitalize, name.split("_"))),
        "description": "\n\n".join(says),
        "citation": BIBTEX.format(name=name, **data["paper"]),
        "inputs": _inputs(name, found),
        "arxiv": data["paper"]["arxiv"],
    }


def _inputs(name: str, found: Benchmark) -> str:
    shown = example(name)
    answers = zip(shown["references"], shown["predictions"], strict=True)
    result = module(name).score([{**row, "response": answer} for row, answer in answers])
    return USE.format(
        name=name,
        rules=", ".join(found.rules),
        options=PARTIAL if found.judge else "",
        predictions=shown["predictions"],
        references="\n".join(f"    ...     {row}," for row in shown["references"]),
        headline=result.headline,
    )


def _in_quotes(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


if __name__ == "__main__":
    sys.exit(main())
