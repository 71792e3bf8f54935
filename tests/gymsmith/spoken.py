"""`gymsmith WORDS` in the test's own process: what it printed and its exit code."""

from __future__ import annotations

import signal
import sys

import pytest

from gymsmith import cli


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `gymsmith WORDS`, run in this process."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
    given, sys.argv = sys.argv, ["gymsmith", *words]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = given
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err
