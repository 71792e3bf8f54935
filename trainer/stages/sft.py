"""Supervised fine-tuning: cross entropy on the commands of demonstrations, everything else masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError
from gymsmith.store import Store, TrajectoryFilter
from trainer.data.documents import read_lines
from trainer.data.packing import Item
from trainer.loop import Piece, Update
from trainer.model.transformer import Transformer
from trainer.rl.batches import Scored, items, micro_batches, valid
from trainer.stages.pretrain import language_loss


class DemonstrationFeed:
    """`size` demonstrations per update, in an order that depends on (seed, epoch) alone. State: updates done."""

    def __init__(self, demonstrations: Sequence[Sequence[Item]], size: int, seed: int) -> None:
        self.demonstrations, self.size, self.seed = demonstrations, size, seed
        self.per_epoch = -(-len(demonstrations) // size)

    def updates(self, step: int) -> Iterator[Update]:
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.demonstrations))
        chosen = order[place * self.size : (place + 1) * self.size]
        batches = micro_batches([item for i in chosen for item in self.demonstrations[i]])
        total = float(sum(b.weights.sum() for b in batches))
        pieces = (Piece(lambda model, b=b: language_loss(model, b, total), b.tokens) for b in batches)  # type: ignore[misc]
        yield Update(pieces, {"epoch": float(epoch)})

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing: the step says it all."""


@torch.no_grad()
def shift_gain(model: Transformer, by: float) -> None:
    """Sharpen (by > 0) a model with a learned logit gain: its temperature is divided by exp(by)."""
    if by:
        if model.gain is None:
            raise ConfigError("sft.gain_shift needs model.logit_gain = true, got a model without; set it to 0")
        model.gain.add_(by)


def from_file(path: Path, chat: Chat, observation_tokens: int) -> list[list[Item]]:
    """Demonstrations of a JSONL file: {"instruction", "steps": [[command, output], ...]} per line.

    Raises:
        ConfigError: a line in another shape, or no line at all.
    """
    out = []
    for number, row in enumerate(read_lines(path), 1):
        try:
            steps = [(str(command), str(output)) for command, output in row["steps"]]
            ids, mask = chat.demonstration(str(row["instruction"]), steps, observation_tokens)
        except (KeyError, TypeError, ValueError) as e:
            shape = '{"instruction": text, "steps": [[command, output], ...]}'
            raise ConfigError(f"{path}: line {number} must be {shape}, got {str(row)[:80]!r}") from e
        out.append([Item(np.asarray(ids, np.int32), np.asarray(mask, np.float32))])
    if not out:
        raise ConfigError(f"{path} holds no demonstration; make some with reference solutions")
    return out


def from_run(store: Store, run_id: str) -> list[list[Item]]:
    """The passed trajectories of a run, sorted by (environment, attempt), so that the order in which they ended does not matter.

    Raises:
        ConfigError: the run has none.
    """
    ids = []
    cursor = ""
    while True:
        page = store.trajectory_rows(TrajectoryFilter(run_id=run_id), cursor=cursor, limit=500)
        ids += [row.id for row in page.items]
        cursor = page.cursor
        if not cursor:
            break
    found = [t for t in store.trajectories(ids) if valid(t) and t.reward is not None and t.reward.value >= 1]
    found.sort(key=lambda t: (t.environment_id, t.attempt, t.group))
    out = [items(Scored(t, 0.0)) for t in found]
    if not out:
        raise ConfigError(f"run {run_id} holds no passed trajectory to learn from, got {len(ids)} in all; choose another run")
    return out
