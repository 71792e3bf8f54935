"""Browse environments: questions that need their look-ups, long episodes that stay under their limit, drafts that are proved."""

# ruff: noqa: E501 - a page is easier to read in one line

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from context_mgmt.budget import Limits
from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig
from env_factory import tasks
from env_factory.build import build
from env_factory.gates.stages import Proof, prove
from env_factory.synth import browse, cards
from env_factory.templates.browse.pages import Page, documents, pack
from env_factory.templates.browse.tools import Library, plain
from gymsmith.errors import ConfigError, Rejected, SourceError
from gymsmith.policy import ScriptedPolicy
from gymsmith.schema import Draft, Source, Status, Trajectory
from gymsmith.taskdir import Task
from sandboxes.rollout import Attempt, Terms, rollout
from sandboxes.tasks import UNLIMITED, solution_actions
from tests.env_factory.conftest import Doorway

ROOT = Path(__file__).parents[2]
SOURCE = Source(uri="browse:test", kind="parametric")
BYTES_A_TOKEN = 4
"""English HTML has 3 to 4 bytes to a token of today's vocabularies; the higher number is the harder one to reach."""
LONG_TOKENS = 100_000


def drafted(family: str, level: int, seed: int) -> tuple[browse.Question, Draft]:
    """The first question from this seed on that becomes a draft."""
    for each in range(seed, seed + 5):
        question = browse.make(family, level, each)
        try:
            return question, browse.draft(question, SOURCE)
        except Rejected:
            continue
    raise AssertionError(f"five questions of {family} in a row became no draft")


def real_pages() -> list[Page]:
    """The documentation of this repository."""
    return documents({str(p.relative_to(ROOT)): p.read_bytes() for p in sorted((ROOT / "docs").rglob("*.md"))})


def values(text: str) -> list[str]:
    return re.findall(browse.VALUE, text)


def test_no_question_is_answered_without_its_lookups() -> None:
    """Closed-book guesses and everything that the first page offers, over fifty questions; the hops themselves are the control."""
    rng = random.Random(7)
    guessers: dict[str, Callable[[str, str, str], list[str]]] = {
        "closed book": lambda question, results, page: [str(rng.randint(100, 30_000)), f"AB-{rng.randint(1000, 9999)}"],
        "first value of the results": lambda question, results, page: values(results)[:1],
        "first value of the page": lambda question, results, page: values(page)[:1],
        "last value of the page": lambda question, results, page: values(page)[-1:],
        "commonest value of the page": lambda question, results, page: [v for v, _ in Counter(values(page)).most_common(1)],
        "some value of the page": lambda question, results, page: [rng.choice(values(page) or ["none"])],
        "two values of the page": lambda question, results, page: [" ".join(rng.sample([*values(page), "none", "nor"], 2))],
        "all words of the page": lambda question, results, page: plain(page).split(),
    }
    right: Counter[str] = Counter()
    asked = 0
    for family in browse.FAMILIES:
        for seed in range(10):
            question = browse.make(family, 1, seed)
            try:
                browse.draft(question, SOURCE)
            except Rejected:
                continue
            asked += 1
            library = Library(question.collection)
            results = library.search(question.text)
            first = library.open(library.rank(question.text)[0])
            for name, guess in guessers.items():
                right[name] += question.answer in guess(question.text, results, first)
            read = " ".join(plain(library.open(path)) for _, path in question.hops)
            known = set(values(read))
            found = all(part in known for part in question.answer.split()) or family in ("total", "roster")
            right["the look-ups"] += found and all(path in library.rank(words) for words, path in question.hops)
    assert asked >= 45 and right.pop("the look-ups") == asked
    assert {name: count for name, count in right.items() if count > 0.05 * asked} == {}


def test_the_same_seed_makes_the_same_bytes_and_neighbours_share_a_collection() -> None:
    one, other, third = browse.make("chain", 1, 20), browse.make("total", 1, 21), browse.make("chain", 1, 30)
    browse._handbook.cache_clear()
    assert browse.make("chain", 1, 20) == one and one.collection == other.collection != third.collection
    draft = browse.draft(one, SOURCE)
    assert draft.id == browse.draft(one, SOURCE).id and not any(token in draft.instruction for token in one.hidden)
    with pytest.raises(ConfigError):
        browse.make("chain", 4, 1)


def test_an_answer_on_the_first_page_makes_no_draft() -> None:
    question = browse.make("chain", 1, 0)
    shown = browse.Question(
        **{name: getattr(question, name) for name in question.__slots__}
        | {"answer": values(Library(question.collection).open(question.hops[0][1]))[0]}
    )
    with pytest.raises(Rejected, match="first-page"):
        browse.draft(shown, SOURCE)
    lost = browse.Question(
        **{name: getattr(question, name) for name in question.__slots__} | {"hops": (("xyzzy", question.hops[0][1]),)}
    )
    with pytest.raises(Rejected, match="unreachable"):
        browse.draft(lost, SOURCE)


def test_search_open_and_find_answer_with_whole_pages() -> None:
    pages = [Page("a/one.html", "Harbour lights", "<html><title>Harbour lights</title><h2>Lamps</h2><p>A red lamp &amp; a green one.</p><script>red()</script></html>"),
             Page("b/two.html", "Winter", "<html><title>Winter</title><p>Snow on the red roofs.</p></html>")]  # fmt: skip
    library = Library(pack(pages))
    assert library.rank("harbour") == ["a/one.html"] and library.rank("nothing at all") == []
    assert '<a href="b/two.html">Winter</a>' in library.search("snow roofs") and "<!doctype html>" in library.search("nothing")
    assert library.open("../a/one.html#lamps") == pages[0].markup and "No such page" in library.open("/etc/passwd")
    assert "A red lamp &amp; a green one." in library.find("a/one.html", "green RED") and "Lamps" in library.find(
        "a/one.html", "green"
    )
    assert "No passage" in library.find("a/one.html", "snow") and "red()" not in library.search("lamp")


def test_every_family_is_proved(doorway: Doorway) -> None:
    drafts = [drafted(family, 1, 3)[1] for family in browse.FAMILIES]
    drafts.append(browse.draft(cards.make(real_pages(), "our documentation", 1, 1), SOURCE))

    async def one(draft: Draft) -> Proof:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        return await prove(draft, await build(draft, images), provider, slots=doorway.worker.slots)

    async def every() -> list[Proof]:
        return list(await asyncio.gather(*map(one, drafts)))

    for draft, proof in zip(drafts, doorway.worker.run(every()), strict=True):
        assert (proof.reason, proof.evidence.proved) == ("", True), (draft.spec.name, proof)
        names = {gate.name for gate in proof.evidence.gates}
        assert {"looking", "alternative-1", "cheat:first-page-every-value", "cheat:closed-book"} <= names


def test_a_long_episode_stays_under_its_limit_and_a_guess_is_seen_as_one(doorway: Doorway) -> None:
    """More than 100,000 tokens are read; keep-recent-2 holds the prompt under 40,000. Without it the episode ends too early."""
    question, draft = drafted("chain", 3, 3)
    task, chat = Task.of(draft), Chat.of_bytes()
    limit = 40_000 * BYTES_A_TOKEN

    async def play(actions: list[str], keep: int | None) -> Trajectory:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        policy = ScriptedPolicy([chat.action(action) for action in actions])
        context = FoldConfig(keep_recent_k=keep, fold="observations", limit_tokens=limit, observation_tokens=UNLIMITED)
        terms = Terms(Limits(max_turns=task.spec.max_turns, max_new_tokens=400), context, 0.0)
        return await rollout(task, await build(draft, images), provider, policy, chat, Attempt("run", draft.id), terms)

    async def every() -> list[Trajectory]:
        honest = solution_actions(task)
        return list(await asyncio.gather(play(honest, 2), play(honest, None), play([f"answer {question.answer}", "exit"], 2)))

    folded, whole, guessed = doorway.worker.run(every())
    raw = sum(len(step.action.encode()) + len(step.observation.encode()) for step in folded.steps)
    assert raw / BYTES_A_TOKEN > LONG_TOKENS and raw > 3 * limit
    assert (folded.reward.value, folded.finish, folded.looked) == (1.0, "exit", True), folded.reward
    assert max(len(segment.ids) for segment in folded.segments) <= limit and any(step.folded for step in folded.steps)
    assert whole.finish == "length" and whole.reward.value == 0.0, "the control arm outgrows the limit"
    assert (guessed.reward.value, guessed.looked) == (1.0, False), (
        "who was told the answer passes, and is known not to have looked"
    )


def test_orders_over_the_handbook_and_over_real_documentation(doorway: Doorway) -> None:
    order = {"source": "browse:all", "kind": "browse", "n": 2, "seed": 3, "gates": "controls", "levels": [1]}
    made = tasks.generate(order, doorway)
    stored = [doorway.store.environment(each) for each in made["admitted"]]
    assert [e.status for e in stored] == [Status.VERIFIED] * 2 and len({e.spec.labels["family"] for e in stored}) == 2
    assert tasks.generate(order, doorway)["admitted"] == made["admitted"]
    assert tasks.verify({"environments": made["admitted"][:1], "gates": "controls"}, doorway)["reasons"] == {
        made["admitted"][0]: ""
    }
    for wrong in ({"source": "browse:none"}, {"levels": [9]}, {"kind": "layout"}):
        with pytest.raises(ConfigError):
            tasks.generate(order | wrong, doorway)
    with pytest.raises(SourceError, match="pages of documentation"):
        cards.make(real_pages()[:3], "too little", 1, 1)


@pytest.mark.network
def test_the_documentation_of_a_real_package(doorway: Doorway, index_reachable: None) -> None:
    order = {"source": "pypi:Markdown==3.7", "kind": "browse", "n": 1, "seed": 3, "gates": "controls", "levels": [1]}
    made = tasks.generate(order, doorway)
    environment = doorway.store.environment(made["admitted"][0])
    assert (environment.source.uri, environment.spec.labels["family"]) == ("pypi:Markdown==3.7", "cards")
    assert environment.source.licence and "Markdown 3.7" in environment.instruction
