"""Dockerfiles become layers: what an instruction does, what is refused, what is executed once, what can never be reached."""

from __future__ import annotations

import asyncio
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import BuildError, ImageMissing, PolicyRefused
from sandboxes import dockerfile, image_build
from sandboxes.base import MIB, UID_SHIFT, Image, SandboxSpec
from sandboxes.image import ImageStore
from sandboxes.layer import AS_ROOT, LayerWriter, lookup
from sandboxes.namespace import NamespaceProvider


class Shop:
    """A provider and its image store on one event loop."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.images = ImageStore(root / "images")
        self.provider = self.run(NamespaceProvider.start(self.images, root / "sandboxes"))
        self.images.provider = self.provider

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def build(self, text: str, context: Mapping[str, bytes] | None = None, **options: Any) -> Image:
        return self.run(self.images.build(text, context or {}, **options))

    def say(self, image: Image, command: str, **options: Any) -> str:
        async def ask() -> str:
            box = await self.provider.create(SandboxSpec(image=image.id))
            try:
                return (await box.exec(command, **options)).output.decode()
            finally:
                await box.destroy()

        return self.run(ask())

    def needs_users(self) -> None:
        if not self.provider.capabilities.users:
            pytest.skip("this user has one id only, so root, agent and tester are the same inside")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("image"))
    yield made
    made.run(made.provider.close())
    made.loop.close()


def test_the_base_has_users_tools_and_nothing_of_the_hosts_own(shop: Shop) -> None:
    shop.needs_users()
    base = shop.images.base()
    assert shop.say(base, "id -un; pwd; echo $PATH").split("\n")[:2] == ["agent", "/work"]
    assert shop.say(base, "id -un", user="tester").strip() == "tester"
    assert shop.say(base, "touch here && python3 -c 'print(6*7)'").strip() == "42"
    assert "awk-works" in shop.say(base, "awk 'BEGIN { print \"awk-works\" }'")
    assert shop.say(base, "touch /usr/x /etc/x 2>&1; ls -A /root /home 2>&1; cat /etc/shadow 2>&1").count("agent") == 1
    listed = set(shop.say(base, "ls -A /etc; ls -A /").split())
    assert listed.isdisjoint(
        {"shadow", "resolv.conf", "machine-id", "ssl", "ssh", "pip.conf", "sys", "boot", "tests", ".dockerenv"}
    )
    assert shop.say(base, "cat /etc/hostname") == "sandbox\n"


def test_instructions_do_what_docker_documents(shop: Shop) -> None:
    shop.needs_users()
    text = """ARG who=world
FROM gymsmith/host
# a comment
ARG who
ENV GREETING="hello there" NAME=$who
ENV OLD style value
WORKDIR /srv/app
WORKDIR sub
RUN echo "$GREETING $NAME" > said && \\
    # inside
    pwd >> said
RUN ["/bin/sh", "-c", "id -un >> said"]
USER agent
RUN id -un > /tmp/by
COPY --chmod=750 --chown=1000:tester tool.sh /opt/bin/tool
COPY a.txt dir /data/
COPY ["b c.txt", "."]
ADD dir/*.md /md/
CMD ["ignored"]
LABEL a=b
"""
    context = {"tool.sh": b"#!/bin/sh\necho tool\n", "a.txt": b"A", "dir/x.md": b"X", "dir/deep/y.md": b"Y", "b c.txt": b"B"}
    image = shop.build(text, context)
    assert (image.workdir, image.user) == ("/srv/app/sub", "agent")
    assert image.env["NAME"] == "world" and image.env["OLD"] == "style value"
    told = shop.say(
        image,
        "cat said /tmp/by; cat 'b c.txt'; echo; cd /data; find . -type f | sort; ls /md; "
        "stat -c '%a %u %g' /opt/bin/tool; /opt/bin/tool",
    )
    assert told.split("\n")[:-1] == [
        "hello there world", "/srv/app/sub", "root", "agent", "B",
        "./a.txt", "./deep/y.md", "./x.md", "x.md", "750 1000 1001", "tool",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# syntax=evil/frontend\nFROM gymsmith/host\n", "syntax"),
        ("# escape=`\nFROM gymsmith/host\n", "escape"),
        ("FROM gymsmith/host\nRUN --mount=type=secret,id=x cat /run/secrets/x\n", "--mount"),
        ("FROM gymsmith/host\nRUN --security=insecure id\n", "--security"),
        ("FROM gymsmith/host\nRUN --network=host id\n", "--network"),
        ("FROM --platform=linux/arm64 gymsmith/host\n", "--platform"),
        ("FROM gymsmith/host\nADD https://example.org/x /x\n", "URL"),
        ("FROM gymsmith/host\nADD git@example.org:x.git /x\n", "URL"),
        ("FROM gymsmith/host\nCOPY --from=other /x /x\n", "--from"),
        ("FROM gymsmith/host AS one\n", "stages"),
        ("FROM gymsmith/host\nFROM gymsmith/host\n", "stages"),
        ("FROM gymsmith/host\nHEALTHCHECK CMD true\n", "supported are FROM"),
        ("FROM gymsmith/host\nENTRYPOINT x\n", "ENTRYPOINT"),
        ("FROM gymsmith/host\nRUN <<EOF\nid\nEOF\n", "here-documents"),
        ("FROM gymsmith/host\nRUN\n", "argument"),
        ("FROM gymsmith/host\nEXTRA\n", "EXTRA"),
        ("FROM gymsmith/host\nRUN a && \\", "instruction"),
        ("FROM gymsmith/host\nENV A=${B:-c}\n", "expanded"),
        ("RUN id\nFROM gymsmith/host\n", "before FROM"),
        ("", "exactly one FROM"),
        ("FROM debian:bookworm\n", "not on this machine"),
        ("FROM ../../etc\n", "not on this machine"),
        ("FROM gymsmith/host\nCOPY ../secret /x\n", "leaves the build context"),
        ("FROM gymsmith/host\nCOPY a.tar /x\nADD a.tar /y\n", "archive"),
        ("FROM gymsmith/host\nCOPY --chmod=u+s a.tar /x\n", "octal"),
        ("FROM gymsmith/host\nUSER 70000\n", "65536"),
    ],
)
def test_refused_before_anything_runs(shop: Shop, text: str, word: str) -> None:
    with pytest.raises(PolicyRefused, match=word):
        shop.build(text, {"a.tar": b"x"})


def test_context_members_cannot_leave_the_context(shop: Shop) -> None:
    for name in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(PolicyRefused, match="leaves the context"):
            shop.build("FROM gymsmith/host\nCOPY . /x/\n", {name: b"x"})


def test_failures_of_the_environment_say_which_line_and_what_it_printed(shop: Shop) -> None:
    with pytest.raises(BuildError, match=r"line 3: RUN .*exit code 7; last line: so sad") as caught:
        shop.build("FROM gymsmith/host\nENV A=1\nRUN echo many; echo so sad; exit 7\n")
    assert caught.value.log == "many\nso sad\n"
    with pytest.raises(BuildError, match="longer than"):
        shop.build("FROM gymsmith/host\nRUN sleep 30\n", timeout_s=0.3)
    with pytest.raises(BuildError, match="not in the build context, which has a"):
        shop.build("FROM gymsmith/host\nCOPY b /b\n", {"a": b""})
    with pytest.raises(BuildError, match="ends with '/'"):
        shop.build("FROM gymsmith/host\nCOPY a b /both\n", {"a": b"", "b": b""})
    with pytest.raises(BuildError, match="read-only under gymsmith/host"):
        shop.build("FROM gymsmith/host\nCOPY a /bin/a\n", {"a": b""})
    with pytest.raises(BuildError, match="has no 'nobody-here'"):
        shop.build("FROM gymsmith/host\nUSER nobody-here\n")
    assert not list((shop.images.root / "tmp").iterdir()), "nothing half-built stays"


def test_run_has_no_network_and_no_way_to_the_host(shop: Shop) -> None:
    text = "FROM gymsmith/host\nRUN python3 -c 'import socket; socket.create_connection((\"1.1.1.1\", 53), 2)'\n"
    with pytest.raises(BuildError, match="unreachable"):
        shop.build(text)
    marker = shop.images.root / "outside"
    with pytest.raises(BuildError):
        shop.build(f"FROM gymsmith/host\nRUN touch {marker}\n")
    assert not marker.exists()


def test_a_step_cannot_fill_the_disk(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files below the limit of one file; the control is a step that stays within."""
    monkeypatch.setattr(image_build, "BUILD_DISK_BYTES", 48 * MIB)
    monkeypatch.setattr(image_build, "WATCH_S", 0.05)
    shop.build("FROM gymsmith/host\nRUN head -c 20000000 /dev/zero > /opt/a; sleep 0.3; rm /opt/a\n")
    with pytest.raises(BuildError, match="may write 48 MiB"):
        shop.build("FROM gymsmith/host\nRUN for i in 1 2 3 4; do head -c 30000000 /dev/zero > /opt/$i; done; sleep 20\n")
    with pytest.raises(BuildError, match=r"exit code|signal"):
        shop.build("FROM gymsmith/host\nRUN fallocate -l 200M /opt/big\n")
    assert not list((shop.images.root / "tmp").iterdir())


def test_left_overs_of_killed_builders_are_swept(shop: Shop) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    dead, live = shop.images.root / "tmp" / f"{pid}-x", shop.images.root / "tmp" / f"{os.getpid()}-x"
    dead.mkdir()
    live.mkdir()
    asyncio.run(ImageStore(shop.images.root).build("FROM gymsmith/host\nCOPY f /opt/f\n", {"f": os.urandom(8)}))
    assert live.is_dir() and not dead.exists()
    live.rmdir()


def test_a_step_is_executed_once(shop: Shop) -> None:
    text = "FROM gymsmith/host\nRUN date +%s%N > /opt/when; cat /proc/sys/kernel/random/uuid >> /opt/when\nCOPY f /opt/f\n"
    first = shop.build(text, {"f": b"1"})
    assert shop.build(text, {"f": b"1"}).id == first.id
    other = shop.build(text, {"f": b"2"})
    assert other.id != first.id and other.layers[1:] == first.layers[1:]
    assert shop.say(first, "cat /opt/when") == shop.say(other, "cat /opt/when")
    changed = shop.build(text.replace("RUN", "ENV A=1\nRUN"), {"f": b"1"})
    assert shop.say(changed, "cat /opt/when") != shop.say(first, "cat /opt/when")


def test_single_flight_and_a_second_process_find_the_same_layer(shop: Shop) -> None:
    text = "FROM gymsmith/host\nRUN cat /proc/sys/kernel/random/uuid > /opt/once; sleep 0.3\n"
    other = ImageStore(shop.images.root, shop.provider)

    async def race() -> list[Image]:
        return await asyncio.gather(shop.images.build(text, {}), shop.images.build(text, {}), other.build(text, {}))

    ids = {image.id for image in shop.run(race())}
    assert len(ids) == 1
    assert not list((shop.images.root / "tmp").iterdir())
    fresh = ImageStore(shop.images.root)
    assert fresh.get(ids.pop()).layers[0].is_dir(), "an id is found by whoever shares the folder"


def test_missing_and_damaged_images_are_typed(shop: Shop, tmp_path: Path) -> None:
    image = shop.build("FROM gymsmith/host\nCOPY f /opt/f\n", {"f": b"damaged"})
    with pytest.raises(ImageMissing):
        shop.images.get("0" * 32)
    with pytest.raises(ImageMissing):
        shop.images.get("../../etc/passwd")
    record = shop.images.root / "records" / f"{image.id}.json"
    whole = record.read_text()
    record.write_text(whole[:20])
    with pytest.raises(ImageMissing, match="cannot be read"):
        ImageStore(shop.images.root).get(image.id)
    record.write_text(json.dumps({**json.loads(whole), "layers": ["f" * 32]}))
    with pytest.raises(ImageMissing, match="is gone"):
        ImageStore(shop.images.root).get(image.id)
    record.write_text(whole)


def test_from_another_image_keeps_its_settings(shop: Shop) -> None:
    shop.needs_users()
    parent = shop.build("FROM gymsmith/host\nENV A=1\nWORKDIR /opt/app\nUSER tester\nRUN id -un > /tmp/who\n")
    image = shop.build(f"FROM {parent.id}\nRUN id -un > who\nCOPY f .\n", {"f": b"f"})
    assert (image.env["A"], image.workdir, image.user) == ("1", "/opt/app", "tester")
    assert shop.say(image, "cat /tmp/who who f") == "tester\nroot\nf"


def test_wheelhouse_is_seen_by_the_steps_that_name_it_and_stays_out_of_the_image(shop: Shop, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "VALUE = 41\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(
            "tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\n")
    text = (
        "FROM gymsmith/host\nRUN ls / > /opt/before\nRUN python3 -m zipfile -e /wheelhouse/tiny-1.0-py3-none-any.whl /opt/site\n"
    )
    image = shop.build(text, wheelhouse=tmp_path)
    assert shop.say(image, "cat /opt/before; ls /").count("wheelhouse") == 0
    assert shop.say(image, "PYTHONPATH=/opt/site python3 -c 'import tiny; print(tiny.VALUE + 1)'") == "42\n"
    assert not (image.layers[0] / "wheelhouse").exists()


def test_copy_follows_links_inside_the_image_only(shop: Shop, tmp_path: Path) -> None:
    """A link that a RUN step made to a path of the host leads, inside the image, to that path of the image."""
    victim = tmp_path / "victim"
    victim.mkdir()
    text = f"FROM gymsmith/host\nRUN ln -s {victim} /opt/out && ln -s /srv /opt/in && ln -s loop /opt/loop\n"
    text += "COPY f /opt/out/f\nCOPY f /opt/in/f\n"
    image = shop.build(text, {"f": b"pwned"})
    assert not list(victim.iterdir())
    assert shop.say(image, f"readlink /opt/out /opt/in; cat {victim}/f; echo; cat /srv/f /opt/in/f").split() == [
        str(victim), "/srv", "pwned", "pwnedpwned",
    ]  # fmt: skip
    with pytest.raises(BuildError, match="symbolic links"):
        shop.build(text + "COPY f /opt/loop/f\n", {"f": b"x"})


def test_deletions_of_a_step_hold_for_later_steps(shop: Shop) -> None:
    text = "FROM gymsmith/host\nCOPY d /opt/d/\nRUN rm -r /opt/d && mkdir /opt/d && touch /opt/d/new\nCOPY d/b /opt/d/b\n"
    image = shop.build(text, {"d/a": b"a", "d/b": b"b"})
    assert shop.say(image, "ls /opt/d").split() == ["b", "new"]
    assert [name for name in ("a", "b", "new") if lookup(image.layers, f"/opt/d/{name}")[1] is not None] == ["b", "new"]


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user's layers belong to that user")
def test_layers_are_stored_with_shifted_owners(shop: Shop) -> None:
    image = shop.build(
        "FROM gymsmith/host\nRUN touch /opt/r; chown tester /opt/r\nCOPY --chown=agent:agent f /work/new/f\n", {"f": b"x"}
    )
    top, run = image.layers[0], image.layers[1]
    owners = {path: (top / path).stat().st_uid - UID_SHIFT for path in ("", "work", "work/new", "work/new/f")}
    assert owners == {"": 0, "work": 1000, "work/new": 1000, "work/new/f": 1000}
    assert (run / "opt/r").stat().st_uid == UID_SHIFT + 1001


def test_directories_of_lower_layers_keep_owner_and_mode(shop: Shop, tmp_path: Path) -> None:
    base = shop.images.base()
    (tmp_path / "layer").mkdir()
    writer = LayerWriter(tmp_path / "layer", base.layers)
    writer.file("/tmp/f", b"x")
    writer.file("/root/deep/f", b"x")
    modes = {name: (tmp_path / "layer" / name).stat().st_mode & 0o7777 for name in ("tmp", "root", "root/deep")}
    assert modes == {"tmp": 0o1777, "root": 0o700, "root/deep": 0o755}
    with pytest.raises(BuildError, match="a directory is needed"):
        writer.file("/etc/passwd/x", b"x")


def test_parse_keeps_lines_and_flags() -> None:
    steps = dockerfile.parse("FROM a\n\nrun b \\\n  c\nCOPY --chown=x --chmod=7 d e\n")
    assert [(s.name, s.line, dict(s.flags)) for s in steps] == [
        ("FROM", 1, {}), ("RUN", 3, {}), ("COPY", 5, {"chown": "x", "chmod": "7"}),
    ]  # fmt: skip


@pytest.mark.docker
def test_an_engine_builds_the_same_dockerfiles(tmp_path: Path) -> None:
    """The engine's images offer what ours do: users, folders, owners, modes, refusals, the log of a failing step."""
    docker = pytest.importorskip("docker")
    from sandboxes.image_engine import build_with_engine

    base = "gymsmith/debian:bookworm"
    try:
        engine = docker.from_env()
        engine.images.get(base)
    except docker.errors.DockerException as error:
        assert os.environ.get("GYMSMITH_REQUIRE_ALL") != "1", f"GYMSMITH_REQUIRE_ALL=1, but no engine with {base}: {error}"
        pytest.skip(f"no container engine with {base}: {error}")
    store = ImageStore(tmp_path)

    def build(text: str, context: Mapping[str, bytes], wheelhouse: Path | None = None) -> Image:
        steps = dockerfile.parse(text)
        work = build_with_engine(
            store, engine.api, base, steps, context, wheelhouse=wheelhouse, executable=frozenset(), timeout_s=60.0
        )
        return store.record(asyncio.run(work))

    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "x.whl").write_bytes(b"wheel")
    text = (
        "FROM gymsmith/host\nENV A=1\nRUN cp /wheelhouse/x.whl /opt/ && id -un > /opt/who\n"
        "COPY --chown=agent:agent --chmod=750 work/ /work/\nCOPY a.sh /opt/\n"
    )
    image = build(text, {"work/f": b"1", "a.sh": b"#!/bin/sh\necho ran\n"}, tmp_path / "wheels")
    assert (image.user, image.workdir, image.env["A"], image.layers) == ("agent", "/work", "1", ())
    assert ImageStore(tmp_path).get(image.id) == image
    look = (
        "pwd; cat /opt/who /opt/x.whl; echo; /opt/a.sh; stat -c '%a %U' /work/f /work /logs/verifier; ls / | grep -c wheelhouse"
    )
    said = engine.containers.run(image.engine_ref, ["sh", "-c", f"{look}; true"], network_mode="none", remove=True).decode()
    assert said.split("\n")[:-1] == ["/work", "root", "wheel", "ran", "750 agent", "755 agent", "755 tester", "0"]
    child = build(f"FROM {image.id}\nCOPY b /opt/b\n", {"b": b"2"})
    assert child.engine_ref != image.engine_ref
    with pytest.raises(BuildError, match="non-zero code: 3; last line: sad"):
        build("FROM gymsmith/host\nRUN echo sad; exit 3\n", {})
    with pytest.raises(BuildError):
        build("FROM gymsmith/host\nRUN python3 -c 'import socket; socket.create_connection((\"1.1.1.1\", 53), 2)'\n", {})
    with pytest.raises(PolicyRefused, match="not an image built by this engine"):
        build("FROM debian:bookworm\n", {})
