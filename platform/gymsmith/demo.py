"""The main job, told once: from nothing to a model that RL made better, in real sandboxes, on real input.

This file only puts jobs and reads the store: environments are made and proved by the factory's workers, weights change in the
learner, attempts run in sandboxes. What depends on what:

    corpus ── pretrain ── sft ── (dpo) ── rl ── evaluation
    shell pool, SWE and tutorial environments, held-out set: proved beside pre-training, needed from sft on

Every finished phase is written into the demo's run row, so that an interrupted demo goes on where it stopped. Budgets count
steps; the seconds printed beside them are what they are expected to take on two idle cores, never a stop condition.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gymsmith import story_report
from gymsmith.attach import House, attached, evaluation
from gymsmith.config import Settings
from gymsmith.errors import ConfigError
from gymsmith.schema import Job, Run, State, now

LONG_CHAIN = 9
"""Level of the chain family with eight hops; RL sees at most two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one demo. The recipe holds every knob of the model and its training."""

    name: str
    recipe: str
    package: str
    swe: int
    """SWE environments to admit from the package."""
    tutorial: str
    """Folder of lessons, relative to the working directory."""
    tutorials: int
    pool: int
    """Shell environments for teaching and RL."""
    demonstrated: dict[str, int]
    """How many of the pool's environments the teacher demonstrates, by level; the levels left out are never demonstrated."""
    prefer: bool
    """Preference-tune between SFT and RL."""
    held_out: int
    family: int
    """Environments of the family that no training stage saw."""
    folding: int
    """Long chains for the comparison with and without folding."""
    sessions: int
    """Really executed shell sessions in the pre-training text."""
    gain_points: float
    """What RL must add to SFT's sampled pass rate."""
    floor: float
    """Least overall pass rate after RL; 0 where none is promised."""
    family_floor: float
    budget_s: dict[str, int] = field(default_factory=dict)
    """Expected wall seconds per phase on two idle cores."""

    @classmethod
    def full(cls) -> Plan:
        """At most ten minutes."""
        return cls(
            name="full",
            recipe="demo",
            package="pypi:inflection==0.5.1",
            swe=20,
            tutorial="examples/tutorials",
            tutorials=10,
            pool=576,
            demonstrated={"1": 84, "2": 12, "3": 6},
            prefer=False,
            held_out=600,
            family=120,
            folding=120,
            sessions=2000,
            gain_points=25.0,
            floor=0.75,
            family_floor=0.60,
            budget_s={"corpus": 20, "pretrain": 120, "proofs": 90, "sft": 15, "before": 35, "rl": 250, "after": 70},
        )

    @classmethod
    def quick(cls) -> Plan:
        """At most three minutes: a smaller everything."""
        return cls(
            name="quick",
            recipe="demo_quick",
            package="pypi:inflection==0.5.1",
            swe=5,
            tutorial="examples/tutorials",
            tutorials=3,
            pool=180,
            demonstrated={"1": 60, "2": 12, "3": 6},
            prefer=False,
            held_out=300,
            family=0,
            folding=0,
            sessions=2000,
            gain_points=15.0,
            floor=0.0,
            family_floor=0.0,
            budget_s={"corpus": 12, "pretrain": 50, "proofs": 20, "sft": 10, "before": 17, "rl": 55, "after": 16},
        )


@dataclass(slots=True)
class Result:
    """What the demo found. `kept` is True when every promise of the plan held."""

    document: dict[str, Any]

    @property
    def kept(self) -> bool:
        """Whether every promise held."""
        return all(promise["kept"] for promise in self.document["promises"])


class Story:
    """One demo in the making: phases, their seconds, their results."""

    def __init__(self, house: House, plan: Plan, run: Run, *, eval_seed: int, permute_rewards: bool, quiet: bool) -> None:
        self.house = house
        self.plan = plan
        self.run = run
        self.eval_seed = eval_seed
        self.permute_rewards = permute_rewards
        self.quiet = quiet
        self.phases: dict[str, dict[str, Any]] = dict(run.summary.get("phases", {}))

    # -------------------------------------------------------- bookkeeping

    def save(self, **fields: Any) -> None:
        """Write what is known into the run row."""
        self.house.store.update_run(self.run.id, summary={**self.run.summary, "phases": self.phases}, **fields)

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """A phase: yields the dict to put its result in; empty when it has to be done, filled when it was done before."""
        done = self.phases.get(name)
        if done and "seconds" in done:
            yield done
            return
        result: dict[str, Any] = done or {}
        self.phases[name] = result
        start = time.monotonic()
        yield result
        result["seconds"] = round(time.monotonic() - start, 1)
        self.save()

    def stage(self, name: str, *, start: str = "", **inputs: Any) -> str:
        """One training stage as a phase; the id of its run."""
        with self.phase(name) as result:
            if "seconds" not in result:
                if "run" not in result:
                    config = self.house.start_run(name, name=f"{name} (demo)", seed=self.run.seed, parent=self.run.id)
                    result["run"] = config.id
                    self.house.store.update_run(config.id, config=self.config(start, inputs))
                    self.save()
                self.house.train(
                    name, recipe=self.plan.recipe, seed=self.run.seed, run_id=result["run"], name=name, quiet=self.quiet
                )
        return str(result["run"])

    def config(self, start: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """The payload of a training stage, as `House.train` builds it."""
        base = {"recipe": self.plan.recipe, "seed": self.run.seed, "overrides": []}
        return base | {"start": self.house.checkpoint(start) if start else ""} | inputs

    # -------------------------------------------------------- the story

    def tell(self) -> dict[str, Any]:
        """All phases in order; the report document."""
        with self.phase("corpus") as corpus:
            if "seconds" not in corpus:
                payload = {"seed": self.run.seed, "sessions": self.plan.sessions, "drills": 2.5}
                job = self.house.run(
                    "corpus", payload, label="corpus: real shell sessions", quiet=self.quiet, key=self.key("corpus")
                )
                corpus.update(job.result)
        proofs = self.order_environments()
        pretrained = self.stage("pretrain", corpus=corpus["path"])
        with self.phase("proofs") as made:
            if "seconds" not in made:
                made.update({name: job.result for name, job in self.house.watch(proofs, quiet=self.quiet).items()})
        # An order that does not depend on which environment was proved first.
        pool = sorted(made["shell pool"]["admitted"])
        taught = self.stage("sft", start=pretrained, demonstrations_run=self.demonstrate(pool))
        before = self.evaluate("before", taught, made["held-out"]["admitted"])
        started = self.prefer(taught, pool)
        improved = self.stage("rl", start=started, environments=pool, permute_rewards=self.permute_rewards)
        after = self.evaluate("after", improved, made["held-out"]["admitted"], made)
        return story_report.document(
            self.house.store, self.plan, self.run, self.phases, made, before, after, self.permute_rewards
        )

    def key(self, name: str) -> str:
        """Idempotency key of a job of this demo."""
        return f"{self.run.id}/{name}"

    def order_environments(self) -> dict[str, Job]:
        """Put the factory's jobs; they run beside pre-training."""
        plan, seed = self.plan, self.run.seed
        orders: dict[str, dict[str, Any]] = {
            "shell pool": {"source": "shell:all", "kind": "shell", "n": plan.pool, "seed": seed, "split": "train"},
            "SWE": {"source": plan.package, "kind": "mutation", "n": plan.swe, "seed": seed},
            "tutorial": {"source": tutorial(plan), "kind": "tutorial", "n": plan.tutorials, "seed": seed},
            "held-out": {
                "source": "shell:all",
                "kind": "shell",
                "n": plan.held_out,
                "seed": self.eval_seed,
                "split": "held_out",
                "gates": "controls",
            },
        }
        if plan.family:
            orders["new family"] = orders["held-out"] | {"source": "shell:unseen", "n": plan.family}
        if plan.folding:
            orders["long chains"] = orders["held-out"] | {"source": "shell:chain", "n": plan.folding, "levels": [LONG_CHAIN]}
        return {
            name: self.house.submit("generate", payload, key=self.key(name), run_id=self.run.id)
            for name, payload in orders.items()
        }

    def demonstrate(self, pool: list[str]) -> str:
        """The teacher plays solutions of easy environments in real sandboxes; the run that holds the trajectories."""
        with self.phase("demonstrations") as result:
            if "seconds" not in result:
                easy = self.easy(pool)
                run = self.house.start_run("rollout", name="demonstrations", seed=self.run.seed, parent=self.run.id)
                items = [{"environment_id": i, "group": f"demo/{i}", "attempt": 0, "seed": 0} for i in easy]
                tokenizer = self.house.store.run(self.phases["pretrain"]["run"]).summary["tokenizer"]
                payload = {
                    "run_id": run.id,
                    "items": items,
                    "policy": {"kind": "solution"},
                    "tokenizer": tokenizer,
                    "max_turns": 16,
                }
                self.house.run("rollout", payload, label="demonstrations", quiet=self.quiet, run_id=run.id)
                result.update(run=run.id, count=len(items))
        return str(result["run"])

    def easy(self, pool: list[str]) -> list[str]:
        """What the teacher demonstrates: of each level as many environments as planned, family by family in turn."""
        cells: dict[str, dict[str, list[str]]] = {}
        for i in pool:
            labels = self.house.store.environment(i).spec.labels
            cells.setdefault(labels["level"], {}).setdefault(labels["family"], []).append(i)
        chosen: list[str] = []
        for level, count in self.plan.demonstrated.items():
            families = [members for _, members in sorted(cells[level].items())]
            turns = [i for turn in zip_longest(*families) for i in turn if i is not None]
            chosen += turns[:count]
        return chosen

    def prefer(self, taught: str, pool: list[str]) -> str:
        """Preference tuning, where the plan has it, on passed against failed attempts. The run to go on from."""
        return self.stage("dpo", start=taught, environments=pool) if self.plan.prefer else taught

    def evaluate(self, name: str, run_id: str, held_out: list[str], made: dict[str, Any] | None = None) -> dict[str, str]:
        """Sampled and greedy pass rates on the held-out set (and, at the end, the new family and folding): label -> report id."""
        with self.phase(name) as reports:
            if "seconds" not in reports:
                with self.house.served(run_id, parent=self.run.id) as engine:
                    for label, payload in self.measurements(engine, held_out, made or {}).items():
                        payload["run_id"] = self.run.id
                        job = self.house.run("evaluate", payload, label=f"{name}: {label}", quiet=self.quiet, run_id=self.run.id)
                        reports[label] = job.result["report_id"]
        return {label: report for label, report in reports.items() if label != "seconds"}

    def measurements(self, engine: Run, held_out: list[str], made: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What to measure with a served policy: label -> payload of an `evaluate` job."""
        seed = self.eval_seed
        orders = {
            "sampled": evaluation(engine, held_out, name="held-out, sampled", greedy=False, seed=seed),
            "greedy": evaluation(engine, held_out, name="held-out, greedy", greedy=True, seed=seed),
        }
        if "new family" in made:
            orders["new family"] = evaluation(
                engine, made["new family"]["admitted"], name="new family, sampled", greedy=False, seed=seed
            )
        if "long chains" in made:
            long = evaluation(engine, made["long chains"]["admitted"], name="long chains, unfolded", greedy=True, seed=seed)
            orders["unfolded"] = long
            orders["folded"] = long | {"name": "long chains, keep-recent-2", "context": long["context"] | {"keep_recent_k": 2}}
        return orders


def tutorial(plan: Plan) -> str:
    """The plan's tutorial as a source that any worker finds, whatever its working directory.

    Raises:
        ConfigError: the folder is not here; the lessons come with the repository.
    """
    folder = Path(plan.tutorial).resolve()
    if not folder.is_dir():
        raise ConfigError(f"expected the lessons in {folder}, got nothing there; run the demo in a checkout of the repository")
    return f"file:{folder}"


def run(
    settings: Settings,
    plan: Plan,
    *,
    seed: int,
    eval_seed: int,
    permute_rewards: bool = False,
    workers: int = 1,
    quiet: bool = False,
    announce: Callable[[str], None] = print,
) -> Result:
    """Tell the whole story and write the report.

    Raises:
        ConfigError: the lessons are not here, said before anything starts.
        GymsmithError: a phase failed; what was finished is kept and the same call goes on from there.
    """
    config = {"plan": asdict(plan), "seed": seed, "eval_seed": eval_seed, "permute_rewards": permute_rewards}
    config_hash = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    tutorial(plan)
    if not quiet:
        story_report.show_budget(plan)
    start = time.monotonic()
    with attached(settings, workers=workers) as house:
        unfinished = [
            r for r in house.store.runs(kind="demo").items if r.config_hash == config_hash and r.state is not State.SUCCEEDED
        ]
        if unfinished:
            demo_run = unfinished[0]
            if not quiet:
                done = [name for name, phase in demo_run.summary.get("phases", {}).items() if "seconds" in phase]
                announce(f"going on with demo {demo_run.id}: {', '.join(done) or 'nothing'} done so far")
        else:
            demo_run = house.start_run("demo", name=f"demo {plan.name}", seed=seed, config=config)
        house.store.update_run(demo_run.id, state=State.RUNNING, config_hash=config_hash)
        story = Story(house, plan, demo_run, eval_seed=eval_seed, permute_rewards=permute_rewards, quiet=quiet)
        document = story.tell()
        document["seconds"] = round(time.monotonic() - start, 1)
        story.save(state=State.SUCCEEDED, finished_at=now())
        folder = story_report.write(settings, demo_run, document)
    if not quiet:
        story_report.show(document, folder)
    return Result(document)


def serve(settings: Settings) -> None:
    """Serve the dashboard on loopback until Ctrl-C."""
    from gymsmith.supervisor import Supervisor

    with Supervisor(settings, workers=1) as supervisor:
        print(f"dashboard: {supervisor.url}  (Ctrl-C ends it)", flush=True)
        supervisor.run_forever()
