"""One worker process beside two, each on a processor of its own, with the same orders.

python -m env_factory.bench.workers HOME PROVIDER ORDERS        one of these processes
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from env_factory import tasks
from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.schema import Job
from gymsmith.store import Store
from sandboxes.worker import close_all

log = logging.getLogger(__name__)

SCALING = ("toolz==1.2.0", 4)
"""Package and environments of each of the two orders whose time is compared."""


class Context:
    """A job that nobody else waits for."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.job = Job(id="bench", kind="generate", queue="factory")
        self.settings = settings
        self.store = store

    def progress(self, **fields: Any) -> None:
        log.debug("event=bench_progress %s", fields)

    def check(self) -> None:
        """Nobody cancels a benchmark."""


def scaling(settings: Settings) -> list[Row]:
    """The same two orders by one worker process on one processor, and by two on two."""
    package, n = SCALING
    processors = sorted(os.sched_getaffinity(0))[:2]
    if len(processors) < 2:
        return [Row("two worker processes beside one", "", 0.0, peer_name="needs two processors, this machine lends one")]
    orders = [{"source": f"pypi:{package}", "kind": "mutation", "n": n, "seed": s, "gates": "admission"} for s in (11, 12)]
    seconds: list[float] = []
    for shares in ([orders], [orders[:1], orders[1:]]):
        home = settings.home / f"workers-{len(shares)}"
        _children(settings, home, [[{**orders[0], "n": 1, "seed": 10}]], processors)  # Image, wheels and database are there then.
        started = time.perf_counter()
        _children(settings, home, shares, processors)
        seconds.append(time.perf_counter() - started)
    rates = [3600 * 2 * n / each for each in seconds]
    ratio = rates[1] / rates[0]
    return [
        Row(
            "two worker processes on two processors", "1/h", round(rates[1], 1), round(rates[0], 1),
            "one process on one processor", round(ratio, 2), ">= 1.7x", ratio >= 1.7,
        )
    ]  # fmt: skip


def _children(settings: Settings, home: Path, shares: Sequence[Sequence[Mapping[str, Any]]], processors: Sequence[int]) -> None:
    """Carry out each share of the orders in a process of its own, on a processor of its own."""
    running = []
    for share, processor in zip(shares, processors, strict=False):
        command = [sys.executable, "-m", "env_factory.bench.workers", str(home), settings.provider, json.dumps(share)]
        running.append(subprocess.Popen(["taskset", "-c", str(processor), *command], stdout=subprocess.DEVNULL))
    for child in running:
        if child.wait() != 0:
            raise RuntimeError(
                f"expected a worker process to carry out its orders, it ended with {child.returncode}; see its messages"
            )


def main() -> None:
    """A worker process: state folder, provider and orders on the command line."""
    settings = Settings.load(home=Path(sys.argv[1]), provider=sys.argv[2])
    settings.home.mkdir(parents=True, exist_ok=True)
    with Store.open(settings) as store:
        for order in json.loads(sys.argv[3]):
            tasks.generate(order, Context(settings, store))
    close_all()


if __name__ == "__main__":
    main()
