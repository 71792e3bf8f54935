"""Runs the checks of a task and tells their results. Copied into tests/ as `checks.py`; needs Python's standard library only.

    exec python3 -I -S /tests/checks.py

`/tests/checks.json` lists {"id": .., "file": ..}; each file is run on its own in the working folder, by sh or by Python, and 0 is
a pass. A check may run programs of the agent, so none of them gets the descriptor on which results are told, and this process
cannot be opened by others of its user (PR_SET_DUMPABLE): what they print, or write to /proc, counts for nothing.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys

PR_SET_DUMPABLE = 4
CHECK_S = 20.0
TOLD_CHARS = 160


def main() -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_DUMPABLE) failed, so results could be forged: no check is run")
    try:
        os.fstat(3)
        told = 3
    except OSError:
        told = 1  # Without our host there is no such descriptor; Harbor reads the reward file.
    os.set_inheritable(told, False)
    with open("/tests/checks.json", encoding="utf-8") as file:
        checks = json.load(file)
    bad = False
    for check in checks:
        why = run(f"/tests/checks/{check['file']}")
        bad = bad or bool(why)
        os.write(told, (f"FAIL {check['id']} {why}\n" if why else f"PASS {check['id']}\n").encode())
    if os.path.isdir("/logs/verifier"):
        with open("/logs/verifier/reward.txt", "w", encoding="ascii") as file:
            file.write("0\n" if bad else "1\n")
    return 0


def run(path: str) -> str:
    """Empty when the check passed; else one line that says why not."""
    program = ["python3", "-I", path] if path.endswith(".py") else ["/bin/sh", path]
    with subprocess.Popen(
        program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as child:
        try:
            output, _ = child.communicate(timeout=CHECK_S)
            ended = "" if child.returncode == 0 else f"exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            output, ended = b"", f"more than {CHECK_S:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
    if not ended:
        return ""
    said = " ".join(output[-2000:].decode(errors="replace").split())
    return f"{ended}: {said[-TOLD_CHARS:]}" if said else ended


if __name__ == "__main__":
    sys.exit(main())
