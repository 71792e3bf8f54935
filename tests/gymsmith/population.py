"""What a house holds, one at a time: an environment with evidence and folder, curves, an attempt, a report."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from pathlib import Path

from gymsmith.ids import ulid
from gymsmith.schema import (
    Environment,
    EvalReport,
    Evidence,
    Gate,
    Metric,
    Reward,
    Score,
    Segment,
    Source,
    Status,
    Step,
    TaskSpec,
    ToolSpec,
    Trajectory,
    VersionSpan,
    now,
)

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
