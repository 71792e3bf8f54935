"""`gymsmith generate`, `gymsmith env ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gymsmith.verbs import models
from gymsmith.verbs.terminal import Home, Json, Seed, emit, listed, one_of, settings_for

app = typer.Typer(no_args_is_help=True, help="Look at environments, prove them again, exchange them with others.")
LEVELS = ("admission", "full", "controls")
KINDS = (
    "mutation", "reconstruction", "combination", "commit", "issue", "tutorial", "examples", "shell", "terminal", "repair",
    "layout", "browse", *models.KINDS,
)  # fmt: skip
Review = Annotated[
    bool,
    typer.Option("--review", help="After all other gates a language model does each task from its text, and tries to cheat."),
]
Model = Annotated[str, typer.Option(help="llm kinds and --review: the model to ask for (default: GYMSMITH_LLM_MODEL).")]
BudgetTokens = Annotated[
    int,
    typer.Option(min=0, help="llm kinds and --review: stop before more tokens are bought (0: GYMSMITH_LLM_BUDGET_TOKENS)."),
]
BudgetUsd = Annotated[
    float, typer.Option(min=0, help="llm kinds and --review: stop before more dollars are spent (0: GYMSMITH_LLM_BUDGET_USD).")
]


def generate(
    source: Annotated[
        str,
        typer.Argument(
            help="pypi:NAME==VERSION, git:PLACE#REF, archive:PLACE (a repository), issue:FILE#NUMBER, github:OWNER/REPO#NUMBER, "
            "swebench:FILE#INSTANCE, file:PATH, https://... (a tutorial), man:PAGE, tldr:PAGE; shell:, terminal:, repair:, "
            "layout: or browse: and NAME or all; env:ID, env:KIND or env:all."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="SWE: mutation, reconstruction, combination, commit, issue; tutorial, examples, shell, terminal, repair, "
            f"layout, browse; by a language model: {', '.join(models.KINDS)}."
        ),
    ],
    n: Annotated[int, typer.Option("-n", help="How many admitted environments to stop at.", min=1)] = 20,
    seed: Seed = 1,
    split: Annotated[str, typer.Option(help="shell, terminal, repair, layout: train words or held_out words.")] = "train",
    model: Model = "",
    gates: Annotated[str, typer.Option(help="How much is asked of each: admission (everything), full, controls.")] = "admission",
    budget_tokens: BudgetTokens = 0,
    budget_usd: BudgetUsd = 0.0,
    review: Review = False,
    issue: Annotated[
        Path | None, typer.Option(help="llm-issue: the issue, as text or as JSON with title and body (gh issue view --json).")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make environments out of a source and prove each of them.

    Example: gymsmith generate pypi:inflection==0.5.1 --kind mutation -n 20

    No kind needs a language model but those that begin with llm-. They ask any OpenAI-compatible endpoint: set GYMSMITH_LLM_URL,
    GYMSMITH_LLM_KEY and GYMSMITH_LLM_MODEL; `gymsmith doctor` says whether it answers. What a model writes goes through the same
    gates as everything else; what they turn down goes back to it with the reason, a few times. With GYMSMITH_LLM_PRICE_IN and
    GYMSMITH_LLM_PRICE_OUT (dollars per million tokens) the cost is known and can be bounded. An order that was stopped, by its
    budget or by you, goes on with the same command and pays for no answer twice.

    \b
    llm-tutorial  new terminal tasks after a tutorial
                  gymsmith generate file:lesson.md --kind llm-tutorial -n 5 --budget-usd 2
    llm-bug       realistic faults in a package, judged by its own tests
                  gymsmith generate pypi:inflection==0.5.1 --kind llm-bug -n 10
    llm-issue     an issue becomes text, hidden tests and a solution
                  gymsmith generate git:PLACE#COMMIT --kind llm-issue --issue issue.json -n 1
    llm-reword    other instructions for verified environments
                  gymsmith generate env:mutation --kind llm-reword -n 20
    llm-setup     a repository is made to build and to run its tests
                  gymsmith generate git:PLACE --kind llm-setup
    """
    from gymsmith.attach import attached

    one_of("--kind", kind, KINDS)
    one_of("--split", split, ("train", "held_out"))
    source = absolute(source)
    one_of("--gates", gates, LEVELS)
    payload = {"source": source, "kind": kind, "n": n, "seed": seed, "split": split, "gates": gates}
    payload |= models.asked(
        kind, source, model=model, budget_tokens=budget_tokens, budget_usd=budget_usd, issue=issue, review=review
    )
    with attached(settings_for(home)) as house:
        job = house.run("generate", payload, label=f"{kind} from {source}", quiet=as_json)
    if as_json:
        emit(job.result)
        return
    result = job.result
    print(f"admitted {len(result['admitted'])} of {result['candidates']} candidates in {result['seconds']:.1f} s")
    for reason, count in sorted(result["reasons"].items(), key=lambda kv: -kv[1]):
        print(f"  {count:4d}  {reason}")
    for line in models.bought(result):
        print(line)


def absolute(source: str) -> str:
    """A source whose relative path is written out: a worker may stand in another folder than we do."""
    scheme, _, rest = source.partition(":")
    place, mark, part = rest.partition("#")
    if scheme not in ("file", "git", "archive", "issue", "swebench") or not place or "://" in place:
        return source
    return f"{scheme}:{Path(place).expanduser().resolve()}{mark}{part}"


@app.command("list")
def env_list(
    text: Annotated[str, typer.Argument(help="Words to look for in name, instruction and labels.")] = "",
    kind: Annotated[str | None, typer.Option(help="mutation, tutorial, terminal, layout, browse, ...")] = None,
    status: Annotated[str | None, typer.Option(help="verified, unproven, rejected, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    cursor: Annotated[str, typer.Option(help="Continue where the last page ended.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List environments."""
    from gymsmith.schema import Status
    from gymsmith.store import Store

    if status is not None:
        one_of("--status", status, tuple(Status))
    with Store.open(settings_for(home)) as store:
        page = store.environments(text=text, kind=kind, status=status, limit=limit, cursor=cursor)
    if as_json:
        emit({"items": [e.model_dump(mode="json") for e in page.items], "cursor": page.cursor})
        return
    for e in page.items:
        first = e.instruction.strip().partition("\n")[0]
        print(f"{e.id[:12]}  {e.status:9s}  {e.spec.kind:9s}  {e.spec.name:40s}  {first[:70]}")
    print(f"{len(page.items)} environments{listed(page.cursor)}")


@app.command("show")
def env_show(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="An id or the start of one.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one environment: instruction, evidence gate by gate, files."""
    from gymsmith import folder
    from gymsmith.store import Store

    settings = settings_for(home)
    with Store.open(settings) as store:
        environment = store.find_environment(env_id)
        evidence = store.evidence(environment.id)
        hardness = store.difficulties([environment.id])[environment.id]
    if as_json:
        emit(
            {
                "environment": environment.model_dump(mode="json"),
                "evidence": evidence and evidence.model_dump(mode="json"),
                "difficulty": hardness.model_dump(mode="json"),
            }
        )
        return
    members = folder.members(settings.home, environment.path)
    print(f"{environment.id}  {environment.status}  {environment.spec.name}")
    print(f"source {environment.source.uri}  licence {environment.source.licence or '-'}")
    print(f"difficulty {hardness.word}")
    for rate in hardness.policies[:8]:
        of_8 = "" if rate.pass_8 is None else f"  pass@8 {rate.pass_8:.2f}"
        print(f"  {rate.policy_version:28s} pass@1 {rate.pass_1:.2f}{of_8}  of {rate.n}")
    print(f"\n{environment.instruction}\n")
    for gate in evidence.gates if evidence else ():
        rewards = " ".join(f"{r:g}" for r in gate.rewards)
        print(f"  {'ok ' if gate.passed else 'NO '} {gate.name:28s} {rewards:16s} {gate.detail[:70]}")
    print(f"\nfiles in {settings.home / environment.path}")
    for member in members:
        print(f"  {member.name}  {member.size}")


@app.command("verify")
def env_verify(
    env_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Environments to prove again, from scratch.")],
    gates: Annotated[str, typer.Option(help="How much is asked of each: admission (everything), full, controls.")] = "admission",
    review: Review = False,
    model: Model = "",
    budget_tokens: BudgetTokens = 0,
    budget_usd: BudgetUsd = 0.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run every gate again on this machine and store the new evidence."""
    from gymsmith.attach import attached

    one_of("--gates", gates, LEVELS)
    read = models.reading(review, model=model, budget_tokens=budget_tokens, budget_usd=budget_usd)
    with attached(settings_for(home)) as house:
        ids = [house.store.find_environment(given).id for given in env_ids]
        job = house.run("verify", {"environments": ids, "gates": gates} | read, label="proofs", quiet=as_json)
    emit(job.result) if as_json else print(json.dumps(job.result, indent=2))
    fine = all(status == "verified" for status in job.result["statuses"].values()) and not job.result.get("stopped")
    raise typer.Exit(0 if fine else 1)


@app.command("judge")
def env_judge(
    folder: Annotated[
        Path, typer.Argument(help='Task folders in Harbor\'s format, and labels.toml: NAME = "sound" or what is wrong.')
    ],
    noticed: Annotated[float, typer.Option(help="Share of wrong work that a task's tests must notice.", min=0, max=1)] = 0.8,
    review: Review = False,
    model: Model = "",
    budget_tokens: BudgetTokens = 0,
    budget_usd: BudgetUsd = 0.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Bring tasks whose defects are known before every gate; precision and recall of what is turned down."""
    from gymsmith.attach import attached

    payload = {"folder": str(folder.expanduser().resolve()), "noticed": noticed}
    payload |= models.reading(review, model=model, budget_tokens=budget_tokens, budget_usd=budget_usd)
    with attached(settings_for(home)) as house:
        job = house.run("judge", payload, label=f"tasks of {folder}", quiet=as_json)
    if as_json:
        emit(job.result)
        return
    for row in job.result["tasks"]:
        print(f"  {'ok' if row['right'] == 'yes' else 'NO':3s} {row['name']:36s} {row['label'][:34]:34s} {row['verdict']}")
    for name in ("precision", "recall"):
        score = job.result[name]
        print(f"{name} {score['rate']:.3f} ({score['passed']} of {score['n']}; 95% {score['low']:.3f} to {score['high']:.3f})")
    for line in models.bought(job.result):
        print(line)
