"""The verdict, which the agent cannot reach.

The agent's sandbox is frozen, the declared changes are copied out (`artifacts.py`) and the sandbox is destroyed with everything
that still ran in it. A fresh sandbox of the pristine image gets these changes as a layer and the hidden tests as root's files,
`tests/test.sh` runs as another user with a clean environment, and the host compares its report with the list of test ids that
only the host knows: every expected id must be reported passed exactly once, and nothing else may be reported. What the tests
write into /logs/verifier/reward.txt is there for Harbor and is not read.

A report line is `PASS ID`, `FAIL ID [why]` or `SKIP ID` on standard output. Tasks whose tests contain `run.py`
(`verifier/pytest_runner.py`) get a secret on standard input, and only lines that begin with it count.

"shared" tasks (an end state that cannot be declared) carry everything the agent may have written, again into a fresh sandbox: no
process of the agent's survives in either mode.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence

from gymsmith.errors import ExecTimeout, PolicyRefused, SandboxGone
from gymsmith.schema import Reward
from gymsmith.taskdir import Task
from sandboxes.artifacts import Artifacts, collect
from sandboxes.base import MIB, ExecResult, Image, Provider, Sandbox, SandboxSpec

log = logging.getLogger(__name__)

__all__ = ["Artifacts", "attempt_script", "collect", "sandbox_spec", "verdict", "verify"]

RUNNER = "tests/run.py"
MAX_REPORT_BYTES = 4 * MIB
DETAIL_CHARS = 2000
_WORDS = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}


def sandbox_spec(task: Task, image: Image, user: str, **labels: str) -> SandboxSpec:
    """The limits that the task declares, for a sandbox in which `user` works."""
    spec = task.spec
    return SandboxSpec(
        image=image.id,
        workdir=spec.workdir,
        user=user,
        memory_bytes=spec.memory_mb * MIB,
        pids=spec.pids,
        cpus=spec.cpus,
        labels=labels,
    )


async def verify(provider: Provider, image: Image, task: Task, artifacts: Artifacts) -> Reward:
    """Run the hidden tests on `artifacts` in a fresh sandbox of `image`; the host's verdict.

    Raises: InfrastructureError: the provider failed; never because of what the agent left.
    """
    began = time.perf_counter()
    if artifacts.refused:
        return Reward(value=0.0, tests=dict.fromkeys(task.spec.expected, "missing"), detail=artifacts.refused)
    artifacts.admit(image)
    secret = secrets.token_hex(16) if RUNNER in task.files else ""
    result: ExecResult | None = None
    for attempt in (1, 2):
        try:
            result = await _run_tests(provider, image, task, artifacts, secret)
            break
        except (SandboxGone, ExecTimeout) as error:
            log.warning("verifier sandbox lost task=%s attempt=%d error=%s", task.spec.name, attempt, error)
            if attempt == 2:
                await assert_alive(provider, image)
    if result is None:
        value, tests, detail = (
            0.0,
            dict.fromkeys(task.spec.expected, "missing"),
            "the sandbox died twice under the tests, others live",
        )
    else:
        value, tests, detail = verdict(task.spec.expected, result, secret)
    if value == 0.0 and artifacts.dropped:
        detail = f"{detail}\nnot carried: {'; '.join(artifacts.dropped[:8])}"
    return Reward(value=value, tests=tests, detail=detail[:DETAIL_CHARS], seconds=round(time.perf_counter() - began, 6))


async def _run_tests(provider: Provider, image: Image, task: Task, artifacts: Artifacts, secret: str) -> ExecResult:
    box = await provider.create(sandbox_spec(task, image, "tester", phase="verify"), layers=artifacts.admit(image))
    try:
        for path, mode in artifacts.closed.items():
            await box.put(path, (artifacts.layer / path[1:]).read_bytes(), mode & 0o777, owner="tester")
        await box.put_files({f"/{name}": data for name, data in task.files.items() if name.startswith("tests/")}, mode=0o755)
        script = task.files["tests/test.sh"]
        command = ["/tests/test.sh"] if script.startswith(b"#!") else ["/bin/sh", "/tests/test.sh"]
        return await box.exec(
            command,
            user="tester",
            stdin=f"{secret}\n".encode() if secret else b"",
            timeout_s=task.spec.verifier_timeout_s,
            max_output_bytes=MAX_REPORT_BYTES,
            split=True,
        )
    finally:
        await box.destroy()


async def assert_alive(provider: Provider, image: Image) -> None:
    """Show that the provider works without the agent's files, so that their death is the agent's. Raises: SandboxError."""
    box = await provider.create(SandboxSpec(image=image.id, user="tester", labels={"phase": "probe"}))
    try:
        await box.exec(["/bin/sh", "-c", ":"], timeout_s=10.0)
    finally:
        await box.destroy()


def verdict(expected: Sequence[str], result: ExecResult, secret: str = "") -> tuple[float, dict[str, str], str]:
    """(reward, state of each test, detail) from what the verifier printed; 1 only when every expected id passed exactly once."""
    if not expected:
        return 0.0, {}, "no expected tests: the task names none, so nothing can pass"
    wanted = frozenset(expected)
    seen: dict[str, list[str]] = {}
    reasons: list[str] = []
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
        seen.setdefault(name, []).append(state)
    tests = {name: _state(seen.get(name, [])) for name in expected}
    extra = [name for name in seen if name not in wanted]
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
    lines = []
    if result.timed_out:
        lines.append("the tests ran into the verifier's time limit")
    if result.oom:
        lines.append("the tests ran out of memory")
    if result.truncated:
        lines.append(f"the report is larger than {MAX_REPORT_BYTES // MIB} MiB")
    if result.signal is not None and not result.timed_out:
        lines.append(f"test.sh was killed by signal {result.signal}")
    lines += reasons[:10]
    for state in ("missing", "duplicate", "unexpected"):
        named = [name for name, other in tests.items() if other == state]
        if named:
            lines.append(f"{state}: {', '.join(named[:5])}{' ...' if len(named) > 5 else ''}")
    tail = result.stderr.decode(errors="replace").strip()
    return "\n".join([*lines, tail[-DETAIL_CHARS // 2 :]] if tail else lines)


async def attempt_script(
    provider: Provider, image: Image, task: Task, script: str | None, *, unchanged: Reward | None = None
) -> Reward:
    """The reward of a scripted agent: `script` (a solution or a cheat) run once as the agent; None does nothing at all.

    `unchanged`: the known verdict on doing nothing. It is given again, without running the tests, when nothing that the script
    did crosses: the verifier would then see what it saw for the no-op, byte for byte.
    Raises: InfrastructureError: the provider failed; a script that takes its own sandbox down scores 0.
    """
    said = ""
    try:
        box = await provider.create(sandbox_spec(task, image, "agent", phase="attempt"))
        try:
            if script is not None:
                said = await _act(box, task, script)
            artifacts = await collect(box, task)
        finally:
            await box.destroy()
    except (SandboxGone, ExecTimeout) as error:
        await assert_alive(provider, image)
        return Reward(
            value=0.0, tests=dict.fromkeys(task.spec.expected, "missing"), detail=f"the script's sandbox ended: {error}"
        )
    try:
        if unchanged is not None and not artifacts.refused and not artifacts.admit(image):
            return unchanged
        reward = await verify(provider, image, task, artifacts)
    finally:
        artifacts.close()
    if reward.value == 0.0 and said:
        return reward.model_copy(update={"detail": f"{reward.detail}\n{said}"[:DETAIL_CHARS]})
    return reward


async def _act(box: Sandbox, task: Task, script: str) -> str:
    """Run the script as Harbor's oracle does, from /solution; returns what it said when it failed."""
    try:
        await box.put("/solution/solve.sh", script.encode(), 0o755)
    except PolicyRefused as error:
        return f"the script was not run: {error}"
    command = ["/solution/solve.sh"] if script.startswith("#!") else ["/bin/sh", "/solution/solve.sh"]
    result = await box.exec(command, user="agent", timeout_s=task.spec.agent_timeout_s, max_output_bytes=4096)
    if result.ok:
        return ""
    end = "time limit" if result.timed_out else f"signal {result.signal}" if result.signal else f"exit code {result.exit_code}"
    return f"script: {end}: {result.output.decode(errors='replace').strip()[-500:]}"
