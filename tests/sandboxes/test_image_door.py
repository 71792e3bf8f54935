"""`gymsmith image ...` from end to end: a job builds and imports, a person lists, forgets and frees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, NotFound
from gymsmith.schema import Environment, Source, Status, TaskSpec
from gymsmith.store import Store
from sandboxes.image import door as image_door
from sandboxes.image.layer import AS_ROOT
from tests.gymsmith import spoken


def say(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> tuple[int, str, str]:
    """`gymsmith image WORDS` on a state folder of the test's own."""
    return spoken.say(capsys, "image", *words, "--home", str(home))


def test_an_image_is_built_listed_used_and_removed(namespaces: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, home = tmp_path / "context", tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM gymsmith/host\nARG V=1\nCOPY . /opt/all/\nRUN echo $V > /opt/v\n")
    (folder / "sub/f").write_text("f")
    (folder / ".dockerignore").write_text("secret\n")
    (folder / "secret").write_text("s")
    code, out, err = say(capsys, home, "build", str(folder), "-t", "mine:1", "--build-arg", "V=2", "--json")
    assert code == 0, err
    built = json.loads(out)
    assert (built["name"], built["steps"], built["executed"]) == ("mine:1", 3, 2)
    code, out, _ = say(capsys, home, "ls", "--json")
    row = next(row for row in json.loads(out) if row["names"])
    assert (row["id"], row["names"], row["environments"]) == (built["image_id"], ["mine:1"], 0)
    settings = Settings.load(home=home)
    spec = TaskSpec(name="gymsmith/x", description="d", kind="shell")
    with Store.open(settings) as store:
        store.put_environment(
            Environment(id="e1", status=Status.VERIFIED, source=Source(kind="parametric", uri="shell:x", digest="d"), spec=spec,
                        path="tasks/e1/e1", image_id=row["id"], instruction="i")
        )  # fmt: skip
    assert say(capsys, home, "rm", "mine:1")[0] == 2, "an environment needs it"
    code, out, _ = say(capsys, home, "gc", "--idle-hours", "0", "--json")
    assert (code, json.loads(out)["layers"]) == (0, 0)
    code, out, _ = say(capsys, home, "rm", "mine:1", "--force", "--json")
    assert json.loads(out) == {"removed": [row["id"]]}
    code, out, _ = say(capsys, home, "gc", "--idle-hours", "0", "--json")
    assert json.loads(out)["layers"] == 2
    code, out, err = say(capsys, home, "rm", "mine:1")
    assert code != 0 and "image ls" in err and err.count("\n") == 1


class Ctx:
    """What a door gets besides its payload, without a queue."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings.load(home=home)
        self.said: list[dict[str, Any]] = []

    def progress(self, **fields: Any) -> None:
        self.said.append(fields)

    def check(self) -> None:
        pass


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user's layers belong to that user")
def test_the_door_imports_and_refuses(namespaces: None, tmp_path: Path) -> None:
    from sandboxes.worker import process_worker
    from tests.sandboxes.image_shop import small_tar

    ctx: Any = Ctx(tmp_path / "home")
    (tmp_path / "small").mkdir()
    tar = small_tar(tmp_path / "small")
    try:
        made = image_door.image({"verb": "import", "name": "small", "source": f"rootfs:{tar}"}, ctx)
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Other").write_text("FROM small\nRUN echo hi > /hi\n")
        order = {"verb": "build", "folder": str(tmp_path / "c"), "dockerfile": "Other"}
        built = image_door.image(order, ctx)
        assert (built["layers"], built["executed"], made["layers"]) == (2, 1, 1)
        assert ctx.said == [{"done": 1, "total": 1, "unit": "steps", "note": "RUN echo hi > /hi"}]
        for payload, error, words in (
            ({"verb": "fly"}, ConfigError, "ImageOrder"),
            ({**order, "dockerfile": "../x"}, ConfigError, "must lie in the folder"),
            ({**order, "dockerfile": "None"}, NotFound, "there must be a Dockerfile"),
            ({**order, "folder": "/nowhere"}, NotFound, "there must be a Dockerfile"),
            ({"verb": "import", "source": "oci:x"}, ConfigError, "needs a name"),
        ):
            with pytest.raises(error, match=words):
                image_door.image(payload, ctx)
    finally:
        process_worker(ctx.settings).close()
