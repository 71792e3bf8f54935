"""Why a draft is turned down: one word for each gate that fails, or for what its output says of the cause."""

from __future__ import annotations

import re

from gymsmith.schema import Gate

REASONS = (
    "build-failed", "refused", "no-oracle", "noop-passes", "oracle-fails", "needs-network", "lacks-dependency", "flaky",
    "few-f2p", "few-p2p", "suite-fails", "alternative-fails", "cheat-passes", "step-not-needed", "half-passes", "weak-tests",
    "few-cheats", "leak", "contradiction", "overspecified", "duplicate", "contaminated", "not-reproducible", "reads-solution",
    "looking", "slow", "contested",
)  # fmt: skip
"""Why a draft that was built is turned down. Screening has words of its own."""
_WORDS = {
    "noop": "noop-passes", "oracle": "oracle-fails", "again": "flaky", "f2p": "few-f2p", "p2p": "few-p2p", "runtime": "slow",
    "suite": "suite-fails", "cheats": "few-cheats", "leak-image": "leak", "consistency": "contradiction", "halves": "half-passes",
    "mutants": "weak-tests", "contamination": "contaminated", "rebuild": "not-reproducible", "restyled": "overspecified",
    "review:solve": "contested", "review:wrong": "cheat-passes", "review:given": "leak",
    "review:consistency": "contradiction", "review:halves": "half-passes", "review:mutants": "weak-tests",
}  # fmt: skip
"""Gate -> reason, where they differ."""
_LACKS = {
    "needs-network": re.compile(
        r"resolv(e|ing) host|name resolution|Network is unreachable|[Cc]onnection (refused|timed out)|TLS CA certificate|"
        r"No matching distribution|Unable to (fetch|locate package)|Max retries exceeded"
    ),
    "lacks-dependency": re.compile(r"No module named|ModuleNotFoundError|: (command )?not found|cannot open shared object"),
}
"""What a failing solution's output says of the image, where it says it."""
_WORDS_BY_START = {"alternative": "alternative-fails", "cheat:without": "step-not-needed", "cheat:": "cheat-passes"}


def reason(bad: Gate | None) -> tuple[str, str]:
    """The word for the gate that failed, and what it said."""
    if bad is None:
        return "", ""
    for start, word in _WORDS_BY_START.items():
        if bad.name.startswith(start):
            return word, f"{bad.name}: {bad.detail}"
    if bad.name in ("noop", "oracle", "f2p", "p2p") and (len(set(bad.rewards)) > 1 or "run to run" in bad.detail):
        return "flaky", f"{bad.name}: rewards {bad.rewards}; {bad.detail}"
    if bad.name == "oracle":
        return next((word for word, found in _LACKS.items() if found.search(bad.detail)), "oracle-fails"), bad.detail
    return _WORDS.get(bad.name, bad.name), bad.detail
