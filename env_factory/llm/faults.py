"""SWE tasks by a model's faults: it rewrites one function, the package's own suite says what users would see.

The model chooses the fault and nothing else: which tests tell, what the report says, and what the host compares by itself follow
from running the suite, as for mutations (`synth/mutation.py`). So no word of the model stands in what the agent reads.
"""

from __future__ import annotations

import ast
import textwrap

from env_factory.llm import written
from env_factory.llm.authorship import Author, objection
from env_factory.llm.conversation import Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, fill
from env_factory.llm.workshop import Function, Workshop
from env_factory.swe import folder
from env_factory.swe.patch import edit_script
from env_factory.swe.screening import tree
from env_factory.swe.selection import judge, reaching
from env_factory.swe.symptom import report
from env_factory.synth import mutation
from gymsmith.schema import Draft, digest

MAX_MODULE_CHARS = 24_000


class Fault(Shape):
    """What a model is asked for; see prompts/bug.md."""

    function: str
    what: str


class FaultAuthor(Author[Fault]):
    """Candidate `number` of a package: a fault in one function."""

    def __init__(self, desk: Desk, shop: Workshop, function: Function, seed: int, number: int) -> None:
        self.shop, self.function, self.seed, self.number = shop, function, seed, number
        package = shop.package
        self.healthy = package.files[function.path].decode()
        lines = self.healthy.split("\n")
        self.original = "\n".join(lines[function.first_line - 1 : function.last_line])
        start = max(0, len("\n".join(lines[: function.first_line])) - MAX_MODULE_CHARS // 2)
        self.tests = reaching(shop.known, function.path, function.first_line)
        prompt = fill(
            "bug",
            package=package.name,
            name=function.name,
            path=function.path,
            tests=str(len(self.tests)),
            number=str(number + 1),
            function=Material(textwrap.dedent(self.original)),
            module=Material(self.healthy[start : start + MAX_MODULE_CHARS]),
        )
        labels = folder.about(package, operator="llm", path=function.path, function=function.name, seed=seed, index=number)
        super().__init__(Talk(desk, prompt, Fault, seed=int(digest(str((seed, number)).encode())[:7], 16)), labels)

    async def compose(self, answer: Fault) -> Draft:
        """See `Author`."""
        faulty = self.with_function(answer.function)
        path, package, shop = self.function.path, self.shop.package, self.shop
        what = written.text("what", answer.what, 10, 400)
        async with shop.lock:
            judged = judge(self.tests, await shop.run(self.tests, {path: faulty}), shop.known)
            if judged.reason:
                raise objection(judged.reason)
            observed = await shop.observed(judged.described(), {})
        lines = report(judged.described(), untrue=observed.untrue)
        if not lines:
            raise objection("thin")
        instruction = mutation.instruction(package, lines)
        if folder.tells(instruction, [path], judged.failed):
            raise Unfit("leak", "what users see names the file at fault; choose a fault that shows elsewhere")
        work = tree(package)
        if folder.copied(work, path, self.healthy, faulty):
            raise Unfit("leak", "the healthy lines stand in another file, too")
        target = f"/work/{path}"
        return folder.draft(
            package,
            judged,
            observed.values,
            kind="llm-bug",
            slug=f"llm-{package.slug}-{self.seed}-{self.number:04d}",
            description=f"Repair one fault in {package.name} {package.version}, found by what its users see.",
            keywords=("python", "debugging", package.name),
            labels=self.labels | {"fault": " ".join(what.split())[:200]},
            instruction=instruction,
            work={**work, path: faulty.encode()},
            solution=edit_script(target, faulty, self.healthy),
            cheats=tuple(folder.module_cheats(target)),
            whole=shop.known,
        )

    def with_function(self, text: str) -> str:
        """The module with the function exchanged.

        Raises: Unfit (llm-edit, llm-same).
        """
        text = textwrap.dedent(text.strip("\n")).rstrip()
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError) as error:
            raise Unfit("llm-edit", f"the function is no valid Python: {error}") from None
        old = ast.parse(textwrap.dedent(self.original)).body[0]
        new = body[0] if len(body) == 1 else None
        assert isinstance(old, ast.FunctionDef | ast.AsyncFunctionDef)
        if type(new) is not type(old) or new.name != old.name:
            raise Unfit("llm-edit", f"expected the function {old.name} and nothing else, got {text[:120]!r}")
        for part in ("args", "decorator_list", "returns"):
            if _dumped(getattr(old, part)) != _dumped(getattr(new, part)):
                raise Unfit("llm-edit", "decorators, parameters and their defaults must stay as they are")
        if ast.dump(old) == ast.dump(new):
            raise Unfit("llm-same", "this is the function as it was")
        indent = self.original[: len(self.original) - len(self.original.lstrip(" \t"))]
        lines = self.healthy.split("\n")
        lines[self.function.first_line - 1 : self.function.last_line] = textwrap.indent(text, indent).split("\n")
        made = "\n".join(lines)
        try:
            ast.parse(made)
        except SyntaxError as error:
            raise Unfit("llm-edit", f"the module is no valid Python with this function: {error}") from None
        return made


def _dumped(part: ast.AST | list[ast.expr] | None) -> list[str]:
    parts = part if isinstance(part, list) else [part]
    return [ast.dump(each) for each in parts if each is not None]
