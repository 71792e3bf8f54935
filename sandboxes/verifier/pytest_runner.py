"""Runs pytest so that the code under test cannot write the report. Copied into tests/ as `run.py`; needs no other file of ours.

    exec /usr/bin/python3 -I -S /tests/run.py --path /work/src --site '/opt/venv/lib/python3*/site-packages' -- /tests/suite

Two processes. The parent reads a secret from its standard input, makes itself unreadable (PR_SET_DUMPABLE), and prints, after
everything is over, one line per test: SECRET OUTCOME ID. The child runs pytest; its output goes elsewhere, its standard input is
empty, and a plugin sends one record per finished test through a pipe. A line that the code under test prints is no report.

What this defeats: printed results, `os._exit` and `sys.exit` (missing tests), skip and xfail (reported as such), configuration
files, `.pth`, `sitecustomize`, PYTHONPATH and plug-in entry points of the workload (`-I -S`, explicit paths, no configuration, no
autoloading, standard library before the workload's paths), modules that shadow pytest. Two canaries that must fail, under random
names, stand first and last: code that turns every result into a pass turns theirs too, and then nothing counts. Before the
workload is imported the functions, classes and import hooks of the built-ins, of unittest and of pytest are written down; after
collection and after every test they must be the same (`Seal`). Tracing, profiling, walking the garbage collector's objects and
exchanging the code of a function are noticed as they happen, when code under test is on the stack (an audit hook, which cannot
be taken off).

What it cannot defeat: code under test shares an interpreter with its tests, and this stays open: objects that equal everything
without any patch; reading the test's own frames; calling this plug-in's own functions, found through frames, with what it would
say. Where results must hold against that, the task brings observations (`sandboxes/observations.py`), which the host compares.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import operator
import os
import select
import signal
import sys
import types
from collections.abc import Mapping

PR_SET_DUMPABLE = 4
KEPT_BYTES = 16384
MAX_RECORD_BYTES = 8 * 1024 * 1024


def main() -> int:
    options = arguments()
    report_in, report_out = os.pipe()
    output_in, output_out = os.pipe()
    go_in, go_out = os.pipe()
    canaries = [f"canary-{os.urandom(8).hex()}" for _ in range(2)]
    child = os.fork()
    if child == 0:
        for handle in (report_in, output_in, go_out):
            os.close(handle)
        become_child(go_in, output_out)
        run_tests(options, canaries, report_out)
    for handle in (report_out, output_out, go_in):
        os.close(handle)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_DUMPABLE) failed with errno {ctypes.get_errno()}: the secret could be read, so no test is run")
    secret = sys.stdin.readline().strip()
    os.write(go_out, b"!")
    os.close(go_out)
    records, output = listen(child, report_in, output_in)
    return publish(options, secret, canaries, records, output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py")
    parser.add_argument("--path", action="append", default=[], help="directory of the code under test, put on sys.path")
    parser.add_argument("--site", action="append", default=[], help="site-packages with pytest; a glob pattern")
    parser.add_argument(
        "--root", default=os.path.dirname(os.path.abspath(__file__)), help="test ids are relative to this directory"
    )
    parser.add_argument("--ini", default="/dev/null", help="a configuration file of the host's, below /tests")
    parser.add_argument("--select", help="file with one test id per line; other tests are not run")
    parser.add_argument("--plugin", action="append", default=[], help="module name of a pytest plug-in the tests need")
    parser.add_argument("--reward", default="/logs/verifier/reward.txt", help="Harbor's reward file; ours is the printed report")
    parser.add_argument("rest", nargs="*", help="arguments of pytest: files, directories, options after --")
    return parser.parse_args()


def become_child(go: int, output: int) -> None:
    """Own session, empty standard input, output into the pipe; wait until the parent holds the secret safely."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for handle in (nothing, output):
        os.close(handle)
    if os.read(go, 1) != b"!":
        os._exit(3)
    os.close(go)


def run_tests(options: argparse.Namespace, canaries: list[str], report: int) -> None:
    """Never returns. Whatever happens in here, only records in the pipe count."""
    standard = [entry for entry in sys.path if entry]
    site = [match for pattern in options.site for match in sorted(glob.glob(pattern)) or [pattern]]
    sys.dont_write_bytecode = True
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "PYTHON"))]:
        del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:] = [*standard, *site]
    import pytest  # before the workload's paths are on sys.path

    roots = tuple(os.path.realpath(entry) + "/" for entry in [*standard, *site, options.root, os.path.dirname(options.root)])
    sys.path[:] = [*standard, *options.path, *site]
    os.environ["PYTHONPATH"] = os.pathsep.join([*options.path, *site])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    selected = None
    if options.select:
        with open(options.select, encoding="utf-8") as file:
            selected = frozenset(line.rstrip("\n") for line in file if line.strip())
    given = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        options.ini,
        "--rootdir",
        options.root,
        "--confcutdir",
        options.root,
        "--color=no",
    ]
    for name in options.plugin:
        given += ["-p", name]
    code = pytest.main([*given, *options.rest], plugins=[reporter(pytest, report, canaries, selected, roots)])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


MEDDLING = {"sys.settrace", "sys.setprofile", "gc.get_objects", "gc.get_referrers", "gc.get_referents"}
SEALED = ("builtins", "operator", "unittest", "pytest", "_pytest", "pluggy", "iniconfig")
"""Modules, with those below them, that nothing under test has a reason to change."""


def watch(roots: tuple[str, ...]) -> list[str]:
    """Names of the events of MEDDLING that happen with code from elsewhere than `roots` on the stack, added as they happen."""
    noticed: list[str] = []
    frame_of, meddling = sys._getframe, MEDDLING

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event not in meddling and not (event == "object.__setattr__" and args[1] == "__code__"):
            return
        frame = frame_of(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith(roots) and not name.startswith("<frozen "):
                noticed.append(event)
                return
            frame = frame.f_back  # type: ignore[assignment]

    sys.addaudithook(hook)
    return noticed


class Seal:
    """What the sealed modules hold now: every function and class by identity, and the code of every function."""

    def __init__(self) -> None:
        self.names: list[tuple[Mapping[str, object], str, object]] = []
        self.code: list[tuple[types.FunctionType, object, object, object]] = []
        self.classes: list[tuple[type, frozenset[str]]] = []
        self.modules = [(n, m) for n, m in list(sys.modules.items()) if n.split(".")[0] in SEALED and m is not None]
        self.finders = list(sys.meta_path)
        kinds = (types.FunctionType, types.BuiltinFunctionType, type)
        for name, module in self.modules:
            for key, value in list(vars(module).items()):
                if isinstance(value, kinds):
                    self.names.append((vars(module), key, value))
                    self._inside(value, name)

    def _inside(self, value: object, module: str) -> None:
        if isinstance(value, types.FunctionType):
            self.code.append((value, value.__code__, value.__defaults__, value.__kwdefaults__))
        elif isinstance(value, type) and value.__module__ == module and module != "builtins":
            members = vars(value)
            self.classes.append((value, frozenset(members)))
            for key, member in list(members.items()):
                member = getattr(member, "__func__", getattr(member, "fget", member))
                if callable(member):
                    self.names.append((members, key, members[key]))
                if isinstance(member, types.FunctionType):
                    self.code.append((member, member.__code__, member.__defaults__, member.__kwdefaults__))

    def broken(self) -> str:
        """What differs, or an empty string."""
        # By identity throughout: what was put in place of something may claim to be equal to it.
        values = [space.get(key) for space, key, _ in self.names]
        if not all(map(operator.is_, values, [value for _, _, value in self.names])):
            return next(f"{key} was exchanged" for (_, key, value), new in zip(self.names, values) if value is not new)  # noqa: B905
        for function, code, defaults, keywords in self.code:
            if function.__code__ is not code or function.__defaults__ is not defaults or function.__kwdefaults__ is not keywords:
                return f"the code of {function.__qualname__} was exchanged"
        for kind, members in self.classes:
            now = vars(kind)
            if len(now) != len(members):
                for key in now.keys() - members:
                    if callable(now[key]):
                        return f"{kind.__qualname__}.{key} was added"
        for name, module in self.modules:
            if sys.modules.get(name) is not module:
                return f"module {name} was exchanged"
        if [finder for finder in sys.meta_path if finder in self.finders] != self.finders:
            return "an import hook was taken away or moved"
        if self.finders and sys.meta_path[0] is not self.finders[0]:
            return "an import hook was put first"
        return ""


def reporter(  # type: ignore[no-untyped-def]
    pytest, report: int, canaries: list[str], selected: frozenset[str] | None, roots: tuple[str, ...]
):
    """The plug-in that sends records: ["PASS" | "FAIL" | "SKIP", id], and ["END", ""] at the end of the session."""
    import unittest

    write, encode = os.write, json.dumps
    worst: dict[str, str] = {}
    noticed = watch(roots)
    seals: list[Seal] = []

    def send(outcome: str, name: str) -> None:
        data = (encode([outcome, name]) + "\n").encode()
        while data:
            data = data[write(report, data) :]

    def inspect() -> None:
        reason = seals[0].broken() or (f"{noticed[0]} was called" if noticed else "")
        if reason:
            send("FAIL", f"integrity {reason}")
            seals.clear()
            seals.append(Seal())
            noticed.clear()

    def plainly() -> None:
        assert [1] == [2]

    def raising() -> None:
        with pytest.raises(KeyError):
            pass

    checks = (plainly, raising, lambda: unittest.TestCase().assertEqual(1, 2), lambda: pytest.fail("must fail"))

    class Canary(pytest.Item):
        def runtest(self) -> None:
            """Fails when every way of failing works; else it passes, which gives the meddler away."""
            bites = 0
            for check in checks:
                try:
                    check()
                except BaseException:
                    bites += 1
            if bites == len(checks):
                raise AssertionError("must fail")

        def repr_failure(self, excinfo, style=None) -> str:  # type: ignore[no-untyped-def]
            return "expected"

    class Reporter:
        @pytest.hookimpl(trylast=True)
        def pytest_sessionstart(self) -> None:
            seals.append(Seal())

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, session, config, items) -> None:  # type: ignore[no-untyped-def]
            if selected is not None:
                items[:] = [item for item in items if item.nodeid in selected]
            first, last = (Canary.from_parent(session, name=name, nodeid=name) for name in canaries)
            items[:] = [first, *items, last]
            inspect()

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
            outcome = "PASS"
            if report.failed:
                outcome = "FAIL"
            elif report.skipped or hasattr(report, "wasxfail"):
                outcome = "SKIP"
            before = worst.get(report.nodeid, "PASS")
            worst[report.nodeid] = before if before != "PASS" else outcome
            if report.when == "teardown":
                send(worst.pop(report.nodeid), report.nodeid)
                inspect()

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish(self) -> None:
            inspect()
            send("END", "")

    return Reporter()


def listen(child: int, report: int, output: int) -> tuple[list[tuple[str, str]], bytes]:
    """Records until the session ends or the child is gone, and the tail of what it printed. Kills the child's session."""
    raw, kept = bytearray(), bytearray()
    ended = False
    while True:
        if not ended:
            ended = os.waitpid(child, os.WNOHANG)[0] == child
        ready, _, _ = select.select([report, output], [], [], 0.0 if ended else 0.02)
        idle = True
        for handle in ready:
            data = os.read(handle, 65536)
            idle = idle and not data
            if handle == report:
                raw += data
            else:
                kept = (kept + data)[-KEPT_BYTES:]
        if len(raw) > MAX_RECORD_BYTES or (ended and idle):
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    records: list[tuple[str, str]] = []
    for line in bytes(raw).split(b"\n")[:-1]:
        try:
            outcome, name = json.loads(line)
        except ValueError:
            return [("FAIL", "a record that no plug-in of ours wrote")], bytes(kept)
        records.append((str(outcome), str(name)))
        if outcome == "END":
            break
    return records, bytes(kept)


def publish(options: argparse.Namespace, secret: str, canaries: list[str], records: list[tuple[str, str]], output: bytes) -> int:
    """Print the report and write Harbor's reward file; returns the exit status."""
    seen = {name: [outcome for outcome, other in records if other == name] for name in canaries}
    complete = bool(records) and records[-1][0] == "END"
    honest = all(outcomes == ["FAIL"] for outcomes in seen.values())
    tests = [(outcome, name) for outcome, name in records if name not in seen and outcome != "END"]
    prefix = f"{secret} " if secret else ""
    if complete and not honest:
        tests = [("FAIL", "canary: a test that must fail was reported otherwise")]
    lines = [f"{prefix}{outcome} {name}".replace("\r", "\\r").replace("\n", "\\n") for outcome, name in tests]
    sys.stderr.write(output.decode(errors="replace"))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    wanted = set()
    if options.select:
        with open(options.select, encoding="utf-8") as file:
            wanted = {line.rstrip("\n") for line in file if line.strip()}
    good = (
        complete and honest and bool(tests) and all(outcome == "PASS" for outcome, _ in tests) and wanted <= {n for _, n in tests}
    )
    with contextlib.suppress(OSError), open(options.reward, "w", encoding="utf-8") as file:
        file.write("1\n" if good else "0\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
