"""`gymsmith bench remote`: thousands of sandboxes on two hosts, each in a network namespace of its own behind a veth pair.

Both hosts and the worker share this machine, so what is measured is the protocol and the host process, not more hardware. The
peer in the same run is the `ns` provider used directly: what the way over TLS costs. Without root there are no network
namespaces; then the hosts listen on loopback and the wire is not pulled out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from gymsmith.bench import Row
from gymsmith.config import Settings
from sandboxes.admission import Admission, Room, available_memory
from sandboxes.base import MIB, Image, Sandbox, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr
from sandboxes.remote.certificates import make_authority, make_certificate
from sandboxes.remote.link import Address
from sandboxes.remote.provider import RemoteProvider

TOKEN = "bench"
PORT = 8650
SPEC = SandboxSpec(image="base", memory_bytes=64 * MIB, disk_bytes=16 * MIB)
_IN_FLIGHT = 64
_PULLED_S = 5.0


class _OneImage:
    def __init__(self, image: Image) -> None:
        self._image = image

    def resolve(self, image_id: str) -> Image:
        return self._image


class _Hosts:
    """Two host processes; `pull` takes the first one's wire away."""

    def __init__(self, folder: Path, live: int) -> None:
        self.folder = folder
        self.wired = os.geteuid() == 0 and bool(shutil.which("ip") and shutil.which("nsenter"))
        self.addresses: list[Address] = []
        self._live = live
        self._spaces: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for number in (1, 2):
            address, prefix = self._space(number) if self.wired else ("127.0.0.1", [])
            make_certificate(self.folder, f"host{number}", [address])
            environment = {
                **os.environ,
                "GYMSMITH_HOME": str(self.folder / f"home{number}"),
                "GYMSMITH_PROVIDER": "ns",
                "GYMSMITH_MAX_SANDBOXES": str(self._live),
                "GYMSMITH_SANDBOX_TOKEN": TOKEN,
            }
            port = PORT if self.wired else 0
            words = ["--listen", f"{address}:{port}", "--certificates", str(self.folder), "--name", f"host{number}"]
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "sandboxes.remote.host", *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=open(self.folder / f"host{number}.log", "wb"),  # noqa: SIM115 the process owns it
            )
            self._processes.append(process)
            assert process.stdout is not None
            said = process.stdout.readline().decode()
            if "sandbox host" not in said:
                raise RuntimeError(f"a host did not start: {(self.folder / f'host{number}.log').read_text()[-500:]}")
            self.addresses.append(Address(address, int(said.partition(f"{address}:")[2].partition(",")[0])))

    def _space(self, number: int) -> tuple[str, list[str]]:
        """A network namespace and a veth pair to it; (its address, what runs a program in it)."""
        name, ours = f"gsbench{os.getpid()}.{number}", f"gs{os.getpid()}.{number}"
        net = f"10.213.{os.getpid() % 250}.{number * 4}"
        first = net.rpartition(".")[0]
        here, there = f"{first}.{number * 4 + 1}", f"{first}.{number * 4 + 2}"
        _ip("netns", "add", name)
        self._spaces.append(name)
        _ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        return there, ["nsenter", f"--net=/var/run/netns/{name}"]

    def pull(self, out: bool) -> None:
        """Take the wire of the first host out, or put it back."""
        _ip("link", "set", f"gs{os.getpid()}.1", "down" if out else "up")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(60)
            finally:
                process.kill()
        for name in self._spaces:
            subprocess.run(["ip", "netns", "del", name], check=False)  # its veth pairs go with it


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def _hosts(folder: Path, live: int) -> Iterator[_Hosts]:
    made = _Hosts(folder, live)
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def _all(deeds: list[Callable[[], Awaitable[Any]]], in_flight: int = _IN_FLIGHT) -> list[Any]:
    """Do them, so many at a time; a result or an exception each, in order."""
    slots = asyncio.Semaphore(in_flight)

    async def one(deed: Callable[[], Awaitable[Any]]) -> Any:
        async with slots:
            try:
                return await deed()
            except Exception as error:
                return error

    return await asyncio.gather(*map(one, deeds))


async def _latency(box: Sandbox, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await box.exec(["/bin/true"])
        times.append((time.perf_counter() - began) * 1000)
    return times


async def _steady(boxes: list[Any], period_s: float, seconds: float) -> tuple[list[float], int]:
    """Each sandbox executes once in every period, spread evenly: (milliseconds of each, failures)."""
    times: list[float] = []
    failures = 0
    ends = time.monotonic() + seconds

    async def live(box: Sandbox, offset: float) -> None:
        nonlocal failures
        await asyncio.sleep(offset)
        while time.monotonic() < ends:
            began = time.perf_counter()
            try:
                ok = (await box.exec(["/bin/true"])).ok
            except Exception:
                ok = False
            failures += not ok
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(max(0.0, period_s - (time.perf_counter() - began)))

    await asyncio.gather(*(live(box, period_s * number / len(boxes)) for number, box in enumerate(boxes)))
    return times, failures


def _when_quiet(kept: bool) -> bool | None:
    """A bar for a quiet machine: on one that others keep busy it can be kept, but not missed."""
    return True if kept else False if os.getloadavg()[0] <= 2 * (os.cpu_count() or 1) else None


@contextlib.asynccontextmanager
async def _local(folder: Path, image: Image) -> AsyncIterator[NamespaceProvider]:
    provider = await NamespaceProvider.start(_OneImage(image), folder / "local", admission=Admission(Room.of_machine(10)))
    try:
        yield provider
    finally:
        await provider.close()


async def _measure(hosts: _Hosts, folder: Path, image: Image, count: int, quick: bool) -> list[Row]:
    rows: list[Row] = []
    provider = await RemoteProvider.start(_OneImage(image), hosts.addresses, folder, TOKEN)
    try:
        async with _local(folder, image) as local:
            near, far = await local.create(SPEC), await provider.create(SPEC)
            ours, peers = [], []
            for _ in range(5 if quick else 15):
                ours += await _latency(far, 40)
                peers += await _latency(near, 40)
            a, b = statistics.median(ours), statistics.median(peers)
            rows.append(
                Row("exec through a host, p50", "ms", a, b, "ns, directly", a / b, "<= 3 ms when quiet", _when_quiet(a <= 3))
            )
            await far.destroy()
        free = available_memory()
        began = time.monotonic()
        made = await _all([lambda: provider.create(SPEC)] * count)
        start_s = time.monotonic() - began
        boxes = [box for box in made if not isinstance(box, Exception)]
        errors = count - len(boxes)
        rows.append(Row("live at once, over two hosts", "sandboxes", len(boxes), bar=f"= {count}", ok=len(boxes) == count))
        spread = min(sum(box.link is link for box in boxes) for link in provider.links) / max(len(boxes), 1)
        rows.append(Row("share of the emptier host", "of all", spread, bar=">= 0.4", ok=spread >= 0.4))
        bar_s = 60.0 * count / 2000 if not quick else 60.0
        rows.append(Row("start all", "s", start_s, bar=f"<= {bar_s:g}", ok=start_s <= bar_s))
        each = (free - available_memory()) / MIB / count
        rows.append(Row("memory of each, whole machine", "MiB", each, bar="<= 3", ok=each <= 3))
        times, failures = await _steady(boxes, 10.0, 20.0 if quick else 60.0)
        times.sort()
        rows.append(Row("exec with all alive, each every 10 s, p50", "ms", times[len(times) // 2]))
        worst = times[int(len(times) * 0.99)]
        rows.append(Row("the same, p99", "ms", worst, bar="<= 250 ms when quiet", ok=_when_quiet(worst <= 250)))
        rows.append(Row("the same, failures", f"of {len(times)}", failures + errors, bar="= 0", ok=failures + errors == 0))
        if hosts.wired:
            hosts.pull(True)
            running = [asyncio.ensure_future(box.exec("echo here")) for box in boxes]
            await asyncio.sleep(_PULLED_S)
            hosts.pull(False)
            said = await asyncio.gather(*running, return_exceptions=True)
            lost = sum(isinstance(one, BaseException) or one.output != b"here\n" for one in said)
            rows.append(Row(f"calls lost while a host's wire is out for {_PULLED_S:g} s", f"of {len(boxes)}", lost,
                            bar="= 0", ok=lost == 0))  # fmt: skip
        began = time.monotonic()
        await _all([box.destroy for box in boxes], 256)
        end_s = time.monotonic() - began
        rows.append(Row("destroy all", "s", end_s, bar=f"<= {bar_s:g}", ok=end_s <= bar_s))
    finally:
        await provider.close()
    return rows


def measure(settings: Settings, quick: bool) -> list[Row]:
    """2,000 sandboxes; 200 when quick."""
    folder = settings.home
    folder.mkdir(parents=True, exist_ok=True)
    make_authority(folder)
    make_certificate(folder, "client")
    root = folder / "root"
    root.mkdir(mode=0o755)
    image = HostUsr(root).image
    count = 200 if quick else 2000
    with _hosts(folder, count) as hosts:
        rows = asyncio.run(_measure(hosts, folder, image, count, quick))
    if not hosts.wired:
        rows.append(Row("network namespaces", "", 0, peer_name="not used: needs root, ip and nsenter"))
    return rows
