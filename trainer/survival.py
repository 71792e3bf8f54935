"""Kills a training process at random and shows that nothing can be seen of it: the loss curve is bit for bit the unbroken run's.

The run uses every state there is to lose: mixes in phases, a growing batch, an extended context's tables, Muon and AdamW, the
window of the spike guard, biases of routers, checkpoints written in the background. Each life is a process of its own, forked
from a server that has the libraries loaded, and ends by SIGKILL at a random moment after it has moved the run on; the last is
left alone. Every step that any life does is written down at once, so a step that is done again has to give the same again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gymsmith.config import Settings
from gymsmith.errors import GymsmithError
from gymsmith.schema import Run
from gymsmith.store import Store

NAMES = ("loss", "gradient_norm", "rate", "tokens")
"""What must be equal at every step, as often as a step was done."""
LIFE_S = 60.0
"""A life that does not move the run on for so long has hung."""


@dataclass(frozen=True, slots=True)
class Survival:
    """What came out."""

    kills: int
    """Processes killed while they trained."""
    repeated: int
    """Steps that were done more than once."""
    steps: int
    equal: bool
    """Every value of every step equals the unbroken run's, and so do the weights."""
    difference: str
    """The first that does not; empty if none."""


def survive(folder: Path, kills: int, seed: int = 0, steps: int = 0, tell: Callable[[int], None] = lambda kill: None) -> Survival:
    """Train once undisturbed and once with `kills` SIGKILLs.

    Args:
        folder: empty; state folder of both runs.
        steps: of the run; by default enough that it outlives the kills.
        tell: called after each kill.

    Raises:
        GymsmithError: a process ended by itself before its time, or hangs.
    """
    with Store.open(Settings(home=folder / "home")) as store:
        config = order(folder, store, steps or 12 + 6 * kills)
        for name in ("whole", "broken"):
            store.put_run(Run(id=name, kind="pretrain", config=config))
        _life(store, "whole", None)
        chance = random.Random(seed)
        for kill in range(kills):
            _life(store, "broken", chance)
            tell(kill + 1)
        _life(store, "broken", None)
        return _compare(store, kills)


def order(folder: Path, store: Store, steps: int) -> dict[str, Any]:
    """The run's config; writes its sources."""
    from trainer.data import tokenizer
    from trainer.data.shards import ShardWriter

    words = tokenizer.store(tokenizer.train(["some words to count 0123456789"] * 3, 300), store.settings.tokenizers_dir)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("web", "code")):
        with ShardWriter(folder / name, 256, words, shard_tokens=5000) as writer:
            for n in np.clip(rng.lognormal(3, 1, 300), 2, 400).astype(int):
                writer.add((np.arange(n) * (number + 1) + rng.integers(0, 9)) % 256)
    moe = {"experts": 4, "top_k": 2, "dim": 16, "balance": "smebu", "sequence_loss": 1e-3}
    recipe = {
        "name": "survival",
        "tokenizer": {"vocab_size": 300},
        "model": {
            **{"dim": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 16, "max_positions": 64},
            **{"pattern": [{"ffn": "moe"}], "moe": moe, "mtp": {"depth": 1}},
        },
        "pretrain": {
            "steps": steps,
            "rows": 2,
            "length": 32,
            "window_rows": 16,
            "phases": [
                {"mix": {"web": 3, "code": 1}},
                {"mix": {"web": 1, "code": 3}, "length": 128, "rope_theta": 5e4},
            ],
            "batch": {"stages": [[0, 1], [32 * steps, 2]]},
            "optim": {"spike_sigma": 3.0},
            "schedule": {"warmup_steps": 4},
            "save": {"every_steps": 3},
        },
        "rollout": {"context": {"limit_tokens": 60}},
        "engine": {"slots": 8, "context": 64},
    }
    return {"recipe": recipe, "seed": 3, "sources": {name: str(folder / name) for name in ("web", "code")}}


def live(home: Path, run_id: str) -> None:
    """One life of a run, to its end: what a process of the harness does."""
    from trainer.config import parse_train
    from trainer.learner import Learner

    with Store.open(Settings(home=home)) as store:
        run = store.run(run_id)
        learner = Learner(store, run, parse_train("pretrain", run.config))
        diary = os.open(home / f"{run_id}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def note(step: int, metrics: dict[str, float], facts: object) -> None:
            os.write(diary, (json.dumps({"step": step} | {name: metrics[name] for name in NAMES}) + "\n").encode())

        learner.assembly.callbacks.append(note)
        learner.learn()


def _life(store: Store, run_id: str, chance: random.Random | None) -> None:
    """Run a process to its end, or kill it once it has moved on, somewhere within the next few steps."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.learner"])
    process = context.Process(target=live, args=(store.settings.home, run_id))
    before = _newest(store, run_id)
    process.start()
    deadline = time.monotonic() + LIFE_S
    if chance is None:
        process.join()
        if process.exitcode:
            raise GymsmithError(f"expected run {run_id} to reach its end, got exit code {process.exitcode}; see its error above")
        return
    while _newest(store, run_id) <= before:
        if not process.is_alive() or time.monotonic() > deadline:
            process.kill()
            ended = f"exit code {process.exitcode}"
            raise GymsmithError(f"expected a process to move on from step {before}, got {ended}; raise steps")
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    process.kill()
    process.join()
    if process.exitcode != -9:
        raise GymsmithError(f"expected to kill a process at work, got one that had ended with {process.exitcode}; raise steps")


def _newest(store: Store, run_id: str) -> int:
    """Step of the newest checkpoint, -1 before the first."""
    folder = store.settings.runs_dir / run_id / "checkpoints"
    return max((int(p.name) for p in folder.glob("[0-9]*")), default=-1) if folder.is_dir() else -1


def _compare(store: Store, kills: int) -> Survival:
    whole, broken = ([json.loads(line) for line in (store.settings.home / f"{n}.jsonl").open()] for n in ("whole", "broken"))
    expected = {row["step"]: row for row in whole}
    difference = ""
    for row in broken:
        # As text, in which NaN equals itself and no two floats look alike.
        if not difference and repr(row) != repr(expected.get(row["step"])):
            difference = f"expected {expected.get(row['step'])}, got {row}"
    missing = sorted(expected.keys() - {row["step"] for row in broken})
    if missing and not difference:
        difference = f"expected step {missing[0]}, which nobody did"
    digests = [store.run(name).summary["weights_digest"] for name in ("whole", "broken")]
    if digests[0] != digests[1] and not difference:
        difference = f"expected weights {digests[0][:16]}, got {digests[1][:16]}"
    return Survival(kills, len(broken) - len(expected), len(expected), not difference, difference)
