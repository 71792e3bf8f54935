"""Muon and AdamW against torch's own, polar factors against the SVD, schedules by hand, clipping and skipping by their bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gymsmith.errors import UserError
from trainer import checkpoint
from trainer.config import BatchConfig, OptimConfig, ScheduleConfig
from trainer.model.config import DSAConfig, LayerKind, MLAConfig, ModelConfig, MoEConfig, MTPConfig
from trainer.model.transformer import Transformer
from trainer.optim import polar
from trainer.optim.clip import qk_clip
from trainer.optim.groups import Optimizers, head_blocks
from trainer.optim.muon import Blocks, Muon
from trainer.optim.polar import orthogonalise
from trainer.optim.schedule import batch_scale, pieces, scale, updates
from trainer.optim.soup import main, soup
from trainer.optim.spike import LEAST, PATIENCE, SIZE

SHAPES = [(32, 64), (64, 32), (48, 48), (32, 64)]
TINY = ModelConfig(vocab_size=16, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16)
LATENT = MLAConfig(q_latent=12, kv_latent=8, nope_dim=8, rope_dim=4, v_dim=6)
KINDS = {
    "tied": TINY.model_copy(update={"tied_head": True, "smear": 1, "logit_gain": True, "embedding_norm": True}),
    "untied": TINY.model_copy(
        update={
            "attention_bias": True,
            "output_bias": True,
            "ffn_bias": True,
            "attention_gate": True,
            "attention_sinks": True,
            "norm_place": "sandwich",
            "qk_norm_width": "full",
        }
    ),
    "latent": TINY.model_copy(update={"mla": LATENT, "pattern": (LayerKind(attention="mla"),)}),
    "sparse": TINY.model_copy(
        update={"mla": LATENT, "dsa": DSAConfig(heads=2, dim=8), "pattern": (LayerKind(attention="dsa", ffn="relu2"),)}
    ),
    "ahead": TINY.model_copy(update={"mtp": MTPConfig(depth=2)}),
    "experts": TINY.model_copy(
        update={
            "pattern": (LayerKind(ffn="moe"),),
            "moe": MoEConfig(experts=4, dim=8, shared_dim=8, router_bias=True, expert_bias=True, balance="sign"),
        }
    ),
}
IDS = torch.randint(0, 16, (2, 12), generator=torch.Generator().manual_seed(0))


def backward(model: Transformer) -> None:
    model(IDS).square().mean().backward()


@pytest.mark.parametrize(("kind", "theirs_kind"), [("keller", "original"), ("rms", "match_rms_adamw")])
def test_muon_follows_torch(kind: str, theirs_kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator) for s in SHAPES]
    ours = [torch.nn.Parameter(w.clone()) for w in start]
    theirs = [torch.nn.Parameter(w.clone()) for w in start]
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1, dtype=torch.bfloat16, scale=kind)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn=theirs_kind)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    moved = max(float((q.detach() - w).abs().max()) for q, w in zip(theirs, start, strict=True))
    apart = max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))
    assert moved > 0.01
    assert apart < 1e-2 * moved, (apart, moved)


@pytest.mark.parametrize(("polynomial", "low", "high"), [("quintic", 0.74, 1.21), ("polar_express", 0.84, 1.15)])
def test_the_polar_factor(polynomial: str, low: float, high: float) -> None:
    """Singular vectors are the SVD's; values lie within the polynomial's bounds, above the lower one where it is not square."""
    G = torch.randn(1, 384, 1536, generator=torch.Generator().manual_seed(1))
    out = orthogonalise(G, polynomial=polynomial)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    inner = U.mT @ out @ Vh.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > low and values.max() < high
    assert (out - U @ Vh).norm() < max(1 - low, high - 1) * (U @ Vh).norm()
    square = torch.linalg.svdvals(orthogonalise(torch.randn(256, 256), torch.bfloat16, polynomial).float())
    assert square.max() < high
    assert torch.allclose(orthogonalise(G.mT, polynomial=polynomial), out.mT, atol=1e-5)


def test_stacked_equals_looped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, one by one, as an expert parameter, or as large matrices: the same steps."""
    generator = torch.Generator().manual_seed(2)
    flat = [torch.randn(24, 40, generator=generator) for _ in range(6)]
    grads = [torch.randn(24, 40, generator=generator) for _ in range(6)]

    def run(params: list[Tensor], gs: list[Tensor], apart: bool) -> Tensor:
        params = [nn.Parameter(p.clone()) for p in params]
        groups = [[p] for p in params] if apart else [params]
        for group in groups:
            optimizer = Muon(group, weight_decay=0.1)
            for p, g in zip(params, gs, strict=True):
                p.grad = g
            optimizer.step()
        return torch.cat([p.detach().reshape(-1, 24, 40) for p in params])

    together = run(flat, grads, False)
    assert (run(flat, grads, True) - together).abs().max() < 1e-6
    experts = run([torch.stack(flat[:4]), *flat[4:]], [torch.stack(grads[:4]), *grads[4:]], False)
    assert (experts - together).abs().max() < 1e-6
    monkeypatch.setattr(polar, "LARGE", 1)
    assert (run(flat, grads, False) - together).abs().max() < 1e-6


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    p = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"expected 6 rows to split, got 4 heads of \(2,\)"):
        Muon([p], split="heads", blocks={p: Blocks(4, (2,))})


def test_splits() -> None:
    """`heads` orthogonalises each slice on its own; `projections` all heads of one, as Megatron does with [q | k | v] groups."""
    torch.manual_seed(3)
    groups, parts, columns = 3, (8, 4, 4), 20
    update = torch.randn(groups * sum(parts), columns)

    def direction(split: str, blocks: Blocks) -> Tensor:
        p = nn.Parameter(torch.zeros_like(update))
        found = Muon([p], split=split, blocks={p: blocks}).directions([p], [update])[0]
        return found.update * found.scale

    def scaled(matrix: Tensor) -> Tensor:
        return orthogonalise(matrix) * max(1, matrix.size(0) / matrix.size(1)) ** 0.5

    blocks = Blocks(groups, parts)
    view = update.view(groups, sum(parts), columns)
    by_head = torch.cat([torch.cat([scaled(m) for m in head.split(parts)]) for head in view])
    assert (direction("heads", blocks) - by_head).abs().max() < 1e-5
    joint = [scaled(m.reshape(-1, columns)).view(groups, -1, columns) for m in view.split(parts, 1)]
    by_projection = torch.cat(joint, 1).view_as(update)
    assert (direction("projections", blocks) - by_projection).abs().max() < 1e-5
    one = Blocks(1, (len(update),))
    assert torch.equal(direction("heads", one), direction("none", one))
    assert (by_head - by_projection).norm() > 0.1 * by_head.norm() < 10 * (by_projection - direction("none", one)).norm()


@pytest.mark.parametrize("split", ["projections", "heads"])
def test_layers_tell_their_heads(split: str) -> None:
    model = Transformer(KINDS["latent"], 1)
    muon = Optimizers(model, OptimConfig(muon_split=split)).all[0]  # type: ignore[arg-type]
    assert isinstance(muon, Muon)
    names = {n: p for n, p in model.named_parameters()}
    assert muon.blocks[names["blocks.0.attention.kv_up.weight"]] == Blocks(2, (8, 6))
    assert muon.blocks[names["blocks.1.attention.q_up.weight"]] == Blocks(2, (12,))
    assert len(muon.blocks) == 4


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("control", [False, True])
def test_who_is_decayed(kind: str, control: bool) -> None:
    """Membership from what modules are, for every kind of model; and bits that decay alone would move."""
    model = Transformer(KINDS[kind], 1)
    config = OptimConfig(weight_decay=0.5, adam_weight_decay=0.25, decay_embeddings=control, spike_sigma=6)
    optimizers = Optimizers(model, config)
    expected: dict[str, float] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            if isinstance(module, nn.Linear) and p.ndim == 2 and name != "head.weight":
                expected[name] = 0.5
            elif isinstance(module, nn.Embedding):
                expected[name] = 0.25 if control else 0.0
            elif name == "head.weight":
                expected.setdefault(name, 0.25)
            else:
                expected[name] = 0.5 if p.ndim == 3 else 0.0
    expected = {name: expected[name] for name, _ in model.named_parameters()}
    muon = optimizers.all[0]
    owned = {optimizers.names[p]: (o, g["weight_decay"]) for o in optimizers.all for g in o.param_groups for p in g["params"]}
    assert {name: decay for name, (_, decay) in owned.items()} == expected
    assert {name for name, (o, _) in owned.items() if o is muon} == {name for name, decay in expected.items() if decay == 0.5}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in optimizers.parameters:
        p.grad = torch.zeros_like(p)
    optimizers.step(1.0)
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == {name for name, decay in expected.items() if not decay or not before[name].any()}


def test_frozen_parameters_belong_to_nobody() -> None:
    model = Transformer(TINY)
    optimizers = Optimizers(model, OptimConfig(freeze=("head", r"blocks\.0")))
    assert set(optimizers.names.values()) == {n for n, _ in model.named_parameters() if not n.startswith(("head", "blocks.0"))}
    assert not model.head.weight.requires_grad


@pytest.mark.parametrize("kernel", ["auto", "fused", "foreach"])
def test_adamw_group_equals_torch(kernel: str) -> None:
    a, b = Transformer(TINY, 3), Transformer(TINY, 3)
    config = OptimConfig(hidden="adamw", lr=1e-2, adam_lr=1e-2, weight_decay=0.0, clip=1e9, adam_kernel=kernel)  # type: ignore[arg-type]
    ours = Optimizers(a, config)
    theirs = torch.optim.AdamW(b.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(20):
        backward(a)
        backward(b)
        ours.step(1.0)
        theirs.step()
        theirs.zero_grad()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_the_norm_may_come_from_elsewhere() -> None:
    """Two ranks' shards of the gradient, added up by a callable, clip as the whole does."""
    a, b = Transformer(TINY, 3), Transformer(TINY, 3)

    def norm(grads: Mapping[str, Tensor]) -> Tensor:
        halves = [[g.flatten()[i::2].square().sum() for g in grads.values()] for i in (0, 1)]
        return torch.stack([torch.stack(half).sum() for half in halves]).sum().sqrt()

    config = OptimConfig(clip=1e-4)
    ours, theirs = Optimizers(a, config, norm=norm), Optimizers(b, config)
    backward(a)
    backward(b)
    assert ours.step(1.0) == pytest.approx(theirs.step(1.0), rel=1e-5)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_bad_gradient_changes_nothing() -> None:
    model = Transformer(TINY)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimConfig())
    (model(IDS).sum() * float("nan")).backward()
    norm = optimizers.step(1.0)
    assert norm != norm and optimizers.skipped
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("guarded", [True, False])
def test_a_spike_leaves_no_trace(guarded: bool) -> None:
    """With the guard, a run with a spike equals the run without that batch, bit for bit; without it, it does not."""

    def run(spike: bool) -> dict[str, Tensor]:
        model = Transformer(TINY, 4)
        optimizers = Optimizers(model, OptimConfig(spike_sigma=6 if guarded else None))
        for i in range(LEAST + 8):
            if i == LEAST + 3 and spike:
                (model(IDS) * 50).square().mean().backward()
                optimizers.step(1.0, 1e4)
                assert optimizers.skipped == guarded
            backward(model)
            optimizers.step(1.0, 2.0 + 0.01 * (i % 5))
            assert not optimizers.skipped
        return {**dict(model.named_parameters()), **optimizers.state()}

    with_spike, without = run(True), run(False)
    assert with_spike.keys() == without.keys() and (("spike/seen" in without) == guarded)
    same = all(torch.equal(value, without[name]) for name, value in with_spike.items())
    assert same == guarded


def test_the_window_is_saved_and_forgets_when_the_level_changed() -> None:
    def make() -> Optimizers:
        return Optimizers(Transformer(TINY), OptimConfig(spike_sigma=6))

    a = make()
    assert a.guard is not None
    for i in range(SIZE + 40):
        assert not a.guard.refuses(2 + 0.1 * (i % 7), 1.0 + 0.01 * (i % 3))
    assert a.guard.refuses(9.0, 1.0) and a.guard.refuses(2.0, 5.0) and not a.guard.refuses(2.2, 1.01)
    assert len(a.guard.seen) == SIZE and (9.0, 1.0) not in a.guard.seen
    b = make()
    b.load({k: v.clone() for k, v in a.state().items()})
    assert b.guard is not None and b.guard.seen == a.guard.seen
    refused = [b.guard.refuses(9.0, 1.0) for _ in range(PATIENCE)]
    assert refused == [True] * (PATIENCE - 1) + [False] and b.guard.seen == [(9.0, 1.0)]


@pytest.mark.parametrize("kind", ["mha", "gqa", "mla"])
def test_clipped_heads_end_at_tau(kind: str) -> None:
    update = {"n_heads": 4, "n_kv_heads": 2 if kind == "gqa" else 4, "qk_norm": False, "n_layers": 2}
    if kind == "mla":
        update |= {"mla": LATENT, "pattern": (LayerKind(attention="mla"),)}
    model = Transformer(TINY.model_copy(update=update), 5).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".attention." in name and p.ndim == 2:
                p.mul_(30)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = model.outputs(IDS, inspect=True).statistics["max_logit"]
    # Layer 0: one head above; layer 1: none.
    tau = float(first[0].sort()[0][-2:].mean())
    found = qk_clip(model, {0: first[0], 1: torch.full((4,), -1.0)}, tau)
    assert found == {"max_logit": pytest.approx(float(first[0].max())), "clipped_heads": 1.0}
    after = model.outputs(IDS, inspect=True).statistics["max_logit"][0]
    over = first[0] > tau
    assert (after[over] - tau).abs().max() < 1e-5 * tau
    assert (after[~over] - first[0][~over]).abs().max() < 1e-5 * tau
    head = int(over.nonzero())
    group = {head} if kind != "gqa" else {head // 2 * 2, head // 2 * 2 + 1}
    rows = {"q.weight": 4, "k.weight": update["n_kv_heads"], "q_up.weight": 4, "kv_up.weight": 4}
    for name, p in model.named_parameters():
        heads = rows.get(name.removeprefix("blocks.0.attention."))
        if heads is None:
            assert torch.equal(p, before[name]), name
            continue
        moved = (p != before[name]).view(heads, -1).any(1).nonzero().flatten().tolist()
        assert moved == ([head // 2] if heads == 2 else sorted(group)), name
    if kind == "mla":
        changed = model.blocks[0].attention.kv_up.weight != before["blocks.0.attention.kv_up.weight"]
        assert changed.view(4, 14, -1)[head, :8].all() and not changed.view(4, 14, -1)[:, 8:].any()


def test_schedule_table() -> None:
    config = ScheduleConfig(warmup_steps=4, decay=0.4, final=0.0)
    got = [round(scale(config, s, 10), 3) for s in range(10)]
    assert got == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert scale(ScheduleConfig(warmup_steps=0, decay=1.0, final=0.5), 5, 10) == 0.75
    root = ScheduleConfig(warmup_steps=0, decay_steps=4, fall="sqrt", final=0.1)
    assert [round(scale(root, s, 10), 3) for s in range(5, 10)] == [1.0, 1.0, 0.55, 0.364, 0.221]
    # A branch that anneals from step 6 has had the rates of the run it leaves.
    branch, stem = ScheduleConfig(warmup_steps=3, decay_steps=4), ScheduleConfig(warmup_steps=3, decay_steps=50)
    assert [scale(branch, s, 10) for s in range(7)] == [scale(stem, s, 1000) for s in range(7)]


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90, eta_min=0.1)
    config = ScheduleConfig(shape="cosine", warmup_steps=10, final=0.1)
    assert [scale(config, s, 100) for s in range(10)] == [(s + 1) / 10 for s in range(10)]
    for step in range(10, 100):
        assert scale(config, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_batches_grow_with_tokens() -> None:
    config = BatchConfig(stages=((0, 1), (1000, 2), (5000, 8)), sqrt_rate=True)
    seen, sizes = 0, []
    while seen < 20000:
        sizes.append(pieces(config, seen))
        seen += 128 * sizes[-1]
    assert [sizes.count(n) for n in (1, 2, 8)] == [8, 16, 15] and sizes == sorted(sizes)
    assert updates(config, 128, 20000) == len(sizes)
    assert batch_scale(config, 0) == 8**-0.5 and batch_scale(config, 1000) == 0.5 and batch_scale(config, 9000) == 1
    with pytest.raises(ValueError, match="start at 0 tokens and ascend"):
        BatchConfig(stages=((0, 2), (5, 4), (5, 8)))


def test_soup(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = [{"a": torch.randn(7, 5), "b": torch.randn(9).bfloat16(), "n": torch.tensor([3, 2**40])} for _ in range(3)]
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, each in zip(files, tensors, strict=True):
        save_file(each, file)
    out = tmp_path / "soup.safetensors"
    weights = [0.5, 0.3, 0.2]
    soup(files, out, weights)
    got = load_file(out)
    for name in ("a", "b"):
        exact = sum(w * each[name].double() for w, each in zip(weights, tensors, strict=True))
        assert isinstance(exact, Tensor) and got[name].dtype == tensors[0][name].dtype
        assert (got[name].double() - exact.to(got[name].dtype).double()).abs().max() <= (1e-6 if name == "a" else 0)
    assert torch.equal(got["n"], tensors[0]["n"])
    soup([files[0]] * 3, out)
    assert all(torch.equal(value, tensors[0][name]) for name, value in load_file(out).items())
    with pytest.raises(UserError, match="sum to 1"):
        soup(files, out, [1.0, 1.0, 1.0])
    save_file({**tensors[0], "a": torch.randn(7, 6)}, files[1])
    with pytest.raises(UserError, match=r"a is \('F32', \(7, 5\)\).*\(7, 6\)"):
        soup(files, out)


def test_soup_of_checkpoints_is_a_checkpoint(tmp_path: Path) -> None:
    models = [Transformer(TINY, seed) for seed in (1, 2)]
    paths = [checkpoint.save(tmp_path / str(i), 7, m, tokenizer="{}", meta={}) for i, m in enumerate(models)]
    main([str(tmp_path / "soup"), *map(str, paths), "--weights", "0.25", "0.75"])
    found = checkpoint.load(tmp_path / "soup" / "00000007")
    assert found.meta["soup"] == {str(paths[0]): 0.25, str(paths[1]): 0.75}
    for name, p in found.build().named_parameters():
        mean = 0.25 * models[0].get_parameter(name) + 0.75 * models[1].get_parameter(name)
        assert torch.allclose(p, mean, atol=1e-6)


def test_counts_are_not_mixed(tmp_path: Path) -> None:
    for n, count in enumerate((3, 3, 4)):
        save_file({"w": torch.full((2,), float(n)), "count": torch.tensor([count])}, tmp_path / f"{n}.safetensors")
    a, b, c = (tmp_path / f"{n}.safetensors" for n in range(3))
    main([str(tmp_path / "mean.safetensors"), str(a), str(b)])
    assert load_file(tmp_path / "mean.safetensors")["w"].tolist() == [0.5, 0.5]
    assert load_file(tmp_path / "mean.safetensors")["count"].tolist() == [3]
    with pytest.raises(UserError, match="count holds integers"):
        soup([a, c], tmp_path / "odd.safetensors")


def test_what_has_no_heads_or_no_steps_is_refused() -> None:
    assert head_blocks(Transformer(TINY))
    with pytest.raises(ValueError, match="use muon_split = none"):
        head_blocks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="at least one step, got 0"):
        scale(ScheduleConfig(), 0, 0)
