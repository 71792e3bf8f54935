"""One worker process: claims jobs, keeps their leases, runs their doors, and publishes again what others lost.

    python -m gymsmith.worker --queues rollouts,evals,factory --pool threads --concurrency 24

One thread beats for all jobs of the process. It also looks for lapsed jobs (every worker does; taking one is atomic) and for
cancellations. A thread cannot be killed, so a door must call `ctx.check()` or `ctx.progress()` now and then; a door that does not
is fenced: its writes are refused. On SIGTERM the worker gives doors a few seconds, puts the rest of its jobs back in the queue
and exits.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from celery.signals import worker_shutting_down

from gymsmith import jobs, lifeline
from gymsmith import log as logs
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, Fenced, GymsmithError, InfrastructureError, NotFound, StoreError
from gymsmith.rows.jobs import owner
from gymsmith.schema import Job, State
from gymsmith.store import Store, process_store

log = logging.getLogger(__name__)

TICK_S = 0.5
"""How often lapsed and cancelled jobs are looked for."""
PROGRESS_S = 0.5
"""Least time between two writes of one job's progress."""
GRACE_S = 4.0
"""How long doors may take to stop after SIGTERM."""


class Context:
    """What a door gets: `schema.JobContext`."""

    def __init__(self, job: Job, store: Store) -> None:
        self.job = job
        self.store = store
        self.settings: Settings = store.settings
        self.stop_reason = ""
        """Empty while the attempt may go on; else lost, cancelled or shutdown."""
        self._pending: dict[str, Any] = {}
        self._written = 0.0
        self._lock = threading.Lock()

    def progress(self, **fields: Any) -> None:
        """Merge fields into the job's progress; written at most twice a second.

        Raises:
            Fenced: another attempt owns the job, it was cancelled, or the worker stops.
        """
        self.check()
        with self._lock:
            self._pending |= fields
            due = time.monotonic() - self._written >= PROGRESS_S
        if due:
            self.flush()
            self.check()

    def flush(self) -> None:
        """Write the progress that waits."""
        with self._lock:
            fields, self._pending = self._pending, {}
            self._written = time.monotonic()
        if not fields:
            return
        if self.store.set_progress(self.job.id, self.job.attempt, fields):
            self.stop_reason = self.stop_reason or "cancelled"
        self.store.emit("job.progress", job_id=self.job.id, run_id=self.job.run_id, **fields)

    def check(self) -> None:
        """Raise Fenced when this attempt must stop."""
        if self.stop_reason:
            raise Fenced(f"attempt {self.job.attempt} of job {self.job.id} must stop: {self.stop_reason}")


class Worker:
    """The jobs of this process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pid = os.getpid()
        self.owner = owner(self._pid)
        self.stopping = threading.Event()
        self._held: dict[str, Context] = {}
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def work(self, job_id: str) -> None:
        """Claim a job and run its door; nothing happens when the claim is lost."""
        if os.getpid() != self._pid:
            raise ConfigError(
                "leases are kept by the worker's main process, so a forking pool cannot work; use --pool threads or solo"
            )
        if self.stopping.is_set():
            return
        job = self.store.claim(job_id, self.owner)
        if job is None:
            return
        context = self._held[job.id] = Context(job, self.store)
        start = time.monotonic()
        try:
            self._follow(job, State.RUNNING)
            state = self._run(job, context)
            if state != State.SUCCEEDED:
                self._follow(job, State(state))
        except Fenced as e:
            state = "dropped"
            log.warning("event=job_dropped job=%s attempt=%d why=%s", job.id, job.attempt, e)
        finally:
            self._held.pop(job.id, None)
        seconds = time.monotonic() - start
        log.info("event=job_ended job=%s kind=%s attempt=%d state=%s seconds=%.3f", job.id, job.kind, job.attempt, state, seconds)

    def _follow(self, job: Job, state: State) -> None:
        """A run of kind `rollout` is nothing but its job, so it goes as that goes; other runs know their state themselves."""
        if job.kind != "rollout" or not job.run_id:
            return
        with contextlib.suppress(NotFound):
            if self.store.run(job.run_id).kind == job.kind:
                self.store.update_run(job.run_id, state=state)

    def _run(self, job: Job, context: Context) -> str:
        """Run the door and write how it ended. Raises Fenced when another attempt owns the job by then."""
        store, mine = self.store, (job.id, job.attempt)
        try:
            result = jobs.door_of(job.kind)(job.payload, context)
            if context._pending:
                context.flush()
            # Before the job, so that whoever waited for the job finds the run finished.
            self._follow(job, State.SUCCEEDED)
            store.finish(*mine, result)
            return "succeeded"
        except Fenced:
            if context.stop_reason == "shutdown":
                store.release(*mine)
                return "queued"
            if context.stop_reason == "cancelled":
                store.cancelled(*mine)
                return "cancelled"
            raise
        except InfrastructureError as e:
            log.warning("event=job_retry job=%s attempt=%d error=%s", job.id, job.attempt, e)
            return store.fail(*mine, f"{type(e).__name__}: {e}", retry=True, code=e.code).value
        except GymsmithError as e:
            return store.fail(*mine, str(e), code=e.code).value
        except Exception as e:
            # The job is the place where an error of a door ends: it is recorded there and must not take the worker down.
            log.exception("event=job_crashed job=%s kind=%s", job.id, job.kind)
            return store.fail(*mine, f"{type(e).__name__}: {e}").value

    def stop(self) -> None:
        """Tell every door to stop; after GRACE_S put what is left back in the queue and end the process."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        for context in list(self._held.values()):
            context.stop_reason = context.stop_reason or "shutdown"
        threading.Thread(target=self._leave, name="leave", daemon=True).start()

    def _leave(self) -> None:
        deadline = time.monotonic() + GRACE_S
        while self._held and time.monotonic() < deadline:
            time.sleep(0.02)
        if not self._held:
            return
        for context in list(self._held.values()):
            try:
                self.store.release(context.job.id, context.job.attempt)
            except InfrastructureError as e:
                log.warning("event=release_failed job=%s error=%s", context.job.id, e)
        self.store.close()
        log.warning("event=worker_left unfinished=%d", len(self._held))
        os._exit(0)

    def _keep(self) -> None:
        last_beat = time.monotonic()
        while not self.stopping.wait(TICK_S):
            try:
                if self._held:
                    if time.monotonic() - last_beat >= self.store.settings.heartbeat_s:
                        last_beat = time.monotonic()
                        self._beat()
                    else:
                        self._mark(self.store.to_cancel(list(self._held)), "cancelled")
                jobs.publish(self.store, self.store.lapsed())
            except (InfrastructureError, OSError) as e:
                log.error("event=keeper_failed error=%s", e)

    def _beat(self) -> None:
        pulse = self.store.heartbeats([(c.job.id, c.job.attempt) for c in list(self._held.values())])
        self._mark(pulse.lost, "lost")
        self._mark(pulse.cancelled, "cancelled")

    def _mark(self, job_ids: Sequence[str] | frozenset[str], reason: str) -> None:
        for job_id in job_ids:
            context = self._held.get(job_id)
            if context is not None:
                context.stop_reason = context.stop_reason or reason


@lru_cache(maxsize=1)
def worker() -> Worker:
    """The worker of this process, made at its first job or start."""
    return Worker(process_store())


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    worker().stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Start Celery's worker with the options that fit the embedded size."""
    parser = argparse.ArgumentParser(prog="python -m gymsmith.worker", description="Work on queues until SIGTERM.")
    parser.add_argument("--queues", default=",".join(jobs.POOLED))
    parser.add_argument("--pool", choices=("threads", "solo"), default="threads")
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--include", default="", help="modules to import first, e.g. to register more kinds")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority of this worker and its sandboxes by so much")
    options = parser.parse_args(arguments)
    logs.configure()
    os.nice(options.nice)
    if options.lifeline:
        lifeline.hold_on(grace_s=GRACE_S + 2)
    argv = [
        "worker",
        "--pool",
        options.pool,
        "--concurrency",
        str(options.concurrency),
        "-Q",
        options.queues,
        "--loglevel",
        "WARNING",
    ]
    argv += ["--hostname", f"{os.getpid()}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    if options.include:
        argv += ["--include", options.include]
    jobs.app.worker_main(argv)
    if rooms := sys.modules.get("sandboxes.worker"):
        rooms.close_all()
    try:
        worker().store.close()
    except StoreError as e:
        log.error("event=close_failed error=%s", e)


if __name__ == "__main__":
    # Under -m this file is __main__; the task imports it by its name, and there must be one worker.
    from gymsmith.worker import main as named_main

    named_main()
