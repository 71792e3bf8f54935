"""What a recipe cannot say is refused before anything starts, with both values; its nearest neighbours are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import ConfigError
from trainer.config import Recipe, load_recipe, parse, parse_train
from trainer.model.config import ModelConfig, YarnConfig

RECIPE: dict[str, Any] = {"name": "test", "model": {"max_positions": 384}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("pretrain.format={linear='fp8', recipe='block', backend='scaled_mm'}", "recipe block needs backend te, got scaled_mm"),
        ("engine.context=100", "context must be a multiple of 64 and slots of 8, got 100 and 64"),
        ("engine.slots=12", "got 320 and 12"),
        ("engine.context=448", r"model.max_positions must cover rows and context \(448\), got 384"),
        ("rollout.context.limit_tokens=384", "engine.context must hold rollout.context.limit_tokens = 384, got 320"),
        ("pretrain.batch.stages=[[1, 1]]", "start at 0 tokens and ascend"),
        ("model.head_dim=9", "head_dim must be even for rotary positions, got 9; use 10"),
        ("model.pattern=[]", "at least one layer kind"),
        (
            "model.first_layers=[{}, {}, {}]",
            "model: first_layers.*n_layers = 2, got 3 first and 0 last; name fewer$",
        ),
        ("model.ropes=[{name='far', theta=1e4}, {name='far', theta=1e5}]", r"names of their own.*\['far', 'far'\]"),
        ("model.pattern=[{position='far'}]", "position must be one of none, rope, got 'far'"),
        ("model.pattern=[{attention='mla', position='none'}]", "a rotary position, got rope_dim 16, position 'none'"),
        ("model.pattern=[{attention='mla', window=4}]", "latent attention has no window, got 4"),
        ("model.pattern=[{attention='dsa'}]", "needs mla.q_latent and dsa.dim >= mla.rope_dim, got q_latent None"),
        ("model.moe={experts=4, groups=4, groups_kept=4, top_k=2}", "needs two experts to be scored, got 4 in 4"),
        ("parallel.tp=3", "tp must divide model.vocab_size, got 3 and 640"),
    ],
)
def test_impossible_values_are_refused_with_both_of_them(change: str, says: str) -> None:
    parse_train("pretrain", {"recipe": RECIPE, "corpus": "c"})
    with pytest.raises(ConfigError, match=says):
        parse_train("pretrain", {"recipe": RECIPE, "corpus": "c", "overrides": [change]})


@pytest.mark.parametrize(
    ("stage", "given", "says"),
    [
        ("midtrain", {"start": "x", "sources": {"web": "w"}}, r"got 1 sources and a recipe without a \[midtrain\] table"),
        ("anneal", {"start": "x"}, r"got 0 sources and a recipe without a \[anneal\] table"),
        ("sft", {"start": "x"}, "sft needs demonstrations, got none"),
        ("sft", {"demonstrations": "d"}, "sft needs a checkpoint to start from, got none"),
        ("sfx", {}, "stage"),
    ],
)
def test_a_stage_names_what_it_lacks(stage: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_train(stage, {"recipe": RECIPE, **given})


def test_recipes_are_named_or_are_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 'tyni', which is none; use .*tiny.* or a path to a \.toml"):
        load_recipe("tyni")
    mine = tmp_path / "mine.toml"
    mine.write_text("[model]\ndim = 32\n[model")
    with pytest.raises(ConfigError, match=r"mine\.toml is not TOML"):
        load_recipe(mine)
    mine.write_text("model = { dim = 32, max_positions = 384 }\n")
    assert (load_recipe(mine).name, load_recipe(str(mine)).model.dim) == ("mine", 32)


def test_the_models_vocabulary_is_the_tokenizers_unless_named() -> None:
    assert parse(Recipe, RECIPE, "").model.vocab_size == 640
    assert parse(Recipe, RECIPE | {"tokenizer": {"vocab_size": 300}}, "").model.vocab_size == 300
    assert parse(Recipe, RECIPE | {"model": {"max_positions": 384, "vocab_size": 512}}, "").model.vocab_size == 512


def test_layers_at_both_ends_need_room_for_both() -> None:
    assert len(ModelConfig(vocab_size=8, n_layers=2, first_layers=({},), last_layers=({},)).layers) == 2  # type: ignore[arg-type]


def test_yarns_gain_is_the_one_that_is_given() -> None:
    given = {"factor": 4.0, "original_positions": 64}
    assert YarnConfig.model_validate(given | {"attention_factor": 1.5, "mscale": 1, "mscale_all": 2}).table_gain == 1.5
    assert YarnConfig.model_validate(given | {"mscale": 0.7, "mscale_all": 0.7}).table_gain == 1
    assert YarnConfig.model_validate(given).table_gain == pytest.approx(1.1386294)
