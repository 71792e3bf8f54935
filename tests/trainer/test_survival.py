"""A training process killed at random moments, as `gymsmith bench trainer` does fifty times."""

from __future__ import annotations

import json
from pathlib import Path

from gymsmith.config import Settings
from gymsmith.store import Store
from trainer.survival import _compare, survive


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    found = survive(tmp_path, kills=3, seed=5)
    assert found.equal and not found.difference and found.kills == 3 and found.steps == 30
    diary = tmp_path / "home" / "broken.jsonl"
    rows = [json.loads(line) for line in diary.open()]
    rows[7]["loss"] += 1e-15
    diary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(Settings(home=tmp_path / "home")) as store:
        blamed = _compare(store, 3)
    assert not blamed.equal and str(rows[7]["step"]) in blamed.difference, "control: one bit is seen"
