"""Scores, intervals and looks: what an evaluation says about its attempts."""

from __future__ import annotations

import math

import pytest

from env_factory.synth import shell
from env_factory.templates.shell.families import FAMILIES
from gymsmith.schema import Step
from sandboxes.evaluate import Outcome, Summary, wilson
from sandboxes.looking import looked


def steps(*pairs: tuple[str, str], refused: int | None = None) -> list[Step]:
    return [Step(action=a, observation=o, refused="x" if i == refused else "") for i, (a, o) in enumerate(pairs)]


def test_wilson_interval_agrees_with_the_defining_equation() -> None:
    """The ends are the p0 with |p - p0| = z * sqrt(p0 (1 - p0) / n)."""
    for passed, n in [(1, 10), (90, 120), (599, 600), (300, 600)]:
        score = wilson(passed, n)
        for end in (score.low, score.high):
            assert abs(score.rate - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert wilson(0, 9).low == 0.0 and 0 < wilson(0, 9).high < 0.35
    assert wilson(9, 9).high == 1.0


def outcome(group: str, passed: bool | None, looked: bool | None = True, commands: int = 3) -> Outcome:
    return Outcome(group, passed, looked, commands, "7")


def test_summary_counts_errors_apart_and_lucky_passes() -> None:
    summary = Summary.of(
        [
            outcome("a", True),
            outcome("a", False, False, 1),
            outcome("b", True, False),
            outcome("b", None),
            outcome("b", True, None),
        ]
    )
    assert (summary.overall.n, summary.overall.passed, summary.errors) == (4, 3, 1)
    assert {name: (s.n, s.passed) for name, s in summary.groups.items()} == {"a": (2, 1), "b": (2, 2)}
    assert summary.mean_commands == 2.5
    assert summary.passed_without_look == 1
    assert Summary.of([outcome("a", None)]).overall.n == 0


def test_a_look_is_an_output_that_shows_the_token_before_it_is_used() -> None:
    use = ("echo 417 > out", "")
    assert looked((), steps(use)) is None
    assert looked(("417",), steps(("cat a", "code 417\n"), use)) is True
    assert looked(("417",), steps(use)) is False
    assert looked(("417",), steps(use, ("cat out", "417\n"), ("touch out", ""))) is False
    assert looked(("417",), steps(("cat a", "code 4172\n"), use)) is False
    assert looked(("417",), steps(("cat 417", "cat: 417: No such file\n"), use)) is False, "a repeated guess is no look"
    assert looked(("417",), steps(("cat a", "refused 417\n"), use, refused=0)) is False
    assert looked(("417", "oak"), steps(("cat a", "417\n"), use)) is False
    assert looked(("oak",), steps(("ls", "elm oak\n"), ("rm o*", ""))) is True, "used through a pattern"
    assert looked(("oak",), steps(("rm o*", ""), ("ls", "oak\n"))) is False
    assert looked(("oak",), steps(("cat a", "oak\n"))) is True


def honest_outputs(task: shell.ShellTask, commands: tuple[str, ...]) -> list[tuple[str, str]]:
    """What the commands print, from a real shell's point of view simplified: readers show all files, their names and lengths."""
    shown = "\n".join([*task.files.values(), *task.files, *(str(len(text.splitlines())) for text in task.files.values())])
    return [(c, shown if c.split()[0] in ("ls", "cat", "grep", "head", "tail", "sh", "wc") else "") for c in commands]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_honest_ways_have_looked_and_what_is_known_by_heart_has_not(family: str) -> None:
    for level in (1, 2, 3):
        for seed in range(10):
            task = shell.make(family, level, seed)
            for way in (task.solution, *task.alternatives):
                assert looked(task.hidden, steps(*honest_outputs(task, way))) is True, (way, task.hidden)
            for way in task.memorised:
                assert looked(task.hidden, steps(*((command, "") for command in way))) is False, (way, task.hidden)
