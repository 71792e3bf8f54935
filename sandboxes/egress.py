"""Gives a new sandbox what its network policy names: the services of one worker, the same under every provider.

A provider calls `check` before it makes a sandbox and `open` before it hands it out, so that no workload runs before its policy
holds. How a listening socket gets from inside to here is the sandbox's own affair (`ResidentSandbox.listener`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gymsmith.errors import Capacity, ConfigError, SandboxError
from sandboxes.index_server import IndexService, PackageCache
from sandboxes.network import PORTS, Gate, NetworkPolicy, Service
from sandboxes.proxy import Network, ProxyService, Resolve, system_resolve

if TYPE_CHECKING:
    from gymsmith.config import Settings

MODES = ("none", "index", "proxy")


class Listening(Protocol):
    """A sandbox whose loopback can be listened on from outside."""

    id: str

    async def listener(self, port: int) -> socket.socket: ...


class Egress:
    """What sandboxes of this worker may be given.

    cache: packages for `index`; None: there is none here. internal: the operator's own networks that names listed for `proxy` may
    lie in. resolve: how names become addresses.
    """

    def __init__(
        self, cache: PackageCache | None = None, *, internal: Sequence[Network] = (), resolve: Resolve = system_resolve
    ) -> None:
        self._cache = cache
        self._internal = tuple(internal)
        self._resolve = resolve

    @classmethod
    def of(cls, settings: Settings) -> Egress:
        """As an installation is configured. Raises: ConfigError."""
        try:
            internal = [ipaddress.ip_network(word) for word in settings.proxy_internal.split(",") if word.strip()]
        except ValueError as error:
            raise ConfigError(f"proxy_internal must be networks such as 10.1.0.0/16, separated by commas: {error}") from error
        return cls(PackageCache(settings.wheelhouse_dir), internal=internal)

    def check(self, policy: NetworkPolicy) -> None:
        """Raises: Capacity (this machine lacks what the policy names)."""
        if policy.mode == "index":
            if self._cache is None:
                raise Capacity("network index needs a package cache, this provider was started without one")
            self._cache.require(policy)

    async def open(self, box: Listening, policy: NetworkPolicy) -> Gate | None:
        """Serve a sandbox from now on; None where the policy gives it nothing. Raises: SandboxError."""
        if policy.mode == "none":
            return None
        self.check(policy)
        service: Service
        if policy.mode == "index":
            assert self._cache is not None
            service = IndexService(self._cache, policy)
        else:
            service = ProxyService(policy, internal=self._internal, resolve=self._resolve)
        gate = Gate(policy, await box.listener(PORTS[policy.mode]), service, box.id)
        gate.open()
        return gate


def checked_listener(descriptor: int, port: int) -> socket.socket:
    """The socket that came out of a sandbox, when it is what was asked for; else it is closed. Raises: SandboxError."""
    sock = socket.socket(fileno=descriptor)
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family == socket.AF_INET and listens and sock.getsockname() == ("127.0.0.1", port):
            return sock
    except OSError:
        pass
    sock.close()
    raise SandboxError(f"a sandbox must hand over a socket that listens on 127.0.0.1:{port}, it was another one")
