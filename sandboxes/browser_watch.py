"""The watchdog over a tab: no page keeps us longer than its deadline, whatever it does.

Closing a page asks its renderer, which a `while (1)` never lets answer. So the browser process is asked to kill the renderer;
when that, or closing the context, does not happen in time, the browser has been talked into something and its sandbox is
destroyed. Time is the host's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from sandboxes.browser_chromium import Chromium
from sandboxes.browser_page import Tab

log = logging.getLogger(__name__)
T = TypeVar("T")

KILL_S = 0.4
"""What the browser gets for killing a renderer, and again for closing its context. Twice this stays below a second."""


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
        if not task.done():
            task.cancel()
        await asyncio.wait({task}, timeout=KILL_S / 4)
        if task.done() and not task.cancelled():
            task.exception()
    raise Stopped(tab.alarm.result() if tab.alarm.done() else f"it was not done in {deadline_s:g} s")


async def put_down(tab: Tab, chromium: Chromium) -> bool:
    """Kill the tab's renderer and drop its context; whether the browser lives on. Takes less than a second."""
    started = asyncio.get_running_loop().time()
    killing = asyncio.ensure_future(tab.session.send("Page.crash"))
    try:
        async with asyncio.timeout(KILL_S):
            await tab.crashed.wait()
        async with asyncio.timeout(KILL_S):
            await tab.close()
        lives = chromium.alive
    except Exception:  # a time-out, or any of the driver's errors: the browser does not do what it is told
        lives = False
    killing.cancel()
    with contextlib.suppress(BaseException):
        await killing
    if not lives:
        await chromium.close()
    log.info("event=page_stopped browser_lives=%s seconds=%.2f", lives, asyncio.get_running_loop().time() - started)
    return lives
