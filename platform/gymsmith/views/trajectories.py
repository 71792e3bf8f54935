"""`/trajectories`: the list, one attempt step by step, and its exact tokens."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gymsmith import render, tokens
from gymsmith.endpoints.envelope import SettingsDep, StoreDep
from gymsmith.errors import NotFound
from gymsmith.schema import Environment, Segment, Step, Trajectory
from gymsmith.store import Store, TrajectoryFilter, TrajectoryRow

router = APIRouter()
PER_PAGE = 50
STEPS = 40
SHOWN_CHARS = 8000
TOKENS = 600
SIBLINGS = 64
OUTCOMES: dict[str, dict[str, Any]] = {
    "passed": {"min_reward": 1.0},
    "failed": {"max_reward": 1.0 - 1e-9},
    "lost": {"failed": True},
}
"""Filter word -> arguments of the store; anything graded below 1 failed."""
HEAT = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)
"""Upper bounds, in nats of surprise (minus log probability), of heat 0 to 5; heat 6 is above."""


class Shown(NamedTuple):
    """A step as the page shows it; long output is cut until it is asked for."""

    number: int
    step: Step
    observation: str
    cut: int
    """Characters left out."""


class Token(NamedTuple):
    """One id with its look: heat -1 is context, which the policy did not write."""

    position: int
    id: int
    text: str
    heat: int
    logprob: float
    version: str


class Stretch(NamedTuple):
    """Neighbouring tokens of one heat, for the strip."""

    start: int
    length: int
    heat: int


class Overview(NamedTuple):
    """A segment at a glance."""

    number: int
    length: int
    written: int
    surprise: float
    """Mean minus log probability of what the policy wrote, nats."""
    versions: list[str]
    strip: list[Stretch]


@router.get("/trajectories")
def listing(
    request: Request,
    store: StoreDep,
    run_id: str = "",
    policy_version: str = "",
    outcome: str = "",
    cursor: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """All attempts, newest first."""
    chosen = {"run_id": run_id, "policy_version": policy_version, "outcome": outcome}
    wanted = TrajectoryFilter(run_id=run_id or None, policy_version=policy_version or None, **OUTCOMES.get(outcome, {}))
    rows = store.trajectory_rows(wanted, cursor=cursor, limit=PER_PAGE)

    def url(**changed: str) -> str:
        pairs = {k: v for k, v in {**chosen, **changed}.items() if v}
        return "/trajectories" + ("?" + urlencode(pairs) if pairs else "")

    return render.page(
        request,
        "trajectories.html",
        "/trajectories",
        rows=rows.items,
        names=_names(store, rows.items),
        total=store.trajectory_total(wanted),
        outcomes=store.trajectory_outcomes(run_id=run_id or None),
        chosen=chosen,
        url=url,
        next=url(cursor=rows.cursor) if rows.cursor else "",
        first=url() if cursor else "",
    )


@router.get("/trajectories/{trajectory_id}")
def steps(
    request: Request,
    trajectory_id: str,
    store: StoreDep,
    start: Annotated[int, Query(alias="from", ge=1)] = 1,
    full: int = 0,
) -> Response:
    """One attempt, step by step. `from` is the first step of the page, `full` a step to show uncut."""
    x = store.trajectory(trajectory_id)
    start = (min(start, max(1, len(x.steps))) - 1) // STEPS * STEPS
    shown = [_shown(start + i + 1, step, full) for i, step in enumerate(x.steps[start : start + STEPS])]
    return _page(request, store, x, "trajectory.html", "steps", shown=shown, start=start, per_page=STEPS)


@router.get("/trajectories/{trajectory_id}/tokens")
def token_view(
    request: Request,
    trajectory_id: str,
    store: StoreDep,
    settings: SettingsDep,
    segment: int = 0,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """Exactly what the model saw and wrote."""
    x = store.trajectory(trajectory_id)
    if x.segments and not 0 <= segment < len(x.segments):
        raise NotFound(f"trajectory {trajectory_id} has segments 0 to {len(x.segments) - 1}, got {segment}")
    offset = offset // TOKENS * TOKENS
    part: list[Token] = []
    known = True
    if x.segments:
        s = x.segments[segment]
        texts = tokens.texts(store, settings, x.run_id, s.ids[offset : offset + TOKENS])
        known = texts is not None
        part = _tokens(s, offset, texts)
    overview = [_overview(i, s) for i, s in enumerate(x.segments)]
    return _page(
        request,
        store,
        x,
        "tokens.html",
        "tokens",
        segments=overview,
        chosen=segment,
        offset=offset,
        part=part,
        known=known,
        per_page=TOKENS,
        heat=HEAT,
    )


def _page(request: Request, store: Store, x: Trajectory, template: str, tab: str, **context: Any) -> Response:
    siblings: list[TrajectoryRow] = []
    if x.group:
        siblings = store.trajectory_rows(TrajectoryFilter(run_id=x.run_id, group=x.group), limit=SIBLINGS).items
        siblings.sort(key=lambda row: (row.attempt, row.id))
    return render.page(
        request,
        template,
        "/trajectories",
        x=x,
        tab=tab,
        environment=_environment(store, x.environment_id),
        siblings=siblings,
        **context,
    )


def _environment(store: Store, environment_id: str) -> Environment | None:
    try:
        return store.environment(environment_id)
    except NotFound:
        return None


def _names(store: Store, rows: list[TrajectoryRow]) -> dict[str, str]:
    found = {i: _environment(store, i) for i in {row.environment_id for row in rows}}
    return {i: e.spec.name if e else i for i, e in found.items()}


def _shown(number: int, step: Step, full: int) -> Shown:
    if number == full or len(step.observation) <= SHOWN_CHARS:
        return Shown(number, step, step.observation, 0)
    return Shown(number, step, step.observation[:SHOWN_CHARS], len(step.observation) - SHOWN_CHARS)


def _heat(mask: int, logprob: float) -> int:
    return -1 if not mask else next((i for i, bound in enumerate(HEAT) if -logprob < bound), len(HEAT))


def _tokens(s: Segment, offset: int, texts: list[str] | None) -> list[Token]:
    def version(at: int) -> str:
        return next((v.version for v in s.versions if v.start <= at < v.end), "")

    out = []
    for i, ident in enumerate(s.ids[offset : offset + TOKENS]):
        at = offset + i
        text = f"{ident} " if texts is None else texts[i].replace("\n", "↵\n")
        out.append(Token(at, ident, text, _heat(s.mask[at], s.logprobs[at]), s.logprobs[at], version(at)))
    return out


def _overview(number: int, s: Segment) -> Overview:
    strip: list[Stretch] = []
    for i, (mask, logprob) in enumerate(zip(s.mask, s.logprobs, strict=True)):
        heat = _heat(mask, logprob)
        if strip and strip[-1].heat == heat:
            strip[-1] = strip[-1]._replace(length=strip[-1].length + 1)
        else:
            strip.append(Stretch(i, 1, heat))
    written = sum(s.mask)
    surprise = sum(-lp for m, lp in zip(s.mask, s.logprobs, strict=True) if m) / written if written else 0.0
    versions = list(dict.fromkeys(v.version for v in s.versions))
    return Overview(number, len(s.ids), written, surprise, versions, [t for t in strip if t.heat >= 0])
