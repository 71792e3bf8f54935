"""Names of images, such as debian:12: each a small file that says which image it stands for."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
import uuid
from pathlib import Path

from gymsmith.errors import ImageMissing

_NAME = re.compile(r"[a-z0-9]+(?:[._/:-]+[A-Za-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?\Z")
_DEFAULTS = ("docker.io/library/", "docker.io/", "index.docker.io/library/")


def normal(name: str) -> str:
    """The name with its tag and without the registry that is meant when none is named. Raises: ImageMissing: no name."""
    if len(name) > 200 or not _NAME.match(name):
        raise ImageMissing(f"image names are lower-case words, then ':' and a tag, got {name[:80]!r}")
    for default in _DEFAULTS:
        name = name.removeprefix(default)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class ImageNames:
    """The names in one folder; any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> str:
        """The image id. Raises: ImageMissing."""
        try:
            return self._path(name).read_text().strip()
        except OSError as error:
            raise ImageMissing(f"image {name[:80]!r} is not here; build or import it") from error

    def set(self, name: str, image_id: str) -> None:
        """Let a name stand for an image, from now on."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{uuid.uuid4().hex}")
        draft.write_text(image_id)
        os.rename(draft, path)

    def remove(self, name: str) -> None:
        """Forget a name."""
        self._path(name).unlink(missing_ok=True)

    def all(self) -> dict[str, str]:
        """Every name and its image's id."""
        found: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir()):
                if not path.name.startswith("."):
                    with contextlib.suppress(OSError):
                        found[urllib.parse.unquote(path.name)] = path.read_text().strip()
        return found

    def _path(self, name: str) -> Path:
        return self.folder / urllib.parse.quote(normal(name), safe="")
