"""Pre-training text: simple commands only, predictable text marked as such, and no shell task from order to end."""

import random
import re

from env_factory.synth import corpus, shell
from env_factory.templates.shell.families import FAMILIES
from env_factory.templates.words import WORDS

COUNT = 300


def test_sessions_are_simple_and_repeatable() -> None:
    for seed in range(COUNT):
        played = corpus.session(random.Random(seed))
        assert played == corpus.session(random.Random(seed))
        assert played.files
        for step in played.steps:
            assert re.fullmatch(r"[A-Za-z0-9 ._*>-]+", step.command), step
            assert step.command.split()[0] in shell.TOOL.allow
            assert ">" not in step.command or step.command.startswith("echo ")


def test_a_document_learns_answers_not_questions() -> None:
    played = corpus.session(random.Random(3))
    turns = corpus.document(played, ["said\n"] * len(played.steps))
    assert turns[-1] == ("act", "exit", True)
    assert [turn.text for turn in turns if turn.role == "act"][:-1] == [step.command for step in played.steps]
    assert not any(turn.learn for turn in turns if turn.role == "task")
    assert [turn.learn for turn in turns if turn.role == "act"][:-1] == [bool(step.request) for step in played.steps]


def test_what_a_drill_learns_stands_before_it() -> None:
    """Every word of a learned command is a command word or was told or shown earlier in the drill."""
    verbs = set(shell.TOOL.allow) | {"exit", "n", "l", "1", "check"}
    for seed in range(COUNT * 4):
        told: set[str] = set()
        turns = corpus.drill(random.Random(seed))
        assert any(turn.learn for turn in turns)
        for turn in turns:
            words = set(re.findall(r"[a-z0-9]+", turn.text))
            if turn.learn:
                assert words <= told | verbs, (turns, words - told - verbs)
            told |= words


def test_no_drill_plays_a_task() -> None:
    """A drill that opens with the instruction of a family holds one command: where to look or what to answer, never both."""
    openings = {masked(shell.make(family, level, i).instruction) for family in FAMILIES for level in (1, 2, 3) for i in range(20)}
    met = 0
    for seed in range(COUNT * 10):
        turns = corpus.drill(random.Random(seed))
        if turns[0].role == "task" and masked(turns[0].text) in openings:
            met += 1
            assert sum(turn.role == "act" for turn in turns) == 1, turns
    assert met, "no drill opened like a task, so nothing was checked"


def masked(text: str) -> str:
    """The text with every word of the vocabulary of tasks replaced."""
    return re.sub(r"[a-z]+", lambda found: "w" if found[0] in WORDS else found[0], text)
