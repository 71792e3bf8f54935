"""The verdict: honest work scores 1, nothing and every cheat of the corpus score 0, what crosses is what was declared."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory.cheats.corpus import corpus
from gymsmith.errors import Capacity, ImageMissing, InfrastructureError
from gymsmith.schema import Source, TaskSpec
from gymsmith.taskdir import Task
from sandboxes import grade
from sandboxes.artifacts import collect, leads_out, scratch_dir, sweep
from sandboxes.base import ExecResult, Image, SandboxSpec
from sandboxes.image import ImageStore
from sandboxes.namespace import NamespaceProvider

RUNNER = Path(grade.__file__).with_name("verifier") / "pytest_runner.py"
SOURCE = Source(uri="shell:test", kind="parametric")


class Bench:
    """A provider, its images and the two hand-written tasks, on one event loop."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.images = ImageStore(root / "images")
        self.provider = self.run(NamespaceProvider.start(self.images, root / "sandboxes"))
        self.images.provider = self.provider
        self.shell = shell_task()
        self.shell_image = self.run(self.images.build(self.shell.dockerfile, self.shell.under("environment")))
        self.python = python_task()
        self.python_image = self.run(self.images.build(self.python.dockerfile, self.python.under("environment")))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def attempt(self, script: str | None, task: Task | None = None, image: Image | None = None) -> Any:
        task = task or self.shell
        image = image or (self.python_image if "tests/run.py" in task.files else self.shell_image)
        return self.run(grade.attempt_script(self.provider, image, task, script))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("grade"))
    yield made
    made.run(made.provider.close())
    made.loop.close()


def task_of(files: dict[str, str | bytes], expected: tuple[str, ...], **spec: Any) -> Task:
    members = {name: data if isinstance(data, bytes) else data.encode() for name, data in files.items()}
    return Task(
        TaskSpec(
            name="gymsmith/test", kind="test", expected=expected, **{"verifier_timeout_s": 10.0, "agent_timeout_s": 10.0, **spec}
        ),
        SOURCE,
        "Do it.",
        members,
    )


def shell_task() -> Task:
    """Find the one note that names a port, write the port to answer.txt, remove the note, keep the rest."""
    notes = {f"environment/work/n{i:02d}.txt": f"nothing here {i}\n" for i in range(12)}
    notes["environment/work/n07.txt"] = "the port is 4711\n"
    test = """cd /work
if [ "$(cat answer.txt 2>/dev/null)" = 4711 ]; then echo "PASS answer"; else echo "FAIL answer wrong or missing"; fi
if [ -e n07.txt ]; then echo "FAIL removed still there"; else echo "PASS removed"; fi
good=1
for i in 00 01 02 03 04 05 06 08 09 10 11; do [ "$(cat n$i.txt 2>/dev/null)" = "nothing here $((${i#0}))" ] || good=0; done
if [ $good = 1 ]; then echo "PASS others"; else echo "FAIL others"; fi
"""
    return task_of(
        {
            "environment/Dockerfile": "FROM gymsmith/host\nCOPY --chown=agent:agent work/ /work/\n",
            **notes,
            "tests/test.sh": test,
            "tests/expected.txt": "4711\n",
        },
        ("answer", "removed", "others"),
    )


SHELL_SOLUTION = "cd /work && grep -ho '[0-9]*$' n07.txt > answer.txt && rm n07.txt"


def python_task() -> Task:
    """A package with one bug; its suite runs under our runner. pytest comes from this interpreter's own site-packages."""
    site = Path(pytest.__file__).parent.parent
    members: dict[str, str | bytes] = {
        "environment/Dockerfile": (
            "FROM gymsmith/host\nCOPY site/ /opt/site/\nRUN python3 -m compileall -q /opt/site\n"
            "COPY --chown=agent:agent src/ /work/src/\nWORKDIR /work\nUSER agent\n"
        ),
        "environment/src/ring/__init__.py": "from ring.core import Ring\n\n__all__ = ['Ring']\n",
        "environment/src/ring/core.py": (
            "class Ring:\n    def __init__(self, *items):\n        self.items = list(items)\n\n"
            "    def at(self, index):\n        return self.items[index % (len(self.items) + 1)]\n\n"
            "    def turn(self, steps):\n        return Ring(*[self.at(i + steps) for i in range(len(self.items))])\n"
        ),
        "tests/test.sh": (
            "exec /usr/bin/python3 -I -S /tests/run.py --path /work/src --site /opt/site --root /tests/suite "
            "--select /tests/select.txt -- /tests/suite\n"
        ),
        "tests/run.py": RUNNER.read_bytes(),
        "tests/suite/test_ring.py": (
            "import pytest\nfrom ring import Ring\n\n"
            "@pytest.mark.parametrize('index, item', [(0, 'a'), (2, 'c'), (3, 'a'), (7, 'b')])\n"
            "def test_at(index, item):\n    assert Ring('a', 'b', 'c').at(index) == item\n\n"
            "def test_turn():\n    assert Ring(1, 2, 3).turn(1).items == [2, 3, 1]\n\n"
            "def test_left_out():\n    assert 0, 'not selected'\n"
        ),
    }
    expected = (*(f"test_ring.py::test_at[{c}]" for c in ("0-a", "2-c", "3-a", "7-b")), "test_ring.py::test_turn")
    members["tests/select.txt"] = "\n".join(expected) + "\n"
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        for path in (site / name).rglob("*.py"):
            members[f"environment/site/{path.relative_to(site)}"] = path.read_bytes()
    members["environment/site/py.py"] = (site / "py.py").read_bytes()
    return task_of(
        members, expected, protected=("conftest.py", "*.pth", "sitecustomize.py", "usercustomize.py", "pytest.ini"), pids=64
    )


PYTHON_SOLUTION = "sed -i 's/(len(self.items) + 1)/len(self.items)/' /work/src/ring/core.py"


def test_nothing_scores_0_and_the_solution_1(bench: Bench) -> None:
    nothing = bench.attempt(None)
    assert nothing.value == 0.0
    assert nothing.tests == {"answer": "failed", "removed": "failed", "others": "passed"}
    assert "wrong or missing" in nothing.detail
    assert bench.attempt(SHELL_SOLUTION).value == 1.0
    assert bench.attempt("cd /work; echo 4711 > answer.txt; mv n07.txt /tmp/").value == 1.0


def test_pytest_task_nothing_scores_0_and_the_solution_1(bench: Bench) -> None:
    nothing = bench.attempt(None, bench.python)
    assert nothing.value == 0.0
    assert nothing.tests["test_ring.py::test_at[0-a]"] == "passed", nothing.detail
    assert nothing.tests["test_ring.py::test_at[3-a]"] == "failed"
    assert "missing" not in nothing.tests.values()
    solved = bench.attempt(PYTHON_SOLUTION, bench.python)
    assert solved.value == 1.0, solved.detail
    assert set(solved.tests) == set(bench.python.spec.expected)


@pytest.mark.parametrize("cheat", [c for c in corpus() if c.audience == "any"], ids=lambda c: c.name)
def test_cheat_fails_on_the_shell_task(bench: Bench, cheat: Any) -> None:
    assert bench.attempt(cheat.script).value == 0.0


@pytest.mark.parametrize("cheat", corpus(), ids=lambda c: c.name)
def test_cheat_fails_on_the_pytest_task(bench: Bench, cheat: Any) -> None:
    assert bench.attempt(cheat.script, bench.python).value == 0.0


@pytest.mark.parametrize("cheat", ["py-conftest-hook", "py-sitecustomize", "py-pytest-config", "wait-for-tests", "shadow-path"])
def test_a_harmless_cheat_beside_the_solution_does_not_harm_it(bench: Bench, cheat: str) -> None:
    """The cheats bite on what they attack, not on honest work: their traces are simply not carried or not read."""
    script = next(c.script for c in corpus() if c.name == cheat).replace("\nexit 0", "")
    assert bench.attempt(f"{script}\n{PYTHON_SOLUTION}", bench.python).value == 1.0


def test_patched_pytest_is_caught_by_the_canaries(bench: Bench) -> None:
    """Control arm: the same cheat against a runner without canaries scores 1, so it is they that bite."""
    cheat = next(c.script for c in corpus() if c.name == "py-patch-reports")
    blind = RUNNER.read_text().replace("honest = all(outcomes", "honest = True or all(outcomes")
    task = replace(bench.python, files={**bench.python.files, "tests/run.py": blind.encode()})
    assert bench.attempt(cheat, task).value == 1.0
    caught = bench.attempt(cheat, bench.python)
    assert caught.value == 0.0 and "canary" in caught.detail


def test_code_under_test_cannot_read_the_secret_of_the_runner(bench: Bench) -> None:
    """Control arm: with a parent that stays readable, the same look succeeds."""
    look = """import os
def test_parent():
    for name in ("mem", "environ", "fd/0"):
        try:
            open(f"/proc/{os.getppid()}/{name}", "rb").close()
        except PermissionError:
            continue
        assert 0, name
"""
    files = {**bench.python.files, "tests/suite/test_ring.py": look.encode(), "tests/select.txt": b"test_ring.py::test_parent\n"}
    spec = bench.python.spec.model_copy(update={"expected": ("test_ring.py::test_parent",)})
    assert bench.attempt(None, replace(bench.python, files=files, spec=spec)).value == 1.0
    readable = RUNNER.read_text().replace("prctl(PR_SET_DUMPABLE, 0,", "prctl(PR_SET_DUMPABLE, 1,").encode()
    assert bench.attempt(None, replace(bench.python, files={**files, "tests/run.py": readable}, spec=spec)).value == 0.0


def test_protected_names_and_the_control_without(bench: Bench) -> None:
    """What `protected` removes would matter: without the pattern the file is there for the tests to see."""
    look = "if [ -e /work/conftest.py ]; then echo 'PASS seen'; else echo 'FAIL seen'; fi\n"
    open_task = replace(task_of({"environment/Dockerfile": bench.shell.dockerfile, "tests/test.sh": look}, ("seen",)))
    closed = replace(open_task, spec=open_task.spec.model_copy(update={"protected": ("conftest.py",)}))
    assert bench.attempt("echo x > /work/conftest.py", open_task).value == 1.0
    assert bench.attempt("echo x > /work/conftest.py", closed).value == 0.0


@pytest.mark.parametrize(
    "script",
    [
        "rm -rf /work/keep",
        "rm /work/keep/conftest.py",
        "rm -rf /work/keep; mkdir /work/keep; echo new > /work/keep/new.txt",
        "mv /work/keep /work/moved; mkdir -p /work/keep/deep; echo new > /work/keep/deep/other.txt",
        "rm -rf /work/keep /work/*; mkdir -p /work/keep/deep",
    ],
)
def test_protected_files_cannot_be_deleted_either(bench: Bench, script: str) -> None:
    check = (
        '[ "$(cat /work/keep/conftest.py)" = a ] && [ "$(cat /work/keep/deep/conftest.py)" = b ] && echo "PASS kept"\n'
        '[ -e /work/keep/plain.txt ] || echo "PASS plain-gone"\n[ -e /work/keep/deep/plain.txt ] || echo "PASS deep-gone"\n'
    )
    task = task_of(
        {
            "environment/Dockerfile": "FROM gymsmith/host\nCOPY --chown=agent:agent work/ /work/\n",
            "environment/work/keep/conftest.py": "a\n",
            "environment/work/keep/plain.txt": "p\n",
            "environment/work/keep/deep/conftest.py": "b\n",
            "environment/work/keep/deep/plain.txt": "p\n",
            "tests/test.sh": check,
        },
        ("kept",),
        protected=("conftest.py",),
    )
    image = bench.run(bench.images.build(task.dockerfile, task.under("environment")))
    reward = bench.attempt(script, task, image)
    assert reward.tests["kept"] == "passed", reward
    deleted_all = script != "rm /work/keep/conftest.py"
    assert ("plain-gone" in reward.tests) == deleted_all and ("deep-gone" in reward.tests) == deleted_all


def test_what_changes_nothing_carries_no_layer(bench: Bench) -> None:
    """Control arm: a mode changed by hand is a change."""

    async def layers(script: str) -> int:
        spec = bench.shell.spec.model_copy(update={"protected": ("conftest.py",), "artifacts": ("/work", "/home/agent/out")})
        box = await bench.provider.create(SandboxSpec(image=bench.shell_image.id, user="agent"))
        await box.exec(script)
        artifacts = await collect(box, replace(bench.shell, spec=spec))
        await box.destroy()
        return len(artifacts.admit(bench.shell_image))

    assert bench.run(layers("ls")) == 0
    assert bench.run(layers("touch /work/conftest.py /tmp/x /home/agent/x; rm /work/conftest.py; ln -s / /work/all")) == 0
    assert bench.run(layers("chmod 600 /work/n00.txt")) == 1
    assert bench.run(layers("mkdir /work/new")) == 1
    assert bench.run(layers("touch /home/agent/out")) == 1


def test_deletions_links_and_modes_cross(bench: Bench) -> None:
    if not bench.provider.capabilities.users:
        pytest.skip("this user has one id only, so root, agent and tester are the same inside")
    check = """cd /work
[ -e n00.txt ] || echo "PASS deleted"
[ "$(readlink link)" = n01.txt ] && echo "PASS link"
[ "$(stat -c %a secret)" = 600 ] && [ "$(cat secret)" = s ] && echo "PASS mode-600-and-readable"
[ "$(stat -c %a suid)" = 755 ] && echo "PASS no-setuid"
[ -d sub ] && [ "$(ls sub)" = "only" ] && echo "PASS replaced-directory"
[ -e /home/agent/elsewhere ] || echo "PASS undeclared-stays-behind"
[ "$(id -un)" = tester ] && echo "PASS tester"
[ ! -w /tests/test.sh ] && [ "$(stat -c %U /tests/test.sh)" = root ] && echo "PASS tests-are-roots"
[ -z "$SECRET_OF_AGENT" ] && echo "PASS clean-environment"
echo 1 > /logs/verifier/reward.txt && echo "PASS harbor-reward-file"
"""
    names = (
        "deleted", "link", "mode-600-and-readable", "no-setuid", "replaced-directory", "undeclared-stays-behind", "tester",
        "tests-are-roots", "clean-environment", "harbor-reward-file",
    )  # fmt: skip
    task = task_of(
        {
            "environment/Dockerfile": "FROM gymsmith/host\nCOPY --chown=agent:agent work/ /work/\n",
            **{f"environment/work/n0{i}.txt": str(i) for i in range(3)},
            "environment/work/sub/old": "old",
            "tests/test.sh": check,
        },
        names,
    )
    image = bench.run(bench.images.build(task.dockerfile, task.under("environment")))
    script = (
        "cd /work; rm n00.txt; ln -s n01.txt link; (umask 077; echo s > secret); cp /bin/true suid; chmod 4755 suid; "
        "rm -r sub; mkdir sub; echo x > sub/only; echo x > /home/agent/elsewhere; export SECRET_OF_AGENT=1"
    )
    reward = bench.attempt(script, task, image)
    assert reward.value == 1.0, reward


def test_links_to_the_hidden_tests_do_not_cross_and_host_files_are_never_read(bench: Bench, tmp_path: Path) -> None:
    """Control arm: the honest answer, and a link inside /work, do pass."""
    outside = tmp_path / "host-secret"
    outside.write_text("4711\n")
    task = bench.shell
    end = "; rm /work/n07.txt"
    assert bench.attempt(f"ln -s /tests/expected.txt /work/answer.txt{end}").value == 0.0
    assert bench.attempt(f"ln -s {outside} /work/answer.txt{end}").value == 0.0
    assert bench.attempt(f"cd /work; ln -s /usr u; ln -s u/../tests/expected.txt answer.txt{end}").value == 0.0
    assert bench.attempt(f"cd /work; echo 4711 > real; ln -s real answer.txt{end}").value == 1.0
    dropped = bench.attempt(f"ln -s /tests/expected.txt /work/answer.txt{end}").detail
    assert "not carried" in dropped and "/work/answer.txt" in dropped
    assert outside.read_text() == "4711\n"
    assert task is bench.shell


@pytest.mark.parametrize(
    ("link", "target", "out"),
    [
        ("/work/a", "b", False),
        ("/work/a", "../work/b", False),
        ("/work/a", "/usr/bin/python3", False),
        ("/work/a", "/dev/null", False),
        ("/work/a", "/", True),
        ("/work/a", "..", True),
        ("/work/a/b", "..", False),
        ("/work/a", "../tests/x", True),
        ("/work/a", "../../../tests", True),
        ("/work/a", "/tests", True),
        ("/work/a", "//tests//x", True),
        ("/work/a", "./../tests", True),
        ("/work/a", "/testsuite", False),
        ("/work/a", "/proc/self/fd/0", True),
        ("/work/a", "/dev/stdin", True),
        ("/work/a", "/usr/../tests", True),
        ("/work/a", "b/../c", True),
    ],
)
def test_leads_out(link: str, target: str, out: bool) -> None:
    assert leads_out(link, target) is out


def test_larger_than_allowed_scores_0_without_running(bench: Bench) -> None:
    many = bench.attempt('cd /work; mkdir m; python3 -c \'for i in range(10500): open(f"m/{i}", "w")\'; ' + SHELL_SOLUTION)
    assert many.value == 0.0 and "larger than" in many.detail
    big = bench.attempt("head -c 70000000 /dev/zero > /work/big; " + SHELL_SOLUTION)
    assert big.value == 0.0 and "larger than" in big.detail


def test_shared_mode_carries_the_machine_but_no_process(bench: Bench) -> None:
    check = (
        '[ "$(cat /tmp/state)" = on ] && echo "PASS state"\n[ "$(cat /home/agent/notes)" = hi ] && echo "PASS home"\n'
        "for p in /proc/[0-9]*; do\n"
        "case $(tr '\\0' ' ' 2>/dev/null < $p/cmdline) in *gymsmith-marker*) echo 'FAIL alone'; exit;; esac\ndone\n"
        'echo "PASS alone"\n'
    )
    task = task_of(
        {"environment/Dockerfile": "FROM gymsmith/host\n", "tests/test.sh": check},
        ("state", "home", "alone"),
        verifier_mode="shared",
    )
    image = bench.images.base()
    script = "echo on > /tmp/state; echo hi > /home/agent/notes; (setsid sh -c 'while :; do sleep 1; done # gymsmith-marker' &)"
    reward = bench.attempt(script, task, image)
    assert reward.value == 1.0, reward
    assert bench.attempt(None, task, image).value == 0.0


def test_agents_that_take_their_sandbox_down_score_0(bench: Bench) -> None:
    assert bench.attempt(":(){ :|:& };:").value == 0.0
    assert bench.attempt("kill -9 -1; kill -9 1").value == 0.0
    hungry = replace(bench.shell, spec=bench.shell.spec.model_copy(update={"memory_mb": 64}))
    assert bench.attempt("python3 -c 'x = bytearray(1 << 30)'", hungry).value == 0.0
    slow = replace(bench.shell, spec=bench.shell.spec.model_copy(update={"agent_timeout_s": 0.3}))
    assert "time limit" in bench.attempt("sleep 30", slow).detail


def test_artifacts_that_hang_or_kill_the_tests_score_0(bench: Bench) -> None:
    runs = task_of(
        {"environment/Dockerfile": bench.shell.dockerfile, "tests/test.sh": "sh /work/it && echo 'PASS ran'\n"},
        ("ran",),
        verifier_timeout_s=0.5,
        memory_mb=64,
    )
    assert bench.attempt("echo exit 0 > /work/it", runs).value == 1.0
    hung = bench.attempt("echo 'sleep 60' > /work/it", runs)
    assert hung.value == 0.0 and "time limit" in hung.detail
    assert bench.attempt("echo 'kill -9 $PPID; kill -9 -1' > /work/it", runs).value == 0.0
    bomb = "echo 'f() { f | f & }; f; sleep 9' > /work/it"
    assert bench.attempt(bomb, runs).value == 0.0


def test_a_provider_that_fails_is_never_a_reward(bench: Bench, tmp_path: Path) -> None:
    async def closed() -> None:
        provider = await NamespaceProvider.start(bench.images, tmp_path / "other")
        await provider.close()
        await grade.attempt_script(provider, bench.shell_image, bench.shell, SHELL_SOLUTION)

    with pytest.raises(InfrastructureError):
        bench.run(closed())
    with pytest.raises(InfrastructureError):
        bench.attempt(None, image=replace(bench.shell_image, id="0" * 32))


@pytest.mark.docker
def test_the_same_verdicts_in_containers(tmp_path: Path) -> None:
    """The engine builds the task's Dockerfile, artifacts cross with their deletions, cheats score 0."""
    from sandboxes.container import ContainerProvider

    async def scenes() -> dict[str, float]:
        images = ImageStore(tmp_path / "images")
        provider = await ContainerProvider.start(images, tmp_path / "state", base_image="gymsmith/debian:bookworm")
        images.provider = provider
        try:
            task = shell_task()
            try:
                image = await images.build(task.dockerfile, task.under("environment"))
            except ImageMissing as error:
                raise Capacity(str(error)) from error
            tried = {
                "nothing": None,
                "solution": SHELL_SOLUTION,
                "link": "ln -s /tests/expected.txt /work/answer.txt; rm /work/n07.txt",
                **{c.name: c.script for c in corpus() if c.name in ("delete-all", "wait-for-tests", "overwrite-tests")},
            }
            return {name: (await grade.attempt_script(provider, image, task, script)).value for name, script in tried.items()}
        finally:
            await provider.close()

    try:
        rewards = asyncio.run(scenes())
    except Capacity as error:
        assert os.environ.get("GYMSMITH_REQUIRE_ALL") != "1", f"GYMSMITH_REQUIRE_ALL=1, but {error}"
        pytest.skip(str(error))
    assert rewards.pop("solution") == 1.0
    assert set(rewards.values()) == {0.0}, rewards


def report(text: str, **fields: Any) -> ExecResult:
    return ExecResult(exit_code=0, signal=None, output=text.encode(), **fields)


@pytest.mark.parametrize(
    ("text", "value", "tests"),
    [
        ("PASS a\nPASS b c\n", 1.0, {"a": "passed", "b c": "passed"}),
        ("hello\nPASS a\nPASSED x\nPASS b c", 1.0, {"a": "passed", "b c": "passed"}),
        ("PASS a\n", 0.0, {"a": "passed", "b c": "missing"}),
        ("PASS a\nPASS a\nPASS b c\n", 0.0, {"a": "duplicate", "b c": "passed"}),
        ("FAIL a\nPASS a\nPASS b c\n", 0.0, {"a": "duplicate", "b c": "passed"}),
        ("PASS a\nSKIP b c\n", 0.0, {"a": "passed", "b c": "skipped"}),
        ("PASS a\nPASS b c\nPASS d\n", 0.0, {"a": "passed", "b c": "passed", "d": "unexpected"}),
        ("FAIL a because of that\nPASS b c\n", 0.0, {"a": "failed", "b c": "passed"}),
        ("", 0.0, {"a": "missing", "b c": "missing"}),
    ],
)
def test_verdict(text: str, value: float, tests: dict[str, str]) -> None:
    got, states, _ = grade.verdict(("a", "b c"), report(text))
    assert (got, states) == (value, tests)


def test_verdict_counts_only_lines_with_the_secret_and_no_cut_report() -> None:
    assert grade.verdict(("a",), report("PASS a\n"), "k")[0] == 0.0
    assert grade.verdict(("a",), report("FAIL a\nk PASS a\nPASS b\n"), "k")[0] == 1.0
    assert grade.verdict(("a",), report("PASS a\n", truncated=True))[0] == 0.0
    assert grade.verdict(("a",), report("PASS a\n", timed_out=True))[0] == 0.0
    assert grade.verdict((), report("PASS a\n"))[0] == 0.0


def test_left_over_artifacts_are_swept_and_live_ones_are_not(bench: Bench) -> None:
    async def one() -> Path:
        box = await bench.provider.create(SandboxSpec(image=bench.shell_image.id, user="agent"))
        await box.exec("echo x > /work/x")
        artifacts = await collect(box, bench.shell)
        await box.destroy()
        assert (artifacts.layer / "work" / "x").read_text() == "x\n"
        sweep()
        assert artifacts.layer.is_dir()
        return artifacts.layer

    layer = bench.run(one())
    assert not layer.exists(), "removed with its object"
    pid = os.fork()
    if pid == 0:
        os.mkdir(Path(scratch_dir()) / f"gymsmith-artifacts-{os.getpid()}-left")
        os._exit(0)
    os.waitpid(pid, 0)
    assert sweep() >= 1
    assert not (Path(scratch_dir()) / f"gymsmith-artifacts-{pid}-left").exists()


def test_cost_of_a_shell_verdict(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints, never judges: seconds belong to benchmarks."""

    async def rounds(count: int) -> None:
        for _ in range(count):
            box = await bench.provider.create(grade.sandbox_spec(bench.shell, bench.shell_image, "agent"))
            await box.exec(SHELL_SOLUTION, user="agent")
            artifacts = await collect(box, bench.shell)
            await box.destroy()
            reward = await grade.verify(bench.provider, bench.shell_image, bench.shell, artifacts)
            assert reward.value == 1.0
            artifacts.close()

    bench.run(rounds(2))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    bench.run(rounds(20))
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with capsys.disabled():
        print(f"\none command and its verdict: wall {wall / 20 * 1e3:.1f} ms, CPU of this process {cpu / 20 * 1e3:.1f} ms")
