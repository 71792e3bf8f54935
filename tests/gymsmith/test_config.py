"""Settings: precedence, refusals that name the next move, and children that load the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gymsmith.config import Settings
from gymsmith.errors import ConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("GYMSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_arguments_beat_environment_beats_file_beats_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().port == 8642
    Path("gymsmith.toml").write_text('port = 1001\nprovider = "ns"\n')
    assert (Settings.load().port, Settings.load().provider) == (1001, "ns")
    monkeypatch.setenv("GYMSMITH_PORT", "1002")
    assert Settings.load().port == 1002
    assert Settings.load(port=1003, host=None).port == 1003


def test_the_default_state_folder_lies_in_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    assert Settings.load().home == tmp_path / "someone/.local/state/gymsmith"


def test_a_misspelt_setting_is_refused_with_the_right_name() -> None:
    Path("gymsmith.toml").write_text("max_sandbox = 3\n")
    with pytest.raises(ConfigError, match="did you mean 'max_sandboxes'"):
        Settings.load()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": 99999}, "port.*99999"),
        ({"lease_s": 5.0, "heartbeat_s": 4.0}, "twice heartbeat_s, got lease_s=5.0"),
        ({"host": "0.0.0.0"}, "token is needed"),
        ({"provider": "podman"}, "provider.*'podman'"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_value(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Settings.load(**values)


def test_a_broken_file_is_named() -> None:
    Path("gymsmith.toml").write_text("port = = 1")
    with pytest.raises(ConfigError, match=r"gymsmith\.toml is not valid TOML"):
        Settings.load()


def test_a_child_loads_the_same_settings(tmp_path: Path) -> None:
    mine = Settings.load(home=tmp_path / "state folder", lease_s=7.5, heartbeat_s=1.25, token="secret", host="0.0.0.0")
    code = "from gymsmith.config import Settings; print(Settings.load().model_dump_json())"
    environment = {**os.environ, **mine.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert Settings.model_validate_json(out) == mine


def test_the_token_is_not_printed() -> None:
    assert "hunter2" not in repr(Settings.load(token="hunter2"))
