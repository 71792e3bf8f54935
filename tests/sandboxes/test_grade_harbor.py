"""Harbor's reward contract: what its files may say, from where they are believed, and that our own tasks write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graded import RING_SOLUTION, TUTORIAL_SOLUTIONS, Bench, ledger_task, ring_task, shell_family_task, task_of, tutorial_task

from gymsmith.schema import Reward
from gymsmith.taskdir import Task
from sandboxes.base import ExecResult
from sandboxes.verdict import harbor_rewards, harbor_verdict

OK = ExecResult(exit_code=0, signal=None, output=b"")


@pytest.mark.parametrize(
    ("json_file", "txt_file", "rewards"),
    [
        (None, b"1", {"reward": 1.0}),
        (None, b" 0.25\n", {"reward": 0.25}),
        (None, b"-3e2\n", {"reward": -300.0}),
        (b'{"reward": 1}', b"0", {"reward": 1.0}),
        (b'{"speed": 0.5, "right": 1}', None, {"speed": 0.5, "right": 1.0}),
    ],
)
def test_what_the_files_may_say(json_file: bytes | None, txt_file: bytes | None, rewards: dict[str, float]) -> None:
    assert harbor_rewards(json_file, txt_file) == rewards


@pytest.mark.parametrize(
    ("json_file", "txt_file", "why"),
    [
        (None, None, "neither was"),
        (None, b"", "one number"),
        (None, b"nan", "finite"),
        (None, b"inf", "finite"),
        (None, b"-Infinity", "finite"),
        (None, b"1e999", "finite"),
        (None, b"one", "one number"),
        (None, b"1\n1\n", "one number"),
        (None, b"\xff\xfe", "one number"),
        (b"", b"1", "JSON object"),
        (b"{}", b"1", "JSON object"),
        (b"[1]", b"1", "JSON object"),
        (b"1", b"1", "JSON object"),
        (b'{"reward": NaN}', b"1", "finite"),
        (b'{"reward": Infinity}', b"1", "finite"),
        (b'{"reward": 1e999}', b"1", "finite"),
        (b'{"reward": "1"}', b"1", "finite"),
        (b'{"reward": true}', b"1", "finite"),
        (b'{"reward": null}', b"1", "finite"),
        (b'{"reward": {"a": 1}}', b"1", "finite"),
        (b'{"a": 1, "reward": 1' + b"0" * 400 + b"}", b"1", "finite"),
        (b"[" * 100_000, b"1", "JSON object"),
    ],
)
def test_what_they_may_not(json_file: bytes | None, txt_file: bytes | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        harbor_rewards(json_file, txt_file)
    assert harbor_verdict(json_file, txt_file, OK)[0] == 0.0


@pytest.mark.parametrize("text", [b'{"\\ud800": 0.5}', b'{"\\udcff": "x"}', b'"\\ud800"'])
def test_a_verdict_can_be_stored_whatever_the_file_says(text: bytes) -> None:
    value, tests, detail = harbor_verdict(text, None, OK)
    assert Reward.model_validate_json(Reward(value=value, tests=tests, detail=detail).model_dump_json()).value == value


def test_the_reward_is_the_one_of_that_name_else_the_least() -> None:
    assert harbor_verdict(b'{"speed": 0.5, "right": 1}', None, OK)[:2] == (0.5, {"speed": "failed", "right": "passed"})
    assert harbor_verdict(b'{"speed": 0.5, "reward": 1}', None, OK)[0] == 1.0
    assert harbor_verdict(None, b"1", ExecResult(exit_code=None, signal=9, output=b"", timed_out=True))[0] == 0.0


@pytest.mark.parametrize(
    ("json_file", "txt_file", "named"),
    [
        (None, b"1.0000001", "reward=1.0000001"),
        (None, b"-3e2", "reward=-300"),
        (b'{"reward": 7, "right": 1}', None, "reward=7"),
        (b'{"right": 1, "seconds": -0.5}', None, "seconds=-0.5"),
    ],
)
def test_a_reward_beyond_its_scale_is_none(json_file: bytes | None, txt_file: bytes | None, named: str) -> None:
    value, tests, detail = harbor_verdict(json_file, txt_file, OK)
    assert (value, tests) == (0.0, {}) and "between 0 and 1" in detail and named in detail


def test_what_stands_beside_a_reward_has_its_own_scale() -> None:
    """The control arm: only the reward is bounded, and its ends belong to it."""
    assert harbor_verdict(b'{"reward": 0.25, "seconds": 93.5, "drift": -2}', None, OK)[0] == 0.25
    assert [harbor_verdict(None, text, OK)[0] for text in (b"0", b"-0.0", b"1", b"1.0")] == [0.0, 0.0, 1.0, 1.0]


def imported(test: str, **spec: Any) -> Task:
    """A task as others write them: the tests decide and write their reward; no list of ids."""
    return task_of(
        {"environment/Dockerfile": "FROM gymsmith/host\n", "tests/test.sh": f"#!/bin/bash\n{test}"}, (), report="reward", **spec
    )


SUM = """mkdir -p /logs/verifier
echo 0 > /logs/verifier/reward.txt
if [ "$(cat /work/sum.txt 2>/dev/null)" = 42 ]; then echo 1 > /logs/verifier/reward.txt; fi
exit 1
"""
FORGE = (
    "for d in /logs/verifier /work/logs/verifier; do mkdir -p $d; echo 1 > $d/reward.txt; "
    "echo '{\"reward\": 1}' > $d/reward.json; done"
)


@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_an_imported_task_is_graded_by_its_file(bench: Bench, mode: str) -> None:
    """The exit code says nothing. A reward that the agent wrote, or keeps writing, is not the one that is read."""
    task = imported(SUM, verifier_mode=mode)
    later = f"(setsid sh -c 'while :; do {FORGE.replace(chr(39), chr(34))}; sleep 0.02; done' > /dev/null 2>&1 &)"
    rewards = bench.attempts({"nothing": None, "honest": "echo 42 > /work/sum.txt", "wrote": FORGE, "keeps": later}, task)
    assert {name: reward.value for name, reward in rewards.items()} == {"nothing": 0.0, "honest": 1.0, "wrote": 0.0, "keeps": 0.0}


@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_tests_read_what_the_agent_has_closed_to_others(bench: Bench, mode: str) -> None:
    """Modes are what some tasks ask for, and tests of other harnesses run as root."""
    test = (
        "mkdir -p /logs/verifier; cd /work; stat -c %a keys keys/id; cat keys/id\n"
        "[ $(stat -c %a keys/id)$(cat keys/id) = 600secret ]; echo $((! $?)) > /logs/verifier/reward.txt\n"
    )
    task = imported(test, verifier_mode=mode)
    closed = "mkdir keys; echo secret > keys/id; chmod 600 keys/id; chmod 700 keys"
    rewards = bench.attempts(
        {"closed": closed, "open": closed.replace("600", "644"), "other": closed.replace("secret", "x")}, task
    )
    assert {name: reward.value for name, reward in rewards.items()} == {"closed": 1.0, "open": 0.0, "other": 0.0}


@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_a_reward_is_read_only_from_a_place_that_was_just_made(bench: Bench, mode: str) -> None:
    """An image that leaves /logs open to the agent: tests that write nothing score 0, although a file was there.

    Control arm: the same tests see no file at all, and the agent had really written one.
    """
    opened = "mkdir -p /logs/verifier && chmod 777 /logs /logs/verifier && echo 1 > /logs/verifier/reward.txt"
    dockerfile = f"FROM gymsmith/host\nRUN {opened}\n"
    test = "#!/bin/sh\nls /logs/verifier\n[ ! -e /logs/verifier/reward.txt ] && cat /work/proof\n"
    task = task_of({"environment/Dockerfile": dockerfile, "tests/test.sh": test}, (), report="reward", verifier_mode=mode)
    reward = bench.attempt(f"{FORGE}; cat /logs/verifier/reward.txt > /work/proof", task)
    assert reward.value == 0.0 and "neither was" in reward.detail, reward


def test_odd_reward_files_are_no_reward(bench: Bench) -> None:
    """Tests that were led to leave something else in the file's place."""
    for made in (
        "mkfifo reward.txt",
        "mkdir reward.txt",
        "head -c 200000 /dev/zero | tr '\\0' 1 > reward.txt",
        "echo NaN > reward.txt",
    ):
        reward = bench.attempt(None, imported(f"cd /logs/verifier && {made}\n"))
        assert reward.value == 0.0, (made, reward)
    both = imported("cd /logs/verifier; echo 1 > reward.txt; echo '{\"reward\": 0.5}' > reward.json\n")
    assert bench.attempt(None, both).value == 0.5


def test_a_process_of_the_tests_cannot_change_its_reward_afterwards(bench: Bench) -> None:
    test = (
        "echo 0 > /logs/verifier/reward.txt; (setsid sh -c 'sleep 0.3; echo 1 > /logs/verifier/reward.txt' > /dev/null 2>&1 &)\n"
    )
    assert bench.attempt(None, imported(test)).value == 0.0
    assert bench.attempt(None, imported(f"{test}sleep 1")).value == 1.0, "control arm: it would have"


OURS = {
    "mutation": (lambda: ring_task(observed=False), RING_SOLUTION),
    "shell": (shell_family_task, ""),
    "tutorial": (tutorial_task, TUTORIAL_SOLUTIONS[0]),
    "service": (ledger_task, ""),
}


@pytest.mark.parametrize("kind", OURS)
def test_our_own_tasks_tell_harbor_their_reward(bench: Bench, kind: str) -> None:
    """Read the way Harbor reads them, bundled tasks come to the same verdict as on the host."""
    make, solution = OURS[kind]
    task = make()
    foreign = replace(task, spec=task.spec.model_copy(update={"report": "reward", "expected": ()}))
    rewards = bench.attempts({"nothing": None, "solution": solution or task.solution}, foreign)
    assert (rewards["nothing"].value, rewards["solution"].value) == (0.0, 1.0), rewards
    assert "neither was" not in rewards["nothing"].detail
