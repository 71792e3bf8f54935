"""`gymsmith bench sandboxes`: lifecycles, commands, shells, forks and crowds, beside Docker and SWE-ReX in the same run.

Rounds are interleaved: in each, every arm does a few operations, so that what else the machine does meets all of them. Figures
are medians over all rounds. The loaded arm brings its own load, two busy processes per core. A peer that cannot run is a row
without a figure that says why; the bar of that row then has no verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from statistics import median
from typing import Any

from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.errors import SandboxError
from sandboxes.admission import Admission, Room
from sandboxes.base import SandboxSpec
from sandboxes.bench import leak as bench_leak
from sandboxes.bench.load import Crowd, crowd, per_second
from sandboxes.bench.peers import FILL, FORK_FILES, DockerCli, DockerSdk, PeerMissing, SweRex, docker, docker_image, timed
from sandboxes.bench.rounds import FULL, QUICK, Bench, Size, middle, milliseconds, of_peer
from sandboxes.container import ContainerProvider
from sandboxes.image.images import ImageStore
from sandboxes.namespace import NamespaceProvider
from sandboxes.pool import WarmPool

IMAGE = "gymsmith/host"
IN_FLIGHT = 64


def measure(settings: Settings, quick: bool) -> list[Row]:
    """Run everything; the rows. Raises: Capacity (no namespaces on this machine)."""
    size = QUICK if quick else FULL
    rows = asyncio.run(_measure(settings, size))
    folder = settings.home / "leak"
    folder.mkdir()
    for path in (settings.home, folder):
        path.chmod(0o755)
    left = bench_leak.kill_workers(folder, size.leak_boxes, size.leak_rounds)
    worst = max(x.processes for x in left)
    title = f"worker killed with {size.leak_boxes} sandboxes, {size.leak_rounds} rounds: processes left after 2 s"
    rows.append(Row(title, "", worst, bar="0", ok=worst == 0))
    rows.append(Row("worker killed: the last process dead after", "s", round(max(x.gone_after_s for x in left), 3)))
    worst = max(x.groups + x.mounts + x.folders for x in left)
    rows.append(Row("worker killed: groups, mounts, folders left after two janitor periods", "", worst, bar="0", ok=worst == 0))
    return rows


async def _measure(settings: Settings, size: Size) -> list[Row]:
    images = ImageStore(settings.images_dir)
    room = Admission(Room.of_machine(size.crowd + 2 * IN_FLIGHT, settings.overcommit))
    ns = await NamespaceProvider.start(images, settings.sandboxes_dir, admission=room)
    images.provider = ns
    bench = Bench(settings, size, ns, images)
    try:
        with _peers(bench):
            bench.rex = await of_peer(bench, "no_rex", SweRex.start())
            for part in (_lifecycles, _commands, _in_flight, _warm, _forks, _crowd):
                began = time.monotonic()
                await part(bench)
                print(f"gymsmith: measured{part.__name__.replace('_', ' ')} in {time.monotonic() - began:.0f} s", file=sys.stderr)
            if bench.rex is not None:
                await bench.rex.close()
    finally:
        await ns.close()
    return bench.rows


@contextlib.contextmanager
def _peers(bench: Bench) -> Iterator[None]:
    """Docker, where there is one; what it was left with is removed."""
    try:
        bench.cli = DockerCli(docker_image(bench.settings))
    except PeerMissing as missing:
        bench.failed("no_docker", missing)
        yield
        return
    try:
        yield
    finally:
        left = docker("ps", "--all", "--quiet", "--filter", f"name=gymsmith-bench-{os.getpid()}-").decode().split()
        for name in left:
            with contextlib.suppress(SandboxError):  # somebody who was interrupted is removing it
                docker("rm", "--force", name)


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """Two busy processes per core, for as long as this lasts."""
    busy = [
        subprocess.Popen(["timeout", "600", sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for process in busy:
            process.terminate()
            process.wait()


# ---------------------------------------------------------------- the parts


async def _lifecycles(bench: Bench) -> None:
    cli = bench.cli

    async def ours() -> float:
        began = time.perf_counter()
        await _one(bench.ns)
        return 1000 * (time.perf_counter() - began)

    arms = {"ours": (8, ours), "docker": (1, (lambda: timed(cli.lifecycle)) if cli else None)}
    quiet = await bench.rounds(arms)
    with _load():
        loaded = await bench.rounds(arms)
    name = "docker run, exec, rm"
    bench.against("lifecycle: create, exec true, destroy", median(quiet["ours"]), middle(quiet, "docker"), name, 8)
    bench.against("lifecycle under load", median(loaded["ours"]), middle(loaded, "docker"), name, 12)


async def _one(provider: Any, spec: SandboxSpec = SandboxSpec(image=IMAGE)) -> None:
    """A whole lifecycle with the default limits."""
    box = await provider.create(spec)
    await box.exec(["/bin/true"])
    await box.destroy()


async def _commands(bench: Bench) -> None:
    """Commands one after the other in sandboxes that live: ours, the docker provider's, and the peers'."""
    cli, rex = bench.cli, bench.rex
    box = await bench.ns.create(SandboxSpec(image=IMAGE))
    shell = await box.shell()
    async with _container(bench) as contained:
        name = await of_peer(bench, "no_docker", asyncio.to_thread(cli.start)) if cli else None
        sdk = await of_peer(bench, "no_docker", asyncio.to_thread(DockerSdk, name)) if name else None
        took = await bench.rounds(
            {
                "ns": (20, lambda: milliseconds(box.exec(["/bin/true"]))),
                "docker exec": (2, (lambda: timed(lambda: cli.exec(name))) if cli and name else None),
                "shell": (20, lambda: milliseconds(shell.run("true"))),
                "provider": (20, (lambda: milliseconds(contained.exec(["/bin/true"]))) if contained else None),
                "sdk": (2, (lambda: timed(sdk.exec)) if sdk else None),
                "rex": (2, (lambda: milliseconds(rex.run())) if rex else None),
            }
        )
        if cli and name:
            await of_peer(bench, "no_docker", asyncio.to_thread(cli.remove, name))
    exact = [(await shell.run(f"(exit {code})")).exit_code for code in (0, 1, 37, 255)] == [0, 1, 37, 255]
    await box.destroy()
    ours = median(took["ns"])
    bench.alone("exec through the async API, p50", "ms", ours, "<= 3", ours <= 3)
    bench.alone("exec through the async API, p99", "ms", sorted(took["ns"])[int(len(took["ns"]) * 0.99)])
    bench.against("exec", ours, middle(took, "docker exec"), "docker exec", 15)
    bench.against("exec", ours, middle(took, "sdk"), "docker SDK, exec_run", 15)
    bench.against("exec", ours, middle(took, "rex"), "SWE-ReX run_in_session", 30)
    if contained:
        bench.against(
            "exec through the docker provider", median(took["provider"]), middle(took, "docker exec"), "docker exec", 15
        )
    shells = "persistent shell, exact exit codes" if exact else "persistent shell, WRONG exit codes"
    bench.against(shells, median(took["shell"]), middle(took, "rex"), "SWE-ReX run_in_session", 20, also=exact)


@contextlib.asynccontextmanager
async def _container(bench: Bench) -> AsyncIterator[Any]:
    """A sandbox of the docker provider, or None without an engine."""
    if bench.cli is None:
        yield None
        return
    images = ImageStore(bench.settings.home / "engine-images")
    provider = await ContainerProvider.start(images, bench.settings.home / "engine", base_image=bench.cli.image)
    images.provider = provider
    try:
        box = await provider.create(SandboxSpec(image=IMAGE))
        yield box
    finally:
        await provider.close()


async def _in_flight(bench: Bench) -> None:
    cli, size = bench.cli, bench.size
    half = size.ours_in_flight // 2
    first = await per_second(lambda: _one(bench.ns), half, IN_FLIGHT)
    theirs = None
    if cli:
        work = per_second(lambda: timed(cli.lifecycle), size.docker_in_flight, IN_FLIGHT)
        theirs = await of_peer(bench, "no_docker", work)
    ours = 2 / (1 / first + 1 / await per_second(lambda: _one(bench.ns), half, IN_FLIGHT))
    ratio = ours / theirs if theirs else None
    bench.rows.append(
        Row(
            f"lifecycles, {IN_FLIGHT} in flight",
            "1/s",
            round(ours, 1),
            round(theirs, 2) if theirs else None,
            "docker run, exec, rm" if theirs else f"NOT MEASURED: {bench.no_docker}",
            round(ratio, 2) if ratio else None,
            ">= 15",
            ratio >= 15 if ratio else None,
        )
    )


async def _warm(bench: Bench) -> None:
    """Takes from a pool that refills itself meanwhile."""
    pool = WarmPool(bench.ns)
    spec = SandboxSpec(image=IMAGE)
    took = []
    pool.expect(spec, 16)
    for _ in range(bench.size.takes):
        while not pool.warm:
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        box = await pool.create(spec)
        await box.exec(["/bin/true"])
        took.append(1000 * (time.perf_counter() - began))
        pool.expect(spec, 16)
        await asyncio.sleep(0.005)
        await box.destroy()
    await pool.drain()
    took.sort()
    p50 = median(took)
    bench.alone("warm take and first exec, p50, refill running", "ms", p50, "<= 5", p50 <= 5)
    bench.alone("warm take and first exec, p99, refill running", "ms", took[int(len(took) * 0.99)])


async def _forks(bench: Bench) -> None:
    """A fork after 2,000 files and 20 MB, up to the first command in the new sandbox; independent both ways."""
    cli = bench.cli
    box = await bench.ns.create(SandboxSpec(image=IMAGE))
    filled = await box.exec(FILL, timeout_s=120)
    assert filled.output.strip() == b"%d" % (FORK_FILES + 1), filled

    async def ours() -> float:
        began = time.perf_counter()
        (child,) = await box.fork()
        listed = await child.exec("ls /tmp/tree | wc -l")
        took = 1000 * (time.perf_counter() - began)
        assert listed.output.strip() == b"%d" % (FORK_FILES + 1), listed
        await child.destroy()
        return took

    def filled_container() -> str:
        assert cli is not None
        name = cli.start()
        cli.exec(name, "sh", "-c", FILL)
        return name

    name = await of_peer(bench, "no_docker", asyncio.to_thread(filled_container)) if cli else None

    def theirs() -> None:
        assert cli is not None and name is not None
        image = docker("commit", name).decode().strip()
        started = cli.start(image)
        cli.exec(started, "sh", "-c", "ls /tmp/tree | wc -l")
        made.append((started, image))

    made: list[tuple[str, str]] = []
    took: dict[str, list[float]] = {"ours": [], "docker": []}
    for _ in range(max(2, bench.size.rounds // 3)):
        took["ours"] += [await ours() for _ in range(3)]
        if name and (theirs_ms := await of_peer(bench, "no_docker", timed(theirs))) is not None:
            took["docker"].append(theirs_ms)
            started, image = made.pop()
            docker("rm", "--force", started)
            docker("rmi", "--force", image)
    if cli and name:
        await of_peer(bench, "no_docker", asyncio.to_thread(cli.remove, name))
    (child,) = await box.fork()
    await child.exec("echo child > /tmp/tree/f0; rm /tmp/tree/f1; echo new > /tmp/tree/of-child")
    await box.exec("echo parent > /tmp/tree/f2; echo new > /tmp/tree/of-parent")
    of_parent = await box.exec("cd /tmp/tree; cat f0 f1 f2; ls of-*")
    of_child = await child.exec("cd /tmp/tree; cat f0 f2; ls of-*; ls f1 2>/dev/null")
    apart = of_parent.output == b"0\n1\nparent\nof-parent\n" and of_child.output == b"child\n2\nof-child\n"
    await child.destroy()
    await box.destroy()
    metric = "fork of 2,000 files, 20 MB, to the first exec" if apart else "fork, NOT INDEPENDENT"
    bench.against(metric, median(took["ours"]), middle(took, "docker"), "docker commit, run, exec", 10, also=apart)


async def _crowd(bench: Bench) -> None:
    size = bench.size
    seen: Crowd = await crowd(bench.ns, IMAGE, size.crowd, size.crowd_s)
    who = f"{size.crowd} sandboxes"
    bench.alone(
        f"{who}, an exec each every 10 s for {size.crowd_s:g} s: errors",
        "",
        seen.errors,
        "0",
        seen.errors == 0 and seen.alive == size.crowd,
    )
    bench.alone(f"{who}: execs", "", seen.execs)
    bench.alone(f"{who}: exec p50", "ms", seen.p50_ms)
    bench.alone(f"{who}: exec p99", "ms", seen.p99_ms, "<= 250", seen.p99_ms <= 250)
    bench.alone(f"{who}: start", "s", seen.start_s, "<= 30", seen.start_s <= 30)
    bench.alone(f"{who}: destroy", "s", seen.destroy_s, "<= 30", seen.destroy_s <= 30)
    bench.alone(f"{who}: memory of its groups, each", "MiB", seen.group_mib, "<= 3", seen.group_mib <= 3)
    bench.alone(f"{who}: memory the machine lost, each", "MiB", seen.machine_mib)
