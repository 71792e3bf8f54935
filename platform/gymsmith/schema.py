"""The words of the house: what changes hands between rooms, and the protocols at the seams.

Everything that is stored or crosses a process is a frozen pydantic model that refuses unknown keys. A `Draft` holds file bytes
and lives inside one process only, so it is a plain dataclass; on disk it becomes a task folder (see `taskdir`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Word(BaseModel):
    """Base of every stored word: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def last_of_admission(review: bool, gates: str) -> None:
    """Raises: ValueError: a review is asked for without the gates that it comes last of."""
    if review and gates != "admission":
        raise ValueError(f"a review comes last of the gates of the level admission, got {gates}; ask for these")


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def digest(*parts: bytes) -> str:
    """Hex SHA-256 over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    h = hashlib.sha256()
    for part in parts:
        h.update(len(part).to_bytes(8, "big"))
        h.update(part)
    return h.hexdigest()


# ---------------------------------------------------------------- environments


class Source(Word):
    """Where an environment came from."""

    uri: str
    """As `env_factory.sources` reads it (pypi:NAME==VERSION, git:URL#COMMIT, file:PATH, ...), or shell:FAMILY."""
    kind: Literal["pypi", "tutorial", "man", "parametric", "git", "archive", "issue", "swebench", "harbor", "terminal-bench"]
    digest: str = ""
    """SHA-256 of the fetched bytes; empty for a generator of our own."""
    licence: str = ""
    """SPDX expression where it can be told, else as it stands written."""
    commit: str = ""
    """40 hex digits where the source is, or belongs to, a commit of a git repository."""
    meta: dict[str, str] = Field(default_factory=dict)


LlmKind = Literal["llm-tutorial", "llm-bug", "llm-issue", "llm-reword", "llm-setup"]
"""Kinds of a generate job that ask a language model. The others need none."""
GenerateKind = (
    Literal[
        "mutation",
        "reconstruction",
        "combination",
        "commit",
        "issue",
        "tutorial",
        "examples",
        "shell",
        "terminal",
        "repair",
        "layout",
        "browse",
    ]
    | LlmKind
)
"""Kinds of a generate job: one synthesizer each."""


class ToolSpec(Word):
    """What an agent may do in one action. Declared by the environment, enforced on the host by `sandboxes.tools`."""

    name: Literal["shell", "simple_command", "programs"] = "shell"
    """`shell`: any sh command line. `simple_command`: one command, no operators, from `allow`. `programs`: one call of a program
    that the environment brings as /opt/tools/NAME, for a NAME of `allow`; its words are arguments, whatever is in them."""
    allow: tuple[str, ...] = ()
    """Commands that `simple_command` and `programs` accept; empty means any, for `programs` none."""
    redirect: tuple[str, ...] = ()
    """Commands that may write with `> FILE` under `simple_command`."""
    timeout_s: float = 20.0
    max_output_bytes: int = 16384


class Service(Word):
    """A long-running program that belongs to a task (a daemon, a database).

    The host starts it before the agent's first action, and again, from this declaration, before the tests of a verifier: what
    the agent left running is dead by then. It never runs as the tests' user.
    """

    name: str
    command: str
    """Line for /bin/sh that stays in the foreground; runs in the task's working directory."""
    user: str = "agent"
    ready: str = ""
    """Line for /bin/sh that succeeds once the service answers; run as the service's user, again and again. Empty: at once."""
    ready_timeout_s: float = Field(default=10.0, gt=0.0)

    @field_validator("user")
    @classmethod
    def _not_the_tests(cls, user: str) -> str:
        if user in ("tester", "1001", "1001:1001"):
            raise ValueError('a service must not run as "tester", who owns the tests; name another user, such as "agent"')
        return user


class TaskSpec(Word):
    """What `task.toml` says: everything about a task that is not its text or its files."""

    name: str
    """`gymsmith/SLUG`, unique within a dataset."""
    kind: str
    """The synthesizer: shell, mutation, tutorial, ..."""
    description: str = ""
    keywords: tuple[str, ...] = ()
    difficulty: str = "uncalibrated"
    labels: dict[str, str] = Field(default_factory=dict)
    """Facets for search and evaluation: family, level, seed, split, package, operator, ..."""
    tool: ToolSpec = ToolSpec()
    max_turns: int = 12
    agent_timeout_s: float = 600.0
    workdir: str = "/work"
    artifacts: tuple[str, ...] = ("/work",)
    """Paths whose changes are carried from the agent's sandbox into the verifier's; nothing else crosses."""
    protected: tuple[str, ...] = ()
    """Glob patterns (relative to an artifact root) that are never carried: tests, conftest.py, *.pth, ..."""
    verifier_mode: Literal["separate", "shared"] = "separate"
    """`separate`: the artifacts, in a fresh sandbox. `shared`: the agent's own file system, once every process there is dead."""
    services: tuple[Service, ...] = ()
    """Started in this order, in the agent's sandbox and in the verifier's."""
    report: Literal["stdout", "descriptor", "reward"] = "stdout"
    """Where the hidden tests tell their results. `stdout`: lines on standard output; only for tests that let nothing of the
    agent's write there. `descriptor`: the same lines on descriptor 3; what is printed counts for nothing. `reward`: Harbor's
    reward file (tasks that were imported; a test that runs the agent's code as itself cannot be told from that code)."""
    verifier_timeout_s: float = 60.0
    expected: tuple[str, ...] = ()
    """Ids of the hidden tests that must each be reported passed exactly once; kept on the host."""
    hidden: tuple[str, ...] = ()
    """Tokens that must have been seen in an observation before the deciding action; empty where looking is not measured."""
    memory_mb: int = 512
    pids: int = 128
    cpus: float = 1.0
    network: Literal["no-network", "allowlist"] = "no-network"
    """What the agent's sandbox may reach while it runs, in Harbor's words."""
    allowed_hosts: tuple[str, ...] = ()
    """Under `allowlist`: "name" or "*.name", ":port" where that is not 80 or 443; reached by a proxy, never directly."""
    packages: tuple[str, ...] = ()
    """Under `no-network`: "name" or "name==version" of Python packages that an offline index offers, dependencies included."""
    verifier_network: bool = False
    """The verifier's sandbox may reach the same; by default it reaches nothing."""

    @model_validator(mode="after")
    def _one_way_out(self) -> TaskSpec:
        if (self.network == "allowlist") != bool(self.allowed_hosts):
            raise ValueError(f"allowed_hosts go with network = allowlist, got {self.network} and {list(self.allowed_hosts)}")
        if self.packages and self.network == "allowlist":
            raise ValueError("packages come from an offline index: set network to no-network, or leave packages empty")
        return self


@dataclass(frozen=True, slots=True)
class Draft:
    """An environment that nobody has proved yet; lives in one process."""

    source: Source
    spec: TaskSpec
    instruction: str
    files: Mapping[str, bytes]
    """Task folder members: environment/Dockerfile, environment/..., tests/test.sh, tests/..., solution/solve.sh."""
    alternatives: tuple[str, ...] = ()
    """Other honest solutions, as shell scripts like solve.sh, written differently; each must score 1."""
    cheats: tuple[tuple[str, str], ...] = ()
    """(name, shell script) of dishonest attempts particular to this draft; each must score 0. The gates add the general ones."""
    executable: frozenset[str] = field(default_factory=frozenset)
    """Members written with the execute bit."""

    @property
    def id(self) -> str:
        """Content hash of what the agent and the verifier get (not of the base image, nor of the evidence)."""
        parts = [self.instruction.encode(), self.spec.model_dump_json().encode()]
        for name in sorted(self.files):
            parts += [name.encode(), self.files[name]]
        return digest(*parts)[:32]


class Status(StrEnum):
    """Earned, never declared: only the gates move a draft on."""

    DRAFT = "draft"
    BUILT = "built"
    VERIFIED = "verified"
    UNPROVEN = "unproven"
    REJECTED = "rejected"


class Gate(Word):
    """The result of one gate."""

    name: str
    """noop, oracle, alternative, cheat:NAME, f2p, p2p, leak, looking, runtime, ..."""
    passed: bool
    rewards: tuple[float, ...] = ()
    """One reward per run of the gate."""
    seconds: float = 0.0
    detail: str = ""


class Evidence(Word):
    """Everything the gates saw. Binds to the image that was used."""

    environment_id: str
    gates: tuple[Gate, ...]
    image_id: str
    base_digest: str = ""
    provider: str = ""
    seconds: float = 0.0
    created_at: datetime = Field(default_factory=now)

    @property
    def proved(self) -> bool:
        """Every gate passed, and both controls (noop, oracle) are among them."""
        names = {g.name for g in self.gates}
        return {"noop", "oracle"} <= names and all(g.passed for g in self.gates)


class Environment(Word):
    """A stored environment. Its folder (Harbor format) lies under the state folder at `path`."""

    id: str
    source: Source
    spec: TaskSpec
    instruction: str
    status: Status
    reason: str = ""
    """Why it was rejected: one of the gates' words."""
    path: str
    image_id: str = ""
    created_at: datetime = Field(default_factory=now)


# ---------------------------------------------------------------- trajectories


class VersionSpan(Word):
    """Output positions [start, end) of a segment's ids that were sampled by weights `version`."""

    version: str
    start: int
    end: int


class Segment(Word):
    """Exactly the ids that a model saw and produced. A fold starts a new segment.

    All four lists have length T. `mask[i] == 1` marks ids sampled by the policy; only those have a logprob and train.
    """

    ids: list[int]
    mask: list[int]
    logprobs: list[float]
    """Natural log probability at the sampling temperature, 0.0 where mask is 0."""
    versions: list[VersionSpan] = Field(default_factory=list)


class Step(Word):
    """One action and what came back, as text for people. Never used for training."""

    action: str
    observation: str = ""
    exit_code: int | None = None
    refused: str = ""
    """The tool's reason when the action was not run."""
    seconds: float = 0.0
    folded: bool = False
    """This step's observation was folded away in some later prompt."""


class Reward(Word):
    """The host's verdict."""

    value: float
    tests: dict[str, str] = Field(default_factory=dict)
    """Test id -> passed | failed | missing | duplicate | unexpected | skipped."""
    detail: str = ""
    seconds: float = 0.0


class Trajectory(Word):
    """One attempt at one environment."""

    id: str
    environment_id: str
    run_id: str
    group: str = ""
    """Attempts that share a baseline: RUN/STEP/INDEX."""
    attempt: int = 0
    seed: int = 0
    policy_version: str = ""
    segments: list[Segment] = Field(default_factory=list)
    steps: list[Step] = Field(default_factory=list)
    reward: Reward | None = None
    error: str = ""
    """Set when the rollout failed for a reason of ours; then `reward` is None and it never trains."""
    finish: Literal["exit", "turns", "length", "timeout", "error"] = "exit"
    looked: bool | None = None
    """Every hidden token was seen in an observation before the deciding action; None where not measured."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall seconds: total, generate, sandbox, grade."""
    created_at: datetime = Field(default_factory=now)


# ---------------------------------------------------------------- runs and reports


class State(StrEnum):
    """Life of a job or a run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Run(Word):
    """A training or evaluation run. Rollout workers read `engine_url` and `policy_version` from here."""

    id: str
    kind: str
    """pretrain, sft, dpo, rl, evaluate, demo."""
    name: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    config_hash: str = ""
    seed: int = 0
    state: State = State.QUEUED
    parent: str = ""
    """The run whose checkpoint this one started from, or the demo that owns it."""
    engine_url: str = ""
    policy_version: str = ""
    checkpoint: str = ""
    """Folder of the newest checkpoint, relative to the state folder."""
    summary: dict[str, Any] = Field(default_factory=dict)
    error: str = ""
    created_at: datetime = Field(default_factory=now)
    finished_at: datetime | None = None


class Metric(Word):
    """One point of a curve."""

    run_id: str
    step: int
    name: str
    value: float


class Score(Word):
    """A pass rate with its 95% Wilson interval."""

    n: int
    passed: int
    rate: float
    low: float
    high: float


class EvalReport(Word):
    """Pass rates of one policy on one set of environments."""

    id: str
    run_id: str
    name: str
    policy_version: str
    mode: Literal["sampled", "greedy", "gold", "empty", "predictions"]
    seed: int = 0
    overall: Score
    groups: dict[str, Score] = Field(default_factory=dict)
    """By family, or by repository for SWE-bench."""
    mean_commands: float = 0.0
    passed_without_look: int = 0
    errors: int = 0
    """Attempts lost to infrastructure; not part of n."""
    seconds: float = 0.0
    config: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime = Field(default_factory=now)


class Job(Word):
    """A row of the jobs table, which is the truth; the message queue carries its id alone."""

    id: str
    kind: str
    queue: str
    payload: dict[str, Any] = Field(default_factory=dict)
    key: str = ""
    """Idempotency key: the same key never makes a second job."""
    state: State = State.QUEUED
    attempt: int = 0
    """Fencing token: every write of a worker carries the attempt it claimed."""
    max_attempts: int = 5
    owner: str = ""
    lease_until: datetime | None = None
    progress: dict[str, Any] = Field(default_factory=dict)
    """done, total, unit, and whatever the kind counts (admitted, reasons, ...)."""
    result: dict[str, Any] = Field(default_factory=dict)
    error: str = ""
    parent: str = ""
    run_id: str = ""
    cancel: bool = False
    created_at: datetime = Field(default_factory=now)
    started_at: datetime | None = None
    finished_at: datetime | None = None


# ---------------------------------------------------------------- seams


class Generation(Word):
    """What a policy returned for one call."""

    ids: list[int]
    logprobs: list[float]
    versions: list[VersionSpan]
    finish: Literal["stop", "length", "abort"]


class Policy(Protocol):
    """Ids in, ids out."""

    async def generate(
        self,
        input_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
    ) -> Generation:
        """Continue `input_ids`. Temperature 0 is greedy. The stop id, when produced, is the last of `ids`.

        Raises:
            EngineError: the engine is away or answered outside its contract.
        """
        ...


class JobContext(Protocol):
    """What a door gets besides its payload."""

    job: Job

    @property
    def store(self) -> Any:
        """The open `gymsmith.store.Store`."""
        ...

    @property
    def settings(self) -> Any:
        """The process's `gymsmith.config.Settings`."""
        ...

    def progress(self, **fields: Any) -> None:
        """Merge fields into the job's progress; rate-limited, so call it freely.

        Raises:
            Fenced: another attempt owns the job, or it was cancelled.
        """
        ...

    def check(self) -> None:
        """Raise Fenced when this attempt lost its lease or the job was cancelled."""
        ...
