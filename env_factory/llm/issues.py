"""From an issue to SWE tasks, where no pull request says what resolves it: a model writes text, hidden tests and a solution.

Nothing of that is taken at its word. The new tests run on the package as it is, where some must fail, and with the solution,
where all must pass and the package's own suite still does; which of them count, and what the host compares by itself, follows
from these runs. The gates then prove the whole in fresh sandboxes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from env_factory.llm import written
from env_factory.llm.authorship import Author, objection
from env_factory.llm.conversation import Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, fill
from env_factory.llm.workshop import Workshop
from env_factory.sources import Package
from env_factory.swe import folder
from env_factory.swe.patch import edit_script
from env_factory.swe.screening import tree
from env_factory.swe.selection import Judged, beside
from env_factory.swe.survey import MIN_P2P
from gymsmith.schema import Draft, digest

MAX_CODE_CHARS = 60_000
"""Of sources in one question."""
MAX_ISSUE_CHARS = 20_000
CLOSING = (
    "The source is in /work. Repair it there; everything else keeps working. Python is `python3`, and the package can be "
    "imported from anywhere. Your work is judged by tests that you do not see, on the files in /work."
)
TEST_NAME = "test_reported_issue.py"


class Edit(Shape):
    """A replacement in a file."""

    path: str
    find: str
    replace: str


class Resolution(Shape):
    """What a model is asked for; see prompts/issue.md."""

    instruction: str
    tests: str
    edits: list[Edit]


class IssueAuthor(Author[Resolution]):
    """Candidate `number` of an issue."""

    def __init__(self, desk: Desk, shop: Workshop, issue: str, seed: int, number: int) -> None:
        self.shop, self.seed, self.number = shop, seed, number
        package = shop.package
        issue = issue[:MAX_ISSUE_CHARS]
        prompt = fill(
            "issue",
            package=package.name,
            version=package.version,
            number=str(number + 1),
            issue=Material(issue),
            listing=Material("\n".join(f"{path}  {len(package.files[path])} bytes" for path in package.code[:400])),
            code=Material(relevant(package, issue)),
        )
        labels = {
            "package": package.name,
            "version": package.version,
            "family": package.name,
            "issue": digest(issue.encode())[:12],
            "seed": str(seed),
            "index": f"{number:04d}",
        }
        super().__init__(Talk(desk, prompt, Resolution, seed=int(digest(str((seed, number)).encode())[:7], 16)), labels)
        home = next((test for test in package.tests if not test.endswith(".py")), "")
        self.test_path = f"{home}/{TEST_NAME}".lstrip("/")

    async def compose(self, answer: Resolution) -> Draft:
        """See `Author`."""
        shop, package = self.shop, self.shop.package
        instruction = written.text("instruction", answer.instruction, 80, 8000)
        tests = written.text("tests", answer.tests, 20, 40_000) + "\n"
        _parsed("tests", tests)
        fixed = edited(package, answer.edits)
        async with shop.lock:
            await shop.put_test(self.test_path, tests)
            try:
                judged = await self._judged(fixed)
                observed = await shop.observed(judged.described(), fixed)
            finally:
                await shop.put_test(self.test_path, "")
        if folder.tells(instruction, list(fixed), judged.failed):
            raise Unfit("leak", "the instruction names a file at fault or a hidden test")
        scripts = {path: edit_script(f"/work/{path}", package.files[path].decode(), text) for path, text in sorted(fixed.items())}
        replaced = "\n".join(edit.replace for edit in answer.edits)
        written.not_told({"the solution": replaced, "the tests": tests}, {"the instruction": instruction})
        files = dict(package.files) | {self.test_path: tests.encode()}
        known = package.tests if package.is_test(self.test_path) else (*package.tests, self.test_path)
        return folder.draft(
            replace(package, files=files, tests=known),
            judged,
            observed.values,
            kind="llm-issue",
            slug=f"llm-issue-{package.slug}-{self.labels['issue']}-{self.seed}-{self.number:02d}",
            description=f"Resolve an issue of {package.name} {package.version}.",
            keywords=("python", "issue", package.name),
            labels=self.labels,
            instruction=f"{instruction}\n\n{CLOSING}\n",
            work=tree(package),
            solution="".join(scripts.values()),
            cheats=_halves(scripts) + tuple(folder.module_cheats(f"/work/{next(iter(fixed))}")),
            whole=replace(shop.known, passing=tuple(dict.fromkeys([*shop.known.passing, *judged.failed, *judged.passed]))),
        )

    async def _judged(self, fixed: Mapping[str, str]) -> Judged:
        """The new tests that fail now and pass with the solution, and old ones that pass either way. Hold the lock.

        Raises: Unfit.
        """
        shop, package = self.shop, self.shop.package
        before = await shop.run([self.test_path], {})
        if before["error"] or not before["order"]:
            raise Unfit("died", "the tests cannot be run on the package as it is", str(before["error"]))
        after = await shop.run([*package.tests, self.test_path], fixed, observe=True)
        new = list(dict.fromkeys(before["order"]))
        outcomes = after["outcomes"]
        if wrong := [test for test in new if outcomes.get(test) != "passed"]:
            said = "\n".join(f"{t}: {after['failures'].get(t, {}).get('message', outcomes.get(t, 'not run'))}" for t in wrong[:5])
            raise Unfit(
                "oracle-fails", f"{len(wrong)} of {len(new)} new tests do not pass with the solution", said or after["error"]
            )
        if broken := [test for test in shop.known.passing if outcomes.get(test) != "passed"]:
            raise Unfit("oracle-fails", "the solution breaks tests of the package", "\n".join(broken[:10]))
        failing = [test for test in new if before["outcomes"].get(test) != "passed"]
        if not failing:
            raise objection("few-f2p")
        passed = [test for test in new if test not in failing]
        others = [*passed, *beside(failing, failing, shop.known.passing, shop.known)]
        if len(others) < MIN_P2P:
            raise objection("few-p2p")
        return Judged(failing, list(dict.fromkeys(others)), before["failures"])


def edited(package: Package, edits: list[Edit]) -> dict[str, str]:
    """Path -> text of the files that the edits change.

    Raises: Unfit (llm-edit).
    """
    if not 1 <= len(edits) <= 40:
        raise Unfit("llm-edit", f"the solution must be 1 to 40 edits, got {len(edits)}")
    made: dict[str, str] = {}
    for edit in edits:
        if edit.path not in package.code:
            raise Unfit("llm-edit", f"edits are of the package's own Python files, as listed, got {edit.path[:120]!r}")
        text = made.get(edit.path, package.files[edit.path].decode())
        if not edit.find or text.count(edit.find) != 1:
            raise Unfit(
                "llm-edit", f"`find` must occur once in {edit.path}, it does {text.count(edit.find)} times: {edit.find[:120]!r}"
            )
        made[edit.path] = text.replace(edit.find, edit.replace)
    for path, text in made.items():
        _parsed(path, text)
    changed = {path: text for path, text in made.items() if text != package.files[path].decode()}
    if not changed:
        raise Unfit("llm-edit", "the edits change nothing")
    return changed


def relevant(package: Package, issue: str) -> str:
    """The sources that share most words with an issue, whole, as many as a question can hold."""
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]{2,}", issue))

    def shared(path: str) -> tuple[int, int]:
        text = package.files[path].decode(errors="replace")
        names = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]{2,}", text)) | set(PurePosixPath(path).with_suffix("").parts)
        return -len(names & words), len(text)

    parts, left = [], MAX_CODE_CHARS
    for path in sorted(package.code, key=shared):
        text = package.files[path].decode(errors="replace")
        if len(text) > left:
            continue
        left -= len(text)
        parts.append(f"=== {path}\n{text}")
    return "\n".join(parts)


def _halves(scripts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Solutions that leave one file out, where there are several."""
    if len(scripts) < 2:
        return ()
    return tuple(
        (f"without-file-{n}", "".join(text for other, text in scripts.items() if other != path))
        for n, path in enumerate(scripts, 1)
    )


def _parsed(name: str, text: str) -> None:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise Unfit("llm-edit", f"{name} is no valid Python: {error}") from None
