"""`gymsmith bench NAME`: measurements with the peer in the same run, one table, one JSON file.

Each benchmark is a function `measure(settings, quick) -> rows` in a file beside the code that it measures, known by name like the
doors of jobs. Absolute numbers belong to the machine and its load, both of which are printed; ratios are what to compare.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from gymsmith.config import Settings
from gymsmith.errors import ConfigError

BENCHES = {
    "factory": "env_factory.bench.costs:measure",
    "images": "sandboxes.bench.images:measure",
    "loop": "gymsmith.bench_loop:measure",
    "remote": "sandboxes.bench.remote:measure",
    "render": "sandboxes.bench.render:measure",
    "sandboxes": "sandboxes.bench.sandboxes:measure",
    "trainer": "trainer.bench.speed:measure",
    "trainer-gpu": "trainer.bench.gpu:measure",
}
"""Name -> "module:function"; the function takes (settings with a home of its own, quick) and returns the rows."""


class Row(NamedTuple):
    """One line. `bar` is what `ours` (or `ratio`) is held against, `ok` None where nothing is promised."""

    metric: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str = ""
    ratio: float | None = None
    bar: str = ""
    ok: bool | None = None


def run(
    name: str, settings: Settings, *, quick: bool = False, json_file: Path | None = None, keep: Path | None = None
) -> list[Row]:
    """Measure and print; the rows.

    keep: the state folder of the benchmark, which is then not a temporary one: what can go on where it was, does.

    Raises:
        ConfigError: no such benchmark.
    """
    measure = _find(name)
    before = os.getloadavg()
    with contextlib.ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gymsmith-bench-")))
        rows = measure(Settings.load(home=home.resolve(), provider=settings.provider), quick)
    document = {
        "bench": name,
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "load": [round(before[0], 2), round(os.getloadavg()[0], 2)],
        "rows": [row._asdict() for row in rows],
    }
    if json_file:
        json_file.write_text(json.dumps(document, indent=2) + "\n")
    show(document, rows)
    return rows


def _find(name: str) -> Callable[[Settings, bool], list[Row]]:
    if name not in BENCHES:
        raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(sorted(BENCHES))}")
    module, _, function = BENCHES[name].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def show(document: dict[str, Any], rows: list[Row]) -> None:
    """The table on the terminal."""
    machine = document["machine"]
    title = f"bench {document['bench']}: {machine['cores']} cores, load {document['load'][0]} to {document['load'][1]}"
    table = Table(title=title)
    for column in ("metric", "ours", "unit", "peer", "ratio", "bar", ""):
        table.add_column(column, justify="right" if column in ("ours", "peer", "ratio") else "left")
    for row in rows:
        peer = f"{row.peer:.4g} ({row.peer_name})" if row.peer is not None else row.peer_name
        ratio = f"{row.ratio:.3g}" if row.ratio is not None else ""
        mark = {True: "ok", False: "MISSED", None: ""}[row.ok]
        table.add_row(row.metric, f"{row.ours:.4g}", row.unit, peer, ratio, row.bar, mark)
    Console(width=130).print(table)
