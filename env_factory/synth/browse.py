"""Search-and-browse environments: a question whose answer stands several look-ups away in an offline collection of HTML pages.

The agent has four declared tools (`templates/browse/tools.py`), which are programs of the environment: search, open, find, answer. They
return whole HTML pages, so an episode of level 3 reads beyond 100,000 tokens. `make(family, level, seed)` samples a question over
a made-up handbook (`templates/browse/world.py`), `cards.py` one over the documentation of a real package; `draft` wraps either up.
The oracle is the sequence of look-ups. A question that its own words, or the first page they lead to, would answer becomes no draft.
"""

# ruff: noqa: E501 - questions, scripts and tables are easier to read in one line

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from env_factory.posix_tests import HARBOR
from env_factory.templates.browse.pages import pack
from env_factory.templates.browse.tools import Library
from env_factory.templates.browse.world import KINDS, LINKS, Entity, World, world
from gymsmith.errors import ConfigError, Rejected
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec

TOOLS = ("search", "open", "find", "answer")
TOOL = ToolSpec(name="programs", allow=TOOLS, timeout_s=20.0, max_output_bytes=1 << 20)
LEVELS = {1: (3, 6_000), 2: (5, 14_000), 3: (9, 48_000)}
"""Level -> (hops, bytes of a page)."""
SIZE = 10
"""Entities of each kind."""
SHARED = 10
"""So many neighbouring seeds ask about one collection, so that its layer is made once."""
VALUE = r"[A-Z]{2}-[0-9]{4}|[0-9]{3,6}"
"""What answers look like."""
_HOME = "/opt/tools"
_ANSWER = "/work/answer.txt"
_TEST = f"""#!/bin/sh
plain() {{ head -c 200 "$1" | tr 'a-z\\n' 'A-Z ' | tr -s ' ' | sed 's/[. ]*$//; s/^ *//'; }}
if [ -f {_ANSWER} ] && [ ! -L {_ANSWER} ] && [ "$(plain {_ANSWER})" = "$(plain /tests/answer.txt)" ]; then echo PASS answer
else echo FAIL answer; bad=1; fi
{HARBOR}
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a collection."""

    family: str
    level: int
    seed: int
    text: str
    answer: str
    hops: tuple[tuple[str, str], ...]
    """(what to search for, the page to open then), in order."""
    hidden: tuple[str, ...]
    """Names and values that have to be looked up."""
    near: tuple[str, ...]
    """Answers of those who stop early or follow a note that is no longer true."""
    about: str
    """What the collection is."""
    pages: int
    collection: bytes


def chain(told: World, rng: random.Random, hops: int) -> tuple[str, str, list[Entity], tuple[str, ...]]:
    """From one entity to the next; the registry code of the last."""
    path = _path(told, rng, hops, lambda last: last.name not in told.withdrawn)
    text = f"{_walk(path)} What is the registry code of the {path[-1].kind} where this ends?"
    return text, path[-1].code, path, (path[-2].code, path[0].code, told.next(path[-2], former=True).code)


def notice(told: World, rng: random.Random, hops: int) -> tuple[str, str, list[Entity], tuple[str, ...]]:
    """The same, but the last one's code was replaced by a notice."""
    path = _path(told, rng, hops - 1, lambda last: last.name in told.withdrawn)
    text = f"{_walk(path)} Which registry code of the {path[-1].kind} where this ends is valid now?"
    return text, told.withdrawn[path[-1].name][1], path, (path[-1].code, path[-2].code, told.next(path[-2], former=True).code)


def total(told: World, rng: random.Random, hops: int) -> tuple[str, str, list[Entity], tuple[str, ...]]:
    """The capacities of all on the way, added up."""
    path = _path(told, rng, hops, lambda last: True)
    text = f"{_walk(path)} What is the capacity of all {len(path)} of them together, in crates, the first and the last included?"
    numbers = [each.number for each in path]
    return text, str(sum(numbers)), path, (str(sum(numbers[:-1])), str(sum(numbers[1:])), str(numbers[-1]))


def pair(told: World, rng: random.Random, hops: int) -> tuple[str, str, list[Entity], tuple[str, ...]]:
    """Two chains; the codes of both ends."""
    one = _path(told, rng, (hops + 1) // 2, lambda last: last.name not in told.withdrawn)
    other = _path(told, rng, hops // 2 + 1, lambda last: last.name not in told.withdrawn and last not in one)
    text = f"{_walk(one)} {_walk(other)} Give the registry codes of the {one[-1].kind} and of the {other[-1].kind} where these end, in this order."
    return (
        text,
        f"{one[-1].code} {other[-1].code}",
        [*one, *other],
        (f"{other[-1].code} {one[-1].code}", one[-1].code, other[-1].code),
    )


def roster(told: World, rng: random.Random, hops: int) -> tuple[str, str, list[Entity], tuple[str, ...]]:
    """Of those on a list, the two that were founded last."""
    title, members = told.rosters[rng.randrange(len(told.rosters))]
    some = members[: max(6, hops + 1)]
    late = sorted(some, key=lambda each: each.founded)
    names = "all of them" if len(some) == len(members) else f"the first {len(some)}"
    text = f'Take the page "{title}" and of the {some[0].kind}s that it lists {names}. What do the two of these that were founded last hold together, in crates?'
    return (
        text,
        str(late[-1].number + late[-2].number),
        list(some),
        (str(late[-1].number), str(late[0].number + late[1].number), str(late[-2].number)),
    )


Family = Callable[[World, random.Random, int], tuple[str, str, list[Entity], tuple[str, ...]]]
FAMILIES: dict[str, Family] = {family.__name__: family for family in (chain, notice, total, pair, roster)}


def make(family: str, level: int, seed: int) -> Question:
    """The question of these coordinates; the same arguments give the same one on every machine.

    Raises: ConfigError: unknown family or level.
    """
    if family not in FAMILIES:
        raise ConfigError(f"expected a browse family out of {', '.join(sorted(FAMILIES))}, got {family!r}")
    if level not in LEVELS:
        raise ConfigError(f"expected a level out of {sorted(LEVELS)}, got {level}; level 3 reads more than 100,000 tokens")
    hops, size = LEVELS[level]
    told, pages, collection = _handbook(seed // SHARED, size)
    text, answer, path, near = FAMILIES[family](told, random.Random(f"browse/{family}/{level}/{seed}"), hops)
    looked = [(entity.title, entity.path) for entity in path]
    if family == "roster":
        index = next(i for i, (title, members) in enumerate(told.rosters) if path[0] in members and title in text)
        looked.insert(0, (told.rosters[index][0], f"rosters/{index}.html"))
    if family == "notice":
        number = told.withdrawn[path[-1].name][0]
        looked.append((f"notice {number} of the registrar", f"notices/{number}.html"))
    shown = [entity.name for entity in path if not re.search(rf"\b{entity.name}\b", text)]
    values = [value for value in answer.split() if family not in ("total", "roster")]
    about = "the handbook of an archipelago"
    return Question(
        family, level, seed, text, answer, tuple(looked), tuple(dict.fromkeys([*shown, *values])), near, about, pages, collection
    )


@lru_cache(maxsize=4)
def _handbook(seed: int, page_bytes: int) -> tuple[World, int, bytes]:
    told = world(seed, SIZE)
    pages = told.pages(page_bytes)
    return told, len(pages), pack(pages)


def _path(told: World, rng: random.Random, hops: int, fits: Callable[[Entity], bool]) -> list[Entity]:
    """A chain without repetition whose end fits; starts are tried in a random order.

    Raises: Rejected: this world has none.
    """
    starts = [entity for kind in KINDS for entity in told.entities[kind]]
    rng.shuffle(starts)
    for start in starts:
        path = told.chain(start, hops)
        if len({entity.name for entity in path}) == len(path) and fits(path[-1]):
            return path
    raise Rejected("no-chain", f"no chain of {hops} hops without repetition in world {told.seed}")


def _walk(path: list[Entity]) -> str:
    steps = [f"its {LINKS[entity.kind]}" for entity in path[:-1]]
    return f"Begin at {path[0].title}, go on to {', then to '.join(steps)} (as they are now)."


def instruction(question: Question) -> str:
    """What the agent reads."""
    return (
        f"Answer a question about {question.about}: {question.pages} HTML pages, which can be read with these tools alone, one call to an action:\n\n"
        "    search WORDS        the pages that fit best\n    open PAGE           a whole page, by its path\n"
        "    find PAGE WORDS     the passages of a page that hold all of the words\n    answer TEXT         gives the answer; the last one counts\n\n"
        f"{question.text}\n\nAnswer with the value alone, then exit.\n"
    )  # fmt: skip


def draft(question: Question, source: Source) -> Draft:
    """The question as a draft of the factory.

    Raises: Rejected: unreachable (a page that the oracle opens is not among the results of its search), first-page (the answer
    stands where the question's own words lead at once).
    """
    library = Library(question.collection)
    for words, path in question.hops:
        if path not in library.rank(words):
            raise Rejected("unreachable", f"{path} is not among the results for {words!r}")
    if any(value in page for value in question.answer.split() for page in first_pages(library, question)):
        raise Rejected("first-page", "the answer stands on the first page that the question leads to")
    found = [line for words, path in question.hops for line in (f"search {shlex.quote(words)}", f"open {path}")]
    direct = [
        line
        for words, path in question.hops
        for line in (f"search {shlex.quote(words.split()[0])}", f"find {path} {shlex.quote(words.split()[0])}")
    ]
    name = f"browse-{question.family}-{question.level}-{question.seed}"
    files = {
        "environment/Dockerfile": f"FROM gymsmith/host\nCOPY tools/ {_HOME}/\nWORKDIR /work\nRUN chown 1000:1000 /work\n".encode(),
        "environment/tools/collection.zip": question.collection,
        "environment/tools/browse.py": resources.files("env_factory.templates.browse").joinpath("tools.py").read_bytes(),
        "tests/test.sh": _TEST.encode(), "tests/answer.txt": f"{question.answer}\n".encode(),
        "solution/solve.sh": _script([*found, f"answer {question.answer}"]).encode(),
    }  # fmt: skip
    for tool in TOOLS:
        files[f"environment/tools/{tool}"] = (
            f'#!/bin/sh\nexec python3 -I {_HOME}/browse.py {_HOME}/collection.zip {tool} "$@"\n'.encode()
        )
    return Draft(
        source=source,
        spec=TaskSpec(
            name=f"gymsmith/{name}",
            kind="browse",
            description=f"Browse family {question.family}, level {question.level}: {len(question.hops)} pages to open",
            keywords=("browse", "search", question.family),
            labels={"family": question.family, "level": str(question.level), "seed": str(question.seed), "hops": str(len(question.hops))},
            tool=TOOL, max_turns=3 * len(found) + 6, artifacts=(_ANSWER,), expected=("answer",), hidden=question.hidden, memory_mb=256, pids=32,
        ),
        instruction=instruction(question),
        files=files,
        alternatives=(_script([*direct, "answer 'not yet sure'", f"answer {question.answer.lower()}"]),),
        cheats=tuple(_cheats(question)),
        executable=frozenset(("tests/test.sh", "solution/solve.sh", *(f"environment/tools/{tool}" for tool in TOOLS))),
    )  # fmt: skip


def first_pages(library: Library, question: Question) -> list[str]:
    """What the question's own words lead to at once: the page of results, and the first page on it."""
    best = library.rank(question.text)[:1]
    return [library.search(question.text), *(library.open(path) for path in best)]


def _script(lines: list[str]) -> str:
    return "\n".join(["#!/bin/sh", f"PATH={_HOME}:$PATH", *lines, ""])


def _cheats(question: Question) -> list[tuple[str, str]]:
    """Answers without the look-ups: what stands near, what the first page says, what fits the pattern."""
    rng = random.Random(f"cheats/{question.seed}")
    guess = (
        f"{rng.choice('ABCDEFGH')}{rng.choice('JKLMNPQR')}-{rng.randint(1000, 9999)}"
        if "-" in question.answer
        else str(rng.randint(1000, 40000))
    )
    asked = shlex.quote(question.text)
    first = f"page=$(search {asked} | grep -o 'href=\"[^\"]*\"' | head -n 1 | cut -d '\"' -f 2)"
    values = f'values=$(open "$page" | grep -oE {shlex.quote(VALUE)})'
    wrong = [value for value in dict.fromkeys(question.near) if value.upper() != question.answer.upper()]
    return [
        ("closed-book", _script([f"answer {guess}"])),
        ("first-page-first-value", _script([first, values, 'answer "$(echo "$values" | head -n 1)"'])),
        ("first-page-last-value", _script([first, values, 'answer "$(echo "$values" | tail -n 1)"'])),
        ("first-page-every-value", _script([first, values, "answer $values"])),
        ("results-every-value", _script([f"answer $(search {asked} | grep -oE {shlex.quote(VALUE)})"])),
        ("pattern", _script(["answer '*'", f"printf '[A-Z0-9 -]*\\n' > {_ANSWER}"])),
        ("tests-by-link", _script([f"rm -f {_ANSWER}", f"ln -s /tests/answer.txt {_ANSWER}"])),
        *((f"wrong-turn-{i}", _script([f"answer {shlex.quote(value)}"])) for i, value in enumerate(wrong, start=1)),
    ]  # fmt: skip
