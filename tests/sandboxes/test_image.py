"""Dockerfiles become layers: what an instruction does, and what can never be reached."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path

import pytest

from gymsmith.errors import BuildError, PolicyRefused
from sandboxes.base import MIB, UID_SHIFT, SandboxSpec
from sandboxes.image import build_box
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.layer import AS_ROOT, LayerWriter, lookup
from tests.sandboxes.image_shop import Shop


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
CMD ["kept"]
LABEL a=b
"""
    context = {"tool.sh": b"#!/bin/sh\necho tool\n", "a.txt": b"A", "dir/x.md": b"X", "dir/deep/y.md": b"Y", "b c.txt": b"B"}
    image = shop.build(text, context)
    assert (image.workdir, image.user) == ("/srv/app/sub", "agent")
    assert image.env["NAME"] == "world" and image.env["OLD"] == "style value"
    assert image.config == {"User": "agent", "Cmd": ["kept"], "Labels": {"a": "b"}}
    told = shop.say(
        image,
        "cat said /tmp/by; cat 'b c.txt'; echo; cd /data; find . -type f | sort; ls /md; "
        "stat -c '%a %u %g' /opt/bin/tool; /opt/bin/tool",
    )
    assert told.split("\n")[:-1] == [
        "hello there world", "/srv/app/sub", "root", "agent", "B",
        "./a.txt", "./deep/y.md", "./x.md", "x.md", "750 1000 1001", "tool",
    ]  # fmt: skip


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


def test_the_mirrors_policy_opens_listed_names_only_and_stays_out_of_the_image(shop: Shop) -> None:
    ask = "import urllib.request as u; print(u.urlopen('http://not-a-mirror.example/').read())"
    look, ask = "FROM gymsmith/host\nRUN env | grep -c http_proxy > /opt/seen; true\n", f'RUN python3 -c "{ask}"\n'
    with pytest.raises(BuildError, match=r"line 3: RUN .*403"):
        shop.build(look + ask, policy=BuildPolicy(network="mirrors"))
    image = shop.build(look, policy=BuildPolicy(network="mirrors"))
    assert shop.say(image, "cat /opt/seen; env | grep -c http_proxy") == "1\n0\n"
    assert shop.say(shop.build(look), "cat /opt/seen") == "0\n", "without it the step is another one"


def test_the_host_policy_gives_a_build_and_nobody_else_the_network_of_the_machine(shop: Shop) -> None:
    """A server of this machine's loopback is the network. The control is the same step without the policy."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = f"FROM gymsmith/host\nRUN python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 3)'\n"
        with pytest.raises(BuildError, match="refused"):
            shop.build(text)
        image = shop.build(text + "RUN cat /etc/hosts > /opt/hosts\n", policy=BuildPolicy(network="host"))
        ask = f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 3)' 2>&1"
        assert "refused" in shop.say(image, ask), "a sandbox of the image has none of it"
        assert "localhost" in shop.say(image, "cat /opt/hosts")
        assert not (image.layers[0] / "etc").exists(), "how the host finds names is seen, not kept"
        with pytest.raises(PolicyRefused, match='only a sandbox of role "build"'):
            shop.run(shop.provider.create_on_host_network(SandboxSpec(image=image.id)))


def test_a_step_cannot_fill_the_disk(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files below the limit of one file; the control is a step that stays within."""
    monkeypatch.setattr(build_box, "BUILD_DISK_BYTES", 48 * MIB)
    monkeypatch.setattr(build_box, "WATCH_S", 0.05)
    shop.build("FROM gymsmith/host\nRUN head -c 20000000 /dev/zero > /opt/a; sleep 0.3; rm /opt/a\n")
    with pytest.raises(BuildError, match="may write 48 MiB"):
        shop.build("FROM gymsmith/host\nRUN for i in 1 2 3 4; do head -c 30000000 /dev/zero > /opt/$i; done; sleep 20\n")
    with pytest.raises(BuildError, match=r"exit code|signal"):
        shop.build("FROM gymsmith/host\nRUN fallocate -l 200M /opt/big\n")
    assert not list((shop.images.root / "tmp").iterdir())


def test_from_another_image_keeps_its_settings(shop: Shop) -> None:
    shop.needs_users()
    parent = shop.build("FROM gymsmith/host\nENV A=1\nWORKDIR /tmp/app\nRUN chmod 777 .\nUSER tester\nRUN id -un > /tmp/who\n")
    image = shop.build(f"FROM {parent.id}\nRUN id -un > who\nCOPY f .\n", {"f": b"f"})
    assert (image.env["A"], image.workdir, image.user) == ("1", "/tmp/app", "tester")
    assert shop.say(image, "cat /tmp/who who f") == "tester\ntester\nf"


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
