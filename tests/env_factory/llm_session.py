"""An order to a job's door, with an endpoint that answers from `completions/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from env_factory import tasks
from gymsmith.schema import Job
from tests.env_factory.endpoint import Endpoint


@dataclass
class Session:
    """A state folder, an endpoint, and what every order of the test says."""

    doorway: Any
    served: Endpoint
    says: dict[str, Any]
    reported: dict[str, Any] = field(default_factory=dict)

    def order(self, *, job: str = "job", settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Carry out an order for one environment; returns the job's result."""
        mine = self.doorway.settings.model_copy(update=self.served.settings() | (settings or {}))
        door = type(self.doorway)(mine, self.doorway.store)
        door.job = Job(id=job, kind="generate", queue="factory")
        try:
            return tasks.generate({"n": 1, "gates": "controls"} | self.says | more, door)
        finally:
            self.reported = door.reported


def objection(asked: dict[str, Any]) -> str:
    """What a request says is wrong with the answer before; empty in a first one."""
    messages = asked["messages"]
    return str(messages[-1]["content"]) if len(messages) > 2 else ""
