"""The stages of the level "admission" that look at what the solution does: is it given away, and would less of it do?

    leak-image  neither the solution nor the hidden tests can be found in the image (`leaks.py`)
    halves      parts of the solution fail
    mutants     the solution with one thing wrong fails (`mutants.py`)

All three read the effects of one more run of the solution, so they hold whatever language it is written in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing

from env_factory import leaks, mutants
from env_factory.effects import Effects, effects_of
from env_factory.mutants import Variant
from env_factory.trial import DETAIL_CHARS, Trial
from gymsmith.schema import Gate, Reward
from sandboxes.grade import left_by, verify


async def inspect(trial: Trial) -> None:
    """Add the three gates to the trial. Raises: InfrastructureError."""
    task, rules = trial.task, trial.rules
    if task.spec.verifier_mode == "shared":
        trial.gates.append(await asyncio.to_thread(leaks.scan, task, trial.image, None, trial.nothing))
        if not trial.failed:
            trial.gates.append(await _fail(trial, None, "halves", mutants.shortened(task, rules), rules.halves))
        return
    artifacts = await trial.patiently(lambda: left_by(trial.provider, trial.image, task, task.solution))
    with closing(await asyncio.to_thread(effects_of, artifacts, trial.image)) as effects:
        trial.effects = effects.found
        trial.gates.append(await asyncio.to_thread(leaks.scan, task, trial.image, effects, trial.nothing))
        if trial.failed:
            return
        trial.gates.append(await _fail(trial, effects, "halves", mutants.halves(effects, task, rules), rules.halves))
        if not trial.failed:
            trial.gates.append(await _fail(trial, effects, "mutants", mutants.mutants(effects, task, rules), rules.mutants))


async def _fail(trial: Trial, effects: Effects | None, name: str, variants: Sequence[Variant], share: float) -> Gate:
    """The gate that passes when at least `share` of the wrong works score 0."""
    rewards = await asyncio.gather(*(_reward(trial, effects, variant) for variant in variants))
    survived = [variant.name for variant, reward in zip(variants, rewards, strict=True) if reward.value != 0.0]
    failed = len(variants) - len(survived)
    said = f"{failed} of {len(variants)} failed, {share:.0%} must" if variants else "there are none to try"
    if survived:
        said += f"; not noticed: {', '.join(survived)}"
    return Gate(
        name=name,
        passed=failed >= share * len(variants),
        rewards=tuple(reward.value for reward in rewards),
        seconds=round(sum(reward.seconds for reward in rewards), 4),
        detail=said[:DETAIL_CHARS],
    )


async def _reward(trial: Trial, effects: Effects | None, variant: Variant) -> Reward:
    if effects is None:
        return await trial.attempt(variant.script)
    with closing(effects.variant(variant.writes)) as artifacts:
        return await trial.patiently(lambda: verify(trial.provider, trial.image, trial.task, artifacts))
