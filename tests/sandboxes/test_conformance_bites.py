"""A suite that cannot fail proves nothing: every conformance test is run against the faults that it names, and must fail.

The faults are those of `conformance/faults.py`, put into a real provider. What passes all the same is listed by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests/sandboxes/conformance"
SHARE = 0.9
SLOW = (
    "lease or flood or 64_megabytes or bottomless or grows or "
    "source_goes_on or loop_of_the_shell or many_commands or jobs_output or busy_loop"
)
"""Tests whose failure takes as long as their success: left to a run by hand, `GYMSMITH_TEST_SLOW=1`."""


def outcomes(faulty: str, folder: Path, only: str) -> dict[str, str]:
    """Test name -> "passed", "failed" or "skipped" of one run of the suite in a process of its own."""
    report = folder / "report.xml"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    environment.pop("GYMSMITH_REQUIRE_ALL", None)
    environment["GYMSMITH_TEST_FAULTY"] = faulty
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "--tb=native", str(SUITE)]
    done = subprocess.run([*command, "-k", only], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def test_the_suite_fails_against_a_faulty_provider(namespaces: None, tmp_path: Path) -> None:
    everything = os.environ.get("GYMSMITH_TEST_SLOW") == "1"
    found = outcomes("ns", tmp_path, "not test_control_the_host" + ("" if everything else f" and not ({SLOW})"))
    asked = {name: outcome for name, outcome in found.items() if "[ns" in name and outcome != "skipped"}
    passed = sorted(name for name, outcome in asked.items() if outcome == "passed")
    assert len({name.partition("[")[0] for name in asked}) >= 60, f"too few tests were asked to fail: {len(asked)}"
    assert len(asked) - len(passed) >= SHARE * len(asked), f"passed against their faults: {passed}"


def test_control_without_faults_they_pass(namespaces: None, tmp_path: Path) -> None:
    """The wrapper alone breaks nothing: the same tests through it, with no fault put in, pass."""
    found = outcomes("ns:none", tmp_path, "exit_codes or streams or both_ways or carry_over or odd_names or every_kind")
    assert len(found) >= 6 and set(found.values()) == {"passed"}


def test_control_a_suite_that_cannot_start_is_noticed(tmp_path: Path) -> None:
    assert "passed" not in outcomes("nonsense", tmp_path, "exit_codes").values()
