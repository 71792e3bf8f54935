"""Which tests ran and how they ended, from what a test command printed. For surveys of strangers' suites, never for a verdict.

Known forms: `pytest -rA`, `unittest -v`, TAP (`prove -v`), `go test -v`, `cargo test`, ctest. A name that is told twice with
different ends counts as failed.
"""

from __future__ import annotations

import re

_FORMS: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = (
    (re.compile(r"^(?P<end>PASSED|FAILED|ERROR|XFAIL|XPASS) (?P<name>\S.*?)(?: - .*)?$"), {"PASSED": "passed"}),
    (re.compile(r"^(?P<name>\w+ \([\w.]+\)).* \.\.\. (?P<end>ok|FAIL|ERROR)$"), {"ok": "passed"}),
    (re.compile(r"^(?P<end>ok|not ok) \d+ -? ?(?P<name>[^#]+?)\s*$"), {"ok": "passed"}),
    (re.compile(r"^\s*--- (?P<end>PASS|FAIL): (?P<name>\S+) \("), {"PASS": "passed"}),
    (re.compile(r"^test (?P<name>\S+) \.\.\. (?P<end>ok|FAILED)$"), {"ok": "passed"}),
    (re.compile(r"^\s*\d+/\d+ Test\s+#\d+: (?P<name>\S+) \.*\s*(?P<end>Passed|\*\*\*\w+)"), {"Passed": "passed"}),
)  # fmt: skip


def outcomes(output: str) -> dict[str, str]:
    """Test -> passed | failed, in the order of the output."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        for pattern, passing in _FORMS:
            if (match := pattern.match(line)) is not None:
                end = passing.get(match["end"], "failed")
                found[match["name"]] = end if found.get(match["name"], end) == end else "failed"
                break
    return found
