"""`gymsmith generate`, `gymsmith env ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gymsmith.verbs.terminal import Home, Json, Seed, emit, listed, one_of, settings_for

app = typer.Typer(no_args_is_help=True, help="Look at environments and prove them again.")
KINDS = ("mutation", "tutorial", "shell")


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


@app.command("list")
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


@app.command("show")
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


@app.command("verify")
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
