"""No task dies in silence: what nobody awaits is held and heard, and whoever asks next is told why."""

from __future__ import annotations

import ast
import asyncio
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import Capacity, HostLost, SandboxError
from sandboxes.background import begin
from sandboxes.base import Image, SandboxSpec
from sandboxes.local import LocalProvider
from sandboxes.remote.channel import ANSWER, BYE, CALL, ERROR, PING, PONG, WELCOME, Channel, pack
from sandboxes.remote.host import HostServer, server_context
from sandboxes.remote.link import Address
from sandboxes.remote.provider import RemoteProvider
from sandboxes.remote.session import Live, Session
from sandboxes.remote.shelf import Shelf
from sandboxes.worker import Worker
from tests.sandboxes.conftest import OneImage
from tests.sandboxes.remote_site import TOKEN, Wire, make_certificates

ROOT = Path(__file__).parents[2] / "sandboxes"
AWAITED = {
    ("background.py", "begin"), ("chromium.py", "start"), ("page.py", "show"), ("watch.py", "watched"),
    ("watch.py", "put_down"), ("build_box.py", "_within_disk"), ("proxy.py", "_pipe_both"),
    ("sandbox.py", "unless_cancelled"), ("terminal.py", "attach"),
}  # fmt: skip
"""Functions that see the tasks that they make to their end."""


def test_every_other_task_goes_through_begin() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "bench":
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future"):
                        found.add((path.name, function.name))
    assert found == AWAITED


def test_a_failure_is_heard_and_a_cancelled_task_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: Exception) -> None:
        await asyncio.sleep(0)
        raise error

    async def scene() -> list[str]:
        told: list[str] = []
        begin(fail(ValueError("a bug")), "one", lambda error: told.append(str(error)))
        begin(fail(Capacity("no engine")), "two", lambda error: told.append(str(error)))
        gc.collect()  # nobody but `begin` holds them
        begin(asyncio.sleep(60), "three", lambda error: told.append("cancelled")).cancel()
        await asyncio.sleep(0.01)
        return told

    assert sorted(asyncio.run(scene())) == ["a bug", "no engine"]
    said = {record.args[0]: (record.levelname, bool(record.exc_info)) for record in caplog.records}  # type: ignore[index]
    assert said == {"one": ("ERROR", True), "two": ("WARNING", False)}


class OddHost:
    """Takes every greeting; what it says to each call is the test's affair."""

    def __init__(self, welcome: Any, answer: Callable[[Channel, int], Awaitable[None]]) -> None:
        self.welcome, self.answer = welcome, answer
        self.connections = 0

    async def start(self, certificates: Path) -> Address:
        tls = server_context(certificates, "host")
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        return Address("127.0.0.1", self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        channel = Channel(reader, writer)
        try:
            await channel.receive()
            await channel.send(WELCOME, 0, pack(self.welcome))
            while True:
                message = await channel.receive()
                if message.kind == PING:
                    channel.post(PONG, 0, pack(self.welcome["usage"]))
                elif message.kind == CALL:
                    await self.answer(channel, message.number)
                elif message.kind == BYE:
                    await channel.send(BYE, 0)
        except (OSError, EOFError):
            channel.close()


def welcome() -> dict[str, Any]:
    able = LocalProvider.capabilities.fget(None)  # type: ignore[attr-defined]
    usage = {"live": 0, "reserved": 0, "memory_bytes": 1 << 30}
    return {"resumed": False, "known": [], "capabilities": able, "usage": usage, "lease_s": 20.0}


def test_what_a_host_says_cannot_end_its_connection(tmp_path: Path) -> None:
    """Answers that cannot be read are errors of their calls; greetings that cannot are reasons, and are tried again."""
    odd = iter([(ERROR, pack("not a table")), (ERROR, pack({"errno": "x"})), (ANSWER, b"\xff"), (ANSWER, pack(7))])

    async def answer(channel: Channel, number: int) -> None:
        kind, data = next(odd)
        await channel.send(kind, number, data)

    async def scene() -> None:
        make_certificates(tmp_path)
        host = OddHost(welcome(), answer)
        provider = await RemoteProvider.start(OneImage(Image("base")), [await host.start(tmp_path)], tmp_path, TOKEN)
        link = provider.links[0]
        for _ in range(3):
            with pytest.raises(SandboxError, match="cannot be read"):
                await link.call("create", {}, epoch=0)
        assert await link.call("create", {}, epoch=0) == 7 and host.connections == 1
        await provider.close()
        nonsense = OddHost(["hello"], answer)
        with pytest.raises(Capacity, match="does not speak as a sandbox host does"):
            await RemoteProvider.start(OneImage(Image("base")), [await nonsense.start(tmp_path)], tmp_path, TOKEN)

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_connection_that_nobody_keeps_ends_its_calls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def never(channel: Channel, number: int) -> None:
        pass

    async def scene() -> None:
        make_certificates(tmp_path)
        wire = Wire(await OddHost(welcome(), never).start(tmp_path))
        provider = await RemoteProvider.start(OneImage(Image("base")), [await wire.start()], tmp_path, TOKEN)
        link = provider.links[0]
        waiting = asyncio.ensure_future(link.call("create", {}, epoch=0))
        await asyncio.sleep(0.05)
        link._lease_s = "soon"  # type: ignore[assignment]  # a fault where none is caught
        wire.cut()
        with pytest.raises(HostLost, match="TypeError"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(HostLost, match="TypeError"):
            await asyncio.wait_for(link.call("create", {}, epoch=link.epoch), 1)
        with pytest.raises(Capacity, match="TypeError"):
            await provider.create(SandboxSpec(image="base"))
        await asyncio.wait_for(provider.close(), 5)
        wire.close()

    asyncio.run(asyncio.wait_for(scene(), 30))
    assert any("task_failed" in record.getMessage() for record in caplog.records)


class Stuck:
    """A sandbox that does not end."""

    async def destroy(self) -> None:
        await asyncio.sleep(600)


class Raising:
    """A sandbox whose end fails in a way that nobody expects."""

    async def destroy(self) -> None:
        raise KeyError("no such thing")


def test_a_session_that_does_not_end_holds_up_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> list[bool]:
        make_certificates(tmp_path)
        provider, shelf = await LocalProvider.start(OneImage(Image("base")), tmp_path / "state"), Shelf(tmp_path / "hosted")
        server = HostServer(provider, shelf, TOKEN)
        long_ago = time.monotonic() - 60
        sessions = [Session(name, 0.4, long_ago, provider, shelf) for name in ("stuck", "raising", "fine")]
        sessions[0].live["box1"] = Live(Stuck())
        sessions[1].live["box1"] = Live(Raising())
        server._sessions = {session.id: session for session in sessions}
        await server.listen("127.0.0.1", 0, server_context(tmp_path, "host"))
        for _ in range(100):
            if all(session.ended for session in sessions):
                break
            await asyncio.sleep(0.05)
        late = Session("late", 0.4, long_ago, provider, shelf)
        server._sessions["late"] = late
        for _ in range(100):
            if late.ended:
                break
            await asyncio.sleep(0.05)
        await server.close()
        await provider.close()
        return [session.ended for session in (*sessions, late)]

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(asyncio.wait_for(scene(), 30)) == [True] * 4
    assert any("no such thing" in record.getMessage() for record in caplog.records)


def test_a_job_hears_that_the_loop_of_its_sandboxes_has_ended(tmp_path: Path) -> None:
    async def leave() -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await asyncio.sleep(60)

    worker = Worker(Settings.load(home=tmp_path))
    assert worker.run(asyncio.sleep(0, "works")) == "works"
    with pytest.raises(SandboxError, match="SystemExit: 3"):
        worker.run(leave())
    with pytest.raises(SandboxError, match="SystemExit: 3"):
        worker.run(asyncio.sleep(0))
    worker.close()
