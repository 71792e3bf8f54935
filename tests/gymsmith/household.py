"""A store filled with what a small house holds after a day: environments, runs with curves, attempts, reports, jobs."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta

from gymsmith.config import Settings
from gymsmith.ids import ulid
from gymsmith.schema import (
    Job,
    Metric,
    Run,
    State,
    Status,
    now,
)
from gymsmith.store import Event, Store

from population import environment, evidence, write_folder, trajectory, curves, report, FAMILIES  # isort: skip


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
