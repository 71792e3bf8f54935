"""What a person asks of the images of a machine: which there are, forget one, free the space of what nobody uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from typing import NamedTuple

from gymsmith.errors import Conflict, ImageMissing
from sandboxes.image import names as image_names
from sandboxes.image.images import ImageStore
from sandboxes.image.layer_store import Freed

STEP = "step-"
"""Records of images that live as long as a RUN step begin so."""


class Listed(NamedTuple):
    """One image."""

    id: str
    names: tuple[str, ...]
    layers: int
    bytes: int
    """On disk, with layers that it shares with others; of an engine's image 0."""
    engine_ref: str | None


def listed(store: ImageStore) -> list[Listed]:
    """Every image of this machine, without those of steps at work."""
    names: dict[str, list[str]] = {}
    for name, image_id in store.names.all().items():
        names.setdefault(image_id, []).append(name)
    sizes: dict[str, int] = {}
    found = []
    for row in store.rows():
        if not row["id"].startswith(STEP):
            for key in row["layers"]:
                sizes[key] = sizes.get(key) or store.layers.size(key)
            total = sum(sizes[key] for key in row["layers"])
            found.append(Listed(row["id"], tuple(names.get(row["id"], ())), len(row["layers"]), total, row["engine_ref"]))
    return found


def remove(store: ImageStore, asked: str, *, keep: Collection[str] = ()) -> str:
    """Forget an image by its id, or a name of it, and with its last name the image; the id. Layers leave with `collect`.

    An engine's image leaves the engine, too.
    Raises: ImageMissing; Conflict: it is one of `keep`, which environments need; InfrastructureError: no engine answers.
    """
    named = store.names.all()
    name = "" if store.has_record(asked) else image_names.normal(asked)
    if name and name not in named:
        raise ImageMissing(f"image {asked[:80]!r} is not in {store.root}; `gymsmith image ls` lists what is")
    image_id = named.get(name, asked)
    others = [other for other, target in named.items() if target == image_id and other != name]
    if name and others:
        store.names.remove(name)
        return image_id
    if image_id in keep:
        raise Conflict(f"image {image_id} is needed by an environment; remove that first, or use --force")
    engine_ref = next((row["engine_ref"] for row in store.rows() if row["id"] == image_id), None)
    if engine_ref is not None:
        from sandboxes.image.engine import remove_from_engine

        remove_from_engine(engine_ref)
    for other in (*others, *([name] if name else [])):
        store.names.remove(other)
    store.forget(image_id)
    return image_id


def collect(store: ImageStore, keep: Collection[str], *, idle_s: float = 86_400.0) -> Freed:
    """Remove images that have no name, are not in `keep` and are older than `idle_s`, then layers that no image has and nobody
    began to use for `idle_s`: among them steps of earlier builds, which may be executed again.

    Sandboxes must not live longer than `idle_s` on an image that is removed.
    """
    stay = {*store.names.all().values(), *keep, store.host_key()}
    before = time.time() - idle_s
    layers: set[str] = set()
    for row in store.rows():
        fresh = False
        with contextlib.suppress(OSError):
            fresh = store.record_path(row["id"]).stat().st_mtime > before
        if row["id"] in stay or fresh:
            layers.update(row["layers"])
        else:
            store.forget(row["id"])
    return store.layers.collect(layers, idle_s)
