"""The monitor names whoever was made guilty, and keeps quiet about healthy runs. The runs are real: a linear model by SGD."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from trainer.monitor.alerts import Alert, Facts, Monitor
from trainer.monitor.speed import Meter, Watchdog, datasheet

DIM, DOCUMENTS = 16, 32


def sgd(
    monitor: Monitor,
    steps: int,
    rate: Callable[[int], float] = lambda step: 0.05,
    poison: dict[int, list[int]] | None = None,
    change: Callable[[int, dict[str, float], Facts], None] = lambda step, metrics, facts: None,
) -> None:
    """Least squares with noise; `poison` makes documents of a step's batch nonsense, `change` touches what is reported."""
    rng = np.random.default_rng(0)
    truth, w = rng.standard_normal(DIM), np.zeros(DIM)
    for step in range(1, steps + 1):
        x = rng.standard_normal((DOCUMENTS, DIM))
        y = x @ truth + 0.5 * rng.standard_normal(DOCUMENTS)
        for row in (poison or {}).get(step, []):
            y[row] += 60.0
        error = x @ w - y
        gradient = 2 * x.T @ error / DOCUMENTS
        with np.errstate(over="ignore", invalid="ignore"):
            w = w - rate(step) * gradient
        norm = float(np.linalg.norm(gradient))
        metrics = {"loss": float((error**2).mean()), "gradient_norm": norm, "rate": rate(step), "seconds": 1.0}
        facts = Facts([f"doc-{step}-{i}" for i in range(DOCUMENTS)], list(error**2))
        change(step, metrics, facts)
        monitor(step, metrics, facts)


def test_a_healthy_run_is_not_spoken_of() -> None:
    monitor = Monitor()
    sgd(monitor, 600)
    assert monitor.alerts == []


def test_a_bad_batch_is_named_by_its_documents() -> None:
    monitor, told = Monitor(), list[Alert]()
    monitor.tell = told.append
    sgd(monitor, 200, poison={120: [3, 17]})
    assert [(a.step, a.suspect) for a in told] == [(120, "batch")]
    assert set(told[0].evidence["documents"]) == {"doc-120-3", "doc-120-17"}
    assert "doc-120-3" in told[0].text and told[0].evidence["sigmas"] > 6


def test_a_rate_that_is_too_high_is_named_as_the_rate() -> None:
    monitor = Monitor()
    sgd(monitor, 140, rate=lambda step: 0.02 if step < 100 else 1.1)
    alert = next(a for a in monitor.alerts if a.suspect == "learning rate")
    assert 100 <= alert.step <= 112 and alert.evidence["rate"] == 1.1 and alert.evidence["share_of_top_rate"] == 1
    assert alert.evidence["recent_losses"][-1] > 10 * alert.evidence["usual_loss"]


def test_an_overflow_is_told_from_a_divergence() -> None:
    def overflow(step: int, metrics: dict[str, float], facts: Facts) -> None:
        if step == 90:
            metrics["gradient_norm"] = math.inf
            facts.saturated = {"blocks.3.ffn.down.weight": 0.2, "head.weight": 0.0}

    monitor = Monitor()
    sgd(monitor, 120, change=overflow)
    assert [(a.step, a.suspect) for a in monitor.alerts] == [(90, "overflow")]
    assert monitor.alerts[0].evidence["saturated"] == {"blocks.3.ffn.down.weight": 0.2}


def test_experts_heads_and_loader_are_named() -> None:
    def trouble(step: int, metrics: dict[str, float], facts: Facts) -> None:
        skewed = step > 40
        facts.loads = {"blocks.1": [10.0, 10, 10, 10], "blocks.2": [37.0, 1, 1, 1] if skewed else [10.0, 9, 11, 10]}
        facts.logits = {"blocks.0": [3.0, 140.0 if step == 60 else 5.0]}
        metrics["loader_seconds"] = 0.4 if step > 80 else 0.01

    monitor = Monitor()
    sgd(monitor, 100, change=trouble)
    first = {a.suspect: a for a in reversed(monitor.alerts)}
    assert set(first) == {"experts", "attention", "loader"}
    assert (first["experts"].step, first["experts"].evidence["layer"], first["experts"].evidence["expert"]) == (45, "blocks.2", 0)
    assert (first["attention"].step, first["attention"].evidence["head"]) == (60, 1)
    assert first["loader"].step == 85 and first["loader"].evidence["loader_seconds"] == 0.4
    # A condition that lasts is named again only after a while.
    assert len([a for a in monitor.alerts if a.suspect == "experts"]) == 2


@pytest.mark.parametrize(("part", "word"), [("loader_seconds", "loader"), ("save_seconds", "checkpoints"), ("", "model's own")])
def test_the_watchdog_says_what_became_slow(part: str, word: str) -> None:
    watchdog, alerts = Watchdog(), []
    for step in range(1, 61):
        metrics = {"tokens": 1000.0 * step, "seconds": 1.0 + 0.01 * (step % 3), "loader_seconds": 0.01}
        if step > 40:
            metrics["seconds"] += 0.5
            metrics |= {part: 0.5} if part else {}
        alerts += [a for a in [watchdog(step, metrics)] if a]
    assert [a.step for a in alerts] == [45] and word in alerts[0].text


def test_one_slow_step_is_no_state() -> None:
    watchdog = Watchdog()
    assert all(watchdog(s, {"tokens": 1000.0 * s, "seconds": 3.0 if s == 30 else 1.0}) is None for s in range(1, 60))


def test_mfu_on_both_denominators() -> None:
    meter = Meter(palm=9e9, causal=8.2e9, datasheet=989e12, measured=798e12)
    meter(1, {"tokens": 0.0, "seconds": 1.0})
    seen = meter(2, {"tokens": 48_000.0, "seconds": 1.0})
    assert seen["tokens_per_second"] == 48_000
    assert seen["mfu_palm_datasheet"] == pytest.approx(0.4368, abs=1e-4)
    assert seen["mfu_causal_measured"] == pytest.approx(48_000 * 8.2e9 / 798e12)
    assert datasheet("NVIDIA H100 80GB HBM3") == 989e12 and math.isnan(datasheet("a CPU"))


@pytest.mark.parametrize("grows", [True, False])
def test_an_end_in_nan_is_the_rates_where_the_gradient_grew_and_an_overflow_where_it_did_not(grows: bool) -> None:
    monitor = Monitor()
    for step in range(1, 9):
        monitor(step, {"loss": 2.0, "gradient_norm": 3.0**step if grows else 1.0, "rate": 0.1}, Facts(["a", "b"], [2.0, 2.0]))
    monitor(9, {"loss": math.nan, "gradient_norm": math.nan, "rate": 0.1}, Facts(["a", "b"], [2.0, math.nan]))
    (alert,) = monitor.alerts
    assert (alert.step, alert.suspect) == (9, "learning rate" if grows else "overflow")
    assert grows or alert.evidence["documents"] == ["b"], "who was not a number is named"


def test_an_expert_that_starves_is_named_though_none_drowns() -> None:
    monitor = Monitor()
    for step in range(1, 8):
        facts = Facts(loads={"blocks.0": [0.0, 0.0, 0.0], "blocks.1": [10.0, 10.0, 0.01] if step > 1 else [9.0, 10.0, 11.0]})
        monitor(step, {"loss": 2.0}, facts)
    (alert,) = monitor.alerts
    assert (alert.step, alert.suspect, alert.evidence["starving"]) == (6, "experts", [2]), "a layer without tokens is no state"
