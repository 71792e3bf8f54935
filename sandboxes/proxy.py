"""An HTTP proxy that lets a sandbox reach the names of its policy, and nothing else.

It takes `CONNECT name:port` and plain requests in absolute form. A name must be listed; an address never is, however spelt. The
name is resolved here, once, and the connection goes to what was checked: every address must be public, so that neither a name for
127.0.0.1 nor one that changes its mind between check and use reaches this host, its neighbours or a cloud's metadata service.
Inside a tunnel the first bytes must be a TLS greeting for the very name that was asked for. A plain connection carries one
request to one host; redirects are new requests and are judged as such.

What no proxy can see without breaking TLS: the Host header within a tunnel. List names whose servers serve nobody else.
Sources: RFC 9110 section 9.3.6 (CONNECT), RFC 8446 section 4.1.2, RFC 6066 section 3 (server_name).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from sandboxes.network import IDLE_S, Connection, NetworkPolicy, Refused

_CONNECT_S = 15.0
_CHUNK_BYTES = 64 * 1024
_MAX_HELLO_BYTES = 16_384 + 5
_SERVER_NAME, _ENCRYPTED_HELLO = 0, 0xFE0D
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z")
_HOP_HEADERS = frozenset(
    ("connection", "proxy-connection", "keep-alive", "te", "trailer", "upgrade", "proxy-authorization", "transfer-encoding")
)

_NAT64, _LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(name, port) -> addresses. Raises: OSError."""


async def system_resolve(name: str, port: int) -> Sequence[str]:
    """What this machine's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also when an IPv4 address hides in an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        tunnelled = address.sixtofour or (address.teredo and address.teredo[1])
        if (tunnelled and not is_public(tunnelled)) or address in _LOCAL_NAT64 or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class ProxyService:
    """Answers the connections of one sandbox.

    internal: networks of the operator's own that listed names may lie in, such as a mirror's; everything else must be public.
    """

    def __init__(self, policy: NetworkPolicy, *, internal: Sequence[Network] = (), resolve: Resolve = system_resolve) -> None:
        self.policy = policy
        self._internal = tuple(internal)
        self._resolve = resolve

    async def __call__(self, connection: Connection) -> None:
        request = await connection.head()
        if request is None:
            return
        line, headers = request
        words = line.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise Refused("bad-request", line, 400)
        if words[0] == "CONNECT":
            await self._tunnel(connection, words[1])
        else:
            await self._forward(connection, words[0], words[1], headers)

    async def _tunnel(self, connection: Connection, authority: str) -> None:
        name, port = self._target(authority, 443)
        reader, writer = await self._reach(name, port)
        try:
            await connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            hello = await _first_record(connection)
            said = server_name(hello)
            if said != name:
                raise Refused("sni-mismatch", f"a tunnel to {name}, a greeting for {said}")
            writer.write(hello)
            await _pipe_both(connection, reader, writer)
        finally:
            writer.close()

    async def _forward(self, connection: Connection, method: str, url: str, headers: dict[str, str]) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise Refused("bad-request", f"{method} {url}", 400) from None
        if parts.scheme != "http" or not parts.netloc or "@" in parts.netloc or not method.isalpha():
            raise Refused("bad-request", f"{method} {url}", 400)
        name, port = self._target(parts.netloc.lower(), 80)
        said = headers.get("host", "").lower()
        if said not in (parts.netloc.lower(), name, f"{name}:{port}"):
            raise Refused("host-mismatch", f"a request for {parts.netloc} with Host {said}")
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
            raise Refused("bad-request", "a body must come with one plain Content-Length", 400)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        dropped = _HOP_HEADERS | {word.strip().lower() for word in headers.get("connection", "").split(",")}
        kept = {key: value for key, value in headers.items() if key not in dropped - {"host", "content-length"}}
        lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in kept.items()), "connection: close", "", ""]
        reader, writer = await self._reach(name, port)
        try:
            writer.write("\r\n".join(lines).encode("latin-1"))
            left = int(length)
            while left and (data := await connection.read(min(left, _CHUNK_BYTES))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
            while data := await reader.read(_CHUNK_BYTES):
                await connection.write(data)
        finally:
            writer.close()

    def _target(self, authority: str, default: int) -> tuple[str, int]:
        """(name, port) that the policy allows. Raises: Refused."""
        name, colon, port_text = authority.lower().rpartition(":")
        if not colon or (authority.startswith("[") and authority.endswith("]")):
            name, port_text = authority.lower(), str(default)
        if not (port_text.isascii() and port_text.isdecimal()):
            raise Refused("bad-request", authority, 400)
        port = int(port_text)
        if _is_address(name):
            raise Refused("ip-literal", authority)
        name = name.removesuffix(".")
        if not _NAME.match(name):
            raise Refused("bad-request", authority, 400)
        ports = [port_of(entry) for entry in self.policy.hosts if _covers(entry.partition(":")[0], name)]
        if not ports:
            raise Refused("not-listed", authority)
        if not any(port == own if own else port in (80, 443) for own in ports):
            raise Refused("port", authority)
        return name, port

    async def _reach(self, name: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the name, whose every address was checked. Raises: Refused."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                addresses = [ipaddress.ip_address(text) for text in await self._resolve(name, port)]
        except (OSError, ValueError, TimeoutError) as error:
            raise Refused("no-such-name", f"{name}: {error}", 502) from error
        for address in addresses:
            if not is_public(address) and not any(address in network for network in self._internal):
                raise Refused("private-address", f"{name} is {address}")
        trouble: Exception = OSError("it has no address")
        for address in addresses[:4]:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(str(address), port)
            except (OSError, TimeoutError) as error:
                trouble = error
        raise Refused("unreachable", f"{name}:{port}: {trouble}", 502)


def port_of(entry: str) -> int | None:
    """The port that an entry of a policy names."""
    _, colon, port = entry.partition(":")
    return int(port) if colon else None


def _covers(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1 if pattern.startswith("*.") else name == pattern


def _is_address(name: str) -> bool:
    """Whether a resolver would take it for an address: also 127.1, 2130706433, 0x7f000001 and [::1]."""
    if name.startswith("[") or ":" in name:
        return True
    try:
        socket.inet_aton(name)
        return True
    except OSError:
        return False


async def _within(work: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(IDLE_S):
        return await work


async def _first_record(connection: Connection) -> bytes:
    """The first TLS record that a workload sends. Raises: Refused (it is none, or does not come)."""
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
        more = await _within(connection.read(_MAX_HELLO_BYTES - len(data)))
        data += more
        if not more or (data[:1] != b"\x16") or (len(data) >= 2 and data[1] != 3) or len(data) >= _MAX_HELLO_BYTES:
            raise Refused("not-tls", repr(data[:40]))
    return data


def server_name(record: bytes) -> str:
    """The name that a TLS ClientHello asks for. Raises: Refused (no greeting, no name, or one that it hides)."""
    try:
        body = record[5 : 5 + int.from_bytes(record[3:5], "big")]
        if body[0] != 1 or int.from_bytes(body[1:4], "big") > len(body) - 4:
            raise Refused("not-tls", "the first record holds no whole ClientHello")
        at = 4 + 2 + 32
        at += 1 + body[at]
        at += 2 + int.from_bytes(body[at : at + 2], "big")
        at += 1 + body[at]
        end = at + 2 + int.from_bytes(body[at : at + 2], "big")
        at += 2
        name = ""
        while at + 4 <= min(end, len(body)):
            kind, length = struct.unpack_from(">HH", body, at)
            value = body[at + 4 : at + 4 + length]
            at += 4 + length
            if kind == _ENCRYPTED_HELLO:
                raise Refused("hidden-name", "an encrypted ClientHello (ECH)")
            if kind == _SERVER_NAME and value[2] == 0:
                if name:
                    raise Refused("not-tls", "a greeting with two server names")
                name = value[5 : 5 + int.from_bytes(value[3:5], "big")].decode("ascii", "replace").lower()
    except IndexError:
        raise Refused("not-tls", "a broken ClientHello") from None
    if not name:
        raise Refused("no-sni", "a TLS greeting without a server name")
    return name


async def _pipe_both(connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until the far side ends, or either way fails."""

    async def out() -> None:
        while data := await connection.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def back() -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await connection.write(data)

    ways = asyncio.ensure_future(out()), asyncio.ensure_future(back())
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if ways[0].done():
            ways[0].result()
        await ways[1]
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
