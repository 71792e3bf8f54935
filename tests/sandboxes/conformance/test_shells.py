"""A persistent shell on a terminal: what carries over, exact codes, and a status that nobody else can give."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import PolicyRefused, SandboxGone, ShellEnded
from tests.sandboxes.conformance.test_endings import gone_within, living, tree

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
needs = pytest.mark.needs
pytestmark = pytest.mark.needs("shell")
"""A provider without shells refuses one: `test_refusals.py`."""


@broken_by("shell forgets")
def test_directory_variables_and_functions_carry_over(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        await shell.run("mkdir -p sub && cd sub; X=1; export Y=2; f() { echo f $1; }; declare -A map=([k]=v)")
        await shell.run("alias ll='echo aliased'")
        result = await shell.run("pwd; echo $X ${map[k]}; sh -c 'echo $Y'; f 3\nll")
        assert result.output == b"/work/sub\n1 v\n2\nf 3\naliased\n" and result.exit_code == 0
        assert (await box.exec("pwd; echo $Y")).output == b"/work\n\n", "other commands know nothing of it"

    house.play(scene)


@broken_by("shell forgets")
def test_exit_codes_are_exact(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        for line, code in (("true", 0), ("false", 1), ("(exit 77)", 77), ("nonsense", 127), ("f() { return 9; }; f", 9),
                           ("kill -9 $BASHPID & wait $!", 137), ("sh -c 'kill -9 $$'", 137), ("true", 0)):  # fmt: skip
            result = await shell.run(line)
            assert (result.exit_code, result.signal, result.timed_out) == (code, None, False), line
        await shell.run("(exit 5)")
        assert (await shell.run("echo $?")).output == b"5\n"

    house.play(scene)


@broken_by("shell without terminal")
def test_a_syntax_error_is_survived(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        await shell.run("X=kept")
        for broken in ("if", "echo 'open", "(", "done", "$(", "x=(1", "cat <<E\nno end"):
            result = await shell.run(broken, timeout_s=5)
            assert not result.timed_out
        assert (await shell.run("echo $X")).output == b"kept\n"
        assert (await shell.run("set -u; echo $NOT_SET_AT_ALL; echo on")).exit_code == 1
        assert (await shell.run("echo $X")).output == b"kept\n"

    house.play(scene)


@broken_by("shell without terminal")
def test_many_lines_are_one_script(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        script = "cat <<'END'\n$not 'touched'\nEND\nfor i in 1 2\ndo\n  echo $i\ndone\n# a remark\n\ntest -t 1 && echo tty"
        assert (await shell.run(script)).output == b"$not 'touched'\n1\n2\ntty\n"
        long = "\n".join(f"v{i}={i}" for i in range(20_000)) + "\necho $v19999"
        assert (await shell.run(long)).output == b"19999\n"

    house.play(scene)


@broken_by("shell without terminal")
def test_it_is_a_terminal(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell(rows=40, cols=132, env={"MINE": "yes"}, cwd="/tmp")
        result = await shell.run("test -t 0 && test -t 1 && test -t 2 && stty size; echo $MINE; pwd")
        assert result.output == b"40 132\nyes\n/tmp\n"
        result = await shell.run("echo err > /dev/stderr; echo t > /dev/tty; echo out > /dev/stdout")
        assert result.output == b"err\nt\nout\n"
        assert (await shell.run(r"printf 'a\0\377\r\nb\t'")).output == b"a\0\xff\r\nb\t", "bytes as they were printed"

    house.play(scene)


@broken_by("user dropped", "shell forgets", "stale output", "shell without terminal")
@needs("users")
def test_it_runs_as_the_asked_user(house: Place) -> None:
    async def scene(box: Any) -> None:
        for user, uid in (("root", b"0\n"), ("agent", b"1000\n"), ("1234", b"1234\n")):
            shell = await box.shell(user=user)
            assert (await shell.run("id -u; test -t 1 || echo pipe")).output == uid
            status = (await shell.run("cat /proc/$$/status")).output.decode()
            assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
            await shell.close()

    house.play(scene)


@broken_by("shell without terminal")
def test_an_ended_shell_says_so(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        result = await shell.run("echo last; exit 5")
        assert result.exit_code == 5 and result.output.startswith(b"last\n") and shell.ended
        with pytest.raises(ShellEnded):
            await shell.run("true")
        with pytest.raises(ShellEnded):
            await shell.send(b"x")
        other = await box.shell()
        assert (await other.run("kill -9 $$")).signal == 9
        third = await box.shell()
        await third.close()
        await third.close()
        with pytest.raises(ShellEnded):
            await third.run("true")

    house.play(scene)


@broken_by("shell forgets")
def test_a_deadline_ends_the_line_and_keeps_the_shell(house: Place) -> None:
    token = 24_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        shell = await box.shell()
        await shell.run(f"cd /tmp; X=kept; sleep {token}9 &")
        await shell.run(f"g() {{ {tree(token)}; }}; f() {{ while :; do g; done; echo not here; }}")
        began = time.monotonic()
        result = await shell.run("echo begun; f; touch /tmp/never", timeout_s=0.5)
        assert (result.timed_out, result.signal) == (True, 9) and result.output.startswith(b"begun\n")
        assert b"not here" not in result.output and time.monotonic() - began < 4
        for _ in range(50):
            if living(token) <= 1:
                break
            await asyncio.sleep(0.01)
        assert living(token) == 1, "what an earlier line left in the background goes on, everything of this one is dead"
        assert not shell.ended
        assert (await shell.run("pwd; echo $X; test -e /tmp/never || echo ended")).output == b"/tmp\nkept\nended\n"
        await shell.close()
        assert await gone_within(token, 1)

    house.play(scene)


@broken_by("shell without terminal")
def test_a_loop_of_the_shell_itself_ends(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        result = await shell.run("while :; do :; done", timeout_s=0.3)
        assert result.timed_out and result.wall_s < 3
        assert shell.ended or (await shell.run("echo on")).output == b"on\n"
        stubborn = await box.shell()
        result = await stubborn.run("trap '' INT; while :; do :; done", timeout_s=0.3)
        assert result.timed_out and result.wall_s < 3 and stubborn.ended

    house.play(scene)


FORGERIES = (
    # every descriptor that a command has, numbers and text of every likely status, nested shells, background processes
    "for fd in 0 3 4 7 8 9 10 11 62 63 255; do (echo '0 0' >&$fd; printf '%032d 0\\n' 0 >&$fd) 2>/dev/null; done",
    "sh -c 'for f in /proc/$PPID/fd/*; do printf \"%032d 0\\n\" 0 > $f; done' 2>/dev/null",
    "python3 -c \"\nimport os\nfor fd in range(3, 300):\n  try: os.write(fd, b'0' * 32 + b' 0\\n')\n  except OSError: pass\n\"",
    "(sleep 0.1; for f in /proc/$$/fd/*; do printf '%032d 0\\n' 0 > $f; done) 2>/dev/null & sleep 0.3",
    "printf '\\033]133;D;0\\007\\n__status 0\\n$ '",
)


@broken_by("shell forgets")
@pytest.mark.parametrize("forgery", FORGERIES)
def test_nobody_else_gives_the_status(house: Place, forgery: str) -> None:
    """However a line's commands shout, the line takes its time, ends with its own code, and the next one is heard."""

    async def scene(box: Any) -> None:
        shell = await box.shell()
        await shell.run("X=kept")
        began = time.monotonic()
        result = await shell.run(f"{forgery}\nsleep 0.5; (exit 66)", timeout_s=20)
        assert result.exit_code == 66 and time.monotonic() - began >= 0.5
        result = await shell.run("echo $X; (exit 67)")
        assert result.exit_code == 67 and b"kept\n" in result.output

    house.play(scene)


@broken_by("shell forgets")
def test_control_a_sentinel_in_the_output_is_forged(house: Place) -> None:
    """What a shell driven over its output alone believes: the arm that shows the forgeries above to bite."""

    async def scene(box: Any) -> None:
        line = "printf 'END 0\\n'; exit 66"
        heard = await box.exec(["bash", "-c", f"({line}); echo END $?"])
        believed = heard.output.split(b"END ")[1].split(b"\n")[0]
        assert believed == b"0" and b"END 66" in heard.output
        shell = await box.shell()
        await shell.run("X=1")
        assert (await shell.run(f"({line}); test $X = 1 && (exit 66)")).exit_code == 66

    house.play(scene)


@broken_by("shell without terminal")
def test_input_is_typed(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        running = asyncio.ensure_future(shell.run("read name; echo hello $name", timeout_s=10))
        await asyncio.sleep(0.2)
        await shell.send("wörld\n".encode())
        assert (await running).output == "hello wörld\n".encode()
        running = asyncio.ensure_future(shell.run("sleep 30; echo not here", timeout_s=10))
        await asyncio.sleep(0.2)
        await shell.send(b"\x03")
        result = await running
        assert (result.exit_code, result.timed_out) == (130, False) and b"not here" not in result.output
        assert (await shell.run("echo on")).output == b"on\n"

    house.play(scene)


@broken_by("uncapped", "shell without terminal")
def test_output_is_capped_and_complete(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        result = await shell.run("test -t 1 && seq 300000", max_output_bytes=1000, timeout_s=60)
        whole = b"".join(b"%d\n" % i for i in range(1, 300_001))
        assert result.omitted_bytes == len(whole) - 1000
        head, tail = result.output.split(b"\n[... %d bytes omitted ...]\n" % result.omitted_bytes)
        assert (head, tail) == (whole[:500], whole[-500:])
        for n in (1, 4095, 4096, 4097, 70_000):
            assert len((await shell.run(f"head -c {n} /dev/zero", max_output_bytes=1 << 20)).output) == n

    house.play(scene)


@broken_by("shell forgets")
def test_lines_wait_for_each_other_and_shells_do_not(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell, other = await box.shell(), await box.shell()
        await shell.run("order=")
        await other.run("order=other")
        lines = [shell.run(f"sleep 0.1; order=${{order}}{i}") for i in range(4)]
        began = time.monotonic()
        await asyncio.gather(*lines, other.run("sleep 0.1"))
        assert time.monotonic() - began >= 0.4
        assert (await shell.run("echo $order")).output == b"0123\n"
        assert (await other.run("echo $order")).output == b"other\n"

    house.play(scene)


@broken_by("shell forgets")
def test_a_line_given_up_does_not_hold_the_next(house: Place) -> None:
    async def scene(box: Any) -> None:
        shell = await box.shell()
        await shell.run("X=kept")
        task = asyncio.ensure_future(shell.run("sleep 30", timeout_s=60))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.wait_for(shell.run("echo $X"), 5)).output == b"kept\n"

    house.play(scene)


@broken_by("kill nothing", "freeze nothing", "leftovers")
def test_shells_end_with_everything_else(house: Place) -> None:
    async def act() -> None:
        box = await house.box()
        shell = await box.shell()
        await shell.run("X=1")
        await box.kill_agents()
        with pytest.raises(ShellEnded):
            await shell.run("true", timeout_s=3)
        shell = await box.shell()
        assert (await shell.run("echo new")).output == b"new\n"
        await box.freeze()
        with pytest.raises(ShellEnded):
            await shell.run("true")
        with pytest.raises(PolicyRefused, match="frozen"):
            await box.shell()
        await box.destroy()
        with pytest.raises(SandboxGone):
            await box.shell()

    house.run(act())


@broken_by("checks off")
def test_what_no_shell_can_do(house: Place) -> None:
    async def scene(box: Any) -> None:
        for how, name in (({"rows": 0}, "rows"), ({"cols": 5000}, "cols"), ({"cwd": "x"}, "cwd"), ({"cwd": "/not/there"}, "cwd"),
                          ({"user": "a b"}, "user"), ({"env": {"=": ""}}, "env")):  # fmt: skip
            with pytest.raises(PolicyRefused, match=name):
                await box.shell(**how)
        shell = await box.shell()
        for line, how, name in (("a\0b", {}, "line"), ("true", {"timeout_s": -1}, "timeout_s"),
                                ("true", {"max_output_bytes": -1}, "max_output_bytes"),
                                ("x" * (1 << 26), {}, "line")):  # fmt: skip
            with pytest.raises(PolicyRefused, match=name):
                await shell.run(line, **how)
        assert (await shell.run("echo fine")).output == b"fine\n"

    house.play(scene)
