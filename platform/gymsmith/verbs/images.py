"""`gymsmith image ...`: images of this machine, made without a daemon. The work is `sandboxes.image.door`'s, asked by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import UserError
from gymsmith.verbs.terminal import Home, Json, emit, one_of, settings_for

app = typer.Typer(no_args_is_help=True, help="Build, import, list and remove the images that sandboxes start from.")
NETWORKS = ("none", "mirrors", "host")


@app.command("ls")
def image_ls(home: Home = None, as_json: Json = False) -> None:
    """List images: id, names, layers, size on disk (shared layers counted in each), environments that need it."""
    rows = _door().listing(settings_for(home))
    if as_json:
        emit(rows)
        return
    for row in rows:
        where = "engine" if row["engine_ref"] else f"{row['layers']:3d} layers {row['bytes'] / (1 << 20):8.1f} MiB"
        print(f"{row['id'][:12]}  {where:24s} {row['environments']:5d} environments  {' '.join(row['names']) or '-'}")
    print(f"{len(rows)} images")


@app.command("build")
def image_build(
    folder: Annotated[Path, typer.Argument(help="Folder with the Dockerfile and what it copies; .dockerignore is honoured.")],
    name: Annotated[str, typer.Option("--tag", "-t", help="Name for FROM and for other commands, such as tools:1.")] = "",
    file: Annotated[str, typer.Option("--file", "-f", help="The Dockerfile's name in the folder.")] = "Dockerfile",
    build_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for an ARG; may be given several times.")] = None,
    target: Annotated[str, typer.Option(help="Stage to build; the last one by default.")] = "",
    network: Annotated[str, typer.Option(help="none, mirrors (package archives through a proxy) or host.")] = "none",
    allow_add: Annotated[
        list[str] | None, typer.Option(help="Host from which ADD may fetch; may be given several times.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds for one RUN step.", min=0.1)] = 600.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Build a Dockerfile; steps that were executed before are not executed again.

    Example: gymsmith image build ./task/environment --tag task:1 --build-arg VERSION=2
    """
    one_of("--network", network, NETWORKS)
    arguments = dict(_pair(given) for given in build_arg or ())
    payload = {
        "verb": "build",
        "folder": str(folder.expanduser().resolve()),
        "name": name,
        "dockerfile": file,
        "arguments": arguments,
        "target": target,
        "network": network,
        "add_hosts": list(allow_add or ()),
        "timeout_s": timeout_s,
    }
    _ordered(payload, f"build {folder}", home, as_json)


@app.command("import")
def image_import(
    name: Annotated[str, typer.Argument(help="Name for FROM, such as debian:12.")],
    source: Annotated[
        str,
        typer.Argument(help="oci:FOLDER[@REF], archive:FILE[@REF] (docker save), rootfs:PATH, debootstrap:SUITE, engine:REF."),
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make an image out of what somebody else made; its contents are checked against what it claims.

    Example: gymsmith image import debian:bookworm debootstrap:bookworm
    """
    scheme, colon, rest = source.partition(":")
    if scheme in ("oci", "archive", "rootfs") and colon and rest:
        # A worker may stand in another folder than we do.
        path, at, ref = (rest, "", "") if Path(rest).exists() else rest.partition("@")
        source = f"{scheme}:{Path(path).expanduser().resolve()}{at}{ref}"
    _ordered({"verb": "import", "name": name, "source": source}, f"import {name}", home, as_json)


@app.command("rm")
def image_rm(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names or ids.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also those that environments need; they are built again when used.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Forget images, or one of several names of an image. `image gc` frees the space."""
    removed = _door().remove(settings_for(home), images, force=force)
    emit({"removed": removed}) if as_json else print("\n".join(removed))


@app.command("gc")
def image_gc(
    idle_hours: Annotated[float, typer.Option(help="Leave alone what a process began to use in the last hours.", min=0)] = 24.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Free the space of images without a name or an environment, and of steps that no image has any more."""
    freed = _door().collect(settings_for(home), idle_hours * 3600.0)
    if as_json:
        emit(freed)
    else:
        print(f"removed {freed['layers']} layers, {freed['bytes'] / (1 << 20):.1f} MiB")


def _ordered(payload: dict[str, Any], label: str, home: Path | None, as_json: bool) -> None:
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        job = house.run("image", payload, label=label, quiet=as_json)
    if as_json:
        emit(job.result)
        return
    result = job.result
    executed = f"{result['executed']} of {result['steps']} steps executed"
    print(f"{result['image_id']}  {result['layers']} layers, {executed}  {result['name']}")


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise UserError(f"expected --build-arg NAME=VALUE, got {given[:80]!r}")
    return name, value


def _door() -> Any:
    return importlib.import_module("sandboxes.image.door")
