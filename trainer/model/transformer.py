"""The transformer: embedding, blocks from the layer list, final norm, head.

Deliberately not here: parallelism, precision, caches. The engine calls `trunk` with its own `Attend`; training calls `outputs`
with a batch of packed documents. Selecting positions before the head saves the vocabulary projection where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.attention import Attend
from trainer.model.block import Block, rope_key
from trainer.model.config import MemoryConfig, ModelConfig
from trainer.model.embedding import NOTHING, Embedding, predecessors
from trainer.model.initial import initialise
from trainer.model.ledger import Ledger, Outputs
from trainer.model.masking import Masked
from trainer.model.moe import routers
from trainer.model.mtp import MTP, ahead
from trainer.model.norm import norm_of
from trainer.model.offload import Offload
from trainer.model.rope import Rope

Tables = dict[str, tuple[Tensor | None, Tensor | None]]
"""Cosines and sines by `rope_key`."""


class Transformer(nn.Module):
    """A causal language model over packed documents."""

    oracle = False
    masking: Callable[..., Attend] = Masked
    """Makes the `Attend` of one pass over packed rows; context parallelism has its own."""
    head_pieces: Callable[..., tuple[Tensor, Tensor]] | None = None
    """The head's loss in pieces, where processes share the vocabulary; None: `head` has it all."""

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
        separate = 0 if config.mtp is None else 1 if config.mtp.share else config.mtp.depth
        self.mtp = nn.ModuleList(MTP(config, i) for i in range(separate))
        initialise(self, config, seed)
        if config.tied_head:
            self.head.weight = self.embedding.token.weight

    def trunk(self, ids: Tensor, previous: Tensor, positions: Tensor, attend: Attend, ledger: Ledger | None = None) -> Tensor:
        """Hidden states after the final norm (..., dim), for ids (...), previous (..., smear) and positions (...)."""
        return self.norm(self._body(ids, previous, self._tables(positions), attend, ledger))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocab)."""
        x = self.head(hidden if self.gain is None else hidden * self.gain.exp())
        cap = self.config.logit_softcap
        return x if cap is None else cap * torch.tanh(x / cap)

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, dim) of packed rows. Without documents, each row is one document from position 0."""
        return self._run(ids_BT, positions_BT, documents_BT, Ledger(), 0)[0]

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
        depth = self.config.mtp.depth if self.config.mtp else 0
        hidden, mtp = self._run(ids_BT, positions_BT, documents_BT, ledger, depth)
        if self.training:
            self._count(ledger.statistics["expert_counts"])
        losses = {name: torch.stack(list(by_layer.values())).sum() for name, by_layer in ledger.losses.items()}
        return Outputs(hidden, mtp, losses, {name: by_layer for name, by_layer in ledger.statistics.items() if by_layer})

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

    def _run(
        self, ids_BT: Tensor, positions_BT: Tensor | None, documents_BT: Tensor | None, ledger: Ledger, depth: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states, and those of the first `depth` prediction modules."""
        if positions_BT is None:
            if ids_BT.size(1) > self.config.max_positions:
                have = f"expected rows of at most max_positions = {self.config.max_positions} tokens, got {ids_BT.size(1)}"
                raise ValueError(f"{have}; raise max_positions or pass positions that restart with each document")
            positions_BT = torch.arange(ids_BT.size(1), device=ids_BT.device).expand_as(ids_BT)
        previous = predecessors(ids_BT, positions_BT, self.config.smear)
        with Offload(self) if self.memory.offload else nullcontext():
            tables = self._tables(positions_BT)
            h = self._body(ids_BT, previous, tables, self.masking(documents_BT, self.memory, ledger, self.oracle), ledger)
            hidden, mtp = self.norm(h), []
            for k in range(depth):
                module = cast(MTP, self.mtp[min(k, len(self.mtp) - 1)])
                ids_k, valid = ahead(ids_BT, positions_BT, k + 1, NOTHING)
                tokens = self.embedding(ids_k, ahead(previous, positions_BT, k + 1, NOTHING)[0])
                apart = Ledger(valid if ledger.live_BT is None else valid & ledger.live_BT, ledger.inspect)
                attend = self.masking(documents_BT, self.memory, apart, self.oracle)
                h = self._block(module.block, module.merged(h, tokens), tables, attend, apart)
                ledger.take(apart, self.config.n_layers + k)
                mtp.append(module.norm(h))
        return hidden, mtp

    def _tables(self, positions: Tensor) -> Tables:
        """Cosines and sines of every encoding in use."""
        return {"": (None, None)} | {key: rope(positions) for key, rope in self.ropes.items()}

    def _body(self, ids: Tensor, previous: Tensor, tables: Tables, attend: Attend, ledger: Ledger | None) -> Tensor:
        """Hidden states before the final norm."""
        x = self.embedding(ids, previous)
        for block in cast(Iterable[Block], self.blocks):
            x = self._block(block, x, tables, attend, ledger)
        return x

    def _block(self, block: Block, x: Tensor, tables: Tables, attend: Attend, ledger: Ledger | None) -> Tensor:
        if self.memory.recompute == "block" and torch.is_grad_enabled():
            return checkpoint(block, x, *tables[block.rope], attend, ledger, use_reentrant=False, preserve_rng_state=False)
        return block(x, *tables[block.rope], attend, ledger)

    @torch.no_grad()
    def _count(self, counts: dict[int, Tensor]) -> None:
        """Add a forward pass's load to the routers'; all depths of a shared prediction module have one."""
        mine = routers(self)
        for layer, counts_E in counts.items():
            router = mine[min(layer, max(mine))]
            router.counts += counts_E.to(router.counts)
