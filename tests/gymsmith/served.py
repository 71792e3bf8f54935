"""The application on a real socket, for tests that stream or browse, and what its tests share."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gymsmith.api import create_app
from gymsmith.ids import ulid
from gymsmith.schema import Job
from gymsmith.store import Store

V = "/api/v1"
HERE = "http://127.0.0.1:8642"
ORDER = {"source": "shell:all", "kind": "shell", "n": 12, "seed": 3}


def make_job(store: Store, **fields: Any) -> Job:
    """A job row, and no message."""
    return store.put_job(Job(id=ulid(), kind="generate", queue="factory", **fields))[0]


@contextmanager
def served(store: Store) -> Iterator[str]:
    """Serve the store's application from a thread; yields its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        app = create_app(store.settings, store)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
