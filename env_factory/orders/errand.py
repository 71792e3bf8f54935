"""One order on its way: what was asked, where it is carried out, and the ledger under which its candidates are settled.

How candidates are made is not known here; `seeded.py`, `swe.py`, `lessons.py` and `llm/orders.py` bring them as a stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from env_factory.candidates import Ledger, Proposal
from env_factory.gates.stages import Level
from env_factory.gates.trial import Reviewed
from env_factory.intake import Intake
from gymsmith.errors import ConfigError
from gymsmith.schema import GenerateKind, JobContext, Word, last_of_admission
from sandboxes.base import SandboxSpec
from sandboxes.worker import Worker

FORMAT = 1
"""Part of every ledger's key: raised when synthesizers change what a candidate's number means."""


class Order(Word):
    """Payload of a generate job."""

    source: str
    """pypi:NAME==VERSION, file:PATH, man:PAGE, shell:FAMILY, shell:all or shell:unseen, layout:TEMPLATE or layout:all,
    browse:FAMILY or browse:all, terminal:NAME, repair:NAME and so on."""
    kind: GenerateKind
    n: int = Field(ge=1)
    """Environments to admit."""
    seed: int = 0
    split: Literal["train", "held_out"] = "train"
    """Words of shell, terminal, repair and layout environments."""
    levels: tuple[int, ...] = ()
    """Levels of shell, terminal, repair and browse environments; empty means 1 to 3."""
    gates: Level = "full"
    issue: str = Field(default="", max_length=200_000)
    """llm-issue: the issue's text."""
    model: str = ""
    """Kinds that ask a language model: which one; empty means the configured one. The budgets likewise, 0 for those."""
    budget_tokens: int = Field(default=0, ge=0)
    budget_usd: float = Field(default=0.0, ge=0)
    per_function: int = Field(default=0, ge=0)
    """Mutations of one function; 0 means as many as the kind takes by itself."""
    review: bool = False
    """Whether a language model reads what stood every other gate; see `llm/review.py`."""

    @model_validator(mode="after")
    def _reviewed_in_full(self) -> Self:
        if self.review and self.kind == "llm-setup":
            raise ValueError("llm-setup makes no environments that could be read; leave the review out")
        last_of_admission(self.review, self.gates)
        return self


@dataclass(frozen=True, slots=True)
class Errand:
    """An order and the worker that carries it out."""

    order: Order
    worker: Worker
    ctx: JobContext
    reviewer: Reviewed | None = None

    def ledger(self, key: dict[str, Any]) -> Ledger:
        """Where candidates are remembered. `key`: what they follow from besides kind and seed."""
        order = self.order
        return Ledger.of(
            self.ctx.settings, format=FORMAT, kind=order.kind, seed=order.seed, gates=order.gates, **self._reviewing, **key
        )

    @property
    def _reviewing(self) -> dict[str, str]:
        """Part of the key where it makes a difference: ledgers of orders without a review keep theirs."""
        return {"review": self.order.model or self.ctx.settings.llm_model} if self.order.review else {}

    async def take(
        self, proposals: AsyncGenerator[Proposal, None], key: dict[str, Any], *, at_once: int, wheels: Path | None = None
    ) -> dict[str, Any]:
        """Settle candidates until as many are admitted as were ordered; the result of the job. `key`: see `ledger`."""
        gates = await intake(self.order.gates, self.worker, self.ctx, wheels, self.reviewer)
        tally = await gates.take(proposals, self.ledger(key), self.order.n, at_once=at_once)
        made = {"admitted": tally.admitted, "candidates": tally.candidates, "reasons": dict(tally.reasons)}
        return made | ({"stopped": "budget"} if tally.stopped else {})


async def intake(
    level: Level, worker: Worker, ctx: JobContext, wheels: Path | None = None, reviewer: Reviewed | None = None
) -> Intake:
    """The intake of a worker, which reports to a job."""
    provider, images = await worker.provider(), await worker.images()

    def report(fields: dict[str, Any]) -> None:
        ctx.progress(**fields)

    return Intake(
        ctx.settings, ctx.store, provider, images, worker.slots, level=level, wheels=wheels, reviewer=reviewer, report=report
    )


async def python_of(worker: Worker) -> str:
    """Version of Python in the base image, as "3.11".

    Raises: ConfigError: there is none.
    """
    provider, images = await worker.provider(), await worker.images()
    sandbox = await provider.create(SandboxSpec(image=images.base().id))
    try:
        said = await sandbox.exec(["python3", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    finally:
        await sandbox.destroy()
    if not said.ok:
        raise ConfigError(f"expected python3 in the base image, got {said.output.decode(errors='replace')[-200:]!r}; install it")
    return said.output.decode().strip()
