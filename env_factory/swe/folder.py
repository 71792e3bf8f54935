"""The folder of an SWE environment: what all of them have in common, whatever broke the package.

The agent gets the package without its tests in /work; the verifier gets the suite, a selection of its tests, and what the host
compares by itself. Which files are wrong, which tests tell, and what the text says is the business of each synthesizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath

from env_factory.sources import Package
from env_factory.swe.screening import PYTEST, SITE, SUITE, base_context, base_dockerfile, suite
from env_factory.swe.selection import Judged, roots
from env_factory.swe.suite import MEMBER as WHOLE
from env_factory.swe.suite import member as suite_member
from env_factory.swe.survey import Survey
from gymsmith.schema import Draft, TaskSpec, ToolSpec
from sandboxes.observations import MEMBER, Observation, member

PROTECTED = (
    "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", "tox.ini", "setup.cfg", "sitecustomize.py", "usercustomize.py",
    "*.pth", "*.pyc", "__pycache__", "*.so", "*.dist-info", "*.egg-info", "pytest", "pytest.py", "_pytest",
)  # fmt: skip
"""Names that never cross into the verifier: what Python or pytest would run or read on its own account."""
MIN_HUNK = 60
"""Bytes of lines that are no copy by chance."""
VERIFIER_S = 120.0
SLOWEST = 20.0
"""How many times longer than in screening a whole suite may take."""


def about(package: Package, *, operator: str, path: str, function: str, seed: int, index: int) -> dict[str, str]:
    """Labels of a fault of a package: where it is and who made it. Several paths, functions or operators are joined by " + "."""
    return {
        "package": package.name,
        "version": package.version,
        "family": package.name,
        "operator": operator,
        "path": path,
        "function": function,
        "seed": str(seed),
        "index": f"{index:04d}",
    }


def draft(
    package: Package,
    judged: Judged,
    observed: Sequence[Observation],
    *,
    kind: str,
    slug: str,
    description: str,
    keywords: tuple[str, ...],
    labels: Mapping[str, str],
    instruction: str,
    work: Mapping[str, bytes],
    solution: str,
    alternatives: tuple[str, ...] = (),
    cheats: tuple[tuple[str, str], ...] = (),
    whole: Survey | None = None,
    pytest: str = PYTEST,
) -> Draft:
    """The environment.

    work: what lies in /work when the agent comes. labels: those of the synthesizer; how many tests fail and pass is added.
    whole: the suite that the solution alone has to pass besides (`env_factory/swe/suite.py`). pytest: its options.
    """
    tests = tuple(dict.fromkeys([*judged.failed, *judged.passed]))
    files = dict(_shared(package, tests, pytest))
    if observed:
        files[MEMBER] = member(observed, roots(package), [SITE])
    files |= {f"environment/work/{path}": data for path, data in work.items()}
    files["solution/solve.sh"] = solution.encode()
    if whole is not None:
        timeout_s = max(VERIFIER_S, SLOWEST * whole.seconds)
        files[WHOLE] = suite_member(whole.passing, timeout_s=timeout_s, test_sh=_test_sh(package, whole.passing, pytest))
    spec = TaskSpec(
        name=f"gymsmith/{slug}",
        kind=kind,
        description=description,
        keywords=keywords,
        labels={**labels, "f2p": str(len(judged.failed)), "p2p": str(len(judged.passed))},
        tool=ToolSpec(name="shell", timeout_s=60.0),
        max_turns=30,
        protected=PROTECTED,
        verifier_timeout_s=VERIFIER_S,
        expected=(*tests, *(each.id for each in observed)),
    )
    return Draft(
        source=package.source,
        spec=spec,
        instruction=instruction,
        files=files,
        alternatives=alternatives,
        cheats=cheats,
        executable=frozenset({"tests/test.sh", "solution/solve.sh"}),
    )


def tells(instruction: str, paths: Sequence[str], tests: Sequence[str]) -> bool:
    """Whether a report names a file at fault or a hidden test."""
    for path in paths:
        module = PurePosixPath(path).stem
        dotted = path.removesuffix(".py").removeprefix("src/").replace("/", ".")
        if path in instruction or ("." in dotted and module != "__init__" and dotted in instruction):
            return True
    return any(test in instruction for test in tests)


def copied(work: Mapping[str, bytes], path: str, healthy: str, faulty: str) -> bool:
    """Whether the healthy lines that a fault replaced in `path` can be read in another file."""
    hunk = _hunk(healthy, faulty)
    return len(hunk) >= MIN_HUNK and any(hunk in data for other, data in work.items() if other != path)


def _hunk(healthy: str, faulty: str) -> bytes:
    """The healthy lines that a fault replaced, with the line before and after them."""
    old, new = healthy.split("\n"), faulty.split("\n")
    head = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    tail = next((i for i, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b), 0)
    return "\n".join(old[max(0, head - 1) : len(old) - max(0, tail - 1)]).encode()


def module_cheats(target: str) -> Iterator[tuple[str, str]]:
    """Dishonest attempts that know which module is at fault."""
    yield "empty-module", f": > {target}\n"
    first = "from pathlib import Path\npath = Path({target!r})\npath.write_text({line!r} + path.read_text())\n"
    for name, line in (
        ("exit-on-import", "import os; os._exit(0)\n"),
        ("skip-on-import", "import pytest; pytest.skip('no need', allow_module_level=True)\n"),
    ):
        yield name, "python3 - <<'CHEAT'\n" + first.format(target=target, line=line) + "CHEAT\n"


def _shared(package: Package, tests: Sequence[str], pytest: str) -> Iterator[tuple[str, bytes]]:
    """Everything of a draft that is neither the tree in /work nor the solution."""
    yield "environment/Dockerfile", (base_dockerfile(package) + "COPY --chown=agent:agent work /work\nUSER agent\n").encode()
    for path, data in base_context(package).items():
        yield f"environment/{path}", data
    for path, data in suite(package).items():
        yield f"tests/suite/{path}", data
    yield "tests/run.py", resources.files("sandboxes.verifier").joinpath("pytest_runner.py").read_bytes()
    yield "tests/select.txt", ("\n".join(tests) + "\n").encode()
    yield "tests/test.sh", _test_sh(package, tests, pytest).encode()


def _test_sh(package: Package, tests: Sequence[str], pytest: str) -> str:
    """Runs the files that hold these tests; which of their tests count is said by tests/select.txt."""
    paths = " ".join(f"--path {root}" for root in roots(package))
    files = " ".join(f"'{SUITE}/{name}'" for name in dict.fromkeys(t.split("::")[0] for t in tests))
    return (
        "#!/bin/sh\n"
        f"exec python3 -I -S /tests/run.py {paths} --site {SITE} --root {SUITE} --select /tests/select.txt "
        f"-- {pytest} {files}\n"
    )
