"""CPU time of a job: of its process, and of everything that runs below it."""

from __future__ import annotations

import contextlib
import os


def cpu_seconds() -> float:
    """CPU time of this process and of everything below it, sandboxes and what runs in them included, so far."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    tick = os.sysconf("SC_CLK_TCK")
    pending = _children(os.getpid())
    while pending:
        child = pending.pop()
        pending += _children(child)
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(ticks) for ticks in fields[11:15]) / tick
    return total


def _children(pid: int) -> list[int]:
    """Processes that a process has started, of all its threads; none when it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found
