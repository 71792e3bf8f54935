"""What admission is worth afterwards: solutions run again and again at random, and what all the cheats came to.

A rerun draws an environment and a condition (hash seed, time zone, order of tests, half of a processor) and runs the solution in
fresh sandboxes. It counts as flaky when the reward is not 1. Draw number n follows from seed, n and the environments that there
are; a journal in the state folder remembers what was drawn, so an interrupted run goes on, and one for more goes on from fewer.
Cheats are counted out of the stored evidence: nothing is run for them.

    python -m env_factory.bench.reruns HOME 1000        prints the rows; `gymsmith bench factory` has them too
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from env_factory.gates.conditions import Condition
from env_factory.gates.trial import Trial
from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.store import Store
from sandboxes.evaluate import wilson
from sandboxes.worker import close_all, process_worker

AT_ONCE = 3
ZONES = ("", "AHEAD-14", "BEHIND+11", "HALF-5:30")
SEED = 2026
LESS = ("cheat:without-step-", "cheat:without-part-", "cheat:leaves-fault-")
"""Cheats that are the solution but for one thing that it does."""


def drawn(ids: Sequence[str], number: int, seed: int = SEED) -> tuple[str, Condition]:
    """The environment and the condition of a draw."""
    rng = random.Random(f"rerun/{seed}/{number}")
    chosen = ids[rng.randrange(len(ids))]
    condition = Condition(
        f"rerun {number}",
        hash_seed=str(rng.randrange(2**32)),
        zone=rng.choice(ZONES),
        order=rng.choice(("", str(rng.randrange(2**31)))),
        cpu_share=rng.choice((1.0, 1.0, 1.0, 0.5)),
    )
    return chosen, condition


def rerun(settings: Settings, store: Store, runs: int, seed: int = SEED, among: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The journal, once it holds `runs` draws. among: ids to draw from; none means all that are verified.

    Raises: InfrastructureError: sandboxes failed; what was drawn stays in the journal.
    """
    path = settings.home / "factory" / "reruns.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _journal(path, seed)
    ids = sorted(among or store.environment_ids())
    worker = process_worker(settings)

    async def one(number: int) -> None:
        chosen, condition = drawn(ids, number, seed)
        ready = await worker.ready(store, chosen)
        trial = Trial(ready.task.draft, ready.image, await worker.provider(), worker.slots)
        task, env = condition.apply(ready.task)
        began = time.perf_counter()
        reward = await trial.control(task.solution, task=task, env=env)
        line = {
            "seed": seed, "number": number, "environment": chosen, "kind": task.spec.kind, "condition": condition._asdict(),
            "reward": reward.value, "seconds": round(time.perf_counter() - began, 3),
            "detail": "" if reward.value == 1.0 else reward.detail[-400:],
        }  # fmt: skip
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    worker.run(_all([n for n in range(runs) if n not in known], one) if ids else asyncio.sleep(0))
    return list(_journal(path, seed).values())


async def _all(numbers: Sequence[int], one: Any) -> None:
    left = iter(numbers)

    async def lane() -> None:
        for number in left:
            await one(number)

    lanes = [asyncio.create_task(lane()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for each in lanes:
            each.cancel()


def _journal(path: Path, seed: int) -> dict[int, dict[str, Any]]:
    """Draw -> its line; a torn last line is passed over."""
    lines: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["seed"] == seed:
            lines[line["number"]] = line
    return lines


def rerun_rows(lines: Sequence[dict[str, Any]], wanted: int) -> list[Row]:
    """How many there were, of how many environments, and how many came out otherwise."""
    flaky = sum(line["reward"] != 1.0 for line in lines)
    among = len({line["environment"] for line in lines})
    high = wilson(flaky, len(lines)).high
    return [
        Row("solutions run again, drawn at random", "", len(lines), bar=f">= {wanted}", ok=len(lines) >= wanted),
        Row("environments among them", "", among),
        Row("of these reruns, not 1", "", flaky, bar="0", ok=flaky == 0 if lines else None),
        Row("share that is not 1, at most (Wilson, 95%)", "", round(high, 5)),
    ]


def cheat_rows(store: Store) -> list[Row]:
    """Every cheat that was tried on an environment that is admitted, out of its evidence."""
    tried = passed = environments = steps = 0
    names: set[str] = set()
    for each in store.environment_ids():
        evidence = store.evidence(each)
        gates = [gate for gate in evidence.gates if gate.name.startswith("cheat:")] if evidence else []
        environments += bool(gates)
        names |= {gate.name for gate in gates}
        tried += sum(len(gate.rewards) for gate in gates)
        passed += sum(reward != 0.0 for gate in gates for reward in gate.rewards)
        steps += sum(gate.name.startswith(LESS) for gate in gates)
    return [
        Row("environments with evidence of cheats", "", environments),
        Row("cheats tried on them", "", tried),
        Row("different cheats", "", len(names)),
        Row("of these, the solution without one step", "", steps),
        Row("cheats that scored", "", passed, bar="0", ok=passed == 0 if tried else None),
    ]


def main() -> None:
    """State folder and number of draws on the command line."""
    settings = Settings.load(home=Path(sys.argv[1]))
    wanted = int(sys.argv[2])
    with Store.open(settings) as store:
        for row in [*cheat_rows(store), *rerun_rows(rerun(settings, store, wanted), wanted)]:
            print(f"{row.metric}\t{row.ours:g}\t{row.bar}\t{'' if row.ok is None else row.ok}", flush=True)
    close_all()


if __name__ == "__main__":
    main()
