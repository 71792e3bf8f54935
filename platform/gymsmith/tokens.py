"""Token ids as text for people, by the tokenizer that a run (or the run it started from) names. Training never uses this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymsmith.config import Settings
from gymsmith.errors import NotFound
from gymsmith.store import Store

_NAME = re.compile(r"[0-9a-f]{8,64}\.json\Z")
_ANCESTORS = 8


def texts(store: Store, settings: Settings, run_id: str, ids: Sequence[int]) -> list[str] | None:
    """Text of each id, or None when the tokenizer is not here. A character split over several ids shows its bytes as `�`."""
    name = tokenizer_of(store, run_id)
    path = settings.tokenizers_dir / name
    if not name or not path.is_file():
        return None
    tokenizer = _load(path)
    return [tokenizer.decode([i], skip_special_tokens=False) for i in ids]


def tokenizer_of(store: Store, run_id: str) -> str:
    """File name of the tokenizer of a run, looked for up the line of its parents; empty when none names one."""
    for _ in range(_ANCESTORS):
        try:
            run = store.run(run_id)
        except NotFound:
            return ""
        for bag in (run.summary, run.config):
            name = str(bag.get("tokenizer", ""))
            if _NAME.match(name):
                return name
        if not run.parent:
            return ""
        run_id = run.parent
    return ""


@lru_cache(maxsize=4)
def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))
