"""What one owner of sandboxes holds, on disk: written before a sandbox is made, so that nothing can be held unseen.

An owner is a provider of a process: a name (pid, start time, boot id, pid namespace, count), unique for ever, which is also its
fencing token, and a folder of that name. Its registry file has one line for each birth, change and death; its time of change is
the owner's heartbeat. An owner whose folder is gone was fenced off (or somebody cleaned up): it must end what it holds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sandboxes.base import SandboxSpec

FILE = "registry"
OWNER_LEASE_S = 60.0
"""How long after its last heartbeat an owner whose process cannot be seen from here counts as alive."""
_COMPACT_LINES = 4096


class Entry(NamedTuple):
    """One sandbox in a registry."""

    id: str
    owner: str
    record: Mapping[str, Any]
    """As `birth` made it."""


class Registry:
    """The registry of a living owner. Writes are single appends, so that a reader sees whole lines but for the last."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._live: dict[int, dict[str, Any]] = {}
        self._lines = 0
        self._fd = -1
        self._rewrite()

    def born(self, number: int, record: dict[str, Any]) -> None:
        """Before sandbox `number` is made. Raises: OSError (it may not be made)."""
        self._append({"n": number, **record})
        self._live[number] = record

    def changed(self, number: int, fields: Mapping[str, Any]) -> None:
        """Something about a sandbox is new. A full disk makes this late, not wrong: the next rewrite has it."""
        if number in self._live:
            self._live[number].update(fields)
            self._append_if_possible({"n": number, **fields})

    def died(self, number: int) -> None:
        """After the last process of a sandbox is dead and what it had is given back."""
        if self._live.pop(number, None) is not None:
            self._append_if_possible({"n": number, "dead": True})
            if self._lines > _COMPACT_LINES + 4 * len(self._live):
                self._rewrite_if_possible()

    def intact(self) -> bool:
        """Whether it is still on disk; False: this owner was fenced off."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink > 0

    def beat(self) -> None:
        """Show that this owner lives."""
        if self._lines < 0:
            self._rewrite_if_possible()
        os.utime(self._fd)

    def close(self) -> None:
        """Stop writing. The file goes with the owner's folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if os.write(self._fd, data) != len(data):  # a disk that is nearly full
            self._lines = -1
            raise OSError(28, os.strerror(28), str(self._path))
        if self._lines >= 0:
            self._lines += 1

    def _append_if_possible(self, line: Mapping[str, Any]) -> None:
        try:
            self._append(line)
        except OSError:
            self._lines = -1

    def _rewrite(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(json.dumps({"n": number, **record}) + "\n" for number, record in self._live.items()))
        os.replace(fresh, self._path)
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(self._live)

    def _rewrite_if_possible(self) -> None:
        try:
            self._rewrite()
        except OSError:
            self._lines = -1


def birth(spec: SandboxSpec) -> dict[str, Any]:
    """The record of a sandbox that is about to be made."""
    return {
        "image": spec.image,
        "role": spec.role,
        "labels": dict(spec.labels),
        "memory_bytes": spec.memory_bytes,
        "pids": spec.pids,
        "cpus": spec.cpus,
        "lease_s": spec.lease_s,
        "born": round(time.time(), 3),
    }


def entries(folder: Path) -> Iterator[Entry]:
    """The sandboxes that the owner of this folder holds, or held when it died."""
    live: dict[int, dict[str, Any]] = {}
    try:
        lines = (folder / FILE).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            number = record.pop("n")
        except (ValueError, KeyError, AttributeError):  # the last line of an owner that was killed in the middle of it
            continue
        if record.pop("dead", False):
            live.pop(number, None)
        else:
            live.setdefault(number, {}).update(record)
    for number, record in live.items():
        yield Entry(f"{folder.name}.{number}", folder.name, record)


def heartbeat_age(folder: Path) -> float:
    """Seconds since the owner of this folder last showed that it lives; for ever when it never did."""
    try:
        return max(0.0, time.time() - (folder / FILE).stat().st_mtime)
    except OSError:
        return float("inf")
