"""What the files of a Python project say about it, without running any: its tests, its code, its name, what it needs.

Read are PKG-INFO, pyproject.toml (PEP 621, poetry, dependency groups), setup.cfg, literal arguments of setup() in setup.py, and
requirement files. A setup.py that computes what it needs is not understood: its literal parts are taken, the rest is left out.
"""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from email.parser import Parser
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_TEST_FOLDERS = ("tests", "test", "testing")
_TEST_FILE = re.compile(r"(test_.*|.*_test|tests?)\.py\Z")
_TEST_EXTRAS = ("test", "tests", "testing")
_TEST_GROUPS = (*_TEST_EXTRAS, "dev")
_TEST_FILES = tuple(
    f"{folder}{name}"
    for name in ("requirements-test.txt", "requirements-tests.txt", "test-requirements.txt", "test_requirements.txt", "tests.txt",
                 "test.txt", "testing.txt", "tests.in", "requirements.txt")
    for folder in ("", "requirements/", "tests/", "test/")
    if folder or "requirements" in name
)  # fmt: skip
_TOOLING = re.compile(
    r"(pytest|pip|tox|coverage|pytest-cov|pytest-codspeed|codecov|black|ruff|flake8|mypy|pycodestyle|pre-commit)\b(?![-.])"
)
_MAKERS = re.compile(r"(nox|coveralls|pyright|isort|sphinx|build|twine|wheel|setuptools|bumpversion|pylint)\b(?![-.])", re.I)
"""What a repository's files ask for besides, to make the project and not to test it."""
_NOT_CODE = {
    *_TEST_FOLDERS,
    "docs",
    "documentation",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "scripts",
    "tools",
    "build",
    "dist",
}


class Needs(NamedTuple):
    """Requirements as pip takes them."""

    runtime: list[str]
    tests: list[str]
    """What the suite needs besides, without the tools of its makers."""


def tests(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Outermost test folders that hold test files, and test files that stand alone."""
    found: set[str] = set()
    for path in files:
        parts = path.split("/")
        if not _TEST_FILE.match(parts[-1]):
            continue
        folder = next((i for i, part in enumerate(parts[:-1]) if part in _TEST_FOLDERS), None)
        if parts[0] in _NOT_CODE - set(_TEST_FOLDERS):
            continue
        if folder is not None:
            found.add("/".join(parts[: folder + 1]))
        elif re.match(r"test_.*\.py\Z|.*_test\.py\Z|tests?\.py\Z", parts[-1]):
            found.add(path)
    return tuple(sorted(found))


def roots(files: Iterable[str]) -> tuple[str, ...]:
    """What has to be on the import path: "src" where Python files lie there, else ""."""
    return ("src",) if any(p.startswith("src/") and p.endswith(".py") for p in files) else ("",)


def code(files: Iterable[str], tests: Sequence[str], roots: Sequence[str]) -> tuple[str, ...]:
    """Python files of the project itself, by path."""
    return tuple(
        p
        for p in files
        if p.endswith(".py")
        and p.startswith("src/" if tuple(roots) == ("src",) else "")
        and not any(p == t or p.startswith(t + "/") for t in tests)
        and p.split("/")[0] not in _NOT_CODE
        and PurePosixPath(p).name not in ("setup.py", "conftest.py", "noxfile.py")
    )


def name_and_version(files: Mapping[str, bytes], otherwise: str) -> tuple[str, str]:
    """(name, version) as declared; the version is "0" where it is computed when the project is built."""
    project, poetry, cfg, arguments = _pyproject(files).get("project", {}), _poetry(files), _setup_cfg(files), _setup_py(files)
    message = Parser().parsestr(files.get("PKG-INFO", b"").decode("utf-8", "replace"))
    name = (
        message["Name"]
        or project.get("name")
        or poetry.get("name")
        or cfg.get("metadata", {}).get("name")
        or arguments.get("name")
    )
    given = message["Version"] or project.get("version") or poetry.get("version") or arguments.get("version")
    given = given or cfg.get("metadata", {}).get("version") or _stated_version(files)
    try:
        version = str(Version(str(given)))
    except InvalidVersion:
        version = "0"
    return canonicalize_name(str(name)) if isinstance(name, str) and name.strip() else canonicalize_name(otherwise), version


def without(requirements: Iterable[str], name: str) -> list[str]:
    """Requirements that do not name the project itself: a suite may ask for it by way of its own extras."""
    own = canonicalize_name(name)
    parsed = ((line, _parsed(line)) for line in requirements)
    return [line for line, known in parsed if known is None or canonicalize_name(known.name) != own]


def needs(files: Mapping[str, bytes], metadata: bytes = b"") -> Needs:
    """What the project and its tests need."""
    runtime: list[str] = []
    extra: list[str] = []
    lines = [str(line) for line in Parser().parsestr(metadata.decode("utf-8", "replace")).get_all("Requires-Dist") or []]
    for line in lines:
        requirement = _parsed(line)
        if requirement is None:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            runtime.append(_bare(requirement))
        elif any(requirement.marker.evaluate({"extra": name}) for name in _TEST_EXTRAS):
            extra.append(_bare(requirement))
    if not lines:
        for path, data in files.items():
            if path.endswith(".egg-info/requires.txt"):
                text = data.decode("utf-8", "replace").split("[")[0]
                runtime += [s for line in text.splitlines() if (s := line.strip())]
    if not metadata:
        declared = _declared(files)
        runtime += declared.runtime
        extra += declared.tests
    groups = _pyproject(files).get("dependency-groups", {})
    for name in _TEST_EXTRAS if metadata else _TEST_GROUPS:
        given = groups.get(name, []) if isinstance(groups, dict) else []
        extra += [entry for entry in given if isinstance(entry, str)]
    return Needs(runtime, [e for e in extra if not _TOOLING.match(e)])


def generated_version(files: Mapping[str, bytes], version: str) -> dict[str, bytes]:
    """The version file that setuptools-scm or hatch-vcs would write in a build, where it is configured and missing."""
    tool = _pyproject(files).get("tool", {})
    scm, hooks = tool.get("setuptools_scm", {}), tool.get("hatch", {}).get("build", {}).get("hooks", {}).get("vcs", {})
    made = {}
    for path in (scm.get("version_file"), scm.get("write_to"), hooks.get("version-file")):
        if isinstance(path, str) and path.endswith(".py") and path not in files and ".." not in path and not path.startswith("/"):
            numbers = ", ".join(part if part.isdigit() else repr(part) for part in re.split(r"[.+]", version))
            made[path] = f"__version__ = version = {version!r}\n__version_tuple__ = version_tuple = ({numbers},)\n".encode()
    return made


def _declared(files: Mapping[str, bytes]) -> Needs:
    """From build files, where the project has not been built."""
    project, poetry, cfg, arguments = _pyproject(files).get("project", {}), _poetry(files), _setup_cfg(files), _setup_py(files)
    runtime = _strings(project.get("dependencies")) + _strings(arguments.get("install_requires"))
    runtime += _lines(cfg.get("options", {}).get("install_requires", "")) + _of_poetry(poetry.get("dependencies"))
    extras = [project.get("optional-dependencies"), arguments.get("extras_require"), cfg.get("options.extras_require")]
    tests = _strings(arguments.get("tests_require")) + _lines(cfg.get("options", {}).get("tests_require", ""))
    for table in extras:
        for name in _TEST_GROUPS if isinstance(table, Mapping) else ():
            given = table.get(name)
            tests += _lines(given) if isinstance(given, str) else _strings(given)
    groups = poetry.get("group", {})
    for name in _TEST_GROUPS:
        tests += _of_poetry(groups.get(name, {}).get("dependencies") if isinstance(groups, dict) else None)
    tests += _of_poetry(poetry.get("dev-dependencies"))
    for path in _TEST_FILES:
        if path in files and (path != "requirements.txt" or not runtime):
            tests += _lines(files[path].decode("utf-8", "replace"))
    return Needs(_applying(runtime), [t for t in _applying(tests) if not _MAKERS.match(t)])


def _applying(lines: Iterable[str]) -> list[str]:
    """Requirements whose marker holds here, once each, in order."""
    kept: dict[str, None] = {}
    for line in lines:
        requirement = _parsed(line)
        if requirement is not None and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            kept[_bare(requirement)] = None
    return list(kept)


def _parsed(line: str) -> Requirement | None:
    try:
        requirement = Requirement(line.strip())
    except InvalidRequirement:
        return None
    # What lies at a URL would be fetched from there: only the index is a source of packages.
    return None if requirement.url else requirement


def _bare(requirement: Requirement) -> str:
    """The requirement without its marker, which has been decided."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _lines(text: str) -> list[str]:
    """Lines of a requirement file, without options, comments and links to other files."""
    plain = (re.split(r"\s#|\s--hash", line)[0].strip().rstrip("\\").strip() for line in text.splitlines())
    return [line for line in plain if line and not line.startswith(("#", "-"))]


def _strings(given: Any) -> list[str]:
    if isinstance(given, str):
        return _lines(given)
    return [entry for entry in given if isinstance(entry, str)] if isinstance(given, list | tuple) else []


def _of_poetry(table: Any) -> list[str]:
    """Poetry's table of constraints as requirements: ^1.2 becomes >=1.2,<2 and ~1.2 becomes >=1.2,<1.3."""
    found = []
    for name, given in table.items() if isinstance(table, dict) else ():
        said = given.get("version") if isinstance(given, dict) else given
        if name.lower() == "python" or not isinstance(said, str) or (isinstance(given, dict) and given.get("optional")):
            continue
        found.append(name + ",".join(_constraint(part.strip()) for part in said.split(",")).replace("*", ""))
    return found


def _constraint(said: str) -> str:
    if said[:1] not in ("^", "~") or said.startswith("~="):
        return f"=={said}" if said[:1].isdigit() and "*" not in said else "" if said == "*" else said.replace(".*", "")
    numbers = [int(n) for n in re.findall(r"\d+", said)[:3]]
    keep = next((i for i, n in enumerate(numbers) if n), len(numbers) - 1) if said[0] == "^" else min(1, len(numbers) - 1)
    upper = [*numbers[:keep], numbers[keep] + 1] if numbers else []
    return f">={said[1:].strip()},<{'.'.join(map(str, upper))}" if upper else ""


def _pyproject(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        document = tomllib.loads(files.get("pyproject.toml", b"").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document.get("project", {}), dict) and isinstance(document.get("tool", {}), dict) else {}


def _poetry(files: Mapping[str, bytes]) -> dict[str, Any]:
    found = _pyproject(files).get("tool", {}).get("poetry", {})
    return found if isinstance(found, dict) else {}


def _setup_cfg(files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(files.get("setup.cfg", b"").decode("utf-8", "replace"))
    except configparser.Error:
        return {}
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _setup_py(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Literal arguments of setup(), and lists bound to a name before they are handed over."""
    try:
        tree = ast.parse(files.get("setup.py", b"").decode("utf-8", "replace"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    bound: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            bound[node.targets[0].id] = _literal(node.value)
    for node in ast.walk(tree):
        name = node.func if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and (getattr(name, "id", "") == "setup" or getattr(name, "attr", "") == "setup"):
            for keyword in node.keywords:
                value = bound.get(keyword.value.id) if isinstance(keyword.value, ast.Name) else _literal(keyword.value)
                if keyword.arg and value is not None:
                    found[keyword.arg] = value
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _stated_version(files: Mapping[str, bytes]) -> str:
    """`__version__ = "..."` in the outermost package or in a version module."""
    named = sorted(
        (p for p in files if re.search(r"(\A|/)(__init__|_?version|__version__|__about__)\.py\Z", p)),
        key=lambda p: (p.count("/"), p),
    )
    for path in named:
        if path.split("/")[0] not in _NOT_CODE:
            found = re.search(rb"^__version__\s*=\s*['\"]([^'\"]+)['\"]", files[path], re.M)
            if found:
                return found.group(1).decode("utf-8", "replace")
    return ""
