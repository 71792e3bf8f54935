"""Environments with a hidden pytest suite, written as SWE-bench rows.

A row is self-contained but for its image, which is named `gymsmith/ENVIRONMENT_ID`: the gold diff is found by running the
reference solution, and the eval script brings the hidden tests along, so that neither git nor a repository is needed to run
it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymsmith.errors import ConfigError
from gymsmith.schema import JobContext
from gymsmith.taskdir import Task
from sandboxes import patching
from sandboxes.base import MIB, Sandbox
from sandboxes.grade import sandbox_spec
from sandboxes.swebench_rows import OURS
from sandboxes.worker import Ready, Worker


async def export(worker: Worker, ctx: JobContext, environment_ids: Sequence[str], path: Path) -> dict[str, str]:
    """Write environments as rows into `path` (.jsonl, whole or not at all). Returns id -> why it was left out."""
    rows, left_out = [], {}
    for environment_id in environment_ids:
        ready = await worker.ready(ctx.store, environment_id)
        async with worker.slots:
            row = await export_row(worker, ready)
        if isinstance(row, str):
            left_out[environment_id] = row
        else:
            rows.append(row)
        ctx.progress(exported=len(rows), unit="rows")
    if not rows:
        raise ConfigError(f"no environment can be written as a SWE-bench row: {left_out or 'none was named'}")
    await asyncio.to_thread(_write_rows, path, rows)
    return left_out


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    scratch.replace(path)


async def export_row(worker: Worker, ready: Ready) -> dict[str, Any] | str:
    """The environment as a row, its reference solution as the gold diff; or why it cannot be one."""
    task, spec = ready.task, ready.task.spec
    suite = _Suite.of(task)
    if suite is None:
        return "its tests are not a pytest suite"
    failing = int(spec.labels.get("f2p", "0"))
    # What the host observes by itself is no test of the suite.
    known = tuple(test for test in spec.expected if "::" in test)
    f2p, p2p = _as_parsed(known[:failing], known), _as_parsed(known[failing:], known)
    if not f2p:
        return "no fail-to-pass test has an id that swebench's log parser can tell apart"
    try:
        gold = await gold_patch(worker, ready)
        tests = patching.unified({}, suite.files)
    except patching.PatchFailed as error:
        return str(error)
    if not gold:
        return "its solution changes no text file"
    package = spec.labels.get("package", spec.kind)
    return {
        "repo": f"pypi/{package}",
        "instance_id": f"pypi__{spec.name.rpartition('/')[2]}",
        "base_commit": ready.environment.id,
        "patch": gold,
        "test_patch": tests,
        "problem_statement": task.instruction,
        "hints_text": "",
        "created_at": ready.environment.created_at.isoformat(),
        "version": spec.labels.get("version", ""),
        "FAIL_TO_PASS": json.dumps(f2p),
        "PASS_TO_PASS": json.dumps(p2p),
        "environment_setup_commit": ready.environment.id,
        "image": f"{OURS}{ready.environment.id}",
        "eval_script": suite.eval_script(spec.workdir),
        "log_parser": "parse_log_pytest",
        "eval_type": "pass_and_fail",
    }


async def gold_patch(worker: Worker, ready: Ready) -> str:
    """What the reference solution changes below the working directory, as a diff; found by running it."""
    task, workdir = ready.task, ready.task.spec.workdir
    provider = await worker.provider()
    spec = sandbox_spec(task, ready.image, "agent", phase="export")
    async with contextlib.AsyncExitStack() as stack:
        boxes = []
        for _ in range(2):
            boxes.append(await provider.create(spec))
            stack.push_async_callback(boxes[-1].destroy)
        pristine, solved = boxes
        await solved.put("/solution/solve.sh", task.solution.encode(), 0o755)
        result = await solved.exec(["/bin/sh", "/solution/solve.sh"], timeout_s=task.spec.agent_timeout_s)
        if not result.ok:
            raise ConfigError(f"the solution of {task.spec.name} failed: {result.output.decode('utf-8', 'replace')[-500:]}")
        before, after = await _sums(pristine, workdir), await _sums(solved, workdir)
        changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        old = {path: await pristine.get(f"{workdir}/{path}", max_bytes=8 * MIB) for path in changed if path in before}
        new = {path: await solved.get(f"{workdir}/{path}", max_bytes=8 * MIB) for path in changed if path in after}
    return patching.unified(old, new)


async def _sums(box: Sandbox, workdir: str) -> dict[str, str]:
    """Path below `workdir` -> checksum and size."""
    command = ["find", ".", "-type", "f", "-not", "-name", "*.pyc", "-exec", "cksum", "{}", "+"]
    listing = (await box.exec(command, cwd=workdir, max_output_bytes=4 * MIB)).output.decode("utf-8", "replace")
    rows = (line.split(" ", 2) for line in listing.splitlines())
    return {row[2].removeprefix("./"): f"{row[0]} {row[1]}" for row in rows if len(row) == 3}


def _as_parsed(ids: Sequence[str], every: Sequence[str]) -> list[str]:
    """Ids as swebench's pytest parser reads them (up to the first blank), without those that it cannot tell apart."""
    short = [name.split()[0] for name in every]
    return [name.split()[0] for name in ids if short.count(name.split()[0]) == 1]


@dataclass(frozen=True, slots=True)
class _Suite:
    """A hidden pytest suite: files by path below the working directory, and how it is run."""

    files: dict[str, bytes]
    paths: tuple[str, ...]
    """Entries of PYTHONPATH."""
    targets: tuple[str, ...]
    """Test files and options of pytest."""

    @classmethod
    def of(cls, task: Task) -> _Suite | None:
        """Read off the command line of the runner in tests/test.sh; None when the tests are of another kind."""
        if "tests/run.py" not in task.files:
            return None
        words = shlex.split(task.files["tests/test.sh"].decode().split("/tests/run.py", 1)[-1])
        options, _, rest = (words, "", words[words.index("--") + 1 :]) if "--" in words else (words, "", [])
        named = list(itertools.pairwise(options))
        root = next((value for option, value in named if option == "--root"), "/tests")
        below = root.removeprefix("/tests").strip("/")
        prefix = f"{below}/" if below else ""
        files = {name.removeprefix(prefix): data for name, data in task.under("tests").items() if name.startswith(prefix)}
        for name in ("run.py", "test.sh", "select.txt"):
            if not prefix:
                files.pop(name, None)
        paths = [value for option, value in named if option in ("--path", "--site")]
        targets = [word.removeprefix(f"{root}/") for word in rest]
        return cls(files, tuple(paths), tuple(targets))

    def eval_script(self, workdir: str) -> str:
        """A bash script in SWE-bench's form: put the tests in place, run them between the markers, take them away."""
        path = ":".join(self.paths)
        lines = ["#!/bin/bash", "set -uxo pipefail", f"cd {shlex.quote(workdir)}", "{ set +x; } 2>/dev/null"]
        for name, data in sorted(self.files.items()):
            target = shlex.quote(name)
            lines += [f"mkdir -p $(dirname {target})", f"base64 -d > {target} <<'END_OF_FILE'", *_base64(data), "END_OF_FILE"]
        lines += [
            "set -x",
            ": '>>>>> Start Test Output'",
            f"PYTHONPATH={shlex.quote(path)} PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python3 -m pytest -rA "
            f"-p no:cacheprovider -c /dev/null --rootdir={shlex.quote(workdir)} --color=no {shlex.join(self.targets)}",
            ": '>>>>> End Test Output'",
            f"rm -f -- {shlex.join(sorted(self.files))}",
        ]
        return "\n".join(lines) + "\n"


def _base64(data: bytes) -> list[str]:
    text = base64.b64encode(data).decode()
    return [text[i : i + 76] for i in range(0, len(text), 76)]
