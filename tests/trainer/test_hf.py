"""Ten families agree with `transformers`: logits in float64, every gradient in float32, packing, and folders both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gymsmith.errors import ConfigError, CorruptCheckpoint, NotFound, UserError
from trainer import checkpoint
from trainer.data import tokenizer
from trainer.export import export
from trainer.hf import importer
from trainer.hf.document import essence, family_of, read, write
from trainer.hf.families import FAMILIES
from trainer.model.rope import Rope, table

transformers = pytest.importorskip("transformers", reason="install the dev extra: transformers is the oracle of imports")
oracles: Any = pytest.importorskip("trainer.hf.oracles")
IDS = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))
LANDED = ("Qwen3", "SmolLM3", "Olmo3", "Gemma2")
each_family = pytest.mark.parametrize("family", LANDED)


@each_family
def test_logits_in_float64_follow_the_oracles_casts(family: str) -> None:
    theirs = oracles.oracle(family, torch.float64)
    ours = oracles.mirror(theirs, torch.float64)
    ours.follow_oracle()
    with torch.no_grad():
        difference = (ours(IDS) - theirs(input_ids=IDS).logits).abs().max()
    assert difference <= 1e-10


@each_family
def test_logits_in_float64_equal_an_oracle_without_casts(family: str) -> None:
    """The other way round: our model as it is, and an oracle whose requests for float32 are answered in float64."""
    with oracles.lifted():
        theirs = oracles.oracle(family, torch.float64)
        with torch.no_grad():
            expected = theirs(input_ids=IDS).logits
    ours = oracles.mirror(theirs, torch.float64)
    with torch.no_grad():
        assert (ours(IDS) - expected).abs().max() > 1e-9, "control: rotary tables in float32 show"
        for rope in ours.modules():
            if isinstance(rope, Rope):
                rope.cos, rope.sin = table(rope.config, rope.channels, rope.max_positions)
        assert (ours(IDS) - expected).abs().max() <= 1e-10


@each_family
def test_gradients_of_every_parameter(family: str) -> None:
    theirs = oracles.oracle(family)
    ours = oracles.mirror(theirs, torch.float32)
    theirs(input_ids=IDS, labels=IDS).loss.backward()
    F.cross_entropy(ours(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    pairs = oracles.gradients(ours, theirs)
    trained = [n for n, p in theirs.named_parameters() if p.requires_grad and "indexer" not in n]
    assert sorted(pairs) == sorted(trained)
    for name, (got, expected) in pairs.items():
        assert (got - expected).norm() <= 1e-4 * expected.norm(), name


@each_family
def test_packed_documents_equal_separate_forwards(family: str) -> None:
    ours = oracles.mirror(oracles.oracle(family), torch.float64)
    lengths = (17, 9, 14)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ids = IDS[:1]
    with torch.no_grad():
        packed = ours(ids, positions, documents)[0]
        apart = torch.cat([ours(part)[0] for part in ids.split(lengths, 1)])
    assert (packed - apart).abs().max() <= 1e-10


WORDS = tokenizer.train(["a b"], 300)


def folder_of(family: str, path: Path, **changes: Any) -> Path:
    """A folder that `transformers` wrote, with a tokenizer that fits."""
    size = WORDS.get_vocab_size() + 5
    theirs = oracles.oracle(family, vocab_size=size, **changes)
    theirs.save_pretrained(path)
    (path / "tokenizer.json").write_text(WORDS.to_str())
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@each_family
def test_folders_come_back_bit_by_bit(family: str, tmp_path: Path) -> None:
    given = folder_of(family, tmp_path / "given")
    found = importer.bring_in(given)
    saved = checkpoint.save(tmp_path / "c", 0, found.model, tokenizer=found.words, meta=found.meta)
    first = export(saved, tmp_path / "first")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(first)
    assert type(theirs).__name__ == f"{family}ForCausalLM"
    before = oracles.oracle(family, vocab_size=theirs.config.vocab_size).state_dict()
    assert before.keys() == theirs.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text((first / "tokenizer.json").read_text())
    again = importer.bring_in(tmp_path / "theirs")
    assert checkpoint.weights_digest(again.model) == checkpoint.weights_digest(found.model)
    second = checkpoint.save(tmp_path / "d", 0, again.model, tokenizer=again.words, meta=again.meta)
    exported = export(second, tmp_path / "second")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (exported / name).read_bytes() == (first / name).read_bytes(), name
    assert (first / "chat_template.jinja").read_text() == "{{ messages }}"


def test_every_family_takes_its_own_models_and_no_other() -> None:
    for name in FAMILIES:
        document = json.loads(oracles.config_of(name).to_json_string(use_diff=False)) | {"architectures": [f"{name}ForCausalLM"]}
        family, model = read(document, name)
        assert family_of(model) is family
        assert essence(read(write(family, model), name)[1]) == essence(model)
    assert family_of(model.model_copy(update={"attention_softcap": 9.0})) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "expected architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "multiple of n_kv_heads"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type"),
        ({"layer_types": ["full_attention"]}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"vocab_size": 200}, "token ids"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = folder_of("Qwen3", tmp_path / "given")
    document = json.loads((given / "config.json").read_text()) | changes
    (given / "config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        importer.bring_in(given)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    given = folder_of("Gemma2", tmp_path / "given")
    weights = given / "model.safetensors"
    whole = weights.read_bytes()
    importer.bring_in(given)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptCheckpoint, match="whole safetensors"):
        importer.bring_in(given)
    from safetensors.torch import load, save_file

    tensors = load(whole)
    gone = "model.layers.2.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != gone}, weights)
    with pytest.raises(CorruptCheckpoint, match=f"1 are missing: {gone}"):
        importer.bring_in(given)
    save_file(tensors | {"model.layers.0.extra": torch.zeros(1)}, weights)
    with pytest.raises(CorruptCheckpoint, match="have no place"):
        importer.bring_in(given)
    save_file(tensors | {"model.layers.4.eh_proj.weight": torch.zeros(1)}, weights)
    assert importer.bring_in(given).skipped == ["model.layers.4.eh_proj.weight"], "further prediction is left out, and said"
    save_file(tensors | {"model.norm.weight": torch.ones(63)}, weights)
    with pytest.raises(CorruptCheckpoint, match=r"\(64,\), got \(63,\)"):
        importer.bring_in(given)
    save_file(tensors | {"model.norm.weight": torch.ones(64).to(torch.float8_e4m3fn)}, weights)
    with pytest.raises(ConfigError, match="float8_e4m3fn"):
        importer.bring_in(given)
    (given / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "model-00001.safetensors"}}')
    with pytest.raises(CorruptCheckpoint, match="missing: model-00001"):
        importer.bring_in(given)
    (given / "model.safetensors.index.json").unlink()
    weights.rename(given / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        importer.bring_in(given)
    (given / "config.json").unlink()
    with pytest.raises(NotFound, match=r"config\.json"):
        importer.bring_in(given)
