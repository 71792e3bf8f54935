"""What a forward pass leaves beside hidden states: auxiliary losses and statistics, written once per layer.

Blocks may run twice when activations are recomputed. The first entry under a name and layer stays, later ones are ignored, so
nothing is counted twice and losses belong to the graph that is differentiated.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Ledger:
    """One forward pass's book."""

    live_BT: Tensor | None = None
    """False on padding, which counts in no loss and no statistic; None when all positions count."""
    inspect: bool = False
    """Whether layers measure what costs time: largest attention logits and mass on first tokens per head."""
    losses: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """name -> layer -> loss, weighted."""
    statistics: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    """name -> layer -> value without gradient."""

    def lose(self, name: str, layer: int, value: Tensor) -> None:
        """Add a loss."""
        self.losses[name].setdefault(layer, value)

    def note(self, name: str, layer: int, value: Tensor) -> None:
        """Add a statistic."""
        self.statistics[name].setdefault(layer, value.detach())

    def take(self, other: Ledger, layer: int) -> None:
        """Enter what another book holds, as that layer's."""
        for mine, theirs in ((self.losses, other.losses), (self.statistics, other.statistics)):
            for name, by_layer in theirs.items():
                for value in by_layer.values():
                    mine[name].setdefault(layer, value)


@dataclass(slots=True)
class Outputs:
    """What training needs of a forward pass."""

    hidden: Tensor
    """(B, T, dim) after the final norm."""
    mtp: list[Tensor]
    """One (B, T, dim) per prediction module, normed for the head: entry k predicts token t + k + 2."""
    losses: dict[str, Tensor]
    """Weighted auxiliary losses, means over live tokens, summed over layers: `sequence_balance`, `batch_balance`, `router_z`,
    `indexer`."""
    statistics: dict[str, dict[int, Tensor]]
    """name -> layer -> value: `expert_counts` (E,) and `indexer_kl` always; when asked `max_logit` (H,), `first_mass` (H,),
    `activation` (largest absolute value after the block)."""
