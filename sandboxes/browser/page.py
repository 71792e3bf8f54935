"""One tab: a browser context with one page, which renders documents of one trust domain, one after the other.

What is served is the document's own files, under a made-up origin, and nothing else: each other request is refused and reported.
Scripts of the page run until its time (`browser/js/clock.js`) has moved by SETTLE_MS, then they are switched off; measuring
happens in a JavaScript world of its own, where nothing is as the page has redefined it. Deadlines are kept by `watch.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import mimetypes
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sandboxes.background import begin
from sandboxes.browser import metrics as browser_metrics
from sandboxes.browser.result import Document, Metrics, Refusal

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, CDPSession, Dialog, Page, Route

ORIGIN = "https://page.invalid"
"""`invalid` never resolves (RFC 6761)."""
SETTLE_MS = 1000
"""How far a page's clock moves: time-outs, intervals and animation frames of its first second happen."""
LIMITS = {"nodes": 50_000, "boxes": 2000, "texts": 1000, "lines": 3000, "characters": 500}
FLOOD = 200
"""Refused requests, dialogs or windows of one document at which it is stopped."""
REPORTED = 50
FRAMES = 20
_RUN = "ms => window.__gymsmith_run?.(ms)"
_LOCAL = "Not allowed to load local resource: "
TILES = 64
"""Columns of the grid in which empty areas are found."""
_HEADERS = {
    # a font of its own could show other letters than the text says, or none
    "Content-Security-Policy": "font-src 'none'; object-src 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_STILL = _HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
}
"""Of a document that is text and style alone: no script, picture, frame, font or style sheet of any origin, data: included."""


@lru_cache
def script(name: str) -> str:
    """A file of browser/js/."""
    return (Path(__file__).parent / "js" / name).read_text(encoding="utf-8")


class Unmeasured(Exception):
    """The page has nothing that could be measured; says why."""


class Tab:
    """Belongs to one trust domain for as long as it lives. `alarm` is set when the page must be stopped, and says why."""

    def __init__(self, context: BrowserContext, page: Page, session: CDPSession, frame: str) -> None:
        self.page = page
        self.session = session
        self.alarm: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.flooding = False
        self.crashed = asyncio.Event()
        self.refused: list[Refusal] = []
        self.refused_count = self.dialogs = self.popups = 0
        self._context = context
        self._frame = frame
        self._document: Document | None = None
        self._chores: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, browser: Browser, width: int, height: int) -> Tab:
        """A fresh context with an empty page."""
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=1,
            locale="en-US",
            timezone_id="UTC",
            color_scheme="light",
            reduced_motion="reduce",
            service_workers="block",
            accept_downloads=False,
        )
        await context.add_init_script(script("clock.js"))
        page = await context.new_page()
        session = await context.new_cdp_session(page)
        frame = (await session.send("Page.getFrameTree"))["frameTree"]["frame"]["id"]
        tab = cls(context, page, session, frame)
        await context.route("**/*", tab._serve)
        await session.send("Page.enable")
        await session.send("Log.enable")
        session.on("Page.windowOpen", lambda _: tab._popup())
        session.on("Log.entryAdded", lambda event: tab._logged(event["entry"]["text"]))
        page.on("dialog", tab._dialog)
        page.on("crash", lambda _: tab._crash())
        page.on("websocket", lambda socket: tab._refuse(socket.url, "websocket"))
        return tab

    async def show(self, document: Document) -> None:
        """Load a document and let its first second pass; then its scripts stand still."""
        self._document = document
        self.refused, self.refused_count, self.dialogs, self.popups = [], 0, 0, 0
        if self.page.viewport_size != {"width": document.width, "height": document.height}:
            await self.page.set_viewport_size({"width": document.width, "height": document.height})
        await asyncio.gather(
            self.session.send("Emulation.setScriptExecutionDisabled", {"value": False}),
            self.session.send("Storage.clearDataForOrigin", {"origin": ORIGIN, "storageTypes": "all"}),
        )
        await self.page.goto(f"{ORIGIN}/{document.entry}", wait_until="load", timeout=0)
        await self.page.evaluate(_RUN, SETTLE_MS)
        inner = [frame for frame in self.page.frames[1:FRAMES] if frame.url.startswith((ORIGIN, "about:"))]
        if inner:  # one that is gone, never came or fights the clock stays as it is
            runs = [asyncio.ensure_future(frame.evaluate(_RUN, SETTLE_MS)) for frame in inner]
            await asyncio.wait(runs, timeout=1.0)
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        await self.session.send("Emulation.setScriptExecutionDisabled", {"value": True})

    async def settle(self) -> tuple[dict[str, Any], int]:
        """End animations and look at the document: (what metrics.js saw, the isolated world to go on in)."""
        world = await self.session.send("Page.createIsolatedWorld", {"frameId": self._frame, "worldName": "gymsmith"})
        number = int(world["executionContextId"])
        seen = json.loads(await self._call(number, script("metrics.js"), LIMITS))
        if not seen["url"].startswith(f"{ORIGIN}/"):
            raise Unmeasured(f"the page must stay in its document, it went to {seen['url'][:200]}")
        return seen, number

    async def screenshot(self) -> str:
        """The viewport as base64 PNG."""
        shot = await self.session.send(
            "Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True, "captureBeyondViewport": False}
        )
        return str(shot["data"])

    async def measure(self, shown: str, seen: dict[str, Any], world: int, ours: Page) -> Metrics:
        """The metrics, with the help of a blank page of our own. Spoils the document."""
        bare = await self._only(world, [])
        shots, layers = [shown], browser_metrics.layers(seen["texts"])
        if len(layers) > 1:
            shots += [await self._only(world, layer) for layer in layers]
        texts = browser_metrics.pixel_query(seen["texts"], layers)
        tile = max(4, seen["viewport"][0] // TILES)
        boxes = [row["rect"] for row in seen["boxes"]]
        query = {"shots": shots, "bare": bare, "texts": texts, "boxes": boxes, "tile": tile}
        pixels = await ours.evaluate("query => globalThis.compare(query)", query)
        return await asyncio.to_thread(browser_metrics.measure, seen, pixels)

    async def _only(self, world: int, show: list[int]) -> str:
        """A screenshot with no other text than these."""
        await self._call(world, script("show_text.js"), {"limit": LIMITS["nodes"], "show": show})
        return await self.screenshot()

    def drop(self) -> None:
        """Close the context, some time soon."""
        self._chore(self._context.close())

    async def _call(self, world: int, function: str, argument: Any) -> Any:
        answer = await self.session.send(
            "Runtime.callFunctionOn",
            {
                "functionDeclaration": function,
                "executionContextId": world,
                "arguments": [{"value": argument}],
                "awaitPromise": True,
                "returnByValue": True,
            },
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise Unmeasured(f"it cannot be measured: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    async def _serve(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        document = self._document
        name = unquote(url.path).lstrip("/")
        with contextlib.suppress(Exception):  # the request may be gone with its page
            if document is not None and f"{url.scheme}://{url.netloc}" == ORIGIN and name in document.files:
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                charset = "; charset=utf-8" if kind.startswith("text/") or kind.endswith(("javascript", "json")) else ""
                headers = {**(_STILL if document.still else _HEADERS), "Content-Type": kind + charset}
                await route.fulfill(status=200, headers=headers, body=document.files[name])
                return
            self._refuse(route.request.url, route.request.resource_type)
            if not self.flooding:
                await route.abort("blockedbyclient")

    def _refuse(self, url: str, kind: str) -> None:
        self.refused_count += 1
        if len(self.refused) < REPORTED:
            self.refused.append(Refusal(url=url[:300], kind=kind))
        self._flooded(self.refused_count, "refused requests")

    def _logged(self, text: str) -> None:
        if text.startswith(_LOCAL):  # such a request does not get as far as `_serve`
            self._refuse(text.removeprefix(_LOCAL), "local")

    def _popup(self) -> None:
        self.popups += 1
        self._flooded(self.popups, "windows")

    def _dialog(self, dialog: Dialog) -> None:
        self.dialogs += 1
        self._chore(dialog.dismiss())
        self._flooded(self.dialogs, "dialogs")

    def _crash(self) -> None:
        self.crashed.set()
        if not self.alarm.done():
            self.alarm.set_result("its renderer died")

    def _flooded(self, count: int, what: str) -> None:
        if count >= FLOOD and not self.alarm.done():
            self.flooding = True
            self.alarm.set_result(f"{FLOOD} {what}")

    def _chore(self, work: Any) -> None:
        async def do() -> None:
            with contextlib.suppress(Exception):  # what it was about is gone already
                await work

        task = begin(do(), "a page's chore")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def blank_page(browser: Browser) -> Page:
    """A page of our own, which no document ever reaches, ready to compare pixels."""
    page = await (await browser.new_context()).new_page()
    await page.evaluate(f"() => {{ globalThis.compare = {script('pixels.js')} }}")  # once, so that it gets compiled for speed
    return page


def decoded(shot: str) -> bytes:
    """The PNG of a screenshot."""
    return base64.b64decode(shot)
