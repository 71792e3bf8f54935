"""The loop that every author has: take an answer, make a draft of it, and tell the model what stood in the way.

A subclass says how an answer becomes a draft (`compose`). What the gates say about that draft comes back through `write`, in
words that whoever cannot see our code understands.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from env_factory.candidates import Problem
from env_factory.llm.account import BudgetSpent
from env_factory.llm.conversation import Shape, Talk, Unfit
from gymsmith.schema import Draft

T = TypeVar("T", bound=Shape)

MEANING = {
    "build-failed": "the Dockerfile could not be built",
    "refused": "the Dockerfile asks for something that is not done here",
    "noop-passes": "all tests pass when nothing at all is done: they test nothing, or the work is done already",
    "oracle-fails": "the tests do not pass after the solution ran",
    "flaky": "the same attempt is judged differently from run to run",
    "alternative-fails": "the tests do not pass after the alternative solution ran; it is wrong, or they ask for too much",
    "step-not-needed": "the tests pass although a step of the solution was left out",
    "half-passes": "the tests accept a part of what the solution does",
    "weak-tests": "the tests accept the solution's work with something in it made wrong; they must compare everything exactly",
    "suite-fails": "the solution breaks tests of the package's whole suite",
    "duplicate": "there is nearly the same task already; write one whose text and solution differ more",
    "contaminated": "the task is too close to a public benchmark; write another one",
    "contradiction": "the instruction and the tests contradict one another",
    "overspecified": "the tests ask for more than the instruction says",
    "not-reproducible": "the image comes out differently each time it is built",
    "reads-solution": "the tests read the solution",
    "needs-network": "the solution or the tests need a network, and there is none",
    "lacks-dependency": "the solution needs a program or a package that the image lacks",
    "few-cheats": "there are too few attempts to cheat; add shortcuts",
    "no-oracle": "there is no solution",
    "cheat-passes": "the tests accept an attempt that does not do the work",
    "few-f2p": "no test fails before and passes after the solution",
    "few-p2p": "too few tests pass before and after the solution",
    "leak": "what is hidden can be read: a test or a line of the solution stands in the instruction or among the files",
    "looking": "the instruction tells what has to be looked up",
    "contested": "somebody who did what the text says failed the tests; text and tests must agree, and the text must say it all",
    "slow": "the tests take more than half of their time limit",
    "survived": "no test of the package fails with this change; change what a test can see",
    "breaks-half": "more than half of all tests fail with this change; a realistic fault is smaller",
    "hang": "the tests do not end with this change",
    "died": "the tests cannot even be collected with this change, or end the interpreter",
    "thin": "no failing test shows in plain values what is wrong, so no report can be written; change a returned value",
}
"""What words of screening and of the gates mean, for a model."""


class Author(Generic[T]):
    """Of one candidate; see `candidates.Author`."""

    labels: dict[str, str]

    def __init__(self, talk: Talk[T], labels: dict[str, str]) -> None:
        self.talk = talk
        self.labels = {"provenance": talk.desk.provenance, **labels}

    async def write(self, problem: Problem | None) -> Draft | None:
        """The next draft; None when nothing more can be paid.

        Raises: Rejected: the tries are used up.
        """
        if problem is not None:
            self.talk.object(objection(problem.reason, problem.detail))
        try:
            while True:
                answer = await self.talk.ask()
                try:
                    return await self.compose(answer)
                except Unfit as unfit:
                    self.talk.object(unfit)
        except BudgetSpent:
            return None

    async def compose(self, answer: T) -> Draft:
        """The draft of an answer.

        Raises: Unfit.
        """
        raise NotImplementedError


def objection(reason: str, output: str = "") -> Unfit:
    """What a model is told about a word of screening or of the gates."""
    return Unfit(reason, MEANING.get(reason, "a gate turned the task down"), output)
