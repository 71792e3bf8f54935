"""A terminal's way into the house: put a job, watch it, and have workers for as long as it takes.

`attached(settings)` uses the workers that already run on this state folder (`gymsmith up`, another command), else starts the
embedded ones as soon as a job waits for them, and stops them at the end. Workers of another command end with that command;
whoever still waits then starts its own. Ctrl-C cancels what was put; everything that was finished stays, and the same command
goes on from there.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gymsmith import jobs, orders
from gymsmith.config import Settings
from gymsmith.errors import Conflict, GymsmithError, InfrastructureError, NotFound, StoreError, UserError, named
from gymsmith.ids import ulid
from gymsmith.orders import Orders
from gymsmith.schema import EvalReport, Job, Run, State
from gymsmith.store import Store
from gymsmith.supervisor import Supervisor, running

POLL_S = 0.1
"""How often a watched job's row is read."""

CONTEXT = {"keep_recent_k": None, "limit_tokens": 320, "observation_tokens": 56}
"""Context of a rollout that the caller did not choose: that of the demo's model."""

LEAST_FREE_BYTES = 1 << 20
"""Free space of the state folder below which nothing is waited for any more."""

MAX_TURNS = 16
"""Actions of an evaluated episode: more than any reference solution takes, long chains included."""


class House:
    """The store, the jobs and (maybe) our own workers."""

    def __init__(self, settings: Settings, store: Store, check: Callable[[], None] = lambda: None) -> None:
        """`check` sees to it that somebody works on the jobs; it raises when the workers cannot stay alive."""
        self.settings = settings
        self.store = store
        self.check = check
        self.orders = Orders(settings.home / orders.FOLDER)

    # -------------------------------------------------------- jobs

    def submit(self, kind: str, payload: Mapping[str, Any], *, key: str = "", parent: str = "", run_id: str = "") -> Job:
        """Put a job; the same key never makes a second one."""
        job = jobs.submit(self.store, kind, dict(payload), key=key, parent=parent, run_id=run_id)
        self.orders.note(job.id)
        return job

    def watch(self, labelled: Mapping[str, Job], *, quiet: bool = False) -> dict[str, Job]:
        """Follow jobs until each has ended; label -> finished job.

        Raises:
            GymsmithError: a job failed; the message is the job's. Siblings are cancelled.
        """
        live = dict(labelled)
        ended: dict[str, Job] = {}
        try:
            with progress_bars(quiet) as bars:
                tasks = {label: bars.add_task(label, total=None, note="") for label in live}
                while live:
                    self.check()
                    for label, job in list(live.items()):
                        job = self.store.job(job.id)
                        bars.update(
                            tasks[label],
                            completed=job.progress.get("done", 0),
                            total=job.progress.get("total"),
                            note=str(job.progress.get("note", "")),
                        )
                        if job.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
                            ended[label] = job
                            del live[label]
                            if job.state is not State.SUCCEEDED:
                                raise failure(label, job)
                    time.sleep(POLL_S if live else 0)
        except BaseException:
            # What brought us here is the news, not that a broken database takes no cancellation either.
            with contextlib.suppress(StoreError):
                for job in live.values():
                    self.store.cancel(job.id)
            raise
        return ended

    def run(
        self, kind: str, payload: Mapping[str, Any], *, label: str = "", quiet: bool = False, key: str = "", run_id: str = ""
    ) -> Job:
        """Put one job and follow it to its end."""
        job = self.submit(kind, payload, key=key, run_id=run_id)
        return self.watch({label or kind: job}, quiet=quiet)[label or kind]

    # -------------------------------------------------------- runs

    def start_run(
        self, kind: str, *, name: str = "", seed: int = 0, parent: str = "", config: Mapping[str, Any] | None = None
    ) -> Run:
        """A new run row."""
        run = Run(id=ulid(), kind=kind, name=name or kind, seed=seed, parent=parent, config=dict(config or {}))
        self.store.put_run(run)
        return run

    def train(
        self,
        stage: str,
        *,
        recipe: str,
        seed: int,
        start: str = "",
        inputs: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        run_id: str = "",
        parent: str = "",
        name: str = "",
        quiet: bool = False,
    ) -> Run:
        """Run one training stage to its end; with `run_id`, go on with that run from its newest checkpoint."""
        config = {
            "recipe": recipe,
            "seed": seed,
            "start": self.checkpoint(start) if start else "",
            "overrides": list(overrides),
            **{key: value for key, value in (inputs or {}).items() if value != ""},
        }
        if run_id:
            run = self.store.run(run_id)
            if run.kind != stage:
                raise Conflict(
                    f"run {run_id} is of stage {run.kind}, asked for was {stage}; name its own stage, or start a new run"
                )
        else:
            run = self.start_run(stage, name=name or stage, seed=seed, parent=parent, config=config)
        job = self.submit("train", {"stage": stage, "run_id": run.id, "config": run.config}, run_id=run.id)
        self.watch({name or stage: job}, quiet=quiet)
        return self.store.run(run.id)

    def checkpoint(self, given: str) -> str:
        """A checkpoint folder relative to the state folder, from a run id or a path.

        Raises:
            NotFound: neither a run with a checkpoint nor a folder.
        """
        path = Path(given)
        if path.is_dir():
            return str(path.resolve())
        run = self.store.run(given)
        if not run.checkpoint:
            raise NotFound(f"run {given} has no checkpoint yet; its state is {run.state}")
        return run.checkpoint

    @contextmanager
    def served(self, checkpoint: str, *, parent: str = "") -> Iterator[Run]:
        """An engine that serves a checkpoint; the run row carries its URL, version and (in `summary`) its tokenizer."""
        folder = self.checkpoint(checkpoint)
        run = self.start_run("serve", name=f"serve {checkpoint}", parent=parent, config={"checkpoint": checkpoint})
        job = self.submit("serve", {"checkpoint": folder, "run_id": run.id}, run_id=run.id)
        try:
            while not run.engine_url:
                self.check()
                state = self.store.job(job.id)
                if state.state in (State.FAILED, State.CANCELLED):
                    raise failure("serve", state)
                time.sleep(POLL_S)
                run = self.store.run(run.id)
            yield run
        finally:
            self.store.cancel(job.id)

    def export(self, checkpoint: str, folder: Path, *, dtype: str = "float32", serving: str = "", quiet: bool = False) -> Path:
        """Write a checkpoint as a Hugging Face folder.

        Raises:
            NotFound: there is no such checkpoint.
            UserError: the folder exists.
        """
        payload = {"checkpoint": self.checkpoint(checkpoint), "folder": str(folder.resolve()), "dtype": dtype}
        payload["serving"] = serving
        return Path(self.run("export", payload, quiet=quiet).result["folder"])

    # -------------------------------------------------------- rollouts and evaluation

    def rollout(
        self,
        env_ids: Sequence[str],
        *,
        checkpoint: str = "",
        solution: bool = False,
        attempts: int = 1,
        seed: int = 1,
        keep_recent_k: int | None = None,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Attempt environments with a checkpoint, or play their reference solutions."""
        if bool(checkpoint) == solution:
            raise UserError("expected either --checkpoint or --solution, got " + ("both" if solution else "neither"))
        ids = [self.store.find_environment(given).id for given in env_ids]
        if checkpoint:
            self.checkpoint(checkpoint)
        items = [
            {"environment_id": env_id, "group": f"manual/{env_id}", "attempt": k, "seed": seed * 1000 + k}
            for env_id in ids
            for k in range(attempts)
        ]
        run = self.start_run("rollout", seed=seed)
        payload = {"run_id": run.id, "items": items, "context": CONTEXT | {"keep_recent_k": keep_recent_k}, "max_turns": 12}
        if solution:
            return self.run(
                "rollout", payload | {"policy": {"kind": "solution"}}, label="rollouts", quiet=quiet, run_id=run.id
            ).result
        with self.served(checkpoint) as engine:
            payload |= {
                "policy": policy_of(engine),
                "tokenizer": engine.summary["tokenizer"],
                "sampling": {"temperature": 1.0, "max_new_tokens": 24},
            }
            return self.run("rollout", payload, label="rollouts", quiet=quiet, run_id=run.id).result

    def evaluate_held_out(
        self,
        checkpoint: str,
        *,
        seed: int,
        n: int,
        family: str = "all",
        greedy: bool = False,
        keep_recent_k: int | None = None,
        level: int | None = None,
        quiet: bool = False,
    ) -> EvalReport:
        """Make held-out environments from `seed`, then measure a checkpoint on them."""
        self.checkpoint(checkpoint)
        made = self.run("generate", held_out(seed, n, family=family, level=level), label="held-out environments", quiet=quiet)
        with self.served(checkpoint) as engine:
            payload = evaluation(engine, made.result["admitted"], name=f"held-out {family}", greedy=greedy, seed=seed)
            payload["context"] = payload["context"] | {"keep_recent_k": keep_recent_k}
            job = self.run("evaluate", payload, label="evaluation", quiet=quiet, run_id=engine.id)
        return self.store.report(job.result["report_id"])


def held_out(seed: int, n: int, *, family: str = "all", level: int | None = None) -> dict[str, Any]:
    """Payload of a `generate` job for held-out shell environments."""
    payload: dict[str, Any] = {
        "source": f"shell:{family}",
        "kind": "shell",
        "n": n,
        "seed": seed,
        "split": "held_out",
        "gates": "controls",
    }
    return payload | ({"levels": [level]} if level is not None else {})


def policy_of(engine: Run) -> dict[str, str]:
    """The policy part of a payload for a served checkpoint."""
    return {"url": engine.engine_url, "version": engine.policy_version, "run_id": engine.id}


def evaluation(engine: Run, env_ids: Sequence[str], *, name: str, greedy: bool, seed: int, run_id: str = "") -> dict[str, Any]:
    """Payload of an `evaluate` job for a served checkpoint."""
    return {
        "run_id": run_id or engine.id,
        "name": name,
        "environments": list(env_ids),
        "policy": policy_of(engine),
        "tokenizer": engine.summary["tokenizer"],
        "mode": "greedy" if greedy else "sampled",
        "seed": seed,
        "sampling": {"temperature": 0.0 if greedy else 1.0, "max_new_tokens": 24},
        "context": dict(CONTEXT),
        "max_turns": MAX_TURNS,
    }


def failure(label: str, job: Job) -> GymsmithError:
    """The error of a job that did not succeed, of the kind that its door raised."""
    if job.state is State.CANCELLED:
        return Conflict(f"{label}: cancelled by somebody else; the same command goes on from what was finished")
    lost = InfrastructureError if job.attempt >= job.max_attempts else GymsmithError
    return named(str(job.result.get("code", "")), lost)(f"{label}: {job.error or 'failed without a message'}")


def progress_bars(quiet: bool) -> Progress:
    """Bars on a terminal, nothing when quiet; on a pipe rich prints the final state once."""
    return Progress(
        TextColumn("{task.description:28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
        disable=quiet,
    )


class Workers:
    """Somebody who works on a state folder: whoever does already, else embedded workers of our own."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.settings = settings
        self.count = count
        self.own: Supervisor | None = None

    def ensure(self) -> None:
        """Start our own workers when nobody works on the state folder.

        Raises:
            InfrastructureError: our own workers cannot stay alive.
            StoreError: the state folder cannot be used, or its disk is full.
        """
        # On a full disk a worker cannot even write that its job failed, so whoever waits must see it.
        if (free := shutil.disk_usage(self.settings.home).free) < LEAST_FREE_BYTES:
            raise StoreError(
                f"the disk of {self.settings.home} is full: {free} bytes are free and at least {LEAST_FREE_BYTES} are needed; "
                "free some space, then the same command goes on from what was finished"
            )
        if self.own is not None:
            self.own.check()
        elif not running(self.settings):
            supervisor = Supervisor(self.settings, workers=self.count, api=False)
            try:
                supervisor.start()
            except Conflict:
                # Another command was faster; its workers do our jobs too. Without it, the next look tries again.
                return
            self.own = supervisor

    def stop(self) -> None:
        """End our own workers; others stay."""
        if self.own is not None:
            self.own.stop()


@contextmanager
def attached(settings: Settings, *, workers: int = 1) -> Iterator[House]:
    """The house of this state folder; workers are seen to while a job is watched.

    Raises:
        StoreError: the state folder cannot be used.
        InfrastructureError: the broker does not answer.
    """
    with Store.open(settings) as store:
        jobs.reach(settings)
        orders.sweep(store, orders.SETTLE_S)
        crew = Workers(settings, workers)
        house = House(settings, store, crew.ensure)
        try:
            yield house
        finally:
            crew.stop()
            house.orders.close()
