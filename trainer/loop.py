"""The one training loop: pre-training, SFT, DPO and RL differ in where batches come from and what is minimised, nothing else.

A stage brings a `Feed`. The loop asks it for the micro-batches of one update with a loss for each, sums the gradients, clips,
steps, counts, saves at boundaries and reports. Resuming from any checkpoint goes on bit for bit as an unbroken run would (one
thread).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gymsmith.errors import CorruptCheckpoint, GymsmithError
from trainer import checkpoint
from trainer.config import SaveConfig, ScheduleConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.optim.schedule import scale

log = logging.getLogger(__name__)
Report = Callable[[int, dict[str, float]], None]
"""Called with (step, metrics) after each step."""


class NotFinite(GymsmithError):
    """The loss became NaN or infinite; the message names the step. Trying again would give the same."""

    code = "not-finite"


@dataclass(slots=True)
class Piece:
    """One micro-batch: a loss that is already divided by the update's denominator, so that pieces add up."""

    loss: Callable[[Transformer], Tensor]
    tokens: int


@dataclass(slots=True)
class Update:
    """Everything between two optimizer steps."""

    pieces: Iterator[Piece]
    metrics: dict[str, float] = field(default_factory=dict)
    """Filled while the pieces are consumed; the loop adds loss, gradient norm, rate and tokens."""


class Feed(Protocol):
    """Where updates come from."""

    def updates(self, step: int) -> Iterator[Update]:
        """The updates of one step: one for plain training, the minibatches of a rollout batch for RL."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; taken between steps."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        ...


def leave(model: Transformer) -> None:
    """Leave the model as it is."""


@dataclass(slots=True)
class Trainer:
    """One run of the loop over one model."""

    model: Transformer
    optimizers: Optimizers
    schedule: ScheduleConfig
    steps: int
    folder: Path
    """Checkpoints go here, one folder per step."""
    save: SaveConfig
    tokenizer: str
    """JSON of the tokenizer, stored with every checkpoint."""
    meta: dict[str, Any]
    """Stored with every checkpoint: stage, seed, config hash."""
    report: Report
    finish: Callable[[Transformer], None] = leave
    """Applied once, between the last update and the last checkpoint."""
    precision: torch.dtype = torch.float32
    """Of matrix products; weights and optimizer state are float32."""
    path: Path | None = None
    """The newest checkpoint."""
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens trained on."""

    def resume(self, feed: Feed) -> bool:
        """Continue from the newest good checkpoint of this run, if there is one.

        Raises:
            CorruptCheckpoint: checkpoints exist and all are damaged, or they belong to another config.
        """
        found = checkpoint.newest(self.folder)
        if found is None:
            return False
        if found.meta.get("run") != self.meta:
            differ = f"expected {self.meta}, got {found.meta.get('run')}"
            raise CorruptCheckpoint(f"{found.path} belongs to another run: {differ}; use a new run")
        checkpoint.load_weights(self.model, found.weights)
        self.optimizers.load(found.optimizer)
        feed.restore(found.meta["feed"])
        self.path = found.path
        self.step, self.tokens = found.step, int(found.meta["tokens"])
        log.info("resumed path=%s step=%d", found.path, self.step)
        return True

    def run(self, feed: Feed) -> Path:
        """Train to `steps`, saving on the way and at the end.

        Returns:
            The final checkpoint.
        Raises:
            NotFinite: the loss is NaN or infinite. Nothing of that update reaches the weights.

        A step's seconds, cpu_seconds and save_seconds include the checkpoint before it, not the one after.
        """
        started, cpu, save_s = time.perf_counter(), time.process_time(), 0.0
        while self.step < self.steps:
            seen: dict[str, list[float]] = defaultdict(list)
            for update in feed.updates(self.step):
                for name, value in self._apply(update).items():
                    seen[name].append(value)
            metrics = {name: sum(values) / len(values) for name, values in seen.items()}
            self.step += 1
            metrics["tokens"] = float(self.tokens)
            if self.step == self.steps:
                self.finish(self.model)
            ended, used = time.perf_counter(), time.process_time()
            metrics |= {"seconds": ended - started, "cpu_seconds": used - cpu, "save_seconds": save_s}
            started, cpu, save_s = ended, used, 0.0
            # Told before it is saved: a run that goes on from this checkpoint never comes by this step again.
            self.report(self.step, metrics)
            if self.step % self.save.every_steps == 0 or self.step == self.steps:
                saving = time.perf_counter()
                self._write(feed)
                save_s = time.perf_counter() - saving
        return self.path or self._write(feed)

    def _write(self, feed: Feed) -> Path:
        self.path = checkpoint.save(
            self.folder,
            self.step,
            self.model,
            optimizer=self.optimizers.state(),
            tokenizer=self.tokenizer,
            meta={"run": self.meta, "feed": feed.state(), "tokens": self.tokens},
            keep=self.save.keep,
        )
        return self.path

    def _apply(self, update: Update) -> dict[str, float]:
        """One optimizer update; without pieces there is nothing to learn, and the weights stay."""
        total, trained, pieces = 0.0, 0, 0
        for piece in update.pieces:
            pieces += 1
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
                loss = piece.loss(self.model)
            value = float(loss.detach())
            if not torch.isfinite(loss.detach()):
                raise NotFinite(f"expected a finite loss at step {self.step}, got {value}; lower optim.lr or look at its data")
            loss.backward()
            total, trained = total + value, trained + piece.tokens
        if not pieces:
            return update.metrics
        rate = scale(self.schedule, self.step, self.steps)
        norm = self.optimizers.step(rate)
        self.tokens += trained
        return {**update.metrics, "loss": total, "gradient_norm": norm, "rate": rate}
