"""The same Dockerfile gives the same file tree and the same configuration here and from a Docker Engine.

Both begin with one small root file system. Docker builds by itself, from the same folder through the docker package: its own
parser, its own .dockerignore, its own COPY. Its tree is read from `docker export`, ours by `find` inside a sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandboxes.base import Image
from sandboxes.image import dockerfile
from sandboxes.image.build_context import BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.engine import build_with_engine
from sandboxes.image.images import ImageStore
from sandboxes.image.layer import AS_ROOT
from tests.sandboxes.conftest import lacking
from tests.sandboxes.image_cases import BASE, CASES, Case
from tests.sandboxes.image_shop import Shop, small_tar

OWN = ("/dev", "/proc", "/sys", "/.dockerenv", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/mtab")
"""What a running sandbox or an engine's container puts there itself."""


class Entry(NamedTuple):
    kind: str
    mode: int
    uid: int
    gid: int
    what: str
    """A link's target, or the hash of a file's content."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except docker.errors.DockerException as error:
        lacking(f"no container engine: {error}")
    tar = small_tar(tmp_path_factory.mktemp("small"))
    client.api.import_image_from_file(str(tar), repository=BASE.partition(":")[0], tag="base")
    client.tar = tar
    yield client
    client.close()


@pytest.fixture(scope="module")
def based(shop: Shop, engine: Any) -> Shop:
    if not AS_ROOT:
        pytest.skip("an ordinary user cannot give files away, so owners differ from Docker's")
    shop.run(shop.images.adopt(BASE, f"rootfs:{engine.tar}"))
    return shop


DOOR = ("stages", "variables", "documents")
"""Cases that the Docker provider's own way of building is held to as well: they are the ones that it rewrites."""


class Theirs(NamedTuple):
    """What the engine made of a case."""

    tree: dict[str, Entry]
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def theirs(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Theirs]]]:
    """The engine builds all cases beside one another: most of its time it waits."""
    folder = tmp_path_factory.mktemp("theirs")
    with ThreadPoolExecutor(4) as pool:
        yield {
            **{name: pool.submit(their_build, engine, folder / name, CASES[name]) for name in CASES},
            **{f"door {name}": pool.submit(door_build, engine, folder / f"door-{name}", CASES[name]) for name in DOOR},
        }


@pytest.mark.docker
@pytest.mark.parametrize("name", CASES)
def test_the_same_dockerfile_gives_the_same_tree(
    name: str, based: Shop, theirs: dict[str, Future[Theirs]], tmp_path: Path
) -> None:
    case = CASES[name]
    lay_out(case, tmp_path)
    image = based.build(case.text, BuildContext.read(tmp_path), policy=BuildPolicy(arguments=case.arguments))
    ours = our_tree(based, image)
    wanted = theirs[name].result(300)
    for path in case.has:
        assert path in ours, f"{path} is missing"
    for path in case.lacks:
        assert path not in ours, f"{path} is there"
    paths = {*ours, *wanted.tree}
    differing = {path: (ours.get(path), wanted.tree.get(path)) for path in paths if ours.get(path) != wanted.tree.get(path)}
    assert differing == {}, "path: (here, docker)"
    assert our_settings(image) == wanted.settings
    if name in DOOR:
        assert theirs[f"door {name}"].result(300) == Theirs(ours, our_settings(image)), "as the Docker provider builds it"


def lay_out(case: Case, folder: Path) -> None:
    (folder / "Dockerfile").write_text(case.docker or case.text)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif isinstance(content, str) and content.startswith("-> "):
            os.symlink(content[3:], path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(case.modes.get(str(path.relative_to(folder)), 0o755 if path.is_dir() else 0o644))


def their_build(engine: Any, folder: Path, case: Case) -> Theirs:
    folder.mkdir(mode=0o755)
    lay_out(case, folder)
    image, _ = engine.images.build(
        path=str(folder), buildargs=case.arguments, network_mode="none", rm=True, forcerm=True, timeout=300
    )
    try:
        return Theirs(their_tree(engine, image.id), their_settings(engine, image.id))
    finally:
        engine.images.remove(image.id, force=True)


def door_build(engine: Any, folder: Path, case: Case) -> Theirs:
    """As `their_build`, by what the Docker provider does with a Dockerfile."""
    folder.mkdir(mode=0o755)
    lay_out(case, folder)
    work = build_with_engine(
        ImageStore(folder.parent / f"{folder.name}-store"), engine.api, BASE, dockerfile.parse(case.text),
        BuildContext.read(folder), BuildPolicy(arguments=case.arguments), timeout_s=300.0,
    )  # fmt: skip
    image = asyncio.run(work)
    try:
        return Theirs(their_tree(engine, str(image.engine_ref)), our_settings(image))
    finally:
        engine.images.remove(str(image.engine_ref), force=True)


def our_tree(shop: Shop, image: Image) -> dict[str, Entry]:
    def said(command: str) -> list[str]:
        text = shop.say(image, command, role="build", user="root", cwd="/", max_output_bytes=1 << 23)
        return [row for row in text.split("\0") if row]

    hashes = {row[66:]: row[:64] for row in said("find / -xdev -type f -exec sha256sum -z {} +")}
    tree = {}
    for row in said("find / -xdev -printf '%y\\t%m\\t%U\\t%G\\t%l\\t%p\\0'"):
        kind, mode, uid, gid, target, path = row.split("\t")
        tree[path] = Entry(kind, int(mode, 8), int(uid), int(gid), hashes[path] if kind == "f" else target)
    return {path: entry for path, entry in tree.items() if path != "/" and not path.startswith(OWN)}


def their_tree(engine: Any, image: str) -> dict[str, Entry]:
    container = engine.api.create_container(image, ["-"])["Id"]
    try:
        data = b"".join(engine.api.export(container))
    finally:
        engine.api.remove_container(container)
    tree: dict[str, Entry] = {}
    kinds = {tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.FIFOTYPE: "p"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for item in tar:
            path = "/" + item.name.strip("/")
            if item.islnk():
                tree[path] = tree["/" + item.linkname.strip("/")]
                continue
            content = tar.extractfile(item) if item.isreg() else None
            what = hashlib.sha256(content.read()).hexdigest() if content else item.linkname if item.issym() else ""
            mode = 0o777 if item.issym() else item.mode & 0o7777
            tree[path] = Entry(kinds.get(item.type, "f"), mode, item.uid, item.gid, what)
    return {path: entry for path, entry in tree.items() if path != "/" and not path.startswith(OWN)}


def our_settings(image: Image) -> dict[str, Any]:
    kept = {name: value for name, value in image.config.items() if value}
    return {**kept, "Env": dict(image.env), "WorkingDir": os.path.normpath(image.workdir)}


def their_settings(engine: Any, image: str) -> dict[str, Any]:
    said = engine.api.inspect_image(image)["Config"]
    names = ("User", "Entrypoint", "Cmd", "Healthcheck", "Labels", "ExposedPorts", "Volumes", "Shell", "StopSignal")
    env = dict(pair.split("=", 1) for pair in said.get("Env") or [])
    return {
        **{name: said[name] for name in names if said.get(name)},
        "Env": env,
        "WorkingDir": os.path.normpath(said["WorkingDir"] or "/"),
    }
