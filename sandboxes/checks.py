"""What may be asked of a sandbox: arguments looked at before anything is sent, the same for every provider.

Each refusal is a PolicyRefused that names the argument, what it must be, and what came.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gymsmith.errors import PolicyRefused
from sandboxes.base import MAX_FRAME_BYTES, MAX_LEASE_S, MIB, CommandLine, check_env, check_path

MAX_TIMEOUT_S = 7 * 86_400
MAX_OUTPUT_BYTES = 16 * MIB
MAX_COMMAND_BYTES = MAX_FRAME_BYTES - MIB
MAX_FORKS = 1000


def words_of(command: CommandLine) -> list[str]:
    """The argument vector of a command. Raises: PolicyRefused."""
    if not isinstance(command, str | Sequence) or isinstance(command, bytes):
        raise PolicyRefused(f"command must be a string or a sequence of strings, got {command!r:.100}")
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    for word in words:
        if not isinstance(word, str):
            raise PolicyRefused(f"command must consist of strings, got {word!r:.100}")
        if "\0" in word:
            raise PolicyRefused(f"command must not contain NUL, got {word[:100]!r}")
        encoded("command", word)
    if not words or not words[0]:
        raise PolicyRefused(f"command must name a program, got {command!r:.100}")
    return words


def check_run(
    words: Sequence[str], cwd: str | None, env: Mapping[str, str] | None, stdin: bytes, timeout_s: float, max_output_bytes: int
) -> None:
    """Refuse what no command could be run with. Raises: PolicyRefused."""
    check_timeout(timeout_s)
    check_output(max_output_bytes)
    if not isinstance(stdin, bytes | bytearray | memoryview):
        raise PolicyRefused(f"stdin must be bytes, got {stdin!r:.100}")
    size = sum(map(len, words)) + len(stdin)
    if size > MAX_COMMAND_BYTES:
        raise PolicyRefused(f"command and stdin must stay below {MAX_COMMAND_BYTES} bytes, got {size}; put a file instead")
    if cwd is not None:
        check_path("cwd", cwd)
    if env:
        check_env(env)


def check_timeout(timeout_s: float) -> None:
    """Raises: PolicyRefused."""
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:  # also refuses nan
        raise PolicyRefused(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S}, got {timeout_s!r:.100}")


def check_output(max_output_bytes: int) -> None:
    """Raises: PolicyRefused."""
    if not isinstance(max_output_bytes, int) or not 0 <= max_output_bytes <= MAX_OUTPUT_BYTES:
        raise PolicyRefused(f"max_output_bytes must be between 0 and {MAX_OUTPUT_BYTES}, got {max_output_bytes!r:.100}")


def check_line(line: str) -> None:
    """Raises: PolicyRefused (not text that one shell could be handed)."""
    if not isinstance(line, str) or "\0" in line:
        raise PolicyRefused(f"line must be a string without NUL, got {line!r:.100}")
    if len(line) > MAX_COMMAND_BYTES:
        raise PolicyRefused(f"line must stay below {MAX_COMMAND_BYTES} bytes, got {len(line)}; put a file instead")


def check_terminal(rows: int, cols: int) -> None:
    """Raises: PolicyRefused."""
    for name, value in (("rows", rows), ("cols", cols)):
        if not isinstance(value, int) or not 1 <= value <= 1000:
            raise PolicyRefused(f"{name} must be between 1 and 1000, got {value!r:.100}")


def check_forks(n: int) -> None:
    """Raises: PolicyRefused."""
    if not isinstance(n, int) or not 1 <= n <= MAX_FORKS:
        raise PolicyRefused(f"n must be between 1 and {MAX_FORKS}, got {n!r:.100}")


def check_put(paths: Iterable[str], mode: int) -> None:
    """Raises: PolicyRefused (a path that names no file, or a mode with more than permissions)."""
    if not 0 <= mode <= 0o777:
        raise PolicyRefused(f"mode must be between 0 and 0o777, got {mode:#o}")
    for path in paths:
        if check_path("path", path).endswith("/"):
            raise PolicyRefused(f"path must name a file, got {path!r}")


def check_put_size(size: int) -> None:
    """`size`: bytes of all files of one message. Raises: PolicyRefused."""
    if size > MAX_FRAME_BYTES:
        raise PolicyRefused(f"files must stay below {MAX_FRAME_BYTES} bytes together, got {size}; use a layer")


def check_get(path: str, max_bytes: int) -> None:
    """Raises: PolicyRefused."""
    if not 0 <= max_bytes <= MAX_FRAME_BYTES - 64:
        raise PolicyRefused(f"max_bytes must be between 0 and {MAX_FRAME_BYTES - 64}, got {max_bytes}")
    check_path("path", path)


def check_lease(lease_s: float) -> None:
    """Raises: PolicyRefused."""
    if not isinstance(lease_s, int | float) or not 1 <= lease_s <= MAX_LEASE_S:
        raise PolicyRefused(f"lease_s must be between 1 and {MAX_LEASE_S}, got {lease_s!r:.100}")


def encoded(name: str, text: str) -> bytes:
    """The bytes that `text` stands for, as the system's file names do. Raises: PolicyRefused."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PolicyRefused(f"{name} must be text that UTF-8 can hold, got {text!r:.100}") from None
