"""A change that somebody made to a project, turned round: the tree before it, and the tests that came with it, hidden.

    parts    what the change does to code is the solution; tests are hidden; notes and manual are no part of either
    screen   which tests fail on the tree before it and pass on the one after; which values differ
    text     what the project or a reporter says, what is observed, and which names the tests will ask for
    draft    the tree before; each part of the change that can be left out without a test noticing makes it a worse one

Where changes come from is the business of `commits.py` and `issues.py`. The reversal is SWE-bench's (arXiv 2310.06770); that a
commit's message is too thin to be an instruction was measured for this project (median 33 characters once cleaned).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from env_factory.sources import Package
from env_factory.swe import folder, operators
from env_factory.swe.notes import MIN_CHARS, useful
from env_factory.swe.patch import change_script
from env_factory.swe.screening import PYTEST, Screen, tree
from env_factory.swe.selection import Judged, judge, observed
from env_factory.swe.survey import Survey, survey
from env_factory.swe.symptom import report
from gymsmith.errors import NoTests
from gymsmith.schema import Draft

MAX_FILES = 12
MAX_LINES = 600
"""Changed lines of code; a change that is larger is more than one task."""
MAX_NAMES = 12
HALVES = 4
"""Parts of a change that are left out, one at a time, to see whether a test notices."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change. The package is the project after it, with its tests and wheels of its date."""

    kind: str
    index: int
    slug: str
    after: Package
    before: Mapping[str, bytes]
    """The project's files before it."""
    text: str
    """What was said about it, cleaned."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> dict[str, tuple[str | None, str | None]]:
        """Code and data that differ: path -> (text before, text after), None where there is no such file.

        Raises: UnicodeDecodeError: a file is no text.
        """
        old, new = tree(self._package_before()), tree(self.after)
        changed = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path) and _counts(path))

        def text(files: Mapping[str, bytes], path: str) -> str | None:
            return files[path].decode() if path in files else None

        return {path: (text(old, path), text(new, path)) for path in changed}

    def work(self) -> dict[str, bytes]:
        """What lies in /work when the agent comes."""
        return tree(self._package_before())

    def _package_before(self) -> Package:
        """The project before the change; what counts as its tests is told by both trees."""
        return replace(self.after, files=self.before)


def _counts(path: str) -> bool:
    """Whether a file is part of what has to be done: modules and data of packages, not texts and settings beside them."""
    return path.endswith((".py", ".pyi")) or ("/" in path and not path.endswith((".md", ".rst", ".txt", ".toml", ".cfg", ".yml")))


async def draft(change: Change, screen: Screen) -> Draft | str:
    """The environment, or the reason why there is none. `screen` holds the project after the change."""
    try:
        parts = change.parts()
    except UnicodeDecodeError:
        return "binary"
    if not any(path in change.after.code for path in parts):
        return "no-source"
    lines = sum(_size(old, new) for old, new in parts.values())
    if len(parts) > MAX_FILES or lines > MAX_LINES:
        return "large"
    try:
        known = await survey(change.after, screen, lines=True)
    except NoTests:
        return "no-tests"
    tests = _tests(change, known, parts)
    answer = (await screen.run([_run(tests, {path: old for path, (old, _) in parts.items()}, known)]))[0]
    judged = judge(tests, answer, known, missing_fails=True)
    if judged.reason:
        return judged.reason
    seen = (await observed(change.after, screen, [judged.described()]))[0]
    text = _instruction(change, judged, report(judged.described(), untrue=seen.untrue), parts)
    if text is None:
        return "thin"
    if folder.tells(text, list(parts), judged.failed):
        return "leak"
    halves = await _halves(screen, known, judged, parts)
    if halves and not any(noticed for _, noticed in halves):
        return "half-passes"
    target = next((f"/work/{path}" for path, (old, _) in parts.items() if old is not None and path.endswith(".py")), None)
    own = [*(folder.module_cheats(target) if target else ()), *_without(parts, [path for path, noticed in halves if noticed])]
    return folder.draft(
        change.after,
        judged,
        seen.values,
        kind=change.kind,
        slug=change.slug,
        description=f"Make a change to {change.after.name} that its makers once made.",
        keywords=("python", "maintenance", change.after.name),
        labels={
            "package": change.after.name,
            "version": change.after.version,
            "family": change.after.name,
            "operator": change.kind,
            "path": " + ".join(parts),
            **change.labels,
            "index": f"{change.index:04d}",
        },
        instruction=text,
        work=change.work(),
        solution=change_script({f"/work/{path}": pair for path, pair in parts.items()}),
        cheats=tuple(own),
        whole=known,
        # A hidden file that imports what is not there yet must not keep the others from being run.
        pytest=f"{PYTEST} --continue-on-collection-errors",
    )


def _size(old: str | None, new: str | None) -> int:
    before, after = set((old or "").split("\n")), set((new or "").split("\n"))
    return len(before ^ after)


def _tests(change: Change, known: Survey, parts: Mapping[str, object]) -> list[str]:
    """Tests in files that the change touched, and those that execute a module which it changes; the former first."""
    old = {path for path in change.after.files if change.before.get(path) != change.after.files[path]}
    near = [test for test in known.passing if test.split("::")[0] in old]
    entering = {test for (path, _), tests in known.touching.items() if path in parts for test in tests}
    return list(dict.fromkeys([*near, *(test for test in known.passing if test in entering)]))


def _run(tests: Sequence[str], files: Mapping[str, str | None], known: Survey) -> dict[str, Any]:
    """Runs the files of these tests: a file that cannot be imported would end a run that names single tests of it."""
    return known.run_of(dict.fromkeys(test.split("::")[0] for test in tests), files)


async def _halves(
    screen: Screen, known: Survey, judged: Judged, parts: Mapping[str, tuple[str | None, str | None]]
) -> list[tuple[str, bool]]:
    """(path left as it was, whether a test notices) where the change has several files."""
    if len(parts) < 2:
        return []
    chosen = list(parts)[:HALVES]
    answers = await screen.run([_run(judged.failed, {path: parts[path][0]}, known) for path in chosen])
    noticed = [any(answer["outcomes"].get(test) != "passed" for test in judged.failed) for answer in answers]
    return list(zip(chosen, noticed, strict=True))


def _without(parts: Mapping[str, tuple[str | None, str | None]], paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dishonest attempts: all of the change but one file."""
    for number, left in enumerate(paths, 1):
        yield f"without-part-{number}", change_script({f"/work/{p}": pair for p, pair in parts.items() if p != left})


def _instruction(
    change: Change, judged: Judged, lines: Sequence[str], parts: Mapping[str, tuple[str | None, str | None]]
) -> str | None:
    """What the agent reads; None where that is too little to go by."""
    names = _names(change, judged, parts)
    if len(useful(change.text)) + sum(len(useful(line)) for line in lines) < MIN_CHARS or not (lines or useful(change.text)):
        return None
    said = [f"The Python project `{change.after.name}` in /work needs a change."]
    if change.text:
        quoted = "\n".join(f"> {line}".rstrip() for line in change.text.split("\n"))
        said.append(f"This is what is said about it:\n\n{quoted}")
    if lines:
        said.append("This was observed, with its public names imported:\n\n" + "\n".join(lines))
    if names:
        said.append("These have to exist afterwards, with these names and arguments:\n\n" + "\n".join(f"- `{n}`" for n in names))
    said.append(
        "Make the change in the project's source, and keep everything else working. Python is `python3`, and the package can be "
        "imported from anywhere. Your work is judged by tests that you do not see, on the files in /work.\n"
    )
    return "\n\n".join(said)


def _names(change: Change, judged: Judged, parts: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """Functions and classes that the change brings and that a failing test's file speaks of: nobody can guess a name."""
    files = {test.split("::")[0] for test in judged.failed}
    asked = " ".join(change.after.files[path].decode("utf-8", "replace") for path in sorted(files) if path in change.after.files)
    found: list[str] = []
    for path, (old, new) in parts.items():
        if not path.endswith(".py") or new is None:
            continue
        module = path.removesuffix(".py").removesuffix("/__init__").removeprefix("src/").replace("/", ".")
        known, now = _defined(old or ""), _defined(new)
        for name, shown in now.items():
            last = name.rpartition(".")[2]
            if name not in known and last in asked and not last.startswith("__") and "<locals>" not in name:
                found.append(f"{module}.{shown}")
    return found[:MAX_NAMES]


def _defined(text: str) -> dict[str, str]:
    """Qualified name of each function and class -> as it is shown, with arguments."""
    try:
        module = ast.parse(text)
    except SyntaxError:
        return {}
    found = {name: f"{name}({ast.unparse(node.args)})" for name, node, _ in operators.functions(module)}
    return found | {node.name: node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef)}
