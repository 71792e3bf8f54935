"""What the steps of one stage add up to, and what its image makes of a user's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymsmith.errors import BuildError
from gymsmith.schema import digest
from sandboxes.base import USERS, Image, user_ids
from sandboxes.image import host_base as image_base
from sandboxes.image.dockerfile import Step
from sandboxes.image.layer import lookup

SHELL = ["/bin/sh", "-c"]


@dataclass(slots=True)
class State:
    """Begins as the parent image. RUN is root's until a USER, here or in the parent's own Dockerfile, says otherwise."""

    key: str
    layers: tuple[Path, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    config: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    has_cmd: bool = False
    """This stage has a CMD of its own, which an ENTRYPOINT leaves alone."""

    @classmethod
    def of(cls, parent: Image) -> State:
        """A stage that begins with an image."""
        key = parent.layers[0].parent.name if parent.layers else parent.id
        state = cls(key, parent.layers, parent.binds, dict(parent.env), parent.workdir, parent.user, dict(parent.config))
        state.env.setdefault("PATH", image_base.PATH)
        return state

    def child(self) -> State:
        """A stage that begins with what this one became."""
        return State(self.key, self.layers, self.binds, dict(self.env), self.workdir, self.user, dict(self.config))

    @property
    def variables(self) -> dict[str, str]:
        """What $NAME stands for, and the environment of RUN: ENV wins over ARG."""
        return {**self.args, **self.env}

    @property
    def run_user(self) -> str:
        """Who executes RUN."""
        return self.user if self.config.get("User") else "root"

    @property
    def shell(self) -> list[str]:
        """What the shell form is given to."""
        return list(self.config.get("Shell") or SHELL)

    def grow(self, key: str, layer: Path) -> None:
        """Stack a layer."""
        self.key, self.layers = key, (layer, *self.layers)

    def image(self) -> Image:
        """The image of what has been done so far."""
        settings: list[Any] = [self.env, self.workdir, self.user, *([self.config] if self.config else [])]
        identity = digest(self.key.encode(), json.dumps(settings, sort_keys=True).encode())[:32]
        return Image(identity, self.layers, self.binds, self.env, self.workdir, self.user, config=self.config)

    def bound(self, path: str) -> str | None:
        """The host directory, by its name inside, in which `path` lies."""
        return next((inside for _, inside in self.binds if path == inside or path.startswith(f"{inside}/")), None)

    def owner_named(self, name: str, step: Step) -> tuple[int, int]:
        """A --chown value: without a group it is the group of that name, or of that number. Raises: as `user_named`."""
        user, colon, group = name.partition(":")
        uid = self._ids("/etc/passwd", user, step)[0]
        if not colon:
            row = self._row("/etc/group", user)
            return uid, user_ids(row[2])[0] if row else uid
        return uid, self._ids("/etc/group", group, step)[0]

    def user_named(self, name: str, step: Step) -> str:
        """A USER value as a name of USERS or "UID:GID"; names are looked up in the image's own /etc.

        Raises: BuildError: no such user; PolicyRefused: a number out of range.
        """
        user, colon, group = name.partition(":")
        uid, gid = self._ids("/etc/passwd", user, step)
        if colon:
            gid = self._ids("/etc/group", group, step)[0]
        return name if USERS.get(name) == (uid, gid) else f"{uid}:{gid}"

    def home(self) -> str | None:
        """Home directory of RUN's user, from the image's /etc/passwd."""
        uid = user_ids(self.run_user)[0]
        row = next((row for row in self._table("/etc/passwd") if len(row) > 5 and row[2] == str(uid)), None)
        return row[5] if row else None

    def _ids(self, table: str, name: str, step: Step) -> tuple[int, int]:
        row = self._row(table, name)
        if row is None and name.isascii() and name.isdecimal():
            row = next((row for row in self._table(table) if len(row) > 3 and row[2] == name), ["", "", name, "0"])
        if row is not None:
            return user_ids(f"{row[2]}:{row[3] if len(row) > 3 and row[3].isdecimal() else row[2]}")
        if name in USERS:
            return USERS[name]
        raise BuildError(
            f"Dockerfile line {step.line}: {step.name}: the image's {table} has no {name[:40]!r}; create it with RUN useradd, "
            "or use a number"
        )

    def _row(self, table: str, name: str) -> list[str] | None:
        return next((row for row in self._table(table) if row[0] == name and len(row) > 2 and row[2].isdecimal()), None)

    def _table(self, table: str) -> list[list[str]]:
        _, entry = lookup(self.layers, table)
        if entry is None or entry.is_dir:
            return []
        return [text.split(":") for text in Path(entry.places[0]).read_text(errors="replace").splitlines()]


def merged(config: Mapping[str, Any], key: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping `key` of an image's configuration with more in it."""
    return {**config.get(key, {}), **more}
