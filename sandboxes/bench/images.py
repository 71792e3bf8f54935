"""`gymsmith bench images`: building Dockerfiles here and by a Docker Engine's own builder, in alternating rounds.

Both begin with the same root file system (the engine's base image, imported) and build the same folder. Rounds differ by a number
in the Dockerfile, so neither side finds in a cache what it is meant to make.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.errors import GymsmithError
from sandboxes.image.build_context import BuildContext
from sandboxes.image.images import ImageStore
from sandboxes.namespace import NamespaceProvider

PEER = "docker build"
BASES = ("gymsmith/debian:bookworm", "debian:12-slim")
"""Images of the engine that will do, the first that it has."""
FILES, BESIDE = 50, 8
_TEXT = 'FROM {base}\nENV ROUND={nonce}\nCOPY . /context/\nRUN echo one > /one\nRUN echo two > /two\nWORKDIR /opt/x\nCMD ["x"]\n'


def measure(settings: Settings, quick: bool) -> list[Row]:
    """The rows; without an engine ours alone, on `gymsmith/host`."""
    return asyncio.run(_measure(settings, 3 if quick else 15))


async def _measure(settings: Settings, rounds: int) -> list[Row]:
    peer, reason = _engine(settings)
    images = ImageStore(settings.images_dir)
    provider = await NamespaceProvider.start(images, settings.sandboxes_dir)
    images.provider = provider
    folder = settings.home / "context"
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"file{number}").write_bytes(os.urandom(1000))
    (folder / ".dockerignore").write_text("Dockerfile*\n.dockerignore\n")
    ours = "gymsmith/host"
    try:
        if peer is not None:
            ours = "bench/base"
            await images.adopt(ours, f"engine:{peer.base}")
        times: dict[str, tuple[list[float], list[float]]] = {}

        async def both(name: str, text: str, beside: int = 1) -> None:
            here, there = times.setdefault(name, ([], []))
            here.append(await _ours(images, folder, [text.replace("{n}", str(n)).replace("{base}", ours) for n in range(beside)]))
            if peer is not None:
                texts = [text.replace("{n}", str(n)).replace("{base}", peer.base) for n in range(beside)]
                there.append(await peer.build(folder, texts))

        for turn in range(rounds + 1):
            nonce = uuid.uuid4().hex
            text = _TEXT.replace("{nonce}", nonce)
            await both("build from nothing but the base", text)
            await both("build that is wholly cached", text)
            await both("one more COPY and RUN", f"{text}COPY file1 /more\nRUN echo {nonce} > /last\n")
            if turn % 3 == 0:
                await both(f"{BESIDE} builds beside one another", text + "RUN echo {n} > /n\n", BESIDE)
        return [_row(name, here[1:] or here, there[1:] or there, reason) for name, (here, there) in times.items()]
    finally:
        await provider.close()
        if peer is not None:
            await asyncio.to_thread(peer.close)


def _row(name: str, here: list[float], there: list[float], reason: str) -> Row:
    ours = statistics.median(here) * 1000
    if not there:
        return Row(name, "ms", ours, None, reason)
    theirs = statistics.median(there) * 1000
    return Row(name, "ms", ours, theirs, PEER, theirs / ours)


async def _ours(images: ImageStore, folder: Path, texts: list[str]) -> float:
    began = time.perf_counter()
    context = await asyncio.to_thread(BuildContext.read, folder)
    await asyncio.gather(*(images.build(text, context) for text in texts))
    return time.perf_counter() - began


class _Peer:
    """The engine's builder, and what it made here."""

    def __init__(self, client: Any, base: str) -> None:
        self.client = client
        self.base = base
        self._made: list[str] = []

    async def build(self, folder: Path, texts: list[str]) -> float:
        names = []
        for number, text in enumerate(texts):
            names.append(f"Dockerfile{number}")
            (folder / names[-1]).write_text(text)
        began = time.perf_counter()
        await asyncio.gather(*(asyncio.to_thread(self._build(folder, name)) for name in names))
        return time.perf_counter() - began

    def _build(self, folder: Path, name: str) -> Callable[[], None]:
        def work() -> None:
            tag = f"gymsmith/bench:{uuid.uuid4().hex}"
            self.client.images.build(path=str(folder), dockerfile=name, network_mode="none", rm=True, forcerm=True, tag=tag)
            self._made.append(tag)

        return work

    def close(self) -> None:
        import docker.errors

        for tag in reversed(self._made):
            with contextlib.suppress(docker.errors.APIError):
                self.client.images.remove(tag)
        self.client.close()


def _engine(settings: Settings) -> tuple[_Peer | None, str]:
    """The peer, or why there is none."""
    try:
        import docker
        import docker.errors
    except ImportError:
        return None, "none: the docker package is not installed"
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except (docker.errors.DockerException, GymsmithError) as error:
        return None, f"none: no Docker Engine answers ({str(error)[:60]})"
    for base in (settings.docker_base_image, *BASES):
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.get(base)
            return _Peer(client, base), ""
    return None, f"none: the engine has none of {', '.join(BASES)}"
