"""Laws put in are the laws found, and the intervals cover as often as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gymsmith.cli import app
from gymsmith.config import Settings
from gymsmith.errors import ConfigError
from gymsmith.schema import Metric, Run, State
from gymsmith.store import Store
from trainer.plan.scaling import compute, levels, optimum, power_law

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


def test_runs_that_scatter_widely_give_wide_intervals_and_numbers() -> None:
    """Four runs that had hardly begun to learn: redrawn blindly, some of their losses would be negative."""
    law = power_law([1e9, 2e9, 4e9, 8e9], [6.9, 6.0, 6.7, 5.2])
    found = [law.floor, law.scale, law.exponent, law.predict(1e12)]
    assert np.isfinite([[i.low, i.value, i.high] for i in found]).all() and law.floor.low >= 0
    assert law.predict(1e12).high - law.predict(1e12).low > law.residual


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


def test_the_verb_fits_runs_of_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--home", str(tmp_path), "--at", "1e20", "--json"]
    with Store.open(Settings(home=tmp_path)) as store:
        for n, (budget, loss) in enumerate(zip(FLOPS, losses(0.0, 0), strict=True)):
            summary = {"parameters": 1000, "tokens": budget / 6000}
            store.put_run(Run(id=f"r{n}", kind="pretrain", state=State.SUCCEEDED, summary=summary))
            steps = range(1, 21)
            points = [Metric(run_id=f"r{n}", step=s, name="loss", value=loss if s > 18 else 9.0) for s in steps]
            store.put_metrics(points)
    app(["scaling", *(f"r{n}" for n in range(8)), *words], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["exponent"]["value"] == pytest.approx(0.12, rel=1e-4) and len(found["points"]) == 8
    assert found["predicted"][0]["value"] == pytest.approx(1.7 + 0.9 * 10 ** (-0.12 * 3.5), rel=1e-4)
    app(["scaling", *(f"r{n}" for n in range(8)), *words[:-1]], standalone_mode=False)
    assert "at 1e+20 FLOPs the loss will be 2.042 [" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="at least 4 different budgets"):
        app(["scaling", "r0", "r1", *words], standalone_mode=False)
    with pytest.raises(ConfigError, match="expected a metric 'los', run r0 has loss"):
        app(["scaling", "r0", "--metric", "los", *words], standalone_mode=False)


def test_runs_of_equal_compute_tell_the_best_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = []
    with Store.open(Settings(home=tmp_path)) as store:
        for budget in (1e16, 1e17, 1e18, 1e19):
            for f in (0.4, 0.8, 1.5, 3.0) if budget < 1e19 else (0.5, 2.0):
                # Runs end at whole steps, so that equal budgets differ a little.
                size, loss = 2e6 * (budget / 1e16) ** 0.5 * f, 2.0 + 1e3 / budget**0.2 + 0.05 * np.log(f) ** 2
                ids.append(f"r{len(ids)}")
                summary = {"parameters": size, "tokens": (1 + 0.02 * f) * budget / 6 / size}
                store.put_run(Run(id=ids[-1], kind="pretrain", summary=summary))
                store.put_metrics([Metric(run_id=ids[-1], step=1, name="loss", value=loss)])
    app(["scaling", *ids, "--home", str(tmp_path), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert [round(float(c) / 1e16) for c in found["best_sizes"]] == [1, 10, 101], "two sizes are no parabola"
    assert list(found["best_sizes"].values()) == pytest.approx([2e6, 2e6 * 10**0.5, 2e7])
    assert found["size_exponent"]["value"] == pytest.approx(0.5, abs=1e-3)
    app(["scaling", *ids, "--home", str(tmp_path), "--at", "1e20"], standalone_mode=False)
    assert "best with 1.99e+08 parameters" in capsys.readouterr().out
    largest = [i for i in ids if i not in ("r0", "r4", "r8", "r12")]
    with Store.open(Settings(home=tmp_path)) as store:
        store.put_metrics([Metric(run_id="r3", step=1, name="loss", value=0.1)])
    app(["scaling", *largest, "--home", str(tmp_path)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "loss = floor" in shown and "the best size lies outside" in shown, "the law is told all the same"
    assert levels([(1e6, 1e9, 2.0), (2e6, 5e8, 2.0), (2e6, 1e9, 2.0)]) == {}
