"""What the kinds `llm-...` of a generate job do: open a desk, hand candidates with authors to the intake, say what it cost.

    llm-tutorial   terminal tasks after a tutorial                      file:PATH, man:PAGE
    llm-bug        a fault in a function, told by the package's suite    pypi:NAME==VERSION, git:PLACE#REF, archive:PLACE
    llm-issue      an issue as text, with tests and a solution           the same, and the issue; or issue:, github:, swebench:
    llm-reword     other instructions for environments that are there    env:ID, env:KIND, env:all
    llm-setup      a repository that builds and whose tests run          git:PLACE#REF, archive:PLACE, pypi:NAME==VERSION

A job that a budget stopped has succeeded: its result says `stopped`, what was admitted stays, and the same order with a larger
budget goes on without buying anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from env_factory import sources
from env_factory.candidates import Proposal
from env_factory.llm.account import Account, BudgetSpent
from env_factory.llm.conversation import Desk
from env_factory.llm.faults import FaultAuthor
from env_factory.llm.issues import IssueAuthor
from env_factory.llm.journal import Journal
from env_factory.llm.rewording import RewordingAuthor
from env_factory.llm.setups import Place, Setup, SetupAgent
from env_factory.llm.terminal import TerminalAuthor
from env_factory.llm.workshop import Workshop, workshop
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, NoTests, NotFound, Rejected, SourceError
from gymsmith.llm import Endpoint, LlmClient
from gymsmith.schema import JobContext, Status, digest
from gymsmith.store import Store
from sandboxes.base import Provider
from sandboxes.image.images import ImageStore

AT_ONCE = 4
"""Candidates that are written and proved at the same time."""
TRIES = 4
"""Candidates per wanted environment before an order is given up."""
MAX_REWORDED = 10_000


class Order(Protocol):
    """What is asked for; `orders.errand.Order` is one."""

    source: str
    kind: Any
    n: int
    seed: int
    issue: str
    model: str
    budget_tokens: int
    budget_usd: float


class House(NamedTuple):
    """Where an order is carried out."""

    settings: Settings
    store: Store
    provider: Provider
    images: ImageStore
    python: str
    """Of the base image, as "3.11"."""


class Take(Protocol):
    """Settles proposals under a ledger's key, and returns what became of them; see `orders.errand.Errand.take`."""

    async def __call__(
        self, proposals: AsyncGenerator[Proposal, None], key: dict[str, Any], wheels: Any = None
    ) -> dict[str, Any]: ...


class Spending(Protocol):
    """Which model is asked, and what it may cost; empty and 0: what is configured."""

    @property
    def model(self) -> str: ...
    @property
    def budget_tokens(self) -> int: ...
    @property
    def budget_usd(self) -> float: ...


@asynccontextmanager
async def desk(order: Spending, ctx: JobContext, **key: Any) -> AsyncIterator[Desk]:
    """The desk of a job. `key`: what its questions follow from, see `Journal.of`.

    Raises: ConfigError: no endpoint is configured, or a budget in dollars without prices.
    """
    settings: Settings = ctx.settings
    endpoint = Endpoint.of(settings, order.model)

    def report(sums: dict[str, Any]) -> None:
        ctx.progress(**sums)

    account = Account(
        endpoint,
        budget_tokens=order.budget_tokens or settings.llm_budget_tokens,
        budget_usd=order.budget_usd or settings.llm_budget_usd,
        report=report,
    )
    async with LlmClient(endpoint) as client:
        yield Desk(client, account, Journal.of(settings, model=endpoint.model, **key), ctx.job.id)


async def carry_out(order: Order, at: Desk, house: House, take: Take) -> dict[str, Any]:
    """Do an order. Result: that of `take`, of llm-setup the setup.

    Raises:
        ConfigError, SourceError and its kin: the order cannot be carried out as asked.
        LlmRefused, LlmError: the endpoint does not take the questions, or is away.
    """
    reported = order.source.startswith(("issue:", "github:", "swebench:"))
    if (order.kind == "llm-issue" and not reported) != bool(order.issue.strip()):
        raise ConfigError(
            "an issue goes with kind llm-issue and only with it, as text or as the source (issue:, github:, swebench:), got kind "
            f"{order.kind}, source {order.source!r} and {len(order.issue)} characters of text"
        )
    if order.kind == "llm-reword":
        return await _reword(order, at, house, take)
    uris = sources.lessons(order.source) if order.kind == "llm-tutorial" else [order.source]
    found = [await asyncio.to_thread(sources.read, uri, house.settings, python=house.python) for uri in uris]
    if order.kind == "llm-tutorial":
        lessons = [each for each in found if isinstance(each, sources.Tutorial)]
        if len(lessons) != len(found):
            raise SourceError(f"llm-tutorial needs a text (file:PATH or man:PAGE), got {order.source!r}")
        return await _tutorial(lessons, order, at, take)
    if order.kind == "llm-setup":
        return await _setup(_place(found[0], order.source), order, at, house)
    what, text = found[0], order.issue
    if isinstance(what, sources.Issue) and order.kind == "llm-issue":
        # What fixed it stays unread: the model's solution and tests are its own, and may differ from the known ones.
        text = "\n\n".join(part for part in (what.title, what.text, what.hints) if part)
        place = f"git:{what.place}#{what.base_commit}"
        what = await asyncio.to_thread(sources.read, place, house.settings, python=house.python)
    try:
        async with _opened(what, order, at, house) as shop:
            if order.kind == "llm-issue":
                return await _issue(shop, text, order, at, take)
            return await _bug(shop, order, at, take)
    except BudgetSpent as error:
        return {"admitted": [], "candidates": 0, "reasons": {}, "stopped": "budget", "detail": str(error)}


async def _tutorial(lessons: list[sources.Tutorial], order: Order, at: Desk, take: Take) -> dict[str, Any]:
    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(TRIES * order.n):
            lesson = lessons[index % len(lessons)]
            yield Proposal(index, None, author=TerminalAuthor(at, lesson, order.seed, index // len(lessons)))

    return await take(proposals(), {"source": [lesson.source.digest for lesson in lessons], "model": at.client.endpoint.model})


async def _bug(shop: Workshop, order: Order, at: Desk, take: Take) -> dict[str, Any]:
    functions = shop.functions(order.seed)
    if not functions:
        raise SourceError(f"{order.source}: no function of the package is entered by its tests; choose another source")

    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(TRIES * order.n):
            function = functions[index % len(functions)]
            yield Proposal(index, None, author=FaultAuthor(at, shop, function, order.seed, index))

    return await take(proposals(), _key(shop, at), wheels=shop.package.wheels)


async def _issue(shop: Workshop, text: str, order: Order, at: Desk, take: Take) -> dict[str, Any]:
    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(TRIES * order.n):
            yield Proposal(index, None, author=IssueAuthor(at, shop, text, order.seed, index))

    return await take(proposals(), _key(shop, at) | {"issue": digest(text.encode())}, wheels=shop.package.wheels)


def _key(shop: Workshop, at: Desk) -> dict[str, Any]:
    return {"source": shop.package.source.digest, "pins": list(shop.package.pins), "model": at.client.endpoint.model}


async def _reword(order: Order, at: Desk, house: House, take: Take) -> dict[str, Any]:
    scheme, _, wanted = order.source.partition(":")
    if scheme != "env" or not wanted:
        raise SourceError(f"llm-reword needs env:ID, env:KIND or env:all, got {order.source!r}")
    if wanted == "all" or "-" in wanted or not all(c in "0123456789abcdef" for c in wanted):
        every = house.store.environment_ids(kind=None if wanted == "all" else wanted, status=Status.VERIFIED)
        ids = [i for i in sorted(every)[:MAX_REWORDED] if "reworded_from" not in house.store.environment(i).spec.labels]
    else:
        ids = [house.store.find_environment(wanted).id]
    if not ids:
        raise NotFound(f"there is no verified environment of {order.source!r}; `gymsmith env list` shows what there is")

    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(TRIES * order.n):
            environment = house.store.environment(ids[index % len(ids)])
            if environment.status is not Status.VERIFIED:
                yield Proposal(index, None, "not-verified")
                continue
            task = await asyncio.to_thread(taskdir.read, taskdir.folder_of(house.settings.tasks_dir, environment.id))
            author = RewordingAuthor(at, task, order.seed, index // len(ids))
            # The files are the same, so the image is: it need not be built again from wheels that would have to be fetched.
            yield Proposal(index, None, author=author, image_id=environment.image_id)

    return await take(proposals(), {"source": ids, "model": at.client.endpoint.model})


async def _setup(place: Place, order: Order, at: Desk, house: House) -> dict[str, Any]:
    agent = SetupAgent(at, place, house.provider, house.images, house.settings, house.python)
    made: dict[str, Any] = {"admitted": [], "candidates": 1, "reasons": {}}
    try:
        setup = await agent.run(order.seed)
    except Rejected as error:
        return made | {"reasons": {error.reason: 1}, "detail": error.detail}
    except BudgetSpent as error:
        return made | {"stopped": "budget", "detail": str(error)}
    shown = setup.model_dump(mode="json", exclude={"wheels", "passing", "failing"})
    return made | {"setup": shown | {"passing": len(setup.passing), "failing": len(setup.failing)}}


@asynccontextmanager
async def _opened(
    found: sources.Package | sources.Repository | sources.Tutorial | Any, order: Order, at: Desk, house: House
) -> AsyncIterator[Workshop]:
    """The workshop of a package. A repository whose suite does not run with what it declares is set up by the model first."""
    if isinstance(found, sources.Package):
        package = found
    elif isinstance(found, sources.Repository):
        package = await asyncio.to_thread(sources.package_of, found, house.settings, python=house.python)
    else:
        raise SourceError(f"{order.kind} needs a Python package or repository (pypi:, git: or archive:), got {order.source!r}")
    async with AsyncExitStack() as stack:
        try:
            shop = await stack.enter_async_context(workshop(package, house.provider, house.images))
        except NoTests:
            if isinstance(found, sources.Package):
                raise
            place = _place(found, order.source)
            setup = await _asked(SetupAgent(at, place, house.provider, house.images, house.settings, house.python))
            package = replace(package, wheels=setup.wheels, pins=setup.pins)
            shop = await stack.enter_async_context(workshop(package, house.provider, house.images))
        yield shop


async def _asked(agent: SetupAgent) -> Setup:
    try:
        return await agent.run()
    except Rejected as error:
        raise NoTests(f"{agent.place.uri}: its suite could not be made to run ({error.reason}): {error.detail[:400]}") from error


def _place(found: Any, uri: str) -> Place:
    if isinstance(found, sources.Repository):
        tree = found.tree()
        return Place(found.source.uri, found.name, tree.files, tree.executable, found.date())
    if isinstance(found, sources.Package):
        return Place(found.source.uri, found.name, found.files)
    raise SourceError(f"llm-setup needs a repository or a package (git:, archive: or pypi:), got {uri!r}")
