"""The watchdog over a tab: no page keeps us longer than its deadline, whatever it does.

Closing a page asks its renderer, which a `while (1)` never lets answer. So the browser process is asked to kill the renderer;
when that does not happen in time, the browser has been talked into something and its sandbox is destroyed. Time is the host's
monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from sandboxes.browser.chromium import Chromium
from sandboxes.browser.page import Tab

log = logging.getLogger(__name__)
T = TypeVar("T")

KILL_S = 0.4
"""What the browser gets for killing a renderer; with a sandbox's end this stays below a second."""


class Stopped(Exception):
    """The page was not done when it had to be; says why."""


async def watched(work: Coroutine[Any, Any, T], tab: Tab, deadline_s: float) -> T:
    """The result of `work` on `tab`, if it comes before the deadline and the tab's alarm. Raises: Stopped; what `work` raises."""
    task = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {task, tab.alarm}
    try:
        await asyncio.wait(either, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not tab.crashed.is_set():
            return task.result()
    finally:
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # what it says now is of no interest
    raise Stopped(tab.alarm.result() if tab.alarm.done() else f"it was not done in {deadline_s:g} s")


async def put_down(tab: Tab, chromium: Chromium, within_s: float = KILL_S) -> bool:
    """Kill the tab's renderer; its context is dropped later. Whether the browser lives on: if not, its sandbox is destroyed."""
    started = asyncio.get_running_loop().time()
    lives = tab.crashed.is_set()
    if not lives and not tab.flooding:  # the order to kill would wait behind a flood
        killing = asyncio.ensure_future(tab.session.send("Page.crash"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                lives = await tab.crashed.wait()
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    if lives:
        tab.drop()
    else:
        await chromium.end()
    log.info("event=page_stopped browser_lives=%s seconds=%.2f", lives, asyncio.get_running_loop().time() - started)
    return lives
