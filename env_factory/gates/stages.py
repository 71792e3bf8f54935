"""Admission: what a draft has to stand before it counts as an environment.

    noop         doing nothing scores 0, three times in three
    oracle       the solution scores 1, each time: three times, or under the five `conditions` at the level "admission"
    f2p, p2p     tests that the no-op fails and the oracle passes; tests that pass either way (where a draft declares how many)
    suite        the solution passes the whole suite, where the draft brings one; all else meets the selected tests
    alternative  every other honest solution scores 1
    cheat:NAME   every dishonest attempt scores 0: those of the draft, and the general ones that make sense for it
    leak         neither hidden tests nor the solution lie in the environment or stand in the instruction
    looking      the instruction does not tell what has to be looked up
    runtime      the tests can be run in half of their time limit

Three levels. "controls": noop, oracle, leak, looking, runtime. "full": and alternatives, and a number of general cheats that take
turns. "admission": everything, every general cheat among it.

Each attempt runs in a fresh sandbox and is graded in another one. A sandbox that fails us is asked again and never counts; only
what the draft does can turn it down, with one of `reasons.REASONS`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from env_factory.cheats.corpus import cheats_for
from env_factory.gates.admission import inspect
from env_factory.gates.conditions import CONDITIONS
from env_factory.gates.consistency import reads_solution
from env_factory.gates.leaks import HISTORY
from env_factory.gates.mutants import Rules
from env_factory.gates.reasons import reason
from env_factory.gates.still import leak, looking
from env_factory.gates.trial import Around, Trial, asking_again, gate_of
from env_factory.swe import suite
from gymsmith.errors import BuildError
from gymsmith.schema import Draft, Evidence, Gate, Reward
from gymsmith.taskdir import Task
from sandboxes.base import Image, Provider

Level = Literal["admission", "full", "controls"]
RUNS = 3
MIN_CHEATS = 5
GENERAL_CHEATS = {
    "shell": 6, "mutation": 11, "tutorial": 11, "layout": 32, "browse": 15, "terminal": 11, "repair": 14, "examples": 11,
}  # fmt: skip
"""How many cheats are tried on one draft of a kind at the level "full": its own, and general ones, which take turns."""
ALWAYS = frozenset({"py-equal-to-all"})
"""General cheats that do not take turns: what they attack is the tests of the one draft, not the grading of all."""
LONGEST_S = 60.0
"""What the tests may take at the level "admission", whatever their own limit is."""
CHANCE = re.compile(
    r"\bRANDOM\b|\brandom\b|\bshuf\b|\burandom\b|\buuid|\btime\.(time|monotonic|perf_counter)|\bdate \+\S*%[sNMS]|\bnow\(|"
    r"\bsleep\b|\bthreading\b|\bset\(|\bhash\(|\$\$|\bgetpid\b|SECONDS\b"
)
"""What makes a test's outcome another one from run to run; such tests are run more often."""
CLOCK = re.compile(r"date|time|now|SECONDS")
"""Of these, what looks at a clock: further runs are then spread over some seconds."""
MORE_RUNS, MORE_S = 25, 12.0
"""Further runs of each control, as many as fit into MORE_S seconds of tests."""


RULES = {"layout": Rules(mutants=0.4)}
"""How much wrong work must fail, by kind. Most numbers of a page's style are nobody's order, and one pixel more is within what an
order allows; a layout draft brings faults of its own that matter, and of those each must fail."""


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
    rules: Rules | None = None,
    around: Around = Around(),
) -> Proof:
    """Run the gates. `slots` bounds how many attempts are under way in this process, `rules` say how much wrong work must fail,
    `around` what the draft is held against at the level "admission" besides itself.

    The gates stop at the first stage that fails, so the evidence of a rejected draft may be short.
    Raises: InfrastructureError: a sandbox failed us again and again.
    """
    started = time.perf_counter()
    trial = Trial(draft, image, provider, slots, rules or RULES.get(draft.spec.kind, Rules()), around)
    stages = [_still, _controls]
    stages += {
        "controls": [],
        "full": [_attempts],
        "admission": [_suite, _again, _inspection, _rebuilding, _every_attempt, _review],
    }[level]
    for stage in stages:
        await stage(trial, level)
        if trial.failed:
            break
    evidence = Evidence(
        environment_id=draft.id,
        gates=tuple(trial.gates),
        image_id=image.id,
        base_digest=base_digest,
        provider=provider.name,
        seconds=round(time.perf_counter() - started, 4),
    )
    return Proof(evidence, *reason(trial.failed))


async def _still(trial: Trial, level: Level) -> None:
    """What can be said without running anything."""
    trial.gates += [leak(trial.draft, level), looking(trial.draft)]
    if level == "admission":
        reader = reads_solution(trial.task)
        said = f"{reader} looks at the solution, which no agent can have" if reader else ""
        trial.gates.append(Gate(name="reads-solution", passed=not reader, detail=said))
        if trial.around.listed:
            trial.gates.append(trial.around.listed(trial.draft))
    if level == "admission" and not trial.task.solution:
        trial.gates.append(
            Gate(name="no-oracle", passed=False, detail="expected solution/solve.sh, got none: nothing shows that it can be done")
        )


async def _controls(trial: Trial, level: Level) -> None:
    """Nothing, and the solution, each several times; the first of each decides whether the others are worth it.

    A solution that fails at once is run again for the sake of its reason: one that then passes is not wrong but flaky.
    """
    task = trial.task
    first = await asyncio.gather(trial.control(None), trial.control(task.solution))
    noops, oracles = [first[0]], [first[1]]
    if first[0].value == 0.0 and first[1].value == 1.0:
        others = [c.apply(task) for c in CONDITIONS[1:]] if level == "admission" else [(task, {})] * (RUNS - 1)
        more = await asyncio.gather(
            *(trial.control(None) for _ in range(RUNS - 1)),
            *(trial.control(task.solution, task=changed, env=env) for changed, env in others),
        )
        noops += more[: RUNS - 1]
        oracles += more[RUNS - 1 :]
    elif level == "admission" and first[1].value != 1.0:
        oracles += await asyncio.gather(*(trial.control(task.solution) for _ in range(RUNS - 1)))
    trial.nothing = noops[0]
    oracle = gate_of("oracle", oracles, 1.0)
    if (
        level == "admission"
        and oracles[0].value == 1.0
        and (bad := [c.name for c, r in zip(CONDITIONS, oracles, strict=False) if r.value != 1.0])
    ):
        oracle = oracle.model_copy(update={"detail": f"{', '.join(bad)}: {oracle.detail}"})
    trial.gates += [gate_of("noop", noops, 0.0), oracle, *_tests_gates(trial.draft, noops)]
    trial.gates.append(_runtime(task, [r.seconds for r in oracles], level))


def _runtime(task: Task, seconds: Sequence[float], level: Level) -> Gate:
    """Held against the fastest run: how slow the others were is told, but that may be the machine's doing."""
    fastest, limit = min(seconds), task.spec.verifier_timeout_s / 2
    if level == "admission":
        limit = min(limit, LONGEST_S)
    said = (
        f"fastest of {len(seconds)} runs, for other load slows them; at most {limit:g} s; the slowest took {max(seconds):.1f} s"
    )
    return Gate(name="runtime", passed=fastest <= limit, seconds=fastest, detail=said)


async def _suite(trial: Trial, level: Level) -> None:
    """The whole suite, once, for the solution alone."""
    whole = suite.whole(trial.task)
    if whole is not None:
        trial.gates.append(gate_of("suite", [await trial.control(whole.solution, task=whole)], 1.0))


async def _again(trial: Trial, level: Level) -> None:
    """More runs of both controls where the tests look at a clock or throw dice: five runs miss a fault that is rare."""
    dice = CHANCE.search("\n".join(_scripts(trial.task)))
    if dice is None:
        return
    fastest = next(gate.seconds for gate in trial.gates if gate.name == "runtime")
    runs = max(RUNS, min(MORE_RUNS, int(MORE_S / max(fastest, 0.01))))
    pause = MORE_S / runs if CLOCK.search(dice.group(0)) else 0.0

    async def later(n: int, script: str | None) -> Reward:
        await asyncio.sleep(n * pause)
        return await trial.control(script)

    rewards = await asyncio.gather(*(later(n, script) for n in range(runs) for script in (None, trial.task.solution)))
    odd = sum(r.value != 0.0 for r in rewards[::2]) + sum(r.value != 1.0 for r in rewards[1::2])
    said = f"{odd} of {2 * runs} further runs came out otherwise; the tests look at {dice.group(0).strip()!r}"
    trial.gates.append(Gate(name="again", passed=not odd, rewards=tuple(r.value for r in rewards), detail=said))


def _scripts(task: Task) -> Iterator[str]:
    """The tests as far as they are programs of the task's own: a package's suite is not."""
    for name in sorted(task.files):
        if name.startswith("tests/") and "tests/run.py" not in task.files and len(task.files[name]) < 100_000:
            yield task.files[name].decode(errors="replace")


async def _inspection(trial: Trial, level: Level) -> None:
    await inspect(trial)
    if trial.around.novel and not trial.failed:
        trial.gates.append(await trial.around.novel(trial.draft, trial.effects))


async def _rebuilding(trial: Trial, level: Level) -> None:
    """The image once more, from nothing."""
    rebuilt = trial.around.rebuilt
    if rebuilt is None:
        return
    try:
        trial.gates.append(await asking_again(lambda: rebuilt(trial.draft)))
    except BuildError as error:
        trial.gates.append(Gate(name="rebuild", passed=False, detail=f"it was built once and could not be built again: {error}"))


async def _attempts(trial: Trial, level: Level) -> None:
    await _try(trial, [*trial.draft.cheats, *_general(trial.draft, trial.task)])


async def _every_attempt(trial: Trial, level: Level) -> None:
    """Every cheat that fits; going back in a history is none where the text speaks of it."""
    spoken_of = HISTORY.search(trial.task.instruction)
    general = [c for c in cheats_for(trial.task) if not (spoken_of and c.name == "undo-with-git")]
    await _try(trial, [*trial.draft.cheats, *((cheat.name, cheat.script) for cheat in general)])


async def _review(trial: Trial, level: Level) -> None:
    """A language model's reading, where one is asked; the dearest stage, so the last."""
    if trial.around.reviewed and not trial.failed:
        trial.gates += await trial.around.reviewed(trial)


async def _try(trial: Trial, cheats: Sequence[tuple[str, str]]) -> None:
    """Every other honest solution, and the cheats."""
    others = trial.draft.alternatives
    names = [f"alternative-{n}" for n in range(1, len(others) + 1)] + [f"cheat:{name}" for name, _ in cheats]
    results = await asyncio.gather(
        *(trial.control(text) for text in others), *(trial.attempt(text, unchanged=trial.nothing) for _, text in cheats)
    )
    if len(cheats) < MIN_CHEATS:
        said = f"expected at least {MIN_CHEATS} cheats to try, got {len(cheats)}"
        trial.gates.append(Gate(name="cheats", passed=False, detail=said))
    for name, result in zip(names, results, strict=True):
        trial.gates.append(gate_of(name, [result], 1.0 if name.startswith("alternative") else 0.0))


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
