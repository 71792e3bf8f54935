"""A recipe with a [parallel] table through the door of the jobs: torchrun, two processes, one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.ids import ulid
from gymsmith.schema import Job, Run, State
from gymsmith.store import Store
from gymsmith.worker import Context
from trainer import checkpoint, tasks
from trainer.config import parse_train
from trainer.learner import Learner

RECIPE: dict[str, Any] = {
    "name": "test",
    "tokenizer": {"vocab_size": 300},
    "model": {"dim": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 16, "max_positions": 384},
    "pretrain": {"steps": 4, "rows": 4, "length": 64, "save": {"every_steps": 2}},
    "engine": {"slots": 8, "context": 384},
}


def ordered(store: Store, corpus: Path, parallel: dict[str, int]) -> Run:
    run = Run(id=ulid(), kind="pretrain", config={"recipe": {**RECIPE, "parallel": parallel}, "corpus": str(corpus)})
    store.put_run(run)
    return run


def through_the_door(store: Store, run: Run) -> dict[str, Any]:
    payload = {"stage": "pretrain", "run_id": run.id, "config": run.config}
    job, _ = store.put_job(Job(id=ulid(), kind="train", queue="train", run_id=run.id))
    claimed = store.claim(job.id, "test")
    assert claimed is not None
    return tasks.train(payload, Context(claimed, store))


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"segments": [["task", f"show note{i}"], ["act", f"cat note{i}"], ["obs", "x" * i]]} for i in range(60)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(Settings(home=tmp_path / "home")) as store:
        alone = ordered(store, corpus, {})
        expected = Learner(store, alone, parse_train("pretrain", alone.config)).learn()
        both = ordered(store, corpus, {"fsdp": 2})
        got = through_the_door(store, both)
        losses = [[m.value for m in store.metrics(run.id, ["loss"])] for run in (alone, both)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[1]) == 4, "told once, by one process"
        same = ("steps", "tokens", "parameters", "tokenizer")
        assert [got[key] for key in same] == [expected[key] for key in same]
        done = store.run(both.id)
        assert done.state is State.SUCCEEDED
        found = checkpoint.load(store.settings.home / done.checkpoint)
        assert checkpoint.weights_digest(found.weights) == got["weights_digest"] and found.step == 4
