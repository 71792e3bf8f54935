"""pass@k from stored trajectories: the unbiased estimate, and silence where nobody tried often enough."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gymsmith.config import Settings
from gymsmith.difficulty import UNCALIBRATED, difficulty, pass_at
from gymsmith.schema import Reward, Trajectory
from gymsmith.store import Store


@pytest.mark.parametrize(("n", "passed", "k"), [(8, 0, 8), (8, 8, 1), (10, 3, 4), (12, 1, 8), (9, 5, 2)])
def test_pass_at_k_is_the_share_of_choices_with_a_pass(n: int, passed: int, k: int) -> None:
    """Against counting every choice of k of the n attempts."""
    chosen = list(itertools.combinations([1] * passed + [0] * (n - passed), k))
    assert pass_at(k, n, passed) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_words() -> None:
    assert difficulty("e", []).word == difficulty("e", [("p", 7, 7)]).word == UNCALIBRATED
    assert difficulty("e", [("p", 8, 0), ("few", 3, 3)]).word == "never passed"
    assert difficulty("e", [("p", 8, 8)]).word == "always passed"
    both = difficulty("e", [("p", 8, 8), ("q", 16, 4)])
    assert both.word == "sometimes passed" and [rate.policy_version for rate in both.policies] == ["q", "p"]
    assert both.policies[0].pass_1 == 0.25 and difficulty("e", [("p", 3, 3)]).policies[0].pass_8 is None


def test_computed_from_stored_trajectories(tmp_path: Path) -> None:
    """Attempts that were lost, and scripted ones, are nobody's failure and nobody's success."""
    rows: list[tuple[str, float | None, str]] = [("v1", 1.0 if n < 2 else 0.0, "") for n in range(8)]
    rows += [("v1", None, "a sandbox died"), ("", 1.0, ""), ("v2", 1.0, "")]
    with Store.open(Settings.load(home=tmp_path)) as store:
        for n, (policy, reward, error) in enumerate(rows):
            value = None if reward is None else Reward(value=reward)
            trajectory = Trajectory(id=f"t{n}", environment_id="e", run_id="r", policy_version=policy, reward=value, error=error)
            store.put_trajectories([trajectory])
        found = store.difficulties(["e", "nobody's"])
    assert [(rate.policy_version, rate.n, rate.passed) for rate in found["e"].policies] == [("v1", 8, 2), ("v2", 1, 1)]
    assert found["e"].word == "sometimes passed" and found["nobody's"].word == UNCALIBRATED
