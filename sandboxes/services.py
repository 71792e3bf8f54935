"""The services that a task declares: started by the host, from the declaration, never taken over from an agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from gymsmith.schema import Service
from sandboxes.base import Job, Sandbox

POLL_S = 0.05
SAID_BYTES = 4096


async def start(box: Sandbox, services: Sequence[Service], workdir: str) -> str:
    """Start each service and wait until it is ready, one after the other; returns why one is not, or "".

    One that has ended is not waited for any longer. Raises: SandboxError: the sandbox did not answer.
    """
    for service in services:
        job = await box.spawn(["/bin/sh", "-c", service.command], cwd=workdir, user=service.user, max_output_bytes=SAID_BYTES)
        if service.ready and (broken := await _wait(box, service, job, workdir)):
            return broken
    return ""


async def _wait(box: Sandbox, service: Service, job: Job, workdir: str) -> str:
    deadline = time.monotonic() + service.ready_timeout_s
    while True:
        left = deadline - time.monotonic()
        asked = await box.exec(service.ready, cwd=workdir, user=service.user, timeout_s=max(left, 0.05), max_output_bytes=0)
        if asked.ok:
            return ""
        state = await job.poll()
        if state.result is not None or time.monotonic() >= deadline:
            break
        await asyncio.sleep(POLL_S)
    end = "still runs"
    if state.result is not None:
        signal = state.result.signal
        end = f"ended by signal {signal}" if signal is not None else f"ended with exit code {state.result.exit_code}"
    said = state.output.decode(errors="replace").strip()[-500:]
    return f"service {service.name} must be ready within {service.ready_timeout_s:g} s, it is not and {end}: {said}"
