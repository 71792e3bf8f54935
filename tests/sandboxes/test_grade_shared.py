"""Shared verification: the agent's own file system, none of its processes, tests out of reach, declared services."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from graded import Bench, ledger_task, task_of
from pydantic import ValidationError

from context_mgmt.budget import Limits
from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig
from gymsmith.policy import ScriptedPolicy
from gymsmith.schema import Service, TaskSpec
from gymsmith.taskdir import Task
from sandboxes import grade
from sandboxes.rollout import Attempt, Terms, rollout

HOST = "FROM gymsmith/host\n"


def shared(test: str, *expected: str, dockerfile: str = HOST, files: dict[str, str | bytes] | None = None, **spec: Any) -> Task:
    members: dict[str, str | bytes] = {"environment/Dockerfile": dockerfile, "tests/test.sh": test, **(files or {})}
    return task_of(members, expected, verifier_mode="shared", **spec)


@pytest.fixture
def in_place(bench: Bench) -> None:
    bench.needs_users()


ALONE = """for p in /proc/[0-9]*; do
case $(tr '\\0' ' ' 2>/dev/null < $p/cmdline) in *gymsmith-marker*) echo 'FAIL alone'; exit;; esac
done
echo "PASS alone"
"""
LEFT = "(setsid sh -c 'while :; do sleep 1; done # gymsmith-marker' > /dev/null 2>&1 &)"


def test_the_file_system_stays_and_no_process_does(bench: Bench) -> None:
    check = (
        '[ "$(cat /tmp/state)" = on ] && echo "PASS state"\n[ "$(cat /home/agent/notes)" = hi ] && echo "PASS home"\n'
        f"[ -O /home/agent ] || echo 'PASS somebody-else'\n{ALONE}"
    )
    several = ("somebody-else",) if bench.provider.capabilities.users else ()
    task = shared(check, "state", "home", "alone", *several)
    reward = bench.attempt(f"echo on > /tmp/state; echo hi > /home/agent/notes; {LEFT}", task)
    assert reward.value == 1.0, reward
    assert bench.attempt(None, task).value == 0.0


def test_what_no_list_of_files_could_carry_is_there(bench: Bench, in_place: None) -> None:
    """Control arm: the same state is too much for a separate verifier."""
    task = shared(
        "[ $(ls /work | wc -l) = 12000 ] && echo 'PASS many'; [ $(stat -c %s /tmp/big) = 80000000 ] && echo 'PASS big'",
        "many",
        "big",
    )
    script = "cd /work; python3 -c 'for i in range(12000): open(str(i), \"w\")'; head -c 80000000 /dev/zero > /tmp/big"
    assert bench.attempt(script, task).value == 1.0
    apart = replace(task, spec=task.spec.model_copy(update={"verifier_mode": "separate", "artifacts": ("/work", "/tmp")}))
    assert "larger than" in bench.attempt(script, apart).detail


def test_tests_and_verdict_are_out_of_the_services_reach(bench: Bench, in_place: None) -> None:
    """The service is a program of the agent's. Control arm: with tests that anybody may read, it finds what it wants."""
    spy = (
        "while :; do cat /tests/secret > /tmp/found 2>/tmp/why; for p in /proc/[0-9]*; do echo PASS seen > $p/fd/1; "
        "echo PASS seen > $p/fd/3; done; echo 1 > /logs/verifier/reward.txt; sleep 0.05; done 2>/dev/null"
    )
    # The spy empties both files in each round, so what was seen once is kept.
    wait = (
        "t= f= i=0; until [ $t$f ] || [ $i = 150 ]; do grep -q denied /tmp/why && t=1; [ -s /tmp/found ] && f=1; "
        "sleep 0.1; i=$((i + 1)); done\n"
    )
    test = f"{wait}[ $f ] && echo 'FAIL hidden' || echo 'PASS hidden'\n[ $t ] && echo 'PASS tried'\n"
    task = shared(
        test, "hidden", "tried", files={"tests/secret": "4711\n"}, services=(Service(name="spy", command="sh /work/spy"),)
    )
    script = f"cat > /work/spy <<'SH'\n{spy}\nSH"
    reward = bench.attempt(script, task)
    assert reward.value == 1.0, reward
    looser = replace(task, files={**task.files, "tests/test.sh": f"cp /tests/secret /tmp/given; rm -f /tmp/why\n{test}".encode()})
    assert bench.attempt(script.replace("/tests/secret", "/tmp/given"), looser).tests["hidden"] == "failed"


def test_start_up_files_of_the_agent_are_not_the_tests(bench: Bench, in_place: None) -> None:
    """/tmp is the home of nobody: what Python, sh and git would read from a home folder lies in a place that was just made.

    Control arm: a test that sets HOME back is taken in.
    """
    plant = (
        'v=$(python3 -c \'import sys; print(sys.implementation.cache_tag.replace("cpython-3", "3."))\'); '
        "for h in /tmp /home/agent /work; do "
        "d=$h/.local/lib/python$v/site-packages; mkdir -p $d; echo 'print(\"PASS python\")' > $d/usercustomize.py; done"
    )
    test = "python3 -c pass; echo 'PASS home'\n"
    task = shared(test, "home")
    assert bench.attempt(plant, task).value == 1.0
    taken_in = replace(task, files={**task.files, "tests/test.sh": f"HOME=/tmp; export HOME\n{test}".encode()})
    assert bench.attempt(plant, taken_in).tests == {"home": "passed", "python": "unexpected"}


def test_an_earlier_tests_folder_is_cleared(bench: Bench, in_place: None) -> None:
    dockerfile = HOST + "RUN mkdir -p /tests/old && echo x > /tests/old/conftest.py && mkdir -p /logs/verifier\n"
    task = shared(
        "[ -e /tests/old ] || echo 'PASS cleared'; [ -w /tests/test.sh ] || echo 'PASS kept'",
        "cleared",
        "kept",
        dockerfile=dockerfile,
    )
    assert bench.attempt(None, task).value == 1.0


def test_where_the_agent_reaches_the_programs_the_state_is_carried(bench: Bench, in_place: None) -> None:
    """An image that lets the agent tell every program what to load. Control arm: judged in place, it does."""
    dockerfile = HOST + "RUN chown 1000:1000 /etc\n"
    check = "[ -e /etc/ld.so.preload ] || echo 'PASS clean'; [ -e /etc/app.conf ] && echo 'PASS state'"
    task = shared(check, "clean", "state", dockerfile=dockerfile)
    cheat = "echo /work/mine.so > /etc/ld.so.preload; echo x > /etc/app.conf"
    assert bench.attempt(cheat, task).value == 1.0
    key = (bench.provider.name, bench.image(task).id)
    assert grade._beyond_reach[key] is False
    grade._beyond_reach[key] = True
    try:
        assert bench.attempt(cheat, task).tests == {"clean": "missing", "state": "passed"}
    finally:
        del grade._beyond_reach[key]


def test_a_report_on_the_descriptor_cannot_be_printed(bench: Bench) -> None:
    """Tests that run the agent's program. Control arm: on standard output its lines count."""
    test = "sh /work/program; [ -e /tmp/done ] && echo 'PASS done' >&3 || echo 'FAIL done' >&3"
    task = shared(test, "done", report="descriptor")
    printing = "echo 'echo PASS done; exit 0' > /work/program"
    said = bench.attempt(printing, task)
    assert said.value == 0.0 and said.tests == {"done": "failed"} and "PASS done" in said.detail
    assert bench.attempt("echo 'touch /tmp/done' > /work/program", task).value == 1.0
    trusting = replace(task, files={**task.files, "tests/test.sh": b"sh /work/program; [ -e /tmp/done ] && echo 'PASS done'"})
    assert bench.attempt(printing, replace(trusting, spec=task.spec.model_copy(update={"report": "stdout"}))).value == 1.0


def test_services_run_from_their_declaration(bench: Bench) -> None:
    """What answers the tests is the image's program on the agent's data, also in a separate verifier."""
    server = "import http.server as h; h.HTTPServer(('127.0.0.1', 7070), h.SimpleHTTPRequestHandler).serve_forever()"
    service = Service(
        name="files",
        command=f'cd /work && exec python3 -I -c "{server}"',
        ready="python3 -c \"import socket; socket.create_connection(('127.0.0.1', 7070))\"",
    )
    ask = "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:7070/a.txt').read().decode())\""
    test = f"[ \"$({ask})\" = one ] && echo 'PASS served'\n{ALONE}"
    impostor = server.replace("h.SimpleHTTPRequestHandler", "None")
    for mode in ("shared", "separate"):
        task = shared(test, "served", "alone", services=(service,), memory_mb=256)
        task = replace(task, spec=task.spec.model_copy(update={"verifier_mode": mode}))
        assert bench.attempt(f"echo one > /work/a.txt; {ask}; {LEFT}", task).value == 1.0
        assert bench.attempt(f'echo two > /work/a.txt; (setsid python3 -c "{impostor}" &)', task).value == 0.0


def test_the_agent_finds_the_services_running(bench: Bench) -> None:
    service = Service(
        name="clock", command="while :; do date > /tmp/next; mv /tmp/next /tmp/tick; sleep 0.05; done", ready="[ -s /tmp/tick ]"
    )
    task = shared("[ -s /work/seen ] && echo 'PASS seen'", "seen", services=(service,))
    assert bench.attempt("cp /tmp/tick /work/seen", task).value == 1.0
    assert (
        bench.attempt("cp /tmp/tick /work/seen", replace(task, spec=task.spec.model_copy(update={"services": ()}))).value == 0.0
    )


def test_the_loop_starts_services_and_is_judged_in_the_same_sandbox(bench: Bench) -> None:
    """One rollout of the bundled task by its solution: the agent meets a service that is down, and leaves one that starts."""
    task = ledger_task()
    chat = Chat.of_bytes()
    actions = ["cat /opt/ledger/server.py | head -20", f"sh -c {shlex.quote(task.alternatives[0])}"]
    policy = ScriptedPolicy([chat.action(action) for action in (*actions, "exit")])
    terms = Terms(Limits(max_turns=5, max_new_tokens=8192), FoldConfig(limit_tokens=1 << 20, observation_tokens=400))
    done = bench.run(rollout(task, bench.image(task), bench.provider, policy, chat, Attempt("r", task.id), terms))
    assert (done.error, done.finish) == ("", "exit"), done
    assert done.reward is not None and done.reward.value == 1.0, (done.steps, done.reward)


def test_a_service_that_never_is_ready_says_what_it_said(bench: Bench) -> None:
    for command, word in (
        ("echo no such port; exit 3", "exit code 3: no such port"),
        ("echo busy; sleep 60", "still runs: busy"),
    ):
        service = Service(name="lame", command=command, ready="false", ready_timeout_s=0.5)
        reward = bench.attempt(None, shared("echo 'PASS a'", "a", services=(service,)))
        assert reward.value == 0.0 and word in reward.detail, reward


def test_a_service_is_never_the_tests_user() -> None:
    for user in ("tester", "1001"):
        with pytest.raises(ValidationError, match="owns the tests"):
            TaskSpec(name="g/x", kind="x", services=(Service(name="s", command="true", user=user),))


def test_the_bundled_task_is_graded_alike_apart(bench: Bench) -> None:
    """Its state is one file, so the other mode must come to the same verdict."""
    task = ledger_task()
    apart = replace(task, spec=task.spec.model_copy(update={"verifier_mode": "separate"}))
    assert bench.attempt(task.solution, apart).value == 1.0
