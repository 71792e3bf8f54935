"""The sandbox in which RUN writes a layer: root-inside of a fresh overlay whose upper directory becomes the layer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gymsmith.errors import BuildError, Capacity, StoreError
from sandboxes.base import MIB, Image, Sandbox, SandboxSpec
from sandboxes.image.build_context import WHEELHOUSE
from sandboxes.image.build_policy import BuildPolicy, HostNetworked
from sandboxes.image.build_state import State
from sandboxes.image.layer import MAX_DEPTH, LayerWriter

if TYPE_CHECKING:
    from sandboxes.image.images import ImageStore

T = TypeVar("T")
BUILD_MEMORY_BYTES = 2048 * MIB
BUILD_DISK_BYTES = 8192 * MIB
BUILD_PIDS = 512
RESERVE_BYTES = 512 * MIB
"""A build is ended rather than leave the host with less free disk."""
WATCH_S = 0.5
MAX_LAYERS = 120
"""An overlay takes so many before the kernel's page of mount options is full."""


async def in_sandbox(
    store: ImageStore,
    state: State,
    key: str,
    upper: Path,
    act: Callable[[Sandbox], Awaitable[T]],
    *,
    policy: BuildPolicy,
    timeout_s: float,
    extra: Sequence[Path] = (),
) -> T:
    """What `act` returns for a sandbox of `state` whose writes end in `upper`; `extra` layers are seen, not kept.

    Raises: BuildError, Capacity, StoreError, and what `act` raises.
    """
    provider = store.provider
    if provider is None or not provider.capabilities.prepared_upper:
        raise Capacity("RUN needs a sandbox provider that can build layers, got none; `gymsmith doctor` says what is missing")
    if not state.layers:
        raise BuildError("RUN needs files to run, FROM scratch has none yet; COPY a root file system first")
    if len(state.layers) >= MAX_LAYERS:
        raise BuildError(f"an image may have {MAX_LAYERS} layers, this one has more; join RUN steps with '&&'")
    if not upper.is_dir():
        upper.mkdir()
        LayerWriter(upper, state.layers)
    parent = store.record(Image(f"step-{key}-{os.getpid()}", state.layers, state.binds, state.env, "/", "root"))
    spec = SandboxSpec(
        image=parent.id,
        role="build",
        memory_bytes=BUILD_MEMORY_BYTES,
        disk_bytes=BUILD_DISK_BYTES,
        pids=BUILD_PIDS,
        cpus=float(os.cpu_count() or 1),
        lease_s=timeout_s + 60,
        network=policy.for_sandbox(provider),
        labels={"build": key},
    )
    try:
        if policy.network == "host" and isinstance(provider, HostNetworked):
            box = await provider.create_on_host_network(spec, layers=[*extra, _resolver(upper.parent / "resolver")], upper=upper)
        else:
            box = await provider.create(spec, layers=extra, upper=upper)
        try:
            result = await _within_disk(store, box, act, upper)
            await box.freeze()
        finally:
            await box.destroy()
    finally:
        store.forget(parent.id)
    return result


async def _within_disk(store: ImageStore, box: Sandbox, act: Callable[[Sandbox], Awaitable[T]], upper: Path) -> T:
    """`act`, ended when it fills the disk: the layer lies on the host's file system, which limits one file but not their sum.

    Raises: BuildError: the step wrote more than BUILD_DISK_BYTES; StoreError: the disk is as good as full.
    """
    work = asyncio.ensure_future(act(box))
    try:
        await _watch(store, box, work, upper)
    finally:
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
    return await work


async def _watch(store: ImageStore, box: Sandbox, work: asyncio.Future[T], upper: Path) -> None:
    free = _free_bytes(upper)
    while not (await asyncio.wait({work}, timeout=WATCH_S))[0]:
        left = _free_bytes(upper)
        if free - left > BUILD_DISK_BYTES and await asyncio.to_thread(_used_bytes, upper) > BUILD_DISK_BYTES:
            reason: Exception = BuildError(
                f"a RUN step may write {BUILD_DISK_BYTES // MIB} MiB, it wrote more; keep the image small"
            )
        elif left < RESERVE_BYTES:
            reason = StoreError(f"the disk of {store.root} has {left // MIB} MiB left, a build needs room; free some space")
        else:
            continue
        await box.destroy()
        await asyncio.gather(work, return_exceptions=True)
        raise reason


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _used_bytes(path: Path) -> int:
    """Bytes on disk below `path`, as far as this process may look."""
    return sum(512 * os.lstat(os.path.join(folder, name)).st_blocks for folder, _, names in os.walk(path) for name in names)


def tidy(upper: Path) -> None:
    """Remove sockets that programs of the step left: nobody listens on them any more, and no archive holds them.

    Raises: BuildError: the step made a tree so deep that it is a trap.
    """
    pending = [(os.fspath(upper), 0)]
    try:
        while pending:
            folder, depth = pending.pop()
            if depth > MAX_DEPTH:
                raise OSError(errno.ENAMETOOLONG, "")
            try:
                names = os.listdir(folder)
            except PermissionError:  # another id's, which an ordinary user cannot look into
                continue
            for name in names:
                path = f"{folder}/{name}"
                mode = os.lstat(path).st_mode
                if stat.S_ISSOCK(mode):
                    os.unlink(path)
                elif stat.S_ISDIR(mode):
                    pending.append((path, depth + 1))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise BuildError(
            f"a RUN step may make trees {MAX_DEPTH} levels deep with paths below 4096 bytes, it made deeper"
        ) from error


def _resolver(root: Path) -> Path:
    """A layer that shows how this machine finds names; seen by the step, not kept."""
    root.mkdir()
    writer = LayerWriter(root, ())
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        with contextlib.suppress(OSError):
            writer.file(path, Path(path).read_bytes())
    return root


def wheel_layer(root: Path, wheels: Path) -> Path:
    """A layer that shows the wheels at /wheelhouse: hard links where the file system allows, copies elsewhere."""
    root.mkdir()
    writer = LayerWriter(root, ())
    writer.directory(WHEELHOUSE)
    for path in wheels.iterdir():
        if path.is_file():
            target = f"{root}{WHEELHOUSE}/{path.name}"
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
                os.chmod(target, 0o644)
    return root
