"""`/trajectories`: lists of index rows, and bodies a page at a time. `/rollouts`: the order of new ones."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from gymsmith import tokens
from gymsmith.endpoints.envelope import Cursor, Envelope, IdempotencyKey, Limit, SettingsDep, StoreDep, order
from gymsmith.errors import NotFound
from gymsmith.schema import Job, Reward, Segment, Step, VersionSpan
from gymsmith.store import Total, TrajectoryFilter, TrajectoryRow

router = APIRouter(tags=["trajectories"])
Offset = Annotated[int, Query(ge=0)]


class Head(BaseModel):
    """A trajectory without its steps and tokens."""

    id: str
    environment_id: str
    run_id: str
    group: str
    attempt: int
    seed: int
    policy_version: str
    reward: Reward | None
    error: str
    finish: str
    looked: bool | None
    seconds: dict[str, float]
    steps: int
    segments: list[int]
    """Length of each segment in tokens."""


class SegmentPart(Segment):
    """Tokens [offset, offset + len(ids)) of a segment. Version spans are relative to the segment's beginning."""

    versions: list[VersionSpan]
    texts: list[str] | None
    """Text of each id, when the run's tokenizer is at hand."""


class RolloutItem(BaseModel):
    """One attempt."""

    model_config = ConfigDict(extra="forbid")

    environment_id: str = Field(min_length=1)
    group: str = ""
    attempt: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)


class RolloutOrder(BaseModel):
    """Payload of a `rollout` job."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(min_length=1)
    items: list[RolloutItem] = Field(min_length=1, max_length=256)
    policy: dict[str, Any] = Field(
        default_factory=dict,
        description="{url, version}; without url the run's engine is used. {kind: solution} plays the reference solutions.",
    )
    tokenizer: str = ""
    sampling: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    max_turns: int | None = Field(default=None, ge=1, le=200)


@router.get("/trajectories", operation_id="listTrajectories")
def list_trajectories(
    store: StoreDep, wanted: Annotated[TrajectoryFilter, Depends()], cursor: Cursor = "", limit: Limit = 50
) -> Envelope[TrajectoryRow]:
    """Trajectories, newest first. `failed` selects attempts lost to an infrastructure error."""
    page = store.trajectory_rows(wanted, cursor=cursor, limit=limit)
    return Envelope.of(page.items, page.cursor, store.trajectory_total(wanted))


@router.get("/trajectories/{trajectory_id}", operation_id="getTrajectory")
def get_trajectory(trajectory_id: str, store: StoreDep) -> Head:
    """Everything but steps and tokens."""
    x = store.trajectory(trajectory_id)
    fields = {name: getattr(x, name) for name in Head.model_fields if name not in ("steps", "segments")}
    return Head(**fields, steps=len(x.steps), segments=[len(s.ids) for s in x.segments])


@router.get("/trajectories/{trajectory_id}/steps", operation_id="listTrajectorySteps")
def list_steps(trajectory_id: str, store: StoreDep, offset: Offset = 0, limit: Limit = 50) -> Envelope[Step]:
    """Steps [offset, offset + limit); `next_cursor` is the next offset."""
    steps = store.trajectory(trajectory_id).steps
    end = offset + limit
    return Envelope.of(steps[offset:end], str(end) if end < len(steps) else "", Total(n=len(steps)))


@router.get("/trajectories/{trajectory_id}/segments/{number}", operation_id="getTrajectorySegment")
def get_segment(
    trajectory_id: str,
    number: int,
    store: StoreDep,
    settings: SettingsDep,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=4096)] = 512,
) -> SegmentPart:
    """Exactly the tokens that the model saw and produced, with mask and log probabilities."""
    x = store.trajectory(trajectory_id)
    if not 0 <= number < len(x.segments):
        raise NotFound(f"trajectory {trajectory_id} has {len(x.segments)} segments, numbered from 0; got {number}")
    segment, end = x.segments[number], offset + limit
    ids = segment.ids[offset:end]
    return SegmentPart(
        ids=ids,
        mask=segment.mask[offset:end],
        logprobs=segment.logprobs[offset:end],
        versions=segment.versions,
        texts=tokens.texts(store, settings, x.run_id, ids),
    )


@router.post("/rollouts", operation_id="orderRollouts", status_code=202)
def order_rollouts(body: RolloutOrder, store: StoreDep, response: Response, idempotency_key: IdempotencyKey = "") -> Job:
    """Let a policy attempt environments; the result lists the trajectories."""
    store.run(body.run_id)
    payload = body.model_dump(exclude_defaults=True)
    return order(store, response, "rollout", payload, idempotency_key, run_id=body.run_id)
