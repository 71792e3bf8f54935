"""What a run survives: whoever works on it and whoever is killed meanwhile, the weights are the same and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gymsmith.attach import House
from gymsmith.config import Settings
from gymsmith.rows.jobs import owner
from gymsmith.schema import Job, Run, State, now
from gymsmith.store import Store, TrajectoryFilter
from gymsmith.supervisor import Supervisor
from gymsmith.taskdir import read
from sandboxes import cgroups
from sandboxes.reaper import start_time

RECIPE = "demo_quick"
STEPS, GROUPS, ATTEMPTS = 3, 3, 6
TAUGHT = ["tokenizer.vocab_size=320", "pretrain.steps=100", "pretrain.rows=4", "pretrain.observation_weight=0"]
PLAYED = [f"rl.groups={GROUPS}", f"rl.attempts={ATTEMPTS}", "rl.schedule.warmup_steps=0"]
PLAYED += ["rollout.max_turns=6", "rollout.temperature=1", "engine.slots=16"]
ORDER = {"source": "shell:chain", "kind": "shell", "n": 3, "seed": 3, "levels": [1], "gates": "controls"}
WAIT_S = 300.0
HOW = ("prefill_tokens", "cached_tokens", "decode_steps", "decode_tokens")
"""Curves that tell how the engine went about it; like seconds, they depend on who met whom there."""


@dataclass
class Place:
    """A house with workers of our own, whose processes we know."""

    house: House
    supervisor: Supervisor
    stack: ExitStack
    seen: dict[int, str] = field(default_factory=dict)
    """Every process of the house that was looked at: pid -> start time."""

    def look(self) -> None:
        """Remember the processes that descend from the supervisor's children now."""
        families: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            families.setdefault(parent, []).append(int(stat.parent.name))
        found = [child.process.pid for child in self.supervisor.children if child.process is not None]
        for pid in found:
            found += families.get(pid, [])
        self.seen |= {pid: started for pid in found if (started := start_time(pid))}

    def leftovers(self) -> list[str]:
        """What there still is of the house: processes, mounts, control groups."""
        left = [f"process {pid}" for pid, started in self.seen.items() if start_time(pid) == started]
        home = str(self.house.settings.home)
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                mine = home.encode() in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
                mounted = home in (proc / "mountinfo").read_text()
            except OSError:
                continue
            if proc.name != str(os.getpid()) and mine:
                left.append(f"process {proc.name} of the house")
            if mounted:
                left.append(f"mount in process {proc.name}")
        for root in cgroups.hierarchies()[1]:
            owners = (root / cgroups.PARENT).glob("*-*-*-*")
            left += [f"control group {g}" for g in owners if self.seen.get(int(g.name.split("-")[0])) == g.name.split("-")[1]]
        return sorted(left)


def open_place(home: Path, workers: int) -> Place:
    stack = ExitStack()
    settings = Settings.load(home=home)
    store = stack.enter_context(Store.open(settings))
    supervisor = stack.enter_context(Supervisor(settings, workers=workers, api=False))
    return Place(House(settings, store, supervisor.check), supervisor, stack)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A house with one rollout worker."""
    place = open_place(tmp_path_factory.mktemp("one"), 1)
    with place.stack:
        yield place


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A house of its own with three, and the same environments."""
    place = open_place(tmp_path_factory.mktemp("three"), 3)
    with place.stack:
        yield place


@dataclass
class Lesson:
    """Where RL starts: environments, and a model that solves them half of the time and else gives up."""

    environments: list[str]
    checkpoint: str
    digest: str


@pytest.fixture(scope="module")
def lesson(one: Place, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Taught from transcripts of really played solutions, each beside one that says `exit` at once: so rewards are mixed."""
    house = one.house
    ids = house.run("generate", ORDER, quiet=True).result["admitted"]
    played = house.rollout(ids, solution=True, quiet=True)
    assert played["rewards"] == [1.0] * len(ids)
    documents = []
    for trajectory in house.store.trajectories(played["trajectories"]):
        task = read(house.settings.home / house.store.environment(trajectory.environment_id).path)
        said = [part for step in trajectory.steps for part in (["act", step.action], ["obs", step.observation])]
        documents += [[["task", task.instruction], *said, ["act", "exit"]], [["task", task.instruction], ["act", "exit"]]]
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"segments": d}) + "\n" for d in documents))
    run = house.train("pretrain", recipe=RECIPE, seed=1, inputs={"corpus": str(corpus)}, overrides=TAUGHT, quiet=True)
    return Lesson(ids, str(house.settings.home / run.checkpoint), run.summary["weights_digest"])


Disturbance = Callable[[Place, Run], None]


@dataclass
class Outcome:
    """What RL came to."""

    run: Run
    job: Job
    told: list[tuple[object, ...]]
    """Every attempt: its place, reward, ids and logprobs."""
    curves: dict[tuple[str, int], float]

    @property
    def digest(self) -> str:
        return str(self.run.summary["weights_digest"])


def reinforce(place: Place, lesson: Lesson, *, seed: int = 5, steps: int = STEPS, disturb: Disturbance | None = None) -> Outcome:
    """One RL run to its end, perhaps disturbed."""
    house = place.house
    config = {"recipe": RECIPE, "seed": seed, "start": lesson.checkpoint, "environments": lesson.environments}
    config["overrides"] = [*PLAYED, f"rl.steps={steps}"]
    run = house.start_run("rl", seed=seed, config=config)
    job = house.submit("train", {"stage": "rl", "run_id": run.id, "config": config}, run_id=run.id)
    if disturb is not None:
        disturb(place, run)
    job = house.watch({"rl": job}, quiet=True)["rl"]
    rows = house.store.trajectory_rows(TrajectoryFilter(run_id=run.id), limit=500).items
    told = [
        (
            *(t.group.removeprefix(run.id), t.attempt, t.environment_id, t.reward and t.reward.value, t.error),
            *((tuple(s.ids), tuple(s.logprobs)) for s in t.segments),
        )
        for t in house.store.trajectories([row.id for row in rows])
    ]
    curves = {
        (m.name, m.step): m.value for m in house.store.metrics(run.id) if not m.name.endswith("seconds") and m.name not in HOW
    }
    return Outcome(house.store.run(run.id), job, sorted(told, key=lambda t: (t[0], t[1])), curves)


def same(outcome: Outcome, other: Outcome) -> None:
    """Attempts first, because they show where two runs parted."""
    assert outcome.told == other.told
    assert outcome.curves == other.curves
    assert outcome.digest == other.digest


@pytest.fixture(scope="module")
def undisturbed(one: Place, lesson: Lesson) -> Outcome:
    """The run that the others must equal."""
    return reinforce(one, lesson)


def test_one_worker_or_three_the_same_numbers_and_weights(three: Place, lesson: Lesson, undisturbed: Outcome) -> None:
    counted_once(undisturbed)
    assert undisturbed.curves["useful", 1] > 0 and undisturbed.curves["useful", 2] > 0, "a step had nothing to learn from"
    assert undisturbed.digest != lesson.digest

    assert three.house.run("generate", ORDER, quiet=True).result["admitted"] == lesson.environments
    outcome = reinforce(three, lesson)
    assert len({job.owner for job in rollouts(three, outcome.run)}) > 1, "only one worker had a hand in it"
    same(outcome, undisturbed)

    other = reinforce(three, lesson, seed=6, steps=1)
    assert other.told != [told for told in undisturbed.told if str(told[0]).startswith("/rl/0/")], "the seed changes nothing"


def test_a_killed_worker_costs_time_and_nothing_else(three: Place, lesson: Lesson, undisturbed: Outcome) -> None:
    outcome = reinforce(three, lesson, disturb=kill_a_worker)
    assert max(job.attempt for job in rollouts(three, outcome.run)) > 1, "the killed worker's jobs were not made again"
    assert outcome.job.attempt == 1
    counted_once(outcome)
    same(outcome, undisturbed)


def test_a_killed_learner_goes_on_from_its_checkpoint(one: Place, lesson: Lesson, undisturbed: Outcome) -> None:
    outcome = reinforce(one, lesson, disturb=kill_the_learner)
    assert outcome.job.attempt == 2 and outcome.run.summary["resumed"] is True
    counted_once(outcome)
    same(outcome, undisturbed)


def test_nothing_is_left_of_a_closed_house(one: Place, three: Place) -> None:
    for place in (one, three):
        place.look()
        assert place.leftovers(), "a house at work is seen"
        place.stack.close()
        assert place.leftovers() == []


def counted_once(outcome: Outcome) -> None:
    """Every attempt stands in the store once, and every step counts all of its own."""
    assert len({told[:2] for told in outcome.told}) == len(outcome.told) == STEPS * GROUPS * ATTEMPTS
    for step in range(1, STEPS + 1):
        assert outcome.curves["episodes", step] == GROUPS * ATTEMPTS and outcome.curves["errors", step] == 0


def rollouts(place: Place, run: Run) -> list[Job]:
    return place.house.store.jobs(kind="rollout", run_id=run.id, limit=500).items


def at_work(place: Place, run: Run) -> Job:
    """A rollout job in the middle of RL: after the first step, and begun some moments ago."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        place.house.check()
        place.look()
        for job in place.house.store.jobs(kind="rollout", run_id=run.id, state=State.RUNNING).items:
            begun = job.started_at is not None and (now() - job.started_at).total_seconds() > 0.05
            if begun and not job.key.startswith(f"{run.id}/rl/0/"):
                return job
        time.sleep(0.01)
    pytest.fail(f"no rollout was at work within {WAIT_S:g} s; jobs: {[(job.key, job.state) for job in rollouts(place, run)]}")


def kill_a_worker(place: Place, run: Run) -> None:
    """SIGKILL to a worker that has a job of the run."""
    job = at_work(place, run)
    (pid,) = [c.process.pid for c in place.supervisor.children if c.process is not None and owner(c.process.pid) == job.owner]
    os.kill(pid, signal.SIGKILL)


def kill_the_learner(place: Place, run: Run) -> None:
    """SIGKILL to the training process while its rollouts run."""
    at_work(place, run)
    learners = []
    for pid in place.seen:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "trainer.learner" in words and run.id in words:
            learners.append(pid)
    (learner,) = learners
    os.kill(learner, signal.SIGKILL)
