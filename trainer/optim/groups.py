"""Which parameter goes to which optimizer, at which rate, and how both are saved.

Hidden matrices go to Muon. Embeddings, head, norms and the logit gain go to AdamW; of these only nothing is decayed: decay on
embeddings or norms hurts, and hidden matrices have theirs in Muon. With `hidden = "adamw"` everything goes to AdamW, hidden
matrices decayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.optim.muon import Muon
from trainer.precision import resolve


class Optimizers:
    """Muon and AdamW over one model, stepped and saved together. Parameters matched by `config.freeze` get no gradient."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {}
        hidden: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        gains: list[nn.Parameter] = []
        for name, p in model.named_parameters():
            p.requires_grad_(not any(re.match(pattern, name) for pattern in config.freeze))
            if not p.requires_grad:
                continue
            self.names[p] = name
            if p.ndim == 2 and name.startswith("blocks."):
                hidden.append(p)
            elif p.ndim == 0:
                gains.append(p)
            else:
                plain.append(p)
        self.all: list[torch.optim.Optimizer] = []
        adam = [
            {"params": plain, "lr": config.adam_lr, "weight_decay": 0.0},
            {"params": gains, "lr": config.gain_lr, "weight_decay": 0.0},
        ]
        if config.hidden == "muon" and hidden:
            dtype = resolve(config.muon_precision)
            self.all.append(Muon(hidden, config.lr, config.momentum, config.weight_decay, dtype))
        elif hidden:
            adam.append({"params": hidden, "lr": config.lr, "weight_decay": config.weight_decay})
        adam = [group for group in adam if group["params"]]
        if adam:
            self.all.append(torch.optim.AdamW(adam, betas=config.betas, eps=config.eps))
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that trains, in the model's order."""
        return list(self.names)

    def step(self, scale: float) -> float:
        """Clip to the global norm, update at `scale` times the base rates, drop the gradients.

        Returns:
            The gradient norm before clipping. A norm that is not finite skips the update.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        if norm == norm and norm != float("inf"):
            for optimizer in self.all:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * scale
                optimizer.step()
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Every state tensor under `PARAMETER/KEY`."""
        return {
            f"{self.names[p]}/{key}": value
            for optimizer in self.all
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        by_name = {name: p for p, name in self.names.items()}
        owner = {p: o for o in self.all for group in o.param_groups for p in group["params"]}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            p = by_name[name]
            owner[p].state[p][key] = value.clone()
