"""SWE-bench rows: run them in our sandboxes and grade them with the swebench package's own grader.

A row brings its image, a diff and a bash script that runs the tests and prints markers; `swebench.harness.grading` reads the
log. Rows of ours (`swebench_export`) name their image `gymsmith/ENVIRONMENT_ID`; any other name is asked of the image store.
The swebench package is imported inside functions: it is large, and only this file needs it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gymsmith.errors import ConfigError, InfrastructureError, NotFound
from gymsmith.schema import EvalReport, JobContext
from sandboxes import patching
from sandboxes.base import MIB, Image, Sandbox, SandboxSpec
from sandboxes.evaluate import TRIES, Outcome, Summary
from sandboxes.grade import sandbox_spec
from sandboxes.worker import Ready, Worker

log = logging.getLogger(__name__)

COLUMNS = ("instance_id", "repo", "version", "image", "eval_script", "log_parser", "eval_type", "FAIL_TO_PASS", "PASS_TO_PASS")
"""What a row must have to be run; `patch` too, where the predictions are gold."""
OURS = "gymsmith/"
MAX_LOG_BYTES = 16 * MIB
EVAL_S = 1800.0
PATCH = "/tmp/model.patch"
APPLY = ("git apply --verbose", "patch --batch --forward --fuzz=5 -p1 -i")
"""As swebench applies a prediction, without the variants that need a repository."""
COMMAND_NOT_FOUND = 127

Mode = Literal["gold", "empty", "predictions"]


# ---------------------------------------------------------------- reading


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json, .jsonl or .parquet file.

    Raises:
        NotFound: no such file.
        ConfigError: it cannot be read, or a row lacks a column.
    """
    if not path.is_file():
        raise NotFound(f"no data set at {path}; `gymsmith evaluate swebench --help` shows how to write one")
    if path.suffix == ".parquet":
        rows = [dict(row) for row in _swebench().load(str(path))]
    else:
        rows = _read_json(path)
    for row in rows:
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            name = row.get("instance_id", "without a name") if isinstance(row, dict) else "that is no object"
            raise ConfigError(f"{path}: row {name} must have the columns {COLUMNS}, lacks {missing}")
    return rows


def read_predictions(rows: Sequence[Mapping[str, Any]], which: str) -> tuple[Mode, str, dict[str, str]]:
    """(mode, name of the model, instance id -> diff). `which` is gold, empty, or a .json or .jsonl file.

    A row that the file leaves out gets an empty diff.
    """
    if which == "empty":
        return "empty", "empty", {row["instance_id"]: "" for row in rows}
    if which == "gold":
        without = [row["instance_id"] for row in rows if "patch" not in row]
        if without:
            raise ConfigError(f"gold predictions need the column `patch`, {without[:3]} lack it")
        return "gold", "gold", {row["instance_id"]: row["patch"] for row in rows}
    path = Path(which)
    if not path.is_file():
        raise NotFound(f"predictions must be gold, empty or a file, got {which!r}")
    found = _read_json(path)
    try:
        diffs = {given["instance_id"]: given["model_patch"] or "" for given in found}
        names = sorted({given.get("model_name_or_path") or "unnamed" for given in found})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: each prediction must have instance_id and model_patch, got one without {error}") from error
    return "predictions", ", ".join(names), {row["instance_id"]: diffs.get(row["instance_id"], "") for row in rows}


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} must be JSON (.json) or JSON lines (.jsonl): {error}") from error
    return list(rows.values()) if isinstance(rows, dict) else rows


# ---------------------------------------------------------------- running


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is run."""

    image: Image
    spec: SandboxSpec
    workdir: str


async def evaluate(worker: Worker, ctx: JobContext, dataset: Path, predictions: str, *, run_id: str = "") -> EvalReport:
    """Run every row with its prediction; the report holds each instance's result under `config["instances"]`.

    Raises:
        NotFound, ConfigError: data set or predictions cannot be used, or swebench is not installed.
    """
    began = time.perf_counter()
    rows = await asyncio.to_thread(read_rows, dataset)
    mode, model, diffs = read_predictions(rows, predictions)
    grader = await asyncio.to_thread(_swebench)
    folder = ctx.settings.runs_dir / (run_id or ctx.job.id) / f"swebench-{ctx.job.id}"
    results: dict[str, dict[str, Any]] = {}

    async def one(row: Mapping[str, Any]) -> None:
        name = row["instance_id"]
        async with worker.slots:
            ctx.check()
            results[name] = await _graded(worker, ctx, grader, row, diffs[name], model, folder)
        ctx.progress(
            done=len(results), total=len(rows), unit="instances", resolved=sum(bool(r["resolved"]) for r in results.values())
        )

    for done in await asyncio.gather(*(one(row) for row in rows), return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
    ordered = {row["instance_id"]: results[row["instance_id"]] for row in rows}
    summary = Summary.of(Outcome(row["repo"], ordered[row["instance_id"]]["resolved"], None, 0, model) for row in rows)
    return EvalReport(
        id=ctx.job.id,
        run_id=run_id,
        name=f"swebench {dataset.name}",
        policy_version=model,
        mode=mode,
        overall=summary.overall,
        groups=summary.groups,
        errors=summary.errors,
        seconds=round(time.perf_counter() - began, 3),
        config={
            "dataset": str(dataset),
            "predictions": predictions,
            "grader": f"swebench {grader.version}",
            "instances": ordered,
        },
    )


async def _graded(
    worker: Worker, ctx: JobContext, grader: _Grader, row: Mapping[str, Any], diff: str, model: str, folder: Path
) -> dict[str, Any]:
    """One instance's result; `resolved` is None when it could not be run for a reason of ours, which `error` tells."""
    error = ""
    for _ in range(TRIES):
        try:
            place = await _place(worker, ctx, row)
            text = await run_row(worker, place, grader.script(row), diff)
        except InfrastructureError as failure:
            error = f"{type(failure).__name__}: {failure}"
            log.warning("instance failed instance=%s error=%s", row["instance_id"], error)
            continue
        return await asyncio.to_thread(grader.grade, row, diff, model, text, folder)
    return {"resolved": None, "error": error}


async def _place(worker: Worker, ctx: JobContext, row: Mapping[str, Any]) -> Place:
    name = row["image"]
    if name.startswith(OURS):
        ready = await worker.ready(ctx.store, name.removeprefix(OURS))
        return _place_of(ready)
    image = (await worker.images()).get(name)
    spec = SandboxSpec(image=image.id, user=image.user, memory_bytes=4096 * MIB, pids=1024, disk_bytes=4096 * MIB)
    return Place(image, spec, image.workdir)


def _place_of(ready: Ready) -> Place:
    return Place(ready.image, sandbox_spec(ready.task, ready.image, "agent", phase="swebench"), ready.task.spec.workdir)


async def run_row(worker: Worker, place: Place, script: str, diff: str) -> str:
    """Apply `diff`, run `script`, return the log in the form that the grader reads.

    Raises: InfrastructureError.
    """
    from swebench.harness.constants import APPLY_PATCH_FAIL, TESTS_TIMEOUT

    provider = await worker.provider()
    box = await provider.create(place.spec)
    try:
        refused = await apply_patch(box, diff, place.workdir) if diff.strip() else ""
        if refused:
            return f"{APPLY_PATCH_FAIL}:\n{refused}\n"
        await box.put("/tmp/eval.sh", script.encode(), 0o755)
        result = await box.exec(
            ["/bin/bash", "/tmp/eval.sh"], cwd=place.workdir, timeout_s=EVAL_S, max_output_bytes=MAX_LOG_BYTES
        )
    finally:
        await box.destroy()
    text = result.output.decode("utf-8", "replace")
    return f"{text}\n{TESTS_TIMEOUT}\nTimeout error: {EVAL_S:g} seconds exceeded.\n" if result.timed_out else text


async def apply_patch(box: Sandbox, diff: str, workdir: str) -> str:
    """Apply a diff below `workdir` with what the image has, else on the host. Returns why it does not apply, or ""."""
    await box.put(PATCH, diff.encode())
    said = []
    for command in APPLY:
        result = await box.exec(f"{command} {PATCH}", cwd=workdir, timeout_s=60.0)
        if result.ok:
            return ""
        if result.exit_code != COMMAND_NOT_FOUND:
            said.append(f"{command}: {result.output.decode('utf-8', 'replace')[-2000:]}")
    return "\n".join(said) if said else await apply_on_host(box, diff, workdir)


async def apply_on_host(box: Sandbox, diff: str, workdir: str) -> str:
    """Read the files that the diff names, change them here and write them back. Returns why it does not apply, or ""."""
    present: dict[str, bytes] = {}
    try:
        for path in sorted(patching.sources(diff)):
            try:
                present[path] = await box.get(f"{workdir}/{path}", max_bytes=8 * MIB)
            except FileNotFoundError:
                continue
        changes = patching.apply(diff, present)
    except patching.PatchFailed as error:
        return str(error)
    await box.put_files({f"{workdir}/{path}": data for path, data in changes.items() if data is not None}, owner="agent")
    gone = [f"{workdir}/{path}" for path, data in changes.items() if data is None]
    if gone:
        await box.exec(["rm", "-f", "--", *gone])
    return ""


# ---------------------------------------------------------------- the swebench package


class _Grader:
    """The parts of swebench that are used, imported once."""

    def __init__(self) -> None:
        from importlib.metadata import version

        from swebench.harness.grading import get_eval_report
        from swebench.harness.utils import load_swebench_dataset, make_test_spec

        self.version = version("swebench")
        self.load = load_swebench_dataset
        self._spec, self._report = make_test_spec, get_eval_report

    def script(self, row: Mapping[str, Any]) -> str:
        """The bash script as swebench itself would run it (it also records the exit status of the tests)."""
        return self._spec(dict(row)).eval_script

    def grade(self, row: Mapping[str, Any], diff: str, model: str, text: str, folder: Path) -> dict[str, Any]:
        """swebench's verdict on a log, which is kept under `folder`."""
        name = row["instance_id"]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (re.sub(r"[^A-Za-z0-9._-]", "_", name)[:150] + ".log")
        path.write_text(text, encoding="utf-8")
        prediction = {"instance_id": name, "model_name_or_path": model, "model_patch": diff}
        report = self._report(self._spec(dict(row)), prediction, str(path), include_tests_status=True)[name]
        tests = report.pop("tests_status", {})
        counts = {kind: {k: len(v) for k, v in tests[kind].items()} for kind in ("FAIL_TO_PASS", "PASS_TO_PASS") if kind in tests}
        return {**report, "tests": counts, "log": str(path)}


def _swebench() -> _Grader:
    try:
        return _Grader()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"SWE-bench rows need the package swebench ({error}); install it with: pip install 'gymsmith[swe]'"
        ) from error
