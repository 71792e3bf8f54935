"""Gets rollouts: hosts the engine, orders one job per group, and serves tokens until all are done.

The learner drains between updates: while rollouts run nothing trains, while it trains nothing is asked. So every token of a step
was sampled by the step's weights, and a step's rollouts depend on the seed and the weights alone. Jobs have keys made of (run,
stage, step, group): after a restart the learner finds those that were done and only waits for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from torch import Tensor

from gymsmith import jobs
from gymsmith.errors import Conflict, InfrastructureError
from gymsmith.schema import State, Trajectory
from gymsmith.store import Store
from trainer.config import Recipe
from trainer.engine.scheduler import Engine
from trainer.engine.server import EngineServer
from trainer.rl.curriculum import attempt_seed

POLL_S = 0.02
CHECK_S = 1.0
RETRIES = 3
T = TypeVar("T")


class Collector:
    """The engine of one run, and the rollouts that it serves. A context manager; owns its event loop."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        engine: Engine,
        recipe: Recipe,
        tokenizer: str,
        seed: int,
        check: Callable[[], None],
        job_id: str = "",
    ) -> None:
        """`tokenizer`: its name under the tokenizers folder. `check`: called while waiting; raises to stop. `job_id`: the job
        that the rollouts are parts of; cancelling it cancels them."""
        self.store, self.run_id, self.engine, self.recipe = store, run_id, engine, recipe
        self.tokenizer, self.seed, self.check, self.job_id = tokenizer, seed, check, job_id
        self.temperature = recipe.rollout.temperature
        self.loop = asyncio.new_event_loop()
        self.server: EngineServer | None = None

    def __enter__(self) -> Collector:
        # Workers that wait for a restarted learner find it again fastest at its old address.
        before = urlsplit(self.store.run(self.run_id).engine_url).port or 0
        try:
            url = self._do(self._start(before))
        except Conflict:
            url = self._do(self._start(0))
        self.store.update_run(self.run_id, engine_url=url)
        return self

    def __exit__(self, *_: object) -> None:
        if self.server is not None:
            self._do(self.server.stop())
        self.loop.close()
        self.store.update_run(self.run_id, engine_url="")

    def serve(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Serve these weights from now on."""
        self.engine.retract()
        self.engine.update(weights, version)
        self.store.update_run(self.run_id, policy_version=version)

    def collect(self, name: str, step: int, environments: Sequence[str], attempts: int) -> list[list[Trajectory]]:
        """`attempts` rollouts of each environment, in the order of environments and attempts.

        A group that another version of the weights had a hand in (the learner died and came back with an older checkpoint
        while it ran) is rolled out anew, and so is one with an attempt that was lost to a failure of ours: what a run learns
        must not hang on the machine's luck. Attempts that are lost every time are handed out as they are.

        Raises:
            InfrastructureError: a group's job failed for good, or the wrong weights answer again and again.
        """
        orders = [self._order(name, step, group, environment, attempts) for group, environment in enumerate(environments)]
        found: dict[int, list[Trajectory]] = {}
        for again in range(RETRIES):
            missing = [group for group in range(len(orders)) if group not in found]
            suffix = f"/{again}" if again else ""
            keys = [f"{self.run_id}/{name}/{step}/{group}{suffix}" for group in missing]
            for group, trajectories in zip(missing, self._run([orders[g] for g in missing], keys), strict=True):
                ours = all(span.version == self.engine.version for t in trajectories for s in t.segments for span in s.versions)
                if ours and (again == RETRIES - 1 or not any(t.error for t in trajectories)):
                    found[group] = trajectories
            if len(found) == len(orders):
                return [found[group] for group in range(len(orders))]
        raise InfrastructureError(
            f"expected every token of step {step} from weights {self.engine.version!r}, got others in "
            f"{len(orders) - len(found)} groups {RETRIES} times; does another engine answer at this address?"
        )

    def _run(self, orders: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[Trajectory]]:
        """Trajectories of one job per order."""
        submitted = jobs.submit_many(self.store, "rollout", orders, keys=keys, parent=self.job_id, run_id=self.run_id)
        ids = [job.id for job in submitted]
        self._do(self._wait(ids))
        done = self.store.jobs_by_id(ids)
        failed = [done[i] for i in ids if done[i].state is not State.SUCCEEDED]
        if failed:
            raise InfrastructureError(
                f"{len(failed)} of {len(ids)} rollout jobs ended {failed[0].state.value}, "
                f"the first because: {failed[0].error or 'no reason given'}; look at the page Jobs"
            )
        flat = iter(self.store.trajectories([t for i in ids for t in done[i].result["trajectories"]]))
        return [[next(flat) for _ in done[i].result["trajectories"]] for i in ids]

    def _order(self, name: str, step: int, group: int, environment: str, attempts: int) -> dict[str, Any]:
        """Payload of a rollout job. It names no address, so that it stays the same over restarts."""
        rollout = self.recipe.rollout
        return {
            "run_id": self.run_id,
            "items": [
                {
                    "environment_id": environment,
                    "group": f"{self.run_id}/{name}/{step}/{group}",
                    "attempt": attempt,
                    "seed": attempt_seed(self.seed, step, group, attempt),
                }
                for attempt in range(attempts)
            ],
            "policy": {"version": self.engine.version},
            "tokenizer": self.tokenizer,
            "sampling": {"temperature": rollout.temperature, "max_new_tokens": rollout.max_new_tokens},
            "context": rollout.context.model_dump(),
            "max_turns": rollout.max_turns,
        }

    async def _start(self, port: int) -> str:
        server = EngineServer(self.engine)
        url = await server.start(port=port)
        self.server = server
        return url

    async def _wait(self, ids: Sequence[str]) -> None:
        checked, seen = 0.0, None
        while True:
            # Asking whether anything changed is ten times cheaper than asking what.
            changes = self.store.db.changes()
            if changes is None or changes != seen:
                seen = changes
                if not self.store.unfinished(ids):
                    return
            if time.monotonic() - checked > CHECK_S:
                checked = time.monotonic()
                self.check()
            await asyncio.sleep(POLL_S)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)
