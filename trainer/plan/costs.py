"""`gymsmith train --plan RECIPE`: what a model costs before anything is bought. Imports no torch.

Parameters, memory of one GPU under the recipe's layout, FLOPs per token with attention by kind, and throughput as arithmetic:

    tokens/s/GPU = MFU * FLOP/s of the data sheet / FLOPs per token

MFU is an assumption (`plan.mfu`), so the throughput is what that MFU would mean, not a measurement. It is stated on the PaLM
count, as published MFUs are; the same speed on the causal count is printed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.config import Recipe, load_recipe
from trainer.model.config import LayerKind, ModelConfig
from trainer.monitor.speed import DATASHEET
from trainer.plan.flops import attention_flops, flops, kind_name, parameters
from trainer.plan.memory import CAPACITY, GIB, Formats, Memory, memory

LENGTHS = (4096, 32768, 131072)
PARTS = {
    "masters": "weights, float32",
    "copies": "weights, compute format",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered layers",
    "activations": "activations",
    "logits": "logits",
}


def plan(recipe: Recipe) -> dict[str, Any]:
    """Everything as one JSON-able document; bytes, FLOPs and tokens are plain numbers."""
    config, assumed, length = recipe.model, recipe.plan, recipe.pretrain.length
    held = parameters(config)
    palm, causal = flops(config, length, "palm"), flops(config, length, "causal")
    speed = assumed.mfu * DATASHEET[assumed.gpu] / palm.total
    split = recipe.parallel
    used = expected_memory(recipe)
    untied = held.total + (config.vocab_size * config.dim if config.tied_head else 0)
    return {
        "recipe": recipe.name,
        "parameters": {
            "total": held.total,
            "active": held.active,
            "embedding": held.embedding,
            "head": held.head,
            "embedding_share": held.embedding_share,
            "mtp": held.mtp,
            "untied_total": untied,
            "saved_by_tying": 1 - held.total / untied,
        },
        "layout": {name: getattr(split, name) for name in ("dp", "fsdp", "ep", "cp", "tp")} | {"gpus": split.world},
        "memory": {name: getattr(used, name) for name in PARTS} | {"total": used.total},
        "gpu": assumed.gpu,
        "fits": {gpu: used.total <= 0.9 * size for gpu, size in CAPACITY.items()},
        "length": length,
        "flops_per_token": {"weights": palm.weights, "palm": palm.total, "causal": causal.total},
        "attention": attention(config),
        "throughput": {
            "mfu": assumed.mfu,
            "mfu_causal": assumed.mfu * causal.total / palm.total,
            "tokens_per_s_gpu": speed,
            "published": assumed.published_tokens_per_s,
            "ratio": speed / assumed.published_tokens_per_s if assumed.published_tokens_per_s else None,
            "tokens_per_day": speed * split.world * 86400,
        },
    }


def expected_memory(recipe: Recipe) -> Memory:
    """One GPU's memory while it trains this recipe's `pretrain`."""
    stage, split = recipe.pretrain, recipe.parallel
    return memory(
        recipe.model,
        split,
        rows=max(1, stage.rows // split.data),
        length=stage.length,
        optimizer=stage.optim.hidden,
        recompute=stage.memory.recompute == "block",
        head_chunk=stage.memory.head_chunk,
        formats=Formats(compute=4 if stage.precision == "float32" else 2),
    )


def attention(config: ModelConfig) -> list[dict[str, Any]]:
    """One row per kind of attention in the model: FLOPs of attention itself per layer and trained token, by row length."""
    kinds = {kind_name(kind): kind for kind in config.layers}
    if any(kind.attention == "dsa" for kind in config.layers) and "mla" not in kinds:
        kinds["mla, for comparison"] = LayerKind(attention="mla")
    rows = []
    for name, kind in kinds.items():
        layers = sum(kind_name(k) == name for k in config.layers)
        row: dict[str, Any] = {"kind": name, "layers": layers, "palm": {}, "causal": {}}
        for length in LENGTHS:
            for count in ("palm", "causal"):
                row[count][length] = attention_flops(config, kind, length, count)
        rows.append(row)
    return rows


def show(document: Mapping[str, Any], console: Console) -> None:
    """The document as tables."""
    p, m, t = document["parameters"], document["memory"], document["throughput"]
    lines = [("parameters", number(p["total"])), ("active per token", number(p["active"]))]
    shared = "embedding = head" if not p["head"] else "embedding and head"
    lines.append((shared, f"{number(p['embedding'] + p['head'])}, {100 * p['embedding_share']:.1f}% of all"))
    if not p["head"]:
        saved = f"{100 * p['saved_by_tying']:.0f}% of {number(p['untied_total'])}"
        lines.append(("saved by the tie", saved))
    if p["mtp"]:
        lines.append(("of these for multi-token prediction", number(p["mtp"])))
    _table(console, f"{document['recipe']}: parameters", ("what", "count"), lines)

    lines = [(label, f"{m[name] / GIB:.1f}") for name, label in PARTS.items() if m[name]]
    fitting = ", ".join(gpu for gpu, fits in document["fits"].items() if fits) or "none; split it further"
    lines += [("together", f"{m['total'] / GIB:.1f}"), ("fits (a tenth left free)", fitting)]
    layout = " x ".join(f"{name} {n}" for name, n in document["layout"].items() if n > 1 and name != "gpus") or "one GPU"
    _table(console, f"memory of one GPU, {layout}", ("part", "GiB"), lines)

    columns = ("kind", "layers", *(f"T = {n}" for n in LENGTHS), "all keys, T = " + str(LENGTHS[-1]))
    rows = []
    for row in document["attention"]:
        seen = [f"{row['causal'][n] / 1e6:.2f}" for n in LENGTHS]
        rows.append((row["kind"], str(row["layers"] or "-"), *seen, f"{row['palm'][LENGTHS[-1]] / 1e6:.2f}"))
    _table(console, "attention, MFLOP per layer and trained token (keys really read)", columns, rows)
    by_kind = {row["kind"]: row["causal"][LENGTHS[-1]] for row in document["attention"]}
    dense = by_kind.get("mla", by_kind.get("mla, for comparison"))
    if "dsa" in by_kind and dense:
        console.print(
            f"dsa with its indexer costs {dense / by_kind['dsa']:.1f} times fewer FLOPs than mla at T = {LENGTHS[-1]}\n"
        )

    f = document["flops_per_token"]
    lines = [
        (f"FLOPs per token, T = {document['length']}, attention over all keys (PaLM)", f"{f['palm'] / 1e9:.2f} G"),
        ("the same, keys really read (causal)", f"{f['causal'] / 1e9:.2f} G"),
        (f"assumed MFU of {document['gpu']}'s {DATASHEET[document['gpu']] / 1e12:.0f} TFLOP/s, PaLM", f"{100 * t['mfu']:.1f}%"),
        ("the same speed, causal", f"{100 * t['mfu_causal']:.1f}%"),
        ("tokens/s/GPU, as arithmetic", f"{t['tokens_per_s_gpu']:,.0f}"),
    ]
    if t["published"]:
        lines.append(("published tokens/s/GPU", f"{t['published']:,.0f} (ratio {t['ratio']:.3f})"))
    lines.append((f"tokens a day on {document['layout']['gpus']} GPUs", number(t["tokens_per_day"])))
    _table(console, "throughput", ("what", "value"), lines)


def number(value: float) -> str:
    """1.24 B, 655 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def door(recipe: str, overrides: Sequence[str], as_json: bool) -> dict[str, Any]:
    """What the command line does: plan, and print unless it wants the document.

    Raises:
        ConfigError: no such recipe, or a key or value that is not allowed.
    """
    document = plan(load_recipe(recipe, overrides))
    if not as_json:
        show(document, Console(width=110))
    return document
