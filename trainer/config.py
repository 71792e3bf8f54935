"""Every knob of training, as frozen models read from `recipes/*.toml`. Imports no torch.

A `Recipe` says how to train; a `TrainConfig` says what: stage, seed, data and the checkpoint to start from. Both are stored
with the run. Budgets count steps, never seconds. Long for a file, because a recipe is one document and people look a
knob up in one place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from context_mgmt.fold import FoldConfig
from gymsmith.errors import ConfigError
from trainer.model.config import MemoryConfig, ModelConfig, RopeConfig, Strict

RECIPES = Path(__file__).parent / "recipes"
Stage = Literal["pretrain", "midtrain", "anneal", "sft", "dpo", "rl"]
T = TypeVar("T", bound=Strict)


class TokenizerConfig(Strict):
    """Byte-level BPE, trained on the pre-training corpus."""

    vocab_size: int = Field(default=640, ge=300)


class OptimConfig(Strict):
    """Muon for hidden matrices, AdamW for the rest."""

    hidden: Literal["muon", "adamw"] = "muon"
    lr: float = Field(default=0.02, ge=0)
    """Of hidden matrices."""
    adam_lr: float = Field(default=4e-3, ge=0)
    """Of embeddings, head and norms."""
    gain_lr: float = Field(default=4e-3, ge=0)
    """Of the logit gain."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of Muon."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of hidden matrices only."""
    clip: float = Field(default=1.0, gt=0)
    """Global gradient norm."""
    freeze: tuple[str, ...] = ()
    """Regular expressions, matched at the start of parameter names, that do not train."""
    muon_precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the Newton-Schulz iteration; `auto` is bfloat16 where the CPU has instructions for it."""
    muon_scale: Literal["keller", "rms"] = "keller"
    """Of an orthogonalised update: max(1, rows / columns)^0.5, or 0.2 max(rows, columns)^0.5, whose entries have the size of
    AdamW's, so that its rate and decay serve."""
    muon_polynomial: Literal["quintic", "polar_express"] = "quintic"
    """Coefficients of the Newton-Schulz iteration."""
    muon_split: Literal["none", "projections", "heads"] = "none"
    """Which rows of an attention matrix are one matrix to Muon: all; those of one projection (Megatron's q | k | v); those of
    one head of one projection (GLM-5)."""
    adam_kernel: Literal["auto", "fused", "foreach"] = "auto"
    """Implementation of AdamW; `auto` is fused on GPUs and torch's own choice elsewhere."""
    adam_weight_decay: float = Field(default=0.0, ge=0)
    """Of an untied head, and of embeddings where `decay_embeddings` says so."""
    decay_embeddings: bool = False
    """Decay embeddings (and a tied head) too: the control arm of leaving them alone."""
    spike_sigma: float | None = Field(default=None, gt=0)
    """Skip an update whose loss or gradient norm exceeds the mean of the last 128 by so many deviations; 6 is usual. None: no."""
    qk_clip: float | None = Field(default=None, gt=0)
    """After an update, scale query and key weights of heads whose largest logit exceeds this; 100 is usual. None: no."""


class ScheduleConfig(Strict):
    """Warm-up, then a shape."""

    warmup_steps: int = Field(default=20, ge=0)
    shape: Literal["wsd", "cosine"] = "wsd"
    """Stable, then decay; or half a cosine from the end of the warm-up."""
    decay: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls."""
    decay_steps: int | None = Field(default=None, ge=0)
    """The same as a number of steps; None: by share."""
    fall: Literal["linear", "sqrt"] = "linear"
    """Of the decay: 1 - t, or 1 - t^0.5."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Multiplier that the fall would reach one step after the last."""


class BatchConfig(Strict):
    """Batch-size warm-up: micro-batches per update, as a function of tokens trained on."""

    stages: tuple[tuple[int, int], ...] = ((0, 1),)
    """(from so many tokens on, micro-batches per update), ascending; the first starts at 0."""
    sqrt_rate: bool = False
    """Multiply the rate by (micro-batches now / at the end)^0.5."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        tokens = [at for at, _ in self.stages]
        if not tokens or tokens[0] != 0 or sorted(set(tokens)) != tokens or min(n for _, n in self.stages) < 1:
            expected = "(tokens, micro-batches >= 1) pairs that start at 0 tokens and ascend"
            raise ValueError(f"stages must be {expected}, got {self.stages}; for example ((0, 1), (1000000, 2))")
        return self


class PrecisionConfig(Strict):
    """Number format of weights in products. Parameters and optimizer state stay float32 in each."""

    linear: Literal["bfloat16", "fp8", "int4"] = "bfloat16"
    """Of the linear layers that `modules` matches; everything else computes in bfloat16."""
    modules: str = r"blocks\.\d+\.(attention|ffn)\."
    """Regular expression, matched at the start of names, of linear layers that become FP8 or INT4. Routers never do."""
    backend: Literal["te", "scaled_mm", "reference"] = "scaled_mm"
    """Of FP8: Transformer Engine, torch._scaled_mm, or products of dequantised values."""
    recipe: Literal["current", "delayed", "block"] = "current"
    """Scales of FP8 from the tensor at hand, from the largest values of recent steps, or per block (Transformer Engine only)."""
    history: int = Field(default=16, ge=1)
    """Steps that delayed scaling remembers."""
    group: Literal[32, 128] = 32
    """Inputs that share a scale in INT4."""

    @model_validator(mode="after")
    def _able(self) -> Self:
        if self.recipe == "block" and self.backend != "te":
            raise ValueError(f"recipe block needs backend te, got {self.backend}; use current or delayed")
        return self


class SaveConfig(Strict):
    """When a run saves itself, beside its end."""

    every_steps: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    forever: int | None = Field(default=None, ge=1)
    """Checkpoints whose step is a multiple of this stay too: where anneal branches can begin. None: no."""
    background: bool = True
    """Write from a copy while training goes on; at most one is being written."""


class PhaseConfig(Strict):
    """A stretch of a stage with its own mix, row length and positions. What is not given stays as the stage says."""

    share: float = Field(default=1.0, gt=0)
    """Of the stage's steps; the phases' shares need not sum to one."""
    mix: dict[str, float]
    """Share of the tokens by source (`TrainConfig.sources`); they need not sum to one."""
    rows: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=2)
    """Rows longer than the model's positions extend them."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Another base from here on (ABF)."""
    ropes: tuple[RopeConfig, ...] | None = None
    """Other named encodings from here on, YaRN for example."""


class PretrainConfig(Strict):
    """Next-token prediction on packed documents."""

    steps: int = Field(default=1800, ge=1)
    rows: int = Field(default=16, ge=1)
    """Rows of a micro-batch."""
    batch: BatchConfig = BatchConfig()
    """Micro-batches per update; a micro-batch counts as rows x length tokens, padding included."""
    phases: tuple[PhaseConfig, ...] = ()
    """Mixes one after the other, the most valuable last. None: one phase in which each source has the share of its size."""
    window_rows: int = Field(default=1024, ge=1)
    """Rows that are packed together."""
    workers: int = Field(default=1, ge=1)
    """Threads that read."""
    ahead: int = Field(default=4, ge=1)
    """Micro-batches kept ready."""
    held_out_rows: int = Field(default=0, ge=0)
    """Rows of each source's held-out documents whose loss is measured at the end."""
    memory: MemoryConfig = MemoryConfig()
    length: int = Field(default=128, ge=2)
    """Tokens of a row."""
    observation_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on observation tokens; 1 is a plain language model."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of matrix products; `auto` is bfloat16 where the CPU has instructions for it."""
    format: PrecisionConfig | None = None
    """Of everything between float32 parameters and float32 gradients, instead of `precision`: bfloat16, FP8 or INT4."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    save: SaveConfig = SaveConfig()


class MidtrainConfig(PretrainConfig):
    """Pre-training that goes on from a checkpoint on better or longer documents; phases extend the context."""

    steps: int = Field(default=400, ge=1)
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=0, decay=1.0)


class AnnealConfig(Strict):
    """Branches off the plateau of a pre-training run: the rate falls to nothing on each candidate mix, and they are compared."""

    steps: int = Field(default=100, ge=1)
    """Of each branch; the rate falls over all of them."""
    candidates: dict[str, dict[str, float]] = Field(min_length=1)
    """Mixes by name: share of the tokens by source."""
    fall: Literal["linear", "sqrt"] = "linear"
    held_out_rows: int = Field(default=64, ge=1)
    """Rows of each source's held-out documents whose loss is compared."""
    attempts: int = Field(default=4, ge=1)
    """With demonstrations and environments, each branch goes on through SFT to so many attempts at each environment."""


class SFTConfig(Strict):
    """Next-token prediction on the commands of demonstrations."""

    epochs: int = Field(default=4, ge=1)
    demonstrations: int = Field(default=16, ge=1)
    """Demonstrations per update."""
    gain_shift: float = 0.0
    """Added to the logit gain afterwards; exp of it divides the policy's temperature."""
    optim: OptimConfig = OptimConfig(lr=0.01, adam_lr=3e-3, gain_lr=3e-3, freeze=("embedding", "head"))
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=5, decay=1.0)
    save: SaveConfig = SaveConfig()


class DPOConfig(Strict):
    """Direct preference optimisation on pairs of own rollouts of one environment, one passed and one failed."""

    environments: int = Field(default=48, ge=1)
    attempts: int = Field(default=8, ge=2)
    pairs_per_group: int = Field(default=2, ge=1)
    min_pairs: int = Field(default=16, ge=1)
    """With fewer pairs the stage leaves the weights alone and says so."""
    epochs: int = Field(default=1, ge=1)
    pairs: int = Field(default=16, ge=1)
    """Pairs per update."""
    beta: float = Field(default=0.1, gt=0)
    length_normalised: bool = False
    """Divide each side's log-ratio by its trained tokens."""
    optim: OptimConfig = OptimConfig(hidden="adamw", lr=2e-4, adam_lr=2e-4, gain_lr=2e-4, freeze=("embedding", "head"))
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=0, decay=0.0)


class RolloutConfig(Strict):
    """What a policy may produce and see in an episode; the payload of rollout jobs."""

    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=24, ge=1)
    """Tokens of one action."""
    max_turns: int = Field(default=6, ge=1)
    context: FoldConfig = FoldConfig()
    """What of an episode a prompt shows."""


class RLConfig(Strict):
    """GRPO (Shao et al., 2024) with DAPO's clip-higher and token-level loss, IcePop's gate, no KL."""

    steps: int = Field(default=80, ge=1)
    groups: int = Field(default=16, ge=1)
    """Environments per step."""
    attempts: int = Field(default=8, ge=2)
    """Rollouts per environment: the group that shares a baseline."""
    minibatches: int = Field(default=2, ge=1)
    """Optimizer updates per step."""
    advantage: Literal["normalised", "centered"] = "normalised"
    """(R - mean) / std, or R - mean."""
    std_eps: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.272, gt=0)
    icepop: tuple[float, float] = (0.5, 2.0)
    """Tokens whose trainer / engine probability ratio lies outside get no gradient; inside, the ratio stays as weight."""
    cell_floor: float = Field(default=0.2, gt=0)
    """A cell (family and level) with recent pass rate p is drawn with weight floor + 4 p (1 - p) + hard (1 - p)."""
    cell_hard: float = Field(default=0.0, ge=0)
    """How much what never passes is tried beside what passes now and then."""
    cell_decay: float = Field(default=0.8, ge=0, lt=1)
    """Memory of the recent pass rate, per group."""
    cell_start: float = Field(default=0.3, ge=0, le=1)
    """Pass rate that a cell is taken to have before its first group."""
    optim: OptimConfig = OptimConfig(lr=0.006, adam_lr=2e-3, gain_lr=2e-3, freeze=("embedding", "head"))
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=5, decay=0.4, final=0.15)
    save: SaveConfig = SaveConfig(every_steps=1)


class EngineConfig(Strict):
    """The embedded inference engine."""

    slots: int = Field(default=64, ge=8)
    """Sequences decoded together, and caches kept warm."""
    context: int = Field(default=320, ge=64)
    """Tokens a slot can hold; a multiple of 64."""
    chunk: int = Field(default=32, ge=8)
    """Prompt tokens of one sequence per forward pass."""
    prefill_batch: int = Field(default=12, ge=1)
    """Prompts that wait until so many are there ..."""
    prefill_wait: int = Field(default=6, ge=0)
    """... or so many decode steps went by, or nothing decodes."""
    batching: Literal["continuous", "static"] = "continuous"
    """`static` admits a new batch only when the last one is done: the control arm of the benchmark."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.context % 64 or self.slots % 8:
            got = f"{self.context} and {self.slots}"
            raise ValueError(f"context must be a multiple of 64 and slots of 8, got {got}; round them up")
        return self


class ParallelConfig(Strict):
    """How many processes share which work; their product is the number of processes (`trainer/dist`)."""

    dp: int = Field(default=1, ge=1)
    """Data parallel: each holds the whole model and its own rows of a batch."""
    fsdp: int = Field(default=1, ge=1)
    """Fully sharded data parallel: own rows, and a slice of every parameter, its gradient and its optimizer state."""
    ep: int = Field(default=1, ge=1)
    """Expert parallel: own rows and own experts; tokens travel."""
    cp: int = Field(default=1, ge=1)
    """Context parallel: own pieces of each row; keys and values travel."""
    tp: int = Field(default=1, ge=1)
    """Tensor parallel: own heads, channels and words of the vocabulary."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.dp * self.fsdp * self.ep * self.cp * self.tp

    @property
    def data(self) -> int:
        """Parts that the rows of a batch are split into."""
        return self.dp * self.fsdp * self.ep


class PlanConfig(Strict):
    """What the arithmetic of `gymsmith train --plan` assumes; training does not read it."""

    gpu: Literal["H100", "H200", "B200", "A100"] = "H100"
    mfu: float = Field(default=0.4, gt=0, le=1)
    """Expected share of the data sheet's FLOP/s, attention counted in full."""
    published_tokens_per_s: float | None = Field(default=None, gt=0)
    """Per GPU, where the model's makers say so."""


class Recipe(Strict):
    """How to train one model from nothing to RL."""

    name: str
    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    midtrain: MidtrainConfig | None = None
    anneal: AnnealConfig | None = None
    """Of a run with `pretrain`; its branches take rows, length and optimizer from there."""
    sft: SFTConfig = SFTConfig()
    dpo: DPOConfig | None = None
    """None: this recipe goes from SFT to RL directly."""
    rl: RLConfig = RLConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    parallel: ParallelConfig = ParallelConfig()
    """Of pre-training and mid-training. No part of a run's identity: any number of processes may resume it."""
    plan: PlanConfig = PlanConfig()
    threads: int = Field(default=1, ge=1)
    """Of torch. One makes runs repeatable bit by bit and leaves the other core to the sandboxes."""

    @model_validator(mode="before")
    @classmethod
    def _vocabulary(cls, data: Any) -> Any:
        """The model's vocabulary is the tokenizer's, unless it is named."""
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            tokenizer = data.get("tokenizer") or {}
            size = tokenizer.get("vocab_size", 640) if isinstance(tokenizer, dict) else tokenizer.vocab_size
            data = {**data, "model": {"vocab_size": size, **data["model"]}}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        need = max(self.pretrain.length, self.engine.context)
        if self.model.max_positions < need:
            raise ValueError(f"model.max_positions must cover rows and context ({need}), got {self.model.max_positions}")
        limit = self.rollout.context.limit_tokens
        if self.engine.context < limit:
            raise ValueError(
                f"engine.context must hold rollout.context.limit_tokens = {limit}, got {self.engine.context}; raise it"
            )
        return self


class SourceConfig(Strict):
    """A tokenised corpus, and which of its documents a mix may deal. A string is its path."""

    path: str
    """Folder of shards, absolute or relative to the state folder."""
    min_tokens: int = Field(default=2, ge=2)
    max_tokens: int | None = Field(default=None, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class TrainConfig(Strict):
    """One training job: a recipe, and what to apply it to."""

    stage: Stage
    recipe: Recipe
    seed: int = Field(default=0, ge=0)
    start: str = ""
    """Checkpoint folder to start from, absolute or relative to the state folder; every stage but pretrain needs one."""
    corpus: str = ""
    """Pre-training documents: JSONL, gzip allowed."""
    sources: dict[str, SourceConfig] = {}
    """Tokenised corpora by the names that mixes use, instead of a corpus."""
    tokenizer: str = ""
    """Name under the tokenizers folder. Empty: pre-training trains one on its corpus; later stages take the one of `start`."""
    demonstrations: str = ""
    """SFT: demonstrations as JSONL, gzip allowed."""
    demonstrations_run: str = ""
    """SFT: a run whose passed trajectories are the demonstrations."""
    environments: tuple[str, ...] = ()
    """Ids that RL and DPO draw from; empty means every verified shell environment labelled split = train."""
    permute_rewards: bool = False
    """Control arm of RL: rewards are permuted across the episodes of a step before they become advantages."""

    @model_validator(mode="after")
    def _inputs(self) -> Self:
        given = {n for n in ("start", "corpus", "sources", "demonstrations", "demonstrations_run") if getattr(self, n)}
        if self.stage == "pretrain" and len(given & {"corpus", "sources"}) != 1:
            got = "both" if "corpus" in given else "none"
            raise ValueError(
                f"pretrain needs a corpus or sources, got {got}; name a JSONL file of documents or folders of shards"
            )
        if self.stage in ("midtrain", "anneal") and ("sources" not in given or getattr(self.recipe, self.stage) is None):
            table = "with" if getattr(self.recipe, self.stage) else "without"
            got = f"{len(self.sources)} sources and a recipe {table} a [{self.stage}] table"
            raise ValueError(f"{self.stage} needs sources and a [{self.stage}] table, got {got}; add what is missing")
        if self.stage != "pretrain" and "start" not in given:
            raise ValueError(f"{self.stage} needs a checkpoint to start from, got none; name a run or a folder")
        if self.stage == "dpo" and self.recipe.dpo is None:
            raise ValueError("dpo needs a recipe with a [dpo] table, got one without; add it, or go on with rl")
        if self.stage == "sft" and not given & {"demonstrations", "demonstrations_run"}:
            raise ValueError("sft needs demonstrations, got none; name a file or a run")
        if unknown := sorted(self._mixed() - set(self.sources)):
            known = ", ".join(sorted(self.sources)) or "none"
            raise ValueError(f"every source in a mix needs a folder, got none for {', '.join(unknown)}; sources are {known}")
        return self

    def _mixed(self) -> set[str]:
        """Names of sources in the stage's mixes."""
        if self.stage == "anneal" and self.recipe.anneal is not None:
            return {name for mix in self.recipe.anneal.candidates.values() for name in mix}
        stage = {"pretrain": self.recipe.pretrain, "midtrain": self.recipe.midtrain}.get(self.stage)
        return {name for phase in stage.phases for name in phase.mix} if stage is not None else set()


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name (`demo`) or path (ends in .toml), with overrides such as "rl.steps=40".

    Raises:
        ConfigError: no such recipe, not TOML, or a key or value that is not allowed.
    """
    path = Path(name) if str(name).endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(f"expected a recipe, got {str(name)!r}, which is none; use {known} or a path to a .toml") from None
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path} is not TOML: {e}; fix the file") from e
    return parse(Recipe, override({"name": path.stem, **data}, overrides), str(path))


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set "dotted.key=value" in a nested dictionary, which is changed and returned. Values are TOML, or else plain text.

    Raises:
        ConfigError: an override without `=`.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"expected an override such as rl.steps=40, got {text!r}; write key=value")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        *parents, last = key.strip().split(".")
        table = data
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = parsed
    return data


def parse_train(stage: str, data: Mapping[str, Any]) -> TrainConfig:
    """A job's config. `recipe` is a name, a path or a whole recipe; `overrides` change it.

    Raises:
        ConfigError: names the first wrong key, what was expected and what came.
    """
    data = {"recipe": "demo", **data, "stage": stage}
    overrides = data.pop("overrides", ())
    if isinstance(data["recipe"], str):
        data["recipe"] = load_recipe(data["recipe"], overrides)
    else:
        data["recipe"] = parse(Recipe, override(deepcopy(dict(data["recipe"])), overrides), "recipe")
    config = parse(TrainConfig, data, f"{stage} config")
    _divide(config.recipe)
    return config


def _divide(recipe: Recipe) -> None:
    """Raises: ConfigError: what language modelling trains on does not divide as `parallel` says."""
    # It reads this module.
    from trainer.dist import limits

    limits.check_model(recipe.parallel, recipe.model)
    for stage in (recipe.pretrain, recipe.midtrain or recipe.pretrain):
        for part in stage.phases or (stage,):
            limits.check_rows(recipe.parallel, part.rows or stage.rows, part.length or stage.length)


def parse(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Validate, with pydantic's report turned into one sentence."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        key = where + (": " + ".".join(str(part) for part in first["loc"]) if first["loc"] else "")
        if first["type"] == "value_error":
            # Our own check of several keys together; its message says the values.
            raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from e
        raise ConfigError(f"{key}: {first['msg']}, got {str(first.get('input'))[:200]!r}") from e
