"""`gymsmith rollout`, `train`, `ablate`, `scaling`, `tokenise`, `rl`, `export` and `run ...`."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.errors import ConfigError, UserError
from gymsmith.verbs.terminal import Home, Json, Seed, can_train, emit, listed, one_of, settings_for

app = typer.Typer(no_args_is_help=True, help="Look at runs: trainings, rollouts, evaluations, demos.")
STAGES = ("pretrain", "midtrain", "anneal", "sft", "dpo")
SESSIONS = 2000
"""Shell sessions in a corpus that nobody gave."""
Override = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change one knob of the recipe.")]


def rollout(
    env_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Environments to attempt.")],
    checkpoint: Annotated[str, typer.Option(help="A checkpoint folder, or a run id (its newest checkpoint).")] = "",
    solution: Annotated[bool, typer.Option("--solution", help="Play the reference solution instead of a model.")] = False,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at each environment.")] = 1,
    seed: Seed = 1,
    keep_recent_k: Annotated[int | None, typer.Option(min=1, help="Fold all but the last k observations.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let a policy attempt environments in sandboxes and store the trajectories."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        result = house.rollout(
            env_ids,
            checkpoint=checkpoint,
            solution=solution,
            attempts=attempts,
            seed=seed,
            keep_recent_k=keep_recent_k,
            quiet=as_json,
        )
        trajectories = house.store.trajectories(result["trajectories"])
    if as_json:
        emit([t.model_dump(mode="json") for t in trajectories])
        return
    for t in trajectories:
        verdict = "error: " + t.error if t.reward is None else f"reward {t.reward.value:g}"
        print(f"{t.id}  {t.environment_id[:12]}  attempt {t.attempt}  {verdict}  {t.finish}")
        for number, step in enumerate(t.steps, 1):
            print(f"  {number}. $ {step.action}" + (f"   [refused: {step.refused}]" if step.refused else ""))
            for line in step.observation.splitlines()[:8]:
                print(f"       {line}")


def train(
    stage: Annotated[str, typer.Argument(help="pretrain, midtrain, anneal, sft or dpo.")] = "",
    plan: Annotated[
        str, typer.Option("--plan", metavar="RECIPE", help="Train nothing: print parameters, memory, FLOPs and throughput.")
    ] = "",
    recipe: Annotated[str, typer.Option(help="A recipe of trainer/recipes or a TOML file.")] = "demo",
    start: Annotated[str, typer.Option("--from", help="Run whose newest checkpoint to start from (not pretrain).")] = "",
    corpus: Annotated[str, typer.Option(help="pretrain: a corpus file; empty makes one.")] = "",
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A tokenised corpus under the name that mixes use.")
    ] = None,
    data: Annotated[str, typer.Option(help="sft: run with demonstrations; dpo: run with attempts.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="Continue this run from its newest checkpoint.")] = "",
    overrides: Override = None,
    seed: Seed = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train a model by one stage. Interrupted, it resumes exactly with --run."""
    from gymsmith.attach import attached

    if plan:
        document = importlib.import_module("trainer.plan.costs").door(plan, overrides or [], as_json)
        if as_json:
            emit(document)
        return
    one_of("STAGE", stage, STAGES)
    if corpus and not Path(corpus).is_file():
        raise UserError(f"expected a corpus file at {corpus}, there is none; leave --corpus out to have one made")
    inputs: dict[str, Any] = {
        "sources": sources(source or []) or "",
        "corpus": str(Path(corpus).resolve()) if corpus else "",
        "demonstrations_run": data if stage == "sft" else "",
        "pairs_run": data if stage == "dpo" else "",
    }
    settings = settings_for(home)
    can_train(settings)
    with attached(settings) as house:
        if stage == "pretrain" and not corpus and not source and not run_id:
            order = {"seed": seed, "sessions": SESSIONS, "drills": 2.5}
            inputs["corpus"] = house.run("corpus", order, label="corpus", quiet=as_json).result["path"]
        run = house.train(
            stage, recipe=recipe, seed=seed, start=start, inputs=inputs, overrides=overrides or [], run_id=run_id, quiet=as_json
        )
    report_run(run, as_json)


def sources(given: list[str]) -> dict[str, str]:
    """NAME=FOLDER words as a table of absolute folders.

    Raises:
        UserError: no `=`, or no such folder.
    """
    found = {}
    for word in given:
        name, equals, folder = word.partition("=")
        if not equals or not Path(folder).is_dir():
            raise UserError(
                f"expected --source NAME=FOLDER with a folder of shards, got {word!r}; tokenise a corpus into one first"
            )
        found[name] = str(Path(folder).resolve())
    return found


def tokenise(
    corpus: Annotated[Path, typer.Argument(help="Documents as JSONL, gzip allowed.")],
    folder: Annotated[Path, typer.Argument(help="Folder of shards to make; a mix calls it by a name (train --source).")],
    tokenizer: Annotated[str, typer.Option(help="Name under the tokenizers folder; empty trains one on the corpus.")] = "",
    vocab_size: Annotated[int, typer.Option(min=300, help="Of a tokenizer that is trained.")] = 2048,
    observation_weight: Annotated[float, typer.Option(min=0, max=1, help="Weight of the loss on observations.")] = 1.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a corpus as memory-mapped shards of token ids, which pre-training and mid-training read in any mix."""
    settings = settings_for(home)
    can_train(settings)
    write = importlib.import_module("trainer.data.documents").tokenise
    made = write(corpus, folder.resolve(), settings.tokenizers_dir, tokenizer, vocab_size, observation_weight)
    emit(made) if as_json else print("  ".join(f"{key} {value}" for key, value in made.items()))


def ablate(
    vary: Annotated[str, typer.Option(metavar="KEY=A,B,...", help="The one knob and its values; the first is the baseline.")],
    corpus: Annotated[str, typer.Option(help="A corpus file; empty makes one.")] = "",
    recipe: Annotated[str, typer.Option(help="A recipe of trainer/recipes or a TOML file.")] = "demo",
    seeds: Annotated[str, typer.Option(help="Comma-separated; every value runs every seed.")] = "1,2,3",
    metric: Annotated[str, typer.Option(help="Averaged over the last tenth of the steps; lower is better.")] = "loss",
    file: Annotated[Path | None, typer.Option(help="Results; the same command after a kill does what is missing.")] = None,
    overrides: Override = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Change one knob of pre-training, over several seeds, and tell its effect from seed noise."""
    from gymsmith.attach import attached

    ablation: Any = importlib.import_module("trainer.ablation")
    key, _, values = vary.partition("=")
    wrong = [seed for seed in seeds.split(",") if not seed.strip().isdigit()]
    if wrong or not values:
        raise UserError(f"expected --vary KEY=A,B and --seeds 1,2,3, got {vary!r} and {seeds!r}")
    order = ablation.Ablation(
        recipe=recipe,
        key=key.strip(),
        values=tuple(v.strip() for v in values.split(",")),
        seeds=tuple(int(seed) for seed in seeds.split(",")),
        fixed=tuple(overrides or ()),
        metric=metric,
    )
    order.check()
    if corpus and not Path(corpus).is_file():
        raise UserError(f"expected a corpus file at {corpus}, there is none; leave --corpus out to have one made")
    settings = settings_for(home)
    can_train(settings)
    with attached(settings) as house:
        if corpus:
            path = str(Path(corpus).resolve())
        else:
            made = {"seed": 1, "sessions": SESSIONS, "drills": 2.5}
            path = house.run("corpus", made, label="corpus", quiet=as_json, key=f"ablation-corpus-{SESSIONS}").result["path"]
        score = partial(ablation.score, house, order, path, quiet=as_json)
        rows = ablation.run(order, score, file or settings.home / "ablations" / f"{order.digest}.jsonl")
    if as_json:
        emit([{name: getattr(row, name) for name in row.__slots__} for row in rows])
        return
    for line in ablation.lines(order, rows):
        print(line)


def scaling(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN...", help="Pre-trainings of at least four compute budgets.")],
    at: Annotated[list[float] | None, typer.Option(metavar="FLOPS", help="Predict the loss at this budget.")] = None,
    metric: Annotated[str, typer.Option(help="Averaged over the last tenth of the steps.")] = "loss",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fit loss against compute, C = 6 N D, over finished runs, and say what a larger budget will buy."""
    from gymsmith.store import Store

    settings = settings_for(home)
    can_train(settings)
    final: Any = importlib.import_module("trainer.ablation").final
    law: Any = importlib.import_module("trainer.plan.scaling")
    with Store.open(settings) as store:
        runs = [store.run(run_id) for run_id in run_ids]
        for run in runs:
            if not {"parameters", "tokens"} <= run.summary.keys():
                raise UserError(f"expected finished pre-trainings, run {run.id} is {run.kind} and {run.state}; leave it out")
        flops = [law.compute(run.summary["parameters"], run.summary["tokens"]) for run in runs]
        losses = [final(store, run.id, metric) for run in runs]
    found = law.power_law(flops, losses)
    predicted = {budget: found.predict(budget) for budget in at or ()}
    level = law.levels([(r.summary["parameters"], r.summary["tokens"], y) for r, y in zip(runs, losses, strict=True)])
    best, why = None, "train three sizes at each of two budgets (equal to a tenth) to have them fitted"
    if len(level) > 1:
        try:
            best = law.optimum(level)
        except ConfigError as e:
            why = str(e)
    if as_json:
        parts: dict[str, Any] = {name: asdict(getattr(found, name)) for name in ("floor", "scale", "exponent")}
        points = [dict(run=r.id, flops=c, loss=y) for r, c, y in zip(runs, flops, losses, strict=True)]
        ahead = [{"flops": budget} | asdict(interval) for budget, interval in predicted.items()]
        law_of = {**parts, "unit": found.unit, "residual": found.residual, "points": points, "predicted": ahead}
        emit(law_of if best is None else law_of | {"best_sizes": best.sizes, "size_exponent": asdict(best.exponent)})
        return
    print(f"loss = floor + scale * (C / {found.unit:.3g}) ** -exponent, runs scatter by {found.residual:.2g}")
    print(f"floor {found.floor}  scale {found.scale}  exponent {found.exponent}")
    for budget, interval in predicted.items():
        size = "" if best is None else f", best with {best.size(budget):.3g} parameters"
        print(f"at {budget:.3g} FLOPs the loss will be {interval}{size}")
    if best is None:
        print(f"best sizes: {why}")
    else:
        sizes = ", ".join(f"{n:.3g} at {c:.3g} FLOPs" for c, n in best.sizes.items())
        print(f"best sizes: {sizes}, exponent {best.exponent}")


def rl(
    start: Annotated[str, typer.Option("--from", help="Run whose newest checkpoint to start from.")] = "",
    recipe: Annotated[str, typer.Option(help="A recipe of trainer/recipes or a TOML file.")] = "demo",
    permute_rewards: Annotated[
        bool, typer.Option("--permute-rewards", help="Control arm: true rewards in a random order.")
    ] = False,
    run_id: Annotated[str, typer.Option("--run", help="Continue this run from its newest checkpoint.")] = "",
    overrides: Override = None,
    seed: Seed = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Improve a model with agentic RL on the verified shell environments of the state folder."""
    from gymsmith.attach import attached

    with attached(settings_for(home)) as house:
        inputs = {"permute_rewards": True} if permute_rewards else {}
        run = house.train(
            "rl", recipe=recipe, seed=seed, start=start, inputs=inputs, overrides=overrides or [], run_id=run_id, quiet=as_json
        )
    report_run(run, as_json)


def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, or a run id (its newest checkpoint).")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    dtype: Annotated[str, typer.Option(help="Number format of the weights: float32 or bfloat16.")] = "float32",
    serving: Annotated[str, typer.Option(help="Round matrices for a server: fp8, fp8-channel or int4.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a model as a Hugging Face folder that `transformers` loads with equal logits."""
    from gymsmith.attach import attached

    one_of("--dtype", dtype, ("float32", "bfloat16"))
    one_of("--serving", serving, ("", "fp8", "fp8-channel", "int4"))
    with attached(settings_for(home)) as house:
        made = house.export(checkpoint, folder, dtype=dtype, serving=serving, quiet=as_json)
    emit({"folder": str(made)}) if as_json else print(made)


@app.command("list")
def run_list(
    kind: Annotated[str | None, typer.Option(help="pretrain, sft, dpo, rl, rollout, evaluate, demo, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    cursor: Annotated[str, typer.Option(help="Continue where the last page ended.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        page = store.runs(kind=kind, limit=limit, cursor=cursor)
    if as_json:
        emit({"items": [run.model_dump(mode="json") for run in page.items], "cursor": page.cursor})
        return
    for run in page.items:
        print(f"{run.id}  {run.kind:9s}  {run.state:9s}  {run.name:28s}  {run.checkpoint}")
    print(f"{len(page.items)} runs{listed(page.cursor)}")


@app.command("show")
def run_show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a run.")], home: Home = None, as_json: Json = False
) -> None:
    """Show one run: state, newest checkpoint, summary."""
    from gymsmith.store import Store

    with Store.open(settings_for(home)) as store:
        run = store.run(run_id)
    report_run(run, as_json)


def report_run(run: Any, as_json: bool) -> None:
    """Print what a finished run has to say."""
    if as_json:
        emit(run.model_dump(mode="json"))
        return
    print(f"run {run.id}  {run.state}  checkpoint {run.checkpoint}")
    for key, value in run.summary.items():
        print(f"  {key}: {value}")
