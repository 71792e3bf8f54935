"""What every resource shares: the open store of a request, the page envelope, and how an order becomes a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel

from gymsmith.config import Settings
from gymsmith.errors import UserError
from gymsmith.schema import Job, now
from gymsmith.store import Store, Total

T = TypeVar("T")
PREFIX = "/api/v1"
MAX_KEY = 200


class Envelope(BaseModel, Generic[T]):
    """A page of a list. `next_cursor` opens the next one, null after the last; `total` is a floor when `total_is_capped`."""

    items: list[T]
    next_cursor: str | None = None
    total: int
    total_is_capped: bool = False

    @classmethod
    def of(cls, items: list[T], cursor: str, total: Total) -> Envelope[T]:
        """From a page of the store."""
        return cls(items=items, next_cursor=cursor or None, total=total.n, total_is_capped=total.capped)


def _store(request: Request) -> Store:
    return request.app.state.store  # type: ignore[no-any-return]


def _settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


StoreDep = Annotated[Store, Depends(_store)]
SettingsDep = Annotated[Settings, Depends(_settings)]
Cursor = Annotated[str, Query(description="`next_cursor` of the page before; empty for the first page.", max_length=400)]
Limit = Annotated[int, Query(ge=1, le=200, description="Rows per page.")]
IdempotencyKey = Annotated[
    str,
    Header(alias="Idempotency-Key", max_length=MAX_KEY, description="The same key with the same body never makes a second job."),
]


def labels_of(pairs: Sequence[str]) -> dict[str, str]:
    """`("family:grep",)` -> `{"family": "grep"}`.

    Raises:
        UserError: a pair without a colon.
    """
    for pair in pairs:
        if ":" not in pair:
            raise UserError(f"a label filter is KEY:VALUE, got {pair[:80]!r}; for example label=family:lookup")
    return dict(pair.split(":", 1) for pair in pairs)


def order(store: Store, response: Response, kind: str, payload: dict[str, Any], key: str, run_id: str = "") -> Job:
    """Put a job and answer 202 with where to watch it.

    Raises:
        Conflict: the key names another order.
    """
    from gymsmith import jobs

    asked_at = now()
    job = jobs.submit(store, kind, payload, key=f"api:{key}" if key else "", run_id=run_id)
    response.status_code = 202
    response.headers["location"] = f"{PREFIX}/jobs/{job.id}"
    response.headers["retry-after"] = "1"
    if job.created_at < asked_at:
        response.headers["idempotency-replayed"] = "true"
    return job
