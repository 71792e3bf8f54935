"""Orders whose candidates follow from a seed alone (or from a seed and a package's documentation).

    shell:FAMILY, shell:all or shell:unseen        small tasks that force looking
    terminal:TEMPLATE, :THEME, :all or :unseen     programs, judged on data that the agent has not seen
    repair:OPERATOR, :all or :unseen               a service that broke, judged by what it does
    layout:TEMPLATE, layout:all                    web pages, judged as a browser draws them
    browse:FAMILY, browse:all                      questions over a made-up handbook
    pypi:NAME==VERSION with kind browse            questions over the documentation in that sdist

What is asked is checked before anything is made. What a candidate is made of stands in `synth/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from env_factory.candidates import Proposal
from env_factory.orders.errand import Errand
from env_factory.source_kinds.package import read_sdist
from env_factory.synth import browse, cards, layout, repair, shell, terminal
from env_factory.templates.browse.pages import documents
from gymsmith.errors import Capacity, ConfigError, Rejected, SourceError
from gymsmith.schema import Draft, Source
from sandboxes.worker import Worker

KINDS = ("shell", "terminal", "repair", "layout", "browse")
LEVELS = (1, 2, 3)
"""Of shell, terminal and repair environments where an order names none."""
AT_ONCE = 4
SHELLS_AT_ONCE = 16
"""Candidates that are proved at the same time; a shell task is a fraction of a second."""
TRIES = 4
"""Candidates per wanted environment before an order is given up."""
Placed = Callable[[str, int, int, str], Draft]
"""(template, level, seed, split) -> draft."""
PLACED: dict[str, tuple[Callable[[str], list[str]], Placed]] = {
    "shell": (shell.named, lambda *place: shell.draft(shell.make(*place))),
    "terminal": (terminal.named, terminal.draft),
    "repair": (repair.named, repair.draft),
}
"""Kinds whose candidates have four coordinates: templates that a source stands for, and the draft of one."""


async def carry_out(errand: Errand) -> dict[str, Any]:
    """Candidates of KINDS, settled.

    Raises: ConfigError: an unknown template, family or level, or no browser on this machine. SourceError: no documentation.
    """
    order = errand.order
    if order.kind == "browse":
        return await _browse(errand)
    if order.kind == "layout":
        await _drawable(errand.worker)
        names = _names(order.source, "layout", layout.TEMPLATES)

        def drawn(index: int) -> Draft:
            return layout.draft(names[index % len(names)], order.seed * 1_000_000 + index, order.split)

        return await errand.take(_stream(order.n, drawn), {"source": order.source, "split": order.split}, at_once=AT_ONCE)
    named, draft = PLACED[order.kind]
    places, levels = named(order.source), order.levels or LEVELS

    def placed(index: int) -> Draft:
        name, level = places[index % len(places)], levels[index // len(places) % len(levels)]
        return draft(name, level, order.seed * 1_000_000 + index, order.split)

    key = {"source": order.source, "split": order.split, "levels": list(levels)}
    return await errand.take(_stream(order.n, placed), key, at_once=SHELLS_AT_ONCE if order.kind == "shell" else AT_ONCE)


async def _browse(errand: Errand) -> dict[str, Any]:
    order = errand.order
    levels = order.levels or tuple(browse.LEVELS)
    if unknown := sorted(set(levels) - set(browse.LEVELS)):
        raise ConfigError(f"expected levels out of {sorted(browse.LEVELS)}, got {unknown}")
    if order.source.startswith("pypi:"):
        name = order.source.removeprefix("pypi:")
        sdist = await asyncio.to_thread(read_sdist, order.source, name, errand.ctx.settings)
        pages = await asyncio.to_thread(documents, sdist.files)
        if len(pages) < cards.LEAST_PAGES:
            raise SourceError(
                f"expected at least {cards.LEAST_PAGES} pages of documentation in {sdist.filename}, got {len(pages)}; "
                "choose a package whose sdist brings its docs"
            )
        about = f"the documentation of {sdist.name} {sdist.version}"

        def carded(index: int) -> Draft:
            level = levels[index % len(levels)]
            return browse.draft(cards.make(pages, about, level, order.seed * 1_000_000 + index), sdist.source)

        key = {"source": sdist.source.digest, "levels": list(levels)}
        return await errand.take(_stream(order.n, carded), key, at_once=AT_ONCE)
    families = _names(order.source, "browse", browse.FAMILIES)

    def asking(index: int) -> Draft:
        family, level = families[index % len(families)], levels[index // len(families) % len(levels)]
        number = order.seed * 1_000_000 + index
        about = Source(uri=f"browse:{family}", kind="parametric", licence="Apache-2.0", meta={"seed": str(number)})
        return browse.draft(browse.make(family, level, number), about)

    return await errand.take(_stream(order.n, asking), {"source": order.source, "levels": list(levels)}, at_once=AT_ONCE)


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
