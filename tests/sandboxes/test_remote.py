"""The `remote` provider over two real host processes: placement, layers, what survives a cut wire, what dies with its owner."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import Capacity, ConfigError, HostLost, ImageMissing, PolicyRefused, SandboxGone
from sandboxes.base import Image, SandboxSpec
from sandboxes.grade import attempt_script
from sandboxes.image import host_base as image_base
from sandboxes.image.images import ImageStore
from sandboxes.index_server import PackageCache
from sandboxes.network import NetworkPolicy
from sandboxes.probe import HostUsr
from sandboxes.remote.certificates import make_authority, make_certificate
from sandboxes.remote.channel import CALL, ERROR, HELLO, PROTOCOL, Channel, pack, unpack, unpack_error
from sandboxes.remote.host import server_context
from sandboxes.remote.link import Address, client_context
from sandboxes.remote.provider import RemoteProvider
from tests.sandboxes.conftest import OneImage, start_provider
from tests.sandboxes.remote_site import TOKEN, HostProcess, Wire, make_certificates
from tests.sandboxes.wheels import write_wheel

SPEC = SandboxSpec(image="base", memory_bytes=64 << 20, disk_bytes=16 << 20)


class Site:
    """Two hosts and an image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificates = folder / "certificates"
        make_certificates(self.certificates)
        root = folder / "root"
        root.mkdir(mode=0o755)
        self.image = HostUsr(root).image
        self.hosts = [HostProcess(folder / f"host{number}", self.certificates) for number in (1, 2)]

    @contextlib.asynccontextmanager
    async def provider(
        self, *addresses: Address, lease_s: float = 20.0, image: Image | None = None
    ) -> AsyncIterator[RemoteProvider]:
        hosts = addresses or tuple(host.address for host in self.hosts)
        images = OneImage(image or self.image)
        made = await RemoteProvider.start(images, hosts, self.certificates, TOKEN, lease_s=lease_s)
        try:
            yield made
        finally:
            await made.close()

    @contextlib.asynccontextmanager
    async def wired(self, *, lease_s: float = 20.0) -> AsyncIterator[tuple[RemoteProvider, Wire]]:
        """A provider on the first host, over a wire that can be cut."""
        wire = Wire(self.hosts[0].address)
        address = await wire.start()
        try:
            async with self.provider(address, lease_s=lease_s) as made:
                yield made, wire
        finally:
            wire.close()

    async def live(self, number: int = 0) -> int:
        """How many sandboxes a host has, as it says itself."""
        async with self.provider(self.hosts[number].address) as asking:
            return int(asking.links[0].usage["live"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, namespaces: None) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    for host in made.hosts:
        host.stop()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await scene()

    asyncio.run(bounded())


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> float:
    """Seconds until it was true."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < within_s, "it did not come true in time"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


def test_sandboxes_go_where_there_is_room_and_layers_go_once(
    site: Site, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "sandboxes.remote.sandbox")

    async def scene() -> None:
        async with site.provider() as provider:
            boxes = await asyncio.gather(*(provider.create(SPEC) for _ in range(8)))
            assert [sum(box.link is link for box in boxes) for link in provider.links] == [4, 4]
            said = await asyncio.gather(
                *(box.exec(f"echo {number}; cat /proc/sys/kernel/hostname") for number, box in enumerate(boxes))
            )
            assert [result.output for result in said] == [f"{number}\nsandbox\n".encode() for number in range(8)]
            sent = [record for record in caplog.records if "layer_sent" in record.getMessage()]
            assert len(sent) == 2, "once to each host, however many asked at the same time"
            big = os.urandom(3_000_000)
            await boxes[0].put("/work/big", big, owner="agent")
            assert await boxes[0].get("/work/big", 4_000_000) == big
            await boxes[0].exec("ln -s /etc/shadow /work/link; mkdir /work/sub; rm /work/sub/gone; chmod 600 /work/big")
            await boxes[0].freeze()
            dest = tmp_path / "dest"
            dest.mkdir()
            exported = await boxes[0].export(["/work"], dest)
            assert (exported.files, os.readlink(dest / "work" / "link")) == (2, "/etc/shadow")
            assert (dest / "work" / "big").read_bytes() == big
            again = await provider.create(SPEC, layers=[dest])
            seen = await again.exec("stat -c '%a %u' /work/big; sha256sum < /work/big")
            assert seen.output.decode().split()[:3] == ["600", "1000", hashlib.sha256(big).hexdigest()]
            for box in (*boxes, again):
                await box.destroy()
                await box.destroy()
            with pytest.raises(SandboxGone):
                await again.exec("true")
            assert [link.reserved for link in provider.links] == [0, 0]
        kept = [len(os.listdir(host.home / "hosted" / "layers")) for host in site.hosts]
        scratch = [os.listdir(host.home / "hosted" / "scratch") for host in site.hosts]
        assert kept == [1, 1] and scratch == [[], []], "the image's layer stays, the carried one and the export went"

    play(scene)


def test_an_upper_layer_comes_back(site: Site, tmp_path: Path) -> None:
    async def scene() -> None:
        async with site.provider() as provider:
            upper = tmp_path / "upper"
            upper.mkdir(mode=0o755)
            (upper / "before").write_bytes(b"1")
            spec = SandboxSpec(image="base", role="build", user="root")
            box = await provider.create(spec, upper=upper)
            assert (
                await box.exec("cat /before; rm /before; mkdir -p /opt/x; echo new > /opt/x/y; ln /opt/x/y /opt/z")
            ).output == b"1"
            await box.destroy()
            assert not (upper / "before").is_file() or (upper / "before").stat().st_rdev == 0
            assert (upper / "opt/x/y").read_text() == "new\n"
            assert (upper / "opt/x/y").stat().st_ino == (upper / "opt/z").stat().st_ino

    play(scene)


def test_a_dockerfile_is_built_on_a_host_as_it_is_here(site: Site, tmp_path: Path) -> None:
    text = "FROM gymsmith/host\nCOPY a.txt /work/\nRUN cat a.txt a.txt > b.txt && rm a.txt && chmod 750 b.txt\n"

    async def scene() -> None:
        trees = []
        async with site.provider() as remote:
            local = await start_provider("ns", tmp_path)
            try:
                for name, provider in (("remote", remote), ("ns", local)):
                    store = ImageStore(tmp_path / f"images-{name}", provider)
                    provider.images = store
                    built = await store.build(text, {"a.txt": b"text\n"})
                    box = await provider.create(SandboxSpec(image=built.id))
                    trees.append((await box.exec("stat -c '%n %a %u %s' /work/* && cat b.txt", user="root")).output)
                    await box.destroy()
            finally:
                await local.close()
        assert trees[0] == trees[1] == b"/work/b.txt 750 0 10\ntext\ntext\n"

    play(scene)


def test_what_runs_survives_a_cut_wire_and_runs_once(site: Site) -> None:
    async def scene() -> None:
        async with site.wired() as (provider, wire):
            box = await provider.create(SPEC)
            job = await box.spawn("sleep 1.5; echo job is done")
            running = [
                asyncio.ensure_future(box.exec(f"echo x >> /tmp/count{n}; sleep 1; wc -l < /tmp/count{n}")) for n in range(5)
            ]
            await asyncio.sleep(0.4)
            wire.up = False
            wire.cut()
            sent_meanwhile = asyncio.ensure_future(box.exec("echo y >> /tmp/later; wc -l < /tmp/later"))
            await asyncio.sleep(1.2)
            wire.up = True
            assert [(await task).output for task in running] == [b"1\n"] * 5
            assert (await sent_meanwhile).output == b"1\n"
            assert (await job.wait(10)).output == b"job is done\n"
            for _ in range(5):
                task = asyncio.ensure_future(box.exec("echo z >> /tmp/often; sleep 0.05; cat /tmp/often | wc -l"))
                await asyncio.sleep(0.02)
                wire.cut()
                await task
            assert (await box.exec("wc -l < /tmp/often")).output == b"5\n"
            assert wire.connections >= 7

    play(scene)


def test_a_client_that_is_away_too_long_loses_its_sandboxes(site: Site) -> None:
    async def scene() -> None:
        async with site.wired(lease_s=1.5) as (provider, wire):
            box = await provider.create(SPEC)
            await asyncio.sleep(2.5)
            assert (await box.exec("echo alive")).output == b"alive\n", "control arm: silence alone does not end a lease"
            wire.up = False
            wire.cut()
            waiting = asyncio.ensure_future(box.exec("echo never"))
            gone_s = await until(lambda: _none(site), 8)
            assert gone_s < 5
            with pytest.raises(HostLost, match="lost its sandboxes"):
                await waiting
            wire.up = True
            with pytest.raises(HostLost):
                await box.exec("true")
            await box.destroy()
            await until(lambda: _connected(provider))
            another = await provider.create(SPEC)
            assert (await another.exec("echo anew")).output == b"anew\n"

    play(scene)


async def _none(site: Site) -> bool:
    return await site.live() == 0


async def _connected(provider: RemoteProvider) -> bool:
    return all(link.connected for link in provider.links)


def test_what_nobody_waits_for_any_more_is_destroyed(site: Site) -> None:
    async def scene() -> None:
        async with site.wired() as (provider, wire):
            box = await provider.create(SPEC)
            for making in (provider.create(SPEC), box.fork(2)):
                wire.answering.clear()
                task = asyncio.ensure_future(making)  # type: ignore[arg-type]
                await until(lambda: _more(site))
                task.cancel()  # in the moment in which it is made, and its name under way
                with pytest.raises(asyncio.CancelledError):
                    await task
                wire.answering.set()
                await until(lambda: _alone(site))
            assert (await box.exec("echo on")).output == b"on\n"
            await box.destroy()
            assert provider.links[0].reserved == 0

    play(scene)


async def _more(site: Site) -> bool:
    return await site.live() > 1


async def _alone(site: Site) -> bool:
    return await site.live() == 1


def test_a_killed_client_leaves_nothing(site: Site) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from sandboxes.remote.provider import RemoteProvider
from sandboxes.remote.link import Address
from sandboxes.base import Image, SandboxSpec
class Images:
    def resolve(self, name): return Image("base", layers=(Path({str(site.image.layers[0])!r}),), binds=(("/usr", "/usr"),))
async def main():
    provider = await RemoteProvider.start(Images(), [Address("127.0.0.1", {site.hosts[0].port})],
                                          Path({str(site.certificates)!r}), {TOKEN!r}, lease_s=1.5)
    boxes = [await provider.create(SandboxSpec(image="base")) for _ in range(5)]
    print(len(boxes), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None and client.stdout.readline() == b"5\n"
        assert asyncio.run(site.live()) == 5
    finally:
        client.kill()
        client.communicate()
    play(lambda: _until_none(site))


async def _until_none(site: Site) -> None:
    await until(lambda: _none(site), 8)


def test_a_killed_host_is_lost_and_comes_back(site: Site) -> None:
    async def scene() -> None:
        async with site.provider(site.hosts[1].address) as provider:
            box = await provider.create(SPEC)
            waiting = asyncio.ensure_future(box.exec("sleep 30"))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(site.hosts[1].kill)
            await asyncio.to_thread(site.hosts[1].start)
            with pytest.raises(HostLost, match="anew"):  # no SandboxGone, which a rollout would take for the agent's doing
                await waiting
            with pytest.raises(HostLost):
                await box.put("/x", b"")
            again = await provider.create(SPEC)
            assert (await again.exec("echo back")).output == b"back\n"

    play(scene)


def test_a_host_that_is_lost_under_an_attempt_is_no_verdict(site: Site, tmp_path: Path) -> None:
    from tests.sandboxes.graded import NOTE_SOLUTION, note_task

    async def scene() -> None:
        async with site.provider(site.hosts[1].address) as provider:
            task, provider.images = note_task(), (store := ImageStore(tmp_path / "images", provider))
            image = await store.build(task.dockerfile, task.under("environment"))
            attempt = asyncio.ensure_future(attempt_script(provider, image, task, "sleep 20"))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(site.hosts[1].kill)
            await asyncio.to_thread(site.hosts[1].start)
            with pytest.raises(HostLost):
                await attempt
            rewards = [(await attempt_script(provider, image, task, script)).value for script in ("true", NOTE_SOLUTION)]
            assert rewards == [0.0, 1.0], "control arm: on a host that stays there are verdicts"

    play(scene)


def test_the_verbs_make_what_hosts_need(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gymsmith.cli import app

    runner = CliRunner()
    words = ["--home", str(tmp_path)]
    for name, more in (("host", ["--address", "localhost", "--address", "127.0.0.1"]), ("client", [])):
        done = runner.invoke(app, ["sandbox-host", "certificate", name, *more, *words])
        assert done.exit_code == 0, done.output
    folder = tmp_path / "certificates"
    assert {path.name for path in folder.iterdir()} == {
        "ca.pem", "ca.key", "host.pem", "host.key", "client.pem", "client.key",
    }  # fmt: skip
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in ("ca.key", "host.key", "client.key"))
    client_context(folder, "client")
    server_context(folder, "host")
    done = runner.invoke(app, ["index", "add", str(write_wheel(tmp_path, "gym_tiny", "1.0")), *words])
    assert done.output == 'packages = ["gym-tiny==1.0"]\n'
    assert [package.filename for package in PackageCache(tmp_path / "wheelhouse").packages("gym-tiny")] == [
        "gym_tiny-1.0-py3-none-any.whl"
    ]


def test_only_those_with_our_certificates_and_token_come_in(site: Site, tmp_path: Path) -> None:
    host = site.hosts[0].address
    stranger = tmp_path / "stranger"
    make_authority(stranger)
    make_certificate(stranger, "client")

    async def scene() -> None:
        images = OneImage(site.image)
        with pytest.raises(Capacity, match="token"):
            await RemoteProvider.start(images, [host], site.certificates, "another token")
        with pytest.raises(Capacity, match="CERTIFICATE_VERIFY_FAILED"):
            await RemoteProvider.start(images, [host], stranger, TOKEN)
        (stranger / "ca.pem").write_bytes((site.certificates / "ca.pem").read_bytes())
        with pytest.raises(Capacity, match="reached"):  # the host trusts another authority than the one that signed this client
            await RemoteProvider.start(images, [host], stranger, TOKEN)
        with pytest.raises(Capacity, match="reached"):  # a host's certificate does not make a client
            await RemoteProvider.start(images, [host], site.certificates, TOKEN, name="host")
        bare = ssl.create_default_context(cafile=str(site.certificates / "ca.pem"))
        reader, writer = await asyncio.open_connection(host.host, host.port, ssl=bare)
        with contextlib.suppress(OSError):
            assert await reader.read(1) == b"", "no certificate, no connection"
        writer.close()
        with pytest.raises(Capacity, match="none is"):
            await RemoteProvider.start(images, [Address("127.0.0.1", 1)], site.certificates, TOKEN)
        with pytest.raises(ConfigError, match="NAME:PORT"):
            Address.read("nowhere")
        async with site.provider() as provider:  # control arm
            assert (await (await provider.create(SPEC)).exec("true")).ok

    play(scene)


def test_a_client_cannot_have_a_lease_without_end_or_take_a_layer_that_others_share(site: Site) -> None:
    host = site.hosts[0].address

    async def scene() -> None:
        async with site.provider(host) as provider:
            await (await provider.create(SPEC)).exec("true")  # its image is on the host now
            kept = sorted(os.listdir(site.hosts[0].home / "hosted/layers"))
            key = kept[0]
            tls = client_context(site.certificates, "client")
            channel = Channel(*await asyncio.open_connection(host.host, host.port, ssl=tls, server_hostname=host.host))
            hello = {
                "protocol": PROTOCOL,
                "token": TOKEN,
                "session": "s",
                "resume": False,
                "lease_s": float("nan"),
                "outstanding": [],
            }
            await channel.send(HELLO, 0, pack(hello))
            assert unpack((await channel.receive()).data)["lease_s"] == 1.0
            image: dict[str, Any] = {"layers": []}
            call = {"do": "create", "on": "", "args": {"image": image, "spec": SPEC, "layers": [], "upper": key}}
            await channel.send(CALL, 1, pack(call))
            answer = await channel.receive()
            assert answer.kind == ERROR and "own" in str(unpack_error(answer.data))
            said = {"id": "x", "layers": [key], "binds": site.image.binds, "base": image_base.base_digest(), "env": {},
                    "workdir": "/", "user": "root", "engine_ref": None}  # fmt: skip
            call = {"do": "create", "on": "", "args": {"image": said, "spec": SPEC, "layers": [key], "upper": None}}
            await channel.send(CALL, 2, pack(call))
            assert (await channel.receive()).kind == ERROR, "no kernel stacks a layer on itself"
            still = sorted(os.listdir(site.hosts[0].home / "hosted/layers"))
            assert still == kept, "nor is it gone with one that named it its own"
            channel.close()

    play(scene)


def test_errors_keep_their_type(site: Site, tmp_path: Path) -> None:
    async def scene() -> None:
        async with site.provider() as provider:
            box = await provider.create(SPEC)
            with pytest.raises(FileNotFoundError, match="/nope"):
                await box.get("/nope")
            with pytest.raises(PolicyRefused, match="cwd"):
                await box.exec("true", cwd="relative")
            with pytest.raises(PolicyRefused, match="frozen"):
                await box.export(["/work"], tmp_path)
            with pytest.raises(ImageMissing):
                await provider.create(SandboxSpec(image="another"))
            with pytest.raises(Capacity) as both:
                await provider.create(SandboxSpec(image="base", memory_bytes=1 << 49))
            assert all(str(host.address) in str(both.value) for host in site.hosts)
            with pytest.raises(PolicyRefused, match="does"):
                await provider.links[0].call("__class__", {}, epoch=0, on=box.id.rpartition("/")[2])
        showing = Image("base", layers=site.image.layers, binds=(("/root", "/root"),))
        async with site.provider(image=showing) as provider:
            with pytest.raises(PolicyRefused, match="may show"):
                await provider.create(SPEC)

    play(scene)


def test_a_network_policy_is_kept_on_the_host(site: Site, tmp_path: Path) -> None:
    host = site.hosts[0]
    PackageCache(host.home / "wheelhouse").add(write_wheel(tmp_path, "gym_tiny", "1.0"))

    async def scene() -> None:
        async with site.provider(host.address) as provider:
            spec = SandboxSpec(image="base", network=NetworkPolicy("index", packages=("gym-tiny",)))
            box = await provider.create(spec)
            code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3141/simple/gym-tiny/').status)"
            assert (await box.exec(["python3", "-c", code])).output == b"200\n"
            await box.disconnect()
            assert not (await box.exec(["python3", "-c", code])).ok

    play(scene)
