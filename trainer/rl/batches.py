"""From trajectories to packed batches: what trains, with which weight, and what never does.

A segment is exactly the ids that the model saw and produced. Segments of one trajectory share its advantage, and each sampled
token is trainable in one segment only, so a folded episode weighs as much as an unfolded one. Trajectories that failed through
us are left out; a token whose logprob is not a number is counted and not trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gymsmith.schema import Trajectory
from trainer.data.packing import Batch, Item, best_fit, pack

ROUND = 64
"""Row lengths are multiples of this."""
TOKENS = 8192
"""Most tokens of a micro-batch, padding included."""


@dataclass(slots=True)
class Scored:
    """A trajectory and its advantage."""

    trajectory: Trajectory
    advantage: float


def valid(trajectory: Trajectory) -> bool:
    """Whether a verdict of the host exists; without one nothing may be learned."""
    return trajectory.reward is not None and not trajectory.error and bool(trajectory.segments)


def items(scored: Scored) -> list[Item]:
    """One packing item per segment that has sampled tokens."""
    out = []
    for segment in scored.trajectory.segments:
        logprobs = np.asarray(segment.logprobs, np.float32)
        live = np.asarray(segment.mask, bool) & np.isfinite(logprobs)
        # The first id of a context is never predicted, whoever put it there.
        live[:1] = False
        if live.any():
            advantage = np.full(len(segment.ids), scored.advantage, np.float32)
            values = {"engine": np.where(live, logprobs, 0.0).astype(np.float32), "advantage": advantage}
            out.append(Item(np.asarray(segment.ids, np.int32), live.astype(np.float32), values))
    return out


def micro_batches(work: Sequence[Item]) -> list[Batch]:
    """Pack items into rows just long enough for the longest, at most TOKENS to a batch; order follows from the items alone."""
    if not work:
        return []
    longest = max(len(item.ids) for item in work)
    length = math.ceil(longest / ROUND) * ROUND
    rows = best_fit([len(item.ids) for item in work], length)
    size = max(1, TOKENS // length)
    return [pack([[work[i] for i in row] for row in rows[at : at + size]], length) for at in range(0, len(rows), size)]


def split(scored: Sequence[Scored], parts: int, seed: int, step: int) -> list[list[Scored]]:
    """Deal trajectories into minibatches in a random order that depends on (seed, step) alone."""
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    order = rng.permutation(len(scored))
    dealt = [[scored[i] for i in order[part::parts]] for part in range(parts)]
    return [part for part in dealt if part]
