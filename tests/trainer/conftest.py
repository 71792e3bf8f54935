"""Two small models that between them use every part: the stock architecture and the one with extra parts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gymsmith.schema import Job, State, Trajectory
from gymsmith.store import Store
from trainer.model.config import InitConfig, LayerKind, ModelConfig

KINDS = {
    "stock": ModelConfig(vocab_size=61, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=64),
    "smear": ModelConfig(
        vocab_size=61,
        dim=32,
        n_heads=4,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=48,
        max_positions=64,
        pattern=(LayerKind(ffn="relu2"), LayerKind(position="none")),
        attention_scale=12 / 8,
        smear=2,
        embedding_norm=True,
        logit_gain=True,
        norm_weight=False,
        init=InitConfig(scheme="zero_out", embedding_std=0.5),
    ),
}


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each of them in turn."""
    return KINDS[request.param]


@pytest.fixture
def stock() -> ModelConfig:
    """The one that Qwen3 computes too."""
    return KINDS["stock"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the learner runs."""
    torch.set_num_threads(1)


Killed = Callable[[Callable[[Callable[[], None]], object], int, float], bool]


@pytest.fixture
def killed() -> Killed:
    """`killed(work, steps, delay_s)`: run `work(tick)` in a child and kill -9 it `delay_s` after its `steps`-th tick.

    True when it was still at work.
    """

    def run(work: Callable[[Callable[[], None]], object], steps: int, delay_s: float) -> bool:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            work(lambda: os.write(writing, b".") and None)
            os._exit(0)
        os.close(writing)
        for _ in range(steps):
            os.read(reading, 1)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    return run


Play = Callable[[dict[str, Any], int, str], dict[str, Any]]
"""(item of a rollout job, times that its environment was tried before, version served) -> the trajectory's own fields."""


class Hands(threading.Thread):
    """Does rollout jobs without a sandbox."""

    def __init__(self, store: Store, play: Play) -> None:
        super().__init__(daemon=True)
        self.store, self.play = store, play
        self.tries: dict[str, int] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for queued in self.store.jobs(kind="rollout", state=State.QUEUED).items:
                job = self.store.claim(queued.id, "hands")
                if job is not None:
                    self.work(job)

    def work(self, job: Job) -> None:
        items, run_id = job.payload["items"], job.payload["run_id"]
        environment = items[0]["environment_id"]
        again = self.tries[environment] = self.tries.get(environment, -1) + 1
        version = self.store.run(run_id).policy_version
        made = [
            Trajectory(
                id=f"{item['group']}/{item['attempt']}",
                environment_id=environment,
                run_id=run_id,
                group=item["group"],
                attempt=item["attempt"],
                **self.play(item, again, version),
            )
            for item in items
        ]
        self.store.put_trajectories(made, fence=(job.id, job.attempt))
        self.store.finish(job.id, job.attempt, {"trajectories": [t.id for t in made]})


@pytest.fixture
def hands() -> Callable[..., Any]:
    """`with hands(store, play) as tries`: somebody who does rollout jobs; how often each environment was tried again."""

    @contextmanager
    def work(store: Store, play: Play) -> Iterator[dict[str, int]]:
        somebody = Hands(store, play)
        somebody.start()
        try:
            yield somebody.tries
        finally:
            somebody.ended.set()
            somebody.join()

    return work
