"""Ablations: real effects are told from noise, a killed runner goes on, and nothing is compared with itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, Conflict, GymsmithError
from gymsmith.schema import Metric, Run
from gymsmith.store import Store
from trainer.ablation import Ablation, effects, lines, run, score

RATES = Ablation(recipe="demo", key="pretrain.optim.lr", values=("0.02", "0.01", "0.021", "9"), seeds=(1, 2, 3))


def train(overrides: Sequence[str], seed: int) -> float:
    """A run whose loss depends on the rate and, ten times less, on the seed."""
    rate = float(overrides[-1].partition("=")[2])
    return math.nan if rate > 1 else 2.0 + abs(rate - 0.02) * 10 + 0.01 * math.sin(seed * (1 + rate))


def test_effects_are_told_from_noise(tmp_path: Path) -> None:
    baseline, worse, same, diverged = run(RATES, train, tmp_path / "a.jsonl")
    assert baseline.verdict == "baseline" and baseline.difference == 0
    assert worse.verdict == "worse" and worse.effect > 5 and worse.low < 0.1 < worse.high + 1e-3
    assert same.verdict in ("within noise", "worse") and same.effect < 3
    assert diverged.verdict == "diverged"
    assert len(lines(RATES, [baseline, worse, same, diverged])) == 5


def test_noise_alone_is_called_noise() -> None:
    rows = effects({"a": (2.00, 2.05, 1.97), "b": (2.04, 1.98, 2.01)})
    assert rows[1].verdict == "within noise" and abs(rows[1].effect) < 1


def test_a_killed_runner_does_the_rest_only(tmp_path: Path) -> None:
    file, calls = tmp_path / "a.jsonl", []

    def dies(overrides: Sequence[str], seed: int) -> float:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append((overrides, seed))
        return train(overrides, seed)

    with pytest.raises(KeyboardInterrupt):
        run(RATES, dies, file)
    with file.open("a") as cut:
        cut.write('{"ablation": "')
    calls.clear()
    again = run(RATES, lambda o, s: calls.append((o, s)) or train(o, s), file)
    assert len(calls) == 12 - 5
    assert repr(again) == repr(run(RATES, train, tmp_path / "whole.jsonl"))
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 12


def test_bad_orders_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def never(overrides: Sequence[str], seed: int) -> float:
        raise AssertionError("nothing may run")

    for wrong in ({"values": ("1", "1")}, {"seeds": (1,)}, {"fixed": ("pretrain.optim.lr=3",)}):
        with pytest.raises(ConfigError):
            run(RATES.model_copy(update=wrong), never, tmp_path / "a.jsonl")
    run(RATES, train, tmp_path / "a.jsonl")
    with pytest.raises(Conflict, match="another file"):
        run(RATES.model_copy(update={"recipe": "standard"}), never, tmp_path / "a.jsonl")


def test_a_score_is_the_mean_of_the_last_tenth_and_a_divergence_none(tmp_path: Path) -> None:
    with Store.open(Settings(home=tmp_path)) as store:

        def house(says: str = "") -> Any:
            def train(stage: str, *, name: str, inputs: dict[str, Any], **given: Any) -> Run:
                assert (stage, name, inputs) == ("pretrain", "ablation pretrain.optim.lr=0.01 seed 7", {"corpus": "c"})
                if says:
                    raise GymsmithError(says)
                made = Run(id="run", kind="pretrain")
                store.put_run(made)
                store.put_metrics([Metric(run_id="run", step=n, name="loss", value=float(n)) for n in range(1, 41)])
                return made

            return SimpleNamespace(store=store, train=train)

        def scored(order: Ablation, says: str = "") -> float:
            return score(house(says), order, "c", ("pretrain.optim.lr=0.01",), 7, quiet=True)

        assert scored(RATES) == sum((37, 38, 39, 40)) / 4
        assert math.isnan(scored(RATES, "expected a finite loss at step 3, got nan; lower it"))
        with pytest.raises(GymsmithError, match="disk full"):
            scored(RATES, "disk full")
        with pytest.raises(ConfigError, match="expected a metric 'los', run run has loss"):
            scored(RATES.model_copy(update={"metric": "los"}))
