"""`gymsmith index ...`: the package cache from which sandboxes with an offline index install."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.verbs.terminal import Home, Json, emit, settings_for

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
app = typer.Typer(no_args_is_help=True, help="Packages that sandboxes may install without a network.")


@app.command("add")
def index_add(
    what: Annotated[list[str], typer.Argument(help="Requirements such as 'six==1.17.0', or wheel and sdist files.")],
    python: Annotated[str, typer.Option(help="Python version of the sandboxes' interpreter.")] = PYTHON,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fetch wheels, with what they require, into this machine's cache; prints what a task's `packages` must say."""
    settings = settings_for(home)
    files = [Path(word) for word in what if Path(word).is_file()]
    wanted = [word for word in what if not Path(word).is_file()]
    cache: Any = importlib.import_module("sandboxes.index_server").PackageCache(settings.wheelhouse_dir)
    added = [cache.add(path) for path in files]
    pins = [f"{package.name}=={package.version}" for package in added]
    if wanted:
        index: Any = importlib.import_module("env_factory.wheels")
        pins += index.download_wheels(wanted, settings.wheelhouse_dir, python)[1]
    if as_json:
        emit({"packages": pins, "cache": str(settings.wheelhouse_dir)})
    else:
        print("packages = [" + ", ".join(f'"{pin}"' for pin in pins) + "]")
