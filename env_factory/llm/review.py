"""A second reader: a language model does a task from its text alone, and tries to get by without doing it.

Without a model the gates find what shows when it is run. What text and tests share, such as a definition that both the solution
and the tests misread, shows to nobody but a reader. So a model that sees neither tests nor solution writes two honest attempts
and some wrong ones, and each is run:

    review:solve  an honest attempt passes, or failed by its own fault: who is to blame is asked of a model that sees everything
    review:wrong  no wrong attempt passes, but for one misreading of four or more: whether one that does was wrong is asked of a
                  model that sees the text, not the tests
    review:given  nothing hands the result over, so that an attempt passes which only copies it
    review:GATE   what a gate could not be sure of: halves and mutants that the tests accept may be all that was asked for, and
                  what reads like a contradiction is none where both honest attempts pass

No word of a model turns a task down by itself. It takes a run that came out otherwise than the text says, and a quotation, word
for word, of what the text or the tests say there. Where a model says nothing usable the task stands, and the evidence says so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from env_factory.gates.trial import DETAIL_CHARS, Trial
from env_factory.llm.conversation import MAX_TOKENS, Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, Prompt, fill
from env_factory.llm.view import at_start, hidden
from gymsmith.errors import Rejected
from gymsmith.schema import Gate, Reward

UNREAD = "review"
"""The gate that says that a reading came to nothing, or broke off."""
SOLVES = 3
"""Answers with honest attempts that a task is given."""
MAX_WRONG = 6
MAX_HELD = 8
"""Of what the tests accept and one gate doubts, as many are read."""
MIN_WRONG = 4
MAX_ANSWER = 16_384
"""Tokens of an answer that holds eight scripts."""
MAX_QUESTION = 160_000
"""Characters of a question; about 40,000 tokens."""
MAX_STATES = 200
"""Tests whose state is told."""
MIN_QUOTE = 12
"""Characters of a quotation, unless it is a whole line."""


class Wrong(Shape):
    """Work that is not what was asked for."""

    sort: Literal["part", "misread", "invented", "changed", "silenced"]
    script: str
    violates: str


class Given(Shape):
    """A place that hands the result over; empty where there is none."""

    place: str
    script: str


class Work(Shape):
    """See prompts/solve.md."""

    reading: str
    script: str
    other: str
    wrong: list[Wrong]
    given: Given


class Blame(Shape):
    """See prompts/arbitrate.md."""

    reading: str
    fault: Literal["attempt", "contradiction", "untold"]
    text_says: str
    tests_want: str


class Verdict(Shape):
    """On one script."""

    number: int
    reading: str
    done: Literal["yes", "side", "no", "copied"]
    clause: str


class Verdicts(Shape):
    """See prompts/done.md."""

    verdicts: list[Verdict]


T = TypeVar("T", bound=Shape)


class Reviewer:
    """Of one job; see `Around.reviewed`."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.unread = 0
        """Readings that came to nothing."""

    async def __call__(self, trial: Trial) -> list[Gate]:
        """The gates, up to the first that fails.

        Raises:
            BudgetSpent, LlmError, LlmRefused: see `Desk.ask`.
            InfrastructureError: sandboxes failed.
        """
        gates = await _Review(self.desk, trial, await at_start(trial)).gates()
        self.unread += any(gate.name == UNREAD for gate in gates)
        return gates


class _Review:
    def __init__(self, desk: Desk, trial: Trial, files: str) -> None:
        self.desk, self.trial, self.files = desk, trial, files
        self.instruction = trial.task.instruction
        self.tests, self.solution = hidden(trial.task)
        self.seed = int(trial.draft.id[:7], 16)

    async def gates(self) -> list[Gate]:
        gates: list[Gate] = []
        try:
            talk = self._talk(self._prompt("solve", workdir=self.trial.task.spec.workdir), Work, MAX_ANSWER)
            work = await self._work(talk)
            solved = await self._solved(talk, work)
            gates += [solved, *self._agreed(solved)]
            if all(gate.passed for gate in gates):
                gates += await self._accepted(work)
        except Rejected as error:
            said = f"not concluded, for the model gave no usable answer ({error.reason}): {error.detail}"
            told = {gate.name for gate in gates}
            held = [self._gate(d.gate, False, d.said) for d in self.trial.doubts if f"review:{d.gate}" not in told]
            gates += [Gate(name=UNREAD, passed=True, detail=said[:DETAIL_CHARS]), *held]
        return gates

    async def _work(self, talk: Talk[Work]) -> Work:
        """The next answer with enough in it. Raises: Rejected."""

        def few(work: Work) -> list[str]:
            wanted = f"wrong must hold {MIN_WRONG} to {MAX_WRONG} scripts, got {len(work.wrong)}"
            return [wanted] if len(work.wrong) < MIN_WRONG else []

        return await _fitting(talk, few, "llm-shape")

    async def _solved(self, talk: Talk[Work], work: Work) -> Gate:
        """Honest attempts, and who is to blame where they fail."""
        overlooked = ""
        for n in range(1, SOLVES + 1):
            tried = await asyncio.gather(*(self._run(script) for script in (work.script, work.other)))
            failed = [each for each in tried if each[1].value != 1.0]
            last = n == SOLVES or talk.asked >= talk.tries
            for script, reward, said in failed:
                try:
                    blame = await self._blame(script, reward, said, last)
                except Rejected as error:
                    overlooked = f"nobody could say whose fault it was ({error.reason})"
                    continue
                if blame.fault != "attempt":
                    found = f"the text says {blame.text_says!r}, " if blame.text_says else "nothing says it, and "
                    detail = f"{blame.fault}: {found}the tests want {blame.tests_want!r}. {blame.reading}"
                    return self._gate("solve", False, detail, [r for _, r, _ in tried])
                overlooked = said or f"the text says: {blame.text_says}"
            if len(failed) < len(tried):
                return self._gate("solve", True, f"done from the text alone in answer {n}", [r for _, r, _ in tried])
            if last:
                break
            talk.object(Unfit("overlooked", "the scripts do not do what is asked for.", overlooked))
            try:
                work = await self._work(talk)
            except Rejected:
                break
        detail = f"no honest attempt passed, each by its own fault; the last one: {overlooked}"
        return self._gate("solve", True, detail, [r for _, r, _ in tried])

    async def _blame(self, script: str, reward: Reward, said: str, last: bool) -> Blame:
        """Whose fault it is that an honest attempt failed; its own where it did not even run, unless that is all that came."""
        if said and not last:
            return Blame(reading=said, fault="attempt", text_says="", tests_want="")
        states = "\n".join([f"{test}: {state}" for test, state in reward.tests.items()][:MAX_STATES])
        prompt = self._prompt(
            "arbitrate",
            attempt=Material(script),
            outcome=Material("\n".join(filter(None, (states, reward.detail, said)))),
            tests=Material(self.tests),
            solution=Material(self.solution),
        )

        def unquoted(blame: Blame) -> list[str]:
            problems = [] if blame.fault == "untold" else self._unsaid("text_says", blame.text_says)
            wanted = [] if blame.fault == "attempt" else _unquoted("tests_want", blame.tests_want, "the tests", (self.tests,))
            return problems + wanted

        return await _fitting(self._talk(prompt, Blame), unquoted, "llm-quote")

    async def _accepted(self, work: Work) -> list[Gate]:
        """Whether what the tests accept, though it was meant to be wrong, is what the text asks for."""
        scripts: list[tuple[str, str]] = [(wrong.script, wrong.sort) for wrong in work.wrong[:MAX_WRONG] if wrong.script.strip()]
        allowed = 1 if len(scripts) >= MIN_WRONG else 0
        if work.given.script.strip():
            scripts.append((work.given.script, "given"))
        tried = await asyncio.gather(*(self._run(script) for script, _ in scripts))
        through = [(run[0], sort) for run, (_, sort) in zip(tried, scripts, strict=True) if run[1].value == 1.0]
        passing, sorts = [script for script, _ in through], [sort for _, sort in through]
        held = [(doubt, doubt.scripts[:MAX_HELD]) for doubt in self.trial.doubts if doubt.scripts]
        accepted = [*passing, *(script for _, shown in held for script in shown)]
        verdicts = await self._verdicts(accepted) if accepted else []
        judged = list(zip(verdicts, sorts, strict=False))
        wrong, copied = ([(v, sort) for v, sort in judged if v.done == word] for word in ("no", "copied"))
        said = "; ".join(f"{sort}, against {v.clause!r}: {v.reading}" for v, sort in wrong)
        told = f"{len(scripts)} were tried, {len(passing)} passed{f'; {said}' if said else ''}"
        # As with mutants: a single misreading that no test notices is a gap, and few tests have none.
        fine = all(sort == "misread" for _, sort in wrong) and len(wrong) <= allowed
        gates = [self._gate("wrong", fine, told, [reward for _, reward, _ in tried])]
        gates.append(self._gate("given", not copied, "; ".join(f"{v.clause!r} hands it over" for v, _ in copied)))
        at = len(passing)
        for doubt, shown in held:
            lacking = [v for v in verdicts[at : at + len(shown)] if v.done in ("no", "copied")]
            at += len(shown)
            share = len(lacking) / len(shown)
            said = "; ".join(f"against {v.clause!r}: {v.reading}" for v in lacking)
            told = f"{len(lacking)} of {len(shown)} lack what is asked for{f': {said}' if said else ''}; {doubt.said}"
            gates.append(self._gate(doubt.gate, share * len(doubt.scripts) <= doubt.allowed, told))
        return gates

    def _agreed(self, solved: Gate) -> list[Gate]:
        """What seemed to be a contradiction is none where both honest attempts, made from the text, pass."""
        both = all(value == 1.0 for value in solved.rewards)
        found = [doubt for doubt in self.trial.doubts if not doubt.scripts]
        said = "two attempts from the text pass, so it is none: " if both else "and not every honest attempt passes: "
        return [self._gate(doubt.gate, both, said + doubt.said) for doubt in found]

    async def _verdicts(self, scripts: Sequence[str]) -> list[Verdict]:
        """Whether scripts do what the text asks, by a reader who has seen no tests."""
        shown = "\n\n".join(f"Script {n}:\n\n{Material(script).fenced()}" for n, script in enumerate(scripts, 1))

        def unfounded(answer: Verdicts) -> list[str]:
            problems = []
            if [v.number for v in answer.verdicts] != list(range(1, len(scripts) + 1)):
                problems.append(f"expected a verdict on each of the {len(scripts)} scripts, in order.")
            for v in answer.verdicts:
                if v.done in ("no", "copied"):
                    problems += self._unsaid(f"verdict {v.number}: clause", v.clause)
            return problems

        talk = self._talk(self._prompt("done", scripts=shown), Verdicts)
        return (await _fitting(talk, unfounded, "llm-quote")).verdicts

    def _unsaid(self, field: str, quote: str) -> list[str]:
        """What is wrong with a quotation from what the agent is told."""
        return _unquoted(field, quote, "the text or the files", (self.instruction, self.files))

    async def _run(self, script: str) -> tuple[str, Reward, str]:
        script = script if script.startswith("#!") else f"#!/bin/bash\n{script}"
        return script, *(await self.trial.tried(script))

    def _prompt(self, name: str, **more: str | Material) -> Prompt:
        shown = {"instruction": Material(self.instruction), "files": Material(self.files)}
        prompt = fill(name, role="reviewer", **shown, **more)
        if len(prompt.user) > MAX_QUESTION:
            raise Rejected(
                "llm-length", f"the question would have {len(prompt.user)} characters, at most {MAX_QUESTION} are asked"
            )
        return prompt

    def _talk(self, prompt: Prompt, shape: type[Any], max_tokens: int = MAX_TOKENS) -> Talk[Any]:
        return Talk(self.desk, prompt, shape, seed=self.seed, max_tokens=max_tokens)

    def _gate(self, name: str, passed: bool, detail: str, rewards: Sequence[Reward] = ()) -> Gate:
        return Gate(
            name=f"review:{name}",
            passed=passed,
            rewards=tuple(reward.value for reward in rewards),
            seconds=round(sum(reward.seconds for reward in rewards), 4),
            detail=detail[:DETAIL_CHARS],
        )


async def _fitting(talk: Talk[T], problems: Callable[[T], list[str]], reason: str) -> T:
    """The next answer without problems; what they are is told to the model. Raises: Rejected."""
    while found := problems(answer := await talk.ask()):
        talk.object(Unfit(reason, " ".join(found)))
    return answer


def _unquoted(field: str, quote: str, name: str, texts: Iterable[str]) -> list[str]:
    """What is wrong with a quotation: nothing where it stands in one of the texts, whatever the white space. Marks between files,
    and few letters that stand anywhere, are none."""
    wanted = _flat(quote)
    lines = [line for text in texts for line in text.split("\n") if not line.startswith("--- ")]
    if wanted and (wanted in map(_flat, lines) or (len(wanted) >= MIN_QUOTE and wanted in _flat(" ".join(lines)))):
        return []
    return [
        f"{field} must be words of {name}, copied exactly and without a gap, a whole line or at least {MIN_QUOTE} characters, "
        f"got {quote[:120]!r}."
    ]


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
