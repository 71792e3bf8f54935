"""A package with its suite surveyed and a sandbox to try changes in, shared by all candidates of one order."""

from __future__ import annotations

import ast
import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from env_factory.sources import Package
from env_factory.swe import selection
from env_factory.swe.screening import SUITE, Screen, opened
from env_factory.swe.selection import Observed
from env_factory.swe.survey import Survey, survey
from sandboxes.base import Provider
from sandboxes.image.images import ImageStore

MIN_LINES = 4
"""Lines of a function that is worth a fault."""


class Function(NamedTuple):
    """A function of the package that some of its tests enter."""

    path: str
    name: str
    """Qualified name within the module."""
    first_line: int
    """Of its first decorator, if any, counted from 1."""
    last_line: int


@dataclass(slots=True)
class Workshop:
    """One at a time: the sandbox has one tree."""

    package: Package
    screen: Screen
    known: Survey
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def functions(self, seed: int) -> list[Function]:
        """Functions that tests reach and importing does not run, in seeded order."""
        found = []
        for path in self.package.code:
            try:
                tree = ast.parse(self.package.files[path].decode())
            except (SyntaxError, UnicodeDecodeError):
                continue
            found += [f for f in _functions(path, tree, "") if (f.path, f.first_line) in self.known.touching]
        kept = [f for f in found if (f.path, f.first_line) not in self.known.everywhere]
        kept = [f for f in kept if f.last_line - f.first_line + 1 >= MIN_LINES]
        random.Random(f"llm-bug/{seed}").shuffle(kept)
        return kept

    async def run(self, tests: Sequence[str], texts: Mapping[str, str], *, observe: bool = True) -> dict[str, Any]:
        """The answer of `probe/screen.py` for these tests, with files of the package exchanged. Hold the lock."""
        return (await self.screen.run([self.known.run_of(tests, texts, observe=observe)]))[0]

    async def observed(self, failures: Sequence[Mapping[str, Any]], healthy: Mapping[str, str]) -> Observed:
        """What the host can compare by itself, where `healthy` texts make the package right. Hold the lock."""
        await self._put(healthy)
        try:
            return (await selection.observed(self.package, self.screen, [failures]))[0]
        finally:
            await self._put({path: self.package.files[path].decode() for path in healthy})

    async def put_test(self, path: str, text: str) -> None:
        """A file among the hidden tests; empty, it holds none. Hold the lock."""
        await self.screen.sandbox.put(f"{SUITE}/{path}", text.encode())

    async def _put(self, texts: Mapping[str, str]) -> None:
        if texts:
            await self.screen.sandbox.put_files({f"/work/{p}": t.encode() for p, t in texts.items()}, owner="agent")


@asynccontextmanager
async def workshop(package: Package, provider: Provider, images: ImageStore) -> AsyncIterator[Workshop]:
    """Opened for as long as the block lasts. Raises: NoTests, BuildError, SandboxError."""
    async with opened(package, provider, images) as screen:
        yield Workshop(package, screen, await survey(package, screen))


def _functions(path: str, tree: ast.AST, prefix: str) -> list[Function]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found.append(Function(path, f"{prefix}{node.name}", first, node.end_lineno or node.lineno))
        elif isinstance(node, ast.ClassDef):
            found += _functions(path, node, f"{prefix}{node.name}.")
    return found
