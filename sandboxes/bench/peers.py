"""The peers of `gymsmith bench sandboxes`: Docker's command line, its Python package, and SWE-ReX.

Each is driven in the cheapest way that it offers: containers without a network, with the limits that ours have; SWE-ReX's shell
in this very process, without the HTTP server and the container in which it is meant to run.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from gymsmith.config import Settings
from gymsmith.errors import SandboxError
from sandboxes.base import MIB, SandboxSpec

LIMITS = SandboxSpec(image="limits")
"""The limits of every sandbox and container that is compared: the defaults."""
_IMAGES = ("gymsmith/debian:bookworm", "debian:12-slim", "debian:bookworm-slim")
_names = itertools.count(1)


class PeerMissing(SandboxError):
    """A peer cannot run here; the message says why."""


class DockerCli:
    """`docker run`, `exec`, `rm`, `commit`: blocking calls of a few dozen milliseconds, to be made in threads."""

    def __init__(self, image: str) -> None:
        self.image = image

    def lifecycle(self) -> None:
        """Start a container, run `true` in it, remove it."""
        name = self.start()
        try:
            self.exec(name)
        finally:
            self.remove(name)

    def start(self, image: str = "") -> str:
        name = f"gymsmith-bench-{os.getpid()}-{next(_names)}"
        memory = str(LIMITS.memory_bytes + LIMITS.disk_bytes)
        docker(
            "run", "--detach", "--name", name, "--network", "none", "--memory", memory, "--memory-swap", memory,
            "--pids-limit", str(LIMITS.pids), "--cpus", str(LIMITS.cpus), "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--log-driver", "none", image or self.image, "sleep", "3600",
        )  # fmt: skip
        return name

    def exec(self, name: str, *words: str) -> bytes:
        return docker("exec", name, *(words or ("true",)))

    def remove(self, name: str) -> None:
        docker("rm", "--force", "--volumes", name)


class DockerSdk:
    """`exec_run` of the docker package, on a client that stays connected."""

    def __init__(self, name: str) -> None:
        import docker as package

        self._container = package.from_env().containers.get(name)

    def exec(self) -> None:
        if self._container.exec_run(["true"]).exit_code:
            raise SandboxError("exec_run of true must exit with 0")


class SweRex:
    """A SWE-ReX bash session in this process. Use `start`."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    @classmethod
    async def start(cls) -> SweRex:
        """Raises: PeerMissing."""
        try:
            from swerex.runtime.abstract import CreateBashSessionRequest
            from swerex.runtime.local import LocalRuntime
        except ImportError as error:
            raise PeerMissing(f"SWE-ReX is not installed ({error}): pip install 'gymsmith[bench]'") from error
        runtime = LocalRuntime()
        # its own limit is one second, which a busy machine does not keep
        await runtime.create_session(CreateBashSessionRequest(startup_timeout=60.0))
        return cls(runtime)

    async def run(self, line: str = "true") -> int | None:
        """Run a line in the session; its exit code."""
        from swerex.runtime.abstract import BashAction

        done = await self._runtime.run_in_session(BashAction(command=line, check="silent", timeout=60.0))
        return int(done.exit_code) if done.exit_code is not None else None

    async def close(self) -> None:
        await self._runtime.close()


def docker(*words: str) -> bytes:
    """Output of a docker command. Raises: SandboxError."""
    done = subprocess.run(["docker", *words], capture_output=True, timeout=300)
    if done.returncode:
        raise SandboxError(f"docker {words[0]} must exit with 0, it said: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def docker_image(settings: Settings) -> str:
    """An image that the engine has. Raises: PeerMissing (no engine, or no image in it)."""
    try:
        import docker as package

        client = package.from_env(timeout=10)
        tags = {tag for image in client.images.list() for tag in image.tags}
    except Exception as error:  # the package raises several unrelated families when no engine listens
        raise PeerMissing(f"no Docker Engine answers ({type(error).__name__}): install docker.io and start dockerd") from error
    for wanted in (settings.docker_base_image, *_IMAGES):
        if wanted in tags:
            return wanted
    raise PeerMissing(f"the Docker Engine has none of {', '.join((settings.docker_base_image, *_IMAGES))}: pull or import one")


async def timed(work: Callable[[], object]) -> float:
    """Milliseconds of blocking work in a thread."""
    began = time.perf_counter()
    await asyncio.to_thread(work)
    return 1000 * (time.perf_counter() - began)


FORK_FILES = 2000
FORK_BYTES = 20 * MIB
FILL = (
    f"mkdir -p /tmp/tree && cd /tmp/tree && i=0; while [ $i -lt {FORK_FILES} ]; do echo $i > f$i; i=$((i+1)); done; "
    f"dd if=/dev/urandom of=big bs=1048576 count={FORK_BYTES // MIB} 2>/dev/null; ls | wc -l"
)
"""What is written before a fork: a shell line that prints the number of files."""
