"""Layout environments: templates stand the gates, each trick scores 0 for its own reason, a missing browser is said aloud."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.build import build
from env_factory.gates.stages import GENERAL_CHEATS, Proof, prove
from env_factory.synth import layout
from env_factory.templates.layout.pages import Layout
from gymsmith.config import Settings
from gymsmith.errors import Capacity, ConfigError, SourceError
from gymsmith.schema import Draft, Reward, Status
from gymsmith.store import Store
from gymsmith.taskdir import Task
from sandboxes import layout as rendering
from sandboxes.grade import attempt_script
from sandboxes.layout_checks import EVERY
from sandboxes.worker import process_worker
from tests.env_factory.conftest import Doorway, lacking

browser = pytest.mark.browser
AT_ONCE = 8


@pytest.fixture(scope="module")
def drawing(doorway: Doorway) -> Iterator[Doorway]:
    """A doorway whose worker draws pages."""
    try:
        doorway.worker.run(doorway.worker.renderer())
    except Capacity as error:
        lacking(f"pages cannot be drawn here: {error}")
    yield doorway


async def wrong_with(order: Layout, html: str) -> dict[str, str]:
    """What is wrong with a page, in the first window where anything is."""
    for view in layout.plan(order).views:
        wrong = {name: what for name, what in (await rendering.judge(html.encode(), view)).items() if what}
        if wrong:
            return wrong
    return {}


def found(doorway: Doorway, order: Layout, html: str) -> dict[str, str]:
    return dict(doorway.worker.run(wrong_with(order, html)))


def test_templates_differ_in_what_they_check_and_follow_from_their_seeds() -> None:
    asked = {}
    for name in layout.TEMPLATES:
        order, draft = layout.make(name, 3), layout.draft(name, 3)
        own = [check.kind for check in layout.plan(order).views[0].checks if check.kind not in EVERY]
        asked[name] = frozenset(own)
        assert own and order.spoilt and {kind for kind, _, _ in order.spoilt} <= set(own), name
        assert draft.id == layout.draft(name, 3).id != layout.draft(name, 4).id != layout.draft(name, 4, "held_out").id
        assert order.reference != order.alternative and len(draft.cheats) >= 20
        assert not any(line in draft.instruction for line in order.reference.splitlines() if len(line) > 30)
    assert len(asked) >= 20 and len(set(asked.values())) >= 20, "so many different sets of checks"
    with pytest.raises(ConfigError, match="expected a layout template out of"):
        layout.make("nothing", 1)


@browser
def test_a_sample_of_every_template_is_proved(drawing: Doorway) -> None:
    """Controls in the sandboxes; the page that is built in another way, and each spoilt one, judged as they look."""
    drafts = {name: layout.draft(name, 11) for name in layout.TEMPLATES}
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, draft: Draft, images: Any, provider: Any) -> tuple[str, Proof]:
        async with turn:
            return name, await prove(draft, await build(draft, images), provider, level="controls", slots=drawing.worker.slots)

    async def every() -> list[tuple[str, Proof]]:
        provider, images = await drawing.worker.provider(), await drawing.worker.images()
        return list(await asyncio.gather(*(one(name, draft, images, provider) for name, draft in drafts.items())))

    proofs = dict(drawing.worker.run(every()))
    assert {name: proof.detail for name, proof in proofs.items() if proof.reason} == {}
    assert all(proof.evidence.proved for proof in proofs.values())


@browser
def test_another_honest_page_passes_and_one_with_a_single_fault_does_not(drawing: Doorway) -> None:
    """Of every template; a fault must be noticed by the check that it is made for."""
    orders = {name: layout.make(name, 11) for name in layout.TEMPLATES}
    pages = [(name, "alternative", order.alternative, "") for name, order in orders.items()]
    for name, order in orders.items():
        pages += [(name, label, html, order.spoilt[n][0]) for n, (label, html) in enumerate(layout.spoilt(order))]

    async def every() -> list[dict[str, str]]:
        return list(await asyncio.gather(*(wrong_with(orders[name], html) for name, _, html, _ in pages)))

    strange = {}
    for (name, label, _, check), wrong in zip(pages, drawing.worker.run(every()), strict=True):
        if wrong if not check else not any(test.startswith(check) for test in wrong):
            strange[name, label] = wrong
    assert strange == {}


REASONS = {
    "text-off-screen": "texts", "text-indented-away": "texts", "overflow-hidden": "plain", "overflow-clipped": "plain",
    "tiny-letters": "legible", "tiny-first-line": "legible", "letters-of-no-colour": "texts", "letters-hardly-there": "texts",
    "zoomed": "plain", "scaled": "plain", "covered": "texts", "clipped": "plain", "picture": "plain", "drawing": "plain",
    "canvas": "plain", "frame": "plain", "comment-and-title": "texts", "fields": "plain", "generated-text": "plain",
    "script-that-knows-its-judge": "texts", "scroll-height-lies": "fits", "words-without-a-layout": "count",
    "boxes-without-words": "texts", "words-twice": "texts",
}  # fmt: skip


@browser
def test_each_trick_fails_for_its_own_reason(drawing: Doorway) -> None:
    order = layout.make("offers", 5)
    assert dict(layout.tricks(order)).keys() == REASONS.keys()
    for name, html in layout.tricks(order):
        wrong = found(drawing, order, html)
        assert any(test.startswith(REASONS[name]) for test in wrong), (name, wrong)


@browser
def test_what_holds_in_the_first_window_alone_is_not_enough(drawing: Doorway) -> None:
    order = layout.make("cards", 2)
    fixed = order.reference.replace("</style>", "#slide { width: 1280px; height: 720px }</style>")
    wrong = found(drawing, order, fixed)
    assert wrong and all(test.endswith("@1600x900") for test in wrong), wrong


@browser
def test_every_gate_and_every_cheat_of_one_draft(drawing: Doorway) -> None:
    draft = layout.draft("corners", 7)
    proof = _proved(drawing, draft)
    assert (proof.reason, proof.evidence.proved) == ("", True), proof
    cheats = [gate for gate in proof.evidence.gates if gate.name.startswith("cheat:")]
    assert len(cheats) == GENERAL_CHEATS["layout"] and all(gate.rewards == (0.0,) for gate in cheats)
    easy = replace(
        draft, files={**draft.files, rendering.MEMBER: rendering.member(rendering.Plan(page=layout.PAGE, views=(_nothing(),)))}
    )
    easy = replace(easy, spec=easy.spec.model_copy(update={"expected": ("page", "plain@1280x720")}))
    assert _proved(drawing, easy).reason == "cheat-passes", "a plan that asks for next to nothing is noticed"


@browser
def test_what_is_no_page_scores_nothing_and_harms_nobody(drawing: Doorway) -> None:
    draft = layout.draft("quote", 1)
    good = draft.files["solution/solve.sh"].decode()
    scripts = {
        "a pipe": "mkfifo /work/index.html", "a folder": "mkdir /work/index.html",
        "a link": good + "mv /work/index.html /work/other.html; ln -s other.html /work/index.html\n",
        "too large": "head -c 300000 /dev/zero | tr '\\0' x > /work/index.html",
        "bytes": "head -c 20000 /dev/urandom > /work/index.html", "nothing": ": > /work/index.html",
    }  # fmt: skip
    rewards = {name: _attempt(drawing, draft, script) for name, script in scripts.items()}
    assert {name: reward.value for name, reward in rewards.items()} == dict.fromkeys(scripts, 0.0)
    assert "there is none" in rewards["a folder"].detail or "a file of at most" in rewards["a folder"].detail, rewards["a folder"]
    assert _attempt(drawing, draft, good).value == 1.0


def test_without_a_browser_nothing_is_graded_and_nothing_is_made(doorway: Doorway, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "home").model_copy(update={"chromium": "/nowhere/chromium"})
    worker = process_worker(settings)
    try:
        with Store.open(settings) as store:
            ctx = Doorway(settings, store)
            with pytest.raises(ConfigError, match=r"kind layout is judged by a browser.*/nowhere/chromium"):
                tasks.generate({"source": "layout:cards", "kind": "layout", "n": 1}, ctx)
            draft = layout.draft("cards", 1)
            with pytest.raises(Capacity, match="/nowhere/chromium"):
                _attempt(ctx, draft, draft.files["solution/solve.sh"].decode())
            assert _attempt(ctx, draft, None).value == 0.0, "where there is no page, none has to be drawn"
    finally:
        worker.close()


@browser
def test_an_order_is_carried_out_and_a_wrong_one_refused(drawing: Doorway) -> None:
    order = {"source": "layout:all", "kind": "layout", "n": 2, "seed": 5, "gates": "controls"}
    made = tasks.generate(order, drawing)
    stored = [drawing.store.environment(each) for each in made["admitted"]]
    assert [e.status for e in stored] == [Status.VERIFIED] * 2 and [e.source.uri for e in stored] == [
        "layout:badges",
        "layout:bars",
    ]
    assert tasks.generate(order, drawing)["admitted"] == made["admitted"]
    with pytest.raises(ConfigError, match="layout:all or layout:NAME"):
        tasks.generate(order | {"source": "layout:none"}, drawing)
    with pytest.raises(ConfigError, match="expected kind layout"):
        tasks.generate(order | {"kind": "tutorial"}, drawing)


def test_a_plan_that_is_none_is_our_fault(doorway: Doorway) -> None:
    draft = layout.draft("cards", 1)
    broken = replace(draft, files={**draft.files, rendering.MEMBER: b'{"page": "/work/index.html", "views": []}'})
    with pytest.raises(SourceError, match="must be a layout plan"):
        _attempt(doorway, broken, "exit 0")


def _nothing() -> rendering.View:
    return rendering.View(width=1280, height=720, checks=(rendering.Asked(kind="plain"),))


def _proved(doorway: Doorway, draft: Draft) -> Proof:
    async def work() -> Proof:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        return await prove(draft, await build(draft, images), provider, slots=doorway.worker.slots)

    proof: Proof = doorway.worker.run(work())
    return proof


def _attempt(doorway: Doorway, draft: Draft, script: str | None) -> Reward:
    async def work() -> Reward:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        return await attempt_script(provider, await build(draft, images), Task.of(draft), script)

    reward: Reward = doorway.worker.run(work())
    return reward
