"""Code of a test as a reader may be shown it: values for names, no prefixes of modules, nothing that he could not repeat."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_SHOWN = 160
"""Characters of an expression or a value; longer ones are left out rather than cut, for what matters may be in the cut."""
ADDRESS = re.compile(r"0x[0-9a-f]{6,}|<.* object at|<generator|<function|<map |<filter |<zip |/tmp/|/work/|/tests/")
_IN_PLACE = {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "add", "discard", "update", "setdefault",
             "popitem", "appendleft", "popleft"}  # fmt: skip


def _changed(statements: Iterable[str]) -> set[str]:
    """Names of what is changed in place: the value that such a name had in the end says nothing about what happened before."""
    found: set[str] = set()
    for node in (n for text in statements for n in ast.walk(ast.parse(text))):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=method) if method in _IN_PLACE:
                found.add(name)
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                found.add(name)
            case _:
                pass
    return found


class Writer(ast.NodeTransformer):
    """Writes code with values for names and without modules, and notes the names that stay `unknown`."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        changed = _changed([failure["source"], *failure.get("before", ())])
        self.values = {name: text for name, text in failure.get("values", {}).items() if name not in changed}
        self.modules = set(failure.get("modules", ()))
        self.public: Mapping[str, str] = failure.get("public", {})
        self.known = set(failure.get("builtin", ()))
        self.own: set[str] = set()
        self.unknown: set[str] = set()

    def __call__(self, node: ast.expr) -> str | None:
        """The expression, or None when it is too long to show."""
        text = self._write(ast.parse(ast.unparse(node), mode="eval").body, set())
        return text if usable(text) else None

    def statement(self, node: ast.stmt, keep: set[str]) -> str:
        """The statement, the names in `keep` left as they are."""
        return self._write(ast.parse(ast.unparse(node)).body[0], keep)

    def _write(self, copy: ast.AST, keep: set[str]) -> str:
        self.unknown = set()
        self.own = {n.id for n in ast.walk(copy) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.own |= {a.arg for n in ast.walk(copy) if isinstance(n, ast.arguments) for a in [*n.args, *n.kwonlyargs]}
        self.own |= {a.arg for n in ast.walk(copy) if isinstance(n, ast.arguments) for a in (n.vararg, n.kwarg) if a}
        self.own |= keep
        return ast.unparse(self.visit(copy))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(node.attr, ast.Load())
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        call = self.generic_visit(node)
        assert isinstance(call, ast.Call)
        args: list[ast.expr] = []
        for arg in call.args:
            spread = isinstance(arg, ast.Starred) and isinstance(arg.value, ast.Tuple | ast.List)
            args += arg.value.elts if spread else [arg]  # type: ignore[attr-defined]
        call.args = args
        call.keywords = [k for k in call.keywords if k.arg is not None or ast.unparse(k.value) != "{}"]
        return call

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.own or node.id in self.known:
            return node
        if node.id in self.values:
            return ast.parse(self.values[node.id], mode="eval").body
        if node.id in self.public:
            return ast.Name(self.public[node.id], node.ctx)
        self.unknown.add(node.id)
        return node


def showable(text: str) -> bool:
    """Whether a reader can be shown this: not too long, no address or place of this machine, no end of a code span."""
    return len(text) <= MAX_SHOWN and not ADDRESS.search(text) and "`" not in text


def usable(text: str) -> bool:
    """The same for what has to stand on one line."""
    return showable(text) and "\n" not in text
