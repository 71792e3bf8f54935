"""The embedded size: one supervisor that starts what a house needs and restarts what dies.

    api         the dashboard and the API
    worker-N    Celery, thread pool, queues rollouts, evals, factory
    learner     Celery, one job at a time, queue train; its jobs spawn the training process

Children end with the supervisor, however it ends (see `lifeline`). Their output goes to the logs folder. Scaled out, each is a
deployment of its own and nothing here is used. One supervisor per state folder: a lock file says so and names its process.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymsmith import jobs, lifeline, orders
from gymsmith import log as logs
from gymsmith.config import Settings, settings
from gymsmith.errors import Conflict, InfrastructureError, StoreError
from gymsmith.rows.jobs import owner
from gymsmith.store import Store

log = logging.getLogger(__name__)

WORKER_THREADS = 32
"""Jobs at once in one pooled worker; they wait far more than they compute."""
WORKER_NICE = 10
"""Of workers and their sandboxes: dozens of short processes must not crowd out the one learner on a small machine."""
STOP_S = 8.0
"""How long children may take to end before they are killed."""
LOG_BYTES = 16 << 20
"""A child's log above this size is turned over when the child starts."""
_LOOK_S = 0.2
_SWEEP_S = 2.0
"""How often it looks for commands that were killed while our workers do their jobs."""
_SHORT_LIFE_S = 5.0
"""A child that lives shorter failed to start."""
_TRIES = 3
"""Short lives in a row before the supervisor calls it a problem."""


@dataclass(slots=True)
class Child:
    """One supervised process and its record."""

    name: str
    command: tuple[str, ...]
    log_file: Path
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    short_lives: int = 0
    start_at: float = 0.0
    """When to start it again, on the monotonic clock; used while it is dead."""

    def tail(self, lines: int = 12) -> str:
        """Last lines of its output."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        return ""


class Supervisor:
    """Starts with `start` or `with`; the embedded processes of one state folder."""

    def __init__(
        self, settings: Settings, workers: int = 1, api: bool = True, learner: bool = True, *, include: Sequence[str] = ()
    ) -> None:
        """`workers` pooled workers; `include` are modules that workers import first, to know more kinds of jobs."""
        self.settings = settings
        self.problem = ""
        """What keeps a child from staying alive; empty while all is well."""
        self._api = api
        self._store: Store | None = None
        self._socket: socket.socket | None = None
        self._lock_file: Any = None
        self._stopping = threading.Event()
        self._monitor: threading.Thread | None = None
        python = (sys.executable, "-m", "gymsmith.worker", "--lifeline", *(("--include", ",".join(include)) if include else ()))
        pooled = (*python, "--queues", ",".join(jobs.POOLED), "--pool", "threads", "--concurrency", str(WORKER_THREADS))
        pooled += ("--nice", str(WORKER_NICE))
        single = (*python, "--queues", ",".join(jobs.SINGLE), "--pool", "solo", "--concurrency", "1")
        names = {f"worker-{i + 1}": pooled for i in range(workers)} | ({"learner": single} if learner else {})
        self.children = [Child(name, command, settings.logs_dir / f"{name}.log") for name, command in names.items()]

    @property
    def url(self) -> str:
        """Address of the dashboard; empty without the API."""
        if self._socket is None:
            return ""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self._socket.getsockname()[1]}/"

    def start(self) -> Supervisor:
        """Start every child. Opens the store first, so that a bad state folder is told here and not by dying children.

        Raises:
            StoreError: the state folder or the database cannot be used.
            InfrastructureError: the broker does not answer.
            Conflict: another supervisor works on this state folder, or the port is in use.
        """
        self._store = Store.open(self.settings)
        try:
            jobs.reach(self.settings)
            orders.sweep(self._store)
            self._lock_file = _lock(self.settings)
            self._sweep()
            if self._api:
                self._socket = _listen(self.settings)
                fd = self._socket.fileno()
                command = (sys.executable, "-m", "gymsmith.supervisor", "--fd", str(fd))
                self.children.append(Child("api", command, self.settings.logs_dir / "api.log", (fd,)))
            for child in self.children:
                self._spawn(child)
        except BaseException:
            self.stop()
            raise
        self._monitor = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._monitor.start()
        return self

    def stop(self) -> None:
        """End every child; jobs in work go back to the queue. Nothing is left running when this returns."""
        self._stopping.set()
        if self._monitor is not None:
            self._monitor.join()
        lifeline.stop([child.process for child in self.children if child.process is not None], STOP_S)
        self._sweep()
        if self._socket is not None:
            self._socket.close()
        if self._store is not None:
            self._store.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _sweep(self) -> None:
        """Remove what killed workers left, of this house or one before it; workers do so only when they make a sandbox."""
        try:
            importlib.import_module("sandboxes.reaper").sweep(self.settings.sandboxes_dir)
        except OSError as e:
            log.warning("event=sweep_failed folder=%s error=%s", self.settings.sandboxes_dir, e)

    def check(self) -> None:
        """Raise when a child cannot stay alive.

        Raises:
            InfrastructureError: with the last lines of its log.
        """
        if self.problem:
            raise InfrastructureError(self.problem)

    def run_forever(self) -> None:
        """Return at Ctrl-C or SIGTERM.

        Raises:
            InfrastructureError: a child cannot stay alive.
        """
        ended = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            while not ended.wait(0.25):
                self.check()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)

    def __enter__(self) -> Supervisor:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, child: Child) -> None:
        _turn_over(child.log_file)
        child.process = lifeline.spawn(
            child.command, log_file=child.log_file, environment=self.settings.environment(), pass_fds=child.pass_fds
        )
        child.started = time.monotonic()
        child.start_at = 0.0

    def _watch(self) -> None:
        swept = time.monotonic()
        while not self._stopping.wait(_LOOK_S):
            for child in self.children:
                if child.process is not None and child.process.poll() is not None:
                    self._bury(child)
                elif child.process is None and time.monotonic() >= child.start_at:
                    self._spawn(child)
            if all(child.short_lives < _TRIES for child in self.children):
                self.problem = ""
            if self._store is not None and time.monotonic() - swept >= _SWEEP_S:
                swept = time.monotonic()
                with contextlib.suppress(StoreError):
                    orders.sweep(self._store)

    def _bury(self, child: Child) -> None:
        assert child.process is not None
        code, lived_s = child.process.returncode, time.monotonic() - child.started
        # Whatever it started must not outlive it: a second learner on the same run would fight the first.
        lifeline.stop([child.process], 0.0)
        if self._store is not None:
            with contextlib.suppress(StoreError):
                # It is known to be dead; nobody needs to wait for its leases to lapse.
                self._store.abandon(owner(child.process.pid))
        child.process = None
        child.short_lives = child.short_lives + 1 if lived_s < _SHORT_LIFE_S else 0
        pause_s = min(0.25 * 2**child.short_lives, 10.0) if child.short_lives else 0.0
        child.start_at = time.monotonic() + pause_s
        log.warning("event=child_died name=%s code=%s lived_s=%.1f restart_s=%.2f", child.name, code, lived_s, pause_s)
        if child.short_lives >= _TRIES:
            self.problem = (
                f"{child.name} ended with code {code} {child.short_lives} times in a row; "
                f"last lines of {child.log_file}:\n{child.tail()}"
            )


def _turn_over(log_file: Path) -> None:
    """Start a new log when this one has grown large; one old one is kept."""
    with contextlib.suppress(FileNotFoundError):
        if log_file.stat().st_size > LOG_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))


def running(settings: Settings) -> bool:
    """A supervisor works on this state folder now."""
    try:
        with _lock_path(settings).open() as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock_path(settings: Settings) -> Path:
    return settings.home / "supervisor.lock"


def _lock(settings: Settings) -> Any:
    f = _lock_path(settings).open("a+")
    for patience_s in (0.05, 0.2, 0.0):
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as e:
            if patience_s:
                # `running` of another process holds it for a moment.
                time.sleep(patience_s)
                continue
            f.seek(0)
            holder = f.read().strip() or "unknown"
            f.close()
            raise Conflict(
                f"a supervisor (process {holder}) already works on {settings.home}; "
                "stop it, or set GYMSMITH_HOME to another folder"
            ) from e
    f.truncate(0)
    f.write(f"{os.getpid()}\n")
    f.flush()
    return f


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind((settings.host, settings.port))
        s.listen(128)
    except OSError as e:
        s.close()
        raise Conflict(
            f"cannot listen on {settings.host}:{settings.port}: {e.strerror}; choose another port with --port or GYMSMITH_PORT, "
            "or stop the program that has it"
        ) from e
    return s


def _serve(fd: int) -> None:
    """The child `api`: serve on an inherited listening socket."""
    import uvicorn

    from gymsmith.api import create_app

    app: Callable[..., Any] = create_app(settings())
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the child `api`."""
    parser = argparse.ArgumentParser(prog="python -m gymsmith.supervisor")
    parser.add_argument("--fd", type=int, required=True, help="inherited listening socket")
    options = parser.parse_args(arguments)
    logs.configure()
    lifeline.hold_on()
    _serve(options.fd)


if __name__ == "__main__":
    main()
