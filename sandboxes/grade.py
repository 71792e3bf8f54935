"""The verdict, which the agent cannot reach.

`judge` ends an attempt. "separate" tasks (the default): the agent's sandbox is frozen, the declared changes are copied out
(`artifacts.py`) and the sandbox is destroyed with everything that still ran in it; a fresh sandbox of the pristine image gets
these changes as a layer. "shared" tasks (a state that no list of files holds: databases, installed programs): every process in
the agent's own sandbox is killed, and its file system is what the tests see. Either way the services that the task declares are
started from their declaration, the hidden tests arrive as root's files that only the tests' group can read, `tests/test.sh` runs
as a user that the agent never was, with an environment made here, and the host forms the verdict (`verdict.py`).

Where the results come from is said by `TaskSpec.report`. Tasks whose tests contain `run.py` (`verifier/pytest_runner.py`) get a
secret on standard input, and only lines that begin with it count. Harbor's reward files are read only from /logs/verifier,
which is made anew once the agent is dead, belongs to the tests' user and is not carried; for our own tasks they are not read.

In a shared sandbox the tests use its programs, so those must be beyond the agent's reach: that is asked of the pristine image,
once. Where the agent could have written to them, where the task protects names, or where this machine has one user id only, the
shared state is carried into a fresh sandbox instead.

A test-suite that breaks, hangs or cannot be started on what the agent left scores 0. An error is raised only for what the agent
cannot cause: before a verifier's sandbox that failed twice counts as the agent's doing, another one without its files must work.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from types import MappingProxyType

from gymsmith.errors import Capacity, ExecTimeout, HostLost, ImageMissing, PolicyRefused, SandboxError, SandboxGone
from gymsmith.schema import Reward
from gymsmith.taskdir import Task
from sandboxes import layout, observations, services
from sandboxes.artifacts import Artifacts, collect
from sandboxes.base import MIB, ExecResult, Image, Provider, Sandbox, SandboxSpec
from sandboxes.network import policy_of
from sandboxes.verdict import DETAIL_CHARS, MAX_REPORT_BYTES, MAX_REWARD_BYTES, harbor_verdict, nothing, verdict

log = logging.getLogger(__name__)

__all__ = ["Artifacts", "assert_alive", "attempt_script", "collect", "judge", "left_by", "sandbox_spec", "verdict", "verify"]

RUNNER = "tests/run.py"
HOST_ONLY = frozenset({observations.MEMBER, layout.MEMBER})
"""Members of tests/ that no sandbox ever holds."""
LOGS = "/logs/verifier"
TESTS_OWNER = "0:1001"
"""Root's, readable by the tester's group: neither the agent and the services nor the code under test can change them."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLCHAIN = "/bin /sbin /lib /lib32 /lib64 /libx32 /usr /etc"
PREPARE_S = 60.0
_CLEAR = f"rm -rf -- /tests /solution {LOGS}; ! [ -e /tests ] && ! [ -e {LOGS} ]"
_WRITABLE = (
    "command -v find >/dev/null || exit 1; for place in {places}; do "
    "[ -L $place ] || ! [ -e $place ] || find $place ! -type l -writable -print -quit 2>/dev/null; done; exit 0"
)
_REPORT_ON_3 = 'exec 3>&1 1>&2; exec "$@"'
_beyond_reach: dict[tuple[str, str], bool] = {}
"""(provider, image id) -> whether the agent's user can write nothing of the image's programs."""


def sandbox_spec(
    task: Task, image: Image, user: str, env: Mapping[str, str] = MappingProxyType({}), /, **labels: str
) -> SandboxSpec:
    """The limits that the task declares, for a sandbox in which `user` works. `env`: added to the image's for every command."""
    spec = task.spec
    return SandboxSpec(
        image=image.id,
        workdir=spec.workdir,
        env=env,
        user=user,
        memory_bytes=spec.memory_mb * MIB,
        pids=spec.pids,
        cpus=spec.cpus,
        network=policy_of(spec, verifying=user == "tester"),
        labels=labels,
    )


async def judge(
    provider: Provider,
    image: Image,
    task: Task,
    box: Sandbox,
    *,
    unchanged: Reward | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Reward:
    """The verdict on what was done in `box`, which is destroyed on the way.

    unchanged: the known verdict on doing nothing. It is given again, without running the tests, when nothing that was done
    crosses: the verifier would then see what it saw for the no-op, byte for byte.
    Raises: InfrastructureError: the provider failed; never because of what the agent did.
    """
    try:
        if task.spec.verifier_mode == "shared" and not task.spec.protected and await _stays(provider, image):
            return await _verify_in_place(provider, image, task, box)
        artifacts = await _collect(provider, image, task, box)
    finally:
        await box.destroy()
    if isinstance(artifacts, Reward):
        return artifacts
    try:
        if unchanged is not None and not artifacts.refused and not artifacts.admit(image):
            return unchanged
        return await verify(provider, image, task, artifacts, env=env)
    finally:
        artifacts.close()


async def _collect(provider: Provider, image: Image, task: Task, box: Sandbox) -> Artifacts | Reward:
    try:
        return await collect(box, task)
    except (SandboxGone, ExecTimeout) as death:
        await assert_alive(provider, image)
        return nothing(task, f"the sandbox ended: {death}")


async def verify(
    provider: Provider, image: Image, task: Task, artifacts: Artifacts, *, env: Mapping[str, str] = MappingProxyType({})
) -> Reward:
    """Run the hidden tests on `artifacts` in a fresh sandbox of `image`; the host's verdict.

    Raises: InfrastructureError: the provider failed; never because of what the agent left.
    """
    began = time.perf_counter()
    if artifacts.refused:
        return nothing(task, artifacts.refused)
    artifacts.admit(image)
    reward: Reward | None = None
    for attempt in (1, 2):
        try:
            reward = await _verify_fresh(provider, image, task, artifacts, env)
            break
        except (Capacity, ImageMissing):
            raise
        except SandboxError as error:
            log.warning("verifier sandbox lost task=%s attempt=%d error=%s", task.spec.name, attempt, error)
            if attempt == 2:
                if isinstance(error, HostLost):
                    raise
                await assert_alive(provider, image)
                reward = nothing(task, f"the verifier's sandbox failed twice on what was left, others work: {error}")
    assert reward is not None
    if reward.value == 0.0 and artifacts.dropped:
        detail = f"{reward.detail}\nnot carried: {'; '.join(artifacts.dropped[:8])}"
        reward = reward.model_copy(update={"detail": detail[:DETAIL_CHARS]})
    return reward.model_copy(update={"seconds": round(time.perf_counter() - began, 6)})


async def _verify_fresh(provider: Provider, image: Image, task: Task, artifacts: Artifacts, env: Mapping[str, str]) -> Reward:
    box = await provider.create(sandbox_spec(task, image, "tester", env, phase="verify"), layers=artifacts.admit(image))
    try:
        for path, mode in artifacts.closed.items():
            await box.put(path, (artifacts.layer / path[1:]).read_bytes(), mode & 0o777, owner="tester")
        return await _examine(box, image, task, carried=artifacts.roots)
    except OSError as error:
        raise SandboxError(f"the verifier's sandbox did not take the tests: {error}") from error
    finally:
        await box.destroy()


async def _verify_in_place(provider: Provider, image: Image, task: Task, box: Sandbox) -> Reward:
    """The verdict on the agent's own file system. What fails here is the agent's doing if other sandboxes work."""
    began = time.perf_counter()
    try:
        await box.kill_agents()
        if not task.spec.verifier_network:
            await box.disconnect()
        reward = await _examine(box, image, task, carried=("/",))
    except (SandboxGone, ExecTimeout, OSError) as error:
        await assert_alive(provider, image)
        reward = nothing(task, f"the sandbox did not take the tests, others do: {error}")
    return reward.model_copy(update={"seconds": round(time.perf_counter() - began, 6)})


async def _examine(box: Sandbox, image: Image, task: Task, carried: tuple[str, ...]) -> Reward:
    """Observations, the page as a browser draws it, services, tests, verdict, in a sandbox where nothing of the agent's runs.

    carried: where the agent's files are; no program is looked up there.
    """
    spec = task.spec
    seen = await observations.look(box, task, spec.verifier_timeout_s)
    drawn = await layout.look(box, task)
    seen |= drawn.states
    if carried == ("/",) or spec.report == "reward":
        cleared = await box.exec(_CLEAR, user="root", timeout_s=PREPARE_S)
        if not cleared.ok:
            return nothing(task, f"the place of the tests cannot be cleared: {cleared.output.decode(errors='replace')[-500:]}")
    await box.put(f"{LOGS}/test-stdout.txt", b"", owner="tester")
    tests = {f"/{name}": data for name, data in task.files.items() if name.startswith("tests/") and name not in HOST_ONLY}
    await box.put_files(tests, mode=0o755, owner=TESTS_OWNER)
    if spec.services:
        closed = await box.exec(["/bin/chmod", "0750", "/tests"], user=TESTS_OWNER, timeout_s=PREPARE_S)
        if not closed.ok:
            return nothing(task, f"/tests cannot be closed to the services: {closed.output.decode(errors='replace')[-500:]}")
        broken = await services.start(box, spec.services, spec.workdir)
        if broken:
            return nothing(task, broken)
    secret = secrets.token_hex(16) if RUNNER in task.files else ""
    command = ["/tests/test.sh"] if task.files["tests/test.sh"].startswith(b"#!") else ["/bin/sh", "/tests/test.sh"]
    if spec.report == "descriptor":
        command = ["/bin/sh", "-c", _REPORT_ON_3, "sh", *command]
    result = await box.exec(
        command,
        user="examiner" if spec.report == "reward" else "tester",
        env={"PATH": _path(image, carried), "HOME": LOGS},
        stdin=f"{secret}\n".encode() if secret else b"",
        timeout_s=spec.verifier_timeout_s,
        max_output_bytes=MAX_REPORT_BYTES,
        split=True,
    )
    if spec.report == "reward":
        value, states, detail = await _harbor(box, result)
    else:
        value, states, detail = verdict(spec.expected, result, secret, seen=seen, notes=drawn.notes)
    return Reward(value=value, tests=states, detail=detail[:DETAIL_CHARS])


async def _harbor(box: Sandbox, result: ExecResult) -> tuple[float, dict[str, str], str]:
    """The reward files, read once nothing runs any more that could still write them."""
    await box.kill_agents()
    found: dict[str, bytes | None] = {}
    for name in ("reward.json", "reward.txt"):
        try:
            found[name] = await box.get(f"{LOGS}/{name}", MAX_REWARD_BYTES)
        except FileNotFoundError:
            found[name] = None
        except (SandboxError, PolicyRefused, OSError) as error:
            if isinstance(error, SandboxGone | ExecTimeout | HostLost):
                raise
            found[name] = b""  # too large, a FIFO, a directory: there, and no number
    return harbor_verdict(found["reward.json"], found["reward.txt"], result)


def _path(image: Image, carried: tuple[str, ...]) -> str:
    """Where the tests' programs are looked up: the image's PATH, less what lies among the agent's files."""
    if carried == ("/",):
        return SYSTEM_PATH
    entries = image.env.get("PATH", SYSTEM_PATH).split(":")
    kept = [
        entry for entry in entries if entry.startswith("/") and not any(f"{entry}/".startswith(f"{root}/") for root in carried)
    ]
    return ":".join(kept) or SYSTEM_PATH


async def _stays(provider: Provider, image: Image) -> bool:
    """Whether a shared verdict can be formed in the agent's own sandbox."""
    if not provider.capabilities.users:
        return False
    key = (provider.name, image.id)
    if key not in _beyond_reach:
        bound = {inside for _, inside in image.binds}
        places = " ".join(place for place in TOOLCHAIN.split() if place not in bound)
        box = await provider.create(SandboxSpec(image=image.id, user="agent", labels={"phase": "probe"}))
        try:
            result = await box.exec(_WRITABLE.format(places=places), timeout_s=PREPARE_S)
        finally:
            await box.destroy()
        _beyond_reach[key] = result.ok and not result.output.strip()
        if not _beyond_reach[key]:
            log.warning("programs within reach image=%s first=%s", image.id, result.output[:200])
    return _beyond_reach[key]


async def assert_alive(provider: Provider, image: Image) -> None:
    """Show that the provider works without the agent's files, so that their death is the agent's. Raises: SandboxError."""
    box = await provider.create(SandboxSpec(image=image.id, user="tester", labels={"phase": "probe"}))
    try:
        await box.exec(["/bin/sh", "-c", ":"], timeout_s=10.0)
    finally:
        await box.destroy()


async def attempt_script(
    provider: Provider,
    image: Image,
    task: Task,
    script: str | None,
    *,
    unchanged: Reward | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Reward:
    """The reward of a scripted agent; see `tried`. Where it is 0, what the script said of its own failure is in the detail."""
    reward, said = await tried(provider, image, task, script, unchanged=unchanged, env=env)
    if reward.value == 0.0 and said:
        return reward.model_copy(update={"detail": f"{reward.detail}\n{said}"[:DETAIL_CHARS]})
    return reward


async def tried(
    provider: Provider,
    image: Image,
    task: Task,
    script: str | None,
    *,
    unchanged: Reward | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Reward, str]:
    """A scripted agent: `script` (a solution or a cheat) run once as the agent; None does nothing at all.

    unchanged: see `judge`. env: added to the image's environment in both sandboxes, where a task is to show that it does not
    depend on it.
    Returns: the reward, and how the script failed, which says nothing of the tests; empty when it ended well.
    Raises: InfrastructureError: the provider failed; a script that takes its own sandbox down scores 0.
    """
    said = ""
    box = await provider.create(sandbox_spec(task, image, "agent", env, phase="attempt"))
    try:
        try:
            broken = await services.start(box, task.spec.services, task.spec.workdir)
            if script is not None:
                said = await _act(box, task, script)
        except (SandboxGone, ExecTimeout) as error:
            await assert_alive(provider, image)
            return nothing(task, f"the script's sandbox ended: {error}"), "its sandbox ended"
        reward = await judge(provider, image, task, box, unchanged=unchanged, env=env)
    finally:
        await box.destroy()
    return reward, "\n".join(line for line in (said, f"at the start: {broken}" if broken else "") if line)


async def left_by(provider: Provider, image: Image, task: Task, script: str) -> Artifacts:
    """What a scripted agent leaves, admitted but not judged: for whoever changes it before asking `verify`.

    Raises: SandboxError: the sandbox ended, by whatever cause.
    """
    box = await provider.create(sandbox_spec(task, image, "agent", phase="attempt"))
    try:
        await services.start(box, task.spec.services, task.spec.workdir)
        await _act(box, task, script)
        artifacts = await collect(box, task)
    finally:
        await box.destroy()
    artifacts.admit(image)
    return artifacts


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
