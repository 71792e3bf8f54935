"""`gymsmith sandbox ...`: the sandboxes of this machine, from a terminal. The work is `sandboxes.console`'s, asked by name."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer

from gymsmith.verbs.terminal import Home, Json, emit, settings_for

app = typer.Typer(no_args_is_help=True, help="List live sandboxes, run something in a new one, end one.")
Target = Annotated[str, typer.Argument(metavar="TARGET", help="An environment's id, an image's id, or gymsmith/host.")]
User = Annotated[str | None, typer.Option(help="Who runs it: root, agent, tester, nobody or UID:GID (default: the image's).")]


@app.command("ls")
def sandbox_ls(home: Home = None, as_json: Json = False) -> None:
    """List the live sandboxes of this state folder: id, age, lease, memory and processes in use and allowed, image, labels."""
    rows = _console().listing(settings_for(home))
    if as_json:
        emit(rows)
        return
    for row in rows:
        labels = " ".join(f"{key}={str(value)[:24]}" for key, value in row["labels"].items())
        print(
            f"{row['id']:16s} {_seconds(row['age_s']):>6s} of {_seconds(row['lease_s']):>6s} "
            f"{_share(row['memory_bytes'], row['memory_limit_bytes'], 1 << 20)} MiB "
            f"{_share(row['pids'], row['pids_limit'])} procs  {row['image'][:32]}  {row['role']}  {labels}"
        )
    owners = len({row["owner_pid"] for row in rows})
    print(f"{len(rows)} sandboxes of {owners} processes")


@app.command("exec", context_settings={"ignore_unknown_options": True})
def sandbox_exec(
    target: Target,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="A program and its words, or one shell line.")],
    user: User = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds, after which it is killed.", min=0.1)] = 60.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a command in a new sandbox, which is gone afterwards; ends with the command's exit code (124 after a time-out).

    Example: gymsmith sandbox exec gymsmith/host -- 'id; cat /etc/os-release'
    """
    result = _console().execute(settings_for(home), target, command, user=user, timeout_s=timeout_s)
    code = 124 if result.timed_out else 128 + result.signal if result.signal is not None else result.exit_code
    if as_json:
        emit(
            {
                "exit_code": result.exit_code,
                "signal": result.signal,
                "timed_out": result.timed_out,
                "oom": result.oom,
                "truncated": result.truncated,
                "output": result.output.decode(errors="replace"),
                "stderr": result.stderr.decode(errors="replace"),
                "wall_s": result.wall_s,
                "cpu_s": result.cpu_s,
            }
        )
    else:
        sys.stdout.buffer.write(result.output)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(result.stderr)
        if result.timed_out or result.oom:
            print(f"gymsmith: {'ran out of memory' if result.oom else f'killed after {timeout_s:g} s'}", file=sys.stderr)
    raise typer.Exit(code)


@app.command("shell")
def sandbox_shell(target: Target, user: User = None, home: Home = None) -> None:
    """Open a shell on a terminal in a new sandbox, which is gone afterwards; ends with the shell's exit code."""
    raise typer.Exit(_console().shell(settings_for(home), target, user=user))


@app.command("kill")
def sandbox_kill(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids as `ls` prints them.")], home: Home = None
) -> None:
    """End live sandboxes; whoever waits for one is told that it is gone."""
    settings = settings_for(home)
    for given in ids:
        print(f"killed {_console().kill(settings, given)}")


def _console() -> Any:
    return importlib.import_module("sandboxes.console")


def _share(used: int | None, allowed: int, unit: int = 1) -> str:
    return f"{'-' if used is None else f'{used / unit:.4g}':>6s}/{allowed // unit:<5d}"


def _seconds(value: float) -> str:
    return f"{value:.0f}s" if value < 600 else f"{value / 60:.0f}m" if value < 36_000 else f"{value / 3600:.0f}h"
