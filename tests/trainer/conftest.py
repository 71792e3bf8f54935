"""Two small models that between them use every part: the stock architecture and the one with extra parts."""

from __future__ import annotations

import pytest
import torch

from trainer.model.config import InitConfig, LayerKind, ModelConfig

KINDS = {
    "stock": ModelConfig(vocab_size=61, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=64),
    "smear": ModelConfig(
        vocab_size=61,
        dim=32,
        n_heads=4,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=48,
        max_positions=64,
        pattern=(LayerKind(ffn="relu2"), LayerKind(position="none")),
        attention_scale=12 / 8,
        smear=2,
        embedding_norm=True,
        logit_gain=True,
        norm_weight=False,
        init=InitConfig(scheme="zero_out", embedding_std=0.5),
    ),
}


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Each of them in turn."""
    return KINDS[request.param]


@pytest.fixture
def stock() -> ModelConfig:
    """The one that Qwen3 computes too."""
    return KINDS["stock"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the learner runs."""
    torch.set_num_threads(1)
