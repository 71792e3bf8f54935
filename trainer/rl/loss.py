"""The policy loss: clipped ratios with a gate on the mismatch between engine and trainer.

Per sampled token, with mu the engine's probability, pi_old the trainer's before this step's first update and pi the current one:

    rho = pi_old / mu,  r = pi / pi_old,  gate = rho where low <= rho <= high, else 0        (IcePop, GLM-5 report eq. 1)
    L = - 1 / N * sum gate * min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)                (clip-higher, DAPO)

N counts all trainable tokens of the update (token-level loss), gated ones too. rho is a constant. No KL term. Tokens that the
policy did not sample have no target and get no gradient, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import RLConfig
from trainer.data.packing import IGNORE, Batch
from trainer.model.transformer import Transformer


@dataclass(slots=True)
class TokenStats:
    """Sums over tokens, for metrics."""

    tokens: int = 0
    entropy: float = 0.0
    clipped: float = 0.0
    gated: float = 0.0
    mismatch: float = 0.0
    """|log pi_old - log mu|."""
    worst: float = 0.0
    """Largest of these."""

    def metrics(self) -> dict[str, float]:
        """Means per token."""
        n = max(1, self.tokens)
        return {
            "entropy": self.entropy / n,
            "clip_fraction": self.clipped / n,
            "gate_fraction": self.gated / n,
            "logprob_difference_mean": self.mismatch / n,
            "logprob_difference_max": self.worst,
        }


def target_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log probabilities (n,) of all targets of a batch in row order at a temperature, and the entropies (n,), detached."""
    live = batch.targets != IGNORE
    hidden = model.hidden(batch.ids, batch.positions, batch.documents)
    logprobs = torch.log_softmax(model.logits(hidden[live]) / temperature, -1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, batch.targets[live][:, None])[:, 0], entropy


def policy_loss(
    logprobs: Tensor, old: Tensor, engine: Tensor, advantage: Tensor, config: RLConfig, denominator: float
) -> tuple[Tensor, Tensor, Tensor]:
    """All (n,): current, old and engine log probabilities, and the advantage of each token.

    Returns:
        The loss, and booleans per token: clipped, gated away.
    """
    low, high = config.icepop
    rho = (old - engine).exp()
    kept = (rho >= low) & (rho <= high)
    ratio = (logprobs - old).exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gate = torch.where(kept, rho, torch.zeros_like(rho)).detach()
    loss = -(gate * torch.minimum(ratio * advantage, bounded * advantage)).sum() / denominator
    clipped = ((ratio > 1 + config.clip_high) & (advantage > 0)) | ((ratio < 1 - config.clip_low) & (advantage < 0))
    return loss, clipped, ~kept
