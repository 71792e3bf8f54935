"""What a build may copy: contexts, .dockerignore, links, ADD; hostile names, sizes, archives and servers."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gymsmith.errors import BuildError, NotFound, PolicyRefused
from sandboxes.image import build_context, unpack
from sandboxes.image.build_context import BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.layer import AS_ROOT, LayerWriter
from tests.sandboxes.image_shop import Shop

HOST = "FROM gymsmith/host\n"


def test_context_members_cannot_leave_the_context(shop: Shop) -> None:
    for name in ("../x", "/etc/x", "a/../../x", "", "a//b", "a/./b", "nul\0"):
        with pytest.raises(PolicyRefused, match="leaves the context"):
            shop.build(HOST + "COPY . /x/\n", {name: b"x"})


def test_a_folder_is_read_once_and_links_in_it_lead_nowhere_else(shop: Shop, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    context = tmp_path / "context"
    (context / "sub").mkdir(parents=True)
    (context / "sub/real").write_text("inside")
    os.symlink(secret, context / "absolute")
    os.symlink("../secret", context / "climbing")
    os.symlink("..", context / "up")
    os.symlink("loop", context / "loop")
    os.symlink("/sub/real", context / "rooted")
    read = BuildContext.read(context)
    (context / "sub/real").write_text("changed after it was read")
    for name in ("absolute", "climbing", "up/secret", f"up{secret}"):
        with pytest.raises(BuildError, match="not in the build context"):
            shop.build(HOST + f"COPY {name} /opt/x\n", read)
    with pytest.raises(PolicyRefused, match="symbolic links"):
        shop.build(HOST + "COPY loop /opt/x\n", read)
    image = shop.build(HOST + "COPY rooted up/sub/real /opt/x/\nCOPY . /opt/all\n", read)
    told = shop.say(image, "cat /opt/x/rooted /opt/x/real; echo; readlink /opt/all/absolute")
    assert told == f"insideinside\n{secret}\n", "a link among the contents stays a link"


def test_what_a_folder_may_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="must be a folder"):
        BuildContext.read(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PolicyRefused, match="'pipe' is no file, folder or link"):
        BuildContext.read(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    monkeypatch.setattr(build_context, "MAX_CONTEXT_BYTES", 1 << 20)
    with pytest.raises(PolicyRefused, match="may hold 1 MiB"):
        BuildContext.read(tmp_path)


def test_dockerignore_of_a_task_is_honoured(shop: Shop) -> None:
    with pytest.raises(BuildError, match=r"'secret' is not in the build context, which has \.dockerignore, kept"):
        shop.build(HOST + "COPY secret /opt/\n", {".dockerignore": b"secret\n", "secret": b"s", "kept": b"k"})


def tar_of(*items: tuple[str, bytes, dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, more in items:
            item = tarfile.TarInfo(name)
            item.size = len(data)
            for key, value in more.items():
                setattr(item, key, value)
            tar.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


LINK, HARD, DEVICE = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([("/etc/evil", b"x", {})], "leaves the archive"),
        ([("a/../../evil", b"x", {})], "leaves the archive"),
        ([("out", b"", {**LINK, "linkname": "{victim}"}), ("out/evil", b"x", {})], "a directory is needed"),
        ([("out", b"", {**LINK, "linkname": "{victim}/secret"}), ("b", b"", {**HARD, "linkname": "out"}), ("b", b"x", {})], ""),
        ([("hard", b"", {**HARD, "linkname": "../../../../{victim}/secret"})], "leaves the archive"),
        ([("hard", b"", {**HARD, "linkname": "etc/none"})], "must lead to a file"),
        ([("null", b"", DEVICE)], "device"),
        ([("dev/null", b"", DEVICE)], "device"),
        ([("odd", b"", {"type": b"Z"})], "unknown kind|device"),
        ([("huge", b"", {"uid": 1_000_660_000})], "below 65536"),
        ([("n" * 5000, b"x", {})], "3500 bytes"),
        ([("d/" * 300 + "f", b"x", {})], "200 levels deep"),
        ([("a", b"x" * 600, {}), ("cut", b"", {})], "cannot be read"),
    ],
)
def test_hostile_archives(items: list[tuple[str, bytes, dict[str, object]]], words: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for _, _, more in items:
        if "linkname" in more:
            more["linkname"] = str(more["linkname"]).replace("{victim}", str(victim))
    archive = tar_of(*items)[: 700 if items[-1][0] == "cut" else None]
    (victim / "secret").write_text("s")
    (tmp_path / "layer").mkdir()
    writer = LayerWriter(tmp_path / "layer", ())
    if words:
        with pytest.raises((PolicyRefused, BuildError), match=words):
            unpack.unpack(io.BytesIO(archive), writer, "/opt")
    else:
        unpack.unpack(io.BytesIO(archive), writer, "/opt")
    assert sorted(path.name for path in victim.iterdir()) == ["secret"] and (victim / "secret").read_text() == "s"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer", "victim"]


def test_bombs_end_at_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small compressed archive, a sparse file, a long header, very many entries; the control is one that stays within."""
    import gzip

    def unpacked(data: bytes, **limits: int) -> unpack.Unpacked:
        folder = tmp_path / os.urandom(4).hex()
        folder.mkdir()
        for name, value in limits.items():
            monkeypatch.setattr(unpack, name, value)
        return unpack.unpack(io.BytesIO(data), LayerWriter(folder, ()))

    zeros = gzip.compress(tar_of(("zeros", bytes(8 << 20), {})))
    assert len(zeros) < 20_000
    assert unpacked(zeros).bytes == 8 << 20
    with pytest.raises(PolicyRefused, match="is it a bomb"):
        unpacked(zeros, MAX_BYTES=1 << 20)
    head = tarfile.TarInfo("sparse")
    head.size = 1 << 50
    with pytest.raises(PolicyRefused, match="is it a bomb"):
        unpacked(head.tobuf(tarfile.GNU_FORMAT))
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    with pytest.raises(PolicyRefused, match="a header of an archive"):
        unpacked(long.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(PolicyRefused, match="entries"):
        unpacked(tar_of(*((f"f{n}", b"", {}) for n in range(20))), MAX_ENTRIES=10)


def test_add_unpacks_only_what_is_an_archive(shop: Shop) -> None:
    data = tar_of(("d/f", b"f", {"mode": 0o640, "uid": 1000, "gid": 1001}))
    image = shop.build(HOST + "ADD a.bin b.tar /opt/x/\n", {"a.bin": data, "b.tar": b"no archive at all"})
    if AS_ROOT:  # an ordinary user cannot give away what an archive says
        assert (
            shop.say(image, "stat -c '%a %u %g' /opt/x/d/f; cat /opt/x/b.tar", user="root") == "640 1000 1001\nno archive at all"
        )
    with pytest.raises(PolicyRefused, match="leaves the archive"):
        shop.build(HOST + "ADD a.bin /opt/x/\n", {"a.bin": tar_of(("../../evil", b"x", {}))})
    assert not list(shop.images.root.glob("tmp/*"))


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            away = self.path == "/away"
            self.send_response(302 if away else 200)
            if away:
                self.send_header("Location", "http://localhost:1/elsewhere")
            self.end_headers()
            self.wfile.write(b"remote")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{served.server_port}"
        served.shutdown()


def test_add_fetches_from_allowed_hosts_only(shop: Shop, server: str) -> None:
    text = HOST + f"ADD http://{server}/f.txt?x=1 /opt/\n"
    with pytest.raises(PolicyRefused, match="ADD of a URL is refused"):
        shop.build(text)
    allowed = BuildPolicy(add_hosts=(server,))
    image = shop.build(text, policy=allowed)
    assert shop.say(image, "cat /opt/f.txt; stat -c ' %a' /opt/f.txt", user="root") == "remote 600\n"
    claimed = hashlib.sha256(b"remote").hexdigest()
    shop.build(text.replace("ADD ", f"ADD --checksum=sha256:{claimed} "), policy=allowed)
    with pytest.raises(BuildError, match="must hash to sha256:0000"):
        shop.build(text.replace("ADD ", f"ADD --checksum=sha256:{'0' * 64} "), policy=allowed)
    with pytest.raises(PolicyRefused, match="localhost:1/elsewhere"):
        shop.build(HOST + f"ADD http://{server}/away /opt/\n", policy=allowed)
