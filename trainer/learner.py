"""The learner: one process that runs one training stage of one run, from its row in the store to its last checkpoint.

    python -m trainer.learner RUN_ID --stage rl [--job JOB --attempt N]
    torchrun --nproc-per-node 8 -m trainer.learner RUN_ID --stage pretrain    where the recipe has a [parallel] table

It reads the run's config, resumes from the run's newest good checkpoint if there is one, trains, and writes metrics, progress and
checkpoints. It may be killed at any moment and started again. Exit codes are those of the error family (`gymsmith.errors`): 0
done, 2 the request is wrong, 3 infrastructure, worth another try.

Here stands what each stage does, step by step. What it works on is found by `inputs`; the trainers that do it are put together in
`assembly`.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, get_args

# Spinning OpenMP threads steal the core that the sandboxes need; torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from context_mgmt.chat import Chat
from gymsmith import lifeline
from gymsmith import log as logs
from gymsmith.config import settings
from gymsmith.errors import ConfigError, GymsmithError
from gymsmith.schema import Run, State, now
from gymsmith.store import Store
from trainer.assembly import Assembly
from trainer.checkpoint import own_weights
from trainer.config import DPOConfig, PretrainConfig, SaveConfig, Stage, TrainConfig, parse_train
from trainer.data.loader import Loader
from trainer.engine.scheduler import Engine
from trainer.inputs import Inputs
from trainer.loop import Feed, Trainer
from trainer.model.transformer import Transformer
from trainer.rl.batches import valid
from trainer.rl.collect import Collector
from trainer.stages import anneal, dpo, phases, sft
from trainer.stages.pretrain import TextFeed
from trainer.stages.rl import RolloutFeed

log = logging.getLogger(__name__)


class Learner:
    """One stage of one run."""

    def __init__(self, store: Store, run: Run, config: TrainConfig, job_id: str = "", attempt: int = 0) -> None:
        self.store, self.run, self.config = store, run, config
        self.inputs = Inputs(store, config)
        self.assembly = Assembly(store, run, config, job_id, attempt)
        self.home = store.settings.home
        self.checkpoint: Path | None = None
        """What the run leaves behind."""
        self.branches = self.assembly.folder.parent / "branches"
        """Checkpoints of anneal candidates."""

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
        if self.assembly.world.main:
            self.store.update_run(self.run.id, state=State.RUNNING, config_hash=digest, seed=self.config.seed, error="")
        stage = getattr(self, f"_{self.config.stage}")
        facts = stage({"stage": self.config.stage, "seed": self.config.seed, "config": digest})
        if not self.assembly.world.main:
            return facts
        self.assembly.flush(force=True)
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
        chat, encoded = self.inputs.text()
        loader = Loader(encoded, recipe.pretrain.rows, recipe.pretrain.length, self.config.seed)
        model = Transformer(recipe.model.model_copy(update={"vocab_size": chat.vocab_size}), self.config.seed)
        stage = recipe.pretrain
        trainer = self.assembly.pretrainer(model, stage, stage.steps, chat, meta)
        feed = TextFeed(loader, self.assembly.share, stage.optim.qk_clip is not None)
        return self._finish(trainer, feed, {"tokenizer": self.config.tokenizer or chat.name, "documents": len(encoded)})

    def _midtrain(self, meta: dict[str, Any]) -> dict[str, Any]:
        assert self.config.recipe.midtrain is not None
        return self._phases(self.config.recipe.midtrain, meta)

    def _phases(self, stage: PretrainConfig, meta: dict[str, Any]) -> dict[str, Any]:
        """Pre-training or mid-training on tokenised sources."""
        found = self.inputs.checkpoint() if self.config.start else None
        chat, sources = self.inputs.sources("" if found is None else found.tokenizer)
        base = self.config.recipe.model.model_copy(update={"vocab_size": chat.vocab_size}) if found is None else found.model
        sizes = {name: deck.shards.tokens for name, deck in sources.items()}
        parts = phases.stretches(stage, base, sizes)
        feed = phases.StreamFeed(stage, parts, sources, self.config.seed, share=self.assembly.share)
        kept = phases.held_out(sources, stage.held_out_rows, parts[-1].length)

        def begin(trainer: Trainer) -> None:
            if found is not None:
                trainer.load(found.weights)

        trainer, resumed = phases.train(parts, feed, self.assembly.maker(stage, stage.steps, chat, meta), begin, self.config.seed)
        facts = {
            "tokenizer": chat.name,
            "held_out": phases.losses_on(trainer, kept, self.assembly.share),
            "epochs": feed.stream.epochs,
        }
        return {**facts, **self._summary(trainer, resumed)}

    def _anneal(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Each candidate from the same checkpoint, then all of them side by side."""
        recipe, stage = self.config.recipe, self.config.recipe.anneal
        assert stage is not None
        found = self.inputs.checkpoint()
        chat, sources = self.inputs.sources(found.tokenizer)
        kept = phases.held_out(sources, stage.held_out_rows, recipe.pretrain.length)
        results: dict[str, dict[str, Any]] = {}
        steps = tokens = 0
        for name, mix in stage.candidates.items():
            self.assembly.prefix = f"{name}/"
            self.assembly.folder = self.branches / name / "anneal"
            table = anneal.branch(recipe.pretrain, stage, found, mix)
            parts = phases.stretches(table, found.model, {}, found.step)
            feed = phases.StreamFeed(table, parts, sources, self.config.seed, share=self.assembly.share)
            make = self.assembly.maker(table, found.step + stage.steps, chat, {**meta, "candidate": name})
            trainer, _ = phases.train(parts, feed, make, lambda trainer: trainer.take(found), self.config.seed)
            losses = phases.losses_on(trainer, kept, self.assembly.share)
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
        if self.assembly.world.mesh is not None:
            raise ConfigError("SFT of a branch runs in one process, got several by recipe.parallel; leave that table out")
        self.assembly.folder, self.assembly.prefix = self.branches / name / "sft", f"{name}/sft/"
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
        model, chat = self.inputs.start()
        feed, trainer = self._teacher(model, chat, meta)
        return self._finish(trainer, feed, {"tokenizer": chat.name, "demonstrations": len(feed.demonstrations)})

    def _teacher(self, model: Transformer, chat: Chat, meta: dict[str, Any]) -> tuple[sft.DemonstrationFeed, Trainer]:
        """Demonstrations and the trainer that shows them."""
        stage = self.config.recipe.sft
        shown = self.inputs.demonstrations(chat)
        feed = sft.DemonstrationFeed(shown, stage.demonstrations, self.config.seed)
        steps = stage.epochs * feed.per_epoch
        trainer = self.assembly.trainer(model, stage.optim, stage.schedule, steps, stage.save, chat, meta)
        trainer.finish = partial(sft.shift_gain, by=stage.gain_shift)
        return feed, trainer

    def _dpo(self, meta: dict[str, Any]) -> dict[str, Any]:
        stage = self.config.recipe.dpo or DPOConfig()
        model, chat = self.inputs.start()
        ids = sorted(self.inputs.cells())[: stage.environments]
        with self._collector(model, chat) as collector:
            collector.serve(own_weights(model), "0")
            groups = collector.collect("dpo", 0, ids, stage.attempts)
        found = dpo.pairs(groups, stage.pairs_per_group)
        facts = {"tokenizer": chat.name, "pairs": len(found), "skipped": len(found) < stage.min_pairs}
        if facts["skipped"]:
            log.warning("dpo left the weights alone: pairs=%d min_pairs=%d", len(found), stage.min_pairs)
        reference = self.inputs.checkpoint().build()
        feed = dpo.PairFeed(found, reference, stage, self.config.seed)
        steps = 0 if facts["skipped"] else stage.epochs * feed.per_epoch
        save = SaveConfig(every_steps=max(1, steps))
        trainer = self.assembly.trainer(model, stage.optim, stage.schedule, steps, save, chat, meta)
        return self._finish(trainer, feed, facts)

    def _rl(self, meta: dict[str, Any]) -> dict[str, Any]:
        stage = self.config.recipe.rl
        model, chat = self.inputs.start()
        cells = self.inputs.cells()
        trainer = self.assembly.trainer(model, stage.optim, stage.schedule, stage.steps, stage.save, chat, meta)
        with self._collector(model, chat) as collector:
            feed = RolloutFeed(collector, model, cells, stage, self.config.seed, self.config.permute_rewards)
            return self._finish(trainer, feed, {"tokenizer": chat.name, "environments": len(cells)})

    # -------------------------------------------------------- parts

    def _collector(self, model: Transformer, chat: Chat) -> Collector:
        recipe = self.config.recipe
        engine = Engine(model.config, recipe.engine)
        asks = self.assembly.check, self.assembly.job_id
        return Collector(self.store, self.run.id, engine, recipe, chat.name, self.config.seed, *asks)

    def _finish(self, trainer: Trainer, feed: Feed, facts: dict[str, Any]) -> dict[str, Any]:
        """Resume, run to the end, and say what came out."""
        resumed = trainer.resume(feed)
        trainer.run(feed)
        return {**facts, **self._summary(trainer, resumed)}

    def _summary(self, trainer: Trainer, resumed: bool) -> dict[str, Any]:
        self.checkpoint = trainer.path
        return self.assembly.summary(trainer, resumed)

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
            learner.assembly.world.close()
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
