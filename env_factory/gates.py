"""Admission: what a draft has to stand before it counts as an environment.

    noop         doing nothing scores 0, three times in three
    oracle       the solution scores 1, three times in three
    f2p, p2p     tests that the no-op fails and the oracle passes; tests that pass either way (where a draft declares how many)
    alternative  every other honest solution scores 1
    cheat:NAME   every dishonest attempt scores 0: those of the draft, and the general ones that make sense for it
    leak         neither hidden tests nor the solution lie in the environment or stand in the instruction
    looking      the instruction does not tell what has to be looked up
    runtime      the tests can be run in half of their time limit

Each attempt runs in a fresh sandbox and is graded in another one. `level="controls"` is noop, oracle, leak, looking and runtime
alone. A sandbox that fails us is asked again and never counts; only what the draft does can turn it down, with one of `REASONS`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from env_factory.cheats.corpus import cheats_for
from gymsmith.errors import InfrastructureError
from gymsmith.schema import Draft, Evidence, Gate, Reward
from gymsmith.taskdir import Task
from sandboxes.base import Image, Provider
from sandboxes.grade import attempt_script

log = logging.getLogger(__name__)

Level = Literal["full", "controls"]
REASONS = (
    "build-failed", "refused", "noop-passes", "oracle-fails", "flaky", "few-f2p", "few-p2p", "alternative-fails", "cheat-passes",
    "step-not-needed", "few-cheats", "leak", "looking", "slow",
)  # fmt: skip
"""Why a draft that was built is turned down. Screening has words of its own."""
RUNS = 3
MIN_CHEATS = 5
GENERAL_CHEATS = {"shell": 6, "mutation": 11, "tutorial": 11}
"""How many cheats are tried on one draft of a kind: its own, and general ones, which take turns. Of other kinds, all."""
ALWAYS = frozenset({"py-equal-to-all"})
"""General cheats that do not take turns: what they attack is the tests of the one draft, not the grading of all."""
RETRIES = 3
T = TypeVar("T")


class Proof(NamedTuple):
    """What the gates saw, and the word for the first that failed; empty when none did."""

    evidence: Evidence
    reason: str
    detail: str


async def prove(
    draft: Draft,
    image: Image,
    provider: Provider,
    *,
    level: Level = "full",
    base_digest: str = "",
    slots: asyncio.Semaphore | None = None,
) -> Proof:
    """Run the gates. `slots` bounds how many attempts are under way in this process.

    The gates stop at the first stage that fails, so the evidence of a rejected draft may be short.
    Raises: InfrastructureError: a sandbox failed us RETRIES times.
    """
    started = time.perf_counter()
    task = Task.of(draft)
    slots = slots or asyncio.Semaphore(8)
    gates: list[Gate] = []
    reason = detail = ""

    async def attempt(script: str | None, unchanged: Reward | None = None) -> Reward:
        async with slots:
            return await _asking_again(lambda: attempt_script(provider, image, task, script, unchanged=unchanged))

    async def control(script: str | None) -> Reward:
        """An attempt that is no cheat. One that ran into the time limit may have met a busy machine, so it is made again."""
        for _ in range(RETRIES):
            reward = await attempt(script)
            if reward.seconds < draft.spec.verifier_timeout_s:
                break
        return reward

    def proof() -> Proof:
        evidence = Evidence(
            environment_id=draft.id,
            gates=tuple(gates),
            image_id=image.id,
            base_digest=base_digest,
            provider=provider.name,
            seconds=round(time.perf_counter() - started, 4),
        )
        return Proof(evidence, reason, detail)

    still = [leak(draft), looking(draft)]
    gates += still
    if failed := next((g for g in still if not g.passed), None):
        reason, detail = failed.name, failed.detail
        return proof()

    first = await asyncio.gather(control(None), control(task.solution))
    controls = ([first[0]], [first[1]])
    if first[0].value == 0.0 and first[1].value == 1.0:
        more = await asyncio.gather(*(control(None) for _ in range(RUNS - 1)), *(control(task.solution) for _ in range(RUNS - 1)))
        controls[0].extend(more[: RUNS - 1])
        controls[1].extend(more[RUNS - 1 :])
    noop, oracle = _gate("noop", controls[0], 0.0), _gate("oracle", controls[1], 1.0)
    gates += [noop, oracle, *_tests_gates(draft, controls[0])]
    fastest = min(r.seconds for r in controls[1])
    limit = draft.spec.verifier_timeout_s / 2
    said = f"fastest of {len(controls[1])} runs, for other load slows them; at most {limit:g} s"
    gates.append(Gate(name="runtime", passed=fastest <= limit, seconds=fastest, detail=said))
    reason, detail = _controls_reason(gates)
    if reason or level == "controls":
        return proof()

    cheats = [*draft.cheats, *_general(draft, task)]
    names = [f"alternative-{n}" for n in range(1, len(draft.alternatives) + 1)] + [f"cheat:{name}" for name, _ in cheats]
    results = await asyncio.gather(
        *(control(text) for text in draft.alternatives), *(attempt(text, controls[0][0]) for _, text in cheats)
    )
    for name, result in zip(names, results, strict=True):
        gates.append(_gate(name, [result], 1.0 if name.startswith("alternative") else 0.0))
    if len(cheats) < MIN_CHEATS:
        reason, detail = "few-cheats", f"expected at least {MIN_CHEATS} cheats to try, got {len(cheats)}"
    elif bad := next((g for g in gates if not g.passed), None):
        words = {"alternative": "alternative-fails", "cheat:without": "step-not-needed"}
        reason = next((word for start, word in words.items() if bad.name.startswith(start)), "cheat-passes")
        detail = f"{bad.name}: {bad.detail}"
    return proof()


def leak(draft: Draft) -> Gate:
    """Hidden tests and the solution must not be where the agent can read them."""
    inside = {name: data for name, data in draft.files.items() if name.startswith("environment/")}
    secret = {name: data for name, data in draft.files.items() if name.startswith(("tests/", "solution/")) and len(data) > 40}
    found = [f"{a} is {b}" for b, data in secret.items() for a, other in inside.items() if other == data]
    found += [
        f"{name} is history or a cache"
        for name in inside
        if re.search(r"/(\.git|\.hg|__pycache__|\.pytest_cache)/|\.py[co]\Z", name)
    ]
    found += [
        f"the instruction names the test {test}" for test in draft.spec.expected if "::" in test and test in draft.instruction
    ]
    solution = draft.files.get("solution/solve.sh", b"").decode(errors="replace")
    lines = {line.strip() for line in solution.splitlines() if len(line.strip()) >= 24 and not line.startswith("#")}
    found += [f"the instruction holds a line of the solution: {line[:60]}" for line in sorted(lines) if line in draft.instruction]
    return Gate(name="leak", passed=not found, detail="; ".join(found[:5]))


def looking(draft: Draft) -> Gate:
    """What has to be looked up must not stand in the instruction."""
    said = [
        token
        for token in draft.spec.hidden
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(token)}(?![A-Za-z0-9])", draft.instruction)
    ]
    return Gate(name="looking", passed=not said, detail=f"the instruction tells {', '.join(said)}" if said else "")


def _gate(name: str, rewards: Sequence[Reward], wanted: float) -> Gate:
    passed = all(r.value == wanted for r in rewards)
    wrong = next((r for r in rewards if r.value != wanted), None)
    detail = "" if wrong is None else (wrong.detail or f"expected reward {wanted:g}, got {wrong.value:g}")[-500:]
    return Gate(
        name=name,
        passed=passed,
        rewards=tuple(r.value for r in rewards),
        seconds=round(sum(r.seconds for r in rewards), 4),
        detail=detail,
    )


def _tests_gates(draft: Draft, noops: Sequence[Reward]) -> list[Gate]:
    """How many tests the no-op fails and passes, for drafts that say how many there should be."""
    if "f2p" not in draft.spec.labels or noops[0].value != 0.0:
        return []
    outcomes = [frozenset(test for test, state in r.tests.items() if state == "passed") for r in noops]
    passing = outcomes[0]
    failing = [test for test in draft.spec.expected if test not in passing]
    stable = all(o == passing for o in outcomes)
    detail = "" if stable else "the tests that pass without a repair differ from run to run"
    least = int(draft.spec.labels.get("min_p2p", "5"))
    return [
        Gate(name="f2p", passed=stable and len(failing) >= 1, rewards=(float(len(failing)),), detail=detail),
        Gate(name="p2p", passed=stable and len(passing) >= least, rewards=(float(len(passing)),), detail=detail),
    ]


def _controls_reason(gates: Sequence[Gate]) -> tuple[str, str]:
    bad = next((g for g in gates if not g.passed), None)
    if bad is None:
        return "", ""
    if len(set(bad.rewards)) > 1 or "run to run" in bad.detail:
        return "flaky", f"{bad.name}: rewards {bad.rewards}; {bad.detail}"
    words = {"noop": "noop-passes", "oracle": "oracle-fails", "f2p": "few-f2p", "p2p": "few-p2p", "runtime": "slow"}
    return words.get(bad.name, bad.name), bad.detail


def _general(draft: Draft, task: Task) -> list[tuple[str, str]]:
    """The general cheats for this draft. Where only some are tried, which ones follows from the draft's id."""
    every = [(cheat.name, cheat.script) for cheat in cheats_for(task)]
    if draft.spec.kind not in GENERAL_CHEATS:
        return every
    always = [cheat for cheat in every if cheat[0] in ALWAYS]
    known = [cheat for cheat in every if cheat[0] not in ALWAYS]
    start = int(draft.id[:8], 16) % len(known)
    turned = known[start:] + known[:start]
    return always + turned[: max(0, GENERAL_CHEATS[draft.spec.kind] - len(draft.cheats) - len(always))]


async def _asking_again(ask: Callable[[], Awaitable[T]]) -> T:
    for turn in range(RETRIES):
        try:
            return await ask()
        except InfrastructureError as error:
            if turn == RETRIES - 1:
                raise
            log.warning("event=gate_retry turn=%d error=%s", turn + 1, error)
            await asyncio.sleep(0.2 * 4**turn)
    raise AssertionError("unreachable")
