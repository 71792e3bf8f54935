"""The images of one machine: content-addressed overlay layers and the records that name them.

Layers and records appear under their final names by one rename: a reader never sees half of one, and of two processes that build
the same key the second finds the first one's. How a Dockerfile becomes layers is told in `image_build.py`; where the provider
drives a container engine, the engine builds the same Dockerfile (`image_engine.py`).

    ROOT/layers/KEY/          one overlay layer, owners shifted as `sandboxes.base` says
    ROOT/records/IMAGE.json   what an image id stands for
    ROOT/locks, ROOT/tmp      builders at work
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gymsmith.errors import ImageMissing
from gymsmith.schema import digest
from sandboxes import dockerfile, image_base
from sandboxes.base import Image, Provider
from sandboxes.build_context import refuse_escapes
from sandboxes.image_build import Builder
from sandboxes.layer import discard

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ImageStore:
    """The images under `root`. Any number of processes may share it; one object belongs to one event loop.

    Without a provider it looks images up (that is all a provider needs of it) and builds what needs no sandbox.
    """

    def __init__(self, root: Path, provider: Provider | None = None) -> None:
        self.root = root
        self.provider = provider
        self._records: dict[str, Image] = {}
        self._building: dict[str, asyncio.Lock] = {}
        self._base: Image | None = None
        self._swept = False

    def get(self, image_id: str) -> Image:
        """The image of that id. Raises: ImageMissing: never built on this machine, or its layers are gone."""
        known = self._records.get(image_id)
        if known is not None:
            return known
        if image_id in (image_base.NAME, f"{image_base.NAME}:latest"):
            return self.base()
        again = "build its environment again (gymsmith env verify ID)"
        try:
            row = json.loads(self._record_path(image_id).read_bytes())
            image = Image(
                id=row["id"],
                layers=tuple(self.layer(key) for key in row["layers"]),
                binds=tuple((host, inside) for host, inside in row["binds"]),
                env=row["env"],
                workdir=row["workdir"],
                user=row["user"],
                engine_ref=row["engine_ref"],
            )
        except FileNotFoundError as error:
            raise ImageMissing(f"image {image_id[:80]!r} is not in {self.root}; {again}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ImageMissing(f"image {image_id}: its record cannot be read ({error}); {again}") from error
        gone = next((layer for layer in image.layers if not layer.is_dir()), None)
        if gone is not None:
            raise ImageMissing(f"image {image_id}: its layer {gone} is gone; {again}")
        self._records[image_id] = image
        return image

    resolve = get

    def base(self) -> Image:
        """`gymsmith/host`: this machine's /usr, read-only, below a synthesised rest; or an engine's base image.

        Written, or built, on first use.
        """
        if self._base is None and (engine := self._engine()) is not None:
            from sandboxes.image_engine import build_base

            self._base = self.record(build_base(self, *engine))
            self._records[image_base.NAME] = self._base
        if self._base is None:
            key = digest(b"host-skeleton", image_base.base_digest().encode())[:32]
            if not self.layer(key).is_dir():
                with self.scratch() as scratch:
                    (scratch / "layer").mkdir()
                    image_base.write_skeleton(scratch / "layer")
                    self.publish(scratch / "layer", key)
            self._base = self.record(Image(key, (self.layer(key),), image_base.binds(), {"PATH": image_base.PATH}))
            self._records[image_base.NAME] = self._base
        return self._base

    def base_digest(self) -> str:
        """Digest of what `FROM gymsmith/host` stands for here, for evidence: this machine's /usr, or the engine's base image."""
        if (engine := self._engine()) is not None:
            from sandboxes.image_engine import engine_digest

            return engine_digest(*engine)
        return image_base.base_digest()

    def _engine(self) -> tuple[Any, str] | None:
        """The client of the container engine that the provider drives and its base image; None for a provider without one."""
        if self.provider is None or self.provider.capabilities.isolation != "container":
            return None
        return self.provider.client, self.provider.base_image  # type: ignore[attr-defined]

    async def build(
        self,
        text: str,
        context: Mapping[str, bytes],
        *,
        wheelhouse: Path | None = None,
        executable: Collection[str] = (),
        timeout_s: float = 600.0,
    ) -> Image:
        """The image that a Dockerfile describes; steps that were executed before are not executed again.

        `context`: path relative to environment/ -> content; members named in `executable`, and scripts that begin with `#!`, get
        mode 0755. `wheelhouse`: a host directory shown at /wheelhouse to those RUN steps that name it.
        Raises: PolicyRefused (nothing was executed), BuildError (a step failed; the tail of its log is in `log`), SandboxError.
        """
        steps = dockerfile.parse(text)
        refuse_escapes(context)
        if (engine := self._engine()) is not None:
            from sandboxes.image_engine import build_with_engine

            return self.record(
                await build_with_engine(
                    self, *engine, steps, context, wheelhouse=wheelhouse, executable=frozenset(executable), timeout_s=timeout_s
                )
            )
        builder = Builder(self, context, frozenset(executable), wheelhouse, timeout_s)
        return self.record(await builder.execute(steps))

    # ------------------------------------------------------------ files of the store, for the builder

    def layer(self, key: str) -> Path:
        """Where the layer of that key lies, or would lie."""
        return self.root / "layers" / key

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private directory on the store's file system, removed afterwards whatever happened."""
        folder = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        if not self._swept:
            self._swept = True
            self._sweep()
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            discard(folder)

    def _sweep(self) -> None:
        """Remove what builders that were killed have left half-done."""
        for left in (self.root / "tmp").glob("*-*"):
            owner = left.name.partition("-")[0]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                discard(left)

    def publish(self, finished: Path, key: str) -> None:
        """Give a finished layer its name; when another process was faster, its layer is the one."""
        target = self.layer(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(finished, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

    @contextlib.asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """One builder per key: a lock among the tasks of this process, a lock file among processes (freed when one dies)."""
        async with self._building.setdefault(key, asyncio.Lock()):
            folder = self.root / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while True:
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.05)
                yield
            finally:
                os.close(handle)

    def record(self, image: Image) -> Image:
        """Remember an image here and for other processes; writing the same one again is harmless."""
        if image.id not in self._records:
            row = {
                "id": image.id,
                "layers": [layer.name for layer in image.layers],
                "binds": [list(pair) for pair in image.binds],
                "env": dict(image.env),
                "workdir": image.workdir,
                "user": image.user,
                "engine_ref": image.engine_ref,
            }
            path = self._record_path(image.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{uuid.uuid4().hex}")
            draft.write_text(json.dumps(row, sort_keys=True))
            os.rename(draft, path)
            self._records[image.id] = image
        return image

    def forget(self, image_id: str) -> None:
        """Remove a record; its layers stay."""
        self._records.pop(image_id, None)
        self._record_path(image_id).unlink(missing_ok=True)

    def _record_path(self, image_id: str) -> Path:
        if not _PLAIN.fullmatch(image_id):
            raise ImageMissing(f"image ids are letters, digits, '.', '_' and '-', got {image_id[:80]!r}")
        return self.root / "records" / f"{image_id}.json"
