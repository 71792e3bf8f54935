"""One model made to train over all processes of a `World`, and everything a loop must ask of them.

Order: experts and tensors are cut, then attention looks across the context axis, then FSDP2 (`fully_shard`, Zhao et al., 2023)
takes what is left. Gradients are sums over all ranks, never means: a rank's loss is its share of the update's loss, divided by
the update's denominator and not by its own. With one process every method is what plain torch does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.data.packing import Batch
from trainer.dist import context, expert, limits, seeds, tensor
from trainer.dist.layout import Layout, local
from trainer.dist.mesh import World
from trainer.model.transformer import Block, Transformer
from trainer.optim.clip import qk_clip

Statistics = Mapping[str, Mapping[int, Tensor]]
"""name -> layer -> values, as in `Outputs.statistics`."""
BUCKET = 1 << 24
"""Values of one message of gradients."""


@dataclass(slots=True)
class Parallel:
    """A split model's other half: how its tensors lie and what ranks owe each other."""

    model: Transformer
    world: World
    layouts: dict[str, Layout]

    def share(self, batch: Batch) -> Batch:
        """What of a batch this process computes. Take the update's denominator from the whole batch."""
        return batch if self.world.mesh is None else context.share(batch, self.world)

    def check(self) -> None:
        """Compare what ranks hold: slices differ, copies agree. See `seeds.check`."""
        seeds.check(self.model.named_parameters(), self.layouts, self.world)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Make every gradient the whole one. Call once per update, after its last micro-batch.

        A parameter that got no gradient here and one elsewhere counts as zero here; without one anywhere it stays without.
        """
        if self.world.mesh is None:
            return
        owned = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        has = torch.tensor([float(p.grad is not None) for _, p in owned], device=self.world.device)
        groups: dict[tuple[tuple[str, ...], torch.dtype], list[Tensor]] = defaultdict(list)
        for (name, p), anywhere in zip(owned, self.world.max(has).tolist(), strict=True):
            if not anywhere:
                continue
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            groups[self.layouts[name].sums, p.grad.dtype].append(local(p.grad))
        for (axes, _), grads in groups.items():
            if self.world.size(axes) > 1:
                for bucket in _buckets(grads):
                    flat = self.world.sum(torch.cat([g.reshape(-1) for g in bucket]), axes)
                    for g, new in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                        g.copy_(new.view_as(g))

    @torch.no_grad()
    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The L2 norm of gradients by parameter name, over all ranks' values; each counts once. The same on every rank."""
        if self.world.mesh is None:
            return torch.nn.utils.get_total_norm(list(gradients.values()))
        groups: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
        for name, g in gradients.items():
            groups[self.layouts[name].axes].append(local(g))
        total = torch.zeros((), device=self.world.device, dtype=torch.float64)
        for axes in sorted(groups):
            square = torch.stack(torch._foreach_norm(groups[axes])).double().square().sum()
            total += self.world.sum(square, axes)
        return total.sqrt()

    @torch.no_grad()
    def clip_heads(self, max_logit: Mapping[int, Tensor], tau: float) -> dict[str, float]:
        """QK-clip (`optim.clip`) by the largest logits that any rank saw of a head; a rank clips the heads that it holds."""
        with self._mixing():
            return qk_clip(self.model, max_logit, tau, self.world.max)

    def statistics(self, found: Statistics) -> Statistics:
        """Expert counts and largest logits of a forward pass, over all ranks' tokens and heads; other values as they are here."""
        out = dict(found)
        if self.world.mesh is not None:
            sums, tops = found.get("expert_counts", {}), found.get("max_logit", {})
            out["expert_counts"] = {layer: self.world.sum(counts.clone()) for layer, counts in sorted(sums.items())}
            heads = Layout((1,), (("tp", 0),)) if self.world.sizes["tp"] > 1 else Layout((1,))
            out["max_logit"] = {
                layer: heads.whole(self.world.max(top.clone()), self.world) for layer, top in sorted(tops.items())
            }
        return out

    def _mixing(self) -> AbstractContextManager[None]:
        """Plain tensors count as copies beside sharded ones."""
        if self.world.sizes["fsdp"] == 1:
            return nullcontext()
        from torch.distributed.tensor.experimental import implicit_replication

        return implicit_replication()

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of the main process, nothing elsewhere. Every process must call it, with the same names.

        Names are those of parameters, or PARAMETER/KEY for optimizer state; under any other name every rank has the same, as with
        buffers. Copies, except in one process.
        """
        if self.world.mesh is None:
            return {name: value.detach() for name, value in tensors.items()}
        out = {}
        for name, value in tensors.items():
            layout = self.layouts.get(name.split("/")[0], Layout(()))
            full = layout.whole(value.detach(), self.world)
            if self.world.main:
                out[name] = full.to("cpu", copy=True)
        return out

    def part(self, name: str, full: Tensor) -> Tensor:
        """What this process holds of a whole tensor of that name (as in `collect`); the tensor itself where that is all of it."""
        base = name.split("/")[0]
        if self.world.mesh is None or base not in self.layouts:
            return full
        like = self.model.get_parameter(base)
        return self.layouts[base].part(full.to(like.device), like, self.world)


def parallelise(model: Transformer, world: World) -> Parallel:
    """Split a whole model, in place. Optimizers are built afterwards: parameters are new objects.

    Raises:
        ConfigError: the model cannot be split that way; on every process, before anything is.
    """
    limits.check_model(world.config, model.config)
    layouts = {name: Layout(tuple(p.shape)) for name, p in model.named_parameters()}
    if world.mesh is None:
        return Parallel(model, world, layouts)
    if world.sizes["tp"] > 1:
        layouts = {name: tensor.layout(name, p, model.config) for name, p in model.named_parameters()}
        tensor.share_out(model, world)
    if world.sizes["ep"] > 1:
        layouts |= {name: found for name, p in model.named_parameters() if (found := expert.layout(name, p))}
        expert.share_out(model, world)
    if world.sizes["cp"] > 1:
        model.masking = context.gathering(world)
    _cut(model, layouts, world)
    if world.sizes["fsdp"] > 1:
        layouts = _shard(model, layouts, world)
    return Parallel(model, world, layouts)


def _cut(model: nn.Module, layouts: Mapping[str, Layout], world: World) -> None:
    """Replace parameters by this process's slices; one that several modules share stays shared."""
    new = {
        p: nn.Parameter(layouts[name].piece(p.detach(), world, world.place).clone())
        for name, p in model.named_parameters()
        if layouts[name].cuts
    }
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p in new:
                module._parameters[name] = new[p]


def _shard(model: Transformer, layouts: Mapping[str, Layout], world: World) -> dict[str, Layout]:
    """Blocks one by one, then the rest. Single numbers are too small to be sharded."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    assert world.mesh is not None
    mesh = world.mesh["fsdp"]
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if p.ndim == 0})
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Otherwise a factor becomes a kind of sum that only NCCL knows.
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "_run")
    return {name: Layout(whole.shape, whole.cuts, bool(whole.shape), whole.partial) for name, whole in layouts.items()}


def _buckets(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of about BUCKET values."""
    bucket: list[Tensor] = []
    for g in grads:
        bucket.append(g)
        if sum(b.numel() for b in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
