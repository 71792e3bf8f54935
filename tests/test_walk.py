"""The walk of one environment, from its source to the report, through the jobs, sandboxes, store and learner of earnest use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from context_mgmt.chat import Chat
from gymsmith.attach import House, attached
from gymsmith.config import Settings
from gymsmith.schema import Run, State, Status
from gymsmith.store import TrajectoryFilter
from gymsmith.taskdir import read

SMALL = ["pretrain.steps=40", "sft.epochs=2", "sft.demonstrations=4", "rl.steps=2", "rl.groups=3", "rl.attempts=4"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Workers, learner and store of a state folder of its own."""
    settings = Settings.load(home=tmp_path_factory.mktemp("walk"))
    with attached(settings) as open_house:
        yield open_house


def test_the_walk_of_one_environment(house: House) -> None:
    # Steps 1 to 5: source, draft, image, evidence, stored environment.
    order = {"source": "shell:chain", "kind": "shell", "n": 4, "seed": 3, "levels": [1]}
    made = house.run("generate", order, quiet=True).result
    assert len(made["admitted"]) == 4
    environment = house.store.environment(made["admitted"][0])
    evidence = house.store.evidence(environment.id)
    assert environment.status is Status.VERIFIED and evidence is not None and evidence.proved
    gates = {gate.name: gate for gate in evidence.gates}
    assert gates["noop"].rewards == (0.0,) * 3 and gates["oracle"].rewards == (1.0,) * 3
    assert sum(name.startswith("cheat:") for name in gates) >= 5
    assert sum(name.startswith("alternative") for name in gates) >= 1

    folder = house.settings.home / environment.path
    for member in ("task.toml", "instruction.md", "environment/Dockerfile", "tests/test.sh", "solution/solve.sh"):
        assert (folder / member).is_file(), member
    task = read(folder)
    assert task.spec == environment.spec

    # A model from nothing, on text from really executed sessions.
    corpus = house.run("corpus", {"seed": 1, "sessions": 60}, quiet=True).result
    pretrained = train(house, "pretrain", corpus=corpus["path"])
    tokenizer = pretrained.summary["tokenizer"]

    # Steps 6 and 7: a scripted policy plays the reference solution; the trajectory is token-exact and stored.
    shown = house.start_run("rollout", name="demonstrations")
    items = [{"environment_id": i, "group": f"demo/{i}"} for i in made["admitted"]]
    payload = {"run_id": shown.id, "items": items, "policy": {"kind": "solution"}, "tokenizer": tokenizer}
    played = house.run("rollout", payload, quiet=True, run_id=shown.id).result
    assert played["rewards"] == [1.0] * 4 and house.store.run(shown.id).state is State.SUCCEEDED
    trajectory = house.store.trajectory(played["trajectories"][0])
    assert trajectory.looked and trajectory.reward is not None and set(trajectory.reward.tests) == set(task.spec.expected)
    chat = Chat.load(house.settings.tokenizers_dir / tokenizer)
    (segment,) = trajectory.segments
    produced = "".join(chat.decode([i]) for i, m in zip(segment.ids, segment.mask, strict=True) if m)
    assert produced == "".join(f"{step.action}<|end|>" for step in trajectory.steps) + "exit<|end|>"

    # Steps 8 and 9: batches of what is stored, new weights, served to the rollouts of the next step.
    taught = train(house, "sft", start=pretrained.id, demonstrations_run=shown.id)
    assert taught.summary["weights_digest"] != pretrained.summary["weights_digest"]
    improved = train(house, "rl", start=taught.id, environments=made["admitted"])
    metrics = {(m.step, m.name): m.value for m in house.store.metrics(improved.id)}
    assert metrics[1, "episodes"] == metrics[2, "episodes"] == 12 and metrics[1, "errors"] == metrics[2, "errors"] == 0
    rows = house.store.trajectory_rows(TrajectoryFilter(run_id=improved.id), limit=100).items
    assert len(rows) == 24
    lived = house.store.trajectory(rows[0].id)
    versions = {span.version for s in lived.segments for span in s.versions}
    assert len(versions) == 1 and all(p <= 0 for s in lived.segments for p in s.logprobs)

    # Step 10: a report on environments with unseen words.
    report = house.evaluate_held_out(improved.id, seed=99, n=6, family="chain", quiet=True)
    assert report.overall.n == 6 and report.errors == 0 and report.passed_without_look == 0
    assert 0.0 <= report.overall.low <= report.overall.rate <= report.overall.high <= 1.0
    assert house.store.report(report.id) == report


def train(house: House, stage: str, start: str = "", **inputs: object) -> Run:
    """One small stage, to its end."""
    run = house.train(stage, recipe="demo_quick", seed=1, start=start, inputs=inputs, overrides=SMALL, quiet=True)
    assert run.state is State.SUCCEEDED and (house.settings.home / run.checkpoint / "model.safetensors").is_file()
    return run


def test_everything_is_found_again(house: House) -> None:
    """The folder is all there is: another process that opens it sees the same."""
    from gymsmith.store import Store

    with Store.open(house.settings) as other:
        assert {r.kind for r in other.runs().items} >= {"pretrain", "sft", "rl"}
        assert Path(house.settings.home / "gymsmith.db").is_file()
