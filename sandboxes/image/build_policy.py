"""What a build may reach, and what it is asked for besides the Dockerfile. Nothing is reached unless a person says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from gymsmith.errors import PolicyRefused
from sandboxes.base import Provider, Sandbox, SandboxSpec
from sandboxes.network import OFFLINE, NetworkPolicy

BuildNetwork = Literal["none", "mirrors", "host"]
MIRRORS = (
    "deb.debian.org",
    "security.debian.org",
    "archive.ubuntu.com",
    "security.ubuntu.com",
    "ports.ubuntu.com",
    "dl-cdn.alpinelinux.org",
    "pypi.org",
    "files.pythonhosted.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "index.crates.io",
    "static.crates.io",
    "proxy.golang.org",
    "sum.golang.org",
    "rubygems.org",
    "repo.maven.apache.org",
    "repo1.maven.org",
    "conda.anaconda.org",
)
"""Package archives that `mirrors` opens; everything else stays closed."""


@runtime_checkable
class HostNetworked(Protocol):
    """A provider that can let a build step use its machine's own network."""

    async def create_on_host_network(
        self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None
    ) -> Sandbox: ...


@dataclass(frozen=True, slots=True)
class BuildPolicy:
    """Raises PolicyRefused for a network that there is not."""

    network: BuildNetwork = "none"
    """none; mirrors: HTTP(S) to package archives through an allow-list proxy; host: whatever this machine reaches."""
    mirrors: tuple[str, ...] = MIRRORS
    add_hosts: tuple[str, ...] = ()
    """Hosts ("name" or "name:port") from which ADD may fetch; by default none."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Values for ARGs that the Dockerfile declares."""
    target: str = ""
    """Stage to build; the last one when empty."""

    def __post_init__(self) -> None:
        if self.network not in get_args(BuildNetwork):
            raise PolicyRefused(f"build network must be one of {', '.join(get_args(BuildNetwork))}, got {self.network!r}")

    def for_sandbox(self, provider: Provider) -> NetworkPolicy:
        """The network of a RUN step's sandbox; `host` is none of its own. Raises: PolicyRefused: the provider cannot give it."""
        able = self.network == "none" or (
            "proxy" in provider.capabilities.network
            if self.network == "mirrors"
            else isinstance(provider, HostNetworked) and provider.capabilities.isolation == "namespace"
        )
        if not able:
            raise PolicyRefused(
                f"build network {self.network!r} is more than provider {provider.name!r} can give; use --network none, or build "
                "where the ns provider works"
            )
        return NetworkPolicy("proxy", hosts=self.mirrors) if self.network == "mirrors" else OFFLINE
