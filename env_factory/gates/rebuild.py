"""Whether an image can be built again: its RUN steps are executed a second time, with nothing in the cache, and compared.

Once per image, not per task: everything after the last RUN is files that the task brings, so it is left out, and images that
share their steps share the second build. What must be equal is the set of packages (Debian's and Python's, with versions). Other
contents are compared too and told, but may differ: bytecode, logs and data bases hold times.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from pathlib import Path

from gymsmith.schema import Draft, Gate
from gymsmith.taskdir import Task
from sandboxes.base import Image
from sandboxes.image import dockerfile
from sandboxes.image.build_context import BuildContext
from sandboxes.image.images import ImageStore
from sandboxes.image.layer import lookup

SALT = "ARG GYMSMITH_AGAIN=1"
"""A variable that no step reads: with it each RUN is another one to every cache."""
_TIMES = re.compile(r"/__pycache__/|\.pyc\Z|\A/var/(log|cache|lib/(apt|dpkg))/|\A/etc/ld\.so\.cache\Z|\A/tmp/|/\.git/")
_PACKAGE = re.compile(r"([^/]+)\.(dist-info|egg-info)\Z")


class Rebuilds:
    """The second builds of one image store. Belongs to one event loop."""

    def __init__(self, images: ImageStore, wheels: Path | None = None) -> None:
        self.images = images
        self.wheels = wheels
        self._asked: dict[str, asyncio.Task[Gate]] = {}

    async def gate(self, draft: Draft) -> Gate:
        """The gate `rebuild`. Raises: BuildError (the first build went through, this one did not), InfrastructureError."""
        task = Task.of(draft)
        parts = recipe(task.dockerfile)
        if parts is None:
            return Gate(name="rebuild", passed=True, detail="no step is executed: the image follows from its files")
        once, again = parts
        members = task.under("environment")
        executable = frozenset(n.removeprefix("environment/") for n in task.executable if n.startswith("environment/"))
        context = BuildContext.of(members, executable)
        first = await self.images.build(once, context, wheelhouse=self.wheels)
        if first.id not in self._asked or _lost(self._asked[first.id]):
            self._asked[first.id] = asyncio.create_task(self._compare(first, again, context))
        return await asyncio.shield(self._asked[first.id])

    async def _compare(self, first: Image, text: str, context: BuildContext) -> Gate:
        second = await self.images.build(text, context, wheelhouse=self.wheels)
        if not first.layers:
            return Gate(name="rebuild", passed=True, detail="built again; an engine holds the image, contents were not compared")
        return await asyncio.to_thread(_compared, first, second)


def _lost(asked: asyncio.Task[Gate]) -> bool:
    return asked.done() and (asked.cancelled() or asked.exception() is not None)


def recipe(text: str) -> tuple[str, str] | None:
    """A Dockerfile up to its last RUN, and the same so that no RUN of it is in a cache; None when it has no RUN."""
    parsed = dockerfile.parse(text)
    steps = sorted((step.line, step.name) for stage in parsed.stages for step in (stage.origin, *stage.steps))
    runs = [line for line, name in steps if name == "RUN"]
    if not runs:
        return None
    lines = text.splitlines(keepends=True)
    end = next((line - 1 for line, _ in steps if line > runs[-1]), len(lines))
    kept = lines[:end]
    salted = [f"{SALT}\n{line}" if number in runs else line for number, line in enumerate(kept, 1)]
    return "".join(kept), "".join(salted)


def _compared(first: Image, second: Image) -> Gate:
    mine, other = packages(first), packages(second)
    if mine != other:
        differ = sorted(mine ^ other)
        return Gate(name="rebuild", passed=False, detail=f"{len(differ)} packages differ: {', '.join(differ[:8])}")
    odd: list[str] = []
    for one, two in zip(first.layers, second.layers, strict=True):
        if one != two:
            left, right = _contents(one), _contents(two)
            odd += sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path))
    said = f"{len(mine)} packages equal; " + (f"{len(odd)} files differ: {', '.join(odd[:5])}" if odd else "all contents equal")
    return Gate(name="rebuild", passed=True, detail=said[:500])


def packages(image: Image) -> set[str]:
    """Name and version of what is installed in the image's own layers."""
    found: set[str] = set()
    for layer in image.layers:
        for folder, names, files in os.walk(layer):
            for name in [*names, *files]:
                if match := _PACKAGE.match(name):
                    found.add(match.group(1))
            names[:] = [name for name in names if not os.path.islink(os.path.join(folder, name))]
    status = lookup(image.layers, "/var/lib/dpkg/status")[1]
    if status is not None and stat.S_ISREG(status.status.st_mode):
        text = Path(status.places[0]).read_text(encoding="utf-8", errors="replace")
        for entry in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
            if "Package" in fields:
                found.add(f"{fields['Package']}={fields.get('Version', '')}")
    return found


def _contents(layer: Path) -> dict[str, tuple[int, str]]:
    """Path -> (type and mode, digest of the content or target of the link)."""
    found: dict[str, tuple[int, str]] = {}
    for folder, names, files in os.walk(layer):
        for name in [*names, *files]:
            place = os.path.join(folder, name)
            path = place[len(os.fspath(layer)) :]
            if _TIMES.search(path):
                continue
            status = os.lstat(place)
            said = ""
            if stat.S_ISLNK(status.st_mode):
                said = os.readlink(place)
            elif stat.S_ISREG(status.st_mode):
                with open(place, "rb") as file:
                    said = hashlib.file_digest(file, "sha256").hexdigest()
            found[path] = (status.st_mode, said)
    return found
