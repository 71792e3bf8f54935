"""The house keeps its walls: no shadowed standard library, imports only run down, nothing heavy behind the light doors."""

from __future__ import annotations

import ast
import importlib.util
import platform
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR = {"gymsmith": 1, "context_mgmt": 2, "sandboxes": 3, "trainer": 3, "env_factory": 4}
HOME = {room: ROOT / "platform" / room if room == "gymsmith" else ROOT / room for room in FLOOR}
LIGHT_DOORS = ["gymsmith.api", "gymsmith.cli", "gymsmith.jobs", "sandboxes.tasks", "env_factory.tasks", "trainer.tasks"]
HEAVY = {"torch", "docker", "playwright", "sglang", "swebench", "transformers", "datasets"}


def imported_rooms(path: Path) -> set[str]:
    """Names of rooms that a file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.split(".")[0] for name in names} & set(FLOOR)


def uphill(room: str, path: Path) -> set[str]:
    """Rooms that `path`, a file of `room`, imports against the rule."""
    return {other for other in imported_rooms(path) if other != room and FLOOR[other] >= FLOOR[room]}


def test_platform_is_the_standard_library() -> None:
    assert not (ROOT / "platform/__init__.py").exists(), "platform/ is a source root; an __init__.py would hide the stdlib module"
    assert platform.system() == "Linux"


def test_no_file_shadows_the_standard_library() -> None:
    allowed = {"__init__", "__main__"}
    shadows = [p for home in HOME.values() for p in home.rglob("*.py") if p.stem in sys.stdlib_module_names - allowed]
    assert shadows == []


@pytest.mark.parametrize("room", FLOOR)
def test_each_room_is_ours(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec and spec.origin and Path(spec.origin).is_relative_to(ROOT)


@pytest.mark.parametrize("room", FLOOR)
def test_imports_run_down(room: str) -> None:
    wrong = {str(p.relative_to(ROOT)): up for p in HOME[room].rglob("*.py") if (up := uphill(room, p))}
    assert wrong == {}


def test_the_import_guard_bites(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from trainer import loop\n    import env_factory.gates\n")
    assert uphill("sandboxes", bad) == {"trainer", "env_factory"}


@pytest.mark.parametrize("door", LIGHT_DOORS)
def test_doors_open_without_heavy_packages(door: str) -> None:
    code = f"import {door}, sys; bad = {HEAVY!r} & set(sys.modules); sys.exit(str(sorted(bad)) if bad else 0)"
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", [*FLOOR, "web"])
def test_no_other_distribution_owns_our_names(room: str) -> None:
    strangers = set(packages_distributions().get(room, [])) - {"gymsmith"}
    assert not strangers, f"{strangers} also installs a top-level '{room}'"


def test_init_files_hold_a_docstring_only() -> None:
    for home in HOME.values():
        for path in home.rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert len(body) <= 1 and all(isinstance(n, ast.Expr) for n in body), f"{path}: a docstring only"


def test_no_file_grows_into_a_drawer() -> None:
    drawers = {"utils", "common", "helpers", "misc"}
    assert [p for home in HOME.values() for p in home.rglob("*.py") if p.stem in drawers] == []


@pytest.mark.parametrize("shared", ["templates", "swe", "lessons"])
def test_synthesizers_stand_above_what_they_share(shared: str) -> None:
    files = list((HOME["env_factory"] / shared).rglob("*.py"))
    assert len(files) > 5 and [path for path in files if "env_factory.synth" in path.read_text()] == []


def untold(text: str) -> list[str]:
    """Files of rooms that the README's tables do not tell of, by themselves or by their folder; names that are no file's."""
    tables = text.partition("## Every file in five words")[2].partition("## Where to read on")[0]
    told: dict[str, set[str]] = {room: set() for room in FLOOR}
    room = ""
    for line in tables.splitlines():
        if heading := re.match(r"\*\*(?:platform/)?(\w+)(?:/\w+)?\*\*", line):
            room = heading[1]
        elif room in FLOOR and line.startswith("| `"):
            for cell in line.split("|")[1:4:2]:
                told[room] |= set(re.findall(r"`([\w./-]+)`", cell))
    found = []
    for room, home in HOME.items():
        files = {str(path.relative_to(home)) for path in home.rglob("*.py") if path.name != "__init__.py"}
        folders = tuple(name for name in told[room] if name.endswith("/"))
        found += [f"{room}/{name} is not told" for name in files - told[room] if not name.startswith(folders)]
        found += [f"{room}/{name} is no file" for name in told[room] if not (home / name).exists()]
    return sorted(found)


def test_the_readme_tells_every_file() -> None:
    assert untold((ROOT / "README.md").read_text()) == []


def test_the_guard_of_the_tables_bites() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(untold(text.replace("`synth/mutation.py`", "`synth/mutation_.py`"))) - set(untold(text)) == {
        "env_factory/synth/mutation.py is not told",
        "env_factory/synth/mutation_.py is no file",
    }
