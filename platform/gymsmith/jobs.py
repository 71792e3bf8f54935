"""The switchboard: kinds of jobs, how one is ordered, and the Celery app that carries its id to a worker.

Celery is the only executor, embedded or scaled out, and its one task is `run_job(job_id)`. A message is a hint: the jobs table is
the truth, a worker must win the claim there before it works (see `worker`), so a lost or doubled message costs time and nothing
else. The rooms' functions ("doors") are known by name and imported when a job runs. Workers start with `python -m
gymsmith.worker` or plain `python -m celery -A gymsmith.jobs worker --pool threads -Q rollouts,evals,factory`.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from celery import Celery
from celery.signals import worker_init
from kombu.exceptions import OperationalError

from gymsmith import broker
from gymsmith.config import Settings, settings
from gymsmith.errors import ConfigError, InfrastructureError
from gymsmith.ids import ulid
from gymsmith.schema import Job, JobContext, State
from gymsmith.store import Store

log = logging.getLogger(__name__)

Door = Callable[[dict[str, Any], JobContext], dict[str, Any]]
"""Takes the payload and the context, returns the result; runs in a thread of a worker."""

POLL_S = 0.02
"""How often `wait` looks."""

AWAY_S = 1.0
"""Pause before jobs are published again that a broker did not take."""

TASK = "gymsmith.run_job"

KINDS: dict[str, tuple[str, str]] = {
    "generate": ("factory", "env_factory.tasks:generate"),
    "verify": ("factory", "env_factory.tasks:verify"),
    "judge": ("factory", "env_factory.tasks:judge"),
    "corpus": ("factory", "env_factory.tasks:corpus"),
    "import": ("factory", "env_factory.exchange:bring_in"),
    "export_environments": ("factory", "env_factory.exchange:send_out"),
    "rollout": ("rollouts", "sandboxes.tasks:rollout"),
    "image": ("factory", "sandboxes.image.door:image"),
    "evaluate": ("evals", "sandboxes.tasks:evaluate"),
    "evaluate_swebench": ("evals", "sandboxes.tasks:evaluate_swebench"),
    "render": ("rollouts", "sandboxes.tasks:render"),
    "train": ("train", "trainer.tasks:train"),
    "serve": ("train", "trainer.tasks:serve"),
    "export": ("train", "trainer.tasks:export"),
    "import_model": ("train", "trainer.tasks:import_model"),
}
"""Kind -> (queue, "module:function")."""

POOLED = ("rollouts", "evals", "factory")
"""Queues of the workers with a thread pool: their jobs wait for sandboxes and policies."""
SINGLE = ("train",)
"""Queues of the worker that does one job at a time."""


def register(kind: str, queue: str, door: str) -> None:
    """Add a kind; the module that calls this must be imported in the worker too (its option `--include`)."""
    KINDS[kind] = (queue, door)


def queue_of(kind: str) -> str:
    """The queue of a kind.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of job {kind!r}; there are {', '.join(sorted(KINDS))}")
    return KINDS[kind][0]


def door_of(kind: str) -> Door:
    """Import the function that does jobs of this kind."""
    queue_of(kind)
    module, _, name = KINDS[kind][1].partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- ordering


def submit(store: Store, kind: str, payload: Mapping[str, Any], *, key: str = "", parent: str = "", run_id: str = "") -> Job:
    """Order a job: the row first, then the message.

    With a `key` that was used before, the job that has it is returned; if that one failed or was cancelled, it is queued again.

    Raises:
        Conflict: the key names a job with another kind or payload.
    """
    return submit_many(store, kind, [payload], keys=[key] if key else None, parent=parent, run_id=run_id)[0]


def submit_many(
    store: Store,
    kind: str,
    payloads: Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str] | None = None,
    parent: str = "",
    run_id: str = "",
) -> list[Job]:
    """Order many jobs of one kind in one transaction, in the order given; see `submit`."""
    queue = queue_of(kind)
    wanted = [
        Job(id=ulid(), kind=kind, queue=queue, payload=dict(payload), key=key, parent=parent, run_id=run_id)
        for payload, key in zip(payloads, keys or [""] * len(payloads), strict=True)
    ]
    ordered = []
    fresh = []
    for job, created in store.put_jobs(wanted):
        if not created and job.state in (State.FAILED, State.CANCELLED):
            job, created = store.revive(job.id)
        ordered.append(job)
        if created:
            fresh.append((job.id, job.queue))
    publish(store, fresh)
    return ordered


def publish(store: Store, jobs: Iterable[tuple[str, str]]) -> None:
    """Send a message for each (job id, queue). When the broker is away they stay due; workers try every second."""
    unsent = deque(jobs)
    if not unsent:
        return
    app = _sender(store.settings)
    try:
        with app.producer_pool.acquire(block=True) as producer:
            while unsent:
                job_id, queue = unsent[0]
                app.send_task(TASK, args=(job_id,), queue=queue, producer=producer, ignore_result=True)
                unsent.popleft()
    except OperationalError as error:
        log.warning("event=broker_away unsent=%d error=%s", len(unsent), error)
        store.due_again([job_id for job_id, _ in unsent], AWAY_S)


def reach(config: Settings) -> None:
    """Ask the broker whether it is there, for who would rather know than wait.

    Raises:
        ConfigError: the URL cannot be used here.
        InfrastructureError: nobody answers.
    """
    if config.embedded_broker:
        return
    scheme = config.broker_url.partition("://")[0]
    try:
        with _sender(config).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=5)
    except (ImportError, KeyError, ValueError) as error:
        cure = "pip install 'gymsmith[redis]'" if scheme.startswith("redis") else "set it to amqp://..., redis://... or nothing"
        raise ConfigError(f"GYMSMITH_BROKER_URL names a {scheme} broker that cannot be used: {error}; {cure}") from error
    except (OperationalError, OSError) as error:
        where = connection.as_uri()
        raise InfrastructureError(
            f"the broker {where} does not answer: {str(error).rstrip('.')}; start it, or unset GYMSMITH_BROKER_URL to use files"
        ) from error


def wait(
    store: Store, ids: Sequence[str], *, timeout_s: float | None = None, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Job]:
    """Wait until every job has ended, looking every 20 ms; job id -> job. `on_progress` gets (ended, total) when it changed.

    A failed job is returned like any other: its `state` says so.

    Raises:
        InfrastructureError: `timeout_s` passed first.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    total, left_before, seen = len(ids), -1, None
    while True:
        # Asking whether anything changed is ten times cheaper than asking what.
        changes = store.db.changes()
        if changes is None or changes != seen:
            seen = changes
            left = store.unfinished(ids)
            if left != left_before and on_progress is not None:
                on_progress(total - left, total)
            left_before = left
            if not left:
                return store.jobs_by_id(ids)
        if deadline is not None and time.monotonic() > deadline:
            raise InfrastructureError(
                f"{left_before} of {total} jobs had not ended after {timeout_s:g} s; see the page Jobs and the workers' logs"
            )
        time.sleep(POLL_S)


# ---------------------------------------------------------------- Celery


def celery_settings(config: Settings) -> dict[str, Any]:
    """Celery's configuration for these settings."""
    transport_options: dict[str, Any] = {}
    if config.embedded_broker:
        transport_options = {"folder": str(config.broker_dir)}
    elif config.broker_url.startswith("redis"):
        # Redis hands a message out again after this long; claims make that harmless, but it should be rare.
        transport_options = {"visibility_timeout": 6 * 3600, "unacked_restore_interval": 10, "unacked_restore_throttle": 1}
        # Who publishes may be the thread that keeps leases, so it must not hang for longer than they last.
        transport_options["socket_connect_timeout"] = 3
    return {
        "broker_url": config.broker_url or f"{broker.SCHEME}://localhost/",
        "broker_transport_options": transport_options,
        "broker_connection_retry_on_startup": True,
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.2},
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_default_queue": "factory",
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": not config.embedded_broker,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


app = Celery("gymsmith", set_as_current=False)
app.add_defaults(lambda: celery_settings(settings()))


@app.task(name=TASK)
def run_job(job_id: str) -> None:
    """Do one job if the claim is won."""
    from gymsmith.worker import worker

    worker().work(job_id)


@worker_init.connect
def _begin(**_: Any) -> None:
    # A worker keeps leases and looks for lost jobs from its start, not from its first job.
    from gymsmith.worker import worker

    worker()


@lru_cache(maxsize=8)
def _sender(config: Settings) -> Celery:
    """An app that only sends, to the broker of these settings; `app` belongs to the settings of this process."""
    sender = Celery("gymsmith-sender", set_as_current=False)
    sender.add_defaults(celery_settings(config))
    return sender
