"""
Answers to and from lmms-eval and VLMEvalKit.

```bash
python -m evaluation.exchange to-lmms RUN --benchmark mme --data DIR --out lmms/
python -m evaluation.exchange from-lmms lmms/ --benchmark mme --data DIR --out RUN
python -m evaluation.exchange to-vlmevalkit RUN --benchmark mmbench --data DIR --out vlmevalkit/
python -m evaluation.exchange from-vlmevalkit model_MMBench_DEV_EN.xlsx --benchmark mmbench --data DIR --out RUN
```

`RUN` is the folder of an evaluation, as `sharegpt4v evaluate --out RUN` writes it. Answers that are brought in are
scored by `sharegpt4v evaluate MODEL --out RUN --data DIR --benchmarks NAME --score-only`; what was asked and answered
stays as it was, and the run says which harness asked. Without `--data` the questions are the Hub's.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .catalogue import NAMES, benchmark, module
from .lmms_files import find_samples, read_facts, read_samples, write_results, write_samples
from .outcomes import write_whole
from .predictions import MERGED, merge, read_predictions
from .results import FILE, read_results, read_run
from .rows import Rows, id_of, load_rows
from .runner import RUN, items_of
from .vlmevalkit_files import DATASETS, FORMATS, read_table, write_table


logger = logging.getLogger(__name__)
LMMS, VLMEVALKIT = "lmms-eval", "VLMEvalKit"
UNKNOWN = "unknown"


def to_lmms(run: Path, name: str, rows: Rows, out: Path) -> list[Path]:
    """
    Write answers, and figures if they are scored, as lmms-eval does.

    Args:
        run (`Path`): Folder of an evaluation.
        name (`str`): Name of the benchmark.
        rows (`Rows`): Its questions.
        out (`Path`): Output path of lmms-eval.

    Returns:
        `list[Path]`: The files.

    Raises:
        `FileNotFoundError`: The benchmark was not run to its end.
        `ValueError`: The answers are of other questions.
    """
    predictions, facts = _answers(run, name, rows), read_run(run / name)
    files = [write_samples(out, name, facts["model"], rows, predictions)]
    entry = read_results(run)["benchmarks"].get(name) if (run / FILE).is_file() else None
    if entry is not None and entry["run"]["provenance"] == facts["provenance"]:
        results = write_results(files[0], benchmark(name), facts, entry)
        files += [] if results is None else [results]
    else:
        logger.warning("%s is not scored in %s: only answers are written.", name, run)
    return files


def from_lmms(samples: Path, name: str, rows: Rows, run: Path) -> list[Path]:
    """
    Take over answers that lmms-eval logged.

    Args:
        samples (`Path`): File of samples, or an output path of lmms-eval.
        name (`str`): Name of the benchmark.
        rows (`Rows`): Its questions, in the order of lmms-eval's data set.
        run (`Path`): Folder of an evaluation, which has no answers to the benchmark.

    Returns:
        `list[Path]`: The files.

    Raises:
        `FileNotFoundError`: There are no samples.
        `ValueError`: They are damaged, or of other questions; or the folder has answers.
    """
    path = find_samples(samples, name)
    facts = read_facts(path)
    return _take_over(read_samples(path, rows), name, rows, run, facts.pop("model"), {"harness": LMMS, **facts})


def to_vlmevalkit(run: Path, name: str, rows: Rows, out: Path) -> list[Path]:
    """
    Write answers as VLMEvalKit does.

    Args:
        run (`Path`): Folder of an evaluation.
        name (`str`): Name of the benchmark.
        rows (`Rows`): Its questions.
        out (`Path`): File that ends in `.xlsx`, `.tsv` or `.json`, or a folder, which gets a spreadsheet.

    Returns:
        `list[Path]`: The file.

    Raises:
        `FileNotFoundError`: The benchmark was not run to its end.
        `ValueError`: The answers are of other questions, or a spreadsheet cannot hold them.
    """
    predictions = _answers(run, name, rows)
    if out.suffix not in FORMATS:
        model = str(read_run(run / name)["model"]).replace("/", "__")
        out = out / f"{model}_{DATASETS[name]}.xlsx"
    write_table(out, name, rows, predictions)
    return [out]


def from_vlmevalkit(table: Path, name: str, rows: Rows, run: Path) -> list[Path]:
    """
    Take over answers that VLMEvalKit wrote.

    Args:
        table (`Path`): The file.
        name (`str`): Name of the benchmark.
        rows (`Rows`): Its questions.
        run (`Path`): Folder of an evaluation, which has no answers to the benchmark.

    Returns:
        `list[Path]`: The files.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: It is damaged, or of other questions; or the folder has answers.
    """
    if not table.is_file():
        raise FileNotFoundError(f"There is no file {table}.")
    model = table.stem.removesuffix(f"_{DATASETS[name]}")
    return _take_over(read_table(table, rows), name, rows, run, model, {"harness": VLMEVALKIT})


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*): Of the command line; those of the process by default.

    Returns:
        `int`: Exit code: 0, or 1 where a file cannot be used.

    Raises:
        `SystemExit`: With 2, the command line is wrong; with 0, help was asked for.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    given = _parser().parse_args(arguments)
    try:
        rows = load_rows(benchmark(given.benchmark), given.data)
        files = COMMANDS[given.command](given.source, given.benchmark, rows, given.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in files))
    return 0


COMMANDS = {
    "to-lmms": to_lmms,
    "from-lmms": from_lmms,
    "to-vlmevalkit": to_vlmevalkit,
    "from-vlmevalkit": from_vlmevalkit,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.exchange",
        description="Bring answers to lmms-eval and VLMEvalKit, and theirs here.",
        epilog="An evaluation is the folder that `sharegpt4v evaluate --out` writes. lmms-eval's samples are "
        "<model>/<date>_samples_<task>.jsonl, VLMEvalKit's tables <model>_<data set>.xlsx, .tsv or .json.",
    )
    parser.add_argument("command", choices=COMMANDS, help="direction and harness")
    parser.add_argument("source", type=Path, help="to-: the evaluation; from-: file, or lmms-eval's output path")
    parser.add_argument("--benchmark", required=True, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with a folder of each benchmark, else the Hub"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="what is written")
    return parser


def _answers(run: Path, name: str, rows: Rows) -> list[dict[str, Any]]:
    predictions = read_predictions(run / name)
    items_of(rows, predictions)  # refuses other questions
    return predictions


def _take_over(
    found: list[dict[str, Any]], name: str, rows: Rows, run: Path, model: str, source: dict[str, Any]
) -> list[Path]:
    folder = run / name
    if (folder / MERGED).exists():
        raise ValueError(f"{folder} has answers already: they would be lost. Name another folder.")
    counts = Counter(one["index"] for one in found)
    if twice := [index for index, count in counts.items() if count > 1]:
        raise ValueError(f"Row {min(twice)} of {name} has {counts[min(twice)]} answers: one is needed.")
    if not found:
        raise ValueError(f"There is no answer to {name}.")
    found.sort(key=lambda one: one["index"])
    ours = [module(name).prompt(rows[one["index"]]) for one in found]
    other = sum(one["prompt"] not in (None, prompt) for one, prompt in zip(found, ours, strict=True))
    if other:
        logger.warning("%s: %d of %d were asked in other words than ShareGPT4V's.", name, other, len(found))
    if len(found) < len(rows):
        logger.warning("%s: %d of %d rows have no answer.", name, len(rows) - len(found), len(rows))
    prompts = [one["prompt"] for one in found]
    facts: dict[str, Any] = {"benchmark": name, "rows": rows.digest(), "prompts": _digest(prompts), "images": UNKNOWN}
    facts |= {
        "model": model,
        "weights": UNKNOWN,
        "max_new_tokens": (source.get("settings") or {}).get("max_new_tokens"),
    }
    facts["provenance"] = _digest([facts, found])
    facts |= {"questions": len(found), "of": len(rows), "options": {**source, "other_prompts": other}}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    identified = [
        {**one, "id": id_of(rows[one["index"]], one["index"]), "provenance": facts["provenance"]} for one in found
    ]
    return [merge(folder, identified), folder / RUN]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
