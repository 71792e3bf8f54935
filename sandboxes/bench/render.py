"""`gymsmith bench render`: pages per second of pooled tabs, against Playwright used as its manual shows.

The peers run the same Chromium in the same sandbox on the same slide and do less with it: a context per page, and a browser per
page, each with `set_content`, boxes of all elements and a screenshot. They take turns, round by round. Then: how many different
screenshots twenty repeats give, and how long after its deadline a page that hangs is gone.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gymsmith.bench import Row
from gymsmith.config import Settings
from sandboxes.browser.result import Document
from sandboxes.browser.service import RenderService

if TYPE_CHECKING:
    from playwright.async_api import Browser

ROUNDS, QUICK_ROUNDS = 15, 5
PAGES_PER_TURN = 4
REPEATS = 20
HANG_DEADLINE_S = 1.0
_SIZE = {"width": 1280, "height": 720}
_BOXES = "() => [...document.querySelectorAll('*')].map(e => e.getBoundingClientRect().toJSON())"


def slide(number: int) -> str:
    """A slide of 40 elements; no two numbers look alike."""
    cards = "".join(
        f'<div class=card style="left:{40 + 300 * (n % 4)}px;top:{180 + 170 * (n // 4)}px"><h2>Card {n}</h2>'
        f"<p>Some words about part {n} of deck {number}.</p></div>"
        for n in range(12)
    )
    return (
        "<!doctype html><style>body{margin:0;font:18px sans-serif;background:#f7f7fb}h1{position:absolute;left:40px;top:30px}"
        ".card{position:absolute;width:270px;height:150px;background:#fff;border:1px solid #ccd;border-radius:8px;padding:0 12px;"
        "box-sizing:border-box}h2{font-size:22px;margin:10px 0}</style>"
        f"<body><h1>Deck {number}</h1><em>subtitle</em>{cards}</body>"
    )


def measure(settings: Settings, quick: bool) -> list[Row]:
    """The rows. Raises: Capacity (no Chromium or no namespaces here)."""
    return asyncio.run(_measure(settings, QUICK_ROUNDS if quick else ROUNDS))


async def _measure(settings: Settings, rounds: int) -> list[Row]:
    service = await RenderService.start(settings.sandboxes_dir, settings.images_dir, chromium=settings.chromium, seats=1)
    try:
        return [*await _speed(service, rounds), await _identity(service), await _hang(service)]
    finally:
        await service.close()


async def _speed(service: RenderService, rounds: int) -> list[Row]:
    shared = await service.browser()
    numbers = iter(range(1 << 30))

    async def pooled() -> None:
        assert (await service.render(Document.of_html(slide(next(numbers))), domain="bench", metrics=False, deadline_s=120)).png

    async def measured() -> None:
        assert (await service.render(Document.of_html(slide(next(numbers))), domain="bench", deadline_s=120)).metrics

    async def context_per_page() -> None:
        await _plainly(shared.browser, slide(next(numbers)))

    async def browser_per_page() -> None:
        own = await service.browser()
        await _plainly(own.browser, slide(next(numbers)))
        await own.close()

    arms: dict[str, Callable[[], Awaitable[None]]] = {
        "pooled": pooled,
        "measured": measured,
        "context": context_per_page,
        "browser": browser_per_page,
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    try:
        for arm in arms.values():
            await arm()
        for turn in range(rounds):
            names = list(arms)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                pages = 1 if name == "browser" else PAGES_PER_TURN
                began = time.perf_counter()
                for _ in range(pages):
                    await arms[name]()
                seconds[name].append((time.perf_counter() - began) / pages)
    finally:
        await shared.close()
    rate = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    return [
        _against("pages, tab reused in one trust domain", rate["pooled"], rate["browser"], "browser per page", 4.0),
        _against("pages, tab reused in one trust domain", rate["pooled"], rate["context"], "context per page", 2.0),
        _against("pages with pixel metrics", rate["measured"], rate["context"], "context per page, without", None),
    ]


def _against(metric: str, ours: float, peer: float, name: str, bar: float | None) -> Row:
    ratio = ours / peer
    return Row(
        metric,
        "1/s",
        round(ours, 2),
        round(peer, 2),
        name,
        round(ratio, 2),
        "" if bar is None else f"ratio >= {bar:g}",
        None if bar is None else ratio >= bar,
    )


async def _plainly(browser: Browser, html: str) -> None:
    context = await browser.new_context(viewport=_SIZE)  # type: ignore[arg-type]
    page = await context.new_page()
    await page.set_content(html)
    await page.evaluate(_BOXES)
    await page.screenshot()
    await context.close()


async def _identity(service: RenderService) -> Row:
    document = Document.of_html(slide(0))
    shots = {(await service.render(document, domain=f"repeat {n % 3}", deadline_s=120)).png_sha256 for n in range(REPEATS)}
    return Row(f"different screenshots in {REPEATS} repeats", "", len(shots), bar="= 1", ok=len(shots) == 1)


async def _hang(service: RenderService) -> Row:
    late = []
    for n in range(5):
        await service.render(Document.of_html("<p>x"), domain=f"hang {n}", metrics=False, deadline_s=120)
        began = time.perf_counter()
        await service.render(Document.of_html("<script>while(1);</script>"), domain=f"hang {n}", deadline_s=HANG_DEADLINE_S)
        late.append(time.perf_counter() - began - HANG_DEADLINE_S)
    worst = max(late)
    return Row("a hung page is gone after its deadline (worst of 5)", "s", round(worst, 3), bar="<= 1", ok=worst <= 1.0)
