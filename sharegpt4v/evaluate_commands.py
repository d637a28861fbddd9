"""`sharegpt4v evaluate` and `sharegpt4v score`: answers of a model to benchmarks, and figures of answers."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import AsJson, show


ImageMode = Literal["official", "pad", "crop", "native"]
Model = Annotated[str, typer.Argument(help="Folder or name on the Hub; with --endpoint the name that it knows.")]
Names = Annotated[str, typer.Option("--benchmarks", help="Names with commas between, or `all`.")]
Data = Annotated[Path | None, typer.Option(help="Folder with a folder of each benchmark; the Hub's without it.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the evaluation; an existing one is continued.")]
Images = Annotated[ImageMode, typer.Option(help="How an image becomes a square: as each benchmark's script has it.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Questions at a time and process.")]
Limit = Annotated[int | None, typer.Option(help="Only so many first questions of each; the report says so.")]
Device = Annotated[str, typer.Option(help="`auto`: a GPU for each process, else the processor; or a device.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Let code of the model's repository run.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch on the Hub.")]
Endpoint = Annotated[str | None, typer.Option(help="Address up to `/v1` of a server that has the model.")]
EndpointKey = Annotated[str, typer.Option("--api-key-env", help="Variable with its key; empty if it wants none.")]
Judge = Annotated[str | None, typer.Option("--judge-model", help="Who grades LLaVA-Bench, MM-Vet, MMBench leftovers.")]
JudgeUrl = Annotated[str, typer.Option("--judge-endpoint", help="Address up to `/v1` of the judge.")]
JudgeKey = Annotated[str, typer.Option(help="Variable with the judge's key; empty if it wants none.")]
JudgeRuns = Annotated[int, typer.Option(help="How often MM-Vet's answers are graded.")]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Give figures although not all is judged.")]
Compare = Annotated[Path | None, typer.Option(help="Folder of another evaluation of the same questions.")]
ScoreOnly = Annotated[bool, typer.Option("--score-only", help="Score what is there; no model is loaded.")]


def evaluate(
    model: Model,
    out: Out,
    benchmarks: Names = "all",
    data: Data = None,
    images: Images = "official",
    batch_size: Batch = 8,
    limit: Limit = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the weights; that of the files by default.")] = "auto",
    trust_remote_code: Remote = False,
    revision: Revision = None,
    endpoint: Endpoint = None,
    api_key_env: EndpointKey = "",
    judge_model: Judge = None,
    judge_endpoint: JudgeUrl = "https://api.openai.com/v1",
    judge_key_env: JudgeKey = "OPENAI_API_KEY",
    judge_runs: JudgeRuns = 1,
    allow_partial: Partial = False,
    score_only: ScoreOnly = False,
    compare: Compare = None,
    as_json: AsJson = False,
) -> None:
    """Answer the paper's benchmarks and score the answers as officially; the same command continues."""
    from evaluation.catalogue import benchmarks_of
    from evaluation.judge import JudgeConfig
    from evaluation.processes import this_process
    from evaluation.runner import EvaluationOptions

    chosen = benchmarks_of(name.strip() for name in benchmarks.split(",") if name.strip())
    options = EvaluationOptions(images, batch_size, limit)
    judging = JudgeConfig(judge_model, judge_endpoint, judge_key_env, runs=judge_runs) if judge_model else None
    process, where = this_process(device)
    asked = None
    if not score_only:
        asked = _model(model, endpoint, api_key_env, where, dtype, trust_remote_code, revision)
    scored = []
    for benchmark, module in chosen:
        scored += _run(asked, benchmark, module, data, out, options, process, judging, allow_partial)
    if process.rank == 0:
        _report(out, scored, compare, as_json)


def _model(
    name: str, endpoint: str | None, key: str, where: Any, dtype: str, remote: bool, revision: str | None
) -> Any:
    if endpoint:
        from evaluation.endpoint_model import EndpointModel, EndpointOptions

        return EndpointModel(EndpointOptions(name, endpoint, key))
    from evaluation.model import LocalModel

    return LocalModel(name, where, dtype, remote, revision)


def _run(
    asked: Any,
    benchmark: Any,
    module: Any,
    data: Path | None,
    out: Path,
    options: Any,
    process: Any,
    judging: Any,
    allow_partial: bool,
) -> list[tuple[Any, Any, dict[str, Any]]]:
    from evaluation.results import facts_of
    from evaluation.rows import load_rows
    from evaluation.runner import run_benchmark, score_benchmark, write_submission

    rows = load_rows(benchmark, data)
    if asked is not None:
        run_benchmark(asked, module, benchmark, rows, out, options, process)
    if process.rank > 0:
        return []
    if (submission := write_submission(module, benchmark, rows, out)) is not None:
        typer.echo(f"For the server of {benchmark.title}: {submission}", err=True)
    if not rows.labelled:
        typer.echo(f"{benchmark.title}: no row has a label, so only the server can score.", err=True)
        return []
    result = score_benchmark(module, benchmark, rows, out, judging, allow_partial)
    return [(benchmark, result, facts_of(rows, out, benchmark))]


def _report(out: Path, scored: list[tuple[Any, Any, dict[str, Any]]], other: Path | None, as_json: bool) -> None:
    from evaluation.compare import compare
    from evaluation.report import write_report
    from evaluation.results import collect, write_results

    results = collect(out, scored)
    write_results(out, results)
    comparison = compare(out, other) if other is not None else None
    write_report(out, results, comparison)
    lines = []
    for benchmark, result, _ in scored:
        figures = ", ".join(f"{name} {value}" for name, value in result.headline.items())
        lines.append(f"{benchmark.title}: {figures} (N = {result.counts['questions']})")
    show(results, [*lines, f"The report is {out / 'report.html'}."], as_json)


def score(
    benchmark: Annotated[str, typer.Option(help="Name of the benchmark; `evaluation.score --help` has the layouts.")],
    predictions: Annotated[Path, typer.Option(help="File, its .gz, or a folder that holds it.")],
    references: Annotated[Path | None, typer.Option(help="Where predictions do not carry them.")] = None,
    rule: Annotated[str, typer.Option(help="Scoring rule, `official` or a variant of the benchmark.")] = "official",
    as_json: AsJson = False,
) -> None:
    """Score predictions in a benchmark's official layout, as the official scorer does."""
    from evaluation.score import describe_score, score_files

    result = score_files(benchmark, predictions, references, rule)
    show(result.to_json(), describe_score(result), as_json)
