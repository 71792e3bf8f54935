"""The frame of `gymsmith bench sandboxes`: how much is measured, interleaved rounds, and rows beside a peer or without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from gymsmith.bench import Row
from gymsmith.config import Settings
from sandboxes.base import ImageSource
from sandboxes.bench.peers import DockerCli, PeerMissing, SweRex
from sandboxes.namespace import NamespaceProvider

T = TypeVar("T")
Arm = Callable[[], Awaitable[float]]
"""One operation; returns its milliseconds."""
PEERS = {"docker": "no_docker", "docker exec": "no_docker", "sdk": "no_docker", "rex": "no_rex"}
"""Arms that may fail, and where it is kept why."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    crowd: int
    crowd_s: float
    ours_in_flight: int
    docker_in_flight: int
    takes: int
    leak_boxes: int
    leak_rounds: int


QUICK = Size(rounds=4, crowd=300, crowd_s=12, ours_in_flight=256, docker_in_flight=24, takes=60, leak_boxes=40, leak_rounds=1)
FULL = Size(
    rounds=15, crowd=1000, crowd_s=60, ours_in_flight=1280, docker_in_flight=128, takes=300, leak_boxes=200, leak_rounds=5
)


@dataclass(slots=True)
class Bench:
    """What runs, and the rows so far."""

    settings: Settings
    size: Size
    ns: NamespaceProvider
    images: ImageSource
    rows: list[Row] = field(default_factory=list)
    cli: DockerCli | None = None
    rex: SweRex | None = None
    no_docker: str = ""
    no_rex: str = ""

    def against(self, metric: str, ours: float, peer: float | None, name: str, most: float, *, also: bool = True) -> None:
        """A row of milliseconds whose ratio may be at most 1/`most`; without a peer there is no verdict."""
        ratio = None if peer is None else ours / peer
        ok = None if ratio is None else ratio <= 1 / most and also
        missing = self.no_rex if "SWE-ReX" in name else self.no_docker
        self.rows.append(
            Row(
                metric,
                "ms",
                round(ours, 3),
                None if peer is None else round(peer, 2),
                name if peer is not None else f"NOT MEASURED: {missing}",
                None if ratio is None else round(ratio, 5),
                f"<= 1/{most:g}",
                ok,
            )
        )

    def alone(self, metric: str, unit: str, ours: float, bar: str = "", ok: bool | None = None) -> None:
        """A row without a peer."""
        self.rows.append(Row(metric, unit, round(ours, 3), bar=bar, ok=ok))

    async def rounds(self, arms: Mapping[str, tuple[int, Arm | None]]) -> dict[str, list[float]]:
        """Milliseconds of each arm's operations; in each round an arm does as many as its number says.

        A peer's arm that fails is left out from there on, and so is what it measured.
        """
        took: dict[str, list[float]] = {name: [] for name, (_, arm) in arms.items() if arm is not None}
        for number in range(self.size.rounds + 1):
            for name, (times, arm) in arms.items():
                if arm is None or name not in took:
                    continue
                try:
                    measured = [await arm() for _ in range(times if number else 1)]
                except Exception as error:
                    if name not in PEERS:
                        raise
                    self.failed(PEERS[name], error)
                    del took[name]
                    continue
                if number:  # the first round warms caches
                    took[name] += measured
        return took

    def failed(self, why: str, error: Exception) -> None:
        """A peer cannot be measured: say so now, and in its rows."""
        reason = str(error) if isinstance(error, PeerMissing) else f"it failed ({type(error).__name__})"
        setattr(self, why, reason)
        print(f"gymsmith: a peer is not measured: {reason}", file=sys.stderr)


async def of_peer(bench: Bench, why: str, work: Awaitable[T]) -> T | None:
    """What a peer did, or None: a peer that fails costs its figures, not ours."""
    try:
        return await work
    except Exception as error:
        bench.failed(why, error)
        return None


async def milliseconds(work: Awaitable[object]) -> float:
    """How long it took."""
    began = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - began)


def middle(took: Mapping[str, list[float]], name: str) -> float | None:
    """The median of an arm; None when it was left out."""
    return median(took[name]) if took.get(name) else None
