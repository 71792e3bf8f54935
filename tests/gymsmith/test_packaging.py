"""What is imported is declared, and what is declared is pinned: an install from the two files brings all that the tests need."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDERS = ("platform/gymsmith", "context_mgmt", "sandboxes", "env_factory", "trainer", "tests")
PEERS = {"swerex"}
"""Installed by the benchmark that compares with them, into an environment of its own."""
GPU_ONLY = ("transformer-engine", "sglang")
"""Installed in environments of their own, never by `make`."""


def plain(name: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, list[str]]:
    """Extra ("" for the core) -> distributions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [plain(Requirement(line).name) for line in lines] for extra, lines in groups.items()}


def imported(folders: tuple[str, ...]) -> dict[str, str]:
    """Top-level module that is neither Python's nor ours -> a file that imports it."""
    out: dict[str, str] = {}
    own = {Path(folder).name for folder in FOLDERS} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.append(node.module)
                for name in names:
                    top = name.partition(".")[0]
                    if top not in sys.stdlib_module_names and top not in own:
                        out.setdefault(top, str(path.relative_to(ROOT)))
    return out


def test_what_is_imported_is_declared() -> None:
    known = {name for names in declared().values() for name in names}
    providers = metadata.packages_distributions()
    strays = {
        module: where
        for module, where in imported(FOLDERS).items()
        if not {plain(name) for name in providers.get(module, [module])} & known
    }
    # What a declared package is made of may be used beside it.
    parts = {"pip", "kombu", "billiard", "starlette", "typing_extensions", "urllib3", "requests", "click", "yarl"}
    assert {module: where for module, where in strays.items() if module not in parts | PEERS} == {}
    assert "no_such_package" not in known and "pydantic" in known


def test_what_is_declared_is_pinned_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line) for line in lines), "plain name==version lines only"
    pins = {plain(line.partition("==")[0]) for line in lines}
    assert len(pins) == len(lines), "pinned twice"
    roots = {name for names in declared().values() for name in names} - set(GPU_ONLY) | {"hatchling"}
    assert roots <= pins, f"declared and not pinned: {sorted(roots - pins)}"
    needed, wave = set(roots), list(roots)
    while wave:
        with contextlib.suppress(metadata.PackageNotFoundError):  # some are for older Pythons only
            lines = metadata.requires(wave.pop()) or []
        for name in (plain(Requirement(line).name) for line in lines):
            if name in pins and name not in needed:
                needed.add(name)
                wave.append(name)
    assert pins == needed, f"pinned and asked for by nothing: {sorted(pins - needed)}"


EXTRAS = ("torch", "numpy", "docker", "playwright", "swebench", "redis", "psycopg", "cryptography", "transformers")
BARE = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None  # as if it were not installed
from gymsmith.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "url", "code", "says"),
    [
        ("doctor", "", 0, r"not installed: no training(.|\n)*pip install 'gymsmith\[train\]'"),
        ("env list", "", 0, "0 environments"),
        ("demo --quick --no-serve", "", 2, r"training needs torch, which is not installed; pip install 'gymsmith\[train\]'"),
        ("train pretrain", "", 2, r"training needs torch, which is not installed; pip install 'gymsmith\[train\]'"),
        ("generate shell:find --kind shell", "redis://localhost/0", 2, r"redis broker that cannot be used.*gymsmith\[redis\]"),
        ("env list", "postgresql+psycopg://localhost/x", 3, r"needs the Python package psycopg; install gymsmith\[postgres\]"),
    ],
)
def test_without_any_extra_commands_work_or_name_the_extra(tmp_path: Path, words: str, url: str, code: int, says: str) -> None:
    variable = "GYMSMITH_BROKER_URL" if url.startswith("redis") else "GYMSMITH_DATABASE_URL"
    environment = {**os.environ, "GYMSMITH_HOME": str(tmp_path / "home"), variable: url, "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "platform")))
    command = [sys.executable, "-c", BARE, *words.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    said = done.stdout if code == 0 else done.stderr
    assert done.returncode == code, done.stderr
    assert re.search(says, said), said
    assert "Traceback" not in done.stderr and (code == 0 or len(done.stderr.splitlines()) == 1)
