"""`gymsmith evaluate ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import UserError
from gymsmith.verbs.terminal import Home, Json, emit, settings_for

app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint or a set of predictions.")


@app.command("held-out")
def evaluate_held_out(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint folder, or a run id (its newest checkpoint).")],
    seed: Annotated[int, typer.Option(help="Seed of the held-out environments: any number.")] = 20261122,
    n: Annotated[int, typer.Option("-n", min=1, help="How many environments.")] = 600,
    family: Annotated[str, typer.Option(help="One family, or all training families.")] = "all",
    greedy: Annotated[bool, typer.Option("--greedy", help="Most likely token instead of sampling at temperature 1.")] = False,
    keep_recent_k: Annotated[int | None, typer.Option(min=1, help="Fold all but the last k observations.")] = None,
    level: Annotated[int | None, typer.Option(min=1, help="One level of difficulty (chain: number of hops).")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Pass rate on environments with unseen words, files and seeds, made now from the seed you give."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        report = house.evaluate_held_out(
            checkpoint, seed=seed, n=n, family=family, greedy=greedy, keep_recent_k=keep_recent_k, level=level, quiet=as_json
        )
    show_report(report, as_json)


@app.command("swebench")
def evaluate_swebench(
    dataset: Annotated[Path, typer.Option(help="SWE-bench-format rows: .json, .jsonl or .parquet.")],
    predictions: Annotated[str, typer.Option(help="gold, empty, or a predictions file (.json, .jsonl).")] = "gold",
    export: Annotated[
        bool,
        typer.Option("--export", help="First write the verified SWE environments of this state folder into the file."),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run SWE-bench-format rows in our sandboxes and grade them with the swebench package's own grader."""
    from gymsmith.attach import attached

    if not export and not dataset.is_file():
        raise UserError(f"no data set at {dataset}; --export writes the environments of this state folder into one")
    if predictions not in ("gold", "empty"):
        if not Path(predictions).is_file():
            raise UserError(f"expected gold, empty or a predictions file, got {predictions!r}, which is none")
        predictions = str(Path(predictions).resolve())
    with attached(settings_for(home)) as house:
        payload: dict[str, Any] = {"dataset": str(dataset.resolve()), "predictions": predictions}
        if export:
            kinds = ("mutation", "reconstruction", "combination", "commit", "issue")
            payload["environments"] = [
                each for kind in kinds for each in house.store.environment_ids(kind=kind, status="verified")
            ]
            if not payload["environments"]:
                raise UserError("no verified SWE environments to export; make some with gymsmith generate pypi:NAME==VERSION")
        job = house.run("evaluate_swebench", payload, label=f"swebench {dataset.name}", quiet=as_json)
        report = house.store.report(job.result["report_id"])
    show_report(report, as_json)


def show_report(report: Any, as_json: bool) -> None:
    """Print an evaluation report."""
    if as_json:
        emit(report.model_dump(mode="json"))
        return
    rows = {"all": report.overall, **report.groups}
    print(f"{report.name}  policy {report.policy_version}  {report.mode}  seed {report.seed}")
    for name, score in rows.items():
        print(f"  {name:14s} {100 * score.rate:5.1f}%  [{100 * score.low:.1f}, {100 * score.high:.1f}]  {score.passed}/{score.n}")
    print(
        f"  mean commands {report.mean_commands:.2f}, passed without a look {report.passed_without_look}, errors {report.errors}"
    )
