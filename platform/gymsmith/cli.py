"""`gymsmith VERB`: the same jobs and the same store as the API, from a terminal.

Every verb that does long work puts a job and watches it. When no worker of this state folder is running, the verb starts the
embedded ones for as long as it needs them. `--json` prints one JSON document on standard output and nothing else. Exit codes:
0 done, 1 failed, 2 asked wrongly, 3 the machinery failed (retry), 130 interrupted and 143 terminated (what was done is kept; the
same command goes on). Errors are one line on standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import GymsmithError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n\n")[0])
env_app = typer.Typer(no_args_is_help=True, help="Look at environments and prove them again.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint or a set of predictions.")
run_app = typer.Typer(no_args_is_help=True, help="Look at runs: trainings, rollouts, evaluations, demos.")
db_app = typer.Typer(no_args_is_help=True, help="The database behind the state folder.")
app.add_typer(env_app, name="env")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(run_app, name="run")
app.add_typer(db_app, name="db")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[int, typer.Option(help="Counter-based: the same seed gives the same result.")]
Home = Annotated[Path | None, typer.Option("--home", help="State folder (default: GYMSMITH_HOME, else ~/.local/state/gymsmith).")]


SESSIONS = 2000
"""Shell sessions in a corpus that nobody gave."""
KINDS = ("mutation", "tutorial", "shell")
KEPT = "what was finished is kept, the same command goes on from there"


def main() -> None:
    """Entry point: runs the app and turns our errors into one line and an exit code."""
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, _terminated)
    try:
        # Without standalone mode an Exit comes back as its code (Ctrl-C as 130), and a command's own return value otherwise.
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except GymsmithError as error:
        raise SystemExit(_said(str(error), error.exit_code)) from None
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(_said(f"interrupted; {KEPT}", 130)) from None
    except BrokenPipeError:
        # The reader of our output left, as `head` does; nothing more can be said on that pipe, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "free some space, or choose another state folder with --home; nothing half-written was kept"
        raise SystemExit(_said(f"{where}{error.strerror or error}; {advice}", 3)) from None
    except Exception as error:
        usage = getattr(error, "exit_code", None)
        if usage is None or not hasattr(error, "format_message"):
            raise
        # Help that stands in for missing words has been printed; there is nothing to add.
        said = error.format_message()
        raise SystemExit(_said(f"{said.rstrip('.')}. Try --help.", usage) if said else usage) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _said(message: str, code: int) -> int:
    """Print the one line of an error; the code to exit with."""
    print(f"gymsmith: {message}", file=sys.stderr)
    return code


def _terminated(number: int, _: Any) -> None:
    """SIGTERM and a closed terminal end a command as Ctrl-C does: jobs cancelled, children stopped."""
    raise SystemExit(_said(f"ended by {signal.Signals(number).name}; {KEPT}", 128 + number))


def one_of(name: str, given: str, known: tuple[str, ...]) -> str:
    """`given`, when it is known.

    Raises:
        UserError: it is not.
    """
    if given not in known:
        raise UserError(f"expected {name} to be one of {', '.join(known)}, got {given!r}")
    return given


def settings_for(home: Path | None, **overrides: Any) -> Any:
    """Settings of this invocation."""
    from gymsmith.config import Settings

    if home is not None:
        overrides["home"] = home
    return Settings.load(**overrides)


def emit(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str), flush=True)


# ---------------------------------------------------------------- the house as a whole


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The three-minute variant: a smaller everything.")] = False,
    seed: Seed = 1,
    eval_seed: Annotated[int, typer.Option(help="Seed of the held-out environments; any number, none is special.")] = 20261122,
    permute_rewards: Annotated[
        bool, typer.Option("--permute-rewards", help="Control: RL gets the true rewards in a random order; it must not improve.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Rollout worker processes. The numbers do not depend on it.")] = 1,
    serve: Annotated[
        bool | None, typer.Option("--serve/--no-serve", help="Serve the dashboard afterwards (default: only on a terminal).")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make and prove environments, train a model from nothing, improve it with RL in real sandboxes, evaluate, report."""
    from gymsmith import demo as story

    settings = settings_for(home)
    if "home" not in settings.model_fields_set:
        settings = settings_for(Path(".gymsmith").resolve())
    plan = story.Plan.quick() if quick else story.Plan.full()
    result = story.run(
        settings, plan, seed=seed, eval_seed=eval_seed, permute_rewards=permute_rewards, workers=workers, quiet=as_json
    )
    if as_json:
        emit(result.document)
    if serve if serve is not None else (sys.stdout.isatty() and not as_json):
        try:
            story.serve(settings)
        except UserError as error:
            # The demo itself is done and stored; its verdict must not hang on a port.
            print(f"gymsmith: not served: {error}\nlater: gymsmith up --home {settings.home} --port N", file=sys.stderr)
    raise typer.Exit(0 if result.kept else 1)


@app.command()
def up(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default 127.0.0.1); other than loopback needs GYMSMITH_TOKEN.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the dashboard and the API (default 8642); 0 takes a free one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Rollout worker processes.")] = 1,
    home: Home = None,
) -> None:
    """Serve the dashboard and the API with embedded workers until Ctrl-C."""
    from gymsmith.supervisor import Supervisor

    settings = settings_for(home, host=host, port=port)
    with Supervisor(settings, workers=workers) as supervisor:
        print(f"gymsmith: dashboard on {supervisor.url} (Ctrl-C stops it)", flush=True)
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

    one_of("--kind", kind, KINDS)
    one_of("--split", split, ("train", "held_out"))
    scheme, _, rest = source.partition(":")
    if scheme == "file" and rest:
        # A worker may stand in another folder than we do.
        source = f"file:{Path(rest).expanduser().resolve()}"
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
    from gymsmith.schema import Status
    from gymsmith.store import Store

    if status is not None:
        one_of("--status", status, tuple(Status))
    with Store.open(settings_for(home)) as store:
        page = store.environments(text=text, kind=kind, status=status, limit=limit, cursor=cursor)
    if as_json:
        emit({"items": [e.model_dump(mode="json") for e in page.items], "cursor": page.cursor})
        return
    for e in page.items:
        first = e.instruction.strip().partition("\n")[0]
        print(f"{e.id[:12]}  {e.status:9s}  {e.spec.kind:9s}  {e.spec.name:40s}  {first[:70]}")
    print(f"{len(page.items)} environments{listed(page.cursor)}")


def listed(cursor: str) -> str:
    """How a list goes on, for its last line."""
    return f"; more with --cursor {cursor}" if cursor else ""


@env_app.command("show")
def env_show(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="An id or the start of one.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one environment: instruction, evidence gate by gate, files."""
    from gymsmith import folder
    from gymsmith.store import Store

    settings = settings_for(home)
    with Store.open(settings) as store:
        environment = store.find_environment(env_id)
        evidence = store.evidence(environment.id)
    if as_json:
        emit({"environment": environment.model_dump(mode="json"), "evidence": evidence and evidence.model_dump(mode="json")})
        return
    members = folder.members(settings.home, environment.path)
    print(f"{environment.id}  {environment.status}  {environment.spec.name}")
    print(f"source {environment.source.uri}  licence {environment.source.licence or '-'}")
    print(f"\n{environment.instruction}\n")
    for gate in evidence.gates if evidence else ():
        rewards = " ".join(f"{r:g}" for r in gate.rewards)
        print(f"  {'ok ' if gate.passed else 'NO '} {gate.name:28s} {rewards:16s} {gate.detail[:70]}")
    print(f"\nfiles in {settings.home / environment.path}")
    for member in members:
        print(f"  {member.name}  {member.size}")


@env_app.command("verify")
def env_verify(
    env_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Environments to prove again, from scratch.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run every gate again on this machine and store the new evidence."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        ids = [house.store.find_environment(given).id for given in env_ids]
        job = house.run("verify", {"environments": ids}, label="proofs", quiet=as_json)
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
    keep_recent_k: Annotated[int | None, typer.Option(min=1, help="Fold all but the last k observations.")] = None,
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

    one_of("STAGE", stage, ("pretrain", "sft", "dpo"))
    if corpus and not Path(corpus).is_file():
        raise UserError(f"expected a corpus file at {corpus}, there is none; leave --corpus out to have one made")
    inputs = {
        "corpus": str(Path(corpus).resolve()) if corpus else "",
        "demonstrations_run": data if stage == "sft" else "",
        "pairs_run": data if stage == "dpo" else "",
    }
    with attached(settings_for(home)) as house:
        if stage == "pretrain" and not corpus and not run_id:
            order = {"seed": seed, "sessions": SESSIONS, "drills": 2.5}
            inputs["corpus"] = house.run("corpus", order, label="corpus", quiet=as_json).result["path"]
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
        inputs = {"permute_rewards": True} if permute_rewards else {}
        run = house.train(
            "rl", recipe=recipe, seed=seed, start=start, inputs=inputs, overrides=overrides or [], run_id=run_id, quiet=as_json
        )
    report_run(run, as_json)


@run_app.command("list")
def run_list(
    kind: Annotated[str | None, typer.Option(help="pretrain, sft, dpo, rl, rollout, evaluate, demo, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    cursor: Annotated[str, typer.Option(help="Continue where the last page ended.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        page = store.runs(kind=kind, limit=limit, cursor=cursor)
    if as_json:
        emit({"items": [run.model_dump(mode="json") for run in page.items], "cursor": page.cursor})
        return
    for run in page.items:
        print(f"{run.id}  {run.kind:9s}  {run.state:9s}  {run.name:28s}  {run.checkpoint}")
    print(f"{len(page.items)} runs{listed(page.cursor)}")


@run_app.command("show")
def run_show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a run.")], home: Home = None, as_json: Json = False
) -> None:
    """Show one run: state, newest checkpoint, summary."""
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        run = store.run(run_id)
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

    if not export and not dataset.is_file():
        raise UserError(f"no data set at {dataset}; --export writes the environments of this state folder into one")
    if predictions not in ("gold", "empty"):
        if not Path(predictions).is_file():
            raise UserError(f"expected gold, empty or a predictions file, got {predictions!r}, which is none")
        predictions = str(Path(predictions).resolve())
    with attached(settings_for(home)) as house:
        payload: dict[str, Any] = {"dataset": str(dataset.resolve()), "predictions": predictions}
        if export:
            payload["environments"] = house.store.environment_ids(kind="mutation", status="verified")
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
