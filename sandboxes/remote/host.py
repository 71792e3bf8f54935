"""A sandbox host: one process that offers this machine's sandboxes to workers elsewhere, over mutual TLS.

A worker has one connection, on which the calls of all its sandboxes travel beside each other, and one session, which outlives the
connection for as long as its lease: what was running goes on, what was answered is kept until the worker has it, and a call that
is sent again is not done again. A session whose lease lapses loses everything that it made. What happens inside a sandbox is the
business of the provider of this machine, which this file only passes calls on to.

    python -m sandboxes.remote.host --listen ADDRESS:PORT --certificates FOLDER --name NAME      (gymsmith sandbox-host serve)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import logging
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, GymsmithError, PolicyRefused, SandboxError
from sandboxes.admission import machine_memory
from sandboxes.background import begin
from sandboxes.base import Provider
from sandboxes.remote.channel import (
    ACK,
    ANSWER,
    BYE,
    CALL,
    CANCEL,
    ERROR,
    HELLO,
    PING,
    PONG,
    PROTOCOL,
    WELCOME,
    Broken,
    Channel,
    Message,
    pack,
    pack_error,
    unpack,
)
from sandboxes.remote.session import Session
from sandboxes.remote.shelf import Shelf

log = logging.getLogger(__name__)

GREETING_S = 10.0
MAX_LEASE_S = 3600.0


class HostServer:
    """Serves sessions out of one provider. Belongs to one event loop."""

    def __init__(self, provider: Provider, shelf: Shelf, token: str, *, memory_bytes: int = 0) -> None:
        if not token:
            raise ConfigError("a sandbox host needs a token; set GYMSMITH_SANDBOX_TOKEN")
        self.provider = provider
        self.shelf = shelf
        self._token = token.encode()
        self._memory_bytes = memory_bytes or machine_memory()
        self._sessions: dict[str, Session] = {}
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, address: str, port: int, tls: ssl.SSLContext) -> int:
        """Begin to serve; the port."""
        self._server = await asyncio.start_server(
            self._connected, address, port, ssl=tls, backlog=256, ssl_handshake_timeout=GREETING_S
        )
        self._watch = begin(self._keep_leases(), "leases of sessions")
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End every session. The provider is the caller's."""
        if self._server is not None:
            self._server.close()
        if self._watch is not None:
            self._watch.cancel()
        sessions, self._sessions = list(self._sessions.values()), {}
        ends = await asyncio.gather(*(session.end("the host stops") for session in sessions), return_exceptions=True)
        for session, end in zip(sessions, ends, strict=True):
            if isinstance(end, BaseException):
                log.error("event=session_not_ended session=%s", session.id[:8], exc_info=end)
        for task in list(self._connections):
            task.cancel()

    def _usage(self) -> dict[str, Any]:
        live = [live for session in self._sessions.values() for live in session.live.values()]
        copies = [one for session in self._sessions.values() for one in session.things.values() if one.kind == "snapshot"]
        reserved = sum(one.bytes for one in live) + sum(one.itself.spec.disk_bytes for one in copies)
        return {"live": len(live), "reserved": reserved, "memory_bytes": self._memory_bytes}

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        channel = Channel(reader, writer)
        session: Session | None = None
        try:
            async with asyncio.timeout(GREETING_S):
                session, again = await self._greet(channel)
            for number, (kind, data) in again:
                await channel.send(kind, number, data)
            while session is not None and session.channel is channel:
                message = await channel.receive()
                session.heard = time.monotonic()
                await self._take(session, channel, message)
        except (OSError, EOFError, GymsmithError, LookupError, TypeError, ValueError, asyncio.CancelledError) as error:
            log.info("event=connection_lost session=%s why=%r", session.id[:8] if session else "", error)
        except Exception:
            log.exception("event=connection_failed session=%s", session.id[:8] if session else "")
        finally:
            if session is not None and session.channel is channel:
                session.channel, session.heard = None, max(session.heard, channel.heard)
            channel.close()
            self._connections.discard(task)

    async def _greet(self, channel: Channel) -> tuple[Session, list[tuple[int, tuple[int, bytes]]]]:
        """The session of whoever comes, and the answers that it did not get before."""
        message = await channel.receive()
        said = unpack(message.data) if message.kind == HELLO else {}
        if message.kind != HELLO or not hmac.compare_digest(str(said.get("token", "")).encode(), self._token):
            await channel.send(ERROR, 0, pack_error(PolicyRefused("the sandbox host does not know this token")))
            raise Broken("no greeting with our token")
        if said["protocol"] != PROTOCOL:
            await channel.send(
                ERROR, 0, pack_error(SandboxError(f"the sandbox host speaks protocol {PROTOCOL}; update one side"))
            )
            raise Broken(f"protocol {said['protocol']}")
        session = self._sessions.get(said["session"]) if said["resume"] else None
        resumed = session is not None
        if session is None:
            lease_s = min(max(1.0, float(said["lease_s"])), MAX_LEASE_S)  # in this order "not a number" is 1 s
            session = Session(said["session"], lease_s, time.monotonic(), self.provider, self.shelf)
            self._sessions[session.id] = session
        elif session.channel is not None:
            session.channel.close()
        wanted = set(said["outstanding"])
        session.done = {number: answer for number, answer in session.done.items() if number in wanted}
        again = list(session.done.items())  # what is done from here on is sent by whoever does it
        welcome = {
            "resumed": resumed,
            "known": sorted(wanted & (session.done.keys() | session.running.keys())),
            "capabilities": self.provider.capabilities,
            "usage": self._usage(),
            "lease_s": session.lease_s,
        }
        session.channel, session.heard = channel, time.monotonic()
        await channel.send(WELCOME, 0, pack(welcome))
        log.info("event=session session=%s resumed=%s", session.id[:8], resumed)
        return session, again

    async def _take(self, session: Session, channel: Channel, message: Message) -> None:
        number = message.number
        if message.kind == CALL:
            if number not in session.running and number not in session.done:
                session.running[number] = begin(self._answer(session, number, message.data), f"call {number}")
        elif message.kind == ACK:
            session.done.pop(number, None)
        elif message.kind == CANCEL:
            session.done.pop(number, None)
            if number in session.running:
                session.running[number].cancel()
        elif message.kind == PING:
            channel.post(PONG, 0, pack(self._usage()))
        elif message.kind == BYE:
            self._sessions.pop(session.id, None)
            await session.end("the worker is done")
            await channel.send(BYE, 0)
        else:
            raise Broken(f"message kind {message.kind}")

    async def _answer(self, session: Session, number: int, data: bytes) -> None:
        answer: tuple[int, bytes] | None = None
        try:
            answer = ANSWER, pack(await session.do(unpack(data)))
        except asyncio.CancelledError:
            return
        except GymsmithError as error:
            answer = ERROR, pack_error(error)
        except Exception as error:
            if not isinstance(error, OSError):
                log.exception("event=call_failed session=%s", session.id[:8])
            answer = ERROR, pack_error(error)
        finally:
            session.running.pop(number, None)
        session.done[number] = answer
        if session.channel is not None:
            with contextlib.suppress(OSError):
                await session.channel.send(answer[0], number, answer[1])

    async def _keep_leases(self) -> None:
        """End sessions whose worker stays away, each by itself: one whose end fails, or takes long, holds up no other."""
        while True:
            now = time.monotonic()
            for session in list(self._sessions.values()):
                heard = max(session.heard, session.channel.heard) if session.channel is not None else session.heard
                if now - heard > session.lease_s:
                    del self._sessions[session.id]
                    begin(session.end(f"nothing was heard for {session.lease_s:g} s"), f"end of session {session.id[:8]}")
            await asyncio.sleep(min([s.lease_s / 8 for s in self._sessions.values()], default=1.0))


def server_context(certificates: Path, name: str) -> ssl.SSLContext:
    """TLS of a host: only clients with a certificate of our authority come in. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        context.load_verify_locations(certificates / "ca.pem")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"expected ca.pem, {name}.pem and {name}.key in {certificates}: {error}; gymsmith sandbox-host certificate makes them"
        ) from error
    return context


async def serve(settings: Settings, address: str, port: int, certificates: Path, name: str) -> None:
    """Offer this machine's sandboxes until SIGTERM or SIGINT. Prints one line once it listens."""
    from sandboxes.providers import open_provider

    if settings.provider == "remote":
        raise ConfigError("a sandbox host offers the sandboxes of its own machine; set provider to auto, ns or docker there")
    context = server_context(certificates, name)
    shelf = Shelf(settings.home / "hosted")
    provider = await open_provider(settings, shelf)
    server = HostServer(provider, shelf, settings.sandbox_token)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        listening = await server.listen(address, port, context)
        print(f"gymsmith: sandbox host {name} on {address}:{listening}, provider {provider.name}", flush=True)
        await stop.wait()
    finally:
        await server.close()
        await provider.close()


def listening(text: str) -> tuple[str, int]:
    """(address, port) of ADDRESS:PORT. Raises: ConfigError."""
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--listen must be ADDRESS:PORT, got {text!r}")
    return address.strip("[]"), int(port)


def main() -> None:
    """Entry point of `python -m sandboxes.remote.host`."""
    parser = argparse.ArgumentParser(description="Offer this machine's sandboxes to workers elsewhere.")
    parser.add_argument("--listen", default="0.0.0.0:8650", help="ADDRESS:PORT")
    parser.add_argument("--certificates", type=Path, required=True, help="folder with ca.pem, NAME.pem and NAME.key")
    parser.add_argument("--name", default="host", help="which certificate of that folder is this host's")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(Settings.load(), *listening(words.listen), words.certificates, words.name))
    except GymsmithError as error:
        raise SystemExit(f"gymsmith: {error}") from None


if __name__ == "__main__":
    main()
