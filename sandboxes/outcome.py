"""What a resident agent says about a command, on the wire (`struct exec_reply` of `box/box.h`), and as an ExecResult."""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

from sandboxes.base import ExecResult, JobState

_REPLY = struct.Struct("<i7IQQQQ")
_CHDIR_FAILED = 1 << 16
SHELL_ENDED = 2


class Outcome(NamedTuple):
    """One reply, decoded."""

    wait_status: int
    start_errno: int
    timed_out: bool
    state: int
    output: bytes
    stderr: bytes
    omitted_bytes: int
    wall_s: float
    cpu_s: float

    @property
    def ended_badly(self) -> bool:
        return not os.WIFEXITED(self.wait_status) or os.WEXITSTATUS(self.wait_status) != 0

    def result(self, program: str, cwd: str, limit: int, oom: bool) -> ExecResult:
        """As an ExecResult; `program` and `cwd` are for the reason why nothing could be started."""
        if self.start_errno:
            reason = os.strerror(self.start_errno & ~_CHDIR_FAILED)
            what = f"cannot enter directory {cwd}" if self.start_errno & _CHDIR_FAILED else f"cannot start {program}"
            text = f"{what}: {reason}\n".encode(errors="surrogateescape")[: max(limit, 0)]
            return ExecResult(127 if self.start_errno == errno.ENOENT else 126, None, text, wall_s=self.wall_s)
        exited = os.WIFEXITED(self.wait_status)
        return ExecResult(
            exit_code=os.WEXITSTATUS(self.wait_status) if exited else None,
            signal=None if exited else os.WTERMSIG(self.wait_status),
            output=self.output,
            stderr=self.stderr,
            truncated=self.omitted_bytes > 0,
            omitted_bytes=self.omitted_bytes,
            timed_out=self.timed_out,
            oom=oom,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
        )

    def so_far(self) -> JobState:
        """As the state of a command that still runs."""
        return JobState(self.output, self.omitted_bytes)


def decode(payload: bytes) -> Outcome:
    """The reply in an EXIT frame."""
    (status, start_errno, timed_out, out_length, err_length, out_head, err_head, state,
     out_total, err_total, wall_us, cpu_us) = _REPLY.unpack_from(payload)  # fmt: skip
    middle = _REPLY.size + out_length
    output, lost = _join(payload[_REPLY.size : middle], out_head, out_total)
    stderr, lost_too = _join(payload[middle : middle + err_length], err_head, err_total)
    return Outcome(status, start_errno, bool(timed_out), state, output, stderr, lost + lost_too, wall_us / 1e6, cpu_us / 1e6)


def _join(data: bytes, head: int, total: int) -> tuple[bytes, int]:
    """The output with a line in the place of what the agent had to drop, and how much that was."""
    lost = total - len(data)
    if lost <= 0:
        return data, 0
    return b"%b\n[... %d bytes omitted ...]\n%b" % (data[:head], lost, data[head:]), lost
