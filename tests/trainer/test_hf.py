"""Ten families agree with `transformers`: logits in float64, every gradient in float32, packing, and folders both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file, save_file
from tokenizers import Tokenizer

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, CorruptCheckpoint, NotFound, UserError
from gymsmith.ids import ulid
from gymsmith.schema import Job, Run, State
from gymsmith.store import Store
from gymsmith.worker import Context
from trainer import checkpoint, tasks
from trainer.config import parse_train
from trainer.data import tokenizer
from trainer.export import export
from trainer.hf import importer
from trainer.hf.document import essence, family_of, read, write
from trainer.hf.families import FAMILIES
from trainer.hf.folder import write_weights
from trainer.hf.names import to_theirs
from trainer.hf.vocabulary import add_special_tokens, shares
from trainer.learner import Learner
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.rope import Rope, table
from trainer.model.transformer import Transformer
from trainer.precision import serve

transformers = pytest.importorskip("transformers", reason="install the dev extra: transformers is the oracle of imports")
oracles: Any = pytest.importorskip("trainer.hf.oracles")
IDS = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(0))
each_family = pytest.mark.parametrize("family", list(FAMILIES))


@each_family
def test_logits_in_float64_follow_the_oracles_casts(family: str) -> None:
    theirs = oracles.oracle(family, torch.float64)
    ours = oracles.mirror(theirs, torch.float64)
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
        assert (ours(IDS) - expected).abs().max() > 1e-8, "control: the casts show"
        ours.follow_oracle()
        assert (ours(IDS) - expected).abs().max() <= 1e-10


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
    assert family_of(model.model_copy(update={"moe": model.moe.model_copy(update={"expert_bias": True})})) is None


OLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen3": ({"rope_theta": 5e5}, {}),
    "SmolLM3": ({"rope_theta": 2e6, "rope_scaling": None, "num_key_value_heads": None}, {}),
    "Olmo3": ({"rope_theta": 5e5}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "Glm4Moe": ({"rope_theta": 1e6, "partial_rotary_factor": 0.25}, {}),
    "DeepseekV3": ({"rope_theta": 1000.0}, {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 8}),
}


@pytest.mark.parametrize("family", list(OLD))
def test_older_files_mean_what_transformers_takes_them_for(family: str) -> None:
    keys, scaling = OLD[family]
    older = oracles.SMALL | oracles.CONFIGS[family] | keys | ({"rope_scaling": scaling} if scaling else {})
    older.pop("rope_parameters", None)
    theirs = getattr(transformers, f"{family}Config")(**json.loads(json.dumps(older)))
    named = {"architectures": [f"{family}ForCausalLM"]}
    newer = json.loads(theirs.to_json_string(use_diff=False)) | named
    assert essence(read(older | named, family)[1]) == essence(read(newer, family)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "expected architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "multiple of n_kv_heads"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
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
    (given / "config.json").write_text('["Gemma2ForCausalLM"]')
    with pytest.raises(CorruptCheckpoint, match="expected a JSON object, got list"):
        importer.bring_in(given)
    (given / "config.json").write_text('{"architectures": ')
    with pytest.raises(CorruptCheckpoint, match=r"config\.json is not JSON"):
        importer.bring_in(given)
    (given / "config.json").unlink()
    with pytest.raises(NotFound, match=r"config\.json"):
        importer.bring_in(given)


@pytest.mark.parametrize("rule", ["mean", "normal"])
@pytest.mark.parametrize("family", ["SmolLM3", "Olmo3"], ids=["tied", "untied"])
def test_new_special_tokens_get_rows(family: str, rule: Any, tmp_path: Path) -> None:
    found = importer.bring_in(folder_of(family, tmp_path / "given"))
    old = found.model.config.vocab_size
    known = WORDS.get_vocab_size()
    assert old == known + 5, "five spare rows, which the first new tokens take"
    tokens = ["<|pad|>", *(f"<|new{i}|>" for i in range(8))]
    grown, words = add_special_tokens(found.model, found.words, tokens, rule, seed=4, multiple=8)
    again, _ = add_special_tokens(found.model, found.words, tokens, rule, seed=4, multiple=8)
    assert checkpoint.weights_digest(grown) == checkpoint.weights_digest(again), "the same rows every time"
    ids = [Tokenizer.from_str(words).token_to_id(t) for t in tokens]
    assert ids == [WORDS.token_to_id("<|pad|>"), *range(known, known + 8)]
    assert Tokenizer.from_str(words).encode("a<|new3|>b").ids[1] == known + 3
    size = grown.config.vocab_size
    assert size == -(-(known + 8) // 8) * 8 and grown.config.tied_head == (family == "SmolLM3")
    tables = {"embedding.token.weight"} | ({"head.weight"} if family == "Olmo3" else set())
    before = checkpoint.own_weights(found.model)
    for name, tensor in checkpoint.own_weights(grown).items():
        if name not in tables:
            assert torch.equal(tensor, before[name]), name
            continue
        assert tensor.shape == (size, 64) and torch.equal(tensor[:known], before[name][:known])
        mean = before[name][:known].double().mean(0).float()
        assert (rule == "mean") == all(torch.equal(row, mean) for row in tensor[known:])
    with torch.no_grad():
        assert torch.equal(grown(IDS)[..., :known], found.model(IDS)[..., :known]), "what was there is as it was"
    share = shares(grown)
    held = size * 64 * (1 if grown.config.tied_head else 2)
    total = sum(p.numel() for p in grown.parameters())
    assert (share["embedding_parameters"], share["parameters"]) == (held, total)
    assert share["embedding_share"] == round(held / total, 4)
    saved = checkpoint.save(tmp_path / "c", 0, grown, tokenizer=words, meta=found.meta)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export(saved, tmp_path / "out"))
    assert theirs.config.vocab_size == size
    with torch.no_grad():
        assert (theirs(input_ids=torch.tensor([ids])).logits - grown(torch.tensor([ids]))).abs().max() <= 1e-4


def test_half_precision_and_shards_lose_nothing(tmp_path: Path) -> None:
    found = importer.bring_in(folder_of("GptOss", tmp_path / "given"))
    with torch.no_grad():
        for p in found.model.parameters():
            p.copy_(p.bfloat16())
    saved = checkpoint.save(tmp_path / "c", 0, found.model, tokenizer=found.words, meta=found.meta)
    out = export(saved, tmp_path / "out", dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    (out / "model.safetensors").unlink()
    write_weights(out, tensors, shard_bytes=60_000)
    assert len(list(out.glob("model-*.safetensors"))) > 5
    again = importer.bring_in(out)
    assert checkpoint.weights_digest(again.model) == checkpoint.weights_digest(found.model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(input_ids=IDS).logits - found.model(IDS)).abs().max() <= 1e-4
        checkpoint.own_weights(found.model)["blocks.1.ffn.bias"][0] = 1
    moved = checkpoint.save(tmp_path / "c", 1, found.model, tokenizer=found.words, meta=found.meta)
    with pytest.raises(UserError, match="selection bias"):
        export(moved, tmp_path / "moved")


def test_eight_bits_for_serving_come_back_as_what_they_stand_for(tmp_path: Path) -> None:
    found = importer.bring_in(folder_of("DeepseekV3", tmp_path / "given", moe_intermediate_size=256))
    saved = checkpoint.save(tmp_path / "c", 0, found.model, tokenizer=found.words, meta=found.meta)
    out = export(saved, tmp_path / "out", dtype="bfloat16", serving="fp8")
    weights = to_theirs(checkpoint.own_weights(found.model), "DeepseekV3", 8)
    expected = serve.restored(serve.fp8(weights).tensors)
    stored = load_file(out / "model.safetensors")
    assert stored["model.layers.1.mlp.experts.0.up_proj.weight"].dtype is torch.float8_e4m3fn
    assert stored["model.layers.1.mlp.experts.0.up_proj.weight_scale_inv"].shape == (2, 1)
    assert {stored[n].dtype for n in ("lm_head.weight", "model.norm.weight")} == {torch.bfloat16}
    again = to_theirs(checkpoint.own_weights(importer.bring_in(out).model), "DeepseekV3", 8)
    for name, tensor in again.items():
        same = expected[name] if stored[name].dtype is torch.float8_e4m3fn else weights[name].bfloat16().float()
        assert torch.equal(tensor, same), name
    packed = export(saved, tmp_path / "packed", serving="int4")
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    with pytest.raises(ConfigError, match="compressed-tensors"):
        importer.bring_in(packed)


def test_a_model_of_no_family_is_refused_whole(tmp_path: Path) -> None:
    mixture = ModelConfig(vocab_size=WORDS.get_vocab_size(), pattern=(LayerKind(ffn="moe", window=9),), attention_softcap=3.0)
    saved = checkpoint.save(tmp_path / "c", 0, Transformer(mixture), tokenizer=WORDS.to_str(), meta={})
    with pytest.raises(UserError, match="train one of these architectures"):
        export(saved, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_a_folder_becomes_a_run_and_leaves_again(tmp_path: Path) -> None:
    given = folder_of("Qwen3", tmp_path / "given")
    with Store.open(Settings(home=tmp_path / "home")) as store:
        runs = [Run(id=ulid(), kind="import") for _ in range(2)]
        for run in runs:
            store.put_run(run)
        job, _ = store.put_job(Job(id=ulid(), kind="import_model", queue="train"))
        claimed = store.claim(job.id, "test")
        assert claimed is not None
        ctx = Context(claimed, store)
        order = {"run_id": runs[0].id, "folder": str(given), "chat": True, "multiple": 16}
        told = tasks.import_model(order, ctx)
        assert (told["architecture"], told["tied"], told["vocab_size"]) == ("Qwen3ForCausalLM", True, 272)
        row = store.run(runs[0].id)
        assert (row.state, row.checkpoint, row.summary["tokenizer"]) == (State.SUCCEEDED, told["checkpoint"], told["tokenizer"])
        assert (store.settings.tokenizers_dir / told["tokenizer"]).is_file()
        shown = tmp_path / "demonstrations.jsonl"
        shown.write_text(json.dumps({"instruction": "show a", "steps": [["cat a", "b"], ["exit", ""]]}) + "\n")
        recipe = {"name": "test", "model": {"max_positions": 384}, "sft": {"epochs": 2}, "engine": {"slots": 8}}
        taught = Run(id=ulid(), kind="sft", config={"recipe": recipe, "start": row.checkpoint, "demonstrations": str(shown)})
        store.put_run(taught)
        Learner(store, taught, parse_train("sft", taught.config)).learn()
        out = export(store.settings.home / store.run(taught.id).checkpoint, tmp_path / "taught")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert type(theirs).__name__ == "Qwen3ForCausalLM" and theirs.config.vocab_size == 272
        words = transformers.AutoTokenizer.from_pretrained(out)
        assert words.eos_token_id == theirs.config.eos_token_id == words.convert_tokens_to_ids("<|end|>")
        (given / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        with pytest.raises(UserError, match="LlamaForCausalLM"):
            tasks.import_model(order | {"run_id": runs[1].id}, ctx)
        assert store.run(runs[1].id).state is State.FAILED


def test_tokenizers_that_are_none_are_refused(tmp_path: Path) -> None:
    given = folder_of("Qwen3", tmp_path / "given")
    (given / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CorruptCheckpoint, match="is no tokenizer"):
        importer.bring_in(given)
    (given / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"expected a tokenizer\.json"):
        importer.bring_in(given)


@pytest.mark.parametrize(
    ("family", "name", "says"),
    [
        ("DeepseekV3", "model.layers.1.mlp.experts.3.up_proj.weight", "and its like: expected one shape"),
        ("GptOss", "model.layers.1.mlp.experts.gate_up_proj", "expected experts' matrices"),
    ],
)
def test_experts_of_another_shape_are_refused(family: str, name: str, says: str, tmp_path: Path) -> None:
    given = folder_of(family, tmp_path / "given")
    importer.bring_in(given)
    tensors = load_file(given / "model.safetensors")
    save_file(tensors | {name: tensors[name].flatten()[:-1].clone()}, given / "model.safetensors")
    with pytest.raises(CorruptCheckpoint, match=says):
        importer.bring_in(given)


def test_what_a_family_cannot_say_is_refused() -> None:
    weights = {"blocks.0.attention.sinks": torch.zeros(2)}
    with pytest.raises(UserError, match=r"Qwen3ForCausalLM has no place for the tensor blocks\.0\.attention\.sinks"):
        to_theirs(weights, "Qwen3")
    assert list(to_theirs(weights, "GptOss")) == ["model.layers.0.self_attn.sinks"]
    glm = oracles.SMALL | oracles.CONFIGS["GlmMoeDsa"] | {"architectures": ["GlmMoeDsaForCausalLM"]}
    read(glm, "glm")
    with pytest.raises(ConfigError, match="got 'shared' ones"):
        read(glm | {"index_topk_freq": 4}, "glm")


def test_tokens_without_a_name_or_a_row_are_refused() -> None:
    size = WORDS.get_vocab_size()
    small = ModelConfig(vocab_size=size - 1, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16)
    with pytest.raises(UserError, match=rf"expected token ids below {size - 1}, the rows of the table, got {size - 1}"):
        add_special_tokens(Transformer(small), WORDS.to_str(), ["<|new|>"])
    with pytest.raises(UserError, match="to have a name"):
        add_special_tokens(Transformer(small.model_copy(update={"vocab_size": size})), WORDS.to_str(), ["<|new|>", ""])
