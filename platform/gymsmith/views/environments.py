"""`/environments`: search with facets, one with its evidence, its files, its attempts; and the form that orders new ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from gymsmith import folder, render
from gymsmith.endpoints.envelope import SettingsDep, StoreDep, labels_of
from gymsmith.endpoints.environments import Labels, Order
from gymsmith.errors import UserError
from gymsmith.schema import Environment, Evidence, Gate, Status
from gymsmith.store import Store, TrajectoryFilter

router = APIRouter()
PER_PAGE = 50
ATTEMPTS = 50
SHOWN_BYTES = 200_000


@dataclass(frozen=True)
class Search:
    """The filters of the list; knows the address of its neighbours."""

    text: str = ""
    kind: str = ""
    status: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def filters(self) -> dict[str, Any]:
        """Arguments of the store."""
        return {"text": self.text, "kind": self.kind or None, "status": self.status or None, "labels": dict(self.labels)}

    def has(self, facet: str, value: str) -> bool:
        """This value is chosen."""
        return value == (getattr(self, facet) if facet in ("kind", "status") else dict(self.labels).get(facet))

    def toggled(self, facet: str, value: str) -> str:
        """Address of the list with this value chosen, or let go when it is."""
        chosen = "" if self.has(facet, value) else value
        if facet == "kind":
            return replace(self, kind=chosen).url()
        if facet == "status":
            return replace(self, status=chosen).url()
        rest = tuple((k, v) for k, v in self.labels if k != facet)
        return replace(self, labels=(*rest, (facet, chosen)) if chosen else rest).url()

    def url(self, cursor: str = "") -> str:
        """Address of the list."""
        pairs = [("text", self.text), ("kind", self.kind), ("status", self.status)]
        pairs += [("label", f"{k}:{v}") for k, v in self.labels] + [("cursor", cursor)]
        query = urlencode([(k, v) for k, v in pairs if v])
        return "/environments" + ("?" + query if query else "")


class GateGroup(NamedTuple):
    """Gates of one purpose, in the order in which they convince."""

    title: str
    what: str
    gates: list[Gate]


@router.get("/environments")
def listing(
    request: Request,
    store: StoreDep,
    text: Annotated[str, Query(max_length=200)] = "",
    kind: str = "",
    status: Status | None = None,
    label: Labels = (),
    cursor: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """The catalogue."""
    q = Search(text.strip(), kind, status.value if status else "", tuple(labels_of(label).items()))
    found = store.environments(**q.filters, cursor=cursor, limit=PER_PAGE)
    facets = {name: values for name, values in store.environment_facets(**q.filters).items() if values}
    first = ("status", "kind", *render.TELLING)
    facets = {name: facets[name] for name in sorted(facets, key=lambda n: first.index(n) if n in first else len(first))}
    return render.page(
        request,
        "environments.html",
        "/environments",
        q=q,
        items=found.items,
        hardness=store.difficulties([e.id for e in found.items]),
        total=store.environment_total(**q.filters),
        facets=facets,
        open_facets=sum(1 for name in facets if name in first),
        telling=render.TELLING,
        rejects=store.reject_counts(kind or None),
        llm=store.settings.llm_model if store.settings.llm_url else "",
        next=q.url(found.cursor) if found.cursor else "",
        first=q.url() if cursor else "",
    )


@router.post("/environments")
async def order(request: Request, store: StoreDep) -> Response:
    """The form that orders new environments: puts the job and shows it."""
    form = {k: v[0] for k, v in parse_qs((await request.body())[:8192].decode("utf-8", "replace")).items()}
    try:
        asked = Order.model_validate(form)
    except ValidationError as e:
        raise UserError(
            "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {str(p['input'])[:80]!r}" for p in e.errors())
        ) from e
    from gymsmith import jobs

    job = jobs.submit(store, "generate", asked.model_dump())
    return RedirectResponse(f"/jobs/{job.id}", status_code=303)


@router.get("/environments/{environment_id}")
def detail(request: Request, environment_id: str, store: StoreDep) -> Response:
    """Instruction and evidence."""
    environment = store.environment(environment_id)
    evidence = store.evidence(environment_id)
    hardness = store.difficulties([environment.id])[environment.id]
    return _tab(request, store, environment, "evidence", evidence=evidence, groups=_grouped(evidence), hardness=hardness)


@router.get("/environments/{environment_id}/files")
def files(request: Request, environment_id: str, store: StoreDep, settings: SettingsDep, name: str = "") -> Response:
    """The task folder."""
    environment = store.environment(environment_id)
    members = folder.members(settings.home, environment.path)
    name = name or (members[0].name if members else "")
    data = folder.content(settings.home, environment.path, name) if name else b""
    binary = b"\0" in data[:4096]
    shown = "" if binary else data[:SHOWN_BYTES].decode("utf-8", "replace")
    return _tab(
        request, store, environment, "files", members=members, name=name, lines=shown.splitlines(), binary=binary, size=len(data)
    )


@router.get("/environments/{environment_id}/trajectories")
def attempts(request: Request, environment_id: str, store: StoreDep, cursor: str = "") -> Response:
    """Who tried it."""
    environment = store.environment(environment_id)
    rows = store.trajectory_rows(TrajectoryFilter(environment_id=environment_id), cursor=cursor, limit=ATTEMPTS)
    return _tab(request, store, environment, "trajectories", rows=rows.items, next=rows.cursor, first=bool(cursor))


def _tab(request: Request, store: Store, environment: Environment, tab: str, **context: Any) -> Response:
    outcomes = store.trajectory_outcomes(environment_id=environment.id)
    return render.page(request, f"environment_{tab}.html", "/environments", e=environment, tab=tab, outcomes=outcomes, **context)


def _grouped(evidence: Evidence | None) -> list[GateGroup]:
    if evidence is None:
        return []
    purposes = (
        ("Controls", "Doing nothing must fail, the reference solution must pass.", ("noop", "oracle", "again", "suite")),
        ("Other honest solutions", "Written differently, must pass too.", ("alternative", "restyled")),
        ("Wrong work", "Parts of the solution, and the solution with one thing wrong, must fail.", ("halves", "mutants")),
        ("Cheats", "Dishonest attempts, must earn nothing.", ("cheat",)),
        ("Given away", "What an agent could find, or could never know.", ("leak", "looking", "reads", "consistency")),
        ("Held against others", "Tasks before it, benchmarks, a second build.", ("duplicate", "contamination", "rebuild")),
        ("Tests before and after", "Broken by the change, mended by the solution.", ("f2p", "p2p")),
    )
    groups, taken = [], set()
    for title, what, names in purposes:
        gates = [g for g in evidence.gates if g.name.split(":")[0].split("-")[0] in names]
        taken |= {id(g) for g in gates}
        if gates:
            groups.append(GateGroup(title, what, gates))
    if rest := [g for g in evidence.gates if id(g) not in taken]:
        groups.append(GateGroup("Further gates", "Run time and the rest.", rest))
    return groups
