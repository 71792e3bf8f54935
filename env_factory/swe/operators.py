"""Single-site faults in Python source, as edits of its text, so that everything but the fault keeps its formatting.

A site is a place inside a function's body where one operator applies. Left alone are docstrings, decorators, signatures,
f-strings and what a `raise` says. An edit is not promised to change behaviour: screening by execution decides that.
The idea is mutation testing's; the choice of operators follows what SWE-smith calls procedural modification (arXiv 2504.21798,
section 2.1), widened by faults that reviewers know: a forgotten guard, swapped arguments, a dropped keyword.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARE = {
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
_BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
_NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "lower": "upper", "upper": "lower", "lstrip": "rstrip",
    "rstrip": "lstrip", "startswith": "endswith", "endswith": "startswith", "split": "rsplit", "find": "rfind",
    "append": "remove", "keys": "values", "values": "keys", "ceil": "floor", "floor": "ceil",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """One possible fault."""

    path: str
    function: str
    """Qualified name within the module."""
    first_line: int
    """Line where the interpreter says the function's code starts (its first decorator, if any)."""
    operator: str
    line: int
    start: int
    """Byte offset of the text that is replaced, in UTF-8."""
    end: int
    new: str

    def apply(self, text: str) -> str:
        """The module's text with the fault in it."""
        data = text.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()

    def valid(self, text: str) -> bool:
        """Whether the module still parses with the fault in it."""
        try:
            ast.parse(self.apply(text))
        except SyntaxError:
            return False
        return True


def sites(path: str, text: str, *, top: bool = False) -> list[Site]:
    """Every site of a module's functions, in order of the text; `top`: and of what runs when it is started.

    Raises SyntaxError when this Python cannot parse it.
    """
    found: list[Site] = []
    module, tree = _Module(path, text), ast.parse(text)
    bodies: list[tuple[str, _Body, int]] = [*functions(tree, "")]
    for function, node, first_line in [("", tree, 1), *bodies] if top else bodies:
        seen: set[tuple[int, int, str]] = set()
        for operator, line, start, end, new in module.edits(node):
            if (start, end, new) in seen or module.data[start:end].decode() == new:
                continue
            seen.add((start, end, new))
            found.append(Site(path, function, first_line, operator, line, start, end, new))
    return found


def order(pool: list[Site], seed: int) -> list[Site]:
    """The pool shuffled by `seed`, operators taking turns, so that a prefix of any length holds a spread of them."""
    rng = random.Random(f"mutation/{seed}")
    by_operator: dict[str, list[Site]] = {}
    for site in pool:
        by_operator.setdefault(site.operator, []).append(site)
    names = sorted(by_operator)
    for name in names:
        rng.shuffle(by_operator[name])
    rng.shuffle(names)
    ordered: list[Site] = []
    while any(by_operator.values()):
        ordered += [by_operator[name].pop() for name in names if by_operator[name]]
    return ordered


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Body = _Function | ast.Module


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Function, int]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, _Function):
            name = f"{prefix}{child.name}"
            first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
            yield name, child, first
            yield from functions(child, f"{name}.<locals>.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


_Edit = tuple[str, int, int, int, str]


class _Module:
    """Byte offsets of nodes, and the edits that apply to each kind of node."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.data = text.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.data[start:end].decode()

    def edits(self, function: _Body) -> Iterator[_Edit]:
        body = function.body
        if (
            body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body = body[1:]
        pending: list[ast.AST] = list(reversed(body))
        while pending:
            node = pending.pop()
            if isinstance(node, (*_Function.__args__, ast.ClassDef, ast.JoinedStr)):
                continue
            if isinstance(node, ast.stmt):
                yield from self._statement(node)
            if isinstance(node, ast.Raise):
                continue
            if isinstance(node, ast.expr):
                yield from self._expression(node)
            if isinstance(node, ast.comprehension):
                for test in node.ifs:
                    yield from self._negate(test)
            if isinstance(node, ast.AnnAssign):
                pending += [child for child in (node.value, node.target) if child is not None]
                continue
            pending += reversed(list(ast.iter_child_nodes(node)))

    def _statement(self, node: ast.stmt) -> Iterator[_Edit]:
        start, end = self.span(node)
        match node:
            case ast.If():
                yield from self._negate(node.test)
                leaves = isinstance(node.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
                if leaves and not node.orelse and not self.data[start:].startswith(b"elif"):
                    yield "drop-guard", node.lineno, start, end, "pass"
            case ast.While():
                yield from self._negate(node.test)
            case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
                yield "return-none", node.lineno, *self.span(value), "None"
            case ast.Raise():
                yield "drop-raise", node.lineno, start, end, "pass"
            case ast.AugAssign():
                yield "drop-assign", node.lineno, start, end, "pass"
                if isinstance(node.op, ast.Add | ast.Sub):
                    old, new = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
                    yield from self._between("binary", node.target, node.value, re.escape(old), new)
            case ast.Assign(targets=[target]):
                loads = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
                if isinstance(target, ast.Attribute | ast.Subscript) or (isinstance(target, ast.Name) and target.id in loads):
                    yield "drop-assign", node.lineno, start, end, "pass"
            case ast.Expr(value=ast.Call()):
                yield "drop-call", node.lineno, start, end, "pass"
            case ast.Continue():
                yield "loop-control", node.lineno, start, end, "break"
            case ast.Break():
                yield "loop-control", node.lineno, start, end, "continue"
            case _:
                return

    def _expression(self, node: ast.expr) -> Iterator[_Edit]:
        start, end = self.span(node)
        line = node.lineno
        match node:
            case ast.Compare(ops=[op], comparators=[right]):
                old, others = _COMPARE[type(op)]
                pattern = r"\s+".join(map(re.escape, old.split()))
                for rank, new in enumerate(others):
                    flip = "compare-boundary" if rank == 0 and len(others) == 2 else "compare-flip"
                    yield from self._between(flip, node.left, right, pattern, new)
            case ast.BoolOp(values=[first, *_, last]) if len(node.values) == 2:
                old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                yield from self._between("and-or", first, last, rf"\b{old}\b", new)
            case ast.BinOp() if type(node.op) in _BINARY and not isinstance(node.left, ast.JoinedStr):
                text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
                old, new = _BINARY[type(node.op)]
                if not text:
                    yield from self._between("binary", node.left, node.right, re.escape(old), new)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield "drop-not", line, start, end, f"({self.text(operand)})"
            case ast.IfExp(test=test):
                yield from self._negate(test)
            case ast.Constant(value=bool() as value):
                yield "bool-flip", line, start, end, str(not value)
            case ast.Constant(value=int() as value):
                yield "constant", line, start, end, str(value + 1)
                if value > 0:
                    yield "constant", line, start, end, str(value - 1)
            case ast.Subscript(slice=ast.Slice() as part):
                if part.lower is not None and part.upper is not None:
                    yield "off-by-one", line, *self.span(part.lower), ""
                for bound in (part.lower, part.upper):
                    if bound is not None and not isinstance(bound, ast.Constant):
                        yield "off-by-one", line, *self.span(bound), f"{self._wrapped(bound)} + 1"
            case ast.Call():
                yield from self._call(node)
            case _:
                return

    def _call(self, node: ast.Call) -> Iterator[_Edit]:
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in _NAMES:
            _, end = self.span(node.func)
            yield "name-swap", node.lineno, end - len(name.encode()), end, _NAMES[name]
        if name == "range" and node.args and not isinstance(node.args[-1], ast.Starred):
            last = node.args[min(1, len(node.args) - 1)]
            yield "off-by-one", node.lineno, *self.span(last), f"{self._wrapped(last)} - 1"
        if len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            (start, middle), (next_start, end) = self.span(node.args[0]), self.span(node.args[1])
            one, two, gap = self.data[start:middle], self.data[next_start:end], self.data[middle:next_start]
            yield "swap-arguments", node.lineno, start, end, (two + gap + one).decode()
        for keyword in node.keywords:
            if keyword.arg and len(node.args) + len(node.keywords) > 1:
                before = max(
                    (
                        self.span(x)[1]
                        for x in [*node.args, *(k.value for k in node.keywords)]
                        if self.span(x)[1] <= self._at(keyword)
                    ),
                    default=None,
                )
                if before is not None:
                    yield "drop-keyword", node.lineno, before, self.span(keyword.value)[1], ""

    def _at(self, keyword: ast.keyword) -> int:
        return self.starts[keyword.lineno - 1] + keyword.col_offset

    def _negate(self, test: ast.expr) -> Iterator[_Edit]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return  # drop-not makes the same fault.
        yield "negate-condition", test.lineno, *self.span(test), f"not {self._wrapped(test)}"

    def _wrapped(self, node: ast.expr) -> str:
        plain = isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant)
        return self.text(node) if plain else f"({self.text(node)})"

    def _between(self, operator: str, left: ast.expr, right: ast.expr, pattern: str, new: str) -> Iterator[_Edit]:
        """Replace the operator's own characters between two operands; parentheses and blanks around it stay."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.data[start:end].decode()
        if "#" in gap or len(found := list(re.finditer(pattern, gap))) != 1:
            return
        yield (
            operator,
            left.lineno,
            start + len(gap[: found[0].start()].encode()),
            start + len(gap[: found[0].end()].encode()),
            new,
        )
