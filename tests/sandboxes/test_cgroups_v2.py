"""Control groups of version 2, for real, whatever this machine has: in a kernel of its own (`uml_site.py`).

The code uses neither cgroup.kill nor cgroup.freeze of version 2, so nothing here does.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.sandboxes.uml_site import run_in_uml

SCRIPT = """
import asyncio, os, signal, subprocess, sys, time
from pathlib import Path
from sandboxes import cgroups, reaper
from sandboxes.base import MIB, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

SPEC = SandboxSpec(image="probe", memory_bytes=48 * MIB, disk_bytes=16 * MIB, pids=16, cpus=0.3)
FORKS = '''
import os, signal
made = []
try:
    while len(made) < 100:
        pid = os.fork()
        if not pid: signal.pause()
        made.append(pid)
except OSError: pass
for pid in made: os.kill(pid, 9)
print(len(made))
'''

BUSY = "import time; t = time.monotonic() + 1\\nwhile time.monotonic() < t: pass"

async def started(name):
    root = Path("/run/tmp", name, "root")
    root.mkdir(parents=True, mode=0o755)
    return await NamespaceProvider.start(HostUsr(root), Path("/run/tmp/state"))

async def hold():
    provider = await started("held")
    await provider.create(SPEC)
    print(provider.owner, flush=True)
    await asyncio.sleep(600)

async def main():
    found = {"hierarchies": [cgroups.hierarchies()[0], list(map(str, cgroups.hierarchies()[1]))]}
    own = cgroups.group_file(os.getpid(), "memory", "memory.oom_control", "cgroup.procs")
    found["own group"] = str(own) if own else None
    provider = await started("main")
    able = provider.capabilities
    found["able"] = [able.memory_limit, able.pids_limit, able.cpu_limit, able.disk_limit]
    box = await provider.create(SPEC)
    folder = box.group.folders[0]
    read = lambda name: (folder / name).read_text().strip()
    found["settings"] = {name: read(name) for name in ("memory.max", "pids.max", "cpu.max")}
    found["weight"] = (folder.parent.parent / "cpu.weight").read_text().strip()
    await box.exec("sleep 60 > /dev/null 2>&1 &", timeout_s=60)
    found["inside"] = len(read("cgroup.procs").split())
    usage = cgroups.usage(provider.owner, folder.name)
    found["usage"] = usage is not None and 0 < usage[0] < 64 * MIB and usage[1] >= 2
    bomb = await box.exec(["python3", "-c", "x = bytearray(200 << 20)"], timeout_s=60)
    after = await box.exec("echo alive; exit 1", timeout_s=60)
    found["bomb"] = [bomb.signal, bomb.oom, after.output.decode(), after.oom]
    found["forks"] = int((await box.exec(["python3", "-c", FORKS], timeout_s=60)).output)
    busy = await box.exec(["python3", "-c", BUSY], timeout_s=60)
    found["share"] = busy.cpu_s / busy.wall_s
    await box.destroy()
    again = await provider.create(SPEC)
    found["same group"] = again.group.folders[0] == folder
    found["kills forgotten"] = [(await again.exec("exit 1", timeout_s=60)).oom, again.group.oom_kills()]
    worker = subprocess.Popen([sys.executable, __file__, "hold"], stdout=subprocess.PIPE, text=True)
    owner = worker.stdout.readline().strip()
    place = folder.parent.parent / owner
    found["held"] = bool(owner) and place.is_dir()
    worker.kill()
    worker.wait()
    for _ in range(200):
        await asyncio.to_thread(reaper.sweep, Path("/run/tmp/state"))
        if not place.exists():
            break
        await asyncio.sleep(0.1)
    found["swept"] = not place.exists()
    await provider.close()
    found["left"] = sorted(path.name for path in folder.parent.parent.iterdir() if path.is_dir())
    say(found)

asyncio.run(hold() if sys.argv[1:] else main())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="User-mode Linux is for x86-64")
def test_the_second_version_holds_what_the_first_does(tmp_path: Path) -> None:
    found = run_in_uml(SCRIPT, tmp_path, within_s=300)
    assert found["hierarchies"] == [2, ["/sys/fs/cgroup"]] and found["able"] == [True] * 4
    assert found["own group"] == "/sys/fs/cgroup/cgroup.procs"
    assert found["settings"] == {"memory.max": str(64 << 20), "pids.max": "24", "cpu.max": "30000 100000"}
    assert (found["weight"], found["inside"] >= 2, found["usage"]) == ("100", True, True), "User-mode Linux has one processor"
    assert found["bomb"] == [9, True, "alive\n", False]
    assert 8 <= found["forks"] <= 24
    assert found["share"] < 0.45, "a limit of 0.3; without one a loop has all of it"
    assert found["same group"] and found["kills forgotten"] == [False, 0]
    assert found["held"] and found["swept"] and found["left"] == []
