"""A made-up archipelago and its handbook: pages that nobody has read before, whose facts hang together.

`world(seed, size)` is a pure function to entities of six kinds, each with a registry code, numbers and one link to an entity of
the next kind, and `World.pages` tells them as long HTML pages: the facts stand in prose between paragraphs, notes of earlier
states and tables that say something else. No fact of an entity stands on another one's page, so who wants it has to open its own.
"""

from __future__ import annotations

import html
import random
from dataclasses import dataclass

from env_factory.templates.browse.pages import Page
from env_factory.templates.words import WORDS

KINDS = ("station", "keeper", "office", "archive", "vessel", "route")
"""In the order of the links; the last one leads to the first."""
LINKS = {
    "station": "keeper", "keeper": "home office", "office": "archive", "archive": "supply vessel", "vessel": "regular route",
    "route": "terminal station",
}  # fmt: skip
"""What the link of a kind is called."""
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ei", "ou")
_CODAS = ("l", "m", "n", "r", "s", "th", "x", "ld", "nk", "rt", "sk")
_VERBS = ("keeps", "repairs", "surveys", "counts", "stores", "lends", "paints", "measures", "records", "replaces", "inspects")
_WHEN = ("in spring", "before the storms", "every other week", "at low tide", "after the census", "by lamplight", "on request")


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing of the archipelago."""

    kind: str
    name: str
    """One word, unlike any other of the collection."""
    code: str
    """Its registry code."""
    number: int
    """Its capacity, 100 to 9999."""
    founded: int
    link: int
    """Index of the entity of the next kind."""
    former: int
    """Index of the one that the link led to before: a note that is no longer true."""
    path: str

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"{self.name} {self.kind}"


@dataclass(frozen=True, slots=True)
class World:
    """Entities by kind, and rosters that list some of them."""

    seed: int
    entities: dict[str, tuple[Entity, ...]]
    rosters: tuple[tuple[str, tuple[Entity, ...]], ...]
    """(title, members of one kind)."""
    withdrawn: dict[str, tuple[int, str]]
    """Name of an entity whose registry code was replaced -> (number of the notice, the code that holds now)."""

    def next(self, entity: Entity, former: bool = False) -> Entity:
        """The entity that the link leads to."""
        kind = KINDS[(KINDS.index(entity.kind) + 1) % len(KINDS)]
        return self.entities[kind][entity.former if former else entity.link]

    def chain(self, start: Entity, hops: int) -> list[Entity]:
        """The start and the entities behind it."""
        chain = [start]
        for _ in range(hops):
            chain.append(self.next(chain[-1]))
        return chain

    def pages(self, page_bytes: int) -> list[Page]:
        """The handbook; each page of an entity has about so many bytes."""
        rng = random.Random(f"handbook/{self.seed}")
        every = [entity for kind in KINDS for entity in self.entities[kind]]
        pages = [Page(entity.path, entity.title, self._page(rng, entity, page_bytes)) for entity in every]
        for number, (title, members) in enumerate(self.rosters):
            rows = "".join(f'<li><a href="{m.path}">{m.name}</a>, {m.kind}</li>' for m in members)
            pages.append(
                Page(f"rosters/{number}.html", title, _html(title, f"<p>{_prose(rng, 3)}</p><ul>{rows}</ul>{_filler(rng, 1500)}"))
            )
        for name, (number, code) in self.withdrawn.items():
            title = f"Notice {number} of the registrar"
            told = f"<p>{_prose(rng, 2)}</p><p>The mark of {name} is void. {code} stands in its place.</p>"
            pages.append(Page(f"notices/{number}.html", title, _html(title, told + _filler(rng, page_bytes // 2))))
        return sorted(pages)

    def _page(self, rng: random.Random, entity: Entity, size: int) -> str:
        link, former = self.next(entity), self.next(entity, former=True)
        said, year = LINKS[entity.kind], entity.founded + rng.randint(5, 40)
        code = f"Its registry code is {entity.code}."
        if entity.name in self.withdrawn:
            code = f"Its registry code was withdrawn; see notice {self.withdrawn[entity.name][0]} of the registrar."
        facts = [
            f"{_prose(rng, 1)} {code} {_prose(rng, 1)}",
            f"{_prose(rng, 1)} Since {year} the {said} of {entity.name} has been {link.name}. {_prose(rng, 1)}",
            f"Until {year} the {said} of {entity.name} was {former.name}; nothing is sent there any more. {_prose(rng, 1)}",
            f"{entity.name} was founded in {entity.founded}. {_prose(rng, 2)}",
            f"{_prose(rng, 2)} The capacity of {entity.name} is {entity.number} crates.",
        ]
        rng.shuffle(facts)
        parts = [f"<p>{html.escape(fact)}</p>" for fact in facts]
        sections = [f"<h2>{rng.choice(WORDS).capitalize()} and {rng.choice(WORDS)}</h2>{part}" for part in parts]
        free = max(0, size - sum(map(len, sections)))
        body = "".join(section + _filler(rng, free // len(sections)) for section in sections)
        return _html(entity.title, f"<p>{_prose(rng, 2)}</p>{body}")


def world(seed: int, size: int) -> World:
    """A world with `size` entities of each kind (at least 6). The same arguments give the same one on every machine."""
    rng = random.Random(f"world/{seed}/{size}")
    names = _names(rng, size * len(KINDS))
    codes = _codes(rng, size * len(KINDS) + size)
    entities: dict[str, tuple[Entity, ...]] = {}
    for kind in KINDS:
        links, formers = rng.sample(range(size), size), []
        for link in links:
            formers.append(rng.choice([other for other in range(size) if other != link]))
        entities[kind] = tuple(
            Entity(
                kind, name := names.pop(), codes.pop(), rng.randint(100, 9999), year, link, former, f"{kind}s/{name.lower()}.html"
            )
            for link, former, year in zip(links, formers, rng.sample(range(1801, 1990), size), strict=True)
        )
    rosters = []
    for kind in KINDS:
        members = tuple(rng.sample(entities[kind], min(size, 10)))
        rosters.append((f"{rng.choice(WORDS).capitalize()} roster of {kind}s", members))
    chosen = [rng.choice(entities[kind]) for kind in KINDS]
    withdrawn = {e.name: (n, codes.pop()) for e, n in zip(chosen, rng.sample(range(100, 999), len(chosen)), strict=True)}
    return World(seed, entities, tuple(rosters), withdrawn)


def _names(rng: random.Random, count: int) -> list[str]:
    """Names of two made-up syllables, none part of another."""
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)) + rng.choice(_CODAS)
        name = name.capitalize()
        if name.lower() not in WORDS and not any(
            name.lower() in other.lower() or other.lower() in name.lower() for other in names
        ):
            names.append(name)
    return names


def _codes(rng: random.Random, count: int) -> list[str]:
    """Registry codes, two letters and four digits: 6,084,000 of them."""
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes[f"{rng.choice('ABCDEFGHJKLMNPQRSTUVWXYZ')}{rng.choice('ABCDEFGHJKLMNPQRSTUVWXYZ')}-{rng.randint(1000, 9999)}"] = (
            None
        )
    return list(codes)


def _prose(rng: random.Random, sentences: int) -> str:
    """Sentences that say nothing."""
    return " ".join(
        f"The {rng.choice(WORDS)} {rng.choice(_VERBS)} the {rng.choice(WORDS)} and the {rng.choice(WORDS)} {rng.choice(_WHEN)}."
        for _ in range(sentences)
    )


def _filler(rng: random.Random, size: int) -> str:
    """Paragraphs and tables of about so many bytes."""
    parts: list[str] = []
    length = 0
    while length < size:
        if rng.random() < 0.25:
            rows = "".join(
                f"<tr><td>{rng.choice(WORDS)}</td><td>{rng.choice(WORDS)}</td><td>{rng.randint(2, 9999)}</td></tr>"
                for _ in range(6)
            )
            parts.append(f"<table>{rows}</table>")
        else:
            parts.append(f"<p>{_prose(rng, rng.randint(3, 7))}</p>")
        length += len(parts[-1])
    return "\n".join(parts)


def _html(title: str, body: str) -> str:
    said = html.escape(title)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{said}</title></head>'
    return f"{head}\n<body><h1>{said}</h1>\n{body}\n</body></html>\n"
