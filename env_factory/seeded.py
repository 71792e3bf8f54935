"""Orders whose candidates follow from a seed alone (or from a seed and a package's documentation).

    terminal:TEMPLATE, :THEME, :all or :unseen     programs, judged on data that the agent has not seen
    repair:OPERATOR, :all or :unseen               a service that broke, judged by what it does
    layout:TEMPLATE, layout:all                    web pages, judged as a browser draws them
    browse:FAMILY, browse:all                      questions over a made-up handbook
    pypi:NAME==VERSION with kind browse            questions over the documentation in that sdist

`order` checks what is asked before anything is made and gives the candidates as a stream, as `tasks.generate` takes them. What a
candidate is made of stands in `synth/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple

from env_factory.intake import Proposal
from env_factory.source_kinds.package import read_sdist
from env_factory.synth import browse, cards, layout, repair, terminal
from env_factory.templates.browse.pages import documents
from gymsmith.config import Settings
from gymsmith.errors import Capacity, ConfigError, Rejected, SourceError
from gymsmith.schema import Draft, Source
from sandboxes.worker import Worker

KINDS = ("terminal", "repair", "layout", "browse")
PARAMETRIC_LEVELS = (1, 2, 3)
"""Levels of terminal and repair environments where an order names none."""
TRIES = 4
"""Candidates per wanted environment before an order is given up."""


class Stream(NamedTuple):
    """A stream of candidates and what it follows from."""

    proposals: AsyncGenerator[Proposal, None]
    key: dict[str, Any]
    at_once: int


async def order(
    kind: str, source: str, n: int, seed: int, split: str, levels: Sequence[int], worker: Worker, settings: Settings
) -> Stream:
    """The candidates of an order.

    Raises: ConfigError: an unknown template, family or level, or no browser on this machine. SourceError: no documentation.
    """
    if kind in ("terminal", "repair"):
        room = terminal if kind == "terminal" else repair
        places = room.named(source)
        steps = tuple(levels) or PARAMETRIC_LEVELS

        def placed(index: int) -> Draft:
            name, level = places[index % len(places)], steps[index // len(places) % len(steps)]
            return room.draft(name, level, seed * 1_000_000 + index, split)

        return Stream(
            _stream(n, placed),
            {"source": source, "split": split, "levels": list(steps)}, 4,
        )  # fmt: skip
    if kind == "layout":
        await _drawable(worker)
        names = _names(source, "layout", layout.TEMPLATES)
        return Stream(
            _stream(n, lambda i: layout.draft(names[i % len(names)], seed * 1_000_000 + i, split)),
            {"source": source, "split": split}, 4,
        )  # fmt: skip
    asked = tuple(levels) or tuple(browse.LEVELS)
    if unknown := sorted(set(asked) - set(browse.LEVELS)):
        raise ConfigError(f"expected levels out of {sorted(browse.LEVELS)}, got {unknown}")
    if source.startswith("pypi:"):
        sdist = await asyncio.to_thread(read_sdist, source, source.removeprefix("pypi:"), settings)
        pages = await asyncio.to_thread(documents, sdist.files)
        if len(pages) < cards.LEAST_PAGES:
            raise SourceError(
                f"expected at least {cards.LEAST_PAGES} pages of documentation in {sdist.filename}, got {len(pages)}; "
                "choose a package whose sdist brings its docs"
            )
        about = f"the documentation of {sdist.name} {sdist.version}"

        def carded(index: int) -> Draft:
            level = asked[index % len(asked)]
            return browse.draft(cards.make(pages, about, level, seed * 1_000_000 + index), sdist.source)

        return Stream(_stream(n, carded), {"source": sdist.source.digest, "levels": list(asked)}, 4)
    families = _names(source, "browse", browse.FAMILIES)

    def asking(index: int) -> Draft:
        family, level = families[index % len(families)], asked[index // len(families) % len(asked)]
        number = seed * 1_000_000 + index
        about = Source(uri=f"browse:{family}", kind="parametric", licence="Apache-2.0", meta={"seed": str(number)})
        return browse.draft(browse.make(family, level, number), about)

    return Stream(_stream(n, asking), {"source": source, "levels": list(asked)}, 4)


async def _stream(n: int, make: Callable[[int], Draft]) -> AsyncGenerator[Proposal, None]:
    """Candidates by number; one that its own maker turns down says why."""
    for index in range(TRIES * n):
        try:
            yield Proposal(index, await asyncio.to_thread(make, index))
        except Rejected as why:
            yield Proposal(index, None, why.reason)


def _names(source: str, scheme: str, known: Any) -> list[str]:
    name = source.removeprefix(f"{scheme}:") if source.startswith(f"{scheme}:") else ""
    names = sorted(known) if name == "all" else [name]
    if names[0] not in known:
        raise ConfigError(f"expected {scheme}:all or {scheme}:NAME with a name out of {', '.join(sorted(known))}, got {source!r}")
    return names


async def _drawable(worker: Worker) -> None:
    """A layout order on a machine that cannot draw ends before its first candidate, and not with one rejection each."""
    await worker.provider()
    try:
        await worker.renderer()
    except Capacity as lack:
        raise ConfigError(f"kind layout is judged by a browser, and there is none to be had: {lack}") from lack
