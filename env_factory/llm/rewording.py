"""Other words for the instruction of a proven environment: the same task, told by somebody else.

The model sees the instruction alone, so it cannot tell what it does not know; what it guesses is caught by comparing facts.
Whatever could decide over success (paths, numbers, quoted and code-formatted pieces, identifiers, lines of code, words that the
solution or a file's name holds) must stand in both versions, and no word that the solution holds and the original does not may
appear. That checks what a program can check, not meaning: a sentence that turns around what is asked for can pass. So the share
of words that are kept is bounded below, too, and the gates (leak, looking, and the proof as a whole) run as for any draft.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import replace

from env_factory.llm import written
from env_factory.llm.authorship import Author
from env_factory.llm.conversation import Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, fill
from gymsmith.schema import Draft, digest
from gymsmith.taskdir import Task

STYLES = (
    "as a short note between colleagues", "as a ticket of somebody who is annoyed", "formally, as in a work order",
    "as somebody would who is not an expert", "tersely, with a list of what must hold", "at more length, with full sentences",
    "as a question of a user in a forum", "as the assignment of a course",
)  # fmt: skip
LENGTHS = (0.4, 2.5)
"""Least and most of the original's length that a new version may have."""
MORE_CHARS = 200
"""What a new version of a very short text may add in any case."""
MIN_KEPT = 0.35
"""Share of the original's longer words that a new version must hold: the nouns of a task are hard to do without."""
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_QUOTED = re.compile(r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|(?<!\w)'([^'\n]{1,200})'(?!\w)")
_FACT = re.compile(
    r"(?<![\w/])/[\w./@+-]*\w|\b[\w-]+(?:/[\w.-]+)+|\b[\w-]+\.[A-Za-z]\w*\b|\b\w*\d[\w.:-]*\w|\b\d\b|\b[A-Za-z]+_\w+\b|\b[a-z]+[A-Z]\w*\b"
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\w")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{4,}")
_PLAIN = frozenset(keyword.kwlist) | {
    "print",
    "lines",
    "write",
    "files",
    "python",
    "value",
    "values",
    "result",
    "results",
    "string",
}


class Reworded(Shape):
    """What a model is asked for; see prompts/reword.md."""

    instruction: str


class RewordingAuthor(Author[Reworded]):
    """Candidate `number`: a version of one environment's instruction."""

    def __init__(self, desk: Desk, task: Task, seed: int, number: int) -> None:
        self.task, self.number = task, number
        style = STYLES[(seed + number) % len(STYLES)]
        prompt = fill("reword", style=style, number=str(number + 1), original=Material(task.instruction))
        labels = dict(task.spec.labels) | {"reworded_from": task.id, "style": style}
        super().__init__(Talk(desk, prompt, Reworded, seed=int(digest(f"{task.id}/{seed}/{number}".encode())[:7], 16)), labels)

    async def compose(self, answer: Reworded) -> Draft:
        """See `Author`."""
        original = self.task.instruction
        text = written.text("instruction", answer.instruction, 5, 40_000) + "\n"
        secrets = [data.decode(errors="replace") for name, data in self.task.files.items() if name.startswith("solution/")]
        names = " ".join(name.removeprefix("environment/") for name in self.task.files if name.startswith("environment/"))
        hidden = " ".join([*secrets, *self.task.alternatives])
        compare(original, text, f"{hidden} {' '.join(self.task.spec.labels.values())}", f"{hidden} {names}")
        suffix = digest(text.encode())[:8]
        spec = self.task.spec.model_copy(update={"labels": self.labels, "name": f"{self.task.spec.name}-reworded-{suffix}"})
        return replace(self.task.draft, spec=spec, instruction=text)


def compare(original: str, text: str, hidden: str, names: str = "") -> None:
    """Whether `text` says what `original` says, as far as programs can tell.

    hidden: what solution and records hold, of which nothing new may be told. names: texts whose words, where the original has
    them, are needed to do the work.

    Raises: Unfit (llm-same, llm-facts).
    """
    if " ".join(original.split()) == " ".join(text.split()):
        raise Unfit("llm-same", "this is the original; say it in other words")
    least, most = LENGTHS[0] * len(original), max(LENGTHS[1] * len(original), len(original) + MORE_CHARS)
    if not least <= len(text) <= most:
        raise Unfit("llm-facts", f"the new version must have {least:.0f} to {most:.0f} characters, got {len(text)}")
    needed = set(_NAME.findall(names)) - _PLAIN
    said = set(_NAME.findall(text))
    lost = [fact for fact in facts(original) if fact not in text]
    lost += [word for word in dict.fromkeys(_NAME.findall(original)) if len(word) > 2 and word in needed - said]
    if lost:
        raise Unfit("llm-facts", f"these stand in the original and are lost: {', '.join(map(repr, lost[:8]))}")
    if added := [fact for fact in facts(text) if fact not in original]:
        raise Unfit("llm-facts", f"these are not in the original: {', '.join(map(repr, added[:8]))}")
    known = {word.lower() for word in _WORD.findall(original)}
    told = {word.lower() for word in _WORD.findall(text)}
    secret = {word.lower() for word in _WORD.findall(hidden)} - known - _PLAIN
    if told & secret:
        raise Unfit("llm-facts", f"these words tell more than the original: {', '.join(sorted(told & secret)[:8])}; use others")
    kept = len(known & told) / len(known) if len(known) >= 8 else 1.0
    if kept < MIN_KEPT:
        raise Unfit("llm-facts", f"only {kept:.0%} of the original's words are left; keep what its things are called")


def facts(text: str) -> list[str]:
    """Pieces of an instruction that no rewording may change, each once, in order."""
    found: list[str] = []
    for block in _FENCE.findall(text):
        found += [line.strip() for line in block.splitlines()[1:-1] if line.strip()]
    rest = _FENCE.sub(" ", text)
    found += [line.strip() for line in rest.splitlines() if line.startswith(("    ", "\t", "|", ">")) and line.strip()]
    found += _CODE.findall(rest)
    found += [next(group for group in match if group) for match in _QUOTED.findall(rest)]
    found += _FACT.findall(_CODE.sub(" ", rest))
    return list(dict.fromkeys(found))
