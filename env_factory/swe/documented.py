"""Documented functions of a package: where each stands, what it says of itself, and its module with the body taken out.

Not here: whether tests cover it well enough to ask somebody for it (`reconstruction.py`).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from env_factory.sources import Package
from env_factory.swe import operators

MIN_DOC = 40
"""Characters that a docstring must have to be a specification."""
MIN_NODES = 12
"""Nodes of syntax that a body must have: with fewer there is nothing to write."""


@dataclass(frozen=True, slots=True)
class Documented:
    """One function or method with a docstring."""

    path: str
    name: str
    """Qualified within its module."""
    first_line: int
    """As `operators.Site.first_line`."""
    doc: str
    """Docstring, cleaned."""
    head: str
    """Source from the first decorator to the end of the docstring, dedented."""
    body: tuple[int, int]
    """Byte offsets in the module, from the end of the docstring to the end of the last statement's line."""
    span: range
    """Lines of the body."""
    nodes: int
    """Size of the body, in nodes of syntax."""
    indent: str
    yields: bool

    @property
    def key(self) -> str:
        """Names the function within the package."""
        return f"{self.path}::{self.name}"

    def without_body(self, text: str, statement: str = "raise NotImplementedError") -> str:
        """The module with this function reduced to `statement`."""
        data = text.encode()
        start, end = self.body
        return (data[:start] + f"\n{self.indent}{statement}".encode() + data[end:]).decode()

    def silent(self, text: str) -> str:
        """The module with this function doing nothing: what then differs can be told in values."""
        return self.without_body(text, f"return\n{self.indent}yield" if self.yields else "return None")

    def lines(self, text: str) -> list[str]:
        """What the body says: its lines, stripped, without comments and without those that every function has."""
        said = [line.strip() for line in text.split("\n")[self.span.start - 1 : self.span.stop - 1]]
        return [line for line in said if len(line) >= 8 and not line.startswith("#")]


def documented(package: Package) -> list[Documented]:
    """Every function with a docstring, by path and line."""
    found: list[Documented] = []
    for path in sorted(package.code):
        try:
            found += _of_module(path, package.files[path].decode())
        except (SyntaxError, UnicodeDecodeError):
            continue  # Code for another Python; no test of this one reaches it.
    return found


def _of_module(path: str, text: str) -> Iterator[Documented]:
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = [line.decode() for line in data.splitlines()]
    for name, node, first_line in operators.functions(ast.parse(text)):
        doc = ast.get_docstring(node)
        if not doc or "<locals>" in name or len(node.body) < 2:
            continue
        said, last = node.body[0], node.body[-1]
        assert said.end_lineno is not None and said.end_col_offset is not None and last.end_lineno is not None
        if node.body[1].lineno == said.end_lineno:
            continue  # Two statements on a line: nothing to cut between them.
        head = textwrap.dedent("\n".join(lines[first_line - 1 : said.end_lineno]))
        inner = [n for statement in node.body[1:] for n in ast.walk(statement)]
        own = _own(node.body[1:])
        end = starts[last.end_lineno]
        yield Documented(
            path=path,
            name=name,
            first_line=first_line,
            doc=inspect.cleandoc(doc),
            head=head,
            body=(
                starts[said.end_lineno - 1] + said.end_col_offset,
                end - _newline(data, end),
            ),
            span=range(said.end_lineno + 1, last.end_lineno + 1),
            nodes=len(inner),
            indent=" " * said.col_offset,
            yields=any(isinstance(n, ast.Yield | ast.YieldFrom) for n in own),
        )


def _newline(data: bytes, end: int) -> int:
    """Length of the line break that ends at `end`."""
    return 2 if data[:end].endswith(b"\r\n") else 1 if data[:end].endswith(b"\n") else 0


def _own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions inside it."""
    pending: list[ast.AST] = list(body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            pending += ast.iter_child_nodes(node)
