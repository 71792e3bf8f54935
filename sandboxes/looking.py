"""Did the agent look before it acted? Read off the steps of an episode, for environments that name hidden tokens.

A look at a token is a step whose output shows the token although the step's own action does not name it (an error message that
repeats a guessed name is no look). It counts when it comes before the deciding step: the first changing command that names the
token, or, where a pattern did its work, the last changing command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from gymsmith.schema import Step

READERS = frozenset(("ls", "cat", "grep", "head", "tail", "wc", "sh", "exit"))
"""Commands that change nothing by themselves; every other one may decide."""


def looked(hidden: Iterable[str], steps: Sequence[Step]) -> bool | None:
    """Whether every hidden token was looked at before it was used; None where nothing is hidden."""
    patterns = [_named(token) for token in hidden]
    if not patterns:
        return None
    ran = [step for step in steps if not step.refused]
    changing = [i for i, step in enumerate(ran) if step.action.split()[:1] and step.action.split()[0] not in READERS]
    for named in patterns:
        deciding = next((i for i in changing if named.search(ran[i].action)), changing[-1] if changing else len(ran))
        if not any(named.search(step.observation) and not named.search(step.action) for step in ran[:deciding]):
            return False
    return True


@lru_cache(maxsize=4096)
def _named(token: str) -> re.Pattern[str]:
    """The token as a word of its own."""
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(token)}(?![A-Za-z0-9])")
