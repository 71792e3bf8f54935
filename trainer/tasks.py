"""The doors through which jobs enter: train, serve and export. Imports no torch; the work is done in a child process.

A child per job, because a training process owns its threads and its memory, and may be killed without taking the worker along.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gymsmith import lifeline
from gymsmith.errors import ConfigError, Fenced, GymsmithError, InfrastructureError, UserError
from gymsmith.schema import JobContext, State, now

POLL_S = 0.05
THREADS = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For children: no spinning threads beside the sandboxes. The learner raises its own count when a recipe asks for it."""
REFUSALS: dict[int, Callable[[str], GymsmithError]] = {1: GymsmithError, 2: UserError}
"""Exit code of a child that refused -> the error that it stands for; any other code but 0 is worth another try."""


def train(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Run one stage in a learner process: {"stage", "run_id", "config"} -> the run's summary.

    The config is written into the Run row, where the learner finds it again after any restart.

    Raises:
        ConfigError: the config is wrong, said before anything starts.
        InfrastructureError: the learner died or asked for another try; the next attempt resumes from its newest checkpoint.
        UserError: the learner refused; the message is its own.
    """
    from trainer.config import parse_train

    _with_torch()
    stage, run_id = _needed(payload, "stage"), _needed(payload, "run_id")
    config = payload.get("config") or {}
    processes = parse_train(stage, config).recipe.parallel.world
    ctx.store.update_run(run_id, config=config, kind=stage)
    # Several processes of one machine; over several machines torchrun is started by whoever owns them.
    spread = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *spread, "-m", "trainer.learner", run_id, "--stage", stage, "--lifeline"]
    command += ["--job", ctx.job.id, "--attempt", str(ctx.job.attempt)]
    log_file = ctx.settings.logs_dir / f"learner-{run_id}.log"
    try:
        code = _child(command, ctx, log_file)
    except Fenced:
        # A worker that shuts down puts the job back, and the run goes on elsewhere; a cancelled one has ended.
        if ctx.store.job(ctx.job.id).cancel:
            ctx.store.update_run(run_id, state=State.CANCELLED)
        raise
    if code == 0:
        return dict(ctx.store.run(run_id).summary)
    raise _failure(code, ctx, run_id, log_file)


def serve(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Serve a checkpoint until the job is cancelled: {"checkpoint", "run_id"}.

    The Run row gets `engine_url`, `policy_version` and, in `summary`, the tokenizer's name.

    Raises:
        NotFound, CorruptCheckpoint: there is no such checkpoint, or it is damaged.
        InfrastructureError: the engine died.
    """
    _with_torch()
    run_id, given = _needed(payload, "run_id"), _needed(payload, "checkpoint")
    folder = Path(given) if Path(given).is_absolute() else ctx.settings.home / given
    command = [sys.executable, "-m", "trainer.engine.server", "--checkpoint", str(folder), "--lifeline", "--run", run_id]
    log_file = ctx.settings.logs_dir / f"engine-{run_id}.log"
    try:
        code = _child(command, ctx, log_file)
    finally:
        ctx.store.update_run(run_id, engine_url="", state=State.SUCCEEDED)
    raise _failure(code, ctx, run_id, log_file)


def export(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Write a checkpoint as a Hugging Face folder: {"checkpoint", "folder", "dtype", "serving"} -> {"folder"}.

    Raises:
        UserError: the folder exists, or the checkpoint does not; the message says which.
        InfrastructureError: the process died.
    """
    _with_torch()
    checkpoint, folder = ctx.settings.home / _needed(payload, "checkpoint"), Path(_needed(payload, "folder"))
    command = [sys.executable, "-m", "trainer.export", "--checkpoint", str(checkpoint), "--out", str(folder), "--lifeline"]
    command += ["--dtype", payload.get("dtype", "float32"), "--serving", payload.get("serving", "")]
    _heard(command, ctx, ctx.settings.logs_dir / f"export-{ctx.job.id}.log")
    return {"folder": str(folder)}


def import_model(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Make a Hugging Face folder the checkpoint of a run: {"run_id", "folder", "chat", "special", "rule", "multiple", "seed"}.

    Returns:
        A report: architecture, parameters and the vocabulary's share of them, what was left out.

    Raises:
        UserError: the folder is not one that we read; the message says why.
        InfrastructureError: the process died.
    """
    _with_torch()
    run_id, folder = _needed(payload, "run_id"), _needed(payload, "folder")
    out = ctx.settings.runs_dir / run_id / "checkpoints"
    command = [sys.executable, "-m", "trainer.hf.importer", "--folder", folder, "--out", str(out), "--lifeline"]
    command += ["--tokenizers", str(ctx.settings.tokenizers_dir), "--rule", payload.get("rule", "mean")]
    command += ["--multiple", str(payload.get("multiple", 1)), "--seed", str(payload.get("seed", 0))]
    command += ["--chat"] if payload.get("chat") else []
    command += [word for token in payload.get("special", ()) for word in ("--special", token)]
    try:
        report = json.loads(_heard(command, ctx, ctx.settings.logs_dir / f"import-{ctx.job.id}.log"))
    except GymsmithError as e:
        if not isinstance(e, InfrastructureError):
            ctx.store.update_run(run_id, state=State.FAILED, error=str(e))
        raise
    checkpoint = str(Path(report["checkpoint"]).relative_to(ctx.settings.home))
    done = {"state": State.SUCCEEDED, "checkpoint": checkpoint, "policy_version": "0", "finished_at": now()}
    ctx.store.update_run(run_id, summary=report, **done)
    return {**report, "checkpoint": checkpoint}


def _heard(command: Sequence[str], ctx: JobContext, log_file: Path) -> str:
    """The last line that a process said. Raises: what it refused with, or InfrastructureError when it died."""
    code = _child(command, ctx, log_file)
    said = log_file.read_text(errors="replace").strip().rpartition("\n")[2]
    if code == 0:
        log_file.unlink()
        return said
    raise REFUSALS.get(code, InfrastructureError)(said or f"the process ended with code {code}; its log is {log_file}")


def _child(command: Sequence[str], ctx: JobContext, log_file: Path) -> int:
    """Run a process that ends with this one, and with the job. Its exit code. Raises: Fenced: the job is not ours any more."""
    child = lifeline.spawn(command, log_file=log_file, environment=ctx.settings.environment() | THREADS)
    try:
        while child.poll() is None:
            ctx.check()
            time.sleep(POLL_S)
    finally:
        lifeline.stop([child], grace_s=3.0)
    return child.returncode


def _with_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("training needs torch, which is not installed; pip install 'gymsmith[train]'")


def _needed(payload: dict[str, Any], name: str) -> str:
    if not payload.get(name):
        raise ConfigError(f"the payload must name a {name}, got {sorted(payload)}")
    return str(payload[name])


def _failure(code: int, ctx: JobContext, run_id: str, log_file: Path) -> GymsmithError:
    """The error that a dead child stands for."""
    said = ctx.store.run(run_id).error
    if code in REFUSALS and said:
        ctx.store.update_run(run_id, state=State.FAILED)
        return REFUSALS[code](said)
    why = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return InfrastructureError(f"the process of run {run_id} {why}{': ' + said if said else ''}; its log is {log_file}")
