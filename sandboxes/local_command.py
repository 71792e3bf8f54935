"""One command of the `local` provider: an ordinary process of this machine with capped output and a deadline.

Everything it starts is found again by a mark in its environment, also what left its session. That is enough for our own code
and no hindrance for anybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sandboxes.base import ExecResult, JobState

MARK = "GYMSMITH_LOCAL"
_READ = 65_536


class Capture:
    """The beginning and the end of a pipe's bytes, at most `cap` of them; the rest is counted."""

    def __init__(self, descriptor: int, cap: int, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = descriptor
        self._cap = cap
        self._loop = loop
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0
        self._counting = True
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        """Take what is there; after `settle` it is dropped, so that background processes neither block nor get a signal."""
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        if not data:
            self.close()
        elif self._counting:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._total += len(data)
        room = self._cap // 2 - len(self._head)
        self._head += data[: max(room, 0)]
        self._tail += data[max(room, 0) :]
        keep = self._cap - self._cap // 2
        if len(self._tail) > keep:
            del self._tail[: len(self._tail) - keep]

    def settle(self) -> None:
        """The command has ended: what it wrote before counts, what others write later does not."""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, _READ)
            except BlockingIOError:
                break
            if not data:
                self.close()
                break
            self._take(data)
        self._counting = False

    def close(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def kept(self) -> tuple[bytes, int]:
        """The bytes with a line for what is missing, and how much that is."""
        lost = self._total - len(self._head) - len(self._tail)
        if not lost:
            return bytes(self._head + self._tail), 0
        return b"%b\n[... %d bytes omitted ...]\n%b" % (bytes(self._head), lost, bytes(self._tail)), lost


class LocalCommand:
    """A running or ended command. `ended` is the future of its result."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes,
        max_output_bytes: int,
        split: bool,
        sandbox_mark: str,
        shown_cwd: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.mark = f"{sandbox_mark}.{secrets.token_hex(8)}"
        self.ended: asyncio.Future[ExecResult] = loop.create_future()
        self._loop = loop
        self._began = time.monotonic()
        self._timed_out = False
        self._streams: list[Capture] = []
        self._pidfd = -1
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            try:
                self._process = subprocess.Popen(
                    list(map(os.fsencode, words)), cwd=cwd, env={**env, MARK: self.mark}, stdin=source, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if split else subprocess.STDOUT, start_new_session=True, umask=0o22,
                    preexec_fn=_begin_afresh,
                )  # fmt: skip
            except OSError as error:
                self.ended.set_result(_not_started(error, words[0], shown_cwd, cwd, max_output_bytes))
                return
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                self._streams.append(Capture(os.dup(pipe.fileno()), max_output_bytes, loop))
                pipe.close()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._exited)

    @property
    def finished(self) -> bool:
        """It has ended and nobody writes to its pipes any more."""
        return self.ended.done() and all(stream.closed for stream in self._streams)

    def expire(self) -> None:
        """Its deadline is here: kill it and everything it started."""
        self._timed_out = True
        self.kill()

    def kill(self) -> None:
        kill_marked(self.mark)

    def state(self) -> JobState:
        if self.ended.done():
            result = self.ended.result()
            return JobState(result.output, result.omitted_bytes, result)
        return JobState(*self._streams[0].kept())

    def close(self) -> None:
        """Let go of the pipes; for a sandbox whose last process is dead."""
        if not self.ended.done():
            self._exited(wait=True)
        for stream in self._streams:
            stream.close()

    def _exited(self, wait: bool = False) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status, usage = os.wait4(self._process.pid, 0 if wait else os.WNOHANG)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        for stream in self._streams:
            stream.settle()
        output, lost = self._streams[0].kept()
        stderr, lost_too = self._streams[1].kept() if len(self._streams) > 1 else (b"", 0)
        exited = os.WIFEXITED(status)
        self.ended.set_result(
            ExecResult(
                exit_code=os.WEXITSTATUS(status) if exited else None,
                signal=None if exited else os.WTERMSIG(status),
                output=output,
                stderr=stderr,
                truncated=bool(lost or lost_too),
                omitted_bytes=lost + lost_too,
                timed_out=self._timed_out,
                wall_s=time.monotonic() - self._began,
                cpu_s=usage.ru_utime + usage.ru_stime,
            )
        )


def _begin_afresh() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # whoever started us in the background had them ignored
        signal.signal(number, signal.SIG_DFL)


def _not_started(error: OSError, program: str, shown_cwd: str, cwd: Path, limit: int) -> ExecResult:
    in_directory = not cwd.is_dir()
    what = f"cannot enter directory {shown_cwd}" if in_directory else f"cannot start {program}"
    text = f"{what}: {os.strerror(error.errno or 0)}\n".encode(errors="surrogateescape")[:limit]
    return ExecResult(127 if isinstance(error, FileNotFoundError) and not in_directory else 126, None, text)


def kill_marked(mark: str) -> None:
    """Kill every process whose mark begins with this one, until there is none that lives."""
    for _ in range(200):
        found = _marked(mark)
        if not found:
            return
        for process in found:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


@contextlib.contextmanager
def standing_still(mark: str) -> Iterator[None]:
    """No process whose mark begins with this one runs within; those that its user had stopped stay stopped."""
    stopped: set[int] = set()
    try:
        for _ in range(200):
            running = [process for process in _marked(mark) if _state(process) not in "TtZX"]
            if not running:
                break
            for process in running:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGSTOP)
                    stopped.add(process)
            time.sleep(0.001)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGCONT)


def _marked(mark: str) -> list[int]:
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if any(word.startswith(needle) for word in Path("/proc", entry, "environ").read_bytes().split(b"\0")):
                    found.append(int(entry))
    return found


def _state(process: int) -> str:
    """The letter of proc(5): T stopped, Z dead and not yet waited for; X when there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
