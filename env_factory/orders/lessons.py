"""Orders of what is written for people to read: tutorials step by step, and documented examples one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from env_factory import sources
from env_factory.candidates import Proposal
from env_factory.lessons import documentation
from env_factory.orders.errand import Errand
from env_factory.synth import examples, tutorial

AT_ONCE = 4


async def tutorials(errand: Errand, lessons: list[sources.Tutorial]) -> dict[str, Any]:
    """Steps of the lessons, taken in turns."""
    provider, images = await errand.worker.provider(), await errand.worker.images()

    async def proposals() -> AsyncGenerator[Proposal, None]:
        """A candidate's number tells its lesson."""
        streams = {n: tutorial.draft(lesson, provider, images, errand.order.seed) for n, lesson in enumerate(lessons)}
        while streams:
            for n, stream in list(streams.items()):
                made = await anext(stream, None)
                if made is None:
                    del streams[n]
                    continue
                yield replace(made, index=made.index * len(lessons) + n)

    return await errand.take(proposals(), {"source": [lesson.source.digest for lesson in lessons]}, at_once=AT_ONCE)


async def documented(errand: Errand, python: str) -> dict[str, Any]:
    """Examples of pages, or of a package's documentation, one book after the other."""
    order, settings = errand.order, errand.ctx.settings
    books = [await asyncio.to_thread(documentation.read, uri, settings, python) for uri in sources.lessons(order.source)]
    provider, images = await errand.worker.provider(), await errand.worker.images()

    async def proposals() -> AsyncGenerator[Proposal, None]:
        """A candidate's number tells its book."""
        for n, book in enumerate(books):
            async for made in examples.draft(book, provider, images, order.seed):
                yield replace(made, index=made.index * len(books) + n)

    key = {"source": [book.tutorial.source.digest for book in books]}
    return await errand.take(proposals(), key, at_once=AT_ONCE, wheels=books[0].wheels)
