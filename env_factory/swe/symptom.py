"""What a user would report: expressions with the values they were run with, what came back and what was expected.

Made from failures that `probe/screen.py` observed. The text of a test is parsed, never executed: names are replaced by the
values that they had, prefixes of modules are taken off, and where an expression speaks of objects that the test built, the lines
that built them are shown before it. What a reader could not repeat is not reported.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from env_factory.swe.wording import ADDRESS, MAX_SHOWN, Writer, showable, usable
from sandboxes.observations import Observation

MAX_SETUP = 8
"""Lines that may have to run before an expression."""
_OPPOSITE = {"assertEqual": "==", "assertEquals": "==", "assertIs": "is", "assertIn": "in", "assertListEqual": "==",
             "assertDictEqual": "==", "assertTupleEqual": "==", "assertSetEqual": "=="}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Symptom:
    """One observed difference."""

    expression: str
    got: str
    expected: str
    setup: tuple[str, ...] = ()
    """Statements that have to run before."""
    value: str = ""
    """What the expression must equal, where that is a literal."""

    def text(self) -> str:
        """As an item of a report, in Markdown."""
        said = f"`{self.expression}` {self.got}; {self.expected}."
        if not self.setup:
            return f"- {said}"
        lines = "\n".join(f"  {line}" for statement in self.setup for line in statement.splitlines())
        return f"- After\n\n  ```python\n{lines}\n  ```\n\n  {said}"


def observe(failure: Mapping[str, Any]) -> Symptom | None:
    """The symptom in one failure, or None when nothing a reader could use can be said."""
    if not failure.get("source"):
        return None
    statement = ast.parse(failure["source"]).body[0]
    write = Writer(failure)
    raised = str(failure["type"])
    message = _first_line(str(failure["message"]))
    found: Symptom | None = None
    if raised == "Failed" and "DID NOT RAISE" in message:
        found = _not_raised(statement, failure, write)
    elif raised not in ("AssertionError", "Failed"):
        found = _raised(statement, raised, message, str(failure.get("context", "")), write)
    elif isinstance(statement, ast.Assert):
        found = _asserted(statement.test, failure, write)
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and failure.get("sides"):
        found = _unittest(statement.value, failure, write)
    if found is None or not write.unknown:
        return found if found is not None and _says_something(found.expression) else None
    setup = _setup(failure, write)
    return None if setup is None else replace(found, setup=setup)


def _says_something(expression: str) -> bool:
    """Whether an expression without preparation calls anything but what Python brings along."""
    names = {n.id for n in ast.walk(ast.parse(expression)) if isinstance(n, ast.Name)}
    return any(not hasattr(builtins, name) for name in names)


def _setup(failure: Mapping[str, Any], write: Writer) -> tuple[str, ...] | None:
    """The statements of the test that build what the expression speaks of; None when they cannot be told in a few lines."""
    needed = set(write.unknown)
    kept: list[str] = []
    for text in reversed(failure.get("before", ())):
        statement = ast.parse(text).body[0]
        names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        defined = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            defined = {statement.name}
        if not (names | defined) & needed:
            continue
        if isinstance(statement, ast.Assert) or "assert" in text or "raises" in text:
            continue  # It checks what was built; it does not build it.
        shown = write.statement(statement, keep=needed | defined)
        kept.insert(0, shown)
        loaded = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        again = defined if isinstance(statement, ast.AugAssign) else defined & loaded
        needed = (needed - defined) | again | write.unknown
        if sum(len(k.splitlines()) for k in kept) > MAX_SETUP or any(not showable(line) for k in kept for line in k.splitlines()):
            return None
    return tuple(kept) if not needed else None


def report(failures: Iterable[Mapping[str, Any]], limit: int = 3, *, untrue: Collection[str] = ()) -> list[str]:
    """Items of a report, those without preparation first, the shorter ones before the longer ones, no two alike.

    untrue: items that are known to be wrong (see `checkable`).
    """
    found = {s for f in failures if (s := observe(f)) is not None and s.text() not in untrue}
    ordered = sorted(found, key=lambda s: (len(s.setup), len(s.text()), s.text()))
    told = list(dict.fromkeys(s.text() for s in ordered if not s.setup))[:limit]
    return told or list(dict.fromkeys(s.text() for s in ordered))[:2]


def observations(failures: Iterable[Mapping[str, Any]], told: Iterable[str]) -> list[Observation]:
    """What the host can compare by itself (see `sandboxes/observations.py`): what a report does not tell first, then the rest.

    told: items of the report. Only expressions whose every name can be imported.
    """
    shown = frozenset(told)
    found = checkable(failures)
    return [found[text] for text in sorted(found, key=lambda text: (text in shown, text))]


def checkable(failures: Iterable[Mapping[str, Any]]) -> dict[str, Observation]:
    """Item of a report -> how to find out whether it is true, for those that promise a literal value.

    An item may be untrue: the lines of a test that a reader is shown are chosen by the names in them, and may be too few.
    """
    found: dict[str, Observation] = {}
    for failure in failures:
        symptom = observe(failure)
        if symptom is None or not symptom.value:
            continue
        imports = _imports(symptom, failure.get("homes", {}))
        if imports is not None:
            found[symptom.text()] = Observation("", symptom.expression, symptom.value, symptom.setup, imports)
    return found


def _imports(symptom: Symptom, homes: Mapping[str, str]) -> tuple[tuple[str, str], ...] | None:
    """("name", "module:name") for every name that is not made on the way; None where one has no home."""
    nodes = [n for text in (*symptom.setup, symptom.expression) for n in ast.walk(ast.parse(text))]
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)} | {
        n.arg for n in nodes if isinstance(n, ast.arg)
    }
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - made
    used = {name for name in used if name in homes or not hasattr(builtins, name)}
    if not used <= homes.keys():
        return None
    return tuple((name, f"{homes[name]}:{name}") for name in sorted(used))


def _literal(text: str) -> bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return bool(value == value)


def _asserted(test: ast.expr, failure: Mapping[str, Any], write: Writer) -> Symptom | None:
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        compared = failure.get("compared")
        if not compared:
            return None
        operator, left, right = compared
        return _sides(test.left, test.comparators[0], operator, left, right, write)
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    subject = test.operand if isinstance(test, ast.UnaryOp) and negated else test
    if isinstance(subject, ast.Call | ast.Attribute | ast.Subscript):
        shown = write(subject)
        if shown:
            return Symptom(
                shown, f"counts as {'true' if negated else 'false'}", f"it should count as {'false' if negated else 'true'}"
            )
    return None


def _unittest(call: ast.Call, failure: Mapping[str, Any], write: Writer) -> Symptom | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name not in _OPPOSITE or len(call.args) < 2:
        return None
    left, right = failure["sides"]
    return _sides(call.args[0], call.args[1], _OPPOSITE[name], left, right, write)


def _sides(left: ast.expr, right: ast.expr, operator: str, left_value: str, right_value: str, write: Writer) -> Symptom | None:
    """A comparison that should have held."""
    if not (usable(left_value) and usable(right_value)):
        return None
    calls_left, calls_right = (any(isinstance(n, ast.Call) for n in ast.walk(side)) for side in (left, right))
    if not calls_left and calls_right and operator in ("==", "is"):
        left, right, left_value, right_value, calls_left, calls_right = right, left, right_value, left_value, True, False
    shown = write(left)
    if shown is None or not calls_left:
        return None
    if operator in ("==", "is") and left_value == right_value:
        return None  # Equal to the eye: a reader learns nothing.
    if operator in ("==", "is"):
        value = right_value if operator == "==" and _literal(right_value) else ""
        return Symptom(shown, f"gives `{left_value}`", f"expected `{right_value}`", value=value)
    if operator in ("!=", "is not"):
        return Symptom(shown, f"gives `{left_value}`", f"it should be anything but `{right_value}`")
    return Symptom(shown, f"gives `{left_value}`", f"expected a value with `value {operator} {right_value}`")


def _raised(statement: ast.stmt, raised: str, message: str, context: str, write: Writer) -> Symptom | None:
    """An exception where none, or another one, was expected. Shown is the smallest part of the statement that calls something."""
    if ADDRESS.search(message) or len(message) > MAX_SHOWN:
        message = ""
    subject: ast.expr | None = None
    match statement:
        case ast.Assert(test=ast.Compare(left=left, comparators=[right])):
            subject = left if any(isinstance(n, ast.Call) for n in ast.walk(left)) else right
        case ast.Assert(test=test):
            subject = test
        case ast.Assign(value=value) | ast.Expr(value=value) | ast.AugAssign(value=value):
            subject = value
            if (
                isinstance(value, ast.Call)
                and isinstance(value.func, ast.Attribute)
                and value.func.attr in _OPPOSITE
                and value.args
            ):
                subject = value.args[0]
        case ast.For(iter=value):
            subject = value
        case _:
            return None
    shown = write(subject)
    if shown is None or not any(isinstance(n, ast.Call) for n in ast.walk(subject)):
        return None
    said = f"raises `{raised}: {message}`" if message else f"raises `{raised}`"
    wanted = re.match(r"(?:pytest\.|self\.)?(?:raises|assertRaises)\((?:\w+\.)*(\w+)", context)
    return Symptom(shown, said, f"it should raise `{wanted.group(1)}`" if wanted else "it should not raise")


def _not_raised(statement: ast.stmt, failure: Mapping[str, Any], write: Writer) -> Symptom | None:
    body = statement.body[-1] if isinstance(statement, ast.With) else statement
    value = body.value if isinstance(body, ast.Expr | ast.Assign) else None
    kind = re.search(r"DID NOT RAISE (?:any of )?(.*)", str(failure["message"]))
    names = re.findall(r"'([\w.]+)'", kind.group(1)) if kind else []
    shown = write(value) if value is not None else None
    if not shown or not names:
        return None
    wanted = " or ".join(f"`{name.rsplit('.', 1)[-1]}`" for name in names)
    return Symptom(shown, "returns without an error", f"it should raise {wanted}")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].strip() if text.strip() else ""
