"""A container engine builds the same Dockerfiles for the Docker provider: users, folders, owners, modes, refusals, logs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import BuildError, PolicyRefused
from sandboxes.base import Image
from sandboxes.bench import images as bench_images
from sandboxes.image import dockerfile
from sandboxes.image.build_context import BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.images import ImageStore
from tests.sandboxes.conftest import lacking

BASE = "gymsmith/debian:bookworm"


class Yard:
    """An engine and a store of its images."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine = engine
        self.store = ImageStore(folder)
        self.made: list[str] = []

    def build(self, text: str, context: Mapping[str, bytes], wheelhouse: Path | None = None, **policy: Any) -> Image:
        from sandboxes.image.engine import build_with_engine

        work = build_with_engine(
            self.store, self.engine.api, BASE, dockerfile.parse(text), BuildContext.of(context), BuildPolicy(**policy),
            wheelhouse=wheelhouse, timeout_s=60.0,
        )  # fmt: skip
        image = self.store.record(asyncio.run(work))
        if image.engine_ref not in self.made:
            self.made.append(str(image.engine_ref))
        return image

    def say(self, image: Image, command: str) -> str:
        run = self.engine.containers.run
        return str(run(image.engine_ref, ["-c", command], entrypoint="/bin/sh", network_mode="none", remove=True).decode())


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    docker = pytest.importorskip("docker")
    try:
        engine = docker.from_env(timeout=120)
        engine.images.get(BASE)
    except docker.errors.DockerException as error:
        lacking(f"no container engine with {BASE}: {error}")
    made = Yard(engine, tmp_path_factory.mktemp("yard"))
    yield made
    for ref in reversed(made.made):
        engine.images.remove(ref)
    engine.close()


@pytest.mark.docker
def test_an_engine_builds_the_same_dockerfiles(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"wheel")
    text = (
        "FROM gymsmith/host\nENV A=1\nRUN cp /wheelhouse/x.whl /opt/ && id -un > /opt/who\n"
        "USER tester\nRUN cat /wheelhouse/x.whl > /tmp/read && id -un > /tmp/reader\nRUN id -un >> /tmp/reader\nUSER agent\n"
        "COPY --chown=agent:agent --chmod=750 work/ /work/\nCOPY a.sh /opt/\n"
    )
    image = yard.build(text, {"work/f": b"1", "a.sh": b"#!/bin/sh\necho ran\n"}, tmp_path)
    assert (image.user, image.workdir, image.env["A"], image.layers) == ("agent", "/work", "1", ())
    assert ImageStore(yard.store.root).get(image.id) == image
    look = "pwd; cat /opt/who /opt/x.whl; echo; cat /tmp/reader; /opt/a.sh; stat -c '%a %U' /work/f /work /logs/verifier"
    said = yard.say(image, f"{look}; ls / | grep -c wheelhouse; true")
    assert said.split("\n")[:-1] == [
        "/work",
        "root",
        "wheel",
        "tester",
        "tester",
        "ran",
        "750 agent",
        "755 agent",
        "755 tester",
        "0",
    ]
    child = yard.build(f"FROM {image.id}\nCOPY b /opt/b\n", {"b": b"2"})
    assert child.engine_ref != image.engine_ref and child.user == "agent"


@pytest.mark.docker
def test_stages_documents_arguments_and_users_of_the_image(yard: Yard) -> None:
    text = """ARG WHO=nobody
FROM gymsmith/host AS one
RUN <<EOF
mkdir /made
echo "$HOME" > "/made/a file"
EOF
COPY <<'text' /made/text
kept $NAME
text
FROM gymsmith/host
ARG WHO
ARG TARGETOS
COPY --from=one /made /opt/made
RUN useradd -m worker && echo "$WHO $TARGETOS" > /opt/arg
USER worker
RUN id -un > /tmp/user
CMD ["x"]
"""
    image = yard.build(text, {}, arguments={"WHO": "some one"})
    assert image.config == {"User": "worker", "Cmd": ["x"]} and image.user.startswith("100")
    assert yard.say(image, "cat '/opt/made/a file' /opt/made/text /opt/arg /tmp/user").split("\n")[:-1] == [
        "/root", "kept $NAME", "some one linux", "worker",
    ]  # fmt: skip
    local = yard.build(f"FROM {BASE}\nENV X=1\n", {})
    assert (local.user, local.env["X"]) == ("root", "1"), "an image that the engine has is a base, as it is"


@pytest.mark.docker
def test_failures_and_refusals_of_an_engine(yard: Yard) -> None:
    with pytest.raises(BuildError, match="non-zero code: 3; last line: sad"):
        yard.build("FROM gymsmith/host\nRUN echo sad; exit 3\n", {})
    with pytest.raises(BuildError):
        yard.build("FROM gymsmith/host\nRUN python3 -c 'import socket; socket.create_connection((\"1.1.1.1\", 53), 2)'\n", {})
    with pytest.raises(PolicyRefused, match="not an image of this engine and nothing is downloaded"):
        yard.build("FROM no/such:image\n", {})
    with pytest.raises(PolicyRefused, match="mirrors"):
        yard.build("FROM gymsmith/host\n", {}, network="mirrors")


@pytest.mark.docker
def test_an_image_of_the_engine_becomes_ours(yard: Yard, tmp_path: Path) -> None:
    """What `docker save` gives of an image that the engine built, layers with deletions among them."""
    image = yard.build("FROM scratch\nCOPY d /d/\nWORKDIR /d\n", {"d/a": b"a", "d/b": b"b"})
    store = ImageStore(tmp_path)
    ours = asyncio.run(store.adopt("ours:1", f"engine:{image.engine_ref}"))
    from sandboxes.image.layer import lookup

    entry = lookup(ours.layers, "/d/b")[1]
    assert entry is not None and Path(entry.places[0]).read_bytes() == b"b" and ours.workdir == "/d"


def test_the_bench_says_when_it_has_no_peer(namespaces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    rows = asyncio.run(bench_images._measure(Settings.load(home=tmp_path / "home"), 0))
    assert len(rows) == 4 and all(row.ours > 0 and row.peer is None for row in rows)
    assert all(row.peer_name.startswith("none: ") for row in rows)
