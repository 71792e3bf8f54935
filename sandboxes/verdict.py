"""From what the tests told to a reward, on the host.

Our own tasks report lines: `PASS ID`, `FAIL ID [why]` or `SKIP ID`. Every expected id must be reported passed exactly once, and
nothing else may be reported. Tasks that were imported write Harbor's reward file instead (harbor 0.25, `verifier/verifier.py`):
reward.json, a table of finite numbers, wins over reward.txt, one finite number. Nothing here talks to a sandbox.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from gymsmith.schema import Reward
from gymsmith.taskdir import Task
from sandboxes.base import MIB, ExecResult

MAX_REPORT_BYTES = 4 * MIB
MAX_REWARD_BYTES = 64 * 1024
DETAIL_CHARS = 2000
_WORDS = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}


def nothing(task: Task, why: str) -> Reward:
    """The reward 0 of an attempt whose tests could not be run, because of what the agent did."""
    return Reward(value=0.0, tests=dict.fromkeys(task.spec.expected, "missing"), detail=why[:DETAIL_CHARS])


def verdict(
    expected: Sequence[str],
    result: ExecResult,
    secret: str = "",
    *,
    seen: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> tuple[float, dict[str, str], str]:
    """(reward, state of each test, detail) from what the verifier printed; 1 only when every expected id passed exactly once.

    secret: only lines that begin with it count. seen: states that the host found out by itself, by test id; notes: why.
    """
    if not expected:
        return 0.0, {}, "no expected tests: the task names none, so nothing can pass"
    wanted = frozenset(expected)
    states: dict[str, list[str]] = {name: [state] for name, state in (seen or {}).items()}
    reasons = [*notes[:6], *(f"{name} {state}" for name, state in (seen or {}).items() if state != "passed")]
    prefix = f"{secret} " if secret else ""
    for line in result.output.decode(errors="replace").split("\n"):
        if not line.startswith(prefix):
            continue
        word, _, rest = line[len(prefix) :].partition(" ")
        state = _WORDS.get(word)
        if state is None:
            continue
        name = rest.strip()
        if name not in wanted and state != "passed":
            name, _, why = name.partition(" ")
            reasons.append(f"{name}: {why}" if why else name)
        elif state != "passed":
            reasons.append(name)
        states.setdefault(name, []).append(state)
    tests = {name: _state(states.get(name, [])) for name in expected}
    extra = [name for name in states if name not in wanted]
    tests.update(dict.fromkeys(extra[:50], "unexpected"))
    good = not extra and all(state == "passed" for state in tests.values()) and not result.timed_out and not result.truncated
    if good:
        return 1.0, tests, ""
    return 0.0, tests, _why(tests, reasons, result)


def _state(states: list[str]) -> str:
    if not states:
        return "missing"
    return states[0] if len(states) == 1 else "duplicate"


def _why(tests: Mapping[str, str], reasons: list[str], result: ExecResult) -> str:
    """What a person wants to know first: how the run ended, which tests did not pass, the end of the error output."""
    lines = _end(result)
    lines += reasons[:10]
    for state in ("missing", "duplicate", "unexpected"):
        named = [name for name, other in tests.items() if other == state]
        if named:
            lines.append(f"{state}: {', '.join(named[:5])}{' ...' if len(named) > 5 else ''}")
    return _with_tail(lines, result)


def _end(result: ExecResult) -> list[str]:
    lines = []
    if result.timed_out:
        lines.append("the tests ran into the verifier's time limit")
    if result.oom:
        lines.append("the tests ran out of memory")
    if result.truncated:
        lines.append(f"the report is larger than {MAX_REPORT_BYTES // MIB} MiB")
    if result.signal is not None and not result.timed_out:
        lines.append(f"test.sh was killed by signal {result.signal}")
    return lines


def _with_tail(lines: list[str], result: ExecResult) -> str:
    tail = result.stderr.decode(errors="replace").strip()
    return "\n".join([*lines, tail[-DETAIL_CHARS // 2 :]] if tail else lines)


def harbor_rewards(json_file: bytes | None, txt_file: bytes | None) -> dict[str, float]:
    """The rewards by name that Harbor reads from its two files; None is a file that is not there.

    Raises: ValueError: neither file, an empty one, or anything but finite numbers; the message says which.
    """
    if json_file is not None:
        try:
            table = json.loads(json_file.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"reward.json must be a JSON object of numbers: {error}") from None
        if not isinstance(table, dict) or not table:
            raise ValueError(f"reward.json must be a JSON object of numbers, got {str(table)[:80]}")
        for name, value in table.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
                raise ValueError(f"reward.json must hold finite numbers, got {name[:80]}={str(value)[:80]}")
        return {name: float(value) for name, value in table.items()}
    if txt_file is None:
        raise ValueError("reward.txt or reward.json must be written by the tests, neither was")
    text = txt_file.decode(errors="replace").strip()
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"reward.txt must hold one number, got {text[:80]!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"reward.txt must hold a finite number, got {text[:80]!r}")
    return {"reward": number}


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: JSON may spell half a surrogate pair, with which a verdict could not be stored."""
    return text.encode(errors="backslashreplace").decode()


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def harbor_verdict(json_file: bytes | None, txt_file: bytes | None, result: ExecResult) -> tuple[float, dict[str, str], str]:
    """(reward, state by name, detail) of tests that tell a reward: the one called `reward`, else the least of all.

    That one must lie between 0 and 1, and is 0 otherwise: a scale that a trainer does not know must not steer it, and cutting
    it off would call a 7 of 100 a full success. Other names may hold any finite number.
    Tests that ran into their limit, or told no reward, tell 0: they do tell one while nothing is broken, as the gates saw.
    """
    if result.timed_out:
        return 0.0, {}, _with_tail(_end(result), result)
    try:
        rewards = harbor_rewards(json_file, txt_file)
    except ValueError as error:
        return 0.0, {}, _with_tail([_storable(str(error)), *_end(result)], result)
    rewards = {_storable(name): each for name, each in rewards.items()}
    name = "reward" if "reward" in rewards else min(rewards, key=lambda each: rewards[each])
    value = rewards[name]
    if not 0.0 <= value <= 1.0:
        return 0.0, {}, _with_tail([f"the reward must lie between 0 and 1, got {name}={value}", *_end(result)], result)
    tests = {name: "passed" if each >= 1.0 else "failed" for name, each in rewards.items()}
    return value, tests, "" if value >= 1.0 else _with_tail([f"{name}={each:g}" for name, each in rewards.items()], result)
