"""What all verbs share: their common options, settings, JSON on standard output."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import ConfigError, UserError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[int, typer.Option(help="Counter-based: the same seed gives the same result.")]
Home = Annotated[Path | None, typer.Option("--home", help="State folder (default: GYMSMITH_HOME, else ~/.local/state/gymsmith).")]


def one_of(name: str, given: str, known: tuple[str, ...]) -> str:
    """`given`, when it is known.

    Raises:
        UserError: it is not.
    """
    if given not in known:
        raise UserError(f"expected {name} to be one of {', '.join(known)}, got {given!r}")
    return given


def can_train(settings: Any) -> None:
    """Tell at once, not after minutes of other work, that our own workers would have no trainer.

    Raises:
        ConfigError: torch is not installed, and nobody else works on this state folder.
    """
    from gymsmith.supervisor import running

    if importlib.util.find_spec("torch") is None and settings.embedded_broker and not running(settings):
        raise ConfigError("training needs torch, which is not installed; pip install 'gymsmith[train]'")


def settings_for(home: Path | None, **overrides: Any) -> Any:
    """Settings of this invocation."""
    from gymsmith.config import Settings

    if home is not None:
        overrides["home"] = home
    return Settings.load(**overrides)


def emit(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str), flush=True)


def listed(cursor: str) -> str:
    """How a list goes on, for its last line."""
    return f"; more with --cursor {cursor}" if cursor else ""
