"""`gymsmith VERB`: the same jobs and the same store as the API, from a terminal.

Every verb that does long work puts a job and watches it. When no worker of this state folder is running, the verb starts the
embedded ones for as long as it needs them. `--json` prints one JSON document on standard output and nothing else. Exit codes:
0 done, 1 failed, 2 asked wrongly, 3 the machinery failed (retry), 130 interrupted (what was done is kept; the same command goes
on).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import GymsmithError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n\n")[0])
env_app = typer.Typer(no_args_is_help=True, help="Look at environments and prove them again.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint or a set of predictions.")
db_app = typer.Typer(no_args_is_help=True, help="The database behind the state folder.")
app.add_typer(env_app, name="env")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(db_app, name="db")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[int, typer.Option(help="Counter-based: the same seed gives the same result.")]
Home = Annotated[Path | None, typer.Option("--home", help="State folder (default: GYMSMITH_HOME, else ~/.local/state/gymsmith).")]


def main() -> None:
    """Entry point: runs the app and turns our errors into one line and an exit code."""
    try:
        app(standalone_mode=False)
    except GymsmithError as error:
        print(f"gymsmith: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        print("gymsmith: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        usage = getattr(error, "exit_code", None)
        if usage is None or not hasattr(error, "format_message"):
            raise
        print(f"gymsmith: {error.format_message()}", file=sys.stderr)
        raise SystemExit(usage) from None


def settings_for(home: Path | None, **overrides: Any) -> Any:
    """Settings of this invocation."""
    from gymsmith.config import Settings

    if home is not None:
        overrides["home"] = home
    return Settings.load(**overrides)


def emit(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str))


# ---------------------------------------------------------------- the house as a whole


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The three-minute variant: a smaller everything.")] = False,
    seed: Seed = 1,
    eval_seed: Annotated[int, typer.Option(help="Seed of the held-out environments; any number, none is special.")] = 20261122,
    permute_rewards: Annotated[
        bool, typer.Option("--permute-rewards", help="Control: RL gets the true rewards in a random order; it must not improve.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Rollout worker processes. The numbers do not depend on it.")] = 1,
    serve: Annotated[
        bool | None, typer.Option("--serve/--no-serve", help="Serve the dashboard afterwards (default: only on a terminal).")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make and prove environments, train a model from nothing, improve it with RL in real sandboxes, evaluate, report."""
    from gymsmith import demo as story

    settings = settings_for(home or Path(".gymsmith").resolve())
    plan = story.Plan.quick() if quick else story.Plan.full()
    result = story.run(
        settings, plan, seed=seed, eval_seed=eval_seed, permute_rewards=permute_rewards, workers=workers, quiet=as_json
    )
    if as_json:
        emit(result.document)
    if serve if serve is not None else (sys.stdout.isatty() and not as_json):
        story.serve(settings)
    raise typer.Exit(0 if result.kept else 1)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs GYMSMITH_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the dashboard and the API.")] = 8642,
    workers: Annotated[int, typer.Option(help="Rollout worker processes.")] = 1,
    home: Home = None,
) -> None:
    """Serve the dashboard and the API with embedded workers until Ctrl-C."""
    from gymsmith.supervisor import Supervisor

    settings = settings_for(home, host=host, port=port)
    with Supervisor(settings, workers=workers) as supervisor:
        print(f"gymsmith: dashboard on http://{settings.host}:{settings.port}/ (Ctrl-C stops it)")
        supervisor.run_forever()


@app.command()
def doctor(home: Home = None, as_json: Json = False) -> None:
    """Say what this machine can do (namespaces, Docker, Chromium, GPU) and how to get the rest."""
    from gymsmith import doctor as surgery

    checks = surgery.examine(settings_for(home))
    if as_json:
        emit([check._asdict() for check in checks])
    else:
        surgery.show(checks)
    raise typer.Exit(0 if surgery.can_work(checks) else 1)


# ---------------------------------------------------------------- environments


@app.command()
def generate(
    source: Annotated[
        str, typer.Argument(help="pypi:NAME==VERSION, file:PATH (a tutorial), man:PAGE, or shell:FAMILY (shell:all).")
    ],
    kind: Annotated[str, typer.Option(help="mutation (SWE tasks), tutorial or shell.")],
    n: Annotated[int, typer.Option("-n", help="How many admitted environments to stop at.", min=1)] = 20,
    seed: Seed = 1,
    split: Annotated[str, typer.Option(help="shell only: train words or held_out words.")] = "train",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make environments out of a source and prove each of them.

    Example: gymsmith generate pypi:inflection==0.5.1 --kind mutation -n 20
    """
    from gymsmith.attach import attached

    payload = {"source": source, "kind": kind, "n": n, "seed": seed, "split": split}
    with attached(settings_for(home)) as house:
        job = house.run("generate", payload, label=f"{kind} from {source}", quiet=as_json)
    if as_json:
        emit(job.result)
        return
    result = job.result
    print(f"admitted {len(result['admitted'])} of {result['candidates']} candidates in {result['seconds']:.1f} s")
    for reason, count in sorted(result["reasons"].items(), key=lambda kv: -kv[1]):
        print(f"  {count:4d}  {reason}")


@env_app.command("list")
def env_list(
    text: Annotated[str, typer.Argument(help="Words to look for in name, instruction and labels.")] = "",
    kind: Annotated[str | None, typer.Option(help="mutation, tutorial, shell")] = None,
    status: Annotated[str | None, typer.Option(help="verified, unproven, rejected, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    cursor: Annotated[str, typer.Option(help="Continue where the last page ended.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List environments."""
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        page = store.environments(text=text, kind=kind, status=status, limit=limit, cursor=cursor)
    if as_json:
        emit({"items": [e.model_dump(mode="json") for e in page.items], "next_cursor": page.next_cursor, "total": page.total})
        return
    for e in page.items:
        print(f"{e.id[:12]}  {e.status:9s}  {e.spec.kind:9s}  {e.spec.name:40s}  {e.instruction.splitlines()[0][:70]}")
    more = f"; more with --cursor {page.next_cursor}" if page.next_cursor else ""
    print(f"{len(page.items)} of {page.total}{more}")


@env_app.command("show")
def env_show(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="An id or the start of one.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one environment: instruction, evidence gate by gate, files."""
    from gymsmith.store import Store

    settings = settings_for(home)
    with Store.open(settings) as store:
        environment = store.environment(env_id)
        evidence = store.evidence(environment.id)
    if as_json:
        emit({"environment": environment.model_dump(mode="json"), "evidence": evidence and evidence.model_dump(mode="json")})
        return
    print(f"{environment.id}  {environment.status}  {environment.spec.name}")
    print(f"source {environment.source.uri}  licence {environment.source.licence or '-'}")
    print(f"\n{environment.instruction}\n")
    for gate in evidence.gates if evidence else ():
        rewards = " ".join(f"{r:g}" for r in gate.rewards)
        print(f"  {'ok ' if gate.passed else 'NO '} {gate.name:28s} {rewards:16s} {gate.detail[:70]}")
    folder = settings.home / environment.path
    print(f"\nfiles in {folder}")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(folder)}  {path.stat().st_size}")


@env_app.command("verify")
def env_verify(
    env_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Environments to prove again, from scratch.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run every gate again on this machine and store the new evidence."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        job = house.run("verify", {"environments": env_ids}, label="proofs", quiet=as_json)
    emit(job.result) if as_json else print(json.dumps(job.result, indent=2))
    raise typer.Exit(0 if all(status == "verified" for status in job.result["statuses"].values()) else 1)


# ---------------------------------------------------------------- rollouts and training


@app.command()
def rollout(
    env_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Environments to attempt.")],
    checkpoint: Annotated[str, typer.Option(help="A checkpoint folder, or a run id (its newest checkpoint).")] = "",
    solution: Annotated[bool, typer.Option("--solution", help="Play the reference solution instead of a model.")] = False,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at each environment.")] = 1,
    seed: Seed = 1,
    keep_recent_k: Annotated[int | None, typer.Option(help="Fold all but the last k observations.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let a policy attempt environments in sandboxes and store the trajectories."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        result = house.rollout(
            env_ids,
            checkpoint=checkpoint,
            solution=solution,
            attempts=attempts,
            seed=seed,
            keep_recent_k=keep_recent_k,
            quiet=as_json,
        )
        trajectories = house.store.trajectories(result["trajectories"])
    if as_json:
        emit([t.model_dump(mode="json") for t in trajectories])
        return
    for t in trajectories:
        verdict = "error: " + t.error if t.reward is None else f"reward {t.reward.value:g}"
        print(f"{t.id}  {t.environment_id[:12]}  attempt {t.attempt}  {verdict}  {t.finish}")
        for number, step in enumerate(t.steps, 1):
            print(f"  {number}. $ {step.action}" + (f"   [refused: {step.refused}]" if step.refused else ""))
            for line in step.observation.splitlines()[:8]:
                print(f"       {line}")


Override = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change one knob of the recipe.")]


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="pretrain, sft or dpo.")],
    recipe: Annotated[str, typer.Option(help="A recipe of trainer/recipes or a TOML file.")] = "demo",
    start: Annotated[str, typer.Option("--from", help="Run whose newest checkpoint to start from (sft, dpo).")] = "",
    corpus: Annotated[str, typer.Option(help="pretrain: a corpus file; empty makes one.")] = "",
    data: Annotated[str, typer.Option(help="sft: run with demonstrations; dpo: run with attempts.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="Continue this run from its newest checkpoint.")] = "",
    overrides: Override = None,
    seed: Seed = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train a model by one stage. Interrupted, it resumes exactly with --run."""
    from gymsmith.attach import attached

    inputs = {"corpus": corpus, "demonstrations_run": data if stage == "sft" else "", "pairs_run": data if stage == "dpo" else ""}
    with attached(settings_for(home)) as house:
        run = house.train(
            stage, recipe=recipe, seed=seed, start=start, inputs=inputs, overrides=overrides or [], run_id=run_id, quiet=as_json
        )
    report_run(run, as_json)


@app.command()
def rl(
    start: Annotated[str, typer.Option("--from", help="Run whose newest checkpoint to start from.")] = "",
    recipe: Annotated[str, typer.Option(help="A recipe of trainer/recipes or a TOML file.")] = "demo",
    permute_rewards: Annotated[
        bool, typer.Option("--permute-rewards", help="Control arm: true rewards in a random order.")
    ] = False,
    run_id: Annotated[str, typer.Option("--run", help="Continue this run from its newest checkpoint.")] = "",
    overrides: Override = None,
    seed: Seed = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Improve a model with agentic RL on the verified shell environments of the state folder."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        extra = [*(overrides or []), *(["permute_rewards=true"] if permute_rewards else [])]
        run = house.train("rl", recipe=recipe, seed=seed, start=start, inputs={}, overrides=extra, run_id=run_id, quiet=as_json)
    report_run(run, as_json)


def report_run(run: Any, as_json: bool) -> None:
    """Print what a finished run has to say."""
    if as_json:
        emit(run.model_dump(mode="json"))
        return
    print(f"run {run.id}  {run.state}  checkpoint {run.checkpoint}")
    for key, value in run.summary.items():
        print(f"  {key}: {value}")


# ---------------------------------------------------------------- evaluation


@evaluate_app.command("held-out")
def evaluate_held_out(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint folder, or a run id (its newest checkpoint).")],
    seed: Annotated[int, typer.Option(help="Seed of the held-out environments: any number.")] = 20261122,
    n: Annotated[int, typer.Option("-n", min=1, help="How many environments.")] = 600,
    family: Annotated[str, typer.Option(help="One family, or all training families.")] = "all",
    greedy: Annotated[bool, typer.Option("--greedy", help="Most likely token instead of sampling at temperature 1.")] = False,
    keep_recent_k: Annotated[int | None, typer.Option(help="Fold all but the last k observations.")] = None,
    level: Annotated[int | None, typer.Option(help="One level of difficulty (chain: number of hops).")] = None,
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


@evaluate_app.command("swebench")
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

    with attached(settings_for(home)) as house:
        payload: dict[str, Any] = {"dataset": str(dataset.resolve()), "predictions": predictions}
        if export:
            payload["environments"] = house.store.environment_ids(kind="mutation", status="verified")
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


# ---------------------------------------------------------------- upkeep


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="loop: the RL loop through queue, HTTP and store.")] = "loop",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table to this file.")] = None,
    home: Home = None,
) -> None:
    """Measure, with the peer in the same run."""
    from gymsmith import bench as stopwatch

    rows = stopwatch.run(name, settings_for(home), quick=quick, json_file=json_file)
    raise typer.Exit(0 if all(row.ok is not False for row in rows) else 1)


@db_app.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Bring the database to this version's tables (the embedded SQLite does so by itself)."""
    from gymsmith.store import Store

    Store.migrate(settings_for(home))


if __name__ == "__main__":
    main()
