"""What crosses from an agent's sandbox into the verifier's is what was declared, and nothing that would do harm there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from graded import NOTE_SOLUTION, Bench, note_task, task_of

from sandboxes.artifacts import collect, leads_out, scratch_dir, sweep
from sandboxes.base import SandboxSpec
from sandboxes.reaper import pid_namespace

SHELL = note_task()


def test_protected_names_and_the_control_without(bench: Bench) -> None:
    """What `protected` removes would matter: without the pattern the file is there for the tests to see."""
    look = "if [ -e /work/conftest.py ]; then echo 'PASS seen'; else echo 'FAIL seen'; fi\n"
    open_task = replace(task_of({"environment/Dockerfile": "FROM gymsmith/host\n", "tests/test.sh": look}, ("seen",)))
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
    reward = bench.attempt(script, task)
    assert reward.tests["kept"] == "passed", reward
    deleted_all = script != "rm /work/keep/conftest.py"
    assert ("plain-gone" in reward.tests) == deleted_all and ("deep-gone" in reward.tests) == deleted_all


def test_what_changes_nothing_carries_no_layer(bench: Bench) -> None:
    """Control arm: a mode changed by hand is a change."""

    image = bench.image(SHELL)

    async def layers(script: str) -> int:
        spec = SHELL.spec.model_copy(update={"protected": ("conftest.py",), "artifacts": ("/work", "/home/agent/out")})
        box = await bench.provider.create(SandboxSpec(image=image.id, user="agent"))
        await box.exec(script)
        artifacts = await collect(box, replace(SHELL, spec=spec))
        await box.destroy()
        return len(artifacts.admit(image))

    assert bench.run(layers("ls")) == 0
    assert bench.run(layers("touch /work/conftest.py /tmp/x /home/agent/x; rm /work/conftest.py; ln -s / /work/all")) == 0
    assert bench.run(layers("chmod 600 /work/n00.txt")) == 1
    assert bench.run(layers("mkdir /work/new")) == 1
    assert bench.run(layers("touch /home/agent/out")) == 1


def test_deletions_links_and_modes_cross(bench: Bench) -> None:
    bench.needs_users()
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
    script = (
        "cd /work; rm n00.txt; ln -s n01.txt link; (umask 077; echo s > secret); cp /bin/true suid; chmod 4755 suid; "
        "rm -r sub; mkdir sub; echo x > sub/only; echo x > /home/agent/elsewhere; export SECRET_OF_AGENT=1"
    )
    reward = bench.attempt(script, task)
    assert reward.value == 1.0, reward


def test_links_to_the_hidden_tests_do_not_cross_and_host_files_are_never_read(bench: Bench, tmp_path: Path) -> None:
    """Control arm: the honest answer, and a link inside /work, do pass."""
    outside = tmp_path / "host-secret"
    outside.write_text("4711\n")
    end = "; rm /work/n07.txt"
    assert bench.attempt(f"ln -s /tests/expected.txt /work/answer.txt{end}").value == 0.0
    assert bench.attempt(f"ln -s {outside} /work/answer.txt{end}").value == 0.0
    assert bench.attempt(f"cd /work; ln -s /usr u; ln -s u/../tests/expected.txt answer.txt{end}").value == 0.0
    assert bench.attempt(f"cd /work; echo 4711 > real; ln -s real answer.txt{end}").value == 1.0
    dropped = bench.attempt(f"ln -s /tests/expected.txt /work/answer.txt{end}").detail
    assert "not carried" in dropped and "/work/answer.txt" in dropped
    odd = bench.attempt("cd /work && ln -s /tests \"$(printf 'l\\377nk')\"")
    assert "/work/l\\udcffnk" in odd.detail and odd.model_dump_json(), "a name that is no UTF-8 can be stored"
    assert outside.read_text() == "4711\n"


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
    many = bench.attempt('cd /work; mkdir m; python3 -c \'for i in range(10500): open(f"m/{i}", "w")\'; ' + NOTE_SOLUTION)
    assert many.value == 0.0 and "larger than" in many.detail
    big = bench.attempt("head -c 70000000 /dev/zero > /work/big; " + NOTE_SOLUTION)
    assert big.value == 0.0 and "larger than" in big.detail


def test_left_over_artifacts_are_swept_and_live_ones_are_not(bench: Bench) -> None:
    async def one() -> Path:
        box = await bench.provider.create(SandboxSpec(image=bench.image(SHELL).id, user="agent"))
        await box.exec("echo x > /work/x")
        artifacts = await collect(box, SHELL)
        await box.destroy()
        assert (artifacts.layer / "work" / "x").read_text() == "x\n"
        sweep()
        assert artifacts.layer.is_dir()
        return artifacts.layer

    layer = bench.run(one())
    assert not layer.exists(), "removed with its object"
    pid = os.fork()
    if pid == 0:
        for room in (pid_namespace(), "4711"):
            os.mkdir(Path(scratch_dir()) / f"gymsmith-artifacts-{os.getpid()}.{room}-left")
        os._exit(0)
    os.waitpid(pid, 0)
    assert sweep() >= 1
    assert not (Path(scratch_dir()) / f"gymsmith-artifacts-{pid}.{pid_namespace()}-left").exists()
    elsewhere = Path(scratch_dir()) / f"gymsmith-artifacts-{pid}.4711-left"
    elsewhere.rmdir()  # a pid of another namespace says nothing here: it was left alone
