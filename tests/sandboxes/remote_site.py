"""Two sandbox hosts as processes of their own, certificates, and a wire to each that a test can cut."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from sandboxes.base import ImageSource
from sandboxes.namespace import NamespaceProvider
from sandboxes.remote.certificates import make_authority, make_certificate
from sandboxes.remote.host import HostServer, server_context
from sandboxes.remote.link import Address
from sandboxes.remote.provider import RemoteProvider
from sandboxes.remote.shelf import Shelf

TOKEN = "a token for tests"


def make_certificates(folder: Path) -> None:
    make_authority(folder)
    make_certificate(folder, "host", ["127.0.0.1", "localhost"])
    make_certificate(folder, "client")


class HostProcess:
    """`python -m sandboxes.remote.host` on a port of this machine."""

    def __init__(self, home: Path, certificates: Path, **settings: str) -> None:
        self.home = home
        self.certificates = certificates
        self._settings = settings
        self.port = 0
        self.start()

    def start(self) -> None:
        """On the port that it had before, or on a free one."""
        environment = {
            **os.environ, "GYMSMITH_HOME": str(self.home), "GYMSMITH_PROVIDER": "ns", "GYMSMITH_SANDBOX_TOKEN": TOKEN,
            **self._settings,
        }  # fmt: skip
        words = ["--listen", f"127.0.0.1:{self.port}", "--certificates", str(self.certificates)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandboxes.remote.host", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert "sandbox host" in line, f"the host said {line!r}"
        self.port = int(line.partition("127.0.0.1:")[2].partition(",")[0])

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Wire:
    """Carries bytes to a host until it is cut; while it is down, nobody gets through."""

    def __init__(self, to: Address) -> None:
        self._to = to
        self.up = True
        self.answering = asyncio.Event()
        """Cleared: what the host says is held back."""
        self.answering.set()
        self.cuts = 0
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> Address:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.transport.abort()
            return
        self.connections += 1
        there, back = await asyncio.open_connection(self._to.host, self._to.port)
        self._writers += [writer, back]
        asking, answering = self._pump(reader, back), self._pump(there, writer, self.answering)
        await asyncio.gather(asking, answering, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, when: asyncio.Event | None = None) -> None:
        while data := await reader.read(65_536):
            if when is not None:
                await when.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Everything under way is lost."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def close(self) -> None:
        self._server.close()
        self.cut()


class OwnHosts(RemoteProvider):
    """A remote provider whose two hosts live in this process, each with a namespace provider, and end with it."""

    async def close(self) -> None:
        await super().close()
        for server in self.servers:
            await server.close()
            await server.provider.close()

    servers: list[HostServer]


async def start_remote(folder: Path, images: ImageSource) -> OwnHosts:
    """Over real TLS connections."""
    make_certificates(folder)
    servers: list[HostServer] = []
    addresses = []
    for number in (1, 2):
        shelf = Shelf(folder / f"hosted{number}")
        server = HostServer(await NamespaceProvider.start(shelf, folder / f"state{number}"), shelf, TOKEN)
        addresses.append(Address("127.0.0.1", await server.listen("127.0.0.1", 0, server_context(folder, "host"))))
        servers.append(server)
    # their loop stands still while other providers' tests run: a lease of a minute would lapse on a busy machine
    made = await OwnHosts.start(images, addresses, folder, TOKEN, lease_s=1800.0)
    made.servers = servers
    return made
