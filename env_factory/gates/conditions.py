"""Under what an honest solution must pass all the same: another hash seed, time zone and test order, half of the processor.

Each condition is a task that differs from the one it was made from in nothing that it may depend on, and an environment for the
commands of both sandboxes. Time zones are POSIX rules, which need no data base; east of them and west of them it is another day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import NamedTuple

from gymsmith.taskdir import Task

RUNNER = "/tests/run.py"
_PLUGIN = "tests/order/shuffled_order.py"


class Condition(NamedTuple):
    """One way to run the oracle. `order` is the seed of another test order, empty for the suite's own."""

    name: str
    hash_seed: str = ""
    zone: str = ""
    order: str = ""
    cpu_share: float = 1.0

    def apply(self, task: Task) -> tuple[Task, Mapping[str, str]]:
        """The task and the environment of its sandboxes. A slower processor gets as much more time."""
        env = {"PYTHONHASHSEED": self.hash_seed, "TZ": self.zone, "GYMSMITH_ORDER": self.order}
        spec, files = task.spec, task.files
        if self.cpu_share != 1.0:
            more = {"verifier_timeout_s": spec.verifier_timeout_s, "agent_timeout_s": spec.agent_timeout_s}
            spec = spec.model_copy(
                update={"cpus": spec.cpus * self.cpu_share, **{name: limit / self.cpu_share for name, limit in more.items()}}
            )
        if self.order and RUNNER.encode() in files["tests/test.sh"] and RUNNER[1:] in files:
            given = f"{RUNNER} --path /tests/order --plugin shuffled_order".encode()
            script = files["tests/test.sh"].replace(RUNNER.encode(), given, 1)
            plugin = resources.files("env_factory.probe").joinpath("shuffled_order.py").read_bytes()
            files = {**files, "tests/test.sh": script, _PLUGIN: plugin}
        return replace(task, spec=spec, files=files), {name: value for name, value in env.items() if value}


CONDITIONS = (
    Condition("as it is"),
    Condition("a day ahead", hash_seed="0", zone="AHEAD-14"),
    Condition("a day behind, other order", hash_seed="1", zone="BEHIND+11", order="1"),
    Condition("half the processor", hash_seed="42", cpu_share=0.5),
    Condition("half the processor, other order", hash_seed="4242", zone="AHEAD-14", order="2", cpu_share=0.5),
)
"""Five runs, two with half of the processor, two in another order, four hash seeds besides a random one, three days."""
