"""What a command ordered, kept in a file for as long as the command lives, so that nothing goes on for one that was killed.

A command that ends in any gentle way cancels what it still waits for. One that was killed cannot: its jobs would wait in the
queue for ever, and an engine that it asked for would hold the only place of its queue. So each command notes its jobs in a file
that it keeps locked; the kernel lets go of the lock when the process dies, and whoever comes next cancels what the file names.
Jobs that were ordered through the API are nobody's: they are noted nowhere and wait for the next worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from gymsmith import jobs
from gymsmith.errors import NotFound
from gymsmith.ids import ulid
from gymsmith.rows.jobs import ENDED, owner
from gymsmith.schema import Job, State
from gymsmith.store import Store

log = logging.getLogger(__name__)

FOLDER = "commands"
"""In the state folder: one file per command that lives or was killed."""
SETTLE_S = 10.0
"""How long workers that outlived their command may take to let go of its jobs; longer than their grace."""


class Orders:
    """The file of this command; made at the first note."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{socket.gethostname()}-{ulid()}"
        self._fd = -1

    def note(self, job_id: str) -> None:
        """Remember a job."""
        if self._fd < 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            hidden = self._folder / f".{self._path.name}"
            self._fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # Nobody looks at it before it has its name, and then it is locked.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            hidden.rename(self._path)
        os.write(self._fd, f"{job_id}\n".encode())

    def close(self) -> None:
        """The command ends: nothing of it needs to be cancelled by others."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def sweep(store: Store, settle_s: float = 0.0) -> int:
    """Cancel what dead commands of this state folder ordered; how many jobs that were.

    `settle_s`: wait at most so long until the workers that were at it have let go, for who orders the same again.
    """
    found: list[str] = []
    for path in _files(store.settings.home / FOLDER):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open() as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphans = [job for job in store.jobs_by_id(f.read().split()).values() if job.state.value not in ENDED]
            for job in orphans:
                _cancel(store, job)
            found += [job.id for job in orphans]
            path.unlink(missing_ok=True)
    if found:
        log.warning("event=orphans_cancelled jobs=%d", len(found))
        jobs.publish(store, store.lapsed())
    deadline = time.monotonic() + settle_s
    while found and store.unfinished(found) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(found)


def _files(folder: Path) -> list[Path]:
    # Another machine that shares the folder may not see our locks, nor we its.
    return sorted(folder.glob(f"{socket.gethostname()}-*"))


def _cancel(store: Store, job: Job) -> None:
    store.cancel(job.id)
    host, _, pid = job.owner.rpartition(":")
    if job.state is State.RUNNING and host == socket.gethostname() and not Path(f"/proc/{pid}").is_dir():
        # Its worker is as dead as the command; nobody needs to wait for the lease to lapse.
        store.abandon(owner(int(pid)))
    with contextlib.suppress(NotFound):
        run = store.run(job.run_id)
        above = store.run(run.parent) if run.parent else run
        for each in (run, *((above,) if above.kind == "demo" else ())):
            if each.state.value not in ENDED:
                store.update_run(each.id, state=State.CANCELLED)
