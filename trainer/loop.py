"""The one training loop: pre-training, SFT, DPO and RL differ in where batches come from and what is minimised, nothing else.

A stage brings a `Feed`. The loop asks it for the micro-batches of one update with a loss for each, sums the gradients, clips,
steps, counts, saves at boundaries and reports. Resuming from any checkpoint goes on bit for bit as an unbroken run would (one
thread): weights, optimizer, spike window, router biases, random state and the feed's place all travel with it. Who wants to watch
(a monitor, a meter, an exporter) is a callback.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gymsmith.errors import CorruptCheckpoint, GymsmithError
from trainer import checkpoint
from trainer.checkpoint import Draft, Writer, own_weights
from trainer.config import SaveConfig, ScheduleConfig
from trainer.dist.mesh import AXES, World
from trainer.dist.parallel import Parallel, parallelise
from trainer.model.moe import routers
from trainer.model.transformer import Transformer
from trainer.monitor.alerts import Facts
from trainer.optim.groups import Optimizers
from trainer.optim.schedule import scale
from trainer.precision.convert import Converted

log = logging.getLogger(__name__)
Report = Callable[[int, dict[str, float]], None]
"""Called with (step, metrics) after each step."""
Callback = Callable[[int, dict[str, float], Facts], object]
"""Called with (step, metrics, facts) before the report, once a step; may add to the metrics. What it returns is ignored."""
Statistics = dict[str, dict[int, Tensor]]
"""name -> layer -> values, as in `Outputs.statistics`."""
RNG = "loop/rng"
SCALES = "loop/scales/"


class NotFinite(GymsmithError):
    """The loss became NaN or infinite; the message names step and documents. Trying again would give the same."""

    code = "not-finite"


@dataclass(slots=True)
class Piece:
    """One micro-batch: a loss that is already divided by the update's denominator, so that pieces add up."""

    loss: Callable[[Transformer], Tensor]
    tokens: int
    documents: Sequence[str] = ()
    """What is in it, for messages."""


@dataclass(slots=True)
class Update:
    """Everything between two optimizer steps."""

    pieces: Iterator[Piece]
    metrics: dict[str, float] = field(default_factory=dict)
    """Filled while the pieces are consumed; the loop adds loss, gradient norm, rate and tokens."""
    rate: float = 1.0
    """Multiplier of the learning rate beside the schedule's."""
    statistics: Statistics = field(default_factory=dict)
    """Of the forward passes, filled while the pieces are consumed."""


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
    converted: Converted | None = None
    """What `precision.convert` made of the model, if it did: its formats' scales are kept and saved here."""
    callbacks: Sequence[Callback] = ()
    parallel: Parallel = None  # type: ignore[assignment]
    """The model's other half over several processes; by itself the model is whole in this one. The optimizers know it too. Pieces
    then hold this process's share of an update's loss, and only the main process saves; reporting is the report's own matter."""
    until: int | None = None
    """Stop, with a checkpoint, after so many of the steps."""
    path: Path | None = None
    """The newest checkpoint."""
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens trained on."""

    def __post_init__(self) -> None:
        if self.parallel is None:
            self.parallel = parallelise(self.model, World())

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
        self.take(found)
        feed.restore(found.meta["feed"])
        self.path = found.path
        log.info("resumed path=%s step=%d", found.path, self.step)
        return True

    def take(self, found: checkpoint.Checkpoint) -> None:
        """Weights, optimizer, random state and counters of a checkpoint.

        Raises:
            CorruptCheckpoint: it is of another model.
        """
        self.load(found.weights)
        optimizer = dict(found.optimizer)
        random = optimizer.pop(RNG, None)
        scales = {name: optimizer.pop(name) for name in list(optimizer) if name.startswith(SCALES)}
        if self.converted is not None and scales:
            self.converted.load({name.removeprefix(SCALES): value for name, value in scales.items()})
        try:
            self.optimizers.load({name: self.parallel.part(name, whole) for name, whole in optimizer.items()})
        except KeyError as e:
            raise CorruptCheckpoint(f"{found.path}: optimizer state of {e}, which does not train here; use its own recipe") from e
        if random is not None:
            torch.set_rng_state(random)
        self.step, self.tokens = found.step, int(found.meta["tokens"])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Whole weights into the model, however it lies.

        Raises:
            CorruptCheckpoint: they are of another model.
        """
        checkpoint.load_weights(self.model, {name: self.parallel.part(name, whole) for name, whole in weights.items()})

    def run(self, feed: Feed) -> Path:
        """Train to `steps` (or `until`), saving on the way and at the end.

        Returns:
            The final checkpoint.
        Raises:
            NotFinite: the loss is NaN or infinite. Nothing of that update reaches the weights.
            SplitError: processes hold the same slice, or copies that differ, of a parameter.
            StoreError: a checkpoint could not be written, raised before the step after it; the one before stays.

        A step's seconds, cpu_seconds and save_seconds include the checkpoint before it, not the one after.
        """
        self.parallel.check()
        started, cpu, save_s = time.perf_counter(), time.process_time(), 0.0
        end = self.steps if self.until is None else min(self.until, self.steps)
        with Writer(self.folder, self.save.keep, self.save.forever) as writer:
            while self.step < end:
                writer.check()
                seen: dict[str, list[float]] = defaultdict(list)
                facts = Facts()
                for update in feed.updates(self.step):
                    for name, value in self._apply(update, facts).items():
                        seen[name].append(value)
                metrics = {name: sum(values) / len(values) for name, values in seen.items()}
                self.step += 1
                metrics["tokens"] = float(self.tokens)
                if self.step == self.steps:
                    self.finish(self.model)
                ended, used = time.perf_counter(), time.process_time()
                metrics |= {"seconds": ended - started, "cpu_seconds": used - cpu, "save_seconds": save_s}
                started, cpu, save_s = ended, used, 0.0
                for callback in self.callbacks:
                    callback(self.step, metrics, facts)
                # Told before it is saved: a run that goes on from this checkpoint never comes by this step again.
                self.report(self.step, metrics)
                if self.step % self.save.every_steps == 0 or self.step == end:
                    saving = time.perf_counter()
                    self._save(writer, feed)
                    save_s = time.perf_counter() - saving
            if self.path is None:
                self._save(writer, feed)
            self.path = writer.wait() or self.path
        assert self.path is not None
        return self.path

    def _save(self, writer: Writer, feed: Feed) -> None:
        weights = self.parallel.collect(own_weights(self.model))
        scales = {} if self.converted is None else self.converted.state()
        optimizer = self.parallel.collect(
            {
                **self.optimizers.state(),
                **{SCALES + name: value for name, value in scales.items()},
                RNG: torch.get_rng_state(),
            }
        )
        meta = {"run": self.meta, "feed": feed.state(), "tokens": self.tokens}
        self.path = self.folder / f"{self.step:08d}"
        if not self.parallel.world.main:
            return
        writer.save(Draft(self.step, self.model.config, weights, optimizer, self.tokenizer, meta))
        if not self.save.background:
            writer.wait()

    def _apply(self, update: Update, facts: Facts) -> dict[str, float]:
        """One optimizer update; without pieces there is nothing to learn, and the weights stay. Adds to the facts."""
        losses: list[Tensor] = []
        pieces: list[Piece] = []
        device = next(self.model.parameters()).device.type
        for piece in update.pieces:
            formats = nullcontext() if self.converted is None else self.converted.running()
            with torch.autocast(device, torch.bfloat16, enabled=self.precision == torch.bfloat16), formats:
                loss = piece.loss(self.model)
            loss.backward()
            losses.append(loss.detach().double())
            pieces.append(piece)
        if not pieces:
            return update.metrics
        self.parallel.reduce_gradients()
        # One look at the device for all pieces.
        values = self.parallel.world.sum(torch.stack(losses)).tolist()
        for value, piece in zip(values, pieces, strict=True):
            if not math.isfinite(value):
                raise NotFinite(f"expected a finite loss at step {self.step}, got {value}; {_blame(piece)}")
        rate = scale(self.schedule, self.step, self.steps) * update.rate
        total = sum(values)
        norm = self.optimizers.step(rate, total)
        self.tokens += sum(piece.tokens for piece in pieces)
        statistics = self.parallel.statistics(update.statistics)
        found = {**update.metrics, "loss": total, "gradient_norm": norm, "rate": rate}
        if self.optimizers.skipped:
            # Routers are part of what a skipped update must not move.
            for router in routers(self.model).values():
                router.counts.zero_()
            found["skipped"] = 1.0
        else:
            self.model.after_step(self.parallel.world.sum)
            if (tau := self.optimizers.config.qk_clip) and "max_logit" in update.statistics:
                found |= self.parallel.clip_heads(update.statistics["max_logit"], tau)
        if self.converted is not None:
            self.converted.after_step(not self.optimizers.skipped, lambda most: self.parallel.world.max(most, AXES))
        if self.callbacks:
            facts.documents = [*facts.documents, *(name for piece in pieces for name in piece.documents)]
            facts.loads = _by_layer(statistics.get("expert_counts", {}))
            facts.logits = _by_layer(statistics.get("max_logit", {}))
        return found


def _by_layer(values: Mapping[int, Tensor]) -> dict[str, list[float]]:
    return {f"blocks.{layer}": tensor.tolist() for layer, tensor in sorted(values.items())}


def _blame(piece: Piece) -> str:
    """What to look at when a piece's loss is not finite."""
    if not piece.documents:
        return "lower optim.lr or look at its data"
    named = ", ".join(piece.documents[:8])
    more = f" and {len(piece.documents) - 8} more" if len(piece.documents) > 8 else ""
    return f"its batch holds {named}{more}; look at them, or lower optim.lr"
