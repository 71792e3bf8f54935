"""A second honest solution: the original statement said in other words.

Only rewritings that keep the meaning for ordinary values: operands changed over, a comparison denied twice, a value given a name
before it is used. The gates prove by the hidden tests that the result is right; what they turn down is not kept as a solution.
"""

from __future__ import annotations

import ast

from env_factory.swe.operators import Site

_SWAPPED = {ast.Lt: ">", ast.LtE: ">=", ast.Gt: "<", ast.GtE: "<="}
_DENIED = {ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
_NAMES = ("outcome", "value", "answer", "held")


def other_words(text: str, site: Site) -> str | None:
    """The original module `text` with the statement around `site` written differently; None where no rewriting applies."""
    tree = ast.parse(text)
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def covers(node: ast.AST) -> bool:
        if not isinstance(node, ast.expr | ast.stmt):
            return False
        start, end = span(node)
        return start <= site.start and site.end <= end

    around = [node for node in ast.walk(tree) if covers(node)]
    around.sort(key=lambda node: span(node)[1] - span(node)[0])  # type: ignore[arg-type]
    for node in around:
        if isinstance(node, ast.stmt):
            break
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = (data[slice(*span(side))].decode() for side in (node.left, node.comparators[0]))
            kind = type(node.ops[0])
            new = f"({right} {_SWAPPED[kind]} {left})" if kind in _SWAPPED else f"(not ({left} {_DENIED[kind]} {right}))"
            if result := _replaced(data, *span(node), new):
                return result
    statement = next((node for node in around if isinstance(node, ast.stmt)), None)
    if statement is None:
        return None
    start, end = span(statement)
    indent = data[data.rfind(b"\n", 0, start) + 1 : start].decode()
    if indent.strip():
        return None  # Not the first on its line: `if x: return y`, `a; b`, `elif`.
    name = next(n for n in (*_NAMES, "outcome_of_this") if n.encode() not in data)
    parts = _named(statement, name, lambda node: data[slice(*span(node))].decode())
    if parts is None:
        return None
    if isinstance(statement, ast.If):
        first = f"{name} = {parts[0]}\n{indent}"
        test_start, test_end = span(statement.test)
        between = data[start:test_start].decode()
        return _replaced(data, start, test_end, f"{first}{between}{name}")
    return _replaced(data, start, end, f"\n{indent}".join(parts))


def _named(node: ast.stmt, name: str, text: object) -> list[str] | None:
    """The statement as lines that give its value a name first. For an `if`, the condition alone."""
    assert callable(text)

    def whole(value: ast.expr) -> str:
        shown = str(text(value))
        return f"({shown})" if "\n" in shown else shown

    match node:
        case ast.Return(value=ast.expr() as value):
            return [f"{name} = {whole(value)}", f"return {name}"]
        case ast.Assign(targets=[target], value=value):
            return [f"{name} = {whole(value)}", f"{text(target)} = {name}"]
        case ast.AugAssign(target=ast.Name() | ast.Attribute() as target, op=ast.Add() | ast.Sub() as op, value=value):
            return [f"{text(target)} = {text(target)} {'+' if isinstance(op, ast.Add) else '-'} ({text(value)})"]
        case ast.Raise(exc=ast.expr() as error, cause=None):
            return [f"{name} = {whole(error)}", f"raise {name}"]
        case ast.Expr(value=ast.Call() as call):
            return [f"{name} = {whole(call)}", f"del {name}"]
        case ast.If(test=test):
            return [whole(test)]
        case _:
            return None


def _replaced(data: bytes, start: int, end: int, new: str) -> str | None:
    result = (data[:start] + new.encode() + data[end:]).decode()
    try:
        ast.parse(result)
    except SyntaxError:
        return None
    return result
