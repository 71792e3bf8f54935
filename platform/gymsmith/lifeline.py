"""A child process that ends when its parent does, however the parent ended.

`spawn` keeps the write end of a pipe whose read end is the child's standard input. When the parent dies, by `kill -9` too, the
kernel closes that end and `hold_on` in the child sees the end of the file. (PR_SET_PDEATHSIG would follow the thread that forked,
and a supervisor restarts children from whichever thread noticed.) A child is the leader of a session of its own, so Ctrl-C
reaches only the parent, and the parent can end the child with everything that the child started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def spawn(
    command: Sequence[str],
    *,
    log_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child that calls `hold_on`. Output is appended to `log_file`, or inherited; `environment` is added to ours."""
    output = None
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = log_file.open("ab")
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()


def hold_on(grace_s: float = 5.0, at_end: Callable[[], None] | None = None) -> None:
    """In the child: when the parent is gone, call `at_end`, send ourselves SIGTERM, and exit for good after `grace_s`."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if at_end is not None:
            at_end()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def stop(children: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """SIGTERM to each child, at most `grace_s` for all of them, then SIGKILL to whatever is left of their sessions."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
