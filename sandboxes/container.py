"""The `docker` provider: the same resident agent as PID 1 of a container, spoken to over its attached standard streams.

The engine makes and removes containers; commands and files never go through it, because one `docker exec` costs as much as fifty
commands of the agent. The agent's program is mounted read-only from this host, so the engine must run on it. A container ends
itself when its stream closes, thus also when this process is killed; what the engine then still lists is swept at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gymsmith.errors import Capacity, ImageMissing, PolicyRefused, SandboxError, SandboxGone
from sandboxes import reaper
from sandboxes.admission import Admission, Need, Room
from sandboxes.base import (
    CAPABILITY_TABLE,
    MIB,
    UID_SHIFT,
    Capabilities,
    ImageSource,
    Sandbox,
    SandboxSpec,
    Snapshot,
    check_path,
    user_ids,
)
from sandboxes.cgroups import read_oom_kills
from sandboxes.changes import layer_records
from sandboxes.control import Control
from sandboxes.egress import MODES, Egress, checked_listener
from sandboxes.launcher import find_binary
from sandboxes.link import HELLO, PUT, REMOVE, Link
from sandboxes.registry import Registry, birth
from sandboxes.resident import ResidentSandbox
from sandboxes.snapshot import Kept, KeptSnapshot

log = logging.getLogger(__name__)
T = TypeVar("T")
LABEL = "gymsmith.owner"
PROGRAM = "/.gymsmith-box"
HANDOVER = "/.gymsmith-handover"
"""Where a container whose network policy is not none sees, for a moment, a socket of this process."""
_START_S = 60.0
_BATCH_BYTES = 8 * MIB


class Start(NamedTuple):
    """The image that a snapshot is, instead of the one that the spec names."""

    reference: str
    kept: Kept


class ContainerLink(Link):
    """Frames inside the engine's own framing: one byte of stream, three of nothing, four of length, then the bytes."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock, loop)
        self._wrapped = bytearray()
        self.said = b""
        """What the agent wrote to its standard error, the reason when it could not start."""

    def feed(self, data: bytes) -> None:
        self._wrapped += data
        while len(self._wrapped) >= 8:
            stream, length = self._wrapped[0], int.from_bytes(self._wrapped[4:8], "big")
            if len(self._wrapped) < 8 + length:
                return
            payload = bytes(self._wrapped[8 : 8 + length])
            del self._wrapped[: 8 + length]
            if stream == 1:
                super().feed(payload)
            else:
                self.said = (self.said + payload)[-2000:]


class ContainerSandbox(ResidentSandbox):
    """One container."""

    provider: ContainerProvider
    container: str
    number: int
    need: Need | None = None
    oom_file: Path | None = None
    pid: int = 0
    """Of its PID 1, on this host."""
    handover: Path | None = None
    """The directory shown at HANDOVER."""
    kept: tuple[Kept, ...] = ()
    """The snapshot it started from."""

    async def listener(self, port: int) -> socket.socket:
        """As ResidentSandbox, over a socket in a shown directory, because the engine's streams carry no descriptors."""
        assert self.handover is not None
        folder = os.open(self.handover, os.O_PATH | os.O_DIRECTORY)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            place = f"/proc/self/fd/{folder}/s"
            door.bind(place)
            os.chmod(place, 0o666)  # the container's root may be another id of this host; who comes is checked below
            door.listen(1)
            door.setblocking(False)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_START_S):
                await self._hand_over(port, f"{HANDOVER}/s")
                channel, _ = await loop.sock_accept(door)  # it waits in the backlog already
            with channel:
                peer = int.from_bytes(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
                if peer != self.pid:
                    raise SandboxError(f"the listening socket of sandbox {self.id} must come from process {self.pid}, not {peer}")
                channel.setblocking(True)
                channel.settimeout(_START_S)
                _, came, _, _ = socket.recv_fds(channel, 1, 1)
            if len(came) != 1:
                raise SandboxError(f"sandbox {self.id} must hand over one listening socket, it handed over {len(came)}")
            return checked_listener(came[0], port)
        except TimeoutError:
            raise SandboxError(f"sandbox {self.id} must hand over a listening socket, it did not") from None
        finally:
            door.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink("s", dir_fd=folder)
            os.close(folder)
            os.rmdir(self.handover)  # what the container still sees is empty and can never be anything else

    def _oom_kills(self) -> int:
        return read_oom_kills(self.oom_file) if self.oom_file else 0

    def adopt(self, spec: SandboxSpec) -> None:
        super().adopt(spec)
        self.provider.registry.changed(self.number, {"labels": dict(spec.labels)})

    async def snapshot(self) -> Snapshot:
        async with self.standing_still():
            return await self.provider.snapshot(self)

    async def destroy(self) -> None:
        self.link.close(f"sandbox {self.id} was destroyed")
        await asyncio.shield(self.provider.remove(self.container))

    async def apply(self, layer: Path) -> None:
        """Do to the file system what stacking `layer` on it would do."""
        batch: list[bytes] = []
        size = 0
        for removed, record in layer_records(layer):
            if removed:
                if batch:
                    await self._do(PUT, batch)
                await self._do(REMOVE, [removed])
                batch, size = [], 0
            if record:
                batch.append(record)
                size += len(record)
                if size > _BATCH_BYTES:
                    await self._do(PUT, batch)
                    batch, size = [], 0
        if batch:
            await self._do(PUT, batch)

    async def _do(self, kind: int, parts: list[bytes]) -> None:
        _, payload, _ = await self.ask(kind, *parts)
        if payload[:4] != b"\0\0\0\0":
            raise self._refusal(payload, "apply a layer")


class ContainerProvider:
    """Makes `ContainerSandbox`es with a Docker Engine. Use `start`; belongs to the event loop that started it."""

    name = "docker"

    def __init__(
        self, images: ImageSource, state_dir: Path, client: Any, runtime: str | None, base_image: str, admission: Admission
    ) -> None:
        self.images = images
        self.client = client
        """The engine's `docker.APIClient`, which also builds images."""
        self.base_image = base_image
        self.admission = admission
        self.owner, self._folder, self.registry = reaper.enrol(state_dir)
        self._runtime = runtime
        self.egress = Egress()
        """What network policies other than none are served from; set it before the first sandbox."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(4, "docker")
        self._boxes: dict[str, ContainerSandbox] = {}
        self._removing: dict[str, asyncio.Future[None]] = {}
        self._dropping: list[asyncio.Future[None]] = []
        self._program = str(find_binary())
        self._last = 0
        self._closed = False
        self._control = Control(self._folder, self._of_number)
        self._janitor = reaper.Janitor(self._beat, lambda: (sweep(client), reaper.sweep(state_dir)))

    @classmethod
    async def start(
        cls,
        images: ImageSource,
        state_dir: Path,
        *,
        runtime: str | None = None,
        base_image: str = "debian:12-slim",
        admission: Admission | None = None,
    ) -> ContainerProvider:
        """A provider on the engine that DOCKER_HOST names, by default the local one; removes containers of dead owners.

        admission: who may make a container when; None: up to a thousand, as far as this machine has room.
        runtime: an OCI runtime known to the engine, such as "runsc". base_image: what `FROM gymsmith/host` means there.
        Raises: Capacity (no engine answers, or no docker package).
        """
        try:
            import docker
        except ImportError as error:
            raise Capacity("the docker package must be installed for this provider: pip install 'gymsmith[sandbox]'") from error
        loop = asyncio.get_running_loop()
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            client = await loop.run_in_executor(None, lambda: docker.from_env(timeout=120).api)
            await loop.run_in_executor(None, sweep, client)
            await loop.run_in_executor(None, reaper.sweep, state_dir)
        except Exception as error:  # the package raises several unrelated families when no engine listens
            raise Capacity(f"a Docker Engine must answer, none does ({error}); install docker.io and start dockerd") from error
        return cls(images, state_dir, client, runtime, base_image, admission or Admission(Room.of_machine(1000)))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation="container",
            host_uid="1000 and above for agent and tests; uid 0 inside is the host's unless the engine remaps users",
            users=True,
            memory_limit=True,
            pids_limit=True,
            cpu_limit=True,
            disk_limit=False,
            upper_layer=False,
            prepared_upper=False,
            seccomp=True,
            # another kernel's sockets, as gVisor's, cannot be handed to this process
            network=MODES if self._runtime in (None, "runc", "crun") else ("none",),
            notes=("no file is larger than disk_bytes; what all files take together is limited by the engine's disk only",),
        )

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> ContainerSandbox:
        return await self._admitted(spec, tuple(layers), upper, None)

    async def _admitted(
        self, spec: SandboxSpec, layers: tuple[Path, ...], upper: Path | None, start: Start | None
    ) -> ContainerSandbox:
        need = Need(spec.memory_bytes + spec.disk_bytes, spec.pids + 1)
        await self.admission.admit(need)
        number = self._last = self._last + 1
        box: ContainerSandbox | None = None
        try:
            async with self.admission.lifecycle:
                try:
                    self.registry.born(number, birth(spec))
                except OSError as error:
                    raise Capacity(f"cannot prepare a sandbox: {error}") from error
                box = await self._create(number, spec, layers, upper, start)
                box.need = need
                return box
        finally:
            if box is None:  # nobody has the reservation whose end would give it back
                self.registry.died(number)
                self.admission.release(need)

    async def _create(
        self, number: int, spec: SandboxSpec, layers: Sequence[Path], upper: Path | None, start: Start | None
    ) -> ContainerSandbox:
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        if upper is not None:
            raise PolicyRefused("upper must be None with the docker provider; build the image with the engine")
        image = self.images.resolve(spec.image)
        reference = start.reference if start is not None else image.engine_ref
        if reference is None:
            raise ImageMissing(f"image {spec.image} must be known to the engine, it is not; build it with the docker provider")
        workdir = check_path("workdir", spec.workdir or image.workdir)
        owner = user_ids(spec.user or image.user)
        self.egress.check(spec.network)
        if spec.network.mode not in self.capabilities.network:
            raise PolicyRefused(f"network {spec.network.mode} needs the engine's own runtime, it is {self._runtime}; use none")
        name = f"gymsmith-{self.owner}-{number}"
        handover = None if spec.network.mode == "none" else Path(tempfile.mkdtemp(prefix="handover.", dir=self._folder))
        try:
            container, sock, pid = await self._engine(lambda: self._launch(name, spec, reference, workdir, owner, handover))
        except BaseException:
            if handover is not None:
                shutil.rmtree(handover, ignore_errors=True)
            raise
        link = ContainerLink(sock, self._loop)
        box = ContainerSandbox(f"{self.owner}.{number}", spec, image, link)
        box.provider, box.container, box.number = self, container, number
        box.has_upper = False
        box.owner_shift = UID_SHIFT if os.geteuid() == 0 else None
        self._boxes[container] = box
        if start is not None:
            start.kept.hold()
            box.kept = (start.kept,)
        try:
            async with asyncio.timeout(_START_S):
                kind, _ = await link.hello
            if kind != HELLO:
                raise Capacity(f"a container must say hello, it said {kind}")
            box.oom_file = _oom_file(pid)
            box.pid, box.handover = pid, handover
            await box.open_network(self.egress)
            for layer in reversed(layers):
                await box.apply(layer)
        except (SandboxGone, TimeoutError) as error:
            await box.destroy()
            raise Capacity(
                f"a container of {image.engine_ref} did not start: {link.said.decode(errors='replace') or error}"
            ) from error
        except BaseException:
            await box.destroy()
            raise
        return box

    def _launch(
        self, name: str, spec: SandboxSpec, image: str, workdir: str, owner: tuple[int, int], handover: Path | None
    ) -> tuple[str, socket.socket, int]:
        """Create, attach and start; runs in a thread."""
        import docker

        mounts = [docker.types.Mount(PROGRAM, self._program, type="bind", read_only=True)]
        if handover is not None:
            mounts.append(docker.types.Mount(HANDOVER, os.path.abspath(handover), type="bind", read_only=True))
        row = CAPABILITY_TABLE["container"]["build" if spec.role == "build" else "resident"]
        host = self.client.create_host_config(
            auto_remove=True,
            network_mode="none",
            cap_drop=["ALL"],
            cap_add=sorted(row),
            security_opt=["no-new-privileges"],
            mem_limit=spec.memory_bytes + spec.disk_bytes,
            memswap_limit=spec.memory_bytes + spec.disk_bytes,
            pids_limit=spec.pids + 1,
            cpu_period=100_000,
            cpu_quota=max(1000, int(spec.cpus * 100_000)),
            ulimits=[
                {"Name": name, "Soft": limit, "Hard": limit}
                for name, limit in (("core", 0), ("nofile", 4096), ("fsize", spec.disk_bytes))
            ],
            log_config={"type": "none", "config": {}},
            mounts=mounts,
            runtime=self._runtime,
        )
        labels = {**{f"gymsmith.{key}": value for key, value in spec.labels.items()}, LABEL: self.owner}
        words = ["resident", str(int(spec.lease_s)), str(int(spec.role == "build")), workdir, str(owner[0]), str(owner[1])]
        try:
            made = self.client.create_container(
                image, words, name=name, entrypoint=[PROGRAM], user="0:0", working_dir="/", hostname="sandbox", stdin_open=True,
                environment={}, labels=labels, host_config=host,
            )  # fmt: skip
        except docker.errors.ImageNotFound as error:
            raise ImageMissing(f"image {image} must be known to the engine: {error.explanation}") from error
        except docker.errors.APIError as error:
            raise Capacity(f"the engine refused a container: {error.explanation or error}") from error
        container = made["Id"]
        try:
            attached = self.client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            sock = socket.socket(fileno=os.dup(attached.fileno()))
            attached.close()
            self.client.start(container)
            return container, sock, int(self.client.inspect_container(container)["State"]["Pid"])
        except docker.errors.APIError as error:
            self._remove(container)
            raise Capacity(f"the engine could not start a container: {error.explanation or error}") from error

    async def snapshot(self, box: ContainerSandbox) -> Snapshot:
        """Have the engine make an image of a container that stands still. Raises: Capacity."""
        import docker

        labels = [f"LABEL {LABEL}={self.owner}"]
        try:
            made = await self._engine(lambda: self.client.commit(box.container, changes=labels))
        except docker.errors.APIError as error:
            raise Capacity(f"the engine cannot take a snapshot of sandbox {box.id}: {error.explanation or error}") from error
        reference = made["Id"]
        kept = Kept(lambda: self._drop_image(reference))

        async def start(spec: SandboxSpec) -> Sandbox:
            return await self._admitted(spec, (), None, Start(reference, kept))

        return KeptSnapshot(reference, box.spec, kept, start)

    def _drop_image(self, reference: str) -> None:
        import docker

        def drop() -> None:
            with contextlib.suppress(docker.errors.APIError):  # what cannot be removed now goes with the next sweep
                self.client.remove_image(reference, force=True)

        self._dropping.append(self._engine(drop))

    def remove(self, container: str) -> asyncio.Future[None]:
        """End a container; the same future for every caller."""
        if container not in self._removing:
            self._removing[container] = asyncio.ensure_future(self._engine(lambda: self._remove(container)))
            box = self._boxes.pop(container, None)
            if box is not None:
                self._removing[container].add_done_callback(lambda _: self._removed(box))
        return self._removing[container]

    def _removed(self, box: ContainerSandbox) -> None:
        kept, box.kept = box.kept, ()
        for snapshot in kept:
            snapshot.let_go()
        self.registry.died(box.number)
        if box.need is not None:
            self.admission.release(box.need)
            box.need = None

    def _of_number(self, number: int) -> ContainerSandbox | None:
        return next((box for box in self._boxes.values() if box.number == number), None)

    def _beat(self) -> None:
        """What the janitor does for the living."""
        if not self.registry.intact():
            # we were taken for dead, or somebody cleaned up: what we hold may be damaged, so it ends
            log.warning("event=fenced owner=%s sandboxes=%d", self.owner, len(self._boxes))
            for box in list(self._boxes.values()):
                box.link.close(f"sandbox {box.id} was fenced off")
                self.remove(box.container)
            self._folder.mkdir(parents=True, exist_ok=True)
            self.registry.close()
            self._control.close()
            self.registry = Registry(self._folder)
            self._control = Control(self._folder, self._of_number)
        self.registry.beat()

    def _remove(self, container: str) -> None:
        import docker

        try:
            self.client.remove_container(container, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise Capacity(f"the engine could not remove container {container[:12]}: {error.explanation}") from error
            try:  # it is being removed already
                self.client.wait(container, timeout=30, condition="removed")
            except docker.errors.NotFound:
                return

    def _engine(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._threads, work)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._janitor.close()
        self._control.close()
        await asyncio.gather(*(box.destroy() for box in list(self._boxes.values())))
        await asyncio.gather(*self._dropping)
        self._threads.shutdown()
        self.client.close()
        self.registry.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def sweep(client: Any) -> list[str]:
    """Remove the containers of dead owners, and their snapshots; the ids of the containers."""
    import docker

    swept = []
    for entry in client.containers(all=True, filters={"label": LABEL}):
        if not reaper.alive(entry["Labels"][LABEL]):
            with contextlib.suppress(docker.errors.NotFound):  # somebody else sweeps as well
                client.remove_container(entry["Id"], force=True, v=True)
            swept.append(entry["Id"])
    for image in client.images(filters={"label": LABEL}):
        if not reaper.alive(image["Labels"][LABEL]):
            with contextlib.suppress(docker.errors.APIError):  # a container that is just ending may still need it
                client.remove_image(image["Id"], force=True)
    return swept


def _oom_file(pid: int) -> Path | None:
    """Where the kernel counts kills for want of memory in the control group of a process."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for candidate in (
            Path("/sys/fs/cgroup/memory" + path, "memory.oom_control") if "memory" in controllers.split(",") else None,
            Path("/sys/fs/cgroup" + path, "memory.events") if not controllers else None,
        ):
            if candidate is not None and candidate.exists():
                return candidate
    return None
