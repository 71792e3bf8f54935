"""A machine whose kernel refuses user namespaces: all goes through Docker, and without Docker one error says what to do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter that takes namespaces away is for x86-64")


def confined(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`gymsmith WORDS` where no user namespace can be made."""
    environment = {**os.environ, "GYMSMITH_HOME": str(home), **variables}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "platform")))
    command = [sys.executable, str(HERE / "no_namespaces.py"), sys.executable, "-m", "gymsmith.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_filter_bites(tmp_path: Path) -> None:
    ask = [sys.executable, str(HERE / "no_namespaces.py"), "unshare"]
    refused = subprocess.run([*ask, "--user", "true"], capture_output=True, text=True)
    assert refused.returncode != 0 and "Operation not permitted" in refused.stderr


@pytest.mark.docker
def test_environments_are_made_and_attempted_in_containers(
    tmp_path: Path, engine_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYMSMITH_DOCKER_BASE_IMAGE", engine_image)
    doctor = confined(tmp_path, "doctor", "--json")
    states = {check["name"]: check["state"] for check in json.loads(doctor.stdout)}
    assert (doctor.returncode, states["namespaces"], states["docker"]) == (0, "missing", "ok")
    made = confined(tmp_path, "generate", "shell:find", "--kind", "shell", "-n", "1", "--json")
    assert made.returncode == 0, made.stderr
    (env_id,) = json.loads(made.stdout)["admitted"]
    played = confined(tmp_path, "rollout", env_id, "--solution", "--json")
    assert played.returncode == 0, played.stderr
    assert [trajectory["reward"]["value"] for trajectory in json.loads(played.stdout)] == [1.0]
    assert "Traceback" not in (tmp_path / "logs" / "worker-1.log").read_text()
    assert not (tmp_path / "images" / "layers").exists() or not any((tmp_path / "images" / "layers").iterdir())


def test_without_either_one_error_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    assert confined(tmp_path, "doctor", **nowhere).returncode == 1
    done = confined(tmp_path, "generate", "shell:find", "--kind", "shell", "-n", "1", **nowhere)
    said = [line for line in done.stderr.splitlines() if line.startswith("gymsmith:")]
    assert done.returncode == 3 and len(said) == 1 and "Traceback" not in done.stderr
    for words in (
        "this machine has no place for sandboxes",
        "Namespaces:",
        "install docker.io and start dockerd",
        "gymsmith doctor",
    ):
        assert words in said[0]
