"""Reinforcement learning: roll out, compare siblings, update, serve the new weights; again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gymsmith.schema import Trajectory
from trainer.checkpoint import own_weights
from trainer.config import RLConfig
from trainer.data.packing import IGNORE, Batch
from trainer.loop import Piece, Update
from trainer.model.transformer import Transformer
from trainer.rl.advantages import advantages, permuted
from trainer.rl.batches import Scored, items, micro_batches, split, valid
from trainer.rl.curriculum import Curriculum
from trainer.rl.loss import TokenStats, policy_loss, target_logprobs
from trainer.rl.source import TrajectorySource


class RolloutFeed:
    """A step: rollouts by the current weights, then one update per minibatch."""

    def __init__(
        self,
        source: TrajectorySource,
        model: Transformer,
        cells: Mapping[str, str],
        config: RLConfig,
        seed: int,
        permute_rewards: bool = False,
    ) -> None:
        self.source, self.model, self.config, self.seed = source, model, config, seed
        self.cells, self.permute_rewards = cells, permute_rewards
        self.temperature = source.temperature
        self.curriculum = Curriculum(cells, config, seed)

    def updates(self, step: int) -> Iterator[Update]:
        started = time.perf_counter()
        engine = self.source.engine
        before = dict(engine.seconds), dict(engine.counts)
        self.source.serve(own_weights(self.model), str(step))
        environments = self.curriculum.draw(step, self.config.groups)
        groups = self.source.collect("rl", step, environments, self.config.attempts)
        metrics = describe(groups)
        metrics["rollout_seconds"] = time.perf_counter() - started
        for name, value in engine.seconds.items():
            metrics[f"{name}_seconds"] = value - before[0].get(name, 0.0)
        for name in ("decode_tokens", "prefill_tokens", "cached_tokens", "decode_steps"):
            metrics[name] = float(engine.counts[name] - before[1].get(name, 0))
        scored = self._score(step, environments, groups)
        metrics["useful"] = float(len(scored))
        metrics |= {f"pass_rate/{cell}": rate for cell, rate in self.curriculum.rate.items()}
        minibatches = split(scored, self.config.minibatches, self.seed, step)
        yield Update(iter(()), metrics)
        yield from self._minibatches([micro_batches([i for s in part for i in items(s)]) for part in minibatches])

    def state(self) -> dict[str, Any]:
        return self.curriculum.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.curriculum.restore(state)

    def _score(self, step: int, environments: Sequence[str], groups: Sequence[Sequence[Trajectory]]) -> list[Scored]:
        """Advantages of all attempts that got a verdict; groups without differences are left out."""
        judged = [[t for t in group if valid(t)] for group in groups]
        rewards = [[t.reward.value for t in group if t.reward is not None] for group in judged]
        for environment, values in zip(environments, rewards, strict=True):
            self.curriculum.observe(self.cells[environment], values)
        if self.permute_rewards:
            rewards = permuted(rewards, self.seed, step)
        scored = []
        for group, values in zip(judged, rewards, strict=True):
            gains = advantages(values, self.config.advantage, self.config.std_eps)
            scored += [Scored(t, gain) for t, gain in zip(group, gains, strict=True) if gain != 0]
        return scored

    def _minibatches(self, minibatches: Sequence[list[Batch]]) -> Iterator[Update]:
        """One update each. The later ones' tokens are scored by the step's first weights before these change."""
        with torch.no_grad():
            old = [[target_logprobs(self.model, b, self.temperature)[0] for b in part] for part in minibatches[1:]]
        for n, part in enumerate(minibatches):
            total = float(sum(b.trained for b in part))
            stats, metrics = TokenStats(), dict[str, float]()
            known = [None] * len(part) if n == 0 else old[n - 1]
            yield Update(self._pieces(part, known, total, stats, metrics), metrics)

    def _pieces(
        self, part: Sequence[Batch], known: Sequence[Tensor | None], total: float, stats: TokenStats, metrics: dict[str, float]
    ) -> Iterator[Piece]:
        for batch, old in zip(part, known, strict=True):
            yield Piece(lambda model, b=batch, o=old: self._loss(model, b, o, total, stats), batch.trained)  # type: ignore[misc]
        metrics.update(stats.metrics())

    def _loss(self, model: Transformer, batch: Batch, old: Tensor | None, total: float, stats: TokenStats) -> Tensor:
        logprobs, entropy = target_logprobs(model, batch, self.temperature)
        live = batch.targets != IGNORE
        engine, advantage = batch.extra["engine"][live], batch.extra["advantage"][live]
        before = logprobs.detach() if old is None else old
        loss, clipped, gated = policy_loss(logprobs, before, engine, advantage, self.config, total)
        difference = (before - engine).abs()
        stats.tokens += len(engine)
        stats.entropy += float(entropy.sum())
        stats.clipped += float(clipped.sum())
        stats.gated += float(gated.sum())
        stats.mismatch += float(difference.sum())
        stats.worst = max(stats.worst, float(difference.max()))
        return loss


def describe(groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Curves of a step's rollouts."""
    all_of = [t for group in groups for t in group]
    judged = [t for t in all_of if valid(t)]
    sampled = [sum(sum(s.mask) for s in t.segments) for t in judged]
    rewards = [t.reward.value for t in judged if t.reward is not None]
    n = max(1, len(judged))
    return {
        "reward": sum(rewards) / n,
        "episodes": float(len(all_of)),
        "errors": float(len(all_of) - len(judged)),
        "commands": sum(len(t.steps) for t in judged) / n,
        "sampled_tokens": float(sum(sampled)),
        "exit_fraction": sum(t.finish == "exit" for t in judged) / n,
        "folds": sum(len(t.segments) - 1 for t in judged) / n,
    }
