"""Laws put in are the laws found, and the intervals cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from gymsmith.errors import ConfigError
from trainer.plan.scaling import compute, optimum, power_law

FLOPS = np.geomspace(1e15, 1e18, 8)


def losses(noise: float, seed: int) -> list[float]:
    """1.7 + 0.9 (C / 1e16.5)^-0.12, with Gaussian noise."""
    clean = 1.7 + 0.9 * (FLOPS / 10**16.5) ** -0.12
    return list(clean + noise * np.random.default_rng(seed).standard_normal(len(FLOPS)))


def test_compute_is_six_n_d() -> None:
    assert compute(1e9, 2e10) == 1.2e20


def test_a_clean_law_is_found_exactly() -> None:
    law = power_law(FLOPS, losses(0.0, 0))
    assert law.unit == pytest.approx(10**16.5)
    assert (law.floor.value, law.scale.value, law.exponent.value) == pytest.approx((1.7, 0.9, 0.12), rel=1e-4)
    assert law.predict(1e20).value == pytest.approx(1.7 + 0.9 * 10 ** (-0.12 * 3.5), rel=1e-4)


def test_the_interval_of_a_prediction_covers() -> None:
    truth = 1.7 + 0.9 * 10 ** (-0.12 * 2.5)
    inside = 0
    for seed in range(20):
        predicted = power_law(FLOPS, losses(0.01, seed)).predict(1e19)
        inside += predicted.low <= truth <= predicted.high
    # A 95% interval from 8 points and 3 fitted numbers; one that always says yes is caught by the width below.
    assert inside >= 17
    assert predicted.high - predicted.low < 0.3


def test_best_sizes_follow_the_law_that_made_them() -> None:
    runs = {}
    for budget in (1e16, 1e17, 1e18):
        best = 2e6 * (budget / 1e16) ** 0.49
        runs[budget] = [(best * f, 2.0 + 0.05 * np.log(f / 1.0) ** 2) for f in (0.4, 0.8, 1.5, 3.0)]
    found = optimum(runs)
    assert found.exponent.value == pytest.approx(0.49, abs=1e-6)
    assert found.size(1e19) == pytest.approx(2e6 * 1000**0.49, rel=1e-6)
    with pytest.raises(ConfigError, match="outside"):
        optimum({budget: [(n, -np.log(n)) for n in (1e6, 2e6, 4e6)] for budget in (1e16, 1e17)})


@pytest.mark.parametrize("bad", [([1e15, 1e16, 1e17], [3, 2, 1]), (list(FLOPS), [float("nan"), *[2.0] * 7])])
def test_too_little_or_not_finite_is_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ConfigError):
        power_law(*bad)
