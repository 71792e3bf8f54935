"""Which parameter goes to which optimizer, at which rate and decay, and how all of it is saved.

Hidden matrices (of blocks and of multi-token prediction, experts among them) go to Muon and are decayed. Embeddings, head,
norms, biases, sinks and the logit gain go to AdamW. Of these an untied head may be decayed; the others are not, because decay
shrinks norms for nothing and makes embeddings of rare tokens small and their gradients large. With `hidden = "adamw"`
everything goes to AdamW, hidden matrices decayed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.optim.muon import Blocks, Muon
from trainer.optim.spike import SpikeGuard
from trainer.precision.formats import resolve

GUARD = "spike"
Role = Literal["hidden", "gain", "decayed", "plain"]
Norm = Callable[[Mapping[str, Tensor]], Tensor]
"""Gradients by parameter name -> their L2 norm over all shards, the same on each rank."""


def role(name: str, parameter: Tensor, config: OptimConfig) -> Role:
    """What a parameter is to its optimizer. A tied head has no name of its own and goes with the embedding."""
    if parameter.ndim == 0:
        return "gain"
    if parameter.ndim >= 2 and name.startswith(("blocks.", "mtp.")) and not name.endswith("bias"):
        return "hidden"
    decayed = name == "head.weight" or (config.decay_embeddings and name.startswith("embedding.") and parameter.ndim >= 2)
    return "decayed" if decayed else "plain"


class Optimizers:
    """Muon and AdamW over one model, stepped and saved together. Parameters matched by `config.freeze` get no gradient.

    Args:
        norm: of the gradients, where they lie on several ranks.
        muon: the class, where matrices do.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, norm: Norm | None = None, muon: type[Muon] = Muon) -> None:
        self.config, self.norm = config, norm
        self.names: dict[Tensor, str] = {}
        self.skipped = False
        """Whether the last step left everything as it was."""
        self.guard = SpikeGuard(config.spike_sigma) if config.spike_sigma else None
        roles: dict[Role, list[nn.Parameter]] = {"plain": [], "gain": [], "decayed": [], "hidden": []}
        for name, p in model.named_parameters():
            p.requires_grad_(not any(re.match(pattern, name) for pattern in config.freeze))
            if p.requires_grad:
                self.names[p] = name
                roles[role(name, p, config)].append(p)
        adam: list[dict[str, Any]] = [
            {"params": roles["plain"], "lr": config.adam_lr, "weight_decay": 0.0},
            {"params": roles["gain"], "lr": config.gain_lr, "weight_decay": 0.0},
            {"params": roles["decayed"], "lr": config.adam_lr, "weight_decay": config.adam_weight_decay},
        ]
        self.all: list[torch.optim.Optimizer] = []
        hidden = roles["hidden"]
        if config.hidden == "muon" and hidden:
            options = (config.muon_scale, config.muon_polynomial, config.muon_split)
            blocks = head_blocks(model) if config.muon_split != "none" else {}
            dtype = resolve(config.muon_precision)
            self.all.append(muon(hidden, config.lr, config.momentum, config.weight_decay, dtype, *options, blocks=blocks))
        elif hidden:
            adam.append({"params": hidden, "lr": config.lr, "weight_decay": config.weight_decay})
        adam = [group for group in adam if group["params"]]
        if adam:
            fused = config.adam_kernel == "fused" or (config.adam_kernel == "auto" and adam[0]["params"][0].is_cuda)
            kernel = {"fused": True} if fused else {"foreach": True} if config.adam_kernel == "foreach" else {}
            self.all.append(torch.optim.AdamW(adam, betas=config.betas, eps=config.eps, **kernel))  # type: ignore[arg-type]
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that trains, in the model's order."""
        return list(self.names)

    def step(self, scale: float, loss: float | None = None) -> float:
        """Clip to the global norm, update at `scale` times the base rates, drop the gradients.

        Args:
            loss: of the whole update over all ranks; an outlier among recent losses or norms skips it (`spike_sigma`).
        Returns:
            The gradient norm before clipping. A norm that is not finite skips the update too; see `skipped`.
        """
        grads = {name: p.grad for p, name in self.names.items() if p.grad is not None}
        total = torch.nn.utils.get_total_norm(list(grads.values())) if self.norm is None else self.norm(grads)
        norm = float(total)
        self.skipped = not math.isfinite(norm)
        if not self.skipped and self.guard is not None:
            self.skipped = self.guard.refuses(norm) if loss is None else self.guard.refuses(loss, norm)
        if not self.skipped:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, total)
            for optimizer in self.all:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * scale
                optimizer.step()
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Every state tensor under `PARAMETER/KEY`, the spike guard's under `spike/KEY`."""
        found = {
            f"{self.names[p]}/{key}": value
            for optimizer in self.all
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
        }
        guard = {} if self.guard is None else self.guard.state()
        return {**found, **{f"{GUARD}/{key}": value for key, value in guard.items()}}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        by_name = {name: p for p, name in self.names.items()}
        owner = {p: o for o in self.all for group in o.param_groups for p in group["params"]}
        guard: dict[str, Tensor] = {}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            if name == GUARD:
                guard[key] = value
                continue
            p = by_name[name]
            owner[p].state[p][key] = value.clone()
        if guard and self.guard is not None:
            self.guard.load(guard)


def head_blocks(model: nn.Module) -> dict[Tensor, Blocks]:
    """How attention layers say that the rows of their matrices lie: `head_blocks()` gives (heads, rows of each projection) by
    parameter name within the layer."""
    found: dict[Tensor, Blocks] = {}
    for module in model.modules():
        tell = getattr(module, "head_blocks", None)
        for name, (groups, *parts) in (tell() if tell else {}).items():
            found[module.get_parameter(name)] = Blocks(groups, tuple(parts))
    if not found:
        raise ValueError("muon_split needs layers that tell their head_blocks, got none; use muon_split = none")
    return found
