"""Tasks that nobody awaits, or not yet: held until they are done, and heard when they fail.

The event loop holds such a task by a weak reference alone and tells of its failure when the task is collected, which may be
never. What the failure means for the next caller is said by `failed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gymsmith.errors import GymsmithError

log = logging.getLogger(__name__)
T = TypeVar("T")

_at_work: set[asyncio.Task[Any]] = set()


def begin(work: Coroutine[Any, Any, T], name: str, failed: Callable[[BaseException], None] | None = None) -> asyncio.Task[T]:
    """A task on the running loop. When it raises, that is logged and `failed` told; being cancelled is no failure."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _at_work.add(task)

    def done(task: asyncio.Task[T]) -> None:
        _at_work.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        expected = isinstance(error, GymsmithError | OSError)
        log.log(
            logging.WARNING if expected else logging.ERROR,
            "event=task_failed task=%r error=%s: %s", name, type(error).__name__, error,
            exc_info=None if expected else error,
        )  # fmt: skip
        if failed is not None:
            failed(error)

    task.add_done_callback(done)
    return task
