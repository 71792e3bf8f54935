"""The embedded broker: kombu messages as files, one folder per queue.

A message is written under a name that readers skip and then renamed; a reader claims it by renaming it inside the same folder.
Both are atomic, so no reader ever sees half a message and no two readers get the same one. kombu's stock filesystem transport
does neither: it writes under the final name and moves messages across file systems.

Not durable on purpose (no fsync, and a message dies with the worker that fetched it): the jobs table is the truth, and its reaper
publishes again what got lost. Only the default exchange exists, which is all that Celery needs to reach a queue by its name.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import defaultdict, deque
from pathlib import Path
from queue import Empty
from typing import Any

from kombu import transport
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

SCHEME = "gymsmith"
POLL_S = 0.02
"""How often a waiting worker looks for messages."""
_WAIT_S = 0.25
"""How long one wait may take, and so how soon a worker notices that it should stop."""

# kombu finds a transport by the scheme of the broker's URL.
transport.TRANSPORT_ALIASES[SCHEME] = "gymsmith.broker:Transport"
for _scheme in ("redis", "rediss"):
    transport.TRANSPORT_ALIASES[_scheme] = "gymsmith.broker_redis:Transport"


class Channel(virtual.Channel):
    """Queues under the folder named by the transport option `folder`."""

    do_restore = True
    supports_fanout = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.folder = Path(self.connection.client.transport_options["folder"])
        self._seen: defaultdict[str, deque[str]] = defaultdict(deque)

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        folder = self.folder / queue
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        hidden = folder / f".{name}"
        try:
            hidden.write_text(dumps(message))
        except FileNotFoundError:
            self._new_queue(queue)
            hidden.write_text(dumps(message))
        hidden.rename(folder / name)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        # A listing is used up before the next one is made, so a deep queue costs one rename a message.
        names = self._seen[queue] or self._list(queue)
        while names:
            name = names.popleft()
            path = self.folder / queue / name
            mine = self.folder / queue / f".{name}.{os.getpid()}"
            try:
                path.rename(mine)
            except FileNotFoundError:
                continue
            text = mine.read_text()
            mine.unlink()
            try:
                return dict(loads(text))
            except ValueError:
                # Only a power cut leaves such a file; the reaper publishes its job again.
                continue
        raise Empty

    def _list(self, queue: str) -> deque[str]:
        try:
            names = sorted(name for name in os.listdir(f"{self.folder}/{queue}") if not name.startswith("."))
        except FileNotFoundError:
            names = []
        self._seen[queue] = deque(names)
        return self._seen[queue]

    def _size(self, queue: str) -> int:
        return len(self._list(queue))

    def _purge(self, queue: str) -> int:
        names = self._list(queue)
        for name in names:
            (self.folder / queue / name).unlink(missing_ok=True)
        self._seen[queue] = deque()
        return len(names)

    def _new_queue(self, queue: str, **_: Any) -> None:
        (self.folder / queue).mkdir(parents=True, exist_ok=True)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return (self.folder / queue).is_dir()


class Transport(virtual.Transport):
    """kombu's virtual transport over `Channel`."""

    Channel = Channel
    polling_interval = POLL_S
    driver_type = SCHEME
    driver_name = SCHEME

    def driver_version(self) -> str:
        """There is no driver behind it."""
        return "1"

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> Any:
        """Deliver one message, or raise socket.timeout."""
        return super().drain_events(connection, timeout=_WAIT_S if timeout is None else min(timeout, _WAIT_S))
