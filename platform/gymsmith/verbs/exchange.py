"""`gymsmith env import`, `env export` and `env diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import Conflict, NotFound, UserError
from gymsmith.verbs.terminal import Home, Json, emit, one_of, settings_for

INCOMING = ("auto", "harbor", "terminal-bench", "jsonl", "swebench", "task-repository")
OUTGOING = ("harbor", "jsonl", "swebench", "task-repository")
PORTABLE_BASE = "python:3.11-slim-bookworm"
PAGE = 500


def env_import(
    path: Annotated[
        str, typer.Argument(help="A folder, an archive, a .json, .jsonl or .parquet file; or the https: URL of one.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="auto looks at what is there; or " + ", ".join(INCOMING[1:]) + ".")
    ] = "auto",
    verify: Annotated[bool, typer.Option("--verify", help="Run the gates on what was imported, at once.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take in tasks that were made elsewhere. They are unproven until the gates have run here.

    \b
    harbor            task.toml, instruction.md, environment/, tests/, solution/; a folder of such folders; an archive of either
    terminal-bench    version 1: task.yaml, docker-compose.yaml with one service, run-tests.sh, tests/, solution.sh or .yaml
    jsonl             what `gymsmith env export --format jsonl` writes: one task a line
    swebench          rows that can be run: with image, eval_script and log_parser parse_log_pytest
    task-repository   a repository of swebench 5, with sweb.yaml

    What a task says about itself is believed by nobody: its agent has no network and is no root, and `gymsmith env verify ID`
    has to see that doing nothing fails and the solution passes. A task that asks for what a sandbox does not have (several
    services, a GPU, a verifier image of its own) is refused by name; the others come in. Links and paths that lead out are
    refused.

    Example: gymsmith env import ./my-tasks --verify
    """
    from gymsmith.attach import attached

    one_of("--format", form, INCOMING)
    given = path if "://" in path else str(Path(path).expanduser().resolve())
    if "://" not in given and not Path(given).exists():
        raise NotFound(f"expected tasks at {given}, there is nothing; check the path")
    with attached(settings_for(home)) as house:
        result = house.run("import", {"path": given, "format": form}, label=f"import of {path}", quiet=as_json).result
        fresh = [env_id for env_id in result["imported"].values() if env_id not in result["known"]]
        if verify and fresh:
            result |= house.run("verify", {"environments": fresh}, label="proofs", quiet=as_json).result
    if as_json:
        emit(result)
    else:
        _say_import(result)
    raise typer.Exit(1 if result["refused"] else 0)


def _say_import(result: dict[str, Any]) -> None:
    from gymsmith.ansi import plain

    statuses = result.get("statuses", {})
    print(f"imported {len(result['imported'])} of format {result['format']}, refused {len(result['refused'])}")
    for name, env_id in result["imported"].items():
        status = statuses.get(env_id) or ("known here" if env_id in result["known"] else "unproven")
        reason = result.get("reasons", {}).get(env_id, "")
        print(f"  {env_id[:12]}  {status:10s}  {plain(name)}{f'  ({reason})' if reason else ''}")
    for name, why in result["refused"].items():
        print(f"  refused       {plain(name)}: {plain(why)}")
    if len(result["known"]) < len(result["imported"]) and not statuses:
        print("unproven until the gates have run here: gymsmith env verify ID")


def env_export(
    to: Annotated[Path, typer.Option("--to", help="Folder or file to write; it must not exist yet.")],
    env_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids or starts of ids.")] = None,
    form: Annotated[str, typer.Option("--format", help=", ".join(OUTGOING) + ".")] = "harbor",
    every: Annotated[bool, typer.Option("--all", help="Every verified environment (with --kind: of that kind).")] = False,
    kind: Annotated[str | None, typer.Option(help="With --all: mutation, tutorial, shell, ...")] = None,
    base: Annotated[str, typer.Option(help="Image that our own base becomes, with a digest where it must stay what it is.")] = (
        PORTABLE_BASE
    ),
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write environments in a format that others read.

    \b
    harbor            --to FOLDER        one task folder each; passes `harbor lint`, runs with `harbor run`
    jsonl             --to FILE.jsonl    one task a line, with all its files and the evidence of its gates
    swebench          --to FILE          rows (.json, .jsonl, .parquet) that the swebench package grades; SWE environments only
    task-repository   --to FOLDER        the same as a repository of swebench 5; passes `swebench dataset check`

    Harbor folders and task repositories name a public base image in place of our own; a comment keeps the original line, so an
    import gives back the same environment with the same id.

    Example: gymsmith env export --all --kind mutation --format swebench --to rows.jsonl
    """
    from gymsmith.attach import attached

    one_of("--format", form, OUTGOING)
    if bool(env_ids) == every:
        raise UserError(f"expected ids or --all, got {'both' if every else 'neither'}; `gymsmith env list` shows ids")
    if to.expanduser().exists():
        raise Conflict(f"expected a path that is free, {to} exists; choose another one or remove it")
    with attached(settings_for(home)) as house:
        if every:
            ids = _verified(house.store, kind)
        else:
            ids = list(dict.fromkeys(house.store.find_environment(given).id for given in env_ids or []))
        payload = {"environments": ids, "path": str(to.expanduser().resolve()), "format": form, "base": base}
        result = house.run("export_environments", payload, label=f"export to {to}", quiet=as_json).result
    if as_json:
        emit(result)
    else:
        print(f"exported {len(result['exported'])} environments to {result['path']}")
        for env_id, why in result["left_out"].items():
            print(f"  left out {env_id[:12]}: {why}")
    raise typer.Exit(1 if result["left_out"] else 0)


def _verified(store: Any, kind: str | None) -> list[str]:
    ids: list[str] = []
    cursor = ""
    while True:
        page = store.environments(kind=kind, status="verified", limit=PAGE, cursor=cursor)
        ids += [environment.id for environment in page.items]
        cursor = page.cursor
        if not cursor:
            break
    if not ids:
        raise UserError(
            f"expected verified environments{f' of kind {kind}' if kind else ''}, there are none; `gymsmith env list`"
        )
    return ids


def env_diff(
    first: Annotated[str, typer.Argument(metavar="A", help="An id or the start of one.")],
    second: Annotated[str, typer.Argument(metavar="B", help="An id or the start of one.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show how two environments differ: status and gates, task settings, instruction, files.

    Useful after an import (is it what was exported?), between two seeds of one template, and between versions of one task. The
    exit code is 0 when nothing differs, 1 when something does.

    Example: gymsmith env diff 3f2a 91bc
    """
    from gymsmith import difference
    from gymsmith.ansi import plain
    from gymsmith.store import Store

    settings = settings_for(home)
    with Store.open(settings) as store:
        sides = [store.find_environment(given) for given in (first, second)]
        found = difference.of(settings.home, sides[0], sides[1], *(store.evidence(side.id) for side in sides))
    if as_json:
        emit(found.document())
    else:
        print(plain(found.text()).rstrip("\n") if not found.same else "no difference")
    raise typer.Exit(0 if found.same else 1)
