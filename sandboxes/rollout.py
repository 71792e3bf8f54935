"""THE loop: a policy acts, a sandbox answers, what was said is folded, and at the end the host grades.

It serves any policy, any tool and any environment: what is particular to one of them is data (`ToolSpec`, `FoldConfig`, the
task's own tests). One call is one attempt at one environment and gives one `Trajectory`. A failure of ours is recorded on the
trajectory and never becomes a reward; a bug propagates.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from context_mgmt.budget import Budget, Finish, Limits
from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig, Window
from context_mgmt.transcript import Transcript
from gymsmith.errors import EngineError, ExecTimeout, Fenced, InfrastructureError, SandboxGone
from gymsmith.schema import Generation, Policy, Reward, Step, Trajectory, VersionSpan, digest, now
from gymsmith.taskdir import Task
from sandboxes import services, tools
from sandboxes.base import ExecResult, Image, Provider, Sandbox
from sandboxes.grade import assert_alive, judge, sandbox_spec
from sandboxes.looking import looked
from sandboxes.verdict import nothing

log = logging.getLogger(__name__)

MAX_ABORTS = 8
"""How often one action may be cut by the engine (a pause for new weights) and taken up again."""
SILENCES = 3
"""How often a sandbox may fall silent until that counts as the agent's doing. A machine that is too busy to run it for seconds
looks alike, but not again and again; an agent that silences its sandbox does so each time, for it samples the same."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which attempt this is. Two attempts that are equal here sample the same tokens from the same weights."""

    run_id: str
    environment_id: str
    group: str = ""
    attempt: int = 0
    seed: int = 0

    @property
    def id(self) -> str:
        """The trajectory's id; repeating an attempt replaces what an earlier try of it stored."""
        parts = (self.run_id, self.environment_id, self.group, str(self.attempt), str(self.seed))
        return digest(*(part.encode() for part in parts))[:32]

    def sampling_seed(self, turn: int) -> int:
        """A counter-based seed for each action, 31 bits.

        An action that is taken up again after an abort keeps it: engines draw by seed and position, so what follows is what
        would have followed.
        """
        counter = f"{self.seed}/{self.environment_id}/{self.attempt}/{turn}".encode()
        return int.from_bytes(hashlib.blake2b(counter, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms attempts are made."""

    limits: Limits = field(default_factory=Limits)
    context: FoldConfig = field(default_factory=FoldConfig)
    temperature: float = 1.0
    """Of sampling; 0 is greedy."""


@dataclass(slots=True)
class _Clock:
    """Wall seconds by phase."""

    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "sandbox": 0.0, "grade": 0.0})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


async def rollout(
    task: Task, image: Image, provider: Provider, policy: Policy, chat: Chat, who: Attempt, terms: Terms
) -> Trajectory:
    """One attempt. Its sandboxes are gone when this returns or raises."""
    began = time.perf_counter()
    clock = _Clock()
    finish: Finish = "error"
    reward: Reward | None = None
    error = ""
    try:
        for tries_left in reversed(range(SILENCES)):
            episode = _Episode(task, policy, chat, who, terms, clock)
            with clock.phase("sandbox"):
                box = await provider.create(sandbox_spec(task, image, "agent", run=who.run_id, environment=who.environment_id))
            try:
                reward, finish = await _played(episode, provider, image, task, box, forgive=tries_left > 0)
                if reward is None and finish != "error":
                    with clock.phase("grade"):
                        reward = await judge(provider, image, task, box)
            finally:
                with clock.phase("sandbox"):
                    await box.destroy()
            if finish != "error":
                break
    except Fenced:
        raise
    except InfrastructureError as failure:
        finish, reward, error = "error", None, f"{type(failure).__name__}: {failure}"
        log.warning("rollout failed environment=%s attempt=%d error=%s", who.environment_id, who.attempt, error)
    segments = episode.transcript.segments()
    steps = episode.told()
    versions = [span.version for segment in segments for span in segment.versions]
    clock.seconds["total"] = time.perf_counter() - began
    return Trajectory.model_construct(
        id=who.id,
        environment_id=who.environment_id,
        run_id=who.run_id,
        group=who.group,
        attempt=who.attempt,
        seed=who.seed,
        policy_version=versions[0] if versions else "",
        segments=segments,
        steps=steps,
        reward=reward,
        error=error,
        finish=finish,
        looked=looked(task.spec.hidden, steps),
        seconds={name: round(value, 6) for name, value in clock.seconds.items()},
        created_at=now(),
    )


async def _played(
    episode: _Episode, provider: Provider, image: Image, task: Task, box: Sandbox, *, forgive: bool
) -> tuple[Reward | None, Finish]:
    """How the episode ended, and the verdict where there is nothing left to judge; "error" for a silence that is forgiven.

    Raises: SandboxError: a service of the task does not start, or the provider failed.
    """
    try:
        broken = await services.start(box, task.spec.services, task.spec.workdir)
        if broken:
            log.info("a service did not start environment=%s said=%s", episode.who.environment_id, broken)
        return None, await episode.play(box)
    except (SandboxGone, ExecTimeout) as death:
        await assert_alive(provider, image)
        if forgive and isinstance(death, ExecTimeout):
            log.warning("an attempt is made again environment=%s because=%s", episode.who.environment_id, death)
            return None, "error"
        # Others live, so this one died of what was done in it: the agent's doing, and a verdict like any other.
        return nothing(task, f"the sandbox ended: {death}"), "timeout"


def lost(who: Attempt, failure: InfrastructureError) -> Trajectory:
    """The trajectory of an attempt that could not even begin."""
    return Trajectory(
        id=who.id,
        environment_id=who.environment_id,
        run_id=who.run_id,
        group=who.group,
        attempt=who.attempt,
        seed=who.seed,
        error=f"{type(failure).__name__}: {failure}",
        finish="error",
    )


class _Episode:
    """The conversation of one attempt: what was said so far, in ids for training and in words for people."""

    def __init__(self, task: Task, policy: Policy, chat: Chat, who: Attempt, terms: Terms, clock: _Clock) -> None:
        self.tool = task.spec.tool
        self.policy, self.chat, self.who, self.terms = policy, chat, who, terms
        self.window = Window(chat, task.instruction, terms.context)
        self.transcript = Transcript()
        self.clock = clock
        self._budget = Budget(terms.limits)
        self._steps: list[Step] = []

    def told(self) -> list[Step]:
        """The steps, each marked when its observation left a later prompt. The closing `exit` is not a step."""
        for i in range(self.window.folded):
            self._steps[i] = self._steps[i].model_copy(update={"folded": True})
        return self._steps

    async def play(self, box: Sandbox) -> Finish:
        """Act and observe until the episode ends; returns why it ended."""
        while True:
            prompt = self.window.prompt(self.terms.limits.max_new_tokens)
            if prompt is None:
                return "length"
            with self.clock.phase("generate"):
                said = await self._speak(prompt)
            self.transcript.record(prompt, said)
            self._budget.spend(len(said.ids))
            action = self.chat.command(said.ids)
            if said.finish == "length":
                self._steps.append(_step(action, refused=f"cut at {self.terms.limits.max_new_tokens} tokens"))
                return "length"
            verdict = tools.read_action(self.tool, action)
            if isinstance(verdict, tools.Finish):
                return "exit"
            if isinstance(verdict, tools.Refusal):
                text, exit_code, refused, seconds = verdict.observation, None, verdict.reason, 0.0
            else:
                result = await self._run(box, verdict.line)
                text, exit_code, refused, seconds = tools.show(self.tool, result), result.exit_code, "", result.wall_s
            observation = self.chat.observation(text, self.terms.context.observation_tokens)
            shown = self.chat.decode(observation[1:-2])
            self._steps.append(_step(action, shown, exit_code=exit_code, refused=refused, seconds=seconds))
            self.window.add([*said.ids, *self.chat.closing(said.ids)], observation)
            ended = self._budget.spent()
            if ended is not None:
                return ended

    async def _run(self, box: Sandbox, line: str) -> ExecResult:
        timeout_s = max(0.1, min(self.tool.timeout_s, self._budget.seconds_left))
        with self.clock.phase("sandbox"):
            return await box.exec(line, timeout_s=timeout_s, max_output_bytes=self.tool.max_output_bytes)

    async def _speak(self, prompt: list[int]) -> Generation:
        """One action of the policy, taken up again where the engine aborted it.

        Raises:
            EngineError: it was aborted again and again.
        """
        limit, stops = self.terms.limits.max_new_tokens, (self.chat.end,)
        ids: list[int] = []
        logprobs: list[float] = []
        versions: list[VersionSpan] = []
        seed = self.who.sampling_seed(self._budget.turns)
        for part in range(MAX_ABORTS):
            said = await self.policy.generate(
                prompt + ids,
                max_new_tokens=limit - len(ids),
                temperature=self.terms.temperature,
                seed=seed,
                stop_token_ids=stops,
            )
            if said.finish != "abort" and part == 0:
                return said
            start = len(ids)
            ids += said.ids
            logprobs += said.logprobs
            versions += [VersionSpan(version=s.version, start=start + s.start, end=start + s.end) for s in said.versions]
            finish = said.finish
            if finish == "abort" and len(ids) >= limit:
                finish = "length"
            if finish != "abort":
                return Generation.model_construct(ids=ids, logprobs=logprobs, versions=versions, finish=finish)
        raise EngineError(
            f"an action must end within {MAX_ABORTS} parts, got as many aborts; is the engine paused in abort mode?"
        )


def _step(action: str, observation: str = "", *, exit_code: int | None = None, refused: str = "", seconds: float = 0.0) -> Step:
    return Step.model_construct(
        action=action, observation=observation, exit_code=exit_code, refused=refused, seconds=round(seconds, 6), folded=False
    )
