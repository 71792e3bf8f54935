"""One environment, one trajectory: what tests put into stores."""

from __future__ import annotations

import random

from gymsmith.ids import ulid
from gymsmith.schema import (
    Environment,
    Reward,
    Segment,
    Source,
    Status,
    Step,
    TaskSpec,
    Trajectory,
    VersionSpan,
)


def an_environment(i: int, **changes: object) -> Environment:
    labels = {"seed": str(i), "family": ("lookup", "chain")[i % 2], "split": "train"}
    spec = TaskSpec(name=f"gymsmith/task-{i}", kind="shell", labels=labels, keywords=("grep",))
    fields = {
        "id": f"{i:032x}",
        "source": Source(uri="shell:lookup", kind="parametric"),
        "spec": spec,
        "instruction": f"Find the crimson word in file {i}.",
        "status": Status.VERIFIED,
        "path": f"tasks/{i}",
    }
    return Environment.model_validate({**fields, **changes})


def a_trajectory(run_id: str = "run", **changes: object) -> Trajectory:
    rng = random.Random(ulid())
    ids = [rng.randrange(4096) for _ in range(150)]
    logprobs = [-rng.random() for _ in ids]
    segment = Segment(ids=ids, mask=[1] * 150, logprobs=logprobs, versions=[VersionSpan(version="7", start=0, end=150)])
    steps = [Step(action="cat a.txt", observation="\x1b[31mred\x00\n" * 3, exit_code=0), Step(action="rm", refused="not allowed")]
    fields = {
        "id": ulid(),
        "environment_id": "e",
        "run_id": run_id,
        "segments": [segment],
        "steps": steps,
        "reward": Reward(value=1.0),
    }
    return Trajectory.model_validate({**fields, **changes})
