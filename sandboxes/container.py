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
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gymsmith.errors import Capacity, DiskLimit, ImageMissing, PolicyRefused, SandboxGone
from sandboxes import reaper
from sandboxes.admission import Admission, Need, Room
from sandboxes.background import begin
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
from sandboxes.cgroups import group_file
from sandboxes.container_disk import DiskWatch, Survey, Use, Watched, survey
from sandboxes.container_sandbox import HANDOVER, START_S, ContainerLink, ContainerSandbox
from sandboxes.control import Control
from sandboxes.egress import MODES, Egress
from sandboxes.launcher import find_binary
from sandboxes.link import HELLO
from sandboxes.registry import Registry, birth
from sandboxes.snapshot import Kept, KeptSnapshot

log = logging.getLogger(__name__)
T = TypeVar("T")
LABEL = "gymsmith.owner"
PROGRAM = "/.gymsmith-box"


class Start(NamedTuple):
    """The image that a snapshot is, instead of the one that the spec names."""

    reference: str
    kept: Kept


class ContainerProvider:
    """Makes `ContainerSandbox`es with a Docker Engine. Use `start`; belongs to the event loop that started it."""

    name = "docker"

    def __init__(
        self,
        images: ImageSource,
        state_dir: Path,
        client: Any,
        runtime: str | None,
        base_image: str,
        admission: Admission,
        disk: Survey,
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
        self._removing: dict[ContainerSandbox, asyncio.Task[None]] = {}
        """At work, or failed."""
        self._left: set[ContainerSandbox] = set()
        """What the engine still has because it did not answer: a janitor's round tries again."""
        self._dropping: set[asyncio.Task[None]] = set()
        self._program = str(find_binary())
        self._last = 0
        self._closed = False
        self._disk = disk
        self._disks = DiskWatch(self._sizes)
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
            disk = await loop.run_in_executor(None, survey, client)
        except Exception as error:  # the package raises several unrelated families when no engine listens
            raise Capacity(f"a Docker Engine must answer, none does ({error}); install docker.io and start dockerd") from error
        return cls(images, state_dir, client, runtime, base_image, admission or Admission(Room.of_machine(1000)), disk)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation="container",
            host_uid="1000 and above for agent and tests; uid 0 inside is the host's unless the engine remaps users",
            users=True,
            memory_limit=True,
            pids_limit=True,
            cpu_limit=True,
            disk_limit=True,
            at_disk_limit="error" if self._disk.way == "quota" else "ended",
            upper_layer=False,
            prepared_upper=False,
            seccomp=True,
            # another kernel's sockets, as gVisor's, cannot be handed to this process
            network=MODES if self._runtime in (None, "runc", "crun") else ("none",),
            notes=(f"disk: {self._disk.text}",),
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
        self._disks.check()
        if spec.network.mode not in self.capabilities.network:
            raise PolicyRefused(f"network {spec.network.mode} needs the engine's own runtime, it is {self._runtime}; use none")
        name = f"gymsmith-{self.owner}-{number}"
        handover = None if spec.network.mode == "none" else Path(tempfile.mkdtemp(prefix="handover.", dir=self._folder))
        try:
            inspected, sock = await self._engine(lambda: self._launch(name, spec, reference, workdir, owner, handover))
        except BaseException:
            if handover is not None:
                shutil.rmtree(handover, ignore_errors=True)
            raise
        container, pid = inspected["Id"], int(inspected["State"]["Pid"])
        try:
            process = os.pidfd_open(pid)
        except OSError:  # it has ended already, as its greeting will say, or another kernel has it
            process = -1
        link = ContainerLink(sock, self._loop)
        box = ContainerSandbox(f"{self.owner}.{number}", spec, image, link)
        box.provider, box.container, box.number, box.process = self, container, number, process
        box.has_upper = False
        box.owner_shift = UID_SHIFT if os.geteuid() == 0 else None
        self._boxes[container] = box
        # a sixteenth more, because the file system's own blocks are counted too
        most = Use(spec.disk_bytes + spec.disk_bytes // 16 + MIB, spec.disk_files)
        self._disks.add(Watched.of(inspected, self._disk.way, most, lambda use: self._too_much(box, use)))
        if start is not None:
            start.kept.hold()
            box.kept = (start.kept,)
        try:
            async with asyncio.timeout(START_S):
                kind, _ = await link.hello
            if kind != HELLO:
                raise Capacity(f"a container must say hello, it said {kind}")
            box.oom_file = group_file(pid, "memory", "memory.oom_control", "memory.events")
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
    ) -> tuple[dict[str, Any], socket.socket]:
        """Create, attach, start and inspect; runs in a thread."""
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
            storage_opt={"size": str(spec.disk_bytes)} if self._disk.way == "quota" else None,
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
            return self.client.inspect_container(container), sock
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

        task = begin(self._engine(drop), f"end of snapshot {reference[7:19]}")
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def remove(self, box: ContainerSandbox) -> asyncio.Task[None]:
        """End a container; the same task for every caller, until it has failed: then another one tries again."""
        known = self._removing.get(box)
        if known is None or _failed(known):
            known = self._removing[box] = begin(self._end(box), f"end of container {box.container[:12]}")
        return known

    async def _end(self, box: ContainerSandbox) -> None:
        self._boxes.pop(box.container, None)
        self._disks.drop(box.container)
        try:
            await self._engine(lambda: self._remove(box.container))
            self._left.discard(box)
        except Capacity as error:
            self._left.add(box)
            if not await box.kill():
                raise
            log.warning("event=container_left sandbox=%s error=%s", box.id, error)
        finally:
            self._give_back(box)
        box.let_go()
        box.removed = True
        del self._removing[box]

    def _give_back(self, box: ContainerSandbox) -> None:
        kept, box.kept = box.kept, ()
        for snapshot in kept:
            snapshot.let_go()
        self.registry.died(box.number)
        if box.need is not None:
            self.admission.release(box.need)
            box.need = None

    def _too_much(self, box: ContainerSandbox, use: Use) -> None:
        """A container has more on disk than it may: it ends."""
        log.warning("event=disk_limit sandbox=%s bytes=%d files=%d", box.id, use.bytes, use.files)
        box.link.close(
            f"sandbox {box.id} may have {box.spec.disk_bytes} bytes in {box.spec.disk_files} files on disk, it had {use.bytes} "
            f"in {use.files} and was ended; raise disk_bytes in its spec",
            DiskLimit,
        )
        self.remove(box)

    def _sizes(self) -> dict[str, int]:
        """What the engine says each of our containers has written."""
        rows = self.client.containers(size=True, filters={"label": f"{LABEL}={self.owner}"})
        return {row["Id"]: int(row.get("SizeRw") or 0) for row in rows}

    def _of_number(self, number: int) -> ContainerSandbox | None:
        return next((box for box in self._boxes.values() if box.number == number), None)

    def _beat(self) -> None:
        """What the janitor does for the living."""
        if not self.registry.intact():
            # we were taken for dead, or somebody cleaned up: what we hold may be damaged, so it ends
            log.warning("event=fenced owner=%s sandboxes=%d", self.owner, len(self._boxes))
            for box in list(self._boxes.values()):
                box.link.close(f"sandbox {box.id} was fenced off")
                self.remove(box)
            self._folder.mkdir(parents=True, exist_ok=True)
            self.registry.close()
            self._control.close()
            self.registry = Registry(self._folder)
            self._control = Control(self._folder, self._of_number)
        self.registry.beat()
        for box in list(self._left):
            self.remove(box)

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

    async def _engine(self, work: Callable[[], T]) -> T:
        """What the engine says to `work`, in a thread. Raises: Capacity (it does not answer); what the engine refuses with."""
        try:
            return await self._loop.run_in_executor(self._threads, work)
        except OSError as error:  # also what the package's own connection raises, an APIError apart
            import docker

            if isinstance(error, docker.errors.APIError):
                raise
            raise Capacity(f"the Docker Engine must answer, it does not ({error}); start dockerd again") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._janitor.close()
        await self._disks.close()
        self._control.close()
        ends = (*(box.destroy() for box in list(self._boxes.values())), *self._removing.values(), *self._dropping)
        await asyncio.gather(*ends, return_exceptions=True)  # what failed is logged; the rest must end all the same
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


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
