"""
Score predictions as the official tool of their benchmark does.

```bash
python -m evaluation.score --benchmark mme --predictions results/ --json
```

With `--json`, standard output is one JSON object: `benchmark`, `headline`, `breakdown`, `counts`, `rule`. The exit
code is 0, 1 where a file cannot be scored, and 2 where the command itself is wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .base import OFFICIAL, ScoreResult
from .catalogue import NAMES, benchmark, module


SELF_CONTAINED = ("mme", "mmbench", "mmbench_cn", "llava_bench", "qbench")  # predictions may carry the references
LAYOUTS = {
    "llava_bench": "predictions: a judge's reviews, JSON lines of question_id, category, content, tuple (two ratings)",
    "mme": "predictions: folder (or its folder results) of 14 texts <task>.txt; lines of image, question, answer, "
    "response with tabulators between, two lines an image",
    "mmbench": "predictions: JSON lines of index, question, A, B, C, D, prediction, answer; rotations of a question "
    "have its index plus a multiple of 1000000; rules: official, vlmevalkit_2023_11, lmms_eval, lmms_eval_static",
    "mmbench_cn": "as mmbench",
    "seed": "predictions: JSON lines of question_id, text; references: SEED-Bench.json; rules: official, tolerant",
    "mmvet": 'predictions: JSON object {"v1_<id>": text} with the judge\'s {"v1_<id>": {"content": [...], "score": '
    "[...]}} beside it in grades.json, or that alone; references: mm-vet.json",
    "qbench": "predictions: JSON objects of a question and its response, glued, in lines or as a list, or a list of "
    "texts in the order of the questions; references, which whole objects do not need: llvisionqa_dev.json",
    "scienceqa": "predictions: JSON lines of question_id, prompt, text; references: folder of problems.json and "
    "pid_splits.json",
    "vqav2": "predictions: JSON list of question_id, answer; references: annotations.json, a JSON object with a list "
    "annotations; rules: official, vqa_2016, always_normalise",
    "vizwiz": "predictions: JSON list of image, answer and perhaps answerable; references: annotations.json, a JSON "
    "list of image, question, answers, answer_type, answerable",
    "gqa": "predictions: JSON list of questionId, prediction, or JSON lines of question_id, text; references: "
    "testdev_balanced_questions.json, a JSON object of questions by id",
    "textvqa": "predictions: JSON lines of question_id, prompt, text; references: TextVQA_0.5.1_val.json, a JSON "
    "object with a list data of image_id, question, answers",
    "pope": "predictions: JSON lines of question_id, text; references: folder of questions.jsonl and "
    "coco_pope_<category>.jsonl",
}


def score_files(name: str, predictions: Path, references: Path | None = None, rule: str = OFFICIAL) -> ScoreResult:
    """
    Score the files of a benchmark.

    Args:
        name (`str`): Name of the benchmark.
        predictions (`Path`): File or folder in the official layout, plain or `.gz`.
        references (`Path`, *optional*): File or folder with the questions and answers.
        rule (`str`, defaults to `"official"`): Scoring rule.

    Returns:
        `ScoreResult`: The figures.

    Raises:
        `ValueError`: Benchmark or rule is unknown, or a file is damaged.
        `FileNotFoundError`: A file is absent.
    """
    benchmark(name).check_rule(rule)
    for path in (predictions, references):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}.")
    files = " and ".join(str(path) for path in (predictions, references) if path is not None)
    try:
        items = module(name).read_items(predictions, references)
        if not items:
            raise ValueError(f"{references or predictions} has no questions of {name}.")
        return replace(module(name).score(items, rule), benchmark=name)
    except FileNotFoundError as error:
        if references is None and name not in SELF_CONTAINED:
            raise FileNotFoundError(f"{error} Are --references missing? Layout: {LAYOUTS[name]}") from error
        raise
    except ValueError as error:
        if str(predictions) in str(error) or str(references) in str(error):
            raise
        raise ValueError(f"{files}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # a value of another kind within a row
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{files}: not the layout of {name} ({what}). Layout: {LAYOUTS[name]}") from error


def describe_score(result: ScoreResult) -> list[str]:
    """
    Figures as a table.

    Args:
        result (`ScoreResult`): The figures.

    Returns:
        `list[str]`: Lines of name and value.
    """
    rows = [("benchmark", result.benchmark), ("rule", result.rule)]
    rows += [(name, _shown(value)) for name, value in _flat("", result.headline)]
    rows += [(name, _shown(value)) for name, value in _flat("", result.breakdown)]
    rows += [(name, str(value)) for name, value in result.counts.items()]
    width = max(len(name) for name, _ in rows)
    return [_visible(f"{name:<{width}}  {value}") for name, value in rows]


def describe_layouts() -> str:
    """
    How the files of every benchmark look.

    Returns:
        `str`: A block of lines, two for each benchmark.
    """
    return "\n".join(f"  {name}\n      {LAYOUTS[name]}" for name in NAMES)


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
    parser = build_parser()
    given = parser.parse_args(arguments)
    if given.rule not in (rules := benchmark(given.benchmark).rules):
        parser.error(f"{given.benchmark} has no rule {given.rule!r}. Choose among {', '.join(rules)}.")
    try:
        result = score_files(given.benchmark, given.predictions, given.references, given.rule)
        lines = [json.dumps(result.to_json(), allow_nan=False)] if given.json else describe_score(result)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"Error: {_visible(str(error))}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """
    Command line of the scorers.

    Returns:
        `argparse.ArgumentParser`: Its parser.
    """
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.score",
        description="Score predictions as the official tool of their benchmark does.",
        epilog=f"layouts; each path is a file, its .gz, or the folder that holds it:\n{describe_layouts()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--benchmark", required=True, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--predictions", required=True, type=Path, metavar="PATH", help="what a model answered")
    parser.add_argument(
        "--references",
        type=Path,
        metavar="PATH",
        help=f"questions and answers, looked for beside the predictions by default; {', '.join(SELF_CONTAINED)} "
        "need none",
    )
    parser.add_argument("--rule", default=OFFICIAL, help="scoring rule, official by default")
    parser.add_argument("--json", action="store_true", help="write one JSON object and nothing else")
    return parser


def _flat(prefix: str, figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name} / ", value)
        else:
            yield f"{prefix}{name}", value


def _visible(text: str) -> str:
    # Names in a table come from the files of others, and must do nothing to a terminal.
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _shown(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
