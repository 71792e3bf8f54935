"""`gymsmith bench factory`: what environments of real packages cost, without a language model and with every gate.

Orders for five packages off the index, in slices, one after the other in this process; a journal in the state folder remembers
what each slice took, so with `--keep FOLDER` an interrupted run goes on. Then the screen beside its peer (the whole suite for
each candidate), and one worker process beside two. Costs of 10,000 are the measured ones times the number: they hold for as many
packages like these as that takes, which is printed with them.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from env_factory import tasks
from env_factory.bench.reruns import cheat_rows, rerun, rerun_rows
from env_factory.bench.screening import groups, selection
from env_factory.bench.workers import Context, scaling
from gymsmith import taskdir
from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.schema import Environment
from gymsmith.store import Store

log = logging.getLogger(__name__)

PACKAGES = ("boltons==26.2.0", "funcy==2.1", "marshmallow==4.4.0", "mistune==3.1.4", "toolz==1.2.0")
"""Pure Python, permissive licences, sdists that bring their tests, suites of seconds, and no copy among vendored packages."""
PLAN = {"reconstruction": 40, "mutation": 40, "combination": 12}
"""Environments of one package that are asked for; with one mutation of a function, and one combination, at most two of each."""
QUICK = {"reconstruction": 2, "mutation": 2, "combination": 1}
SLICE = 10
SEED = 2026
LARGE = 10_000
RERUNS = 1000
"""Solutions of admitted environments that are run again afterwards."""
SAME = 0.8
"""Share of five-word pieces that makes two environments of a package duplicates of one another."""


def measure(settings: Settings, quick: bool) -> list[Row]:
    """All rows. quick: one package, a few environments of each kind, and no second worker process."""
    packages, plan = (PACKAGES[-1:], QUICK) if quick else (PACKAGES, PLAN)
    settings.home.mkdir(parents=True, exist_ok=True)
    with Store.open(settings) as store:
        for n in range(0, max(plan.values()), SLICE):
            # A slice of everything before the next of anything: a run that is stopped early has seen all packages and kinds.
            for package in packages:
                for kind, wanted in plan.items():
                    if n < wanted:
                        _order(settings, store, package, kind, min(n + SLICE, wanted))
        made = _environments(store)
        reruns = 5 if quick else RERUNS
        afterwards = [*cheat_rows(store), *rerun_rows(rerun(settings, store, reruns), reruns)]
    rows = [
        *_kinds(settings, made),
        *_whole(settings, made),
        *selection(settings, packages[-1], 4 if quick else 24, _journal(settings)),
        *afterwards,
    ]
    rows += [groups(settings, package, 6 if quick else 24) for package in packages]
    return rows if quick else [*rows, *scaling(settings)]


def _order(
    settings: Settings,
    store: Store,
    package: str,
    kind: str,
    wanted: int,
    generate: Callable[..., dict[str, Any]] = tasks.generate,
) -> None:
    """Order environments until there are `wanted`, unless the journal knows of that, or that there are no more."""
    known = [line for line in _journal(settings) if (line["package"], line["kind"]) == (package, kind)]
    if any(line["n"] >= wanted or line["admitted"] < line["n"] for line in known):
        return
    order = {"source": f"pypi:{package}", "kind": kind, "n": wanted, "seed": SEED, "gates": "admission"}
    if kind == "mutation":
        order["per_function"] = 1
    made = generate(order, Context(settings, store))
    line = {"package": package, "kind": kind, "n": wanted, **made, "admitted": len(made["admitted"])}
    _write(settings, line)
    log.info("event=slice %s", json.dumps(line))


def _path(settings: Settings) -> Path:
    return settings.home / "factory" / "bench.jsonl"


def _journal(settings: Settings) -> list[dict[str, Any]]:
    path = _path(settings)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _write(settings: Settings, line: Mapping[str, Any]) -> None:
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _environments(store: Store) -> list[Environment]:
    """The verified ones of the plan's kinds and packages."""
    names = {package.partition("==")[0] for package in PACKAGES}
    found = [store.environment(each) for kind in PLAN for each in store.environment_ids(kind=kind)]
    return [each for each in found if each.spec.labels["package"] in names]


def _kinds(settings: Settings, made: Sequence[Environment]) -> list[Row]:
    """Per kind: how many, at what cost, and why the others were turned down."""
    rows: list[Row] = []
    journal = _journal(settings)
    for kind in PLAN:
        lines = [line for line in journal if line["kind"] == kind]
        last = {line["package"]: line for line in lines}
        candidates, admitted = (sum(line["new"][n] for line in lines) for n in (0, 1))
        seconds, cpu = (sum(line[name] for line in lines) for name in ("seconds", "cpu_seconds"))
        total = sum(line["candidates"] for line in last.values())
        verified = sum(e.spec.kind == kind for e in made)
        rows += [Row(f"{kind}: candidates", "", total), Row(f"{kind}: admitted", "", verified)]
        if admitted:
            rows += [
                Row(f"{kind}: seconds per admitted, in one process", "s", round(seconds / admitted, 2)),
                Row(f"{kind}: CPU-seconds per admitted", "s", round(cpu / admitted, 2)),
                Row(f"{kind}: candidates per admitted", "", round(candidates / admitted, 2)),
            ]
        reasons: Counter[str] = Counter()
        for line in last.values():
            reasons.update(line["reasons"])
        rows += [Row(f"{kind}: turned down, {reason}", "", count) for reason, count in reasons.most_common()]
    return rows


def _whole(settings: Settings, made: Sequence[Environment]) -> list[Row]:
    """Over all kinds: what was promised, and what ten thousand would take."""
    journal = _journal(settings)
    admitted = sum(line["new"][1] for line in journal)
    seconds, cpu = (sum(line[name] for line in journal) for name in ("seconds", "cpu_seconds"))
    functions: Counter[tuple[str, str, str]] = Counter()
    packages: Counter[str] = Counter()
    operators: set[str] = set()
    for each in made:
        labels = each.spec.labels
        packages[labels["package"]] += 1
        operators |= {labels["operator"]} if each.spec.kind == "mutation" else set()
        functions.update((labels["package"], labels["path"], name) for name in labels["function"].split(" + "))
    full = len(packages) == len(PACKAGES)
    least, most = min(packages.values(), default=0), max(functions.values(), default=0)
    per_hour = 3600 * admitted / seconds if seconds else 0.0
    rows = [
        Row("verified environments", "", len(made), bar=">= 300" if full else "", ok=len(made) >= 300 if full else None),
        Row("of one package, least", "", least, bar=">= 30" if full else "", ok=least >= 30 if full else None),
        Row("of one function, most", "", most, bar="<= 2", ok=most <= 2),
        Row("operators of mutations", "", len(operators), bar=">= 4" if full else "", ok=len(operators) >= 4 if full else None),
        Row(
            "admitted per hour, all gates, one process on this machine", "1/h", round(per_hour, 1), bar=">= 60", ok=per_hour >= 60
        ),
    ]
    if not admitted:
        return rows
    folder = sum(_bytes(settings.home / each.path) for each in made) / len(made)
    layers = _bytes(settings.images_dir) / admitted
    copies = len(_duplicates(settings, made))
    share = copies / len(made)
    needed = LARGE / (1 - share)
    return [
        *rows,
        Row("duplicates among them", "", copies),
        Row(f"{LARGE} distinct ones: hours, one process", "h", round(needed * seconds / admitted / 3600, 1)),
        Row(f"{LARGE} distinct ones: CPU", "h", round(needed * cpu / admitted / 3600, 1)),
        Row(f"{LARGE} distinct ones: task folders", "GB", round(needed * folder / 1e9, 2)),
        Row(f"{LARGE} distinct ones: image layers", "GB", round(needed * layers / 1e9, 2)),
        Row(f"{LARGE} distinct ones: duplicates thrown away", "", round(needed - LARGE)),
        Row(f"{LARGE} distinct ones: packages like these", "", round(needed * len(packages) / len(made))),
    ]


def _bytes(folder: Path) -> int:
    """What the files below a folder hold; one that has several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            info = os.lstat(os.path.join(place, name))
            seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


def _duplicates(settings: Settings, made: Sequence[Environment]) -> list[str]:
    """Ids of environments that say nearly the same, in text and solution, as an earlier one of their package."""
    earlier: dict[str, list[frozenset[str]]] = defaultdict(list)
    found = []
    for each in made:
        task = taskdir.read(settings.home / each.path)
        words = re.findall(r"\w+", f"{task.instruction}\n{task.solution}")
        pieces = frozenset(" ".join(words[n : n + 5]) for n in range(len(words)))
        known = earlier[each.spec.labels["package"]]
        if any(len(pieces & other) >= SAME * len(pieces | other) for other in known):
            found.append(each.id)
        known.append(pieces)
    return found
