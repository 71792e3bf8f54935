"""How hard an environment is, from what policies really did in it; without enough attempts it is "uncalibrated".

pass@k is the chance that at least one of k attempts passes, estimated without bias from n >= k attempts of which c passed:
1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1). Attempts lost to an error of ours count for nothing.
Nothing is stored: the numbers follow from the stored trajectories whenever they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gymsmith.schema import Word

K = 8
"""Attempts of one policy that it takes to say anything."""
UNCALIBRATED = "uncalibrated"


class PolicyRate(Word):
    """What one policy did in one environment."""

    policy_version: str
    n: int
    passed: int
    pass_1: float
    pass_8: float | None = None
    """None with fewer than eight attempts."""


class Difficulty(Word):
    """What all policies did in one environment, the one with the most attempts first."""

    environment_id: str
    word: str
    """`uncalibrated`, `never passed` (0 of 8 or more), `always passed` (each of 8 or more), `sometimes passed`."""
    policies: tuple[PolicyRate, ...] = ()


def pass_at(k: int, n: int, passed: int) -> float:
    """The unbiased estimate; needs n >= k >= 1."""
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def difficulty(environment_id: str, attempts: Sequence[tuple[str, int, int]]) -> Difficulty:
    """From (policy version, graded attempts, passed ones)."""
    rates = [
        PolicyRate(policy_version=policy, n=n, passed=passed, pass_1=passed / n, pass_8=pass_at(K, n, passed) if n >= K else None)
        for policy, n, passed in sorted(attempts, key=lambda row: (-row[1], row[0]))
        if n
    ]
    known = [rate for rate in rates if rate.n >= K]
    if not known:
        word = UNCALIBRATED
    elif all(rate.passed == 0 for rate in known):
        word = "never passed"
    else:
        word = "always passed" if all(rate.passed == rate.n for rate in known) else "sometimes passed"
    return Difficulty(environment_id=environment_id, word=word, policies=tuple(rates))
