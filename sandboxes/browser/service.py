"""Rendering of untrusted pages: screenshots that repeat to the byte, and metrics for rewards.

`RenderService.render` is the door. Behind it stand up to one browser per core, each in a sandbox of its own without a network
(`chromium.py`), each doing one page at a time. A tab is used again inside one trust domain (a task, a rollout group) and
never across two; a browser is replaced after PAGES pages or when it has grown beyond GROWN_BYTES. Whatever a page does comes back
as `Rendered`; only our own failures are exceptions.

It is no crawler: a document brings its files along, and everything else that it asks for is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import Capacity, PolicyRefused, SandboxError, SandboxGone
from sandboxes.background import begin
from sandboxes.base import MIB
from sandboxes.browser.chromium import BrowserImages, Chromium, find, fonts
from sandboxes.browser.page import Tab, Unmeasured, blank_page, decoded
from sandboxes.browser.result import Document, Metrics, Rendered
from sandboxes.browser.watch import Stopped, put_down, watched
from sandboxes.reaper import OWNERS

if TYPE_CHECKING:
    from playwright.async_api import Page, Playwright

    from sandboxes.namespace import NamespaceProvider

log = logging.getLogger(__name__)

PAGES = 500
GROWN_BYTES = 1200 * MIB
WEIGHED_EVERY = 20
DOMAINS = 4
"""Trust domains whose tabs one browser keeps; the one that was used longest ago goes first."""

LOST = (
    "pages are not confined: a page that breaks out of the browser is this user, with its files and its network, and neither its "
    "memory nor its processes are limited"
)


@dataclass(slots=True, eq=False)
class Seat:
    """One browser and what it holds."""

    chromium: Chromium
    ours: Page
    """A blank page where pixels are compared."""
    tabs: OrderedDict[str, Tab] = field(default_factory=OrderedDict)
    pages: int = 0


class RenderService:
    """Renders documents. Use `start`; belongs to the event loop that started it."""

    def __init__(
        self, playwright: Playwright, program: str, folder: Path, provider: NamespaceProvider | None, seats: int
    ) -> None:
        self.seats = seats
        self.isolation = "namespace" if provider is not None else "none"
        self.notes = provider.capabilities.notes if provider is not None else (LOST,)
        """What this machine does not guarantee."""
        self.started = 0
        """Browsers started so far."""
        self._playwright = playwright
        self._program = program
        self._fonts = fonts()[1]
        self._folder = folder
        self._provider = provider
        self._turn = asyncio.Semaphore(seats)
        self._idle: list[Seat] = []
        self._busy: set[Seat] = set()
        self._starting = 0
        self._farewells: set[asyncio.Task[None]] = set()
        self._closed = False
        self._version = ""

    @classmethod
    async def start(
        cls, state_dir: Path, images_dir: Path, *, chromium: str = "", seats: int = 0, unconfined: bool = False
    ) -> RenderService:
        """A service; no browser runs before the first page.

        `chromium`: its program file, "" to look for one. `seats`: browsers at once, 0 for one per core. `unconfined`: do without
        sandboxes, for pages that are trusted; `notes` says what is lost.
        Raises: Capacity (no Playwright, Chromium or fonts, or no namespaces; the message says how to get them).
        """
        if importlib.util.find_spec("playwright") is None:
            raise Capacity("rendering needs the playwright package; pip install 'gymsmith[browser]'")
        program = find(chromium)
        fonts()
        provider = None if unconfined else await _provider(state_dir, images_dir, program)
        if provider is None:
            folder = Path(tempfile.mkdtemp(prefix="gymsmith-render."))
        else:  # what a killed worker leaves is swept with the rest of its provider's
            folder = state_dir.absolute() / OWNERS / provider.owner / "browsers"
            folder.mkdir()
        try:
            playwright = await _driver()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if provider is not None:
                await provider.close()
            raise
        return cls(playwright, program, folder, provider, seats or max(1, os.cpu_count() or 1))

    async def render(self, document: Document, *, domain: str, deadline_s: float = 10.0, metrics: bool = True) -> Rendered:
        """How a document looks.

        `domain`: who is trusted with what this page leaves in its tab; pages of different domains never share one.
        `deadline_s`: from when a browser takes it up; a page that is not done then is stopped within another second.
        Raises: PolicyRefused (deadline_s), SandboxGone (the service is closed), Capacity (no browser starts), SandboxError.
        """
        if not 0.05 <= deadline_s <= 600:
            raise PolicyRefused(f"deadline_s must be between 0.05 and 600, got {deadline_s}")
        for last in (False, True):
            async with self._turn:
                if self._closed:
                    raise SandboxGone("the render service is closed; start another one")
                seat = await self._take(domain)
                try:
                    return await self._render(seat, document, domain, deadline_s, metrics)
                except SandboxError as error:
                    if last and isinstance(error, SandboxGone):
                        return self._rendered("crashed", time.monotonic(), cause=f"its browser died twice: {error}")
                    if last:
                        raise
                    log.warning("event=browser_lost error=%r", str(error))
                finally:
                    self._busy.discard(seat)
                    await self._give_back(seat)
        raise AssertionError("the loop above returns or raises")

    async def _render(self, seat: Seat, document: Document, domain: str, deadline_s: float, metrics: bool) -> Rendered:
        from playwright.async_api import Error

        seat.pages += 1
        tab = seat.tabs.pop(domain, None)
        try:
            async with asyncio.timeout(deadline_s + 5.0):  # making a tab is our business, not the page's
                tab = tab or await Tab.open(seat.chromium.browser, document.width, document.height)
                while len(seat.tabs) >= DOMAINS:
                    seat.tabs.popitem(last=False)[1].drop()
        except (TimeoutError, Error) as error:
            await seat.chromium.end()
            raise SandboxError(f"a browser must make a tab, it did not: {str(error).splitlines()[:1]}") from error
        stage: list[str] = []
        began = time.monotonic()
        try:
            png, measured = await watched(_work(tab, document, seat.ours if metrics else None, stage), tab, deadline_s)
        except Stopped as why:
            if stage[-1:] == ["pixels"]:  # our own page is at work: it goes too
                await seat.chromium.end()
            elif not seat.chromium.alive:
                raise SandboxGone("the browser ended") from why
            else:
                await put_down(tab, seat.chromium)
            status = "crashed" if str(why) == "its renderer died" else "stopped"
            return self._rendered(status, began, tab, cause=str(why))
        except (Error, Unmeasured) as error:
            # a browser that still does as it is told was not the reason
            if not seat.chromium.alive or not await put_down(tab, seat.chromium, 2.0):
                raise SandboxGone(f"the browser ended: {str(error).splitlines()[:1]}") from error
            return self._rendered("failed", began, tab, cause=str(error).splitlines()[0][:500])
        except BaseException:
            await seat.chromium.end()
            raise
        seat.tabs[domain] = tab
        return self._rendered("ok", began, tab, png=png, metrics=measured)

    def _rendered(self, status: Any, began: float, tab: Tab | None = None, *, png: bytes = b"", **more: Any) -> Rendered:
        return Rendered(
            status=status,
            png=png,
            png_sha256=hashlib.sha256(png).hexdigest() if png else "",
            refused=tuple(sorted(tab.refused, key=lambda refusal: (refusal.url, refusal.kind))) if tab else (),
            refused_count=tab.refused_count if tab else 0,
            dialogs=tab.dialogs if tab else 0,
            popups=tab.popups if tab else 0,
            isolation=self.isolation,  # type: ignore[arg-type]
            renderer=f"{self._version} fonts {self._fonts}",
            seconds=round(time.monotonic() - began, 4),
            **more,
        )

    async def _take(self, domain: str) -> Seat:
        """A browser that is idle, best one that knows the domain; else a fresh one."""
        for seat in [seat for seat in self._idle if not seat.chromium.alive]:
            self._idle.remove(seat)
            await self._dismiss(seat)
        known = next((seat for seat in self._idle if domain in seat.tabs), None)
        if known is None and self._idle and len(self._idle) + len(self._busy) + self._starting >= self.seats:
            known = self._idle[0]
        if known is not None:
            self._idle.remove(known)
            self._busy.add(known)
            return known
        self._starting += 1
        try:
            seat = await self._seat()
        finally:
            self._starting -= 1
        self._busy.add(seat)
        return seat

    async def _seat(self) -> Seat:
        from playwright.async_api import Error

        chromium = await self.browser()
        self._version = f"Chromium {chromium.browser.version}"
        try:
            return Seat(chromium, await blank_page(chromium.browser))
        except BaseException as error:
            await chromium.close()
            if isinstance(error, Error):
                raise Capacity(f"a browser must make a page, it did not: {str(error).splitlines()[:1]}") from error
            raise

    async def _give_back(self, seat: Seat) -> None:
        """Keep a browser for the next page, unless it is dead, old, or has grown."""
        spent = self._closed or not seat.chromium.alive or seat.pages >= PAGES
        if not spent and seat.pages % WEIGHED_EVERY == 0:
            try:
                spent = await seat.chromium.private_bytes() > GROWN_BYTES
            except SandboxError:
                spent = True
        if spent:
            await self._dismiss(seat)
        else:
            self._idle.append(seat)

    async def _dismiss(self, seat: Seat) -> None:
        await seat.chromium.end()
        task = begin(seat.chromium.close(), "end of a browser")
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def browser(self) -> Chromium:
        """A browser of the caller's own, confined like the others; the caller closes it. Raises: Capacity."""
        for driver in ("the one we have", "another one"):
            try:
                chromium = await Chromium.start(self._playwright, self._program, self._folder, self._provider)
                self.started += 1
                return chromium
            except Capacity:
                if driver == "another one" or self._busy or self._idle:
                    raise
                log.warning("event=driver_restarted")  # nothing is left that the old one serves, if it lives at all
                await _stopped(self._playwright)
                self._playwright = await _driver()
        raise AssertionError("the loop above returns or raises")

    async def close(self) -> None:
        """End every browser. The service cannot be used afterwards."""
        self._closed = True
        ends = (*(seat.chromium.close() for seat in (*self._idle, *self._busy)), *self._farewells)
        for end in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(end, BaseException):
                log.warning("event=browser_not_ended error=%r", end)
        self._idle.clear()
        if self._provider is not None:
            await self._provider.close()
        await _stopped(self._playwright)
        shutil.rmtree(self._folder, ignore_errors=True)


async def _driver() -> Playwright:
    from playwright.async_api import async_playwright

    return await async_playwright().start()


async def _stopped(playwright: Playwright) -> None:
    with contextlib.suppress(Exception):  # it may have been killed
        async with asyncio.timeout(10.0):
            await playwright.stop()


async def _work(tab: Tab, document: Document, ours: Page | None, stage: list[str]) -> tuple[bytes, Metrics | None]:
    await tab.show(document)
    seen, world = await tab.settle()
    shown = await tab.screenshot()
    if ours is None:
        return decoded(shown), None
    stage.append("pixels")
    return decoded(shown), await tab.measure(shown, seen, world, ours)


async def _provider(state_dir: Path, images_dir: Path, program: str) -> NamespaceProvider:
    from sandboxes.image.images import ImageStore
    from sandboxes.namespace import NamespaceProvider

    base = await asyncio.to_thread(ImageStore(images_dir).base)
    try:
        return await NamespaceProvider.start(BrowserImages(base, program), state_dir)
    except Capacity as error:
        raise Capacity(f"rendering needs namespaces to confine pages: {error}") from error
