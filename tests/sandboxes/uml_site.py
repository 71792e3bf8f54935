"""Another kernel for one script: User-mode Linux on this machine's files, read-only, with control groups of version 2.

It needs no virtual machine and no root file system of its own; what the script writes lies in its memory and is gone afterwards.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.sandboxes.conftest import lacking

ROOT = Path(__file__).resolve().parents[2]
SAID = "SCRIPT-SAID "
INIT = """#!/bin/sh
export PATH={path} HOME=/run LANG=C.UTF-8 TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={pythonpath}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs -o mode=755 run /run; mount -t devtmpfs dev /dev
mkdir -m 1777 /run/tmp /dev/shm; mkdir /dev/pts; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd {root}
{python} {script}
echo "script ended: $?"
{python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""
LOADED = """
import ctypes, os
if "\\toverlay\\n" not in open("/proc/filesystems").read():
    module = f"/usr/lib/uml/modules/{os.uname().release}/kernel/fs/overlayfs/overlay.ko"
    assert ctypes.CDLL(None).syscall(313, os.open(module, os.O_RDONLY), b"", 0) == 0, "finit_module"
"""
"""What every script begins with; 313 is finit_module on x86-64, the only architecture that User-mode Linux has."""


def run_in_uml(script: str, folder: Path, within_s: float) -> Any:
    """What `script` passes to `say`, from a kernel of its own."""
    if shutil.which("linux.uml") is None or os.geteuid() != 0:
        lacking("another kernel needs root and linux.uml (apt-get install user-mode-linux)")
    say = f"import json\ndef say(value): print({SAID!r} + json.dumps(value), flush=True)\n"
    (folder / "script.py").write_text(LOADED + say + script)
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/sbin:/usr/bin:/sbin:/bin"])
    words = {"path": path, "pythonpath": f"{ROOT}:{ROOT / 'platform'}", "root": ROOT, "python": sys.executable,
             "script": folder / "script.py"}  # fmt: skip
    (folder / "init").write_text(INIT.format(**{name: shlex.quote(str(word)) for name, word in words.items()}))
    (folder / "init").chmod(0o755)
    command = ["linux.uml", "mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={folder / 'init'}",
               "con=null", "con0=null,fd:1", "quiet", f"uml_dir={folder / 'uml'}"]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_s)
    for line in done.stdout.splitlines():
        if line.startswith(SAID):
            return json.loads(line.removeprefix(SAID))
    raise AssertionError(f"the script must say something, it did not: {done.stdout[-3000:]}")
