"""Runs a command as on a machine without user namespaces: `python no_namespaces.py COMMAND...`.

A seccomp filter, as container engines install one, refuses `unshare` and `clone` with CLONE_NEWUSER (EPERM) and all of `clone3`
(ENOSYS, so that callers fall back to `clone`, whose flags a filter can read). It is inherited and stays for good. x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

CLONE, UNSHARE, CLONE3 = 56, 272, 435
CLONE_NEWUSER = 0x10000000
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
LOAD, IF_EQUAL, IF_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
# (operation, instructions to skip if true, if false, operand); the number of the call is at offset 0, its first argument at 16.
PROGRAM = (
    (LOAD, 0, 0, 0),
    (IF_EQUAL, 0, 1, CLONE3),
    (RETURN, 0, 0, UNKNOWN),
    (IF_EQUAL, 2, 0, CLONE),
    (IF_EQUAL, 1, 0, UNSHARE),
    (RETURN, 0, 0, ALLOW),
    (LOAD, 0, 0, 16),
    (IF_BITS, 0, 1, CLONE_NEWUSER),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
)


def main() -> None:
    if platform.machine() != "x86_64":
        sys.exit(f"the filter is written for x86_64, this is {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(PROGRAM), ctypes.addressof(code)))
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)):
        if libc.prctl(*words) != 0:
            sys.exit(f"prctl{words[:1]} failed: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
