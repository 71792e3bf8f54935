"""One-variable ablations: the same recipe and seeds, one key changed, and whether the difference is more than seed noise.

Every arm runs every seed, and equal seeds see equal data in equal order, so arms are compared seed by seed (a paired t
interval). `effect` divides the mean difference by the standard deviation that seeds alone cause. Results are lines of a JSONL
file, written as each run ends; the same command after a kill runs only what is missing.

How a run is trained is handed in as a `Train`; `score` is the one of the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import ConfigError, Conflict, GymsmithError
from trainer.config import override
from trainer.model.config import Strict

if TYPE_CHECKING:
    from gymsmith.attach import House
    from gymsmith.store import Store

Train = Callable[[Sequence[str], int], float]
"""(overrides, seed) -> the metric, lower is better. NaN or infinite: the run diverged, which is a result."""
Told = Callable[[int, int, str], None]
"""(runs done, runs in all, what just ended)."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% quantiles of Student's t for 1 to 10 degrees of freedom."""


class Ablation(Strict):
    """What is compared."""

    recipe: str
    key: str
    """The one knob, as in `pretrain.optim.lr`."""
    values: tuple[str, ...]
    """As TOML or plain text; the first is the baseline."""
    seeds: tuple[int, ...] = (1, 2, 3)
    fixed: tuple[str, ...] = ()
    """Overrides of every arm."""
    metric: str = "loss"

    def check(self) -> None:
        """Raises: ConfigError: nothing to compare, no noise to measure, or the knob is also fixed."""
        if len(set(self.values)) < 2 or len(set(self.values)) != len(self.values):
            raise ConfigError(f"an ablation needs two different values of {self.key} at least, got {list(self.values)}")
        if len(set(self.seeds)) < 2:
            raise ConfigError(f"seed noise needs two different seeds at least, got {list(self.seeds)}; three are usual")
        if any(text.split("=")[0].strip() == self.key for text in self.fixed):
            raise ConfigError(f"{self.key} is what varies, but it is also fixed by --set; leave one of them out")
        override({}, self.fixed)

    @property
    def digest(self) -> str:
        """Names everything that a stored result depends on, but not which other arms or seeds were asked for."""
        same = (self.recipe, self.key, sorted(self.fixed), self.metric)
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Effect:
    """One value against the baseline. All in units of the metric unless said."""

    value: str
    scores: tuple[float, ...]
    """Per seed."""
    mean: float
    difference: float
    """Mean over seeds of (this - baseline); negative is better."""
    low: float
    high: float
    """95% interval of the difference."""
    effect: float
    """difference / seed noise."""
    verdict: str
    """baseline, better, worse, within noise, or diverged."""


def run(ablation: Ablation, train: Train, file: Path, told: Told = lambda done, total, what: None) -> list[Effect]:
    """Run what `file` does not hold yet; the table.

    Raises:
        ConfigError: the ablation compares nothing.
        Conflict: `file` holds another ablation's results.
    """
    ablation.check()
    done = _read(file, ablation)
    total = len(ablation.values) * len(ablation.seeds)
    # Seeds outside, values inside: a run that is stopped early has whole comparisons.
    for seed in ablation.seeds:
        for value in ablation.values:
            if (value, seed) in done:
                continue
            done[value, seed] = train((*ablation.fixed, f"{ablation.key}={value}"), seed)
            _append(file, {"ablation": ablation.digest, "value": value, "seed": seed, ablation.metric: done[value, seed]})
            told(len(done), total, f"{ablation.key}={value} seed {seed}: {done[value, seed]:.4f}")
    return effects({value: tuple(done[value, seed] for seed in ablation.seeds) for value in ablation.values})


def score(house: House, ablation: Ablation, corpus: str, overrides: Sequence[str], seed: int, quiet: bool) -> float:
    """Pre-train once as a run of the store: the metric's mean over the last tenth of its steps, NaN when it diverged."""
    name = f"ablation {overrides[-1]} seed {seed}"
    try:
        run = house.train(
            "pretrain", recipe=ablation.recipe, seed=seed, inputs={"corpus": corpus}, overrides=overrides, name=name, quiet=quiet
        )
    except GymsmithError as error:
        if "expected a finite loss" in str(error):
            return math.nan
        raise
    return final(house.store, run.id, ablation.metric)


def final(store: Store, run_id: str, metric: str) -> float:
    """Mean of a run's metric over the last tenth of its steps.

    Raises:
        ConfigError: the run has no such metric.
    """
    values = [(m.step, m.value) for m in store.metrics(run_id, [metric])]
    if not values:
        known = ", ".join(sorted({m.name for m in store.metrics(run_id)})) or "none yet"
        raise ConfigError(f"expected a metric {metric!r}, run {run_id} has {known}; use one of these")
    last = max(step for step, _ in values)
    tail = [value for step, value in values if step > 0.9 * last]
    return sum(tail) / len(tail)


def effects(scores: dict[str, tuple[float, ...]]) -> list[Effect]:
    """value -> score per seed, the baseline first -> one row per value.

    Seed noise is pooled over the arms that did not diverge; with every arm seen on the same seeds, a value's own scatter counts.
    """
    base_name, base = next(iter(scores.items()))
    finite = [s for s in scores.values() if all(map(math.isfinite, s))]
    noise = math.sqrt(sum(_variance(s) for s in finite) / len(finite)) if finite else math.nan
    rows = []
    for value, mine in scores.items():
        mean = sum(mine) / len(mine)
        differences = tuple(a - b for a, b in zip(mine, base, strict=True))
        difference = sum(differences) / len(differences)
        if not math.isfinite(difference):
            rows.append(Effect(value, mine, mean, math.nan, math.nan, math.nan, math.nan, "diverged"))
            continue
        freedom = len(differences) - 1
        half = T_95[min(freedom, len(T_95)) - 1] * math.sqrt(_variance(differences) / len(differences))
        verdict = "better" if difference + half < 0 else "worse" if difference - half > 0 else "within noise"
        effect = difference / noise if noise > 0 else math.copysign(math.inf, difference) if difference else 0.0
        verdict = "baseline" if value == base_name else verdict
        rows.append(Effect(value, mine, mean, difference, difference - half, difference + half, effect, verdict))
    return rows


def lines(ablation: Ablation, rows: Sequence[Effect]) -> list[str]:
    """The table as text."""
    width = max(len(ablation.key), *(len(row.value) for row in rows))
    out = [f"{ablation.key:{width}}  {ablation.metric:>8}  difference  95% interval         effect/noise  verdict"]
    for row in rows:
        interval = f"[{row.low:+.4f}, {row.high:+.4f}]"
        out.append(
            f"{row.value:{width}}  {row.mean:8.4f}  {row.difference:+10.4f}  {interval:20} {row.effect:12.1f}  {row.verdict}"
        )
    return out


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _read(file: Path, ablation: Ablation) -> dict[tuple[str, int], float]:
    """Finished runs. A last line that a kill cut short is dropped from the file: its run is done again."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(file, len(whole.encode()))
    found: dict[tuple[str, int], float] = {}
    for line in whole.splitlines():
        row = json.loads(line)
        if row["ablation"] != ablation.digest:
            raise Conflict(f"{file} holds the ablation {row['ablation']}, this one is {ablation.digest}; name another file")
        found[row["value"], row["seed"]] = float(row[ablation.metric])
    return found


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())
