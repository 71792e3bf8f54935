"""The transformer: embedding, blocks from the layer list, final norm, head.

Deliberately not here: parallelism, precision, caches. The engine calls `trunk` with its own `Attend`; training calls `outputs`
with a batch of packed documents. Selecting positions before the head saves the vocabulary projection where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.attention import Attend
from trainer.model.block import Block, rope_key
from trainer.model.config import MemoryConfig, ModelConfig
from trainer.model.embedding import Embedding, predecessors
from trainer.model.initial import initialise
from trainer.model.ledger import Ledger, Outputs
from trainer.model.masking import Masked
from trainer.model.moe import routers
from trainer.model.norm import norm_of
from trainer.model.rope import Rope


class Transformer(nn.Module):
    """A causal language model over packed documents."""

    oracle = False
    masking: Callable[..., Attend] = Masked
    """Makes the `Attend` of one pass over packed rows; context parallelism has its own."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.memory = MemoryConfig()
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, kind, i) for i, kind in enumerate(config.layers))
        self.norm = norm_of(config)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.gain = nn.Parameter(torch.zeros(())) if config.logit_gain else None
        kinds = {rope_key(config, kind): kind for kind in config.layers if kind.position != "none"}
        self.ropes = nn.ModuleDict(
            {key: Rope(config.rope(kind.position), config.rotated(kind), config.max_positions) for key, kind in kinds.items()}
        )
        initialise(self, config, seed)
        if config.tied_head:
            self.head.weight = self.embedding.token.weight

    def trunk(self, ids: Tensor, previous: Tensor, positions: Tensor, attend: Attend, ledger: Ledger | None = None) -> Tensor:
        """Hidden states after the final norm (..., dim), for ids (...), previous (..., smear) and positions (...)."""
        tables: dict[str, tuple[Tensor | None, Tensor | None]] = {key: rope(positions) for key, rope in self.ropes.items()}
        tables[""] = (None, None)
        x = self.embedding(ids, previous)
        for block in cast(Iterable[Block], self.blocks):
            cos, sin = tables[block.rope]
            if self.memory.recompute == "block" and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, attend, ledger, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, attend, ledger)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocab)."""
        x = self.head(hidden if self.gain is None else hidden * self.gain.exp())
        cap = self.config.logit_softcap
        return x if cap is None else cap * torch.tanh(x / cap)

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, dim) of packed rows. Without documents, each row is one document from position 0."""
        return self._run(ids_BT, positions_BT, documents_BT, Ledger())

    def outputs(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        *,
        inspect: bool = False,
    ) -> Outputs:
        """Everything that a training loss is made of. With `inspect`, layers also measure attention (see `Outputs`)."""
        ledger = Ledger(None if documents_BT is None else documents_BT >= 0, inspect)
        hidden = self._run(ids_BT, positions_BT, documents_BT, ledger)
        for layer, router in routers(self).items():
            if self.training:
                router.counts += ledger.statistics["expert_counts"][layer].to(router.counts)
        losses = {name: torch.stack(list(by_layer.values())).sum() for name, by_layer in ledger.losses.items()}
        return Outputs(hidden, [], losses, dict(ledger.statistics))

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab)."""
        return self.logits(self.hidden(ids_BT, positions_BT, documents_BT))

    def after_step(self, reduce: Callable[[Tensor], Tensor] = lambda counts: counts) -> None:
        """Called once after every optimizer step: routers move their selection bias by the load since the last call.

        Args:
            reduce: sums a tensor over data-parallel ranks.
        """
        for _, router in sorted(routers(self).items()):
            router.move(reduce(router.counts.clone()))
            router.counts.zero_()

    def follow_oracle(self) -> None:
        """Compute norms, rotary tables, routers and softmax in float32 whatever the weights' type, as `transformers` does, so
        that even float64 logits can be compared to the last digits."""
        for module in self.modules():
            if hasattr(module, "oracle"):
                module.oracle = True  # type: ignore[assignment]
            if isinstance(module, Rope):
                module.follow_oracle()

    def _run(self, ids_BT: Tensor, positions_BT: Tensor | None, documents_BT: Tensor | None, ledger: Ledger) -> Tensor:
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.size(1), device=ids_BT.device).expand_as(ids_BT)
        previous = predecessors(ids_BT, positions_BT, self.config.smear)
        attend = self.masking(documents_BT, self.memory, ledger, self.oracle)
        return self.trunk(ids_BT, previous, positions_BT, attend, ledger)
