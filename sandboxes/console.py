"""What `gymsmith sandbox` does: list, run, open a shell, end. The command line calls this by name.

A command or a shell gets a new sandbox of its own, with the limits of its environment, and it is gone afterwards. A live sandbox
of a worker can be looked at in the list and ended, nothing else: what runs in it is an agent's, and so is its record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gymsmith.config import Settings
from gymsmith.errors import ImageMissing, NotFound, UserError
from gymsmith.store import Store
from sandboxes import cgroups, control, reaper, terminal
from sandboxes.base import MIB, ExecResult, SandboxSpec
from sandboxes.grade import sandbox_spec
from sandboxes.registry import Entry, entries, heartbeat_age
from sandboxes.worker import Worker

MAX_OUTPUT_BYTES = 16 * MIB


def listing(settings: Settings) -> list[dict[str, Any]]:
    """The live sandboxes below this state folder, oldest first; those of dead owners are not live."""
    rows = []
    for entry, folder in _entries(settings):
        record = entry.record
        used = cgroups.usage(entry.owner, record.get("group", "")) if "group" in record else None
        rows.append(
            {
                "id": short(entry),
                "full_id": entry.id,
                "image": record["image"],
                "role": record["role"],
                "labels": record["labels"],
                "owner_pid": int(entry.owner.partition("-")[0]),
                "heartbeat_age_s": round(heartbeat_age(folder), 1),
                "age_s": round(time.time() - record["born"], 1),
                "lease_s": record["lease_s"],
                "memory_bytes": used[0] if used else None,
                "memory_limit_bytes": record["memory_bytes"],
                "pids": used[1] if used else None,
                "pids_limit": record["pids"],
            }
        )
    return sorted(rows, key=lambda row: -row["age_s"])


def kill(settings: Settings, given: str) -> str:
    """End the live sandbox of this id, short or full; its full id. Its owner tells whoever waits for it.

    Raises: NotFound, UserError (several begin so), SandboxError (the owner does not answer).
    """
    found = [(entry, folder) for entry, folder in _entries(settings) if given in (short(entry), entry.id)]
    if not found:
        raise NotFound(f"expected the id of a live sandbox, got {given!r}; `gymsmith sandbox ls` lists them")
    if len(found) > 1:
        raise UserError(f"{given} names several sandboxes ({', '.join(entry.id for entry, _ in found)}); write the full id")
    entry, folder = found[0]
    control.kill(folder, int(entry.id.rpartition(".")[2]))
    return entry.id


def execute(
    settings: Settings, target: str, command: Sequence[str], *, user: str | None = None, timeout_s: float = 60.0
) -> ExecResult:
    """Run a command in a new sandbox of `target`, an environment's id or an image; one word is a line for the shell.

    Raises: NotFound (no such environment or image), InfrastructureError, PolicyRefused.
    """

    async def run(worker: Worker) -> ExecResult:
        box = await (await worker.provider()).create(await _spec(settings, worker, target, user))
        try:
            words = command[0] if len(command) == 1 else list(command)
            return await box.exec(words, timeout_s=timeout_s, max_output_bytes=MAX_OUTPUT_BYTES, split=True)
        finally:
            await box.destroy()

    worker = Worker(settings)
    try:
        return worker.run(run(worker))
    finally:
        worker.close()


def shell(settings: Settings, target: str, *, user: str | None = None) -> int:
    """An interactive shell in a new sandbox of `target`, on this process's terminal; its exit code. Raises as `execute`."""

    async def run(worker: Worker) -> int:
        box = await (await worker.provider()).create(await _spec(settings, worker, target, user))
        try:
            return await terminal.attach(box, user)
        finally:
            await box.destroy()

    worker = Worker(settings)
    try:
        with terminal.raw():
            return worker.run(run(worker))
    finally:
        worker.close()


def short(entry: Entry) -> str:
    """An id for people: the owner's process and count, and the sandbox's number."""
    pid, _, _, count = entry.owner.split("-")
    return f"{pid}-{count}.{entry.id.rpartition('.')[2]}"


def _entries(settings: Settings) -> list[tuple[Entry, Path]]:
    owners = settings.sandboxes_dir / reaper.OWNERS
    if not owners.is_dir():
        return []
    return [
        (entry, folder)
        for folder in sorted(owners.iterdir())
        if len(folder.name.split("-")) == 4 and reaper.alive(folder.name, folder)
        for entry in entries(folder)
    ]


async def _spec(settings: Settings, worker: Worker, target: str, user: str | None) -> SandboxSpec:
    """What a new sandbox of an environment, or else of an image, is made from."""
    labels = {"phase": "by hand"}
    with await asyncio.to_thread(Store.open, settings) as store:
        try:
            environment = await asyncio.to_thread(store.find_environment, target)
        except NotFound:
            environment = None
        if environment is not None:
            ready = await worker.ready(store, environment.id)
            return sandbox_spec(ready.task, ready.image, user or "agent", environment=environment.id, **labels)
    try:
        image = (await worker.images()).get(target)
    except ImageMissing as error:
        raise NotFound(
            f"expected the id of an environment or an image, got {target!r}; `gymsmith env list` lists environments, "
            "gymsmith/host is always there"
        ) from error
    return SandboxSpec(image=image.id, user=user, labels=labels)
