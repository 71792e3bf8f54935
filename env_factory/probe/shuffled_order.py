"""A pytest plug-in for the verifier of an oracle: the tests in another order. Copied into tests/; never imported by the host.

Files, classes within a file, and tests within a class are shuffled, each among their own kind: a file's or a class's set-up still
runs once. The seed is $GYMSMITH_ORDER.
"""

from __future__ import annotations

import os
import random
from typing import Any


def pytest_collection_modifyitems(items: list[Any]) -> None:
    rng = random.Random(os.environ.get("GYMSMITH_ORDER", "0"))
    ranks: dict[tuple[str, ...], float] = {}

    def rank(item: Any) -> tuple[float, ...]:
        parts = item.nodeid.split("[")[0].split("::")
        return (*(ranks.setdefault(tuple(parts[:depth]), rng.random()) for depth in range(1, len(parts) + 1)), rng.random())

    keys = {id(item): rank(item) for item in items}
    items.sort(key=lambda item: keys[id(item)])
