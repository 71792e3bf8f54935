"""A store filled with what a small house holds: environments with evidence and folders, runs with curves, attempts, reports,
jobs."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta
from pathlib import Path

from gymsmith.config import Settings
from gymsmith.ids import ulid
from gymsmith.schema import (
    Environment,
    EvalReport,
    Evidence,
    Gate,
    Job,
    Metric,
    Reward,
    Run,
    Score,
    Segment,
    Source,
    State,
    Status,
    Step,
    TaskSpec,
    ToolSpec,
    Trajectory,
    VersionSpan,
    now,
)
from gymsmith.store import Event, Store

FAMILIES = ("lookup", "chain", "count", "rename", "edit", "note")
REJECTS = ("oracle-failed", "flaky", "cheat-passed", "no-failing-test", "build-failed")
_WORDS = (
    "amber",
    "basil",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "hazel",
    "inlet",
    "kelp",
    "larch",
    "moss",
    "nettle",
    "ochre",
    "sage",
)


def wilson(passed: int, n: int) -> Score:
    """Pass rate with its 95% interval."""
    z, p = 1.959964, passed / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Score(n=n, passed=passed, rate=p, low=max(0.0, (middle - half) / scale), high=min(1.0, (middle + half) / scale))


def environment(number: int, kind: str = "shell", status: Status = Status.VERIFIED, *, age_s: float = 0.0) -> Environment:
    """One environment; the same number gives the same one."""
    rng = random.Random(number)
    family, word = FAMILIES[number % len(FAMILIES)], rng.choice(_WORDS)
    if kind == "mutation":
        labels = {
            "package": "inflection",
            "operator": rng.choice(("compare", "boundary", "return", "boolean")),
            "split": "train",
            "index": str(number % 5),
        }
        spec = TaskSpec(
            name=f"gymsmith/inflection-{number:04d}",
            kind=kind,
            labels=labels,
            description="Repair a defect in inflection.",
            workdir="/work/repo",
            expected=tuple(f"tests/test_inflection.py::test_{w}" for w in rng.sample(_WORDS, 12)),
            max_turns=30,
        )
        text = "Reading a file whose section header has a comment raises ParseError.\n\nFind the cause and repair it.\n"
        source = Source(uri="pypi:inflection==0.5.1", kind="pypi", digest="9f" * 32, licence="MIT")
    elif kind == "tutorial":
        spec = TaskSpec(
            name=f"gymsmith/tar-{number:04d}",
            kind=kind,
            labels={"page": "tar", "split": "train"},
            description="End state of a manual's example.",
            expected=("archive-exists", "archive-lists-two-files"),
        )
        text = "Pack the files `notes.txt` and `plan.txt` into the compressed archive /work/out.tar.gz. Keep the originals.\n"
        source = Source(uri="man:tar", kind="man", licence="GPL-3.0")
    else:
        labels = {
            "family": family,
            "level": str(1 + number % 3),
            "seed": str(number),
            "split": "held_out" if number % 4 == 0 else "train",
        }
        spec = TaskSpec(
            name=f"gymsmith/{family}-{number:05d}",
            kind=kind,
            labels=labels,
            description=f"Find the code word behind {word}.",
            tool=ToolSpec(name="simple_command", allow=("cat", "ls", "grep", "echo", "head"), redirect=("echo",)),
            max_turns=6,
            expected=("answer",),
            hidden=(rng.choice(_WORDS),),
        )
        text = f"The note about {word} in /work names a file. Write the code word that this file holds into /work/answer.\n"
        source = Source(uri=f"shell:{family}", kind="parametric")
    ident = f"{rng.getrandbits(128):032x}"
    return Environment(
        id=ident,
        source=source,
        spec=spec,
        instruction=text,
        status=status,
        path=f"tasks/{ident[:2]}/{ident}",
        image_id="b3" * 32,
        reason=rng.choice(REJECTS) if status is Status.REJECTED else "",
        created_at=now() - timedelta(seconds=age_s),
    )


def evidence(e: Environment) -> Evidence:
    """What the gates saw of it."""
    rng = random.Random(e.id)
    cheats = ("sys-exit-zero", "edit-tests", "shadow-conftest", "forge-report", "delete-tests", "copy-oracle")
    gates = [
        Gate(name="noop", passed=True, rewards=(0, 0, 0), seconds=0.21),
        Gate(
            name="oracle",
            passed=e.status is not Status.REJECTED,
            rewards=(1, 1, 1) if e.status is not Status.REJECTED else (1, 0, 1),
            seconds=0.34,
            detail="" if e.status is not Status.REJECTED else "run 2 of 3 failed: test_order depends on the order of a set",
        ),
        Gate(name="alternative:1", passed=True, rewards=(1,), seconds=0.12),
        *(Gate(name=f"cheat:{c}", passed=True, rewards=(0,), seconds=round(rng.uniform(0.05, 0.2), 3)) for c in cheats),
        Gate(name="leak", passed=True, detail="the hidden token is in no prompt"),
    ]
    return Evidence(environment_id=e.id, gates=tuple(gates), image_id=e.image_id, provider="ns", seconds=2.4)


def write_folder(home: Path, e: Environment) -> None:
    """Its task folder, enough to browse."""
    members = {
        "instruction.md": e.instruction,
        "task.toml": f'schema_version = "1.4"\n\n[task]\nname = "{e.spec.name}"\n\n[environment]\nnetwork_mode = "no-network"\n',
        "environment/Dockerfile": "FROM gymsmith/host\nWORKDIR /work\nCOPY files/ /work/\n",
        "environment/files/note.txt": "see shelf 3\n",
        "tests/test.sh": '#!/bin/sh\n[ "$(cat answer)" = larch ] && echo "PASS answer" || echo "FAIL answer"\n',
        "solution/solve.sh": "#!/bin/sh\nhead -n 1 shelf/3 > answer\n",
    }
    for name, text in members.items():
        file = home / e.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def trajectory(number: int, e: Environment, run_id: str, group: str, attempt: int, version: str, *, passed: bool) -> Trajectory:
    """One attempt of the small model."""
    rng = random.Random(number)
    word = e.spec.hidden[0] if e.spec.hidden else "larch"
    steps = [
        Step(action="ls", observation="note.txt  shelf  \x1b[1;34marchive\x1b[0m\n", exit_code=0, seconds=0.0021, folded=True),
        Step(action="cat note.txt", observation="The code word about amber lies on shelf 3.\n", exit_code=0, seconds=0.0018),
        Step(action="cat shelf/3; ls", refused="one simple command per action; `;` is not allowed", seconds=0.0),
        Step(action="cat shelf/9", observation="cat: shelf/9: No such file or directory\n", exit_code=1, seconds=0.002),
        Step(action="cat shelf/3", observation=f"{word}\n", exit_code=0, seconds=0.0019),
        Step(action=f"echo {word if passed else 'moss'} > answer", exit_code=0, seconds=0.0017),
    ]
    segments = []
    for part in range(2):
        length = 140 + rng.randrange(60)
        mask = [1 if i > 40 and i % 37 < 14 else 0 for i in range(length)]
        logprobs = [-min(9.0, rng.expovariate(3.0) if rng.random() < 0.4 else rng.expovariate(60.0)) if m else 0.0 for m in mask]
        ids = [rng.randrange(4, 600) for _ in range(length)]
        segments.append(
            Segment(ids=ids, mask=mask, logprobs=logprobs, versions=[VersionSpan(version=version, start=0, end=length)])
        )
        del part
    verdict = Reward(
        value=float(passed),
        tests={"answer": "passed" if passed else "failed"},
        detail="" if passed else "FAIL answer: got moss",
        seconds=0.011,
    )
    return Trajectory(
        id=ulid(),
        environment_id=e.id,
        run_id=run_id,
        group=group,
        attempt=attempt,
        seed=number,
        policy_version=version,
        segments=segments,
        steps=steps,
        reward=verdict,
        looked=True,
        finish="exit",
        seconds={"total": 0.412, "generate": 0.338, "sandbox": 0.041, "grade": 0.033},
    )


def curves(run_id: str, steps: int, seed: int) -> list[Metric]:
    """Curves of a run that learns."""
    rng = random.Random(seed)
    out = []
    for step in range(steps):
        t = step / 120
        rate = 0.45 + 0.42 * (1 - math.exp(-2.2 * t)) + rng.gauss(0, 0.035)
        for name, value in {
            "reward": min(1.0, rate),
            "pass_rate": min(1.0, max(0.0, rate + rng.gauss(0, 0.02))),
            "entropy": 0.32 * math.exp(-1.4 * t) + 0.05 + rng.gauss(0, 0.008),
            "loss": 0.02 * math.exp(-t) + rng.gauss(0, 0.006),
            "gradient_norm": abs(0.6 + 0.5 * math.exp(-2 * t) + rng.gauss(0, 0.12)),
            "logprob_difference_mean": abs(rng.gauss(0, 2.0e-6)),
            "clip_fraction": abs(rng.gauss(0.02, 0.008)),
            "rate": min(1.0, (step + 1) / 8),
            "commands": 4.6 - 0.6 * t + rng.gauss(0, 0.08),
            "exit_fraction": min(1.0, 0.9 + 0.09 * t + rng.gauss(0, 0.01)),
            "episodes": 256.0,
            "decode_tokens": 15_600 + rng.gauss(0, 800),
            "rollout_seconds": 2.6 + rng.gauss(0, 0.15),
            "seconds": 3.4 + rng.gauss(0, 0.2),
            "pass_rate/chain/1": min(1.0, rate + 0.1),
            "pass_rate/chain/2": max(0.0, rate - 0.15),
        }.items():
            out.append(Metric(run_id=run_id, step=step, name=name, value=value))
    return out


def report(name: str, run_id: str, version: str, rates: dict[str, float], *, age_s: float, mode: str = "sampled") -> EvalReport:
    """An evaluation with these rates, 110 environments a family."""
    groups = {family: wilson(round(110 * rate), 110) for family, rate in rates.items()}
    overall = wilson(sum(s.passed for s in groups.values()), 110 * len(groups))
    return EvalReport(
        id=ulid(),
        run_id=run_id,
        name=name,
        policy_version=version,
        mode=mode,
        seed=4242,
        overall=overall,
        groups=groups,
        mean_commands=4.3,
        errors=1,
        seconds=38.2,
        config={"temperature": 1.0, "max_turns": 6, "keep_recent_k": 4},
        created_at=now() - timedelta(seconds=age_s),
    )


def fill(store: Store, settings: Settings, *, environments: int = 90) -> dict[str, str]:
    """Fill the store; returns ids of things worth looking at."""
    made = []
    for i in range(environments):
        kind = "mutation" if i % 9 == 4 else "tutorial" if i % 9 == 7 else "shell"
        status = Status.REJECTED if i % 11 == 5 else Status.UNPROVEN if i % 23 == 9 else Status.VERIFIED
        e = environment(i, kind, status, age_s=40 * i + 30)
        store.put_environment(e, evidence(e))
        made.append(e)
    for e in made[:30]:
        write_folder(settings.home, e)
    shell = [e for e in made if e.spec.kind == "shell" and e.status is Status.VERIFIED]

    demo = Run(
        id="demo-20260801", kind="demo", name="demo", seed=7, state=State.RUNNING, created_at=now() - timedelta(seconds=900)
    )
    config = {
        "model": {"layers": 4, "width": 192, "heads": 4},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "group_size": 16,
        "steps": 120,
    }
    plan = {"name": "standard", "budget_s": {"corpus": 20, "pretrain": 150, "sft": 90, "rl": 240}}
    phases = {
        "corpus": {"seconds": 14.2},
        "pretrain": {"run": "pretrain-7", "seconds": 158.4},
        "proofs": {"seconds": 1.2},
        "sft": {"run": "sft-7", "seconds": 61.0},
        "rl": {"run": "rl-7"},
    }
    demo = demo.model_copy(update={"config": {"plan": plan}, "summary": {"phases": phases}})
    promises = [
        {"text": "points gained by RL over SFT (sampled)", "value": 36.5, "relation": ">=", "bound": 25.0, "kept": True},
        {"text": "pass rate of the weakest family", "value": 0.58, "relation": ">=", "bound": 0.6, "kept": False},
    ]
    (settings.runs_dir / demo.id).mkdir(parents=True)
    (settings.runs_dir / demo.id / "report.json").write_text(json.dumps({"promises": promises}))
    pretrain = Run(
        id="pretrain-7",
        kind="pretrain",
        name="pretrain",
        seed=7,
        state=State.SUCCEEDED,
        parent=demo.id,
        config=config,
        created_at=now() - timedelta(seconds=860),
        finished_at=now() - timedelta(seconds=700),
        summary={"val_loss": 0.913, "tokens": 4_200_000},
    )
    sft = Run(
        id="sft-7",
        kind="sft",
        name="sft on clean demonstrations",
        seed=7,
        state=State.SUCCEEDED,
        parent=pretrain.id,
        config=config,
        created_at=now() - timedelta(seconds=690),
        finished_at=now() - timedelta(seconds=560),
    )
    rl = Run(
        id="rl-7",
        kind="rl",
        name="rl",
        seed=7,
        state=State.RUNNING,
        parent=demo.id,
        config=config | {"start": "runs/sft-7/checkpoints/00000090"},
        config_hash="5d" * 32,
        policy_version="rl-7:84",
        engine_url="http://127.0.0.1:40123",
        checkpoint="runs/rl-7/checkpoints/80",
        created_at=now() - timedelta(seconds=540),
    )
    failed = Run(
        id="rl-6",
        kind="rl",
        name="rl, permuted rewards",
        seed=6,
        state=State.FAILED,
        parent=sft.id,
        error="engine did not answer within 30 s; see logs/learner.log",
        created_at=now() - timedelta(seconds=3900),
    )
    for run in (failed, demo, pretrain, sft, rl):
        store.put_run(run)
    store.put_metrics(curves(rl.id, 84, 1))
    store.put_metrics([m for m in curves(failed.id, 22, 2) if m.name in ("reward", "loss")])
    for run, steps in ((pretrain, 200), (sft, 90)):
        store.put_metrics(
            [
                Metric(run_id=run.id, step=s, name="loss", value=3.2 * math.exp(-s / 40) + 0.9 + random.Random(s).gauss(0, 0.03))
                for s in range(steps)
            ]
        )
    for step in (40, 60, 80):
        folder = settings.runs_dir / rl.id / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"\0" * 4_100_000)

    attempts = []
    for g, e in enumerate(shell[:12]):
        for a in range(8):
            attempts.append(
                trajectory(
                    100 * g + a, e, rl.id, f"{rl.id}/80/{g}", a, "rl-7:80", passed=random.Random(31 * g + a).random() < 0.7
                )
            )
    lost = attempts[-1].model_copy(
        update={
            "reward": None,
            "error": "SandboxGone: the sandbox died; retried as attempt 9",
            "finish": "error",
            "steps": attempts[-1].steps[:2],
        }
    )
    attempts[-1] = lost
    store.put_trajectories(attempts)

    low = dict(zip(FAMILIES, (0.62, 0.31, 0.55, 0.7, 0.42, 0.5), strict=True))
    high = dict(zip(FAMILIES, (0.95, 0.78, 0.9, 0.97, 0.81, 0.88), strict=True))
    before = report("sft, held out", sft.id, "sft-7:final", low, age_s=500)
    after = report("after RL, held out", rl.id, "rl-7:80", high, age_s=60)
    greedy = report(
        "after RL, held out, greedy", rl.id, "rl-7:80", {k: min(1.0, v + 0.02) for k, v in high.items()}, age_s=40, mode="greedy"
    )
    for r in (before, after, greedy):
        store.put_report(r)

    jobs = _jobs(store, rl.id, [e.id for e in made])
    return {
        "environment": shell[0].id,
        "mutation": next(e.id for e in made[:30] if e.spec.kind == "mutation"),
        "rejected": made[5].id,
        "run": rl.id,
        "trajectory": attempts[0].id,
        "lost": lost.id,
        "report": after.id,
        **jobs,
    }


def _jobs(store: Store, run_id: str, ids: list[str]) -> dict[str, str]:
    def put(kind: str, queue: str, payload: dict[str, object], age_s: float, **fields: object) -> Job:
        return store.put_job(
            Job(id=ulid(), kind=kind, queue=queue, payload=payload, created_at=now() - timedelta(seconds=age_s), **fields)
        )[0]  # type: ignore[arg-type]

    done = put("generate", "factory", {"source": "pypi:inflection==0.5.1", "kind": "mutation", "n": 20, "split": "train"}, 800)
    store.claim(done.id, "host:411")
    store.set_progress(done.id, 1, {"done": 31, "total": 31, "unit": "candidates", "admitted": 20})
    store.finish(
        done.id,
        1,
        {
            "admitted": ids[:20],
            "candidates": 31,
            "reasons": {"no-failing-test": 6, "flaky": 3, "cheat-passed": 2},
            "seconds": 61.4,
        },
    )
    half = put("generate", "factory", {"source": "man:tar", "kind": "tutorial", "n": 10, "split": "train"}, 90)
    store.claim(half.id, "host:411")
    store.set_progress(
        half.id,
        1,
        {"done": 14, "total": 24, "unit": "candidates", "admitted": 9, "reasons": {"oracle-failed": 3, "needs-network": 2}},
    )
    train = put("train", "train", {"stage": "rl", "run_id": run_id}, 540, run_id=run_id)
    store.claim(train.id, "host:415")
    store.set_progress(train.id, 1, {"done": 84, "total": 120, "unit": "steps"})
    broken = put("evaluate", "evals", {"run_id": "rl-6", "name": "after RL", "mode": "sampled"}, 3000, max_attempts=2)
    for attempt in (1, 2):
        store.claim(broken.id, "host:398")
        store.fail(broken.id, attempt, "EngineError: the engine at http://127.0.0.1:40001 is away", retry=attempt == 1)
    put("evaluate", "evals", {"run_id": run_id, "name": "control", "mode": "greedy"}, 12)
    for i in range(6):
        part = put("rollout", "rollouts", {"run_id": run_id, "items": [{}] * 16}, 5 - i * 0.5, parent=train.id, run_id=run_id)
        if i < 4:
            store.claim(part.id, "host:411")
    store.add_events([Event(kind="job.progress", job_id=half.id, data={"done": 14, "total": 24, "admitted": 9})])
    return {"job": half.id, "done_job": done.id, "failed_job": broken.id, "train_job": train.id}
