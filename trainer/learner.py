"""The learner: one process that runs one training stage of one run, from its row in the store to its last checkpoint.

    python -m trainer.learner RUN_ID --stage rl [--job JOB --attempt N]
    torchrun --nproc-per-node 8 -m trainer.learner RUN_ID --stage pretrain    where the recipe has a [parallel] table

It reads the run's config, resumes from the run's newest good checkpoint if there is one, trains, and writes metrics, progress and
checkpoints. It may be killed at any moment and started again. Exit codes are those of the error family (`gymsmith.errors`): 0
done, 2 the request is wrong, 3 infrastructure, worth another try.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

# Spinning OpenMP threads steal the core that the sandboxes need; torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tokenizers import Tokenizer

from context_mgmt.chat import Chat
from gymsmith import lifeline
from gymsmith import log as logs
from gymsmith.config import settings
from gymsmith.errors import ConfigError, GymsmithError, NotFound
from gymsmith.schema import Metric, Run, State, Status, now
from gymsmith.store import Store
from trainer import checkpoint
from trainer.checkpoint import own_weights, weights_digest
from trainer.config import DPOConfig, OptimConfig, PretrainConfig, SaveConfig, ScheduleConfig, Stage, TrainConfig, parse_train
from trainer.data import documents, tokenizer
from trainer.data.deck import Deck
from trainer.data.loader import Loader
from trainer.data.packing import Batch
from trainer.data.shards import Shards
from trainer.dist.mesh import World
from trainer.dist.muon import muon
from trainer.dist.parallel import Parallel, parallelise
from trainer.engine.scheduler import Engine
from trainer.loop import Callback, Feed, Trainer
from trainer.model.transformer import Transformer
from trainer.monitor.run import callbacks
from trainer.optim.groups import Optimizers
from trainer.precision.convert import convert
from trainer.precision.formats import resolve
from trainer.rl.batches import valid
from trainer.rl.collect import Collector
from trainer.stages import anneal, dpo, phases, sft
from trainer.stages.pretrain import TextFeed
from trainer.stages.rl import RolloutFeed

log = logging.getLogger(__name__)
SPLIT = ("pretrain", "midtrain", "anneal")
"""Stages that run on as many processes and devices as there are; the others share one with the engine."""
REPORT_S = 0.5
"""Metrics and progress are written at most this often."""


class Learner:
    """One stage of one run."""

    def __init__(self, store: Store, run: Run, config: TrainConfig, job_id: str = "", attempt: int = 0) -> None:
        self.store, self.run, self.config = store, run, config
        self.job_id, self.attempt = job_id, attempt
        split = config.stage in SPLIT
        if not split and config.recipe.parallel.world > 1:
            processes = config.recipe.parallel.world
            raise ConfigError(f"{config.stage} runs in one process, got {processes} by recipe.parallel; leave that table out")
        self.world = World(config.recipe.parallel, "cuda" if split and torch.cuda.is_available() else "cpu")
        self.parallel: Parallel | None = None
        self.home = store.settings.home
        self.folder = store.settings.runs_dir / run.id / "checkpoints"
        self.metrics: list[Metric] = []
        self.callbacks: list[Callback] = []
        """Watch every step of every trainer."""
        self.watched: dict[Path, list[Callback]] = {}
        """What watches the steps of one folder, through all phases."""
        self.written = 0.0
        self.total = self.until = 0
        self.save = SaveConfig()
        self.checkpoint: Path | None = None
        self.branches = self.folder.parent / "branches"
        """Checkpoints of anneal candidates."""
        self.prefix = ""
        """Of metric names: the candidate that they are of."""

    def learn(self) -> dict[str, Any]:
        """Do the whole stage.

        Returns:
            The run's summary: checkpoint, tokenizer, weights digest, steps, tokens, seconds.
        Raises:
            GymsmithError: config, data, checkpoint or infrastructure; the message says which and what to do.
        """
        started = time.monotonic()
        torch.set_num_threads(self.config.recipe.threads)
        reading = {"workers", "ahead"}
        apart: Any = {"recipe": {"parallel": True, "pretrain": reading, "midtrain": reading}}
        identity = self.config.model_dump_json(exclude=apart)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        if self.world.main:
            self.store.update_run(self.run.id, state=State.RUNNING, config_hash=digest, seed=self.config.seed, error="")
        stage = getattr(self, f"_{self.config.stage}")
        facts = stage({"stage": self.config.stage, "seed": self.config.seed, "config": digest})
        if not self.world.main:
            return facts
        self._flush(force=True)
        summary = {**self.store.run(self.run.id).summary, **facts, "seconds": round(time.monotonic() - started, 2)}
        self.store.update_run(
            self.run.id,
            state=State.SUCCEEDED,
            checkpoint=self._relative(self.checkpoint),
            policy_version=str(facts["steps"]),
            summary=summary,
            finished_at=now(),
        )
        return summary

    # -------------------------------------------------------- stages

    def _pretrain(self, meta: dict[str, Any]) -> dict[str, Any]:
        recipe = self.config.recipe
        if self.config.sources:
            return self._phases(recipe.pretrain, meta)
        texts = documents.read_documents(self._path(self.config.corpus))
        if self.config.tokenizer:
            name = self.config.tokenizer
        else:
            trained = tokenizer.train((text for segments in texts for _, text, _ in segments), recipe.tokenizer.vocab_size)
            name = tokenizer.store(trained, self.store.settings.tokenizers_dir)
        chat = Chat.load(self.store.settings.tokenizers_dir / name)
        cut = recipe.rollout.context.observation_tokens
        encoded = documents.encode(chat, texts, recipe.pretrain.observation_weight, cut)
        loader = Loader(encoded, recipe.pretrain.rows, recipe.pretrain.length, self.config.seed)
        model = Transformer(recipe.model.model_copy(update={"vocab_size": chat.vocab_size}), self.config.seed)
        stage = recipe.pretrain
        trainer = self._pretrainer(model, stage, stage.steps, chat, meta)
        feed = TextFeed(loader, self._share, stage.optim.qk_clip is not None)
        return self._finish(trainer, feed, {"tokenizer": name, "documents": len(texts)})

    def _midtrain(self, meta: dict[str, Any]) -> dict[str, Any]:
        assert self.config.recipe.midtrain is not None
        return self._phases(self.config.recipe.midtrain, meta)

    def _phases(self, stage: PretrainConfig, meta: dict[str, Any]) -> dict[str, Any]:
        """Pre-training or mid-training on tokenised sources."""
        found = checkpoint.load(self._path(self.config.start)) if self.config.start else None
        chat, sources = self._sources("" if found is None else found.tokenizer)
        base = self.config.recipe.model.model_copy(update={"vocab_size": chat.vocab_size}) if found is None else found.model
        sizes = {name: deck.shards.tokens for name, deck in sources.items()}
        parts = phases.stretches(stage, base, sizes)
        feed = phases.StreamFeed(stage, parts, sources, self.config.seed, share=self._share)
        kept = phases.held_out(sources, stage.held_out_rows, parts[-1].length)

        def begin(trainer: Trainer) -> None:
            if found is not None:
                trainer.load(found.weights)

        trainer, resumed = phases.train(parts, feed, self._maker(stage, stage.steps, chat, meta), begin, self.config.seed)
        facts = {"tokenizer": chat.name, "held_out": phases.losses_on(trainer, kept, self._share), "epochs": feed.stream.epochs}
        return {**facts, **self._summary(trainer, resumed)}

    def _anneal(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Each candidate from the same checkpoint, then all of them side by side."""
        recipe, stage = self.config.recipe, self.config.recipe.anneal
        assert stage is not None
        found = checkpoint.load(self._path(self.config.start))
        chat, sources = self._sources(found.tokenizer)
        kept = phases.held_out(sources, stage.held_out_rows, recipe.pretrain.length)
        results: dict[str, dict[str, Any]] = {}
        steps = tokens = 0
        for name, mix in stage.candidates.items():
            self.prefix = f"{name}/"
            self.folder = self.branches / name / "anneal"
            table = anneal.branch(recipe.pretrain, stage, found, mix)
            parts = phases.stretches(table, found.model, {}, found.step)
            feed = phases.StreamFeed(table, parts, sources, self.config.seed, share=self._share)
            make = self._maker(table, found.step + stage.steps, chat, {**meta, "candidate": name})
            trainer, _ = phases.train(parts, feed, make, lambda trainer: trainer.take(found), self.config.seed)
            losses = phases.losses_on(trainer, kept, self._share)
            results[name] = {"mix": mix, "held_out": losses, "checkpoint": self._relative(trainer.path)}
            steps, tokens = steps + stage.steps, tokens + trainer.tokens - int(found.meta["tokens"])
            if self.config.demonstrations or self.config.demonstrations_run:
                results[name] |= self._integrated(trainer.model, chat, {**meta, "candidate": name}, stage.attempts)
            log.info("candidate=%s held_out=%s", name, losses)
        table_of = anneal.compared(results)
        self.checkpoint = self.home / table_of["candidates"][table_of["best"]]["checkpoint"]
        return {**table_of, "tokenizer": chat.name, "steps": steps, "tokens": tokens}

    def _integrated(self, model: Transformer, chat: Chat, meta: dict[str, Any], attempts: int) -> dict[str, Any]:
        """What a branch is worth after SFT: its pass rate over the config's environments, if there are any."""
        name = meta["candidate"]
        if self.world.mesh is not None:
            raise ConfigError("SFT of a branch runs in one process, got several by recipe.parallel; leave that table out")
        self.folder, self.prefix = self.branches / name / "sft", f"{name}/sft/"
        feed, trainer = self._teacher(model, chat, meta)
        trainer.resume(feed)
        out: dict[str, Any] = {"sft_checkpoint": self._relative(trainer.run(feed))}
        if self.config.environments:
            with self._collector(model, chat) as collector:
                collector.serve(own_weights(model), name)
                groups = collector.collect(f"anneal-{name}", 0, self.config.environments, attempts)
            rewards = [t.reward.value for group in groups for t in group if t.reward is not None and valid(t)]
            out |= {"pass_rate": sum(r >= 1 for r in rewards) / max(1, len(rewards)), "episodes": len(rewards)}
        return out

    def _sft(self, meta: dict[str, Any]) -> dict[str, Any]:
        model, chat = self._start()
        feed, trainer = self._teacher(model, chat, meta)
        return self._finish(trainer, feed, {"tokenizer": chat.name, "demonstrations": len(feed.demonstrations)})

    def _teacher(self, model: Transformer, chat: Chat, meta: dict[str, Any]) -> tuple[sft.DemonstrationFeed, Trainer]:
        """Demonstrations and the trainer that shows them."""
        recipe, stage = self.config.recipe, self.config.recipe.sft
        if self.config.demonstrations_run:
            shown = sft.from_run(self.store, self.config.demonstrations_run)
        else:
            path = self._path(self.config.demonstrations)
            shown = sft.from_file(path, chat, recipe.rollout.context.observation_tokens)
        feed = sft.DemonstrationFeed(shown, stage.demonstrations, self.config.seed)
        steps = stage.epochs * feed.per_epoch
        trainer = self._trainer(model, stage.optim, stage.schedule, steps, stage.save, chat.tokenizer.to_str(), meta)
        trainer.finish = partial(sft.shift_gain, by=stage.gain_shift)
        return feed, trainer

    def _dpo(self, meta: dict[str, Any]) -> dict[str, Any]:
        stage = self.config.recipe.dpo or DPOConfig()
        model, chat = self._start()
        ids = sorted(self._cells())[: stage.environments]
        with self._collector(model, chat) as collector:
            collector.serve(own_weights(model), "0")
            groups = collector.collect("dpo", 0, ids, stage.attempts)
        found = dpo.pairs(groups, stage.pairs_per_group)
        facts = {"tokenizer": chat.name, "pairs": len(found), "skipped": len(found) < stage.min_pairs}
        if facts["skipped"]:
            log.warning("dpo left the weights alone: pairs=%d min_pairs=%d", len(found), stage.min_pairs)
        reference = checkpoint.load(self._path(self.config.start)).build()
        feed = dpo.PairFeed(found, reference, stage, self.config.seed)
        steps = 0 if facts["skipped"] else stage.epochs * feed.per_epoch
        save = SaveConfig(every_steps=max(1, steps))
        trainer = self._trainer(model, stage.optim, stage.schedule, steps, save, chat.tokenizer.to_str(), meta)
        return self._finish(trainer, feed, facts)

    def _rl(self, meta: dict[str, Any]) -> dict[str, Any]:
        stage = self.config.recipe.rl
        model, chat = self._start()
        cells = self._cells()
        trainer = self._trainer(model, stage.optim, stage.schedule, stage.steps, stage.save, chat.tokenizer.to_str(), meta)
        with self._collector(model, chat) as collector:
            feed = RolloutFeed(collector, model, cells, stage, self.config.seed, self.config.permute_rewards)
            return self._finish(trainer, feed, {"tokenizer": chat.name, "environments": len(cells)})

    # -------------------------------------------------------- parts

    def _start(self) -> tuple[Transformer, Chat]:
        """The model and the chat of the checkpoint to start from."""
        found = checkpoint.load(self._path(self.config.start))
        name = self.config.tokenizer
        if not name:
            name = tokenizer.store(Tokenizer.from_str(found.tokenizer), self.store.settings.tokenizers_dir)
        chat = Chat.load(self.store.settings.tokenizers_dir / name)
        if chat.vocab_size > found.model.vocab_size:
            # Fewer are fine: tables of imported models are often padded.
            raise ConfigError(
                f"expected a tokenizer of at most {found.model.vocab_size} entries, got {chat.vocab_size}; use the checkpoint's"
            )
        return found.build(), chat

    def _sources(self, words: str) -> tuple[Chat, dict[str, Deck]]:
        """The chat and a deck for each source. `words`: JSON of the tokenizer of the checkpoint to start from, if there is one.

        Raises:
            ConfigError: the sources were made with other tokenizers than the model's, or nobody says which it is.
        """
        opened = {name: Shards(self._path(source.path)) for name, source in self.config.sources.items()}
        named = {shards.tokenizer for shards in opened.values()} - {""}
        name = tokenizer.store(Tokenizer.from_str(words), self.store.settings.tokenizers_dir) if words else self.config.tokenizer
        name = name or next(iter(named), "")
        if named - {name} or not name:
            got = ", ".join(f"{source}: {shards.tokenizer or 'unnamed'}" for source, shards in sorted(opened.items()))
            expected = f"sources made with tokenizer {name or '(none is named)'}"
            raise ConfigError(f"expected {expected}, got {got}; tokenise them with it, or name it")
        chat = Chat.load(self.store.settings.tokenizers_dir / name)
        for source, shards in opened.items():
            if shards.vocab_size > chat.vocab_size:
                above = f"expected ids below {chat.vocab_size}, got {shards.vocab_size}"
                raise ConfigError(f"source {source}: {above}; tokenise it with the model's tokenizer")
        limits = self.config.sources
        return chat, {
            source: Deck(source, shards, self.config.seed, limits[source].min_tokens, limits[source].max_tokens)
            for source, shards in opened.items()
        }

    def _cells(self) -> dict[str, str]:
        """Environment id -> family/level, for everything that DPO and RL may draw."""
        given = self.config.environments
        ids = given or self.store.environment_ids(kind="shell", status=Status.VERIFIED, labels={"split": "train"})
        if not ids:
            raise ConfigError("expected environments to train in, got none that are verified; run `gymsmith generate shell:all`")
        found = [self.store.environment(i) for i in ids]
        return {e.id: f"{e.spec.labels.get('family', e.spec.kind)}/{e.spec.labels.get('level', '')}" for e in found}

    def _collector(self, model: Transformer, chat: Chat) -> Collector:
        recipe = self.config.recipe
        engine = Engine(model.config, recipe.engine)
        return Collector(self.store, self.run.id, engine, recipe, chat.name, self.config.seed, self._check, self.job_id)

    def _maker(self, stage: PretrainConfig, steps: int, chat: Chat, meta: dict[str, Any]) -> phases.Make:
        """Makes the trainer of a phase."""

        def make(model: Transformer, until: int) -> Trainer:
            trainer = self._pretrainer(model, stage, steps, chat, meta)
            trainer.until = self.until = until
            return trainer

        return make

    def _pretrainer(self, model: Transformer, stage: PretrainConfig, steps: int, chat: Chat, meta: dict[str, Any]) -> Trainer:
        """A trainer that computes as the stage says, watched."""
        model.memory = stage.memory
        converted = None if stage.format is None else convert(model, stage.format)
        trainer = self._trainer(model, stage.optim, stage.schedule, steps, stage.save, chat.tokenizer.to_str(), meta)
        trainer.precision = resolve(stage.precision) if stage.format is None else torch.float32
        trainer.converted = converted
        trainer.callbacks = self._watch(stage.length)
        return trainer

    def _trainer(
        self,
        model: Transformer,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        steps: int,
        save: SaveConfig,
        words: str,
        meta: dict[str, Any],
    ) -> Trainer:
        self.total, self.save = steps, save
        self.parallel = parallelise(model.to(self.world.device), self.world)
        optimizers = Optimizers(model, optim, self.parallel.norm, muon(self.parallel))
        where = self.folder, save, words, meta, self._report
        return Trainer(model, optimizers, schedule, steps, *where, callbacks=self.callbacks, parallel=self.parallel)

    def _watch(self, length: int) -> list[Callback]:
        """Monitor, meters and exporters of the run or branch whose checkpoints are being written."""
        if not self.world.main:
            return []
        folder, name = self.folder.parent, self.run.name or self.run.id
        if folder not in self.watched:
            world = self.world
            self.watched[folder] = callbacks(folder, name, self.config.recipe, length, world.device, world.config.world)
        return [*self.watched[folder], *self.callbacks]

    def _share(self, batch: Batch) -> Batch:
        """What of a batch this process computes, on its device."""
        mine = batch if self.parallel is None else self.parallel.share(batch)
        return mine if self.world.device.type == "cpu" else mine.to(self.world.device)

    def _finish(self, trainer: Trainer, feed: Feed, facts: dict[str, Any]) -> dict[str, Any]:
        """Resume, run to the end, and say what came out."""
        resumed = trainer.resume(feed)
        trainer.run(feed)
        return {**facts, **self._summary(trainer, resumed)}

    def _summary(self, trainer: Trainer, resumed: bool) -> dict[str, Any]:
        self.checkpoint = trainer.path
        return {
            "steps": trainer.step,
            "tokens": trainer.tokens,
            "resumed": resumed,
            "parameters": sum(math.prod(layout.shape) for layout in trainer.parallel.layouts.values()),
            "weights_digest": weights_digest(trainer.parallel.collect(own_weights(trainer.model))),
        }

    # -------------------------------------------------------- reporting

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        if not self.world.main:
            return
        self.metrics += [
            Metric(run_id=self.run.id, step=step, name=self.prefix + name, value=value) for name, value in metrics.items()
        ]
        shown = " ".join(f"{name}={metrics[name]:.3g}" for name in ("loss", "reward", "entropy") if name in metrics)
        log.info("step=%d/%d %s seconds=%.3f", step, self.total, shown, metrics["seconds"])
        # What a checkpoint leaves behind must be in the store before it.
        self._flush(step=step, note=shown, force=step % self.save.every_steps == 0 or step == self.until)

    def _flush(self, step: int = 0, note: str = "", force: bool = False) -> None:
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

    def _check(self) -> None:
        """Between polls of a long wait: the job must still be ours."""
        if self.job_id:
            self.store.set_progress(self.job_id, self.attempt, {"total": self.total})

    def _path(self, given: str) -> Path:
        """A path as given, relative ones below the state folder.

        Raises:
            NotFound: nothing is there.
        """
        path = Path(given) if Path(given).is_absolute() else self.home / given
        if not path.exists():
            raise NotFound(f"expected a file or folder at {path}, got nothing; fix the path or make it first")
        return path

    def _relative(self, path: Path | None) -> str:
        return str(path.relative_to(self.home)) if path is not None and path.is_relative_to(self.home) else str(path or "")


def main(arguments: list[str] | None = None) -> int:
    """Run a stage; the exit code."""
    parser = argparse.ArgumentParser(description="Run one training stage of one run.")
    parser.add_argument("run_id")
    parser.add_argument("--stage", required=True, choices=get_args(Stage))
    parser.add_argument("--job", default="", help="job whose progress is written")
    parser.add_argument("--attempt", type=int, default=0, help="fencing token of that job")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    logs.configure()
    if given.lifeline:
        lifeline.hold_on()
    with Store.open(settings()) as store:
        try:
            run = store.run(given.run_id)
            learner = Learner(store, run, parse_train(given.stage, run.config), given.job, given.attempt)
            learner.learn()
            learner.world.close()
        except GymsmithError as e:
            log.error("stage=%s run=%s failed: %s", given.stage, given.run_id, e)
            store.update_run(given.run_id, error=f"{type(e).__name__}: {e}")
            return e.exit_code
        except Exception as e:
            # The edge of the process: a defect of ours is told to whoever ordered the run, and not tried again.
            log.exception("stage=%s run=%s crashed", given.stage, given.run_id)
            store.update_run(given.run_id, error=f"{type(e).__name__}: {e}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
