"""Mixture of experts (DeepSeekMoE, 2024; DeepSeek-V3, section 2.1.2): y = shared(x) + sum over chosen experts of g_i expert_i(x).

Scores come from a router. A selection bias is added to them for choosing only; the weights g are those of the bare scores. The
bias is no parameter: after each optimizer step it moves against the load that the step has seen (`move`). The sequence-wise and
the batch-wise balance loss and the router's z-loss are the gradient's part in balancing.

Shapes: B rows, T positions, N = B * T tokens, E experts, K chosen per token, M = N * K assignments, D channels, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import ModelConfig, MoEConfig
from trainer.model.ffn import SwiGLU
from trainer.model.ledger import Ledger

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: torch.softmax(logits, -1),
    "softmax_top": lambda logits: logits,
}
"""Router logits (N, E) to scores; `softmax_top` takes its softmax over the chosen ones later."""


class MoE(nn.Module):
    """Router, routed experts, and shared experts as one dense network."""

    bias: Tensor
    momentum: Tensor
    counts: Tensor
    oracle = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = moe = config.moe
        self.router = nn.Linear(config.dim, moe.experts, bias=moe.router_bias)
        self.experts = Experts(config)
        self.shared = SwiGLU(config, moe.shared_dim) if moe.shared_dim else None
        self.register_buffer("bias", torch.zeros(moe.experts))
        if moe.balance == "smebu":
            self.register_buffer("momentum", torch.zeros(moe.experts))
        # Assignments since the last step: empty whenever a checkpoint is written.
        self.register_buffer("counts", torch.zeros(moe.experts), persistent=False)

    def forward(self, x: Tensor, layer: int = 0, ledger: Ledger | None = None) -> Tensor:
        """(..., dim) -> (..., dim)."""
        x_ND = x.reshape(-1, x.size(-1))
        logits_NE = self._logits(x_ND)
        scores_NE = SCORES[self.config.score](logits_NE)
        chosen_NK = choose(scores_NE.detach() + self.bias, self.config)
        weights_NK = self._weights(scores_NE.gather(1, chosen_NK))
        if ledger is not None:
            self._account(layer, ledger, x.shape[:-1], logits_NE, scores_NE, chosen_NK)
        y = self.experts(x_ND, chosen_NK, weights_NK).view(x.shape)
        return y if self.shared is None else y + self.shared(x)

    def _logits(self, x: Tensor) -> Tensor:
        cast_to = self.config.router_cast
        half = self.oracle or x.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, enabled=False):
            if not half or cast_to == "none":
                return self.router(x.to(self.router.weight.dtype))
            if cast_to == "logits":
                return self.router(x.to(self.router.weight.dtype)).float()
            bias = self.router.bias
            return F.linear(x.float(), self.router.weight.float(), None if bias is None else bias.float())

    def _weights(self, chosen: Tensor) -> Tensor:
        if self.config.score == "softmax_top":
            chosen = torch.softmax(chosen, -1)
        elif self.config.normalise:
            chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
        return chosen if self.config.scale == 1.0 else chosen * self.config.scale

    def _account(self, layer: int, ledger: Ledger, shape: torch.Size, logits: Tensor, scores: Tensor, chosen: Tensor) -> None:
        """Losses and counts over tokens that are not padding."""
        config, rows = self.config, shape[0]
        live = logits.new_ones(len(logits)) if ledger.live_BT is None else ledger.live_BT.reshape(-1).to(logits)
        hits = F.one_hot(chosen, config.experts).sum(1) * live[:, None]
        ledger.note("expert_counts", layer, hits.sum(0))
        if config.sequence_loss or config.batch_loss:
            shares = (
                torch.softmax(logits, -1) if config.score == "softmax_top" else scores / (scores.sum(-1, keepdim=True) + 1e-20)
            )
            by_row = [t.view(rows, -1, config.experts) for t in (hits, shares * live[:, None])]
            tokens_B1 = live.view(rows, -1).sum(1, keepdim=True)
            if config.sequence_loss:
                per_row = unevenness(by_row[0].sum(1), by_row[1].sum(1), tokens_B1, config)
                full = (tokens_B1[:, 0] > 0).to(per_row)
                ledger.lose("sequence_balance", layer, config.sequence_loss * (per_row * full).sum() / full.sum().clamp(min=1))
            if config.batch_loss:
                loss = unevenness(by_row[0].sum((0, 1)), by_row[1].sum((0, 1)), tokens_B1.sum(), config)
                ledger.lose("batch_balance", layer, config.batch_loss * loss)
        if config.z_loss:
            squares = logits.logsumexp(-1).square() * live
            ledger.lose("router_z", layer, config.z_loss * squares.sum() / live.sum().clamp(min=1))

    @torch.no_grad()
    def move(self, counts_E: Tensor) -> None:
        """Move the selection bias by one step's load over all ranks."""
        config = self.config
        if config.balance == "none" or not counts_E.sum():
            return
        counts = counts_E.to(self.bias)
        mean = counts.mean()
        if config.balance == "sign":
            self.bias += config.rate * torch.sign(mean - counts)
            self.bias -= self.bias.mean()
        else:
            step = config.rate * torch.tanh(config.kappa * (mean - counts) / mean)
            self.momentum.lerp_(step - step.mean(), 1 - config.momentum)
            self.bias += self.momentum


def unevenness(hits: Tensor, shares: Tensor, tokens: Tensor, config: MoEConfig) -> Tensor:
    """sum_i f_i P_i over the last dimension: f_i = E / (K tokens) * hits_i, P_i = shares_i / tokens. 1 when perfectly even."""
    tokens = tokens.clamp(min=1)
    return (hits * (config.experts / config.top_k) / tokens * (shares / tokens)).sum(-1)


def choose(biased_NE: Tensor, config: MoEConfig) -> Tensor:
    """The K experts of each token (N, K), within the best groups."""
    if config.groups > 1:
        grouped = biased_NE.unflatten(1, (config.groups, -1))
        best = grouped.topk(2, -1)[0].sum(-1).topk(config.groups_kept, -1, sorted=False)[1]
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, True)
        biased_NE = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
    return biased_NE.topk(config.top_k, -1)[1]


class Experts(nn.Module):
    """All routed experts: 3-D parameters, (E, out, in)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = moe = config.moe
        self.gate = nn.Parameter(torch.empty(moe.experts, moe.dim, config.dim))
        self.up = nn.Parameter(torch.empty(moe.experts, moe.dim, config.dim))
        self.down = nn.Parameter(torch.empty(moe.experts, config.dim, moe.dim))
        self.gate_bias = nn.Parameter(torch.zeros(moe.experts, moe.dim)) if moe.expert_bias else None
        self.up_bias = nn.Parameter(torch.zeros(moe.experts, moe.dim)) if moe.expert_bias else None
        self.down_bias = nn.Parameter(torch.zeros(moe.experts, config.dim)) if moe.expert_bias else None

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Weighted sum over each token's experts, (N, D)."""
        N, K = chosen_NK.shape
        order = chosen_NK.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_NK.flatten(), minlength=self.config.experts)
        y = self.rows(x_ND[order // K], counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(N * K, device=order.device))
        return (y[back].view(N, K, -1) * weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def rows(self, x_MD: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert, `counts_E` of them for each, through their experts: (M, D)."""
        gate = self._product(x_MD, self.gate, self.gate_bias, counts_E)
        up = self._product(x_MD, self.up, self.up_bias, counts_E)
        if self.config.activation == "swiglu":
            hidden = F.silu(gate) * up
        else:
            gate, up = gate.clamp(max=self.config.limit), up.clamp(-self.config.limit, self.config.limit)
            hidden = (up + 1) * (gate * torch.sigmoid(gate * self.config.alpha))
        return self._product(hidden, self.down, self.down_bias, counts_E)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
        """x_m W_e^T (+ b_e) for the expert e of each row. Grouped products know no float64."""
        if self.config.matmul == "grouped" and x.dtype != torch.float64:
            if torch.is_autocast_enabled(x.device.type):
                dtype = torch.get_autocast_dtype(x.device.type)
                x, weight = x.to(dtype), weight.to(dtype)
            y = torch._grouped_mm(x, weight.mT, offs=counts.cumsum(0).to(torch.int32))
        else:
            parts = x.split(counts.tolist())
            y = torch.cat([part @ matrix.mT for part, matrix in zip(parts, weight, strict=True)])
        if bias is None:
            return y
        return y + bias.to(y.dtype).repeat_interleave(counts, 0, output_size=len(x))


def routers(model: nn.Module) -> dict[int, MoE]:
    """Every mixture of a model by its layer."""
    blocks = [block for block in model.modules() if isinstance(getattr(block, "ffn", None), MoE)]
    return {cast(int, block.index): cast(MoE, block.ffn) for block in blocks}
