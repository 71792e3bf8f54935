"""The doors for tasks that come from elsewhere and go elsewhere: import and export.

    harbor            a task folder, a folder of them, or an archive of either
    terminal-bench    the same, version 1 (import only)
    jsonl             one task a line, see `formats/json_lines.py`
    swebench          rows (.json, .jsonl, .parquet)
    task-repository   a repository of swebench 5: a folder or an archive with sweb.yaml

What comes in is nobody's word for anything: it is stored as `unproven`, whatever it says of itself, until the gates have run here
(`gymsmith env verify`). A task that cannot be read is named with its reason and does not keep the others out; when none can be
read, the order fails and nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from env_factory import intake
from env_factory.formats import detected, harbor, json_lines, portable, swe_rows, task_repository
from env_factory.formats.detected import MAX_TASKS, Format
from env_factory.payload import checked
from env_factory.source_kinds.tree import Tree, write_folder
from gymsmith import taskdir
from gymsmith.errors import Conflict, GymsmithError, NotFound, PolicyRefused, SourceError
from gymsmith.schema import Draft, Environment, JobContext, Status, Word
from gymsmith.taskdir import Task
from sandboxes.swebench_export import export_row
from sandboxes.worker import Worker, process_worker

log = logging.getLogger(__name__)

Outgoing = Literal["harbor", "jsonl", "swebench", "task-repository"]


class Incoming(Word):
    """Payload of an import job."""

    path: str = Field(min_length=1, max_length=4000)
    """A folder, an archive or a file of this machine, or an https: URL of an archive or a file."""
    format: Format = "auto"


class Export(Word):
    """Payload of an export job."""

    environments: tuple[str, ...] = Field(min_length=1)
    path: str = Field(min_length=1, max_length=4000)
    """A folder (harbor, task-repository) or a file (jsonl; swebench: .json, .jsonl or .parquet) that does not exist yet."""
    format: Outgoing
    base: str = portable.DEFAULT_BASE
    """What FROM gymsmith/host becomes."""


def bring_in(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Import tasks. Result: format, imported (name -> id), known (ids that were here already), refused (name -> why).

    Raises: NotFound, SourceError, PolicyRefused: nothing can be read; nothing was written.
    """
    asked = checked(Incoming, payload)
    chosen, tasks = detected.find(asked.path, asked.format)
    imported: dict[str, str] = {}
    known: list[str] = []
    refused: dict[str, str] = {}
    first: GymsmithError | None = None
    for task in tasks:
        ctx.check()
        try:
            draft = task.read()
        except (SourceError, PolicyRefused, NotFound) as error:
            first = first or error
            refused[task.name] = f"{error.code}: {error}"
        else:
            if not keep(draft, ctx):
                known.append(draft.id)
            imported[task.name] = draft.id
        ctx.progress(done=len(imported), unit="tasks", refused=len(refused))
        if len(imported) + len(refused) > MAX_TASKS:
            raise PolicyRefused(f"{asked.path} holds more than {MAX_TASKS} tasks; import it in parts, those so far are here")
    if not imported:
        raise first or SourceError(f"{asked.path} holds no task of format {chosen}")
    log.info("event=imported format=%s tasks=%d refused=%d path=%s", chosen, len(imported), len(refused), asked.path)
    return {"format": chosen, "imported": imported, "known": known, "refused": refused}


def keep(draft: Draft, ctx: JobContext) -> bool:
    """Store a draft as unproven; what is known here, with the verdict that it earned here, stays. Whether it is new."""
    try:
        ctx.store.environment(draft.id)
        return False
    except NotFound:
        pass
    reason = "imported" if draft.files.get("solution/solve.sh") else "no-oracle"
    intake.put(draft, ctx.settings, ctx.store, Status.UNPROVEN, reason)
    return True


def send_out(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Export environments. Result: path, format, exported (ids), left_out (id -> why).

    Raises: Conflict: the path is taken; SourceError: none can be written in this format; NotFound: no such environment.
    """
    asked = checked(Export, payload)
    target = Path(asked.path).expanduser()
    if target.exists():
        raise Conflict(f"expected a path that is free, {target} exists; choose another one or remove it")
    left_out: dict[str, str] = {}
    if asked.format in ("swebench", "task-repository"):
        worker = process_worker(ctx.settings)
        rows, builds = worker.run(_rows(asked, worker, ctx, left_out), ctx)
        if not rows:
            raise _nothing(left_out)
        if asked.format == "swebench":
            swe_rows.write(list(rows.values()), target)
        else:
            write_folder(task_repository.export(list(rows.values()), builds), target)
        exported = list(rows)
    else:
        exported = _tasks(asked, target, ctx, left_out)
    return {"path": str(target), "format": asked.format, "exported": exported, "left_out": left_out}


def _tasks(asked: Export, target: Path, ctx: JobContext, left_out: dict[str, str]) -> list[str]:
    """Write jsonl or harbor, one task at a time, whole or not at all; the ids that were written."""
    exported: list[str] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".exporting-", dir=target.parent))
    try:
        made = scratch / "made"
        for environment, task in _stored(asked, ctx):
            try:
                if asked.format == "jsonl":
                    row = json_lines.dump(task, environment, ctx.store.evidence(environment.id))
                    with made.open("a", encoding="utf-8") as file:
                        file.write(json_lines.line(row))
                else:
                    name = f"{task.spec.name.rpartition('/')[2]}-{environment.id[:8]}"
                    write_folder(harbor.export(task, asked.base), made / name)
            except SourceError as error:
                left_out[environment.id] = str(error)
                continue
            exported.append(environment.id)
            ctx.progress(done=len(exported), total=len(asked.environments), unit="environments")
        if not exported:
            raise _nothing(left_out)
        made.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return exported


def _stored(asked: Export, ctx: JobContext) -> Iterator[tuple[Environment, Task]]:
    for environment_id in asked.environments:
        ctx.check()
        environment = ctx.store.environment(environment_id)
        yield environment, taskdir.read(ctx.settings.home / environment.path)


async def _rows(
    asked: Export, worker: Worker, ctx: JobContext, left_out: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Tree]]:
    """Environment id -> row, and instance id -> what its image is made of. A row that was imported is given as it came."""
    rows: dict[str, dict[str, Any]] = {}
    builds: dict[str, Tree] = {}
    for environment, task in await asyncio.to_thread(lambda: list(_stored(asked, ctx))):
        came = swe_rows.row_of(task)
        if came is not None:
            rows[environment.id] = came
            continue
        ready = await worker.ready(ctx.store, environment.id)
        async with worker.slots:
            row = await export_row(worker, ready)
        if isinstance(row, str):
            left_out[environment.id] = row
            continue
        rows[environment.id] = row
        context = task.under("environment") | {"Dockerfile": portable.portable(task.dockerfile, asked.base).encode()}
        modes = frozenset(path.removeprefix("environment/") for path in task.executable if path.startswith("environment/"))
        builds[str(row["instance_id"])] = Tree(context, modes & context.keys())
        ctx.progress(done=len(rows), total=len(asked.environments), unit="environments")
    return rows, builds


def _nothing(left_out: dict[str, str]) -> SourceError:
    said = "; ".join(f"{name[:12]}: {why}" for name, why in list(left_out.items())[:3])
    return SourceError(f"no environment can be written in this format: {said or 'none was named'}")
