"""The gates: a good draft stands, and each kind of bad one falls with its own word."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory.build import build
from env_factory.cheats.corpus import corpus
from env_factory.gates import stages
from env_factory.gates.mutants import Rules
from env_factory.gates.reasons import REASONS
from env_factory.gates.stages import Proof, prove
from env_factory.gates.still import leak
from env_factory.gates.trial import RETRIES, asking_again
from env_factory.swe import suite
from gymsmith import taskdir
from gymsmith.errors import InfrastructureError, SandboxError, SourceError
from gymsmith.schema import Draft, Source, TaskSpec
from gymsmith.taskdir import Task
from tests.sandboxes.graded import RING_EXPECTED, RING_SOLUTION, ring_task

TEST = '#!/bin/sh\nif [ "$(cat sum.txt 2>/dev/null)" = "$(cat /tests/want)" ]; then echo PASS sum; else echo FAIL sum; fi\n'
DOCKERFILE = "FROM gymsmith/host\nWORKDIR /work\nCOPY --chown=agent:agent work /work\n"
FILES = {
    "environment/Dockerfile": DOCKERFILE.encode(),
    "environment/work/a.txt": b"417\n",
    "environment/work/b.txt": b"85\n",
    "tests/test.sh": TEST.encode(),
    "tests/want": b"502\n",
    "solution/solve.sh": b"cd /work\necho $(( $(cat a.txt) + $(cat b.txt) )) > sum.txt\n",
}
GOOD = Draft(
    source=Source(uri="shell:sum", kind="parametric"),
    spec=TaskSpec(name="gymsmith/sum", kind="sum", expected=("sum",), hidden=("417",), memory_mb=128, pids=32),
    instruction="Write the sum of the numbers in a.txt and b.txt into sum.txt.",
    files=FILES,
    alternatives=("cd /work; expr $(cat b.txt) + $(cat a.txt) > sum.txt\n",),
    cheats=(("zero", "echo 0 > /work/sum.txt\n"), ("first", "cp /work/a.txt /work/sum.txt\n")),
    executable=frozenset({"tests/test.sh"}),
)


def proved(doorway: Any, draft: Draft, level: stages.Level = "full", rules: Rules = Rules()) -> Proof:
    async def work() -> Proof:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        image = await build(draft, images)
        return await prove(draft, image, provider, level=level, base_digest=images.base_digest(), rules=rules)

    proof: Proof = doorway.worker.run(work())
    return proof


def changed(**files: bytes) -> dict[str, bytes]:
    return FILES | {name.replace("__", "/").replace("_sh", ".sh"): data for name, data in files.items()}


def test_a_good_draft_is_proved_with_all_its_evidence(doorway: Any) -> None:
    proof = proved(doorway, GOOD)
    assert (proof.reason, proof.evidence.proved) == ("", True), proof
    seen = {gate.name: gate.rewards for gate in proof.evidence.gates}
    assert seen["noop"] == (0.0, 0.0, 0.0) and seen["oracle"] == (1.0, 1.0, 1.0) and seen["alternative-1"] == (1.0,)
    cheats = [rewards for name, rewards in seen.items() if name.startswith("cheat:")]
    assert len(cheats) >= stages.MIN_CHEATS + len(GOOD.cheats) and set(cheats) == {(0.0,)}
    assert proof.evidence.environment_id == GOOD.id and proof.evidence.image_id and proof.evidence.base_digest


def test_controls_alone_try_no_cheats(doorway: Any) -> None:
    names = {gate.name for gate in proved(doorway, GOOD, "controls").evidence.gates}
    assert {"noop", "oracle", "leak", "looking", "runtime"} <= names and not any(n.startswith("cheat") for n in names)


BAD: dict[str, tuple[Draft, str]] = {
    "passes whatever was done": (replace(GOOD, files=changed(tests__test_sh=b"echo PASS sum\n")), "noop-passes"),
    "cannot be solved by its solution": (
        replace(GOOD, files=changed(solution__solve_sh=b"echo 501 > /work/sum.txt\n")),
        "oracle-fails",
    ),
    "is solved now and then": (
        replace(GOOD, files=changed(tests__test_sh=TEST.encode() + b"case $(date +%N) in *[13579]) echo FAIL sum;; esac\n")),
        "",
    ),
    "has a second solution that is none": (replace(GOOD, alternatives=("echo 7 > /work/sum.txt\n",)), "alternative-fails"),
    "believes a made-up answer": (
        replace(GOOD, files=changed(tests__test_sh=b"[ -f sum.txt ] && echo PASS sum || echo FAIL sum\n")),
        "cheat-passes",
    ),
    "shows its tests": (replace(GOOD, files={**FILES, "environment/work/check.sh": TEST.encode()}), "leak"),
    "tells the answer": (replace(GOOD, instruction=GOOD.instruction + " The first number is 417."), "looking"),
    "is too slow": (
        replace(
            GOOD,
            spec=GOOD.spec.model_copy(update={"verifier_timeout_s": 1.0}),
            files=changed(tests__test_sh=b"#!/bin/sh\nsleep 0.6\n" + TEST.encode()),
        ),
        "slow",
    ),
}


@pytest.mark.parametrize("case", [name for name in BAD if BAD[name][1]])
def test_a_bad_draft_falls_with_its_own_word(doorway: Any, case: str) -> None:
    draft, reason = BAD[case]
    proof = proved(doorway, draft)
    assert proof.reason == reason and reason in REASONS, proof
    assert not proof.evidence.proved and (proof.detail or reason == "slow")


def test_a_flaky_verifier_is_never_proved(doorway: Any) -> None:
    flaky = BAD["is solved now and then"][0]
    reasons = {proved(doorway, replace(flaky, instruction=f"{flaky.instruction} ({turn})")).reason for turn in range(4)}
    assert reasons & {"flaky", "oracle-fails"}, "a coin was thrown at least twelve times"


def test_the_leak_scan_knows_solutions_histories_and_test_names() -> None:
    solution = GOOD.files["solution/solve.sh"].decode().splitlines()[1]
    assert not leak(replace(GOOD, instruction=f"Run {solution}")).passed
    assert not leak(replace(GOOD, files={**FILES, "environment/work/.git/HEAD": b"ref"})).passed
    named = GOOD.spec.model_copy(update={"expected": ("test_a.py::test_b",)})
    assert not leak(replace(GOOD, spec=named, instruction="Make test_a.py::test_b pass.")).passed
    assert leak(GOOD).passed


def test_tests_may_keep_a_copy_of_what_the_agent_starts_from() -> None:
    given, check = b"name,amount\n" * 10, b"import csv\nprint('looks at the sums')\nraise SystemExit(0)\n"
    shared = {"environment/work/orders.csv": given, "tests/orders.csv": given}
    assert leak(replace(GOOD, files=FILES | shared), "admission").passed
    assert not leak(replace(GOOD, files=FILES | shared)).passed
    shown = {
        "environment/work/x.py": check,
        "tests/check.py": check,
        "tests/test.sh": b"python3 /tests/check.py\n" + TEST.encode(),
    }
    assert not leak(replace(GOOD, files=FILES | shown), "admission").passed
    assert not leak(
        replace(
            GOOD,
            files=FILES | {"environment/x": FILES["solution/solve.sh"] * 3, "solution/solve.sh": FILES["solution/solve.sh"] * 3},
        ),
        "admission",
    ).passed


def test_general_cheats_take_turns_and_some_do_not() -> None:
    """Over many drafts every cheat of the corpus is tried; what attacks one draft's own tests is tried on each."""
    runner = {**FILES, "tests/run.py": b"x"}
    kind = GOOD.spec.model_copy(update={"kind": "mutation"})
    drafts = [replace(GOOD, files=runner, spec=kind, instruction=f"{GOOD.instruction} ({n})") for n in range(200)]
    tried = [[name for name, _ in stages._general(draft, Task.of(draft))] for draft in drafts]
    assert all(len(names) == len(set(names)) == stages.GENERAL_CHEATS["mutation"] - len(GOOD.cheats) for names in tried)
    assert all(set(names) >= stages.ALWAYS for names in tried)
    assert {name for names in tried for name in names} == {cheat.name for cheat in corpus()}
    other = replace(GOOD, spec=GOOD.spec.model_copy(update={"kind": "service"}))
    assert len(stages._general(other, Task.of(other))) >= 20, "a kind without a number of its own is tried with all that fit"


def test_a_task_with_a_service_is_proved_in_its_own_sandbox(doorway: Any) -> None:
    """The bundled stateful task stands every gate, and falls where its service can no longer start."""
    draft = taskdir.read(Path(__file__).parents[2] / "examples/services/ledger").draft
    proof = proved(doorway, draft, "controls")
    assert (proof.reason, proof.evidence.proved) == ("", True), proof
    lame = draft.spec.services[0].model_copy(update={"command": "exit 1", "ready_timeout_s": 0.5})
    fallen = proved(doorway, replace(draft, spec=draft.spec.model_copy(update={"services": (lame,)})), "controls")
    assert fallen.reason == "oracle-fails" and "service ledger" in fallen.detail, fallen


def test_a_sandbox_that_fails_us_is_asked_again_and_never_counts() -> None:
    answers: list[Exception | str] = [SandboxError("gone"), SandboxError("gone again"), "an answer"]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert asyncio.run(asking_again(ask)) == "an answer"
    answers = [SandboxError("gone")] * RETRIES
    with pytest.raises(InfrastructureError):
        asyncio.run(asking_again(ask))


def test_the_whole_suite_is_for_the_oracle_alone(doorway: Any) -> None:
    """Selected tests decide on everything else; a solution that breaks what lies outside them falls with a word of its own."""
    script = "#!/bin/sh\nfor t in $(cat /tests/select.txt); do . /tests/$t; done\n"
    kept = '[ "$(cat a.txt 2>/dev/null)" = 417 ] && echo PASS kept || echo FAIL kept\n'
    files = changed(tests__test_sh=script.encode()) | {
        "tests/sum": TEST.encode(),
        "tests/kept": kept.encode(),
        "tests/select.txt": b"sum\n",
        suite.MEMBER: suite.member(["sum", "kept"], timeout_s=20),
    }
    good = replace(GOOD, files=files)
    whole = suite.whole(Task.of(good))
    assert whole is not None and whole.spec.expected == ("sum", "kept") and whole.files["tests/select.txt"] == b"sum\nkept\n"
    careless = replace(GOOD, files=files | {"solution/solve.sh": FILES["solution/solve.sh"] + b"rm a.txt\n"}, alternatives=())
    proof = proved(doorway, careless, "admission")
    assert proof.reason == "suite-fails" and "kept" in proof.detail, proof
    with pytest.raises(SourceError, match="every selected test, 'sum'"):
        suite.whole(Task.of(replace(good, files=files | {suite.MEMBER: suite.member(["kept"], timeout_s=1)})))
    assert suite.whole(Task.of(GOOD)) is None


@pytest.mark.parametrize("trap", ["zone", "hash", "order"])
def test_an_oracle_that_holds_under_one_condition_only_is_flaky(doorway: Any, trap: str) -> None:
    if trap == "order":
        ring = ring_task(observed=False)
        ordered = ring.files["tests/suite/test_ring.py"] + b"\nseen = []\ndef test_first():\n    seen.append(1)\n"
        ordered += b"def test_then():\n    assert seen\n"
        tests = (*RING_EXPECTED, "test_ring.py::test_first", "test_ring.py::test_then")
        ring = replace(ring, spec=ring.spec.model_copy(update={"expected": tests}))
        files = {"tests/suite/test_ring.py": ordered, "tests/select.txt": "\n".join(tests).encode()}
        draft = replace(ring.draft, files=ring.files | files | {"solution/solve.sh": RING_SOLUTION.encode()})
    else:
        check = {"zone": '[ "$(date +%z)" = +0000 ]', "hash": '[ -z "$PYTHONHASHSEED" ]'}[trap]
        draft = replace(GOOD, files=changed(tests__test_sh=f"#!/bin/sh\n{check} || exit\n".encode() + TEST.encode()))
    assert proved(doorway, draft, "controls").reason == ""
    proof = proved(doorway, draft, "admission")
    words = {"zone": "a day", "hash": "a day", "order": "other order"}
    assert proof.reason == "flaky" and words[trap] in proof.detail, proof
