"""What a sandbox may reach at run time: nothing, an offline package index, or an allow-list proxy. The policy and its gate.

A sandbox keeps its own network namespace with a loopback and no route, whatever its policy. A policy adds one thing: a listening
socket on that loopback, made by the resident agent (`box/listen.c`) before anything else runs and handed to this process. What is
accepted there is served here, by `index_server.py` or `proxy.py`; no packet ever leaves the namespace, so there is nothing to
filter: raw sockets, DNS, IPv6, other ports and other addresses find no way, and a service that ends leaves a closed port.

Not here: how a service answers, and which files or names there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gymsmith.errors import PolicyRefused
from sandboxes.background import begin

if TYPE_CHECKING:
    from gymsmith.schema import TaskSpec

log = logging.getLogger(__name__)

MIB = 1024 * 1024
MAX_HEAD_BYTES = 16_384
IDLE_S = 60.0
"""A connection on which nothing moves for so long is closed."""
RATE_PER_S = 200.0
"""Connections and requests of one sandbox; one that asks faster waits, so that others are not kept waiting by it."""
_BURST = 100.0
_AGAIN_S = 1.0
_KEPT_REFUSALS = 100

Mode = Literal["none", "index", "proxy"]
PORTS: Mapping[str, int] = {"index": 3141, "proxy": 3128}
"""Where a service listens on the sandbox's loopback."""

Reason = Literal[
    "bad-request",
    "method",
    "not-listed",
    "ip-literal",
    "port",
    "host-mismatch",
    "not-tls",
    "no-sni",
    "sni-mismatch",
    "hidden-name",
    "no-such-name",
    "private-address",
    "unreachable",
    "no-such-package",
    "damaged-file",
    "too-many-connections",
    "bytes",
    "time",
    "fault",
]
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_PIN = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9._+!-]+))?\Z")


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a sandbox may reach. Raises PolicyRefused for what no service could honour."""

    mode: Mode = "none"
    packages: tuple[str, ...] = ()
    """index: "name" or "name==version" of what the index offers; a name without a version offers every one in the cache."""
    hosts: tuple[str, ...] = ()
    """proxy: "name" or "*.name" (what is below it, not itself), with ":port" where that is not 80 or 443. Never addresses."""
    max_connections: int = 32
    """Open at once; one more is closed with an answer that says so."""
    max_bytes: int = 1024 * MIB
    """Over the sandbox's life, both directions together."""
    max_seconds: float = 600.0
    """Of one connection."""

    def __post_init__(self) -> None:
        if self.mode not in ("none", "index", "proxy"):
            raise PolicyRefused(f'network mode must be "none", "index" or "proxy", got {self.mode!r}')
        if bool(self.packages) != (self.mode == "index"):
            raise PolicyRefused(f'network packages go with mode "index" and it needs some, got {self.mode!r}, {self.packages!r}')
        if bool(self.hosts) != (self.mode == "proxy"):
            raise PolicyRefused(f'network hosts go with mode "proxy" and it needs some, got {self.mode!r}, {self.hosts!r}')
        for pin in self.packages:
            if not _PIN.match(pin):
                raise PolicyRefused(f'network packages must be "name" or "name==version", got {pin[:100]!r}')
        for host in self.hosts:
            name, _, port = host.partition(":")
            if not _HOST.match(host) or len(name) > 253 or not re.search(r"[a-z_-]", name.rpartition(".")[2]):
                raise PolicyRefused(f'network hosts must be lower-case names, "*.name" or "name:port", got {host[:100]!r}')
            if port and not 0 < int(port) < 65_536:
                raise PolicyRefused(f"network hosts must name a port from 1 to 65535, got {host!r}")
        for field, value, low, high in (
            ("max_connections", self.max_connections, 1, 1024),
            ("max_bytes", self.max_bytes, 1, 1 << 50),
            ("max_seconds", self.max_seconds, 1, 86_400),
        ):
            if not low <= value <= high:
                raise PolicyRefused(f"network {field} must be between {low} and {high}, got {value}")

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make pip, uv, curl and their like use the service."""
        if self.mode == "none":
            return {}
        base = f"http://127.0.0.1:{PORTS[self.mode]}"
        if self.mode == "index":
            index = f"{base}/simple/"
            return {
                "PIP_INDEX_URL": index,
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_NO_INPUT": "1",
                "UV_DEFAULT_INDEX": index,
            }
        words = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        return {**dict.fromkeys(words, base), "no_proxy": "localhost,127.0.0.1,::1", "NO_PROXY": "localhost,127.0.0.1,::1"}


OFFLINE = NetworkPolicy()


def policy_of(spec: TaskSpec, *, verifying: bool = False) -> NetworkPolicy:
    """What a task lets its agent's sandbox reach, or the one that verifies. Raises: PolicyRefused."""
    if verifying and not spec.verifier_network:
        return OFFLINE
    if spec.network == "allowlist":
        return NetworkPolicy("proxy", hosts=spec.allowed_hosts)
    return NetworkPolicy("index", packages=spec.packages) if spec.packages else OFFLINE


def split_pin(pin: str) -> tuple[str, str]:
    """(name, version or nothing) of an entry of `packages`."""
    found = _PIN.match(pin)
    assert found is not None
    return found[1], found[2] or ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that a service did not do."""

    reason: Reason
    what: str
    """What was asked for, at most 200 characters of it. Written by a workload: hostile text."""


class Refused(Exception):
    """Raised by a service to end a connection with an answer; the gate records it."""

    def __init__(self, reason: Reason, what: str, status: int = 403) -> None:
        super().__init__(f"{reason}: {what}")
        self.refusal = Refusal(reason, what[:200])
        self.status = status


class Connection:
    """One accepted connection, its bytes counted against the sandbox's budget."""

    def __init__(self, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gate = gate
        self._reader = reader
        self._writer = writer
        self.answered = False
        """A status line, or bytes of another server, went out: no refusal can be said any more."""

    async def head(self) -> tuple[str, dict[str, str]] | None:
        """(request line, headers with lower-case names); None at the end of the stream. Raises: Refused."""
        try:
            async with asyncio.timeout(IDLE_S):
                raw = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as cut:
            if cut.partial.strip():
                raise Refused("bad-request", repr(cut.partial[:100]), 400) from None
            return None
        except (asyncio.LimitOverrunError, TimeoutError) as error:
            raise Refused("bad-request", f"no whole request head: {type(error).__name__}", 400) from None
        self.gate.spend(len(raw))
        await self.gate.turn()
        lines = raw[:-4].decode("latin-1").split("\r\n")
        if not (lines[0].isascii() and lines[0].isprintable()):
            raise Refused("bad-request", repr(lines[0][:100]), 400)
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or not _TOKEN.match(name) or not value.strip().isprintable():
                raise Refused("bad-request", f"header {line[:100]!r}", 400)
            if name in headers and name in ("host", "content-length", "transfer-encoding"):
                raise Refused("bad-request", f"{name} is given twice", 400)
            headers[name] = value.strip()
        return lines[0], headers

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; none at the end."""
        data = await self._reader.read(limit)
        self.gate.spend(len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send, at the pace at which the other side takes it."""
        self.gate.spend(len(data))
        self.answered = True
        self._writer.write(data)
        async with asyncio.timeout(IDLE_S):
            await self._writer.drain()

    async def answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8", *, more: str = "") -> None:
        """A whole response; the connection may go on."""
        words = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
                 502: "Bad Gateway", 503: "Service Unavailable"}  # fmt: skip
        head = f"HTTP/1.1 {status} {words[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await self.write(head.encode("latin-1") + body)


Service = Callable[[Connection], Awaitable[None]]
"""Answers one connection until it ends; raises Refused to end it with a reason."""


class Gate:
    """The one way out of one sandbox: its listening socket, served within the policy's bounds. Belongs to one event loop."""

    def __init__(self, policy: NetworkPolicy, listener: socket.socket, service: Service, sandbox: str) -> None:
        self.policy = policy
        self.sandbox = sandbox
        self.refused: deque[Refusal] = deque(maxlen=_KEPT_REFUSALS)
        """The last refusals, oldest first."""
        self.refusals = 0
        """How many there were."""
        self.bytes = 0
        self._listener = listener
        self._service = service
        self._open: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._turns, self._counted = _BURST, time.monotonic()

    def open(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._accepting = begin(self._accept(), f"network of sandbox {self.sandbox}", lambda _: self.close())

    def close(self) -> None:
        """Stop accepting and cut what is open; the port is closed when this returns. Calling it again does nothing."""
        if self._accepting is None:
            return
        self._accepting.get_loop().remove_reader(self._listener.fileno())
        self._accepting.cancel()
        self._accepting = None
        log.info("event=network_closed sandbox=%s mode=%s bytes=%d refusals=%d",
                 self.sandbox, self.policy.mode, self.bytes, self.refusals)  # fmt: skip
        self._listener.close()
        for task in self._open:
            task.cancel()

    async def turn(self) -> None:
        """Wait until this sandbox may have one more connection or request."""
        now = time.monotonic()
        self._turns, self._counted = min(_BURST, self._turns + (now - self._counted) * RATE_PER_S), now
        self._turns -= 1
        if self._turns < 0:
            await asyncio.sleep(-self._turns / RATE_PER_S)

    def spend(self, count: int) -> None:
        """Count bytes that crossed. Raises: Refused (the sandbox has used up its allowance)."""
        self.bytes += count
        if self.bytes > self.policy.max_bytes:
            raise Refused("bytes", f"more than {self.policy.max_bytes} bytes", 403)

    def refuse(self, refusal: Refusal) -> None:
        """Record a refusal."""
        self.refused.append(refusal)
        self.refusals += 1
        if self.refusals > _KEPT_REFUSALS:
            return  # a sandbox must not fill our log
        log.info("event=network_refused sandbox=%s mode=%s reason=%s what=%r",
                 self.sandbox, self.policy.mode, refusal.reason, refusal.what)  # fmt: skip

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # this process has no descriptor left, say: whoever knocks waits until it has
                log.warning("event=network_not_accepting sandbox=%s error=%s", self.sandbox, error)
                await asyncio.sleep(_AGAIN_S)
                continue
            try:
                reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_HEAD_BYTES)
            except BaseException as error:
                sock.close()
                if isinstance(error, OSError):
                    continue
                raise
            task = begin(self._serve(Connection(self, reader, writer), writer), f"connection of sandbox {self.sandbox}")
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            await self.turn()

    async def _serve(self, connection: Connection, writer: asyncio.StreamWriter) -> None:
        began = time.monotonic()
        try:
            if len(self._open) > self.policy.max_connections:
                raise Refused("too-many-connections", f"more than {self.policy.max_connections} at once", 503)
            async with asyncio.timeout(self.policy.max_seconds):
                await self._service(connection)
        except Refused as no:
            self.refuse(no.refusal)
            if not connection.answered and no.refusal.reason != "bytes":
                body = f"refused by this sandbox's network policy: {no.refusal.reason}: {no.refusal.what}\n".encode()
                await _quietly(connection.answer(no.status, body, more="Connection: close\r\n"))
        except TimeoutError:
            self.refuse(Refusal("time", f"connection cut after {time.monotonic() - began:.0f} s"))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the workload went away in the middle: its own affair
        except Exception as error:  # a fault of ours, which a workload may trigger as often as it likes
            self.refuse(Refusal("fault", f"{type(error).__name__}: {error}"))
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close once the workload has taken what is left for it; one that takes nothing is cut, so that it holds no memory here.

    Until then the connection counts as open.
    """
    writer.close()
    try:
        async with asyncio.timeout(IDLE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


async def _quietly(deed: Awaitable[None]) -> None:
    with contextlib.suppress(OSError, TimeoutError, Refused):
        await deed
