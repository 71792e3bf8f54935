"""A worker's side of one sandbox host: a connection that is made again when it breaks, and the calls that go over it.

What is asked is kept until it is answered and sent again after a reconnection; the host does nothing twice. When the host stays
away for longer than the lease, or was started anew, all that waits ends with HostLost and a new session (epoch) begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymsmith.errors import ConfigError, GymsmithError, HostLost, PolicyRefused, SandboxError, SandboxGone
from sandboxes.background import begin
from sandboxes.base import Capabilities
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
    unpack,
    unpack_error,
)

log = logging.getLogger(__name__)

_CONNECT_S = 15.0
_PATIENCE_S = 180.0
"""How long past its own deadline a call may take before the sandbox counts as broken."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sandbox host listens."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Address:
        """From NAME:PORT or [ADDRESS]:PORT. Raises: ConfigError."""
        host, _, port = text.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigError(f"a sandbox host must be given as NAME:PORT, got {text!r}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Call:
    future: asyncio.Future[Any]
    data: bytes


class HostLink:
    """One host, connected or being connected to again. Belongs to one event loop."""

    def __init__(self, address: Address, tls: ssl.SSLContext, token: str, lease_s: float) -> None:
        self.address = address
        self.epoch = 0
        """Counts sessions; what was made in an earlier one is gone."""
        self.capabilities: Capabilities | None = None
        self.usage: dict[str, Any] = {"live": 0, "reserved": 0, "memory_bytes": 0}
        self.reserved = 0
        """Bytes that this worker's own sandboxes reserve there."""
        self.why_not = "it was not reached yet"
        self.sent: dict[str, asyncio.Task[None]] = {}
        """Layers that are there or on their way, by key."""
        self._tls = tls
        self._token = token
        self._lease_s = lease_s
        self._session = secrets.token_hex(16)
        self._calls: dict[int, _Call] = {}
        self._last = 0
        self._channel: Channel | None = None
        self._heard = 0.0
        self._closed = False
        self._tried = asyncio.Event()
        self._keeper = begin(self._keep(), f"connection to {address}", self._given_up)

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def tried(self) -> None:
        """Returns after the first attempt to connect."""
        await self._tried.wait()

    async def call(self, do: str, args: dict[str, Any], *, epoch: int, on: str = "", within_s: float = 0.0) -> Any:
        """What the host answers: to `do`, or to `do` of the thing named `on`. Calls survive a broken connection.

        epoch: in which session; within_s: how long the deed itself may take.

        Raises: what the host raised; HostLost (it was away for longer than the lease, or is another one now).
        """
        if epoch != self.epoch or self._keeper.done():
            raise self._gone()
        self._last += 1
        number = self._last
        try:
            data = pack({"do": do, "on": on, "args": args})
        except TypeError as error:
            raise PolicyRefused(f"arguments of {do} must be those of the protocol: {error}") from error
        call = _Call(asyncio.get_running_loop().create_future(), data)
        self._calls[number] = call
        try:
            if self._channel is not None:
                with contextlib.suppress(OSError):  # it is sent again once there is another connection
                    await self._channel.send(CALL, number, call.data)
            async with asyncio.timeout(within_s + _PATIENCE_S + self._lease_s):
                return await call.future
        except TimeoutError:
            raise HostLost(f"host {self.address} must answer {do}, it did not") from None
        finally:
            if self._calls.pop(number, None) is not None and self._channel is not None:
                self._channel.post(CANCEL, number)

    async def _keep(self) -> None:
        """Connect, listen, connect again."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                channel = await self._connect()
                pause = _FIRST_PAUSE_S
                await self._listen(channel)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, GymsmithError) as error:
                self.why_not = str(error) or type(error).__name__
            except Exception as error:  # what such a host says cannot be used, now; another one may answer there next time
                self.why_not = f"it does not speak as a sandbox host does ({type(error).__name__}: {error})"
                log.exception("event=host_not_understood host=%s", self.address)
            finally:
                if self._channel is not None:
                    self._channel.close()
                    self._heard = max(self._heard, self._channel.heard)
                self._channel = None
                self._tried.set()
            if self._heard and time.monotonic() - self._heard > self._lease_s:
                log.warning("event=host_lost host=%s why=%r", self.address, self.why_not)
                self._lost(f"it was away for more than {self._lease_s:g} s ({self.why_not})")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_S, self._lease_s / 4)

    async def _connect(self) -> Channel:
        async with asyncio.timeout(min(_CONNECT_S, self._lease_s)):
            reader, writer = await asyncio.open_connection(
                self.address.host, self.address.port, ssl=self._tls, server_hostname=self.address.host
            )
            channel = Channel(reader, writer)
            try:
                hello = {
                    "protocol": PROTOCOL, "token": self._token, "session": self._session, "resume": bool(self._heard),
                    "lease_s": self._lease_s, "outstanding": list(self._calls),
                }  # fmt: skip
                await channel.send(HELLO, 0, pack(hello))
                message = await channel.receive()
                if message.kind == ERROR:
                    raise unpack_error(message.data)
                if message.kind != WELCOME:
                    raise Broken(f"a host must say welcome, it said {message.kind}")
                welcome = unpack(message.data)
            except BaseException:
                channel.close()
                raise
        if self._heard and not welcome["resumed"]:
            log.warning("event=host_anew host=%s", self.address)
            session = self._session
            self._lost("it was started anew, or did not hear from us for too long")
            self._session = session  # under which it knows us now
        self._heard = time.monotonic()
        self.capabilities, self.usage = welcome["capabilities"], welcome["usage"]
        self._channel = channel
        self._tried.set()
        known = set(welcome["known"])
        for number, call in list(self._calls.items()):
            if number not in known:
                await channel.send(CALL, number, call.data)
        return channel

    async def _listen(self, channel: Channel) -> None:
        pinging = begin(self._ping(channel), f"ping {self.address}", lambda _: channel.close())
        try:
            while True:
                message = await channel.receive()
                self._heard = time.monotonic()
                if message.kind in (ANSWER, ERROR):
                    channel.post(ACK, message.number)
                    call = self._calls.pop(message.number, None)
                    if call is not None and not call.future.done():
                        _settle(call.future, message)
                elif message.kind == PONG:
                    self.usage = unpack(message.data)
                elif message.kind == BYE:
                    raise Broken("the session was closed")
                else:
                    raise Broken(f"message kind {message.kind}")
        finally:
            pinging.cancel()

    async def _ping(self, channel: Channel) -> None:
        """Say that we live; cut a connection on which nothing comes back, which the kernel may take for whole for minutes."""
        with contextlib.suppress(OSError):
            while True:
                await channel.send(PING, 0)
                await asyncio.sleep(self._lease_s / 6)
                if time.monotonic() - channel.heard > self._lease_s / 2:
                    channel.close()
                    return

    def _given_up(self, error: BaseException) -> None:
        """Nobody keeps this connection any more: all that waits ends now, and what is asked later at once."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._tried.set()
        self._lost(f"its connection is not kept any more ({type(error).__name__}: {error})")

    def _lost(self, why: str) -> None:
        """What was made there is gone."""
        self.why_not = why
        self.epoch += 1
        self.reserved = 0
        self.sent.clear()
        self._session = secrets.token_hex(16)
        self._heard = 0.0
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.future.done():
                call.future.set_exception(self._gone())
                call.future.exception()  # marks it as seen: nobody may be waiting any more

    def _gone(self) -> Exception:
        """Why what was made there is gone."""
        if self._closed:
            return SandboxGone("the provider is closed, and its sandboxes were destroyed")
        return HostLost(f"host {self.address} has lost its sandboxes: {self.why_not}")

    async def close(self) -> None:
        """Say goodbye: the host destroys what is left."""
        if self._channel is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(30):
                    await self._channel.send(BYE, 0)
                    await asyncio.wait([self._keeper], timeout=0.01)
                    while self._channel is not None:
                        await asyncio.sleep(0.01)
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        self._heard, self._closed = 0.0, True
        self._lost("the provider was closed")


def _settle(future: asyncio.Future[Any], message: Message) -> None:
    """Give an answer to its caller: what cannot be read is an error of that call, not of the connection."""
    try:
        if message.kind == ANSWER:
            future.set_result(unpack(message.data))
        else:
            future.set_exception(unpack_error(message.data))
    except Exception as error:
        future.set_exception(SandboxError(f"an answer cannot be read: {type(error).__name__}: {error}"))


def client_context(certificates: Path, name: str) -> ssl.SSLContext:
    """TLS of a worker: it speaks only to hosts with a certificate of our authority, and shows its own. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(certificates / "ca.pem")
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"expected ca.pem, {name}.pem and {name}.key in {certificates}: {error}; gymsmith sandbox-host certificate makes them"
        ) from error
    return context
