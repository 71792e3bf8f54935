"""The trainers of one run, put together: model, optimizers and processes; where they save, who watches, what the store hears.

A stage asks for as many trainers as it has models (one for each phase, one for each anneal candidate); all of them report as one
run. What a stage trains on is `inputs`, and in which order, `learner`.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError
from gymsmith.schema import Metric, Run
from gymsmith.store import Store
from trainer.checkpoint import own_weights, weights_digest
from trainer.config import OptimConfig, PretrainConfig, SaveConfig, ScheduleConfig, TrainConfig
from trainer.data.packing import Batch
from trainer.dist.mesh import World
from trainer.dist.muon import muon
from trainer.dist.parallel import Parallel, parallelise
from trainer.loop import Callback, Trainer
from trainer.model.transformer import Transformer
from trainer.monitor.run import callbacks
from trainer.optim.groups import Optimizers
from trainer.precision.convert import convert
from trainer.precision.formats import resolve
from trainer.stages import phases

log = logging.getLogger(__name__)
SPLIT = ("pretrain", "midtrain", "anneal")
"""Stages that run on as many processes and devices as there are; the others share one with the engine."""
REPORT_S = 0.5
"""Metrics and progress are written at most this often."""


class Assembly:
    """What the trainers of one run have in common."""

    def __init__(self, store: Store, run: Run, config: TrainConfig, job_id: str, attempt: int) -> None:
        self.store, self.run, self.config = store, run, config
        self.job_id, self.attempt = job_id, attempt
        split = config.stage in SPLIT
        if not split and config.recipe.parallel.world > 1:
            processes = config.recipe.parallel.world
            raise ConfigError(f"{config.stage} runs in one process, got {processes} by recipe.parallel; leave that table out")
        self.world = World(config.recipe.parallel, "cuda" if split and torch.cuda.is_available() else "cpu")
        self.parallel: Parallel | None = None
        self.folder = store.settings.runs_dir / run.id / "checkpoints"
        """Where the next trainer saves."""
        self.prefix = ""
        """Of metric names: the candidate that they are of."""
        self.metrics: list[Metric] = []
        self.callbacks: list[Callback] = []
        """Watch every step of every trainer."""
        self.watched: dict[Path, list[Callback]] = {}
        """What watches the steps of one folder, through all phases."""
        self.written = 0.0
        self.total = self.until = 0
        self.save = SaveConfig()

    # -------------------------------------------------------- trainers

    def maker(self, stage: PretrainConfig, steps: int, chat: Chat, meta: dict[str, Any]) -> phases.Make:
        """Makes the trainer of a phase."""

        def make(model: Transformer, until: int) -> Trainer:
            trainer = self.pretrainer(model, stage, steps, chat, meta)
            trainer.until = self.until = until
            return trainer

        return make

    def pretrainer(self, model: Transformer, stage: PretrainConfig, steps: int, chat: Chat, meta: dict[str, Any]) -> Trainer:
        """A trainer that computes as the stage says, watched."""
        model.memory = stage.memory
        converted = None if stage.format is None else convert(model, stage.format)
        trainer = self.trainer(model, stage.optim, stage.schedule, steps, stage.save, chat, meta)
        trainer.precision = resolve(stage.precision) if stage.format is None else torch.float32
        trainer.converted = converted
        trainer.callbacks = self._watch(stage.length)
        return trainer

    def trainer(
        self,
        model: Transformer,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        steps: int,
        save: SaveConfig,
        chat: Chat,
        meta: dict[str, Any],
    ) -> Trainer:
        """A trainer of the model over all processes, which saves into `folder` and reports here."""
        self.total, self.save = steps, save
        self.parallel = parallelise(model.to(self.world.device), self.world)
        optimizers = Optimizers(model, optim, self.parallel.norm, muon(self.parallel))
        where = self.folder, save, chat.tokenizer.to_str(), meta, self.report
        return Trainer(model, optimizers, schedule, steps, *where, callbacks=self.callbacks, parallel=self.parallel)

    def share(self, batch: Batch) -> Batch:
        """What of a batch this process computes, on its device."""
        mine = batch if self.parallel is None else self.parallel.share(batch)
        return mine if self.world.device.type == "cpu" else mine.to(self.world.device)

    def summary(self, trainer: Trainer, resumed: bool) -> dict[str, Any]:
        """What a trainer has done, weights and all. Every process must call it."""
        return {
            "steps": trainer.step,
            "tokens": trainer.tokens,
            "resumed": resumed,
            "parameters": sum(math.prod(layout.shape) for layout in trainer.parallel.layouts.values()),
            "weights_digest": weights_digest(trainer.parallel.collect(own_weights(trainer.model))),
        }

    def _watch(self, length: int) -> list[Callback]:
        """Monitor, meters and exporters of the run or branch whose checkpoints are being written."""
        if not self.world.main:
            return []
        folder, name = self.folder.parent, self.run.name or self.run.id
        if folder not in self.watched:
            world = self.world
            self.watched[folder] = callbacks(folder, name, self.config.recipe, length, world.device, world.config.world)
        return [*self.watched[folder], *self.callbacks]

    # -------------------------------------------------------- reporting

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Called by trainers after each step."""
        if not self.world.main:
            return
        self.metrics += [
            Metric(run_id=self.run.id, step=step, name=self.prefix + name, value=value) for name, value in metrics.items()
        ]
        shown = " ".join(f"{name}={metrics[name]:.3g}" for name in ("loss", "reward", "entropy") if name in metrics)
        log.info("step=%d/%d %s seconds=%.3f", step, self.total, shown, metrics["seconds"])
        # What a checkpoint leaves behind must be in the store before it.
        self.flush(step=step, note=shown, force=step % self.save.every_steps == 0 or step == self.until)

    def flush(self, step: int = 0, note: str = "", force: bool = False) -> None:
        """Write metrics and progress that are due. Raises Fenced when the job is no longer ours."""
        if not force and time.monotonic() - self.written < REPORT_S:
            return
        self.written = time.monotonic()
        waiting, self.metrics = self.metrics, []
        if waiting:
            self.store.put_metrics(waiting)
            self.store.emit("run.metrics", run_id=self.run.id, step=waiting[-1].step)
        if self.job_id and step:
            self.store.set_progress(self.job_id, self.attempt, {"done": step, "total": self.total, "unit": "steps", "note": note})

    def check(self) -> None:
        """Between polls of a long wait: the job must still be ours."""
        if self.job_id:
            self.store.set_progress(self.job_id, self.attempt, {"total": self.total})
