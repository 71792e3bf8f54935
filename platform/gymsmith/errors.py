"""One family of errors, drawn as a tree.

    GymsmithError
    ├── UserError                 what was asked cannot be done; the message names the next move
    │   ├── ConfigError           a setting or a recipe is wrong
    │   ├── NotFound              no such environment, run, job, file
    │   ├── Conflict              the same key with another body; a port in use; already running
    │   ├── LlmRefused            the LLM endpoint will not take this key, model or request, however often it is asked
    │   └── SourceError           a source cannot become environments
    │       ├── UnknownPackage    the index knows no such package or version
    │       ├── NoTests           the package brings no test-suite that runs
    │       └── NoNetwork         the source must be fetched and cannot be
    ├── PolicyRefused             a rule of ours forbids it (a Dockerfile frontend, a path that escapes)
    ├── BuildError                a Dockerfile step failed: the environment's fault, not ours
    ├── Rejected                  a draft that a gate turned down; carries the typed reason
    ├── CorruptCheckpoint         a checkpoint whose digest does not match
    ├── CorruptData               a tokenised corpus that is cut off or whose digest does not match
    └── InfrastructureError       ours to retry; never a reward of 0, never a rejection
        ├── SandboxError
        │   ├── SandboxGone       the sandbox died or was destroyed under us
        │   │   └── DiskLimit     it wrote more than its disk holds, so it was ended
        │   ├── ShellEnded        a persistent shell has exited; the sandbox goes on
        │   ├── HostLost          the machine that it was on is away or was started anew
        │   ├── ExecTimeout       the sandbox did not answer (a command's own timeout is data, not this)
        │   ├── OutputLimit       a transfer was larger than the caller allowed
        │   ├── ImageMissing      the image is not in the store
        │   └── Capacity          no room for one more sandbox now
        ├── EngineError           the policy's engine did not answer as its contract says
        ├── LlmError              the LLM endpoint was away, busy or out of its contract for longer than it was waited for
        ├── StoreError            the database or the state folder failed (full, read-only, corrupted)
        └── Fenced                this attempt lost its lease; another one owns the job

A bad rollout is data: it is caught once, recorded on the trajectory and never cancels a sibling. Everything else propagates.
Each class carries the code that the API's problem documents and the CLI's exit status share.
"""

from __future__ import annotations


class GymsmithError(Exception):
    """Root of the family. `code` is stable text, `status` the HTTP status, `exit_code` the CLI's."""

    code = "error"
    status = 500
    exit_code = 1


class UserError(GymsmithError):
    """What was asked cannot be done as asked."""

    code = "bad-request"
    status = 400
    exit_code = 2


class ConfigError(UserError):
    """A setting, a recipe or an override is wrong."""

    code = "bad-config"


class NotFound(UserError):
    """There is no such thing."""

    code = "not-found"
    status = 404


class Conflict(UserError):
    """It clashes with something that is already there."""

    code = "conflict"
    status = 409


class LlmRefused(UserError):
    """The LLM endpoint will not take this key, model or request; asking again changes nothing."""

    code = "llm-refused"
    status = 502


class SourceError(UserError):
    """A source cannot become environments."""

    code = "bad-source"
    status = 422


class UnknownPackage(SourceError):
    """The package index knows no such package or version."""

    code = "unknown-package"


class NoTests(SourceError):
    """The package brings no test-suite that runs here."""

    code = "no-tests"


class NoNetwork(SourceError):
    """The source has to be fetched and cannot be."""

    code = "no-network"
    status = 503


class PolicyRefused(GymsmithError):
    """A rule of ours forbids it."""

    code = "refused"
    status = 403
    exit_code = 2


class BuildError(GymsmithError):
    """A Dockerfile step failed. `log` is the tail of its output."""

    code = "build-failed"
    status = 422

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Rejected(GymsmithError):
    """A gate turned a draft down. `reason` is one of a closed list of words kept by the gates."""

    code = "rejected"
    status = 422

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class CorruptCheckpoint(GymsmithError):
    """A checkpoint is unreadable or its digest does not match."""

    code = "corrupt-checkpoint"


class CorruptData(GymsmithError):
    """A tokenised corpus is cut off, or its digest does not match."""

    code = "corrupt-data"


class InfrastructureError(GymsmithError):
    """Ours to retry."""

    code = "infrastructure"
    status = 503
    exit_code = 3


class SandboxError(InfrastructureError):
    """A sandbox failed us."""

    code = "sandbox"


class SandboxGone(SandboxError):
    """The sandbox died or was destroyed."""

    code = "sandbox-gone"


class DiskLimit(SandboxGone):
    """A sandbox wrote more than its disk holds, under a provider that cannot refuse a write: it was ended."""

    code = "disk-limit"


class HostLost(SandboxError):
    """The machine that a sandbox was on is away or was started anew: nothing that was done in the sandbox is the reason."""

    code = "host-lost"


class ShellEnded(SandboxError):
    """A persistent shell has exited."""

    code = "shell-ended"


class ExecTimeout(SandboxError):
    """The sandbox did not answer in time."""

    code = "sandbox-timeout"


class OutputLimit(SandboxError):
    """A transfer was larger than allowed."""

    code = "output-limit"


class ImageMissing(SandboxError):
    """The image is not in the store."""

    code = "image-missing"


class Capacity(SandboxError):
    """No room for one more sandbox now."""

    code = "capacity"


class EngineError(InfrastructureError):
    """The policy's engine broke its contract or is away."""

    code = "engine"


class LlmError(InfrastructureError):
    """The LLM endpoint was away, busy or broke its contract for longer than it was waited for."""

    code = "llm"


class StoreError(InfrastructureError):
    """The database or the state folder failed."""

    code = "store"


class Fenced(InfrastructureError):
    """This attempt lost its lease."""

    code = "fenced"


def named(code: str, default: type[GymsmithError]) -> type[GymsmithError]:
    """The class of this family whose code it is; `default` for a code that no class has, or whose class takes no bare message."""
    wave: list[type[GymsmithError]] = [GymsmithError]
    for kind in wave:
        if kind.code == code and kind is not Rejected:
            return kind
        wave += kind.__subclasses__()
    return default
