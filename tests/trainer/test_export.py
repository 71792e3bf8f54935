"""Exports load in transformers with equal logits, stock models and those with a modeling file of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from context_mgmt.chat import Chat
from gymsmith.errors import Conflict
from trainer import checkpoint
from trainer.data import tokenizer
from trainer.export import export
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="install the dev extra: transformers is the oracle of exports")
WORDS = tokenizer.train(["cat notes.txt", "echo 4711 > a.conf"] * 3, 300)


def random_model(config: ModelConfig) -> Transformer:
    """A model in which no weight is zero, one or small."""
    model = Transformer(config.model_copy(update={"vocab_size": WORDS.get_vocab_size()}), 3)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_export_has_equal_logits(config: ModelConfig, tied: bool, tmp_path: Path) -> None:
    if tied and not config.stock:
        config = config.model_copy(update={"logit_gain": False})
    model = random_model(config.model_copy(update={"tied_head": tied and config.stock}))
    saved = checkpoint.save(tmp_path / "c", 5, model, tokenizer=WORDS.to_str(), meta={})
    folder = export(saved, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=not config.stock)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if config.stock else "GymsmithForCausalLM")
    ids = torch.randint(0, model.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (theirs(input_ids=ids).logits - model(ids)).abs().max()
    assert difference <= 1e-5
    assert (folder / "modeling_gymsmith.py").exists() != config.stock
    assert ("trust_remote_code" in (folder / "README.md").read_text()) != config.stock
    if not tied:
        words = transformers.AutoTokenizer.from_pretrained(folder)
        assert words("cat notes.txt")["input_ids"] == WORDS.encode("cat notes.txt").ids
        prompt = words.apply_chat_template([{"role": "user", "content": "do it"}], tokenize=True, return_dict=False)
        assert prompt == Chat(WORDS).start("do it")
        made = theirs.generate(ids[:1, :5], max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert made.shape == (1, 9)
    with pytest.raises(Conflict, match="name another"):
        export(saved, folder)
