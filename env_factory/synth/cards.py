"""Questions over real documentation: the pages of a package, each with a reading-room card that nobody has read before.

What real documentation says may be remembered by a model, or guessed. So a card is put between two paragraphs of each page: a
copy code, the title of another page, and one that is no longer true. The question begins with a sentence of the documentation
itself, to be searched for, and follows the cards from page to page. Pages are as long as they are; that makes episodes long.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Sequence

from env_factory.synth.browse import LEVELS, Question
from env_factory.templates.browse.pages import Page, pack
from env_factory.templates.browse.tools import Library, plain
from gymsmith.errors import Rejected, SourceError

FAMILY = "cards"
LEAST_PAGES = 8
MAX_BYTES = 8_000_000
"""Of the pages of one collection, before they are compressed; a larger documentation gives a part, drawn by the seed."""
_BLOCK_END = re.compile(r"</(?:p|pre|ul|table|div)>", re.IGNORECASE)
_PARAGRAPH = re.compile(r"<p\b[^>]*>(.*?)</p>", re.DOTALL | re.IGNORECASE)
_TRIES = 60


def make(pages: Sequence[Page], about: str, level: int, seed: int) -> Question:
    """A question about these pages; the same arguments give the same one on every machine.

    Raises: SourceError: too few pages. Rejected: no page of this draw says something that the search finds it by.
    """
    rng = random.Random(f"cards/{level}/{seed}")
    hops = LEVELS[level][0]
    chosen = _part(pages, rng)
    if len(chosen) < max(LEAST_PAGES, hops + 3):
        raise SourceError(
            f"expected at least {max(LEAST_PAGES, hops + 3)} pages of documentation, got {len(chosen)}; choose another package"
        )
    order = rng.sample(range(len(chosen)), len(chosen))
    codes = rng.sample(range(1000, 10_000), len(chosen))
    letters = [rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") + rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in chosen]
    code = {order[i]: f"{letters[i]}-{codes[i]}" for i in range(len(order))}
    follows = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    former = {page: rng.choice([other for other in order if other not in (page, follows[page])]) for page in order}
    carded = [_with_card(page, rng, code[i], chosen[follows[i]].title, chosen[former[i]].title) for i, page in enumerate(chosen)]
    collection = pack(carded)
    library = Library(collection)
    found = [page.path in library.rank(page.title) for page in carded]
    for start in rng.sample(order, min(len(order), _TRIES)):
        path = [start]
        for _ in range(hops):
            path.append(follows[path[-1]])
        said = _sentence(carded[start], library, rng)
        if said and all(found[page] for page in path[1:]):
            break
    else:
        raise Rejected("unreachable", f"no chain of {hops} cards whose pages are found by their titles")
    looked = [(said, carded[start].path), *((carded[page].title, carded[page].path) for page in path[1:])]
    text = (
        f'One page of this documentation says: "{said}" Each page has a reading-room card that names the page read with it.'
        f" Begin at that page and follow the cards {hops} times. What is the copy code on the card of the page where you end?"
    )
    near = (code[path[-2]], code[start], code[former[path[-2]]])
    return Question(
        FAMILY, level, seed, text, code[path[-1]], tuple(looked), (code[path[-1]],), near, about, len(carded), collection
    )


def _part(pages: Sequence[Page], rng: random.Random) -> list[Page]:
    """As many pages as fit into MAX_BYTES, in their own order."""
    total, kept = 0, set()
    for number in rng.sample(range(len(pages)), len(pages)):
        total += len(pages[number].markup.encode())
        if total > MAX_BYTES:
            break
        kept.add(number)
    return [page for number, page in enumerate(pages) if number in kept]


def _with_card(page: Page, rng: random.Random, code: str, title: str, former: str) -> Page:
    """The page with its card behind one of its blocks."""
    ends = [match.end() for match in _BLOCK_END.finditer(page.markup)]
    place = rng.choice(ends) if ends else len(page.markup)
    told = [
        f"<p>Reading-room card, copy {code}.</p>",
        f"<p>This copy is read with the page called &ldquo;{html.escape(title)}&rdquo; now.</p>",
        f"<p>Before that it was read with the page called &ldquo;{html.escape(former)}&rdquo;.</p>",
    ]
    rng.shuffle(told)
    return page._replace(markup=f"{page.markup[:place]}\n<aside>{''.join(told)}</aside>\n{page.markup[place:]}")


def _sentence(page: Page, library: Library, rng: random.Random) -> str:
    """A sentence of the page by which a search finds it first; empty when there is none."""
    sentences = [
        said
        for paragraph in _PARAGRAPH.findall(page.markup)
        for said in re.split(r"(?<=[.!?])\s+", plain(paragraph))
        if 8 <= len(said.split()) <= 24 and "reading-room" not in said.lower() and '"' not in said
    ]
    for said in rng.sample(sentences, min(len(sentences), 8)):
        if library.rank(said)[:1] == [page.path]:
            return said
    return ""
