"""Images that somebody else made: both layouts of `docker save`, OCI folders, root file systems; damaged and hostile ones."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import Capacity, Conflict, GymsmithError, ImageMissing, NotFound, PolicyRefused
from sandboxes.image import adopting as image_import
from sandboxes.image.images import ImageStore
from sandboxes.image.layer import AS_ROOT
from tests.sandboxes.image_shop import Shop, small_tar

Items = list[tuple[str, bytes, dict[str, Any]]]


def layer_of(items: Items) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data, more in items:
            item = tarfile.TarInfo(name)
            item.size, item.mtime = len(data), 1
            for key, value in more.items():
                setattr(item, key, value)
            tar.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


UPPER: Items = [
    ("etc/.wh.group", b"", {}),
    ("srv", b"", {"type": tarfile.DIRTYPE, "mode": 0o755}),
    ("opt", b"", {"type": tarfile.DIRTYPE, "mode": 0o750, "uid": 5, "gid": 6}),
    ("opt/.wh..wh..opq", b"", {}),
    ("opt/new", b"new", {"mode": 0o4755, "uid": 7, "gid": 8}),
    ("opt/same", b"", {"type": tarfile.LNKTYPE, "linkname": "opt/new"}),
    ("opt/below", b"", {"type": tarfile.LNKTYPE, "linkname": "etc/passwd"}),
    ("opt/link", b"", {"type": tarfile.SYMTYPE, "linkname": "/opt/new"}),
    ("opt/pipe", b"", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
    ("dev/null", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    (".wh..wh.aufs", b"", {}),
]
LOWER: Items = [("opt", b"", {"type": tarfile.DIRTYPE, "mode": 0o755}), ("opt/old", b"old", {})]
CONFIG = {"Env": ["PATH=/bin", "A=b=c"], "WorkingDir": "/srv", "User": "7:8", "Cmd": ["x"], "Labels": {"l": "1"}}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return [small_tar(tmp_path_factory.mktemp("small")).read_bytes(), layer_of(LOWER), layer_of(UPPER)]


def config_of(layers: list[bytes]) -> bytes:
    return json.dumps(
        {"os": "linux", "config": CONFIG, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(d)}" for d in layers]}}
    ).encode()


def docker_old(layers: list[bytes], folder: Path) -> Path:
    config = config_of(layers)
    names = [f"{sha(data)[:8]}/layer.tar" for data in layers]
    manifest = [{"Config": f"{sha(config)}.json", "RepoTags": ["made:old"], "Layers": [*names[:-1], "elsewhere/layer.tar"]}]
    items: Items = [(f"{sha(config)}.json", config, {}), *((name, data, {}) for name, data in zip(names, layers, strict=True))]
    items.append(("elsewhere/layer.tar", b"", {"type": tarfile.SYMTYPE, "linkname": f"../{names[-1]}"}))
    (folder / "old.tar").write_bytes(layer_of([*items, ("manifest.json", json.dumps(manifest).encode(), {})]))
    return folder / "old.tar"


def blobs_of(layers: list[bytes]) -> dict[str, bytes]:
    packed = [gzip.compress(data, 1) for data in layers]
    config = config_of(layers)

    def row(data: bytes) -> dict[str, Any]:
        return {"digest": f"sha256:{sha(data)}", "size": len(data)}

    manifest = json.dumps({"schemaVersion": 2, "config": row(config), "layers": [row(data) for data in packed]}).encode()
    index = {"manifests": [{**row(manifest), "annotations": {"org.opencontainers.image.ref.name": "one"}}]}
    blobs = {f"blobs/sha256/{sha(data)}": data for data in (*packed, config, manifest)}
    return {**blobs, "oci-layout": b"{}", "index.json": json.dumps(index).encode()}


def oci_folder(layers: list[bytes], folder: Path) -> Path:
    for name, data in blobs_of(layers).items():
        (folder / "oci" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "oci" / name).write_bytes(data)
    return folder / "oci"


def docker_new(layers: list[bytes], folder: Path) -> Path:
    blobs = blobs_of(layers)
    config = f"blobs/sha256/{sha(config_of(layers))}"
    names = [f"blobs/sha256/{sha(gzip.compress(data, 1))}" for data in layers]
    blobs["manifest.json"] = json.dumps([{"Config": config, "RepoTags": ["made:new"], "Layers": names}]).encode()
    with gzip.open(folder / "new.tar.gz", "wb", 1) as file:
        file.write(layer_of([(name, data, {}) for name, data in blobs.items()]))
    return folder / "new.tar.gz"


FORMS: dict[str, tuple[str, Callable[[list[bytes], Path], Path]]] = {
    "docker-save-old": ("archive:", docker_old),
    "docker-save-new": ("archive:", docker_new),
    "oci-folder": ("oci:", oci_folder),
}


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user's layers belong to that user")
@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_what_its_layers_say(form: str, shop: Shop, layers: list[bytes], tmp_path: Path) -> None:
    scheme, make = FORMS[form]
    image = shop.run(shop.images.adopt(f"made/{form}", f"{scheme}{make(layers, tmp_path)}"))
    assert (image.env, image.workdir, image.user) == ({"PATH": "/bin", "A": "b=c"}, "/srv", "7:8")
    assert image.config == {"User": "7:8", "Cmd": ["x"], "Labels": {"l": "1"}}
    assert len(image.layers) == 3
    told = shop.say(
        image,
        "ls -A /opt; stat -c '%a %u %g %h %F' /opt /opt/new /opt/same /opt/pipe; cat /opt/link; head -c 9 /opt/below; echo;"
        "ls /etc; ls -d /srv; cat /etc/group 2>&1; test -c /dev/null && echo of-the-sandbox",
        role="build", user="root",
    )  # fmt: skip
    assert told.splitlines() == [
        "below", "link", "new", "pipe", "same",
        "750 5 6 2 directory", "4755 7 8 2 regular file", "4755 7 8 2 regular file", "600 0 0 1 fifo", "newroot:x:0:",
        "passwd", "/srv", "cat: /etc/group: No such file or directory", "of-the-sandbox",
    ]  # fmt: skip
    child = shop.build(f"FROM made/{form}\nRUN id -u > /tmp/who; pwd >> /tmp/who\n")
    assert shop.say(child, "cat /tmp/who") == "7\n/srv\n", "user and directory of the image hold for RUN"


def test_all_forms_share_their_layers(shop: Shop, layers: list[bytes], tmp_path: Path) -> None:
    made = [shop.run(shop.images.adopt("shared", f"{scheme}{make(layers, tmp_path)}")) for scheme, make in FORMS.values()]
    assert len({image.id for image in made}) == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda blobs: {n: d[:-9] + b"\0" * 9 if len(d) > 1 << 20 else d for n, d in blobs.items()}, "cannot be read|hash"),
        (lambda blobs: {n: d for n, d in blobs.items() if len(d) < 1 << 20}, "the image lacks 'blobs/"),
        (lambda blobs: {n: d.replace(b"A=b", b"A=x") for n, d in blobs.items()}, "not what its name says"),
        (lambda blobs: {**blobs, "index.json": b"{"}, "no JSON"),
        (lambda blobs: {**blobs, "index.json": b"[]"}, "is it an OCI layout"),
        (lambda blobs: {**blobs, "index.json": b'{"manifests": []}'}, "expected one image"),
        (lambda blobs: {**blobs, "index.json": b'{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}'}, "named by SHA-256"),
        (lambda blobs: {**blobs, "index.json": b" " * (5 << 20)}, "more than"),
    ],
)
def test_damaged_and_hostile_images(
    spoil: Callable[[dict[str, bytes]], dict[str, bytes]], words: str, layers: list[bytes], tmp_path: Path
) -> None:
    for name, data in spoil(blobs_of(layers)).items():
        (tmp_path / "oci" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "oci" / name).write_bytes(data)
    store = ImageStore(tmp_path / "images")
    with pytest.raises(GymsmithError, match=words):
        asyncio.run(store.adopt("bad", f"oci:{tmp_path / 'oci'}"))
    assert not store.names.all() and not list((tmp_path / "images").glob("tmp/*"))


def test_where_images_come_from_is_checked(shop: Shop, tmp_path: Path) -> None:
    for source, error, words in (
        ("docker.io/debian", PolicyRefused, "an image comes from oci:"),
        ("oci:/nowhere", NotFound, "needs a folder, '/nowhere' is none"),
        (f"archive:{tmp_path}", NotFound, "needs a file"),
        ("debootstrap:../x", PolicyRefused, "SUITE"),
        ("debootstrap:bookworm=file:///etc", PolicyRefused, "SUITE"),
    ):
        with pytest.raises(error, match=words):
            shop.run(shop.images.adopt("name", source))
    with pytest.raises(Conflict, match="gymsmith/host is the base"):
        shop.images.tag(shop.images.base(), "gymsmith/host")
    for name in ("Upper", "--privileged", "../x", "a" * 300, "a\nb"):
        with pytest.raises(ImageMissing, match="lower-case words"):
            shop.images.tag(shop.images.base(), name)


def test_names_are_those_of_docker(shop: Shop) -> None:
    image = shop.build("FROM gymsmith/host\nENV NAMED=1\n")
    shop.images.tag(image, "docker.io/library/named")
    for name in ("named", "named:latest", "docker.io/named"):
        assert shop.images.get(name).id == image.id
    assert shop.build("FROM named:latest\nENV B=2\n").env["NAMED"] == "1"
    with pytest.raises(ImageMissing):
        shop.images.get("named:other")


def test_debootstrap_says_what_is_missing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_import.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Capacity, match="apt-get install debootstrap"):
        shop.run(shop.images.adopt("debian", "debootstrap:bookworm"))


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user's layers belong to that user")
def test_a_folder_with_other_owners_and_a_device(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "r/opt").mkdir(parents=True)
    (tmp_path / "r/opt/f").write_text("f")
    os.chown(tmp_path / "r/opt/f", 12, 13)
    image = shop.run(shop.images.adopt("folder", f"rootfs:{tmp_path / 'r'}"))
    assert (image.layers[0] / "opt/f").stat().st_uid == 100_012
    os.mknod(tmp_path / "r/opt/disk", 0o060660, os.makedev(8, 0))
    with pytest.raises(PolicyRefused, match="'/opt/disk' is a device"):
        shop.run(shop.images.adopt("folder", f"rootfs:{tmp_path / 'r'}"))
    shutil.rmtree(tmp_path / "r")
