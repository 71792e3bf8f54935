"""`gymsmith model ...`: models that come from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gymsmith.verbs.terminal import Home, Json, Seed, can_train, emit, one_of, settings_for

app = typer.Typer(no_args_is_help=True, help="Models that come from elsewhere.")
RULES = ("mean", "normal")


@app.callback()
def models() -> None:
    """Models that come from elsewhere."""


@app.command("import")
def model_import(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder: config.json, safetensors, tokenizer.json.")],
    special: Annotated[list[str] | None, typer.Option(metavar="TOKEN", help="Special token to add; may be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Add the special tokens of our chat format.")] = False,
    rule: Annotated[str, typer.Option(help="Rows of new tokens: mean of those in use, or normal as fresh weights.")] = "mean",
    multiple: Annotated[int, typer.Option(min=1, help="Round the vocabulary up to a multiple of this.")] = 1,
    seed: Seed = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a run of a model of transformers, which `gymsmith train sft --from RUN` and `gymsmith export RUN` take.

    Olmo3, SmolLM3, Qwen3, Gemma2, DeepseekV3, DeepseekV32, GlmMoeDsa, Glm4Moe, GptOss, Afmoe. Nothing in the folder is executed.

    Example: gymsmith model import ./SmolLM3-3B --chat
    """
    from gymsmith.attach import attached

    one_of("--rule", rule, RULES)
    settings = settings_for(home)
    can_train(settings)
    with attached(settings) as house:
        run = house.start_run("import", name=f"import {folder.name}", seed=seed)
        payload = {
            "run_id": run.id,
            "folder": str(folder.resolve()),
            "chat": chat,
            "special": special or [],
            "rule": rule,
            "multiple": multiple,
            "seed": seed,
        }
        found = house.run("import_model", payload, run_id=run.id, label=f"import {folder.name}", quiet=as_json).result
    if as_json:
        emit({"run": run.id, **found})
        return
    share = f"{found['embedding_share']:.1%} of them in {'one table, tied' if found['tied'] else 'tables of embedding and head'}"
    print(f"run {run.id}: {found['architecture']}, {found['parameters']:,} parameters, {share}")
    added = len(found["special_tokens"])
    print(f"vocabulary {found['vocab_size']:,}, {added} special tokens added; checkpoint {found['checkpoint']}")
    if found["skipped_tensors"]:
        print(f"left out: {found['skipped_tensors']} tensors without a place here, such as {', '.join(found['skipped'][:3])}")
