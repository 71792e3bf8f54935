"""Layout tasks: the page that an agent wrote, drawn by a browser in a sandbox of its own and judged by the host.

A task brings `tests/layout.json` (a `Plan`): at which sizes of the window its page is drawn, and what must then hold, in the
words of `layout_checks.py`. The file stays on the host. While a verdict is formed (`grade.py`), `look` takes the page's bytes out
of the verifier's sandbox, has them drawn as a still document (no script runs, nothing is loaded) and gives the state of each
check, which is a test id like any other. The page meets neither the expected values nor the tests.

Who draws is said once for each event loop, by `offer`; a process without a browser fails aloud (Capacity), never with a reward.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import Field, ValidationError

from gymsmith.errors import Capacity, ExecTimeout, HostLost, PolicyRefused, SandboxError, SandboxGone, SourceError
from gymsmith.schema import Word
from gymsmith.taskdir import Task
from sandboxes.base import Sandbox
from sandboxes.browser.result import Document, Rendered
from sandboxes.layout_checks import CHECKS, EVERY, wrong
from sandboxes.layout_seen import Seen

if TYPE_CHECKING:
    from sandboxes.browser.service import RenderService

MEMBER = "tests/layout.json"
"""Stays on the host."""
MAX_PAGE_BYTES = 256 * 1024
DEADLINE_S = 15.0
DOMAIN = "still documents"
"""One for all: what has no script can leave nothing in a tab, and a tab that is used again costs a sixth of a fresh one."""
_renderers: WeakKeyDictionary[asyncio.AbstractEventLoop, Callable[[], Awaitable[RenderService]]] = WeakKeyDictionary()


class Asked(Word):
    """One check."""

    kind: str
    params: dict[str, Any] = Field(default_factory=dict)


class View(Word):
    """A size of the window, and what must hold in it."""

    width: int
    height: int
    checks: tuple[Asked, ...]


class Plan(Word):
    """What `MEMBER` says."""

    page: str
    """Path of the page in the sandbox."""
    views: tuple[View, ...] = Field(min_length=1)


class Looked(NamedTuple):
    """What the host found out."""

    states: dict[str, str]
    """passed or failed, by test id; nothing for a task that is no layout task."""
    notes: list[str]
    """What is wrong, for people."""


def offer(renderer: Callable[[], Awaitable[RenderService]] | None) -> None:
    """Say who draws pages on the running event loop; None takes it back."""
    loop = asyncio.get_running_loop()
    if renderer is None:
        _renderers.pop(loop, None)
    else:
        _renderers[loop] = renderer


def test_ids(plan: Plan) -> tuple[str, ...]:
    """The ids of a plan's checks: KIND@WIDTHxHEIGHT, numbered where a kind is asked for more than once."""
    return tuple(name for view in plan.views for name, _ in _named(view))


async def look(box: Sandbox, task: Task) -> Looked:
    """Draw the task's page and judge it.

    Raises: SourceError: the task's plan is none. Capacity: no browser can be had. SandboxError: the verifier's sandbox did not
    answer. Never because of what the page is.
    """
    if MEMBER not in task.files:
        return Looked({}, [])
    try:
        plan = Plan.model_validate(json.loads(task.files[MEMBER]))
    except (ValueError, ValidationError) as error:
        raise SourceError(f"{MEMBER} must be a layout plan: {error}") from error
    if unknown := sorted({asked.kind for view in plan.views for asked in view.checks} - CHECKS.keys()):
        raise SourceError(f"{MEMBER} must ask for checks out of {sorted(CHECKS)}, got {unknown}")
    page, lack = await _page(box, plan.page)
    states: dict[str, str] = {}
    notes = [lack] if lack else []
    for view in plan.views:
        found = await judge(page, view) if not notes else dict.fromkeys((name for name, _ in _named(view)), "not looked at")
        states |= {name: "failed" if what else "passed" for name, what in found.items()}
        notes += [f"{name}: {what}" for name, what in found.items() if what and what != "not looked at"]
    return Looked(states, notes)


async def judge(page: bytes, view: View) -> dict[str, str]:
    """What each check of a view finds wrong with a page, by test id; "" where nothing is. Raises as `look`."""
    shown = await draw(page, view.width, view.height)
    if shown.metrics is None:
        return {name: f"the page was not drawn: {shown.status}, {shown.cause}" for name, _ in _named(view)}
    seen = Seen(shown.metrics)
    try:
        return await asyncio.to_thread(lambda: {name: wrong(each.kind, seen, each.params) for name, each in _named(view)})
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{MEMBER} asks for a check in a way that it has not: {error!r}") from error


async def draw(page: bytes, width: int, height: int) -> Rendered:
    """A still page in a window of this size. One that was stopped is drawn once more, for the machine may have been busy.

    Raises: Capacity: no browser can be had, or it failed us; whatever the page does to it comes back as a rendering.
    """
    renderer = _renderers.get(asyncio.get_running_loop())
    if renderer is None:
        raise Capacity("layout tasks need a browser, and this process offers none; grade them in a worker (sandboxes.worker)")
    service = await renderer()
    document = Document(files={"index.html": page}, width=width, height=height, still=True)
    try:
        shown = await service.render(document, domain=DOMAIN, deadline_s=DEADLINE_S)
        if shown.status in ("stopped", "crashed"):
            shown = await service.render(document, domain=DOMAIN, deadline_s=DEADLINE_S)
    except SandboxError as error:  # the browser's sandbox, not the verifier's: grading must not take it for the agent's doing
        raise Capacity(f"a page must be drawn, the browser failed: {error}") from error
    return shown


async def _page(box: Sandbox, path: str) -> tuple[bytes, str]:
    """The page, or why there is none."""
    try:
        return await box.get(path, MAX_PAGE_BYTES), ""
    except FileNotFoundError:
        return b"", f"expected a page at {path}, there is none"
    except (SandboxError, PolicyRefused, OSError) as error:
        if isinstance(error, SandboxGone | ExecTimeout | HostLost):
            raise
        return b"", f"expected a page at {path}, a file of at most {MAX_PAGE_BYTES} bytes: {error}"


def _named(view: View) -> Iterator[tuple[str, Asked]]:
    times: Counter[str] = Counter()
    for asked in view.checks:
        times[asked.kind] += 1
        number = f"-{times[asked.kind]}" if times[asked.kind] > 1 else ""
        yield f"{asked.kind}{number}@{view.width}x{view.height}", asked


def member(plan: Plan) -> bytes:
    """The text of `MEMBER`."""
    return (json.dumps(plan.model_dump(mode="json"), indent=1) + "\n").encode()


def with_every(checks: tuple[Asked, ...], **params: Mapping[str, Any]) -> tuple[Asked, ...]:
    """The checks that hold for any page, with their parameters by kind, before these."""
    return (*(Asked(kind=kind, params=dict(params.get(kind, {}))) for kind in EVERY), *checks)
