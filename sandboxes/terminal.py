"""A person's terminal on a shell in a sandbox: keys go in, what is printed comes out as it comes.

A persistent shell of the sandbox runs one line, an interactive shell on its own terminal, so that line editing, Ctrl-C and job
control work as anywhere. Output is asked for some thirty times a second; a flood of it is cut
in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator

from gymsmith.errors import PolicyRefused, ShellEnded
from sandboxes.base import Sandbox
from sandboxes.shell import ResidentShell

LONGEST_S = 86_400.0
POLL_S = 0.03
_FLOOD_BYTES = 65_536
_START = """stty sane 2>/dev/null; export PS1='sandbox:\\w\\$ '; if [ -n "$BASH_VERSION" ]; then bash --norc -i; else sh -i; fi"""


async def attach(box: Sandbox, user: str | None) -> int:
    """Connect this process's standard streams with a shell in `box` until it exits; its exit code.

    Raises: PolicyRefused (the provider has no terminals), SandboxGone.
    """
    size = shutil.get_terminal_size()
    shell = await box.shell(user=user, env={"TERM": os.environ.get("TERM", "dumb")}, rows=size.lines, cols=size.columns)
    if not isinstance(shell, ResidentShell):
        raise PolicyRefused(f"the terminal of sandbox {box.id} cannot be followed as it prints; use `gymsmith sandbox exec`")
    keys: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def typed() -> None:
        data = os.read(0, 1024)
        if not data:
            loop.remove_reader(0)
        keys.put_nowait(data or b"\x04")

    running = asyncio.ensure_future(shell.run(_START, timeout_s=LONGEST_S, max_output_bytes=_FLOOD_BYTES))
    typing = asyncio.ensure_future(_type(shell, keys))
    try:
        loop.add_reader(0, typed)
    except PermissionError:  # a file cannot be waited for; it is there already
        keys.put_nowait(sys.stdin.buffer.read() + b"\x04")
    try:
        while not running.done():
            _show(await shell.take())
            await asyncio.wait({running}, timeout=POLL_S)
        ended = running.result()
        _show(ended.output)
    finally:
        loop.remove_reader(0)
        typing.cancel()
        running.cancel()
        await asyncio.gather(typing, running, return_exceptions=True)
    return ended.exit_code if ended.exit_code is not None else 128 + (ended.signal or 0)


async def _type(shell: ResidentShell, keys: asyncio.Queue[bytes]) -> None:
    with contextlib.suppress(ShellEnded):
        while True:
            await shell.send(await keys.get())


def _show(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """This process's terminal passes every key on as it is typed; a pipe does so anyway."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
