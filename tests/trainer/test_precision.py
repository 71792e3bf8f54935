"""Number formats: bfloat16 over float32 masters, FP8 against dequantised products, INT4 against what is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gymsmith.errors import ConfigError
from trainer.checkpoint import weights_digest
from trainer.config import OptimConfig, PrecisionConfig, SaveConfig, ScheduleConfig
from trainer.data.documents import Document
from trainer.data.loader import Loader
from trainer.loop import Trainer
from trainer.model.config import LayerKind, MLAConfig, ModelConfig, MoEConfig
from trainer.model.ffn import ReLU2
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.precision import fp8, int4, serve
from trainer.precision.convert import Converted, convert
from trainer.precision.half import HalfNorm
from trainer.stages.pretrain import TextFeed

MODEL = ModelConfig(
    vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=48, max_positions=32, tied_head=True
)
MIXED = MODEL.model_copy(
    update={
        "pattern": (LayerKind(ffn="relu2"), LayerKind(ffn="moe")),
        "moe": MoEConfig(experts=4, top_k=2, dim=32, shared_dim=32),
    }
)
IDS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def gradients(model: Transformer) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS).float().logsumexp(-1).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


SPARSE = MODEL.model_copy(update={"pattern": (LayerKind(attention="dsa"),), "mla": MLAConfig(q_latent=16)})


@pytest.mark.parametrize("config", [MODEL, MIXED, SPARSE], ids=["dense", "mixed", "sparse"])
def test_half_computes_over_float32_masters(config: ModelConfig) -> None:
    model, exact = Transformer(config, 1), Transformer(config, 1)
    names = [n for n, _ in model.named_parameters()]
    convert(model, PrecisionConfig())
    assert model.hidden(IDS).dtype == torch.bfloat16 and model(IDS).dtype == torch.float32
    assert [n for n, _ in model.named_parameters()] == names and model.head.weight is model.embedding.token.weight
    got, expected = gradients(model), gradients(exact)
    assert got.keys() == expected.keys()
    for name, g in got.items():
        assert g.dtype == torch.float32, name
        # A token whose second and third expert are close may go elsewhere; the dense model has no such choices.
        assert distance(g, expected[name]) < (0.03 if config is MODEL else 0.3), name


def test_micro_batches_add_up_in_float32() -> None:
    """Steps too small for bfloat16 weights move the masters."""
    model = Transformer(MODEL, 1)
    convert(model, PrecisionConfig())
    before = model.norm.weight.detach().clone()
    optimizers = Optimizers(model, OptimConfig(hidden="adamw", lr=1e-5, adam_lr=1e-5))
    for _ in range(3):
        model(IDS).square().mean().backward()
        optimizers.step(1.0)
    moved = (model.norm.weight.detach() - before).abs()
    assert moved.max() > 1e-5 and torch.equal(model.norm.weight.bfloat16(), before.bfloat16())


@pytest.mark.parametrize("kind", ["norm", "relu2"])
def test_short_derivatives_are_the_true_ones(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 16, generator=generator).double()
    layer: nn.Module = HalfNorm(16, 1e-6) if kind == "norm" else ReLU2(MODEL.model_copy(update={"dim": 16, "ffn_dim": 16}))
    layer.double()
    if kind == "relu2":
        layer.up = layer.down = nn.Identity()
    for tensor in (x, *layer.parameters()):
        tensor.requires_grad_()
    run: Callable[..., Tensor] = lambda x, *_: layer(x)
    torch.autograd.gradcheck(run, (x, *layer.parameters()))


def linear(backend: str, history: int = 0, inputs: int = 64, outputs: int = 48) -> fp8.Fp8Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    fp8.to_fp8(layer, backend, history)
    assert isinstance(layer, fp8.Fp8Linear)
    return layer


def products(layer: fp8.Fp8Linear, x: Tensor, g: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(g.to(y.dtype))
    assert x.grad is not None and layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    return [y.detach(), x.grad, layer.weight.grad]


@pytest.mark.parametrize("history", [0, 4], ids=["current", "delayed"])
def test_scaled_mm_equals_dequantised_products(history: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(3, 7, 64, generator=generator) * 30, torch.randn(3, 7, 48, generator=generator) * 1e-4
    exact = nn.Linear(64, 48)
    exact.load_state_dict(linear("reference").state_dict())
    y = exact(x.requires_grad_())
    y.backward(g)
    true = [y.detach(), x.grad, exact.weight.grad]
    a, b = (products(linear(backend, history), x.detach(), g) for backend in ("scaled_mm", "reference"))
    for ours, reference, wide in zip(a, b, true, strict=True):
        assert wide is not None
        assert distance(ours, reference) <= 2e-3
        assert 1e-3 < distance(ours, wide) < 8e-2


def test_delayed_scales_follow_history() -> None:
    layer = linear("reference", history=3)
    assert layer.amax is not None
    x, g = torch.full((16, 64), 2.0), torch.ones(16, 48)
    largest = []
    for value in (2.0, 8.0, 1.0, 1.0, 1.0, 1.0):
        y = products(layer, torch.full_like(x, value), g)[0]
        products(layer, torch.zeros_like(x), g)  # a second micro-batch does not hide the first
        known = float(layer.amax[0, 1:].amax())
        largest.append(known)
        # What exceeds the known range is cut to it, never infinite.
        cut = min(value, known) if known else value
        expected = nn.functional.linear(torch.full_like(x, cut), layer.weight, layer.bias)
        assert distance(y, expected) < 4e-2
        Converted(PrecisionConfig(linear="fp8", recipe="delayed"), layer).after_step()
    assert largest == [0.0, 2.0, 8.0, 8.0, 8.0, 1.0]


@pytest.mark.parametrize("amax", [0.0, float("inf"), float("nan")])
def test_scales_of_nothing(amax: float) -> None:
    assert fp8.scale_for(torch.tensor(amax), fp8.E4M3) == 1
    assert fp8.scale_for(torch.tensor(7.0), fp8.E5M2) == 57344 / 7


def test_which_layers_convert() -> None:
    odd = MIXED.model_copy(update={"ffn_dim": 40})
    done = convert(Transformer(odd), PrecisionConfig(linear="fp8", recipe="delayed"))
    attention = {f"blocks.{i}.attention.{n}" for i in (0, 1) for n in "qkvo"}
    shared = {f"blocks.1.ffn.shared.{n}" for n in ("gate", "up", "down")}
    assert set(done.formats) == attention | shared
    assert set(done.reasons) == {"blocks.0.ffn.up", "blocks.0.ffn.down", "blocks.1.ffn.experts"}
    assert "multiples of 16, got 32 and 40" in done.reasons["blocks.0.ffn.up"]
    only = convert(Transformer(MODEL), PrecisionConfig(linear="int4", modules=r".*ffn\."))
    assert set(only.formats) == {f"blocks.{i}.ffn.{n}" for i in (0, 1) for n in ("gate", "up")}
    assert "got [48]" in only.reasons["blocks.0.ffn.down"]


@pytest.mark.parametrize("linear_format", ["fp8", "int4"])
def test_formats_learn(linear_format: str) -> None:
    model = Transformer(MIXED, 2)
    done = convert(model, PrecisionConfig(linear=linear_format, recipe="delayed"))  # type: ignore[arg-type]
    optimizers = Optimizers(model, OptimConfig(hidden="adamw", lr=3e-3, adam_lr=3e-3))
    losses = []
    for _ in range(25):
        with done.running():
            loss = nn.functional.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizers.step(1.0)
        done.after_step()
        losses.append(float(loss.detach()))
    model(IDS * 0)
    before = {key: value.clone() for key, value in done.state().items()}
    done.after_step(kept=False)
    for key, value in done.state().items():
        assert torch.equal(value[:, 1:], before[key][:, 1:]) and not value[:, 0].any() and before[key][0, 0] > 0
    assert losses[-1] < 0.8 * losses[0]
    saved = {key: value.clone() for key, value in done.state().items()}
    assert bool(saved) == (linear_format == "fp8")
    again = convert(Transformer(MIXED, 2), PrecisionConfig(linear=linear_format, recipe="delayed"))  # type: ignore[arg-type]
    again.load(saved)
    assert all(torch.equal(value, saved[key]) for key, value in again.state().items())


def run(folder: Path, steps: int, tau: float | None = None, numbers: PrecisionConfig | None = None) -> list[dict[str, float]]:
    """A short run of the loop on random text; what it reports, and the digest of what came out."""
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(6, 64, n).astype(np.int32), np.ones(n, np.float32)) for n in rng.integers(3, 20, 50)]
    model = Transformer(MODEL.model_copy(update={"qk_norm": tau is None}), 1)
    converted = None if numbers is None else convert(model, numbers)
    optim = OptimConfig(lr=0.1 if tau is None else 0.6, qk_clip=tau)
    seen: list[dict[str, float]] = []
    report = lambda step, metrics: seen.append(metrics)
    steady = ScheduleConfig(warmup_steps=0, decay=0)
    trainer = Trainer(
        model, Optimizers(model, optim), steady, steps, folder, SaveConfig(every_steps=3), "{}", {}, report, converted=converted
    )
    feed = TextFeed(Loader(documents, 2, 24, 5), inspect=True)
    trainer.resume(feed)
    trainer.run(feed)
    return [*seen, {"digest": float(int(weights_digest(model)[:12], 16))}]


def test_delayed_scales_resume_exactly(tmp_path: Path) -> None:
    delayed = PrecisionConfig(linear="fp8", recipe="delayed", history=2)
    whole = run(tmp_path / "whole", 6, numbers=delayed)
    run(tmp_path / "broken", 3, numbers=delayed)
    again = run(tmp_path / "broken", 6, numbers=delayed)
    assert [m["loss"] for m in again[:-1]] == [m["loss"] for m in whole[3:-1]] and again[-1] == whole[-1]
    assert run(tmp_path / "current", 6, numbers=PrecisionConfig(linear="fp8"))[-1] != whole[-1]


def test_the_loop_clips_heads(tmp_path: Path) -> None:
    """Rates that make logits explode, and a threshold that they then do not pass by more than one step's growth."""
    free = max(float(m["max_logit"]) for m in run(tmp_path / "free", 14, tau=1e9)[:-1])
    clipped = run(tmp_path / "clipped", 14, tau=4.0)[:-1]
    assert free > 40 and max(float(m["max_logit"]) for m in clipped) < 20
    assert sum(m["clipped_heads"] for m in clipped) > 5


def test_te_says_when_it_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"install gymsmith\[fp8\]"):
        convert(Transformer(MODEL), PrecisionConfig(linear="fp8", backend="te", recipe="block"))


@pytest.mark.parametrize("group", [32, 128])
def test_int4_trains_with_what_it_exports(group: int) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    used = int4.fake(weight, group)
    q, scale = int4.quantise(weight.detach(), group)
    assert q.dtype == torch.int8 and int(q.abs().max()) == 7 and scale.shape == (6, 256 // group)
    assert torch.equal(used, int4.dequantise(q, scale))
    assert torch.equal(int4.quantise(int4.dequantise(q, scale), group)[0], q)
    g = torch.randn(6, 256)
    used.backward(g.to(used.dtype))
    assert weight.grad is not None and torch.equal(weight.grad, g.bfloat16().float())
    theirs = torch.fake_quantize_per_channel_affine(
        weight.detach().view(-1, group), scale.float().flatten(), torch.zeros(scale.numel(), dtype=torch.int32), 0, -7, 7
    )
    assert torch.equal(theirs.view(6, 256).bfloat16(), used)


def test_a_layer_of_int4_computes_with_its_export() -> None:
    model = Transformer(MIXED, 3)
    convert(model, PrecisionConfig(linear="int4"))
    frozen = Transformer(MIXED, 3)
    for name, p in frozen.named_parameters():
        if name.startswith("blocks.") and "norm" not in name and "router" not in name and p.size(-1) % 32 == 0:
            with torch.no_grad():
                p.copy_(int4.dequantise(*int4.quantise(p, 32)))
    convert(frozen, PrecisionConfig())
    assert torch.equal(model(IDS), frozen(IDS))


def hugging_face() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "model.embed_tokens.weight": (64, 128),
        "model.layers.0.self_attn.q_proj.weight": (256, 128),
        "model.layers.0.self_attn.gate_proj.weight": (64, 128),
        "model.layers.0.mlp.down_proj.weight": (128, 384),
        "model.layers.0.mlp.gate.weight": (8, 128),
        "model.layers.0.mlp.experts.0.up_proj.weight": (192, 128),
        "model.layers.0.input_layernorm.weight": (128,),
        "lm_head.weight": (64, 128),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


CONVERTED = {n for n in hugging_face() if "proj" in n}


def test_int4_is_served_as_it_was_trained() -> None:
    weights = hugging_face()
    done = serve.packed_int4(weights, 128)
    back = serve.restored(done.tensors)
    assert back.keys() == weights.keys() and done.config["ignore"] == ["model.layers.0.mlp.gate", "lm_head"]
    for name, w in weights.items():
        assert torch.equal(back[name], int4.fake(w, 128) if name in CONVERTED else w), name
    packed = done.tensors["model.layers.0.mlp.down_proj.weight_packed"]
    assert packed.dtype == torch.int32 and packed.shape == (128, 384 // 8)
    q, _ = int4.quantise(weights["model.layers.0.mlp.down_proj.weight"], 128)
    assert [(int(packed[3, 5]) >> 4 * i & 15) - 8 for i in range(8)] == q[3, 40:48].tolist()


@pytest.mark.parametrize("layout", ["block", "channel"])
def test_fp8_round_trip(layout: str) -> None:
    weights = hugging_face()
    done = serve.fp8(weights, layout)
    back = serve.restored(done.tensors)
    odd = {"model.layers.0.mlp.experts.0.up_proj.weight"} if layout == "block" else set()
    assert back.keys() == weights.keys() and set(done.reasons) == odd
    for name, w in weights.items():
        if name not in CONVERTED - odd:
            assert torch.equal(back[name], w), name
            continue
        assert done.tensors[name].dtype == torch.float8_e4m3fn and 0.005 < distance(back[name], w) < 0.04
        again = serve.fp8(back, layout).tensors
        assert torch.equal(again[name].view(torch.uint8), done.tensors[name].view(torch.uint8)), name
        if layout == "block":
            theirs = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
            read = theirs._dequantize_one(done.tensors[name], done.tensors[f"{name}_scale_inv"], torch.float32)
            assert torch.equal(read, back[name])
    if layout == "block":
        assert done.tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"].shape == (2, 1)
        assert done.config["modules_to_not_convert"][0] == "model.layers.0.mlp.gate"
