"""Multi-token prediction: what each module sees and predicts, across document edges."""

from __future__ import annotations

import pytest
import torch

from trainer.data.packing import IGNORE
from trainer.model.config import LayerKind, ModelConfig, MTPConfig
from trainer.model.mtp import ahead, targets_ahead
from trainer.model.transformer import Transformer
from trainer.optim.clip import qk_clip

CONFIG = ModelConfig(
    vocab_size=29, dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=24, max_positions=32, smear=1
)
LENGTHS = (5, 1, 8, 2)


def built(mtp: MTPConfig | None) -> Transformer:
    model = Transformer(CONFIG.model_copy(update={"mtp": mtp}), seed=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6 if p.ndim > 1 else 1)
    return model


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 29, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(LENGTHS)])[None]
    return ids, positions, documents


def test_labels_by_hand() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 0]])
    targets = torch.tensor([[11, 12, 13, IGNORE, 21, IGNORE, IGNORE]])
    i = IGNORE
    assert targets_ahead(targets, positions, 0).tolist() == [[12, 13, i, i, i, i, i]]
    assert targets_ahead(targets, positions, 1).tolist() == [[13, i, i, i, i, i, i]]
    shifted, valid = ahead(targets, positions, 9, 0)
    assert not shifted.any() and not valid.any()


@pytest.mark.parametrize("share", [False, True])
def test_modules_predict_within_documents(share: bool) -> None:
    model = built(MTPConfig(depth=3, share=share))
    ids, positions, documents = packed()
    together = model.outputs(ids, positions, documents)
    assert len(together.mtp) == 3 and len(model.mtp) == (1 if share else 3)
    start = 0
    for n in LENGTHS:
        alone = model.outputs(ids[:, start : start + n])
        for k, (a, b) in enumerate(zip(together.mtp, alone.mtp, strict=True)):
            # The last k + 1 positions have nothing left to read.
            usable = max(0, n - k - 1)
            difference = a[:, start : start + usable] - b[:, :usable]
            assert usable == 0 or difference.abs().max() < 1e-10
        start += n


def test_module_k_sees_token_k_and_no_later_one() -> None:
    model = built(MTPConfig(depth=2))
    ids = packed()[0]
    before = model.outputs(ids).mtp
    ids[0, 9] = (ids[0, 9] + 1) % 29
    for k, (a, b) in enumerate(zip(before, model.outputs(ids).mtp, strict=True)):
        moved = (a - b).abs().amax(-1)[0] > 1e-12
        assert not moved[: 9 - k - 1].any() and moved[9 - k - 1]


def test_without_modules_nothing_changes() -> None:
    ids, positions, documents = packed()
    plain, extended = built(None), built(MTPConfig(depth=2))
    out = plain.outputs(ids, positions, documents)
    assert out.mtp == [] and out.losses == {}
    assert torch.equal(out.hidden, extended.outputs(ids, positions, documents).hidden)
    assert torch.equal(out.hidden, plain.hidden(ids, positions, documents))
    own = dict(plain.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in extended.named_parameters() if name in own)


def test_names_and_kind_of_a_module() -> None:
    config = CONFIG.model_copy(update={"mtp": MTPConfig(depth=1), "last_layers": (LayerKind(ffn="moe"),)})
    names = {name for name, _ in Transformer(config).named_parameters() if name.startswith("mtp.")}
    assert {"mtp.0.hidden_norm.weight", "mtp.0.token_norm.weight", "mtp.0.merge.weight", "mtp.0.norm.weight"} < names
    assert "mtp.0.block.ffn.experts.gate" in names


def test_clipping_finds_the_layer_of_every_depth() -> None:
    config = CONFIG.model_copy(update={"mtp": MTPConfig(depth=3, share=True), "qk_norm": False, "n_kv_heads": 2})
    model = Transformer(config, seed=3)
    seen = model.outputs(packed()[0], inspect=True).statistics["max_logit"]
    assert set(seen) == {0, 1, 2, 3, 4}
    before = model.mtp[0].block.attention.q.weight.clone()
    told = qk_clip(model, {4: torch.tensor([200.0, 1.0])}, 100.0)
    changed = (model.mtp[0].block.attention.q.weight != before).any(1)
    assert told["clipped_heads"] == 1 and changed[:8].all() and not changed[8:].any()


def test_rows_beyond_the_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="max_positions = 32 tokens, got 33"):
        Transformer(CONFIG)(torch.zeros(1, 33, dtype=torch.long))
