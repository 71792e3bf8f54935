"""Doors that tests send jobs through. A worker imports this with `--include job_doors`; a test imports it to know the kinds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gymsmith import jobs
from gymsmith.errors import InfrastructureError, UserError
from gymsmith.schema import JobContext


def noop(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Say which process and attempt did it."""
    return {"pid": os.getpid(), "attempt": ctx.job.attempt, "echo": payload}


def slow(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Work for `seconds`, noting the start of every attempt as a line of the file `log`."""
    with Path(payload["log"]).open("a") as f:
        f.write(f"{ctx.job.attempt} {os.getpid()}\n")
    end = time.monotonic() + payload["seconds"]
    while time.monotonic() < end:
        time.sleep(0.02)
        ctx.progress(done=ctx.job.attempt, total=1)
    return {"attempt": ctx.job.attempt}


def deaf(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Never look at the context: the worst door there can be."""
    time.sleep(payload["seconds"])
    return {"attempt": ctx.job.attempt}


def flaky(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Fail for a reason of ours until attempt `good`."""
    if ctx.job.attempt < payload["good"]:
        raise InfrastructureError(f"attempt {ctx.job.attempt} had bad luck")
    return {"attempt": ctx.job.attempt}


def refuse(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Fail for a reason of the user's."""
    raise UserError("no such thing; ask for another")


def crash(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """A bug."""
    raise ZeroDivisionError("a bug in a door")


for _kind in ("noop", "slow", "deaf", "flaky", "refuse", "crash"):
    jobs.register(f"test-{_kind}", "rollouts", f"job_doors:{_kind}")
jobs.register("test-single", "train", "job_doors:noop")
