"""`/jobs`: what is asked of the workers and how far it is, live; one job with what it made, and the button that stops it."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from gymsmith import render
from gymsmith.endpoints.envelope import StoreDep
from gymsmith.schema import State

router = APIRouter()
PER_PAGE = 40
EVENTS = 60


@router.get("/jobs")
def listing(
    request: Request,
    store: StoreDep,
    state: State | None = None,
    kind: str = "",
    all: Annotated[bool, Query(description="Show jobs that other jobs made, too.")] = False,
    cursor: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """All jobs, newest first."""
    last_event = store.last_event_id()
    filters: dict[str, Any] = {"state": state, "kind": kind or None, "top_level": not all}
    found = store.jobs(**filters, cursor=cursor, limit=PER_PAGE)
    chosen = {"state": state.value if state else "", "kind": kind, "all": "true" if all else ""}

    def url(**changed: str) -> str:
        pairs = {k: v for k, v in {**chosen, **changed}.items() if v}
        return "/jobs" + ("?" + urlencode(pairs) if pairs else "")

    return render.page(
        request,
        "jobs.html",
        "/jobs",
        jobs=found.items,
        last_event=last_event,
        total=store.job_total(**filters),
        states=store.job_states(),
        queues=store.queue_depths(),
        chosen=chosen,
        url=url,
        next=url(cursor=found.cursor) if found.cursor else "",
        first=url() if cursor else "",
    )


@router.get("/jobs/{job_id}")
def detail(request: Request, job_id: str, store: StoreDep) -> Response:
    """One job."""
    last_event = store.last_event_id()
    job = store.job(job_id)
    return render.page(
        request,
        "job.html",
        "/jobs",
        j=job,
        last_event=last_event,
        counts={
            k: v
            for k, v in job.progress.items()
            if k not in ("done", "total", "unit", "reasons") and not k.startswith("llm_") and not isinstance(v, dict | list)
        },
        bought=_bought({**job.progress, **job.result}),
        reasons=_reasons(job.progress.get("reasons") or job.result.get("reasons")),
        admitted=[i for i in job.result.get("admitted", []) if isinstance(i, str)]
        if isinstance(job.result.get("admitted"), list)
        else [],
        payload=_pretty(job.payload),
        result=_pretty({k: v for k, v in job.result.items() if not (k == "admitted" and isinstance(v, list))}),
        parent=next(iter(store.jobs_by_id([job.parent])), ""),
        children=store.jobs(parent=job_id, limit=20).items,
        children_total=store.job_total(parent=job_id),
        events=store.events_after(0, job_id=job_id, limit=EVENTS),
    )


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, store: StoreDep) -> Response:
    """The button."""
    store.cancel(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


def _bought(said: dict[str, Any]) -> dict[str, str]:
    """What a language model was paid for, as name -> value; empty for jobs that asked none."""
    if not said.get("llm_model"):
        return {}
    rows = {"Model": str(said["llm_model"]), "Answers": f"{said.get('llm_calls', 0):,}"}
    if said.get("llm_remembered"):
        rows["Found in the journal"] = f"{said['llm_remembered']:,}"
    about = "about " if said.get("llm_estimated") else ""
    rows["Tokens in"] = f"{about}{said.get('llm_prompt_tokens', 0):,}"
    rows["Tokens out"] = f"{about}{said.get('llm_completion_tokens', 0):,}"
    cost = said.get("llm_cost_usd", 0)
    rows["Cost"] = f"{about}{cost:.4f} USD" if cost else "no price is set"
    if said.get("stopped"):
        rows["Stopped by"] = f"its {said['stopped']}; a larger one goes on from here"
    return rows


def _reasons(found: Any) -> list[tuple[str, int]]:
    """Most frequent first."""
    if not isinstance(found, dict):
        return []
    counted = [(str(k), v) for k, v in found.items() if isinstance(v, int)]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _pretty(document: Any) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, default=str)
