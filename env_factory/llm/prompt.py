"""Prompts are files: `prompts/NAME.md`, with a part `## system`, a part `## user`, and slots such as {{title}}.

What stands in `roles/ROLE.md` and `house.md` opens the system part of each. Text that strangers wrote goes into a slot as
`Material`: between two lines that name the text's own digest, which no text can contain, so nothing in it can pretend to be
behind its end. That keeps a model from mistaking where data stops; that it does as it was told is nobody's promise, and the gates
do not rely on it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from gymsmith.schema import digest

_SLOT = re.compile(r"\{\{([a-z_]+)\}\}")
_PART = re.compile(r"^## (system|user)\n", re.MULTILINE)


class Material(NamedTuple):
    """Text from outside: a tutorial, an issue, files of a repository, output of programs."""

    text: str

    def fenced(self) -> str:
        """The text between its marks."""
        mark = digest(self.text.encode(errors="replace"))[:16]
        return f"<<<material {mark}\n{self.text}\n{mark} material>>>"


class Prompt(NamedTuple):
    """A filled prompt."""

    system: str
    user: str


@lru_cache(maxsize=32)
def parts(name: str) -> Prompt:
    """The two parts of a prompt, slots unfilled.

    Raises: ValueError: the file lacks a part.
    """
    text = resources.files("env_factory.llm").joinpath("prompts", f"{name}.md").read_text(encoding="utf-8")
    found = _PART.split(text)
    if found[1::2] != ["system", "user"]:
        raise ValueError(f"prompts/{name}.md must have the parts '## system' and '## user' in this order, got {found[1::2]}")
    return Prompt(found[2].strip(), found[4].strip())


def fill(name: str, /, role: str = "author", **values: str | Material) -> Prompt:
    """The prompt with every slot filled, for an author or a reviewer.

    Raises: ValueError: a slot has no value, or a value no slot.
    """
    system, user = parts(name)
    slots = set(_SLOT.findall(system + user))
    if slots != set(values):
        raise ValueError(f"prompts/{name}.md has the slots {sorted(slots)}, got values for {sorted(values)}")
    said = {key: value.fenced() if isinstance(value, Material) else value for key, value in values.items()}
    prompts = resources.files("env_factory.llm").joinpath("prompts")
    opening = [prompts.joinpath(*path).read_text(encoding="utf-8").strip() for path in (("roles", f"{role}.md"), ("house.md",))]

    def filled(part: str) -> str:
        return _SLOT.sub(lambda slot: said[slot.group(1)], part)

    return Prompt("\n\n".join([*opening, filled(system)]), filled(user))
