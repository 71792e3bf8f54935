"""What a build may reach, and what it is asked for besides the Dockerfile. Nothing is reached unless a person says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gymsmith.errors import PolicyRefused
from sandboxes.base import Provider
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
        """The network of a RUN step's sandbox. Raises: PolicyRefused: the provider cannot give it."""
        if self.network == "none":
            return OFFLINE
        wanted = {"mirrors": "proxy"}.get(self.network, self.network)
        if wanted not in provider.capabilities.network or wanted == "host":
            raise PolicyRefused(
                f"build network {self.network!r} is more than provider {provider.name!r} can give "
                f"(it has {', '.join(provider.capabilities.network)}); use --network none or mirrors, or another provider"
            )
        return NetworkPolicy("proxy", hosts=self.mirrors)
