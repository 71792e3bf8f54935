"""Images that somebody else made: OCI layouts, `docker save` archives, root file systems, debootstrap.

Nothing is downloaded here (debootstrap does that itself, from the mirror it is told). What an image claims about its own
contents is checked: blobs against their names, layers against the configuration's list. Each layer is unpacked once per machine.
An ordinary user cannot give files away: for one, what an image gives to other ids is root's inside and open to all.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import platform
import posixpath
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from gymsmith.errors import BuildError, Capacity, NotFound, PolicyRefused
from gymsmith.schema import digest
from sandboxes.base import MIB, Image, check_env, check_path
from sandboxes.image import unpack
from sandboxes.image.build_state import State
from sandboxes.image.configuration import KEPT
from sandboxes.image.dockerfile import Step
from sandboxes.image.layer import AS_ROOT, LayerWriter

if TYPE_CHECKING:
    from sandboxes.image.images import ImageStore

SCHEMES = ("oci", "archive", "rootfs", "debootstrap", "engine")
MAX_JSON_BYTES = 4 * MIB
DEBOOTSTRAP_S = 1800.0
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,40}\Z")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}


@dataclass(frozen=True, slots=True)
class Found:
    """An image as it stands in a file or folder."""

    config: Mapping[str, Any]
    layers: Sequence[Callable[[], BinaryIO]]
    """Open each layer's archive, lowest first."""
    diff_ids: Sequence[str]
    """What each must hash to; empty: not said."""


async def adopt(store: ImageStore, source: str, *, engine: Any = None) -> Image:
    """The image that `source` names: oci:FOLDER[@REF], archive:FILE[@REF], rootfs:FOLDER or FILE, debootstrap:SUITE[=MIRROR],
    or engine:REF (of `engine`, a `docker.APIClient`).

    Raises: PolicyRefused: it is none of these, or hostile; NotFound; BuildError: damaged; Capacity: a program is missing.
    """
    scheme, _, rest = source.partition(":")
    if scheme not in SCHEMES or not rest:
        raise PolicyRefused(f"an image comes from {', '.join(f'{s}:...' for s in SCHEMES)}, got {source[:80]!r}")
    with store.layers.scratch() as scratch, ExitStack() as open_files:
        if scheme == "engine":
            from sandboxes.image.engine import save

            await asyncio.to_thread(save, engine, rest, scratch / "saved")
            found = await asyncio.to_thread(_archive, scratch / "saved", "", scratch, open_files)
        elif scheme == "debootstrap":
            found = await _debootstrap(rest, scratch)
        else:
            path, _, ref = rest.partition("@") if not os.path.exists(rest) else (rest, "", "")
            place = Path(path)
            if not (place.is_dir() if scheme == "oci" else place.is_file() or (scheme == "rootfs" and place.is_dir())):
                kind = "folder" if scheme == "oci" else "file"
                raise NotFound(f"{scheme}: needs a {kind}, {path[:200]!r} is none; check the path")
            if scheme == "oci":
                found = _from_index(_Folder(place), ref)
            elif scheme == "archive":
                found = await asyncio.to_thread(_archive, place, ref, scratch, open_files)
            else:
                found = await asyncio.to_thread(_root, place, scratch)
        return store.record(await _stacked(store, found))


async def _stacked(store: ImageStore, found: Found) -> Image:
    """Unpack what is missing, and make the image of it."""
    key = "scratch"
    state = State(key)
    for index, opened in enumerate(found.layers):
        claimed = found.diff_ids[index] if found.diff_ids else await asyncio.to_thread(_hash, opened)
        key = digest(key.encode(), b"unpacked", claimed.encode(), str(AS_ROOT).encode())[:32]
        if not store.layers.sound(key):
            async with store.layers.alone(key):
                if not store.layers.sound(key):
                    await asyncio.to_thread(_unpack, store, key, opened, claimed, state.layers)
        state.grow(key, store.layers.tree(key))
    config = found.config.get("config") or {}
    env = dict(pair.partition("=")[::2] for pair in config.get("Env") or [])
    check_env(env)
    state.env = env
    state.workdir = check_path("WorkingDir", config.get("WorkingDir") or "/")
    state.config = {name: config[name] for name in KEPT if config.get(name)}
    if user := str(config.get("User") or ""):
        state.user = state.user_named(user, Step("USER", user, 0))
    return state.image()


def _unpack(store: ImageStore, key: str, opened: Callable[[], BinaryIO], claimed: str, below: tuple[Path, ...]) -> None:
    with store.layers.scratch() as scratch:
        (scratch / "tree").mkdir()
        with opened() as stream:
            made = unpack.unpack(stream, LayerWriter(scratch / "tree", below), layer=True)
        if made.digest != claimed.removeprefix("sha256:"):
            raise BuildError(f"a layer must hash to {claimed[:71]}, it hashes to sha256:{made.digest}; fetch the image again")
        store.layers.publish(scratch / "tree", key)


def _hash(opened: Callable[[], BinaryIO]) -> str:
    total = hashlib.sha256()
    with opened() as stream:
        plain = unpack.decompressed(stream)
        left = unpack.MAX_BYTES
        while left > 0 and (block := plain.read(1 << 20)):
            left -= len(block)  # unpacking says that it is too much
            total.update(block)
    return f"sha256:{total.hexdigest()}"


# ------------------------------------------------------------ where blobs lie


class _Folder:
    """The files of an OCI layout folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, name: str) -> BinaryIO:
        try:
            handle = os.open(self.root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"the image lacks {name[:120]!r} ({error.strerror}); copy it again") from error
        return os.fdopen(handle, "rb")


class _Archive:
    """The members of a plain tar archive; links in it lead to other members only."""

    def __init__(self, archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> None:
        self.archive = archive
        self.members = members

    def open(self, name: str) -> BinaryIO:
        member = self.members.get(name)
        for _ in range(4):
            if member is None or not (member.issym() or member.islnk()):
                break
            base = posixpath.dirname(member.name.removeprefix("./")) if member.issym() else ""
            member = self.members.get(posixpath.normpath(posixpath.join(base, member.linkname)))
        content = self.archive.extractfile(member) if member is not None and member.isreg() else None
        if content is None:
            raise BuildError(f"the image lacks {name[:120]!r}; save it again")
        return content  # type: ignore[return-value]


def _json(blobs: _Folder | _Archive, name: str, checked: bool = True) -> Any:
    with blobs.open(name) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise PolicyRefused(f"{name[:120]} of the image has more than {MAX_JSON_BYTES} bytes")
    if checked and hashlib.sha256(data).hexdigest() != name.rpartition("/")[2].removesuffix(".json"):
        raise BuildError(f"{name[:120]} of the image is not what its name says; fetch the image again")
    try:
        return json.loads(data)
    except ValueError as error:
        raise BuildError(f"{name[:120]} of the image is no JSON: {error}; fetch the image again") from error


def _blob(descriptor: Mapping[str, Any]) -> str:
    """Path of the blob of a descriptor. Raises: PolicyRefused: it is no SHA-256, so it could be any path."""
    found = _DIGEST.match(str(descriptor.get("digest", "")))
    if found is None:
        raise PolicyRefused(f"the image's blobs must be named by SHA-256, got {str(descriptor.get('digest'))[:80]!r}")
    return f"blobs/sha256/{found[1]}"


def _from_index(blobs: _Folder | _Archive, ref: str) -> Found:
    try:
        row = _choose(_json(blobs, "index.json", False)["manifests"], ref)
        manifest = _json(blobs, _blob(row))
        if "manifests" in manifest:
            manifest = _json(blobs, _blob(_choose(manifest["manifests"], "")))
        config = _json(blobs, _blob(manifest["config"]))
        layers = [_blob(layer) for layer in manifest["layers"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"the image's index lacks {error}; is it an OCI layout?") from error
    return _found(blobs, config, layers)


def _choose(rows: Sequence[Mapping[str, Any]], ref: str) -> Mapping[str, Any]:
    """The manifest of that name, or the only one for this machine."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    names = [str((row.get("annotations") or {}).get("org.opencontainers.image.ref.name", "")) for row in rows]
    if ref:
        rows = [row for row, name in zip(rows, names, strict=True) if ref in (name, row.get("digest"))]
    fitting = [row for row in rows if (row.get("platform") or {"architecture": machine}).get("architecture") == machine]
    if len(fitting) != 1:
        wanted = f"{machine}, named {ref[:80]}" if ref else machine
        raise NotFound(f"expected one image for {wanted}, got {len(fitting)} of {names}; name it after '@'")
    return fitting[0]


def _found(blobs: _Folder | _Archive, config: Mapping[str, Any], layers: Sequence[str]) -> Found:
    machine = _MACHINES.get(platform.machine(), platform.machine())
    if config.get("os", "linux") != "linux" or config.get("architecture", machine) != machine:
        raise PolicyRefused(f"the image must be for linux/{machine}, it is for {config.get('os')}/{config.get('architecture')}")
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(diff_ids) != len(layers) or not all(_DIGEST.match(str(d)) for d in diff_ids):
        raise BuildError(f"the image has {len(layers)} layers and {len(diff_ids)} hashes of them; fetch it again")
    return Found(config, [lambda name=name: blobs.open(name) for name in layers], diff_ids)  # type: ignore[misc]


def _archive(path: Path, ref: str, scratch: Path, open_files: ExitStack) -> Found:
    """A `docker save` file, of the old layout (ID/layer.tar) or the new one (blobs), or an OCI layout as one file."""
    with open(path, "rb") as stream:
        plain = unpack.decompressed(stream)
        if plain is not stream:
            path = scratch / "plain.tar"
            with open(path, "xb") as copy:
                _copy(plain, copy)
    stream = open_files.enter_context(open(path, "rb"))  # noqa: SIM115
    archive, members = unpack.indexed(stream)
    blobs = _Archive(archive, members)
    if "manifest.json" not in members:
        return _from_index(blobs, ref)
    rows = _json(blobs, "manifest.json", False)
    try:
        fitting = [row for row in rows if not ref or ref in (row.get("RepoTags") or ())]
        if len(fitting) != 1:
            known = [tag for row in rows for tag in row.get("RepoTags") or ()]
            raise NotFound(f"expected one image {ref[:80]!r} in the archive, got {len(fitting)} of {known}; name it after '@'")
        return _found(blobs, _json(blobs, str(fitting[0]["Config"])), [str(name) for name in fitting[0]["Layers"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"the archive's manifest lacks {error}; save it again") from error


def _copy(plain: IO[bytes], copy: BinaryIO) -> None:
    left = unpack.MAX_BYTES
    try:
        while block := plain.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise unpack.too_large(unpack.MAX_BYTES)
            copy.write(block)
    except (EOFError, gzip.BadGzipFile) as error:
        raise BuildError(f"the archive ends too early: {error}; save it again") from error


def _root(place: Path, scratch: Path) -> Found:
    """A root file system without any configuration: a folder of this host, or an archive of one."""
    path = place
    if place.is_dir():
        path = scratch / "root.tar"
        with tarfile.open(path, "x:", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted(os.listdir(place)):
                tar.add(place / name, name)
    return Found({}, [lambda: open(path, "rb")], ())


async def _debootstrap(what: str, scratch: Path) -> Found:
    """A minimal Debian. Package scripts run as root in a chroot: only for archives that are trusted."""
    suite, _, mirror = what.partition("=")
    if not _SUITE.match(suite) or (mirror and not re.match(r"https?://[A-Za-z0-9.:/_-]+\Z", mirror)):
        raise PolicyRefused(f"debootstrap needs SUITE or SUITE=http://MIRROR, got {what[:80]!r}")
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or os.geteuid() != 0:
        raise Capacity("debootstrap must be installed and run as root: apt-get install debootstrap; or import an archive instead")
    (scratch / "root").mkdir(mode=0o755)
    words = [program, "--variant=minbase", suite, str(scratch / "root"), *([mirror] if mirror else [])]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(DEBOOTSTRAP_S):
            said, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    log = said.decode(errors="replace")[-8192:]
    if process.returncode:
        raise BuildError(f"debootstrap {suite} failed: {(log.strip().splitlines() or ['no output'])[-1][:200]}", log)
    for left in (scratch / "root/var/cache/apt/archives").glob("*.deb"):
        left.unlink()
    return await asyncio.to_thread(_root, scratch / "root", scratch)
