"""The `ns` provider: sandboxes out of Linux namespaces and an overlay, without a daemon, as root or as an ordinary user.

One launcher process per provider makes them; this module asks it, keeps what they need on the host (control groups, work
directories) and gives that back when the launcher says that the last process of a sandbox is dead. Everything a killed worker
leaves on disk lies below one owner directory, made before the first sandbox, and is swept by `reaper.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gymsmith.errors import Capacity, ImageMissing, PolicyRefused, SandboxError, SandboxGone
from sandboxes import cgroups, reaper
from sandboxes.admission import Admission, Need, Room
from sandboxes.base import MIB, UID_SHIFT, Capabilities, Image, ImageSource, Sandbox, SandboxSpec, Snapshot, check_path, user_ids
from sandboxes.control import Control
from sandboxes.egress import Egress
from sandboxes.launcher import COPIED, DEAD, CreateRequest, Launcher, tmpfs_has_user_attributes
from sandboxes.link import FAILED, HELLO, Link
from sandboxes.registry import Registry, birth
from sandboxes.resident import ResidentSandbox
from sandboxes.snapshot import Kept, KeptSnapshot

log = logging.getLogger(__name__)
_CREATE_S = 30.0
_COPY_S = 120.0
_SHM_BYTES = 64 * MIB
_COPY_MORE_BYTES = MIB
"""What a copy of a sandbox's files may need beside its disk_bytes."""
_PID_ROOM = 8
"""Processes beside spec.pids, which is the limit of each user inside: the resident agent, and a command of another user."""


class NamespaceSandbox(ResidentSandbox):
    """One sandbox of the `ns` provider."""

    def __init__(self, provider: NamespaceProvider, number: int, spec: SandboxSpec, image: Image, link: Link) -> None:
        super().__init__(f"{provider.owner}.{number}", spec, image, link)
        self.provider = provider
        self.image = image
        self.number = number
        self.dead: asyncio.Future[int] = provider.loop.create_future()
        self.group: cgroups.Group | None = None
        self.need: Need | None = None
        self.work = ""
        self.failure = ""
        self.layers: tuple[Path, ...] = ()
        """Above the image's, topmost first."""
        self.kept: tuple[Kept, ...] = ()
        """The snapshots among its layers."""
        self.host_network = False
        self.owner_shift = UID_SHIFT if provider.mode == "root" else None

    def _oom_kills(self) -> int:
        return self.group.oom_kills() if self.group else 0

    def adopt(self, spec: SandboxSpec) -> None:
        super().adopt(spec)
        self.provider.registry.changed(self.number, {"labels": dict(spec.labels)})

    async def snapshot(self) -> Snapshot:
        if not self.provider.capabilities.fork:
            raise PolicyRefused("snapshots need a kernel whose tmpfs has user attributes (Linux 6.6), or root; run as root")
        # waiting for room first: nobody stands still meanwhile
        held = await self.provider.reserve_copy(self)
        try:
            async with self.standing_still():
                return await self.provider.snapshot(self, held)
        finally:
            held.let_go()

    async def destroy(self) -> None:
        self.link.close(f"sandbox {self.id} was destroyed")
        if not self.dead.done():
            self.provider.kill(self.number)
            await asyncio.shield(self.dead)


class NamespaceProvider:
    """Makes `NamespaceSandbox`es. Use `start`; belongs to the event loop that started it."""

    name = "ns"

    def __init__(
        self, images: ImageSource, state_dir: Path, admission: Admission, janitor_s: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.images = images
        self.loop = loop
        self.admission = admission
        self.owner, self._folder, self.registry = reaper.enrol(state_dir)
        self.egress = Egress()
        """What network policies other than none are served from; set it before the first sandbox."""
        self._boxes: dict[int, NamespaceSandbox] = {}
        self._copies: dict[int, asyncio.Future[int]] = {}
        self._last = 0
        self._last_copy = 0
        self._closed = False
        self._groups = cgroups.open_pool(self.owner)
        try:
            self._launcher = self._launch()
        except BaseException:
            self._drop_folder()
            raise
        self._launcher_alive = True
        self._control = Control(self._folder, self._boxes.get)
        self._janitor = reaper.Janitor(self._beat, lambda: reaper.sweep(state_dir), janitor_s)
        self.mode = self._launcher.mode
        self._private_upper = self.mode == "root" or tmpfs_has_user_attributes()

    @classmethod
    async def start(
        cls,
        images: ImageSource,
        state_dir: Path,
        *,
        admission: Admission | None = None,
        janitor_s: float = reaper.PERIOD_S,
    ) -> NamespaceProvider:
        """A provider whose left-overs lie below `state_dir`; sweeps those of dead owners first, and every `janitor_s` again.

        admission: who may make a sandbox when; None: up to a thousand, as far as this machine has room.
        Raises: Capacity (no namespaces here; the message says why).
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(reaper.sweep, state_dir)
            admission = admission or Admission(Room.of_machine(1000))
            return cls(images, state_dir, admission, janitor_s, asyncio.get_running_loop())
        except OSError as error:
            raise Capacity(f"sandboxes need a state folder that can be written, {state_dir} cannot: {error}") from error

    def _launch(self) -> Launcher:
        scratch = self._folder / "scratch"
        scratch.mkdir(exist_ok=True)
        launcher = Launcher.start(scratch)
        self.loop.add_reader(launcher.control.fileno(), self._events)
        return launcher

    @property
    def capabilities(self) -> Capabilities:
        grouped = self._groups is not None
        notes = []
        if not grouped:
            notes.append("no writable control groups: memory is limited per process, CPU time is not; run as root to limit both")
        if self.mode == "single":
            notes.append(
                "one user id only: agent, tester and root are the same inside; install uidmap and add a line to /etc/subuid"
            )
        if not self._private_upper:
            notes.append(
                "tmpfs without user attributes (kernel before 6.6): what a sandbox writes lies on disk, without a size limit"
            )
        ids = {
            "root": f"{UID_SHIFT} to {UID_SHIFT + 65_535}, unprivileged",
            "subordinate": f"{os.geteuid()} and its subordinate ids",
            "single": f"{os.geteuid()} alone",
        }
        return Capabilities(
            isolation="namespace",
            host_uid=ids[self.mode],
            users=self.mode != "single",
            memory_limit=grouped,
            pids_limit=True,
            cpu_limit=grouped,
            disk_limit=self._private_upper,
            upper_layer=True,
            prepared_upper=True,
            seccomp=True,
            fork=self._private_upper,
            notes=tuple(notes),
        )

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> NamespaceSandbox:
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        return await self._create(spec, tuple(layers), upper, ())

    async def create_on_host_network(
        self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None
    ) -> NamespaceSandbox:
        """As `create`, with this machine's own network instead of none: for image builds whose policy says so, never for agents.

        Not part of the `Provider` protocol, so nobody can ask for it from another machine. Raises: PolicyRefused, as `create`.
        """
        if spec.role != "build":
            raise PolicyRefused(f'only a sandbox of role "build" may have the host\'s network, got {spec.role!r}')
        return await self._create(spec, tuple(layers), upper, (), host_network=True)

    async def _create(
        self,
        spec: SandboxSpec,
        layers: tuple[Path, ...],
        upper: Path | None,
        kept: tuple[Kept, ...],
        *,
        host_network: bool = False,
    ) -> NamespaceSandbox:
        image = self.images.resolve(spec.image)
        self.egress.check(spec.network)
        in_memory = spec.disk_bytes if upper is None and self._private_upper else _SHM_BYTES
        need = Need(spec.memory_bytes + in_memory, spec.pids + _PID_ROOM)
        await self.admission.admit(need)
        box = None
        try:
            async with self.admission.lifecycle:
                box, theirs = self._new(spec, image, need)
                for snapshot in kept:
                    snapshot.hold()
                box.layers, box.kept, box.host_network = layers, kept, host_network
                return await self._make(box, theirs, upper)
        finally:
            if box is None:  # nobody has the reservation whose end would give it back
                self.admission.release(need)

    def _new(self, spec: SandboxSpec, image: Image, need: Need) -> tuple[NamespaceSandbox, socket.socket]:
        """A sandbox that is registered but not made yet, and its end of the link. From here on `_bury` gives back `need`."""
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        number = self._last = self._last + 1
        try:
            if not self.registry.intact():
                self._fenced()
            if not self._launcher_alive:
                log.warning("event=launcher_restarted owner=%s", self.owner)
                self._launcher.close()
                self._launcher = self._launch()
                self._launcher_alive = True
            self.registry.born(number, birth(spec))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self.registry.died(number)
            raise Capacity(f"cannot prepare a sandbox: {error}") from error
        box = NamespaceSandbox(self, number, spec, image, Link(ours, self.loop))
        box.need = need
        self._boxes[number] = box
        return box, theirs

    async def _make(self, box: NamespaceSandbox, theirs: socket.socket, upper: Path | None) -> NamespaceSandbox:
        try:
            with theirs:
                await self._ask(box, upper, theirs)
            async with asyncio.timeout(_CREATE_S):
                kind, payload = await box.link.hello
        except BaseException as error:
            await box.destroy()
            if box.failure:
                raise Capacity(f"cannot make a sandbox: {box.failure}") from error
            if isinstance(error, TimeoutError):
                raise Capacity(f"a sandbox must start within {_CREATE_S:.0f} s, it did not; the machine is overloaded") from None
            raise
        if kind != HELLO:
            await box.destroy()
            raise _start_error(kind, payload, box.spec.image)
        try:
            await box.open_network(self.egress)
        except BaseException:
            await box.destroy()
            raise
        return box

    async def _ask(self, box: NamespaceSandbox, upper: Path | None, sandbox_end: socket.socket) -> None:
        """Send the request; on an error before it was sent the sandbox counts as dead."""
        spec, image = box.spec, box.image
        descriptors: list[int] = []
        try:
            if upper is None and not self._private_upper:
                upper = Path(tempfile.mkdtemp(prefix="upper.", dir=self._folder))
            if upper is not None:
                box.work = reaper.make_work(self._folder, upper)
            if self._groups is not None:
                in_memory = spec.disk_bytes if upper is None else _SHM_BYTES
                limits = cgroups.Limits(spec.memory_bytes + in_memory, spec.pids + _PID_ROOM, spec.cpus)
                box.group = self._groups.take(limits)
                descriptors = box.group.descriptors()
                self.registry.changed(box.number, {"group": box.group.name})
            request = CreateRequest(
                id=box.number,
                build=spec.role == "build",
                processes=spec.pids,
                lease_s=int(spec.lease_s),
                workdir=check_path("workdir", box.workdir),
                workdir_owner=user_ids(box.user),
                layers=[os.path.abspath(layer) for layer in (*box.layers, *image.layers)],
                binds=image.binds,
                upper=str(upper or ""),
                work=box.work,
                disk_bytes=spec.disk_bytes if upper is None else _SHM_BYTES,
                inodes=spec.disk_files,
                data_bytes=0 if self._groups is not None else spec.memory_bytes,
                file_bytes=0 if upper is None else spec.disk_bytes,
                group_version=self._groups.version if self._groups is not None else 0,
                host_network=box.host_network,
            )
            if not request.layers:
                raise ImageMissing(f"image {image.id} must have at least one layer, it has none")
            while True:
                try:
                    self._launcher.request(request, sandbox_end, descriptors)
                    return
                except BlockingIOError:
                    await asyncio.sleep(0.005)
        except OSError as error:
            self._bury(box, 0)
            raise Capacity(f"cannot prepare a sandbox: {error}") from error
        except BaseException:
            self._bury(box, 0)
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def reserve_copy(self, box: NamespaceSandbox) -> Kept:
        """The memory of a copy of what a sandbox has written, reserved until everybody has let go. Raises: Capacity."""
        need = Need(box.spec.disk_bytes + _COPY_MORE_BYTES, sandboxes=0)
        await self.admission.admit(need)
        return Kept(lambda: self.admission.release(need))

    async def snapshot(self, box: NamespaceSandbox, held: Kept) -> Snapshot:
        """Keep what a sandbox that stands still has written, in memory that is `held`. Raises: Capacity, SandboxGone."""
        number = self._last_copy = self._last_copy + 1
        copied = self._copies[number] = self.loop.create_future()
        try:
            self._launcher.snapshot(box.number, number, box.spec.disk_bytes + _COPY_MORE_BYTES, box.spec.disk_files + 64)
            async with asyncio.timeout(_COPY_S):
                error = await copied
        except (OSError, TimeoutError) as failure:
            self._drop_copy(self._launcher, number)
            raise Capacity(f"cannot take a snapshot of sandbox {box.id}: {failure or 'it took too long'}") from failure
        finally:
            del self._copies[number]
        if error == errno.ESRCH:
            raise SandboxGone(f"sandbox {box.id} ended")
        if error:
            raise Capacity(f"cannot take a snapshot of sandbox {box.id}: {os.strerror(error)}")
        launcher = self._launcher

        def drop() -> None:
            self._drop_copy(launcher, number)
            held.let_go()

        held.hold()
        kept = Kept(drop)
        layers = (launcher.snapshot_folder(number), *box.layers)
        below = box.kept
        for snapshot in below:
            snapshot.hold()

        async def start(spec: SandboxSpec) -> Sandbox:
            if launcher is not self._launcher or not self._launcher_alive:
                raise SandboxGone(f"snapshot {number} went with the launcher that held it; take another one")
            return await self._create(spec, layers, None, (kept, *below))

        def drop_all() -> None:
            for snapshot in (kept, *below):
                snapshot.let_go()

        return KeptSnapshot(f"{self.owner}.s{number}", box.spec, Kept(drop_all), start)

    def _drop_copy(self, launcher: Launcher, number: int) -> None:
        if launcher is not self._launcher or not self._launcher_alive:
            return  # it went with its launcher
        try:
            launcher.discard(number)
        except BlockingIOError:
            self.loop.call_later(0.01, self._drop_copy, launcher, number)
        except OSError:
            self._launcher_died()

    def kill(self, number: int) -> None:
        """Have the launcher end a sandbox."""
        try:
            self._launcher.kill(number)
        except BlockingIOError:
            self.loop.call_later(0.01, self.kill, number)
        except OSError:
            self._launcher_died()

    def _events(self) -> None:
        while True:
            try:
                event = self._launcher.receive()
            except BlockingIOError:
                return
            except OSError:
                self._launcher_died()
                return
            if event.kind == COPIED:
                copied = self._copies.get(event.id)
                if copied is not None and not copied.done():
                    copied.set_result(event.value)
                continue
            box = self._boxes.get(event.id)
            if event.kind == DEAD:
                if box is not None:
                    self._bury(box, event.value)
            elif event.id == 0 and not event.text:
                self._launcher_died()
                return
            else:
                log.warning("launcher sandbox=%s error=%r", event.id, event.text)
                if box is not None:
                    box.failure = event.text

    def _bury(self, box: NamespaceSandbox, status: int) -> None:
        """The last process of a sandbox is dead: give back what it had."""
        self._boxes.pop(box.number, None)
        if box.group is not None and self._groups is not None:
            self._groups.give(box.group)
        box.group = None
        if box.work:
            reaper.remove_work(self._folder, box.work)
            box.work = ""
        box.link.close(f"sandbox {box.id} ended")
        self.registry.died(box.number)
        if box.need is not None:
            self.admission.release(box.need)
            box.need = None
        kept, box.kept = box.kept, ()
        for snapshot in kept:
            snapshot.let_go()
        if not box.dead.done():
            box.dead.set_result(status)

    def _beat(self) -> None:
        """What the janitor does for the living."""
        if not self.registry.intact():
            self._fenced()
        self.registry.beat()
        if self._groups is not None:
            self._groups.tidy()

    def _fenced(self) -> None:
        """Our folder is gone: we were taken for dead, or somebody cleaned up. What we hold may be damaged, so it ends."""
        log.warning("event=fenced owner=%s sandboxes=%d", self.owner, len(self._boxes))
        self._launcher_died()
        self._launcher.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.registry.close()
        self._control.close()
        self.registry = Registry(self._folder)
        self._control = Control(self._folder, self._boxes.get)

    def _launcher_died(self) -> None:
        """With the launcher all sandboxes are dead. The next `create` starts another one."""
        if not self._launcher_alive:
            return
        self._launcher_alive = False
        self.loop.remove_reader(self._launcher.control.fileno())
        for box in list(self._boxes.values()):
            if box.group is not None and self._groups is not None:
                self._groups.abandon(box.group)  # its processes are only just being killed: nobody else may have it
            box.group = None
            self._bury(box, 9)
        for copied in self._copies.values():
            if not copied.done():
                copied.set_result(errno.ESRCH)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._janitor.close()
        self._control.close()
        await asyncio.gather(*(box.destroy() for box in list(self._boxes.values())))
        if self._launcher_alive:
            self._launcher_alive = False
            self.loop.remove_reader(self._launcher.control.fileno())
        self._launcher.close()
        self._drop_folder()

    def _drop_folder(self) -> None:
        if self._groups is not None:
            self._groups.close()
        self.registry.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _start_error(kind: int, payload: bytes, image: str) -> SandboxError:
    text = payload.decode(errors="replace") if kind == FAILED else f"unexpected frame {kind}"
    if text.startswith("/") and text.endswith(os.strerror(2)):
        return ImageMissing(f"a layer of image {image} is missing: {text}")
    return Capacity(f"cannot make a sandbox: {text}")
