"""Pages of rows: newest first, each row once, at the cost of an index seek however deep."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from gymsmith.errors import UserError
from gymsmith.rows.database import Database
from gymsmith.schema import Word

MAX_LIMIT = 1000
T = TypeVar("T")


class Page(Word, Generic[T]):
    """Some rows; `cursor` opens the next page and is empty after the last."""

    items: list[T]
    cursor: str = ""


def newest_first(
    db: Database,
    table: sa.Table,
    columns: Sequence[Any],
    where: Sequence[Any],
    hand_out: Callable[[Any], T],
    cursor: str,
    limit: int,
) -> Page[T]:
    """One page of `table` by (created_us, id), descending. `columns` are selected besides those two.

    Raises:
        UserError: a cursor that is not ours, or a limit out of range.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UserError(f"limit must be 1 to {MAX_LIMIT}, got {limit}; use the cursor for more")
    key = sa.tuple_(table.c.created_us, table.c.id)
    query = sa.select(table.c.created_us.label("_us"), table.c.id.label("_id"), *columns).where(*where)
    if cursor:
        us, last = _unpack(cursor)
        query = query.where(key < sa.tuple_(sa.literal(us), sa.literal(last)))
    query = query.order_by(table.c.created_us.desc(), table.c.id.desc()).limit(limit + 1)
    with db.read() as connection:
        rows = connection.execute(query).all()
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(items=[hand_out(row) for row in rows], cursor=_pack(rows[-1]._us, rows[-1]._id) if more else "")


def _pack(us: int, last: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([us, last]).encode()).decode().rstrip("=")


def _unpack(cursor: str) -> tuple[int, str]:
    try:
        us, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not (isinstance(us, int) and isinstance(last, str)):
            raise ValueError
    except (ValueError, TypeError, binascii.Error) as e:
        raise UserError(f"the cursor {cursor[:60]!r} is not one that a page handed out; start again without a cursor") from e
    return us, last
