"""`gymsmith VERB`: the same jobs and the same store as the API, from a terminal.

Every verb that does long work puts a job and watches it. When no worker of this state folder is running, the verb starts the
embedded ones for as long as it needs them. `--json` prints one JSON document on standard output and nothing else. Exit codes:
0 done, 1 failed, 2 asked wrongly, 3 the machinery failed (retry), 130 interrupted and 143 terminated (what was done is kept; the
same command goes on). Errors are one line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import GymsmithError, UserError
from gymsmith.verbs import checkpoints, environments, evaluation, exchange, hosts, images, learning, packages, sandboxes, upkeep
from gymsmith.verbs.terminal import Home, Json, Seed, can_train, emit, settings_for

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("\n\n")[0])
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
    can_train(settings)
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


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="loop: the RL loop; sandboxes; render; factory; trainer.")] = "loop",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="trainer: what this machine's GPU does.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table to this file.")] = None,
    keep: Annotated[Path | None, typer.Option(help="State folder of a long one, so that an interrupted run goes on.")] = None,
    home: Home = None,
) -> None:
    """Measure, with the peer in the same run."""
    from gymsmith import bench as stopwatch

    rows = stopwatch.run(f"{name}-gpu" if gpu else name, settings_for(home), quick=quick, json_file=json_file, keep=keep)
    raise typer.Exit(0 if all(row.ok is not False for row in rows) else 1)


environments.app.command("import")(exchange.env_import)
environments.app.command("export")(exchange.env_export)
environments.app.command("diff")(exchange.env_diff)
for verb in (
    environments.generate,
    learning.rollout,
    learning.train,
    learning.ablate,
    learning.scaling,
    learning.rl,
    learning.tokenise,
    learning.export,
):
    app.command()(verb)
for name, group in (
    ("env", environments.app),
    ("run", learning.app),
    ("model", checkpoints.app),
    ("evaluate", evaluation.app),
    ("image", images.app),
    ("sandbox", sandboxes.app),
    ("sandbox-host", hosts.app),
    ("index", packages.app),
    ("db", upkeep.app),
):
    app.add_typer(group, name=name)


if __name__ == "__main__":
    main()
