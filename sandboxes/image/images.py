"""The images of one machine: the records and names that stand for content-addressed layers.

A record appears under its final name by one rename. How layers are kept is told in `layer_store.py`, how a Dockerfile becomes
layers in `build.py`, how somebody else's image does in `adopting.py`; where the provider drives a container engine,
the engine builds the same Dockerfile (`engine.py`).

    ROOT/records/IMAGE.json   what an image id stands for
    ROOT/names/NAME           which image a name stands for
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gymsmith.errors import Conflict, ImageMissing
from gymsmith.schema import digest
from sandboxes.base import Image, Provider
from sandboxes.image import adopting as image_import
from sandboxes.image import dockerfile
from sandboxes.image import host_base as image_base
from sandboxes.image import names as image_names
from sandboxes.image.build import Builder, OnStep
from sandboxes.image.build_context import BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.layer_store import LayerStore
from sandboxes.image.names import ImageNames

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ImageStore:
    """The images under `root`. Any number of processes may share it; one object belongs to one event loop.

    Without a provider it looks images up (that is all a provider needs of it) and builds what needs no sandbox.
    """

    def __init__(self, root: Path, provider: Provider | None = None) -> None:
        self.root = root
        self.provider = provider
        self.layers = LayerStore(root)
        self.names = ImageNames(root / "names")
        self._records: dict[str, Image] = {}
        self._base: Image | None = None

    def get(self, image_id: str) -> Image:
        """The image of that id or name. Raises: ImageMissing: never built on this machine, or its layers are gone."""
        known = self._records.get(image_id)
        if known is not None:
            return known
        if image_id in (image_base.NAME, f"{image_base.NAME}:latest"):
            return self.base()
        if not _PLAIN.fullmatch(image_id) or not self.record_path(image_id).exists():
            named = self.names.all().get(image_names.normal(image_id))
            if named is not None:
                return self.get(named)
        again = "build its environment again (gymsmith env verify ID)"
        try:
            row = json.loads(self.record_path(image_id).read_bytes())
            image = Image(
                id=row["id"],
                layers=tuple(self.layers.tree(key) for key in row["layers"]),
                binds=tuple((host, inside) for host, inside in row["binds"]),
                env=row["env"],
                workdir=row["workdir"],
                user=row["user"],
                config=row["config"],
                engine_ref=row["engine_ref"],
            )
        except FileNotFoundError as error:
            raise ImageMissing(f"image {image_id[:80]!r} is not in {self.root}; {again}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ImageMissing(f"image {image_id}: its record cannot be read ({error}); {again}") from error
        gone = next((key for key in row["layers"] if not self.layers.sound(key)), None)
        if gone is not None:
            damaged = self.layers.tree(gone).exists()
            what = "damaged, or was copied without its owners and times (cp -a keeps them)" if damaged else "gone"
            raise ImageMissing(f"image {image_id}: its layer {gone} is {what}; {again}")
        self._records[image_id] = image
        return image

    resolve = get

    def base(self) -> Image:
        """`gymsmith/host`: this machine's /usr, read-only, below a synthesised rest; or an engine's base image.

        Written, or built, on first use.
        """
        if self._base is None and (engine := self._engine()) is not None:
            from sandboxes.image.engine import build_base

            self._base = self.record(build_base(self, *engine))
            self._records[image_base.NAME] = self._base
        if self._base is None:
            key = self.host_key()
            if not self.layers.sound(key):
                with self.layers.scratch() as scratch:
                    (scratch / "tree").mkdir()
                    image_base.write_skeleton(scratch / "tree")
                    self.layers.publish(scratch / "tree", key)
            self._base = self.record(Image(key, (self.layers.tree(key),), image_base.binds(), {"PATH": image_base.PATH}))
            self._records[image_base.NAME] = self._base
        return self._base

    @staticmethod
    def host_key() -> str:
        """Key of the layer, and id of the image, that `gymsmith/host` is on this machine."""
        return digest(b"host-skeleton", image_base.base_digest().encode())[:32]

    def base_digest(self) -> str:
        """Digest of what `FROM gymsmith/host` stands for here, for evidence: this machine's /usr, or the engine's base image."""
        if (engine := self._engine()) is not None:
            from sandboxes.image.engine_order import engine_digest

            return engine_digest(*engine)
        return image_base.base_digest()

    def _engine(self) -> tuple[Any, str] | None:
        """The client of the container engine that the provider drives and its base image; None for a provider without one."""
        client = getattr(self.provider, "client", None)
        if self.provider is None or client is None or self.provider.capabilities.isolation != "container":
            return None  # engines of other machines are driven by their sandbox hosts
        return client, self.provider.base_image  # type: ignore[attr-defined]

    async def build(
        self,
        text: str,
        context: Mapping[str, bytes] | BuildContext,
        *,
        wheelhouse: Path | None = None,
        executable: Collection[str] = (),
        timeout_s: float = 600.0,
        policy: BuildPolicy | None = None,
        on_step: OnStep | None = None,
    ) -> Image:
        """The image that a Dockerfile describes; steps that were executed before are not executed again.

        `context`: a BuildContext, or path relative to environment/ -> content; of the latter, members named in `executable` and
        scripts that begin with `#!` get mode 0755. `wheelhouse`: a host directory shown at /wheelhouse to those RUN steps that
        name it. `timeout_s`: of one RUN step. `on_step` is told of each instruction that is done (not under an engine).
        Raises: PolicyRefused (nothing was executed), BuildError (a step failed; the tail of its log is in `log`), SandboxError.
        """
        steps = dockerfile.parse(text)
        policy = policy or BuildPolicy()
        members = context if isinstance(context, BuildContext) else BuildContext.of(context, executable)
        if (engine := self._engine()) is not None:
            from sandboxes.image.engine import build_with_engine

            return self.record(
                await build_with_engine(self, *engine, steps, members, policy, wheelhouse=wheelhouse, timeout_s=timeout_s)
            )
        builder = Builder(self, members, policy, wheelhouse=wheelhouse, timeout_s=timeout_s, on_step=on_step)
        return self.record(await builder.execute(steps))

    async def adopt(self, name: str, source: str) -> Image:
        """Import an image that somebody else made, under a name for FROM; see `image_import.adopt`."""
        image_names.normal(name)
        engine = self._engine()
        image = await image_import.adopt(self, source, engine=engine[0] if engine else None)
        self.tag(image, name)
        return image

    def tag(self, image: Image, name: str) -> None:
        """Give an image a name, which FROM may use; another image that has it loses it. Raises: ImageMissing: no such name."""
        if image_names.normal(name).partition(":")[0] == image_base.NAME:
            raise Conflict(f"{image_base.NAME} is the base of this machine; choose another name")
        self.names.set(name, image.id)

    def rows(self) -> list[dict[str, Any]]:
        """The records as they stand, those of steps at work (step-...) among them."""
        found = []
        for path in sorted((self.root / "records").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_bytes()))
        return found

    def record(self, image: Image) -> Image:
        """Remember an image here and for other processes; writing the same one again is harmless."""
        if image.id not in self._records or not self.has_record(image.id):
            row = {
                "id": image.id,
                "layers": [layer.parent.name for layer in image.layers],
                "binds": [list(pair) for pair in image.binds],
                "env": dict(image.env),
                "workdir": image.workdir,
                "user": image.user,
                "config": dict(image.config),
                "engine_ref": image.engine_ref,
            }
            path = self.record_path(image.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{uuid.uuid4().hex}")
            draft.write_text(json.dumps(row, sort_keys=True))
            os.rename(draft, path)
            self._records[image.id] = image
        return image

    def forget(self, image_id: str) -> None:
        """Remove a record; its layers stay."""
        self._records.pop(image_id, None)
        self.record_path(image_id).unlink(missing_ok=True)

    def has_record(self, image_id: str) -> bool:
        """Whether it is the id of an image here."""
        return bool(_PLAIN.fullmatch(image_id)) and self.record_path(image_id).exists()

    def record_path(self, image_id: str) -> Path:
        """Where the record of that id lies, or would lie. Raises: ImageMissing: it cannot be an id."""
        if not _PLAIN.fullmatch(image_id):
            raise ImageMissing(f"image ids are letters, digits, '.', '_' and '-', got {image_id[:80]!r}")
        return self.root / "records" / f"{image_id}.json"
