"""Language modelling over mixes of sources: a stage's table becomes steps, micro-batches and, where the context grows, models.

A phase may change the mix, the rows and the positions: longer rows extend the model's tables, another base (ABF: adjusted base
frequency, Xiong et al., 2023, arXiv 2309.16039) or YaRN replaces them. Weights have no part in positions, so a model of the next
phase is the same tensors under another config: the stage ends a phase with a checkpoint and goes on from it, as it would after a
kill.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from gymsmith.errors import ConfigError
from trainer.config import PhaseConfig, PretrainConfig
from trainer.data.deck import HELD_OUT, Deck
from trainer.data.mix import Mix, Phase, Place
from trainer.data.packing import Batch
from trainer.data.stream import Stream
from trainer.loop import Piece, Statistics, Trainer, Update
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.schedule import batch_scale, pieces
from trainer.stages.pretrain import Share, language_loss, validate, whole

log = logging.getLogger(__name__)
Make = Callable[[Transformer, int], Trainer]
"""A trainer for a model, which stops at that step."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps from `first` to before `last`, which share mix, rows and model."""

    first: int
    last: int
    rows: int
    length: int
    mix: Mapping[str, float]
    model: ModelConfig


def stretches(stage: PretrainConfig, model: ModelConfig, sizes: Mapping[str, int], first: int = 0) -> list[Stretch]:
    """The phases of a stage that begins at step `first`; without any, one in which sources have the shares of their sizes."""
    phases = stage.phases or (PhaseConfig(mix={name: float(tokens) for name, tokens in sizes.items()}),)
    total, passed, out = sum(p.share for p in phases), 0.0, list[Stretch]()
    begin = first
    for phase in phases:
        passed += phase.share
        end = first + round(stage.steps * passed / total)
        rows, length = phase.rows or stage.rows, phase.length or stage.length
        change: dict[str, Any] = {"max_positions": max(model.max_positions, length)}
        change |= {} if phase.rope_theta is None else {"rope_theta": phase.rope_theta}
        change |= {} if phase.ropes is None else {"ropes": phase.ropes}
        model = ModelConfig.model_validate({**model.model_dump(), **change})
        if end <= begin:
            got = f"none of {stage.steps} for {phase.mix}"
            raise ConfigError(f"expected a step at least for each phase, got {got}; raise steps or its share")
        out.append(Stretch(begin, end, rows, length, phase.mix, model))
        begin = end
    return out


class StreamFeed:
    """Updates of a number of micro-batches that may grow with the tokens seen, counted as rows x length."""

    def __init__(
        self,
        stage: PretrainConfig,
        parts: Sequence[Stretch],
        sources: Mapping[str, Deck],
        seed: int,
        tokens: int = 0,
        share: Share = whole,
    ) -> None:
        """`tokens`: already seen when the stage begins."""
        self.first, self.share, self.inspect = parts[0].first, share, stage.optim.qk_clip is not None
        self.counts: list[int] = []
        self.rates: list[float] = []
        phases = []
        for part in parts:
            before = len(self.counts)
            for _ in range(part.first, part.last):
                self.counts.append(pieces(stage.batch, tokens))
                self.rates.append(batch_scale(stage.batch, tokens))
                tokens += self.counts[-1] * part.rows * part.length
            phases.append(Phase(sum(self.counts[before:]), part.rows, part.length, part.mix))
        self.stream = Stream(Mix(sources, phases, seed, stage.window_rows), stage.workers, stage.ahead)

    def updates(self, step: int) -> Iterator[Update]:
        number, waited = step - self.first, self.stream.waited_s
        batches = [self.stream.next() for _ in range(self.counts[number])]
        metrics = {"loader_seconds": self.stream.waited_s - waited, "pieces": float(len(batches))}
        metrics |= {f"epoch/{name}": epoch for name, epoch in self.stream.epochs.items()}
        total, seen = float(sum(b.weights.sum() for b in batches)) or 1.0, Statistics()
        made = (Piece(self._loss(batch, total, seen), batch.tokens, batch.names) for batch in batches)
        yield Update(made, metrics, self.rates[number], seen)

    def _loss(self, batch: Batch, total: float, seen: Statistics) -> Callable[[Transformer], Tensor]:
        return lambda model: language_loss(model, self.share(batch), total, seen, self.inspect)

    def state(self) -> dict[str, Any]:
        return self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.stream.restore(state)


def train(
    parts: Sequence[Stretch],
    feed: StreamFeed,
    make: Make,
    begin: Callable[[Trainer], None],
    seed: int,
) -> tuple[Trainer, bool]:
    """Run phase after phase.

    Args:
        begin: called once when there is no checkpoint of this run yet: loads what the stage starts from.

    Returns:
        The last phase's trainer, at its end, and whether the run was resumed.
    """
    resumed = None
    for model, group in groupby(parts, lambda part: part.model):
        last = list(group)[-1].last
        trainer = make(Transformer(model, seed), last)
        found = trainer.resume(feed)
        if resumed is None:
            resumed = found
        if not found:
            begin(trainer)
        if trainer.step < last:
            trainer.run(feed)
    feed.stream.close()
    assert resumed is not None
    return trainer, resumed


def held_out(sources: Mapping[str, Deck], rows: int, length: int) -> dict[str, list[Batch]]:
    """Rows of documents that no run trains on, by source, the same in every run; made before a run, which may be long.

    Raises:
        ConfigError: no source has any.
    """
    out: dict[str, list[Batch]] = {}
    for name, deck in sources.items() if rows else ():
        kept = Deck(name, deck.shards, 0, deck.min_tokens, deck.max_tokens, held_out=True)
        mix = Mix({name: kept}, [Phase(rows, 1, length, {name: 1.0})], 0, window_rows=rows)
        try:
            window = mix.plan(Place())
        except ConfigError as e:
            log.warning("source=%s is not measured: %s", name, e)
            continue
        out[name] = [mix.read(window, i) for i in range(window.batches)]
    if rows and not out:
        raise ConfigError(f"expected a held-out document (one in {HELD_OUT}) in {', '.join(sources)}, got none; add documents")
    return out


def losses_on(trainer: Trainer, rows: Mapping[str, list[Batch]], share: Share) -> dict[str, float]:
    """Mean loss per token, in nats, by source."""
    world = trainer.parallel.world
    return {
        name: validate(trainer.model, batches, share, lambda x: world.sum(x.to(world.device))) for name, batches in rows.items()
    }
