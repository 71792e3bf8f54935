"""A package's own suite, run many times in one sandbox: healthy (`survey.py`), then with one fault after another.

What the image and the folders of all environments of a package have in common is decided here too: where the package, its tests
and what they need lie. Faults and what is made of them are the business of `mutation.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from env_factory.sources import Package
from gymsmith.errors import SandboxError
from sandboxes.base import MIB, Provider, Sandbox, SandboxSpec
from sandboxes.image.images import ImageStore
from sandboxes.observations import Observation, evaluate

WALL_PER_CPU = 8
"""As in `probe/screen.py`."""
VERIFIED_S = 600.0
MEDDLERS = 12
"""How many tests in turn may be found to do what a verifier takes for meddling."""
PYTEST = "--assert=plain --tb=line -p no:unraisableexception -p no:threadexception"
"""Options of the verifier's pytest: what explains failures to people costs 40% of a run and changes no outcome."""
SUITE = "/tests/suite"
SITE = "/opt/site"


class Screen:
    """One sandbox with the healthy package in it, where suites are run. It belongs to one package and is trusted with nothing."""

    def __init__(self, sandbox: Sandbox, package: Package) -> None:
        self.sandbox = sandbox
        self.lanes = [sandbox]
        """Where runs are made: the sandbox, and copies of it."""
        self.package = package
        self.executions = 0
        """Tests that were run, over all requests."""
        self.cpu_s = 0.0
        self.passing = 0
        """Tests of the healthy suite, once it was surveyed."""

    async def prepare(self) -> None:
        """Put the package, its tests and our program into the sandbox."""
        program = resources.files("env_factory.probe").joinpath("screen.py").read_bytes()
        await self.sandbox.put_files({f"/work/{p}": d for p, d in tree(self.package).items()}, owner="agent")
        await self.sandbox.put_files({f"{SUITE}/{p}": d for p, d in suite(self.package).items()})
        await self.sandbox.put("/opt/screen.py", program)

    async def widen(self, lanes: int) -> None:
        """Make runs in this many sandboxes at once: copies of the prepared one, which share what they do not write."""
        if lanes > len(self.lanes):
            self.lanes += await self.sandbox.fork(lanes - len(self.lanes))

    async def close(self) -> None:
        """Destroy the copies; the first sandbox belongs to whoever made it."""
        for copy in self.lanes[1:]:
            await copy.destroy()
        del self.lanes[1:]

    async def run(
        self, runs: Sequence[Mapping[str, Any]], *, touch: bool = False, lines: bool = False, hash_seed: int = 0
    ) -> list[dict[str, Any]]:
        """Answers of `probe/screen.py`, one for each run.

        hash_seed: of every run, so that a suite that goes over a set is collected in the same order again.
        """
        shares = [list(runs[n :: len(self.lanes)]) for n in range(len(self.lanes))]
        asked = [
            self._run(box, {"touch": touch, "lines": lines, "runs": share}, hash_seed)
            for box, share in zip(self.lanes, shares, strict=True)
            if share
        ]
        told = await asyncio.gather(*asked)
        answers = [told[n % len(self.lanes)][n // len(self.lanes)] for n in range(len(runs))]
        self.executions += sum(len(a["outcomes"]) for a in answers)
        return answers

    async def _run(self, box: Sandbox, request: Mapping[str, Any], hash_seed: int) -> list[dict[str, Any]]:
        where = {"rootdir": SUITE, "path": [], "code": "/work"}
        await box.put("/tmp/request.json", json.dumps({**where, **request}).encode(), owner="agent")
        result = await box.exec(
            ["python3", "/opt/screen.py", "/tmp/request.json", "/tmp/answer.json"],
            cwd="/tmp",
            user="agent",
            # Without plug-ins of other packages, as in a verifier.
            env={"PYTHONHASHSEED": str(hash_seed), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            timeout_s=60 + WALL_PER_CPU * sum(float(r["timeout_s"]) for r in request["runs"]),
        )
        self.cpu_s += result.cpu_s
        if not result.ok:
            raise SandboxError(
                f"screening ended with {result.exit_code or result.signal}: {result.output[-800:].decode(errors='replace')}"
            )
        answers: list[dict[str, Any]] = json.loads(await box.get("/tmp/answer.json", max_bytes=48 * MIB))
        return answers

    async def ask(self, program: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The answer of another program of `env_factory/probe`, run as the agent would run it."""
        await self.sandbox.put(f"/opt/{program}", resources.files("env_factory.probe").joinpath(program).read_bytes())
        await self.sandbox.put("/tmp/question.json", json.dumps(request).encode(), owner="agent")
        command = ["python3", f"/opt/{program}", "/tmp/question.json", "/tmp/reply.json"]
        result = await self.sandbox.exec(command, cwd="/tmp", user="agent", timeout_s=timeout_s)
        self.cpu_s += result.cpu_s
        if not result.ok:
            raise SandboxError(f"{program} ended with {result.exit_code or result.signal}: {result.output[-800:]!r}")
        return json.loads(await self.sandbox.get("/tmp/reply.json", max_bytes=48 * MIB))

    async def as_verified(self, tests: Sequence[str]) -> frozenset[str]:
        """Which of these tests pass when a verifier's program runs them all, as its user.

        Some look for what a verifier does not have (assertions rewritten, a home to write to). Others, or what they import, do
        what a verifier takes for meddling, such as walking the garbage collector's objects: those are found one by one.
        """
        program = resources.files("sandboxes.verifier").joinpath("pytest_runner.py").read_bytes()
        await self.sandbox.put("/tests/run.py", program)
        left = list(tests)
        for _ in range(MEDDLERS):
            told = await self._verified(left)
            meddling = next((n for n, (word, name) in enumerate(told) if word == "FAIL" and name.startswith("integrity ")), None)
            passed = {name for word, name in told if word == "PASS"}
            left = [test for test in left if test in passed]
            if meddling is None or not left:
                return frozenset(left)
            if meddling:
                left = [test for test in left if test != told[meddling - 1][1]]
                continue
            # Told before the first test: importing some file is enough.
            files = dict.fromkeys(test.split("::")[0] for test in left)
            alone = {
                name: await self._verified([t for t in left if t.split("::")[0] == name], "--collect-only") for name in files
            }
            guilty = {name for name, said in alone.items() if any(other.startswith("integrity ") for _, other in said)}
            left = [test for test in left if test.split("::")[0] not in guilty]
        return frozenset()

    async def _verified(self, tests: Sequence[str], *options: str) -> list[tuple[str, str]]:
        """(outcome, test) as the verifier's program tells them, in order."""
        await self.sandbox.put("/tests/some.txt", ("\n".join(tests) + "\n").encode())
        files = dict.fromkeys(test.split("::")[0] for test in tests)
        where = [f"--path=/work/{root}".rstrip("/") for root in self.package.roots]
        command = ["python3", "-I", "-S", "/tests/run.py", *where, "--site", SITE, "--root", SUITE, "--select", "/tests/some.txt"]
        result = await self.sandbox.exec(
            [*command, "--", *PYTEST.split(), *options, *(f"{SUITE}/{name}" for name in files)],
            user="tester",
            env={"HOME": "/tmp"},
            stdin=b"\n",
            timeout_s=VERIFIED_S,
            max_output_bytes=16 * MIB,
            split=True,
        )
        self.cpu_s += result.cpu_s
        parts = (line.partition(" ") for line in result.output.decode(errors="replace").split("\n"))
        told = [(word, name) for word, _, name in parts if word in ("PASS", "FAIL", "SKIP")]
        self.executions += len(told)
        return told

    async def holding(self, observed: Sequence[Observation], roots: Sequence[str]) -> list[bool]:
        """Whether each observation holds on the healthy package, seen as a verifier would see it."""
        if not observed:
            return []
        states = await evaluate(self.sandbox, observed, roots, [SITE], user="agent", timeout_s=60.0)
        return [state == "passed" for state in states]


@contextlib.asynccontextmanager
async def opened(package: Package, provider: Provider, images: ImageStore) -> AsyncIterator[Screen]:
    """A screen with the healthy package in it, in a sandbox of its own that no slot of a worker counts: proofs wait for those
    meanwhile. Raises: BuildError, SandboxError."""
    base = await images.build(base_dockerfile(package), base_context(package), wheelhouse=package.wheels)
    spec = SandboxSpec(image=base.id, user="agent", memory_bytes=1024 * MIB, disk_bytes=512 * MIB, pids=256)
    sandbox = await provider.create(spec)
    screen = Screen(sandbox, package)
    try:
        await screen.prepare()
        yield screen
    finally:
        await screen.close()
        await sandbox.destroy()


def tree(package: Package) -> dict[str, bytes]:
    """What the agent gets in /work: the package without its tests and without what only its makers need."""
    tops = {path.split("/")[0] for path in package.code if "/" in path}
    kept: dict[str, bytes] = {}
    for path, data in package.files.items():
        parts = path.split("/")
        hidden = any(part.startswith(".") or part in ("__pycache__",) or part.endswith((".egg-info", ".pyc")) for part in parts)
        if hidden or package.is_test(path) or len(data) > 2 * MIB or PurePosixPath(path).name in ("conftest.py", "PKG-INFO"):
            continue
        if len(parts) == 1 or parts[0] in tops:
            kept[path] = data
    return kept


def suite(package: Package) -> dict[str, bytes]:
    """The hidden tests with everything that lies beside them, and the conftest.py files above them.

    A folder of tests inside a package stops being a package unless its tests import one another relatively: two such folders
    would otherwise both be called `tests`.
    """
    files = {p: d for p, d in package.files.items() if package.is_test(p) or PurePosixPath(p).name == "conftest.py"}
    for test in package.tests:
        inside = [p for p in files if p.startswith(test + "/") and p.endswith(".py")]
        nested = f"{PurePosixPath(test).parent}/__init__.py" in package.files
        if nested and not any(re.search(rb"^\s*from \.", files[p], re.M) for p in inside):
            for p in inside:
                if PurePosixPath(p).name == "__init__.py":
                    del files[p]
    return files


def base_dockerfile(package: Package) -> str:
    """The part that all environments of a package share: Python, pytest and what the package needs, without the package."""
    pip = next(p.name for p in package.wheels.iterdir() if p.name.startswith("pip-"))
    pins = " ".join(p for p in package.pins if not p.startswith("pip=="))
    where = " ".join(f"/work/{root}".rstrip("/") for root in package.roots)
    return (
        "FROM gymsmith/host\n"
        f"COPY site {SITE}\n"
        f"RUN python3 /wheelhouse/{pip}/pip install --quiet --no-index --find-links /wheelhouse --no-cache-dir "
        f"--disable-pip-version-check --root-user-action ignore --upgrade --target {SITE} {pins}\n"
        f"ENV PYTHONPATH={where.replace(' ', ':')}:{SITE} PYTHONDONTWRITEBYTECODE=1\n"
        "WORKDIR /work\n"
    )


def base_context(package: Package) -> dict[str, bytes]:
    """Build context of `base_dockerfile`: the package's metadata, so that it counts as installed."""
    name = package.name.replace("-", "_")
    return {f"site/{name}-{package.version}.dist-info/METADATA": package.metadata}
