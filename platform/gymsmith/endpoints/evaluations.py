"""`/evaluations`: reports of pass rates, and the order of new ones."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from gymsmith.endpoints.envelope import Cursor, Envelope, IdempotencyKey, Limit, StoreDep, order
from gymsmith.schema import EvalReport, Job

router = APIRouter(tags=["evaluations"])


class EvaluationOrder(BaseModel):
    """Payload of an `evaluate` job."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(min_length=1)
    name: str = Field(min_length=1, max_length=200)
    environments: list[str] | dict[str, Any] = Field(description="Ids, or a selection {kind, labels, ...}.")
    policy: dict[str, Any] = Field(
        default_factory=dict,
        description="{url, version}; without url the run's engine is used. {kind: solution} plays the reference solutions.",
    )
    tokenizer: str = ""
    mode: Literal["sampled", "greedy"] = "sampled"
    seed: int = Field(default=0, ge=0, lt=2**63)
    sampling: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    max_turns: int | None = Field(default=None, ge=1, le=200)
    concurrency: int | None = Field(default=None, ge=1, le=1024)


@router.get("/evaluations", operation_id="listEvaluations")
def list_evaluations(store: StoreDep, run_id: str | None = None, cursor: Cursor = "", limit: Limit = 50) -> Envelope[EvalReport]:
    """Reports, newest first."""
    page = store.reports(run_id, cursor=cursor, limit=limit)
    return Envelope.of(page.items, page.cursor, store.report_total(run_id))


@router.get("/evaluations/{report_id}", operation_id="getEvaluation")
def get_evaluation(report_id: str, store: StoreDep) -> EvalReport:
    """One report."""
    return store.report(report_id)


@router.post("/evaluations", operation_id="orderEvaluation", status_code=202)
def order_evaluation(body: EvaluationOrder, store: StoreDep, response: Response, idempotency_key: IdempotencyKey = "") -> Job:
    """Evaluate a policy on environments; the result names the report."""
    store.run(body.run_id)
    payload = {"mode": body.mode, "seed": body.seed, **body.model_dump(exclude_defaults=True)}
    return order(store, response, "evaluate", payload, idempotency_key, run_id=body.run_id)
