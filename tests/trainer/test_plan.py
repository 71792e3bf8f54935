"""The plan counts what is there: parameters of built models, FLOPs as torch counts them, activations as autograd keeps them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import RECIPES, ParallelConfig, load_recipe
from trainer.model.config import DSAConfig, LayerKind, MLAConfig, ModelConfig, MoEConfig, MTPConfig
from trainer.model.transformer import Transformer
from trainer.plan import costs
from trainer.plan.costs import plan
from trainer.plan.flops import attention_flops, flops, index_flops, mean_keys, pair_flops, parameters
from trainer.plan.memory import activation_numbers, memory

BASE: dict[str, Any] = {"vocab_size": 96, "dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 80}
MLA = MLAConfig(q_latent=24, kv_latent=16, nope_dim=12, rope_dim=4, v_dim=16)
EXPERTS = MoEConfig(experts=6, top_k=2, dim=24, shared_dim=40, router_bias=True, expert_bias=True)
MODELS = {
    "stock": ModelConfig(**BASE),
    "tied": ModelConfig(**BASE, tied_head=True, smear=2, logit_gain=True, embedding_norm=True, pattern=(LayerKind(ffn="relu2"),)),
    "biased": ModelConfig(
        **BASE,
        attention_bias=True,
        output_bias=True,
        ffn_bias=True,
        attention_sinks=True,
        attention_gate=True,
        norm_place="sandwich",
    ),
    "wide norm": ModelConfig(**BASE, qk_norm_width="full", norm_place="post", pattern=(LayerKind(window=8), LayerKind())),
    "latent": ModelConfig(**BASE, mla=MLA, pattern=(LayerKind(attention="mla"),), attention_bias=True, norm_weight=False),
    "no query latent": ModelConfig(**BASE, mla=MLAConfig(v_dim=48), pattern=(LayerKind(attention="mla"),), attention_gate=True),
    "sparse": ModelConfig(
        **BASE,
        mla=MLA,
        dsa=DSAConfig(heads=3, dim=8, top_k=4),
        moe=EXPERTS,
        pattern=(LayerKind(attention="dsa", ffn="moe"),),
        first_layers=(LayerKind(attention="dsa"),),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    held, model = parameters(MODELS[name]), Transformer(MODELS[name])
    assert held.total == sum(p.numel() for p in model.parameters())
    hidden = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith("blocks.") and n.endswith(("weight", "gate", "up", "down")) and p.ndim > 1
    )
    assert held.matrices == hidden


@pytest.mark.parametrize("name", ["stock", "tied", "biased", "wide norm", "latent", "no query latent"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """Forward, on the count that sees no mask: torch counts whole products too."""
    config, T = MODELS[name], 32
    model = Transformer(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(2, T, dtype=torch.long))
    counted = counter.get_total_flops() / (2 * T)
    assert flops(config, T, "palm").total / 3 == pytest.approx(counted, rel=1e-9)


def test_on_paper_models_have_the_parameters_that_transformers_gives_them() -> None:
    """Built without memory by the library that runs the published weights."""
    from transformers import (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        GlmMoeDsaConfig,
        GlmMoeDsaForCausalLM,
        Olmo3Config,
        Olmo3ForCausalLM,
    )

    wide = {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40}
    kimi = {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61}
    kimi |= {"num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384, "n_shared_experts": 1}
    kimi |= {"first_k_dense_replace": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "n_group": 1, "topk_group": 1}
    kimi |= {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts_per_tok": 8}
    published = {
        "olmo3-7b": (Olmo3ForCausalLM, Olmo3Config(vocab_size=100278)),
        "olmo3-32b": (Olmo3ForCausalLM, Olmo3Config(vocab_size=100278, num_key_value_heads=8, **wide)),
        "kimi-k2": (DeepseekV3ForCausalLM, DeepseekV3Config(vocab_size=163840, **kimi)),
        "glm5": (GlmMoeDsaForCausalLM, GlmMoeDsaConfig()),
    }
    for name, (kind, config) in published.items():
        with torch.device("meta"):
            built = sum(p.numel() for p in kind(config).parameters())
        held = parameters(load_recipe(name).model)
        # The library's class leaves GLM-5's prediction module out.
        assert held.total - held.mtp == built, name
    glm = parameters(load_recipe("glm5").model)
    assert (round((glm.total - glm.mtp) / 1e9), round(parameters(load_recipe("kimi-k2").model).active / 1e9)) == (744, 33)


def test_published_throughput_follows_from_flops_and_mfu() -> None:
    for name, tokens, mfu in (("olmo3-7b", 7700, 0.43), ("olmo3-32b", 1960, 0.41)):
        said = plan(load_recipe(name))["throughput"]
        assert said["published"] == tokens and said["mfu"] == mfu
        assert abs(said["ratio"] - 1) < 0.1, name
    # The count matters: with windows respected the same MFU would stand for a sixth more.
    config = load_recipe("olmo3-7b").model
    assert flops(config, 8192, "palm").total > 1.15 * flops(config, 8192, "causal").total


def test_tied_embeddings_save_eighteen_percent_at_1b() -> None:
    held = plan(load_recipe("1b"))["parameters"]
    assert 1.2e9 < held["total"] < 1.3e9 and round(100 * held["saved_by_tying"]) == 18


def test_sparse_attention_pays_at_128k_and_not_at_2k() -> None:
    config = load_recipe("glm5").model
    sparse, dense = LayerKind(attention="dsa", ffn="moe"), LayerKind(attention="mla", ffn="moe")
    assert attention_flops(config, dense, 131072) > 1.5 * attention_flops(config, sparse, 131072)
    assert attention_flops(config, dense, 2048) < attention_flops(config, sparse, 2048)
    rows = {row["kind"]: row for row in plan(load_recipe("glm5"))["attention"]}
    assert set(rows) == {"dsa", "mla, for comparison"}
    # Even forward only, where the indexer reads every key and attention 2,048.
    seen, chosen = mean_keys(131072, None), mean_keys(131072, 2048)
    assert pair_flops(config, sparse) * seen > 1.5 * (pair_flops(config, sparse) * chosen + index_flops(config) * seen)


def test_mean_keys_by_brute_force() -> None:
    for length, limit in ((7, None), (7, 3), (5, 9)):
        brute = [min(t + 1, limit or length) for t in range(length)]
        assert mean_keys(length, limit) == pytest.approx(sum(brute) / length)


def test_prediction_modules_are_counted_by_depth_and_held_once_when_shared() -> None:
    plain, shared = MODELS["stock"], MODELS["stock"].model_copy(update={"mtp": MTPConfig(depth=3, share=True)})
    separate = MODELS["stock"].model_copy(update={"mtp": MTPConfig(depth=3)})
    assert parameters(separate).mtp == 3 * parameters(shared).mtp
    assert flops(shared, 32).total == flops(separate, 32).total > 1.5 * flops(plain, 32).total


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 4, "norm_place": "sandwich", "attention_gate": True}, {"pattern": (LayerKind(ffn="relu2"),)}]
)
def test_activations_are_those_that_autograd_keeps(changes: dict[str, Any]) -> None:
    """Norms without gains: on a CPU one with a gain keeps its result twice, which fused norms on a GPU do not."""
    config = ModelConfig(**(BASE | {"n_kv_heads": 4, "norm_weight": False} | changes))
    model, kept = Transformer(config), dict[int, int]()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    B, T = 2, 64
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(torch.zeros(B, T, dtype=torch.long))
    planned = B * T * (sum(activation_numbers(config, kind) for kind in config.layers) + 2 * config.dim)
    assert hidden.requires_grad and planned == pytest.approx(sum(kept.values()) / 4, rel=0.06)


def test_a_layout_divides_what_it_says() -> None:
    config = MODELS["sparse"]
    one = memory(config, ParallelConfig(), rows=2, length=64, optimizer="adamw")
    assert one.states == 3 * 4 * parameters(config).total
    sharded = memory(config, ParallelConfig(fsdp=4), rows=2, length=64, optimizer="adamw")
    assert sharded.states == one.states / 4 and sharded.activations == one.activations
    experts = memory(config, ParallelConfig(ep=2), rows=2, length=64, optimizer="muon")
    plain = memory(config, ParallelConfig(), rows=2, length=64, optimizer="muon")
    assert plain.masters - experts.masters == parameters(config).routed / 2 * 4
    assert memory(config, ParallelConfig(cp=2), rows=2, length=64, optimizer="muon").activations == one.activations / 2
    assert memory(config, ParallelConfig(), rows=2, length=64, optimizer="muon", recompute=True).activations < one.activations
    assert memory(config, ParallelConfig(), rows=2, length=64, optimizer="muon", head_chunk=16).logits == one.logits / 24


def test_every_recipe_can_be_planned_without_torch() -> None:
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    code = f"import sys, trainer.plan.costs as p\nfor n in {names!r}: p.door(n, ['plan.gpu=H200'], True)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plan_is_shown_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    document = costs.door("glm5", ["plan.gpu=H100"], as_json=False)
    shown = capsys.readouterr().out
    by_kind = {row["kind"]: row["causal"][131072] for row in document["attention"]}
    ratio = by_kind["mla, for comparison"] / by_kind["dsa"]
    assert ratio > 1.5 and f"costs {ratio:.1f} times fewer FLOPs than mla at T = 131072" in shown
    assert (
        costs.number(document["parameters"]["total"]) in shown and f"{document['throughput']['tokens_per_s_gpu']:,.0f}" in shown
    )
    assert [costs.number(x) for x in (999, 1.24e9, 6.55e8, 2.5e12)] == ["999", "1.24 B", "655.00 M", "2.50 T"]
    published = costs.door("olmo3-7b", [], as_json=False)["throughput"]
    assert f"(ratio {published['ratio']:.3f})" in capsys.readouterr().out
    costs.door("olmo3-7b", [], as_json=True)
    assert capsys.readouterr().out == "", "whoever wants the document gets no table"


def test_attention_runs_forward_only_while_an_indexer_warms_up() -> None:
    sparse = MODELS["sparse"]
    warm = sparse.model_copy(update={"dsa": sparse.dsa.model_copy(update={"stage": "warmup"})})
    kind = next(k for k in sparse.layers if k.attention == "dsa")
    long = 64 * sparse.dsa.top_k
    dense = attention_flops(sparse, kind.model_copy(update={"attention": "mla"}), long, "causal")
    assert dense / 3 < attention_flops(warm, kind, long, "causal") < dense
