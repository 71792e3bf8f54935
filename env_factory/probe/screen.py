"""Runs a package's suite many times in one sandbox: pytest is imported once, every run is a fork of that process.

Called as `python -I screen.py REQUEST.json ANSWER.json`; needs pytest and the standard library only. A request says

    {"rootdir": "/tests/suite", "path": ["/work/src"], "code": "/work", "touch": true, "lines": true, "runs": [RUN, ...]}
    RUN = {"args": [files, folders or node ids], "write": {path: text or null}, "timeout_s": 10.0, "observe": true}

and the answer holds, for every run, {"outcomes": {node id: "passed" | "failed" | "skipped"}, "order": [...], "seconds": ..,
"cpu_s": .., "failures": {node id: FAILURE}, "touch": {node id: [[file, line], ...]}, "imported": [[file, line], ...], "lines":
{file: {line: hexadecimal number whose bit n is set where test n of "order" executes that line}}, "error": ""}.
A file that a run writes is put back afterwards. What a failure looked like is told as text (source of the statement in the
test, values of its names, both sides of a comparison) and judged elsewhere. Screening only proposes: the gates prove.
It is one file because it is put into a sandbox alone.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import gc
import io
import json
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from types import CodeType, FrameType, TracebackType
from typing import Any

import pytest

MAX_FAILURES = 12
MAX_TEXT = 600
WALL_PER_CPU = 8
"""How much longer than its CPU time a run may take."""
MAX_MEMORY_BYTES = 768 * 1024 * 1024
MAX_BEFORE = 12


class Observer:
    """A pytest plugin: outcome per test, what a failure looked like, and which functions each test entered."""

    def __init__(self, code: str, suite: str, observe: bool, touch: bool, lines: bool = False) -> None:
        self.code, self.suite, self.observe, self.touch, self.by_line = code, suite, observe, touch, lines
        self.outcomes: dict[str, str] = {}
        self.order: list[str] = []
        self.failures: dict[str, dict[str, Any]] = {}
        self.touched: dict[str, list[tuple[str, int]]] = {}
        self.imported: list[tuple[str, int]] = []
        self.entered: set[CodeType] = set()
        self.compared: tuple[str, str, str] | None = None
        self.seen: set[tuple[CodeType, int]] = set()
        self.lines: dict[tuple[str, int], int] = {}

    def watch(self) -> None:
        if self.by_line:
            threading.settrace(self._follow)
            sys.settrace(self._follow)
        elif self.touch:
            threading.setprofile(self._enter)
            sys.setprofile(self._enter)

    def unwatch(self) -> list[tuple[str, int]]:
        if self.by_line:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        elif not self.touch:
            return []
        else:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
        found = sorted({(c.co_filename, c.co_firstlineno) for c in self.entered if c.co_filename.startswith(self.code)})
        self.entered.clear()
        return found

    def _enter(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.entered.add(frame.f_code)

    def _follow(self, frame: FrameType, event: str, _: Any) -> Any:
        """Trace functions of the code under test by line, and nothing below others."""
        code, seen = frame.f_code, self.seen
        if not code.co_filename.startswith(self.code):
            return None
        self.entered.add(code)

        def line(frame: FrameType, event: str, _: Any) -> Any:
            seen.add((code, frame.f_lineno))
            return line

        return line

    def _mark(self, test: int) -> None:
        """Remember what test number `test` executed."""
        for code, line in self.seen:
            key = (code.co_filename, line)
            self.lines[key] = self.lines.get(key, 0) | 1 << test
        self.seen.clear()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.imported = self.unwatch()
        self.seen.clear()
        self.order = [item.nodeid for item in session.items]
        self.number = {nodeid: n for n, nodeid in enumerate(self.order)}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.compared = None
        self.watch()
        yield
        if self.touch:
            self.touched[item.nodeid] = self.unwatch()
            self._mark(self.number[item.nodeid])

    def pytest_assertrepr_compare(self, op: str, left: object, right: object) -> None:
        self.compared = (op, _text(left), _text(right))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        result = yield
        report = result.get_result()
        known = self.outcomes.get(item.nodeid)
        if report.failed or (hasattr(report, "wasxfail") and not report.skipped):
            self.outcomes[item.nodeid] = "failed"
        elif report.skipped:
            self.outcomes[item.nodeid] = known if known == "failed" else "skipped"
        elif report.when == "call":
            self.outcomes.setdefault(item.nodeid, "passed")
        if self.observe and report.failed and call.excinfo is not None and len(self.failures) < MAX_FAILURES:
            self.failures.setdefault(item.nodeid, self._describe(call.excinfo.value))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"

    def _public(self, name: str, value: object) -> str:
        """The name under which a reader of a report can import `value`; empty when there is none."""
        for known in (name, getattr(value, "__name__", None)):
            if not isinstance(known, str):
                continue
            for module in list(sys.modules.values()):
                where = getattr(module, "__file__", None) or ""
                ours = where.startswith(self.code) or getattr(module, "__name__", "") in sys.stdlib_module_names
                if ours and getattr(module, "__dict__", {}).get(known, self) is value:
                    return known
        return ""

    def _home(self, name: str, value: object) -> str:
        """The module of the code under test, or of the standard library, that has `value` under this name."""
        found = [
            module.__name__
            for module in list(sys.modules.values())
            if getattr(module, "__dict__", {}).get(name, self) is value and self._importable(module)
        ]
        return min(found, key=lambda each: (each.count("."), each), default="")

    def _importable(self, module: object) -> bool:
        where = getattr(module, "__file__", None) or ""
        return where.startswith(self.code) or getattr(module, "__name__", "") in sys.stdlib_module_names

    def _attributes(self, source: str, before: Any, aliases: list[str], scope: dict[str, Any]) -> dict[str, str]:
        """What is reached through modules in these statements: attribute -> module."""
        found: dict[str, str] = {}
        for node in (n for text in [source, *before] for n in ast.walk(ast.parse(text))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                module = scope[node.value.id]
                if self._importable(module) and hasattr(module, node.attr):
                    found[node.attr] = module.__name__
        return found

    def _describe(self, error: BaseException) -> dict[str, Any]:
        frames: list[tuple[FrameType, int]] = []
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            frames.append((trace.tb_frame, trace.tb_lineno))
            trace = trace.tb_next
        told: dict[str, Any] = {
            "type": type(error).__name__,
            "message": str(error)[:MAX_TEXT],
            "inside": frames[-1][0].f_code.co_filename.startswith(self.code) if frames else False,
            "compared": self.compared if isinstance(error, AssertionError) else None,
        }
        mine = [index for index, (frame, _) in enumerate(frames) if frame.f_code.co_filename.startswith(self.suite)]
        if not mine:
            return told
        frame, line = frames[mine[-1]]
        told |= _statement(frame.f_code.co_filename, line, frame.f_code.co_firstlineno)
        texts = [told.get("source", ""), *told.get("before", ())]
        names = {n.id for text in texts for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        scope = {**frame.f_globals, **frame.f_locals}
        told["values"] = {
            n: _text(scope[n]) for n in sorted(names) if n in scope and _plain(scope[n]) and len(repr(scope[n])) <= MAX_TEXT
        }
        told["modules"] = sorted(n for n in names if type(scope.get(n)).__name__ == "module")
        told["public"] = {n: real for n in sorted(names) if n in scope and (real := self._public(n, scope[n]))}
        told["homes"] = {real: home for n, real in told["public"].items() if (home := self._home(real, scope[n]))}
        told["homes"] |= self._attributes(told.get("source", ""), told.get("before", ()), told["modules"], scope)
        told["builtin"] = sorted(n for n in names if n not in scope and hasattr(builtins, n))
        # unittest raises from a helper of its own, whose arguments are the two sides.
        for deeper, _ in frames[mine[-1] + 1 :]:
            if "first" in deeper.f_locals and "second" in deeper.f_locals:
                told["sides"] = [_text(deeper.f_locals["first"]), _text(deeper.f_locals["second"])]
                break
        return told


def _plain(value: object, depth: int = 0) -> bool:
    """Whether repr(value) is an expression that gives the value back."""
    if value is None or type(value) in (bool, int, float, str, bytes, complex):
        return True
    if depth < 3 and type(value) in (list, tuple, set, frozenset, dict) and len(value) <= 40:  # type: ignore[arg-type]
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
        return all(_plain(v, depth + 1) for v in inner)
    return False


def _text(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # A broken repr is one more thing that a fault can cause.
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= MAX_TEXT else f"<{type(value).__name__} of {len(text)} characters>"


def _statement(filename: str, line: int, first_line: int) -> dict[str, Any]:
    """Around a line of a test: the innermost statement (`source`), the statements of the function that stand before it
    (`before`), and the head of the `with` around it (`context`)."""
    try:
        with open(filename, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}

    def holds(node: ast.AST) -> bool:
        return isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)

    function = next(
        (
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef)
            and min([n.lineno, *(d.lineno for d in n.decorator_list)]) == first_line
            and holds(n)
        ),
        None,
    )
    if function is None:
        return {}
    told: dict[str, Any] = {"before": []}
    here: ast.stmt = function
    while True:
        blocks = [b for field in ("body", "orelse", "finalbody") if isinstance(b := getattr(here, field, None), list)]
        found = next(((b, n) for b in blocks for n in b if holds(n)), None)
        if found is None:
            break
        block, here = found
        told["before"] += [ast.unparse(n) for n in block[: block.index(here)]]
        if isinstance(here, ast.With):
            told["context"] = ast.unparse(here.items[0].context_expr)
    told["before"] = told["before"][-MAX_BEFORE:]
    told["source"] = ast.unparse(here)
    return told


def run_child(request: dict[str, Any], run: dict[str, Any], out: int) -> None:
    """One run in a forked process; the answer goes into the pipe `out`."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdout = sys.stderr = io.StringIO()
    os.chdir(request["rootdir"])
    sys.path[:0] = request["path"]
    touch, lines = request.get("touch", False), request.get("lines", False)
    observer = Observer(request["code"], request["rootdir"], run.get("observe", False), touch or lines, lines)
    error = ""
    started, cpu = time.perf_counter(), time.process_time()
    try:
        observer.watch()
        status = pytest.main(options(request["rootdir"], run["args"]), plugins=[observer])
        if int(status) not in (0, 1):
            error = f"pytest exit status {int(status)}: {sys.stdout.getvalue()[-1500:]}"
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    finally:
        observer.unwatch()
    answer = {
        "outcomes": observer.outcomes,
        "order": observer.order,
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "failures": observer.failures,
        "touch": observer.touched,
        "imported": observer.imported,
        "lines": by_file(observer.lines),
        "error": error,
    }
    with os.fdopen(out, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())


def by_file(lines: dict[tuple[str, int], int]) -> dict[str, dict[int, str]]:
    """Bit sets by file and line, as an answer tells them."""
    told: dict[str, dict[int, str]] = {}
    for (name, line), tests in lines.items():
        told.setdefault(name, {})[line] = f"{tests:x}"
    return told


def options(rootdir: str, args: list[str]) -> list[str]:
    """pytest's command line: no configuration of the package, no cache, no plugins from elsewhere."""
    return [
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        rootdir,
        "-p",
        "no:cacheprovider",
        "--tb=native",
        "--continue-on-collection-errors",
        *args,
    ]


def run(request: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Fork one run and wait for it, at most timeout_s of CPU time; then no process of it is left."""
    kept: dict[str, str | None] = {}
    for path, text in run.get("write", {}).items():
        kept[path] = read(path)
        write(path, text)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.setsid()
            # A fault that eats memory is a failing test, not the end of the sandbox.
            resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # A hang is told by CPU time, which a busy machine does not change; wall time only catches what sleeps.
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(run["timeout_s"]), math.ceil(run["timeout_s"]) + 1))
            run_child(request, run, write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    chunks: list[bytes] = []
    deadline = time.monotonic() + WALL_PER_CPU * run["timeout_s"]
    timed_out = False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read_end], [], [], left)[0]:
            timed_out = True
            break
        chunk = os.read(read_end, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(read_end)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        timed_out = True
    for path, text in kept.items():
        write(path, text)
    if timed_out or not chunks:
        return {
            "outcomes": {},
            "order": [],
            "failures": {},
            "seconds": run["timeout_s"],
            "error": "hang" if timed_out else "died",
        }
    answer: dict[str, Any] = json.loads(b"".join(chunks))
    return answer


_writes = 0


def read(path: str) -> str | None:
    """The text of a source file; None where there is none."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: str, text: str | None) -> None:
    """Write a source file with a modification time that no earlier version had: caches are keyed by its whole seconds.

    None removes it.
    """
    global _writes
    _writes += 1
    if text is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.utime(path, (1_000_000_000 + _writes, 1_000_000_000 + _writes))


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    sys.pycache_prefix = "/tmp/pycache"
    # A throw-away session loads every module of pytest that the forks will need.
    os.makedirs("/tmp/empty", exist_ok=True)
    stdout, sys.stdout = sys.stdout, io.StringIO()
    pytest.main(options("/tmp/empty", ["/tmp/empty"]))
    sys.stdout = stdout
    gc.freeze()
    answers = [run(request, each) for each in request["runs"]]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
