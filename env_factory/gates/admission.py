"""The stages of the level "admission" that look at what the solution does: is it given away, and would less of it do?

    leak-image  neither the solution nor the hidden tests can be found in the image (`leaks.py`)
    consistency text, solution and tests do not contradict one another (`consistency.py`, `clues.py`)
    halves      parts of the solution fail
    mutants     the solution with one thing wrong fails (`mutants.py`)
    cheat:NAME  shortcuts that follow from the task itself score 0 (`shortcuts.py`)
    restyled    the solution's programs without comments and blank lines pass, and its JSON with other white space: tests look
                at what is done

All read the effects of one more run of the solution, so they hold whatever language it is written in.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from env_factory.gates import clues, consistency, leaks, mutants, shortcuts, untold
from env_factory.gates.effects import Effects, effects_of
from env_factory.gates.mutants import Variant, leaving
from env_factory.gates.trial import DETAIL_CHARS, Trial, gate_of
from gymsmith.errors import Capacity, OutputLimit
from gymsmith.schema import Gate
from sandboxes.artifacts import SHARED
from sandboxes.base import MIB, Image
from sandboxes.grade import left_by, sandbox_spec

MAX_IMAGE_BYTES = 512 * MIB


async def inspect(trial: Trial) -> None:
    """Add the gates to the trial, up to the first that fails. Raises: InfrastructureError."""
    task, rules = trial.task, trial.rules
    artifacts = await trial.patiently(lambda: left_by(trial.provider, trial.image, task, task.solution))
    with tempfile.TemporaryDirectory(prefix="gymsmith-image-") as folder:
        image = trial.image if trial.image.layers else await trial.patiently(lambda: _laid_out(trial, Path(folder)))
        effects = await asyncio.to_thread(effects_of, artifacts, image)
        trial.effects = effects.found
        trial.gates.append(await asyncio.to_thread(leaks.scan, task, image, effects, trial.nothing))
    with closing(effects):
        by_files = task.spec.verifier_mode == "separate" or await _carries(trial, effects)
        if not trial.failed:
            trial.gates.append(await _consistent(trial, effects, by_files))
        if not trial.failed and not by_files:
            trial.gates.append(await _fail(trial, None, "halves", mutants.shortened(task, rules), rules.halves))
        if not trial.failed and by_files:
            trial.gates.append(await _fail(trial, effects, "halves", mutants.halves(effects, task, rules), rules.halves))
        if not trial.failed and by_files:
            trial.gates.append(await _fail(trial, effects, "mutants", mutants.mutants(effects, task, rules), rules.mutants))
        if not trial.failed and by_files:
            trial.gates += await shortcuts.tried(trial, effects)
        if not trial.failed and by_files and "tests/run.py" not in task.files:
            for variant in mutants.restyled(effects, task):
                trial.gates.append(gate_of("restyled", [await trial.variant(effects, variant)], 1.0))


async def _laid_out(trial: Trial, folder: Path) -> Image:
    """An image that an engine holds, as one layer in `folder`: the places where a task's own files are, not its /usr.

    Raises: Capacity: it is too large to be looked through.
    """
    spec = sandbox_spec(trial.task, trial.image, "agent", phase="leak")
    box = await trial.provider.create(spec)
    roots = [root for root in (*SHARED, *trial.task.spec.artifacts) if root != "/"]
    top = Path(tempfile.mkdtemp(dir=folder))
    try:
        await box.freeze()
        await box.export([r for r in roots if not any(r.startswith(f"{o}/") for o in roots)], top, max_bytes=MAX_IMAGE_BYTES)
    except OutputLimit as error:
        raise Capacity(
            f"an image of an engine must stay below {MAX_IMAGE_BYTES} bytes outside /usr to be looked through"
        ) from error
    finally:
        await box.destroy()
    return replace(trial.image, layers=(top,), binds=())


async def _carries(trial: Trial, effects: Effects) -> bool:
    """Whether the files alone, in a fresh sandbox, pass where the task is graded in the agent's own."""
    if trial.task.spec.services:
        return False
    return (await trial.variant(effects, Variant("all of it", {}))).value == 1.0


async def _consistent(trial: Trial, effects: Effects, by_files: bool) -> Gate:
    """Text, solution and tests speak of the same thing (`consistency.py`)."""
    task = trial.task
    apparent = await asyncio.to_thread(consistency.contradictions, task, effects.found)
    apparent += await asyncio.to_thread(untold.nowhere, task, effects.found, trial.image)
    doubt = trial.hold(Gate(name="consistency", passed=not apparent, detail="; ".join(apparent)[:DETAIL_CHARS]))
    if not doubt.passed:
        return doubt
    found = await asyncio.to_thread(clues.clues, task, effects.found)
    if not found and by_files:
        variants = [*consistency.unnamed(task, effects.found), *untold.variants(task, effects.found, trial.image)]
        rewards = await asyncio.gather(*(trial.variant(effects, variant) for variant in variants))
        found = [f"the tests fail {v.name}" for v, r in zip(variants, rewards, strict=True) if r.value == 0.0]
    return Gate(name="consistency", passed=False, detail="; ".join(found)[:DETAIL_CHARS]) if found else doubt


async def _fail(trial: Trial, effects: Effects | None, name: str, variants: Sequence[Variant], share: float) -> Gate:
    """The gate that passes when about `share` of the wrong works score 0, or more."""
    rewards = await asyncio.gather(*(trial.variant(effects, variant) for variant in variants))
    surviving = [variant for variant, reward in zip(variants, rewards, strict=True) if reward.value != 0.0]
    survived = [variant.name for variant in surviving]
    failed = len(variants) - len(survived)
    # One of four or more may always mean the same as the solution: few lines have few mutants.
    allowed = max(int((1 - share) * len(variants) + 1e-9), 1 if len(variants) >= 4 and share < 1 else 0)
    said = f"{failed} of {len(variants)} failed, all but {allowed} must" if variants else "there are none to try"
    if survived:
        said += f"; not noticed: {', '.join(survived)}"
    gate = Gate(
        name=name,
        passed=len(survived) <= allowed,
        rewards=tuple(reward.value for reward in rewards),
        seconds=round(sum(reward.seconds for reward in rewards), 4),
        detail=said[:DETAIL_CHARS],
    )
    return trial.hold(gate, *(variant.script or leaving(effects, variant) for variant in surviving), allowed=allowed)
