"""Settings of one installation: where the state lives, who may connect, how long a lease is.

The only place that reads environment variables. Precedence: arguments, then `GYMSMITH_<FIELD>`, then `gymsmith.toml` in the
working directory, then the defaults below. Recipes of runs are not settings: they are stored with the run. Importing this creates
nothing; each folder is made by whoever first writes into it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gymsmith.errors import ConfigError

FILE = "gymsmith.toml"
PREFIX = "GYMSMITH_"


class Settings(BaseModel):
    """Frozen; two processes with the same settings work on the same state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default=Path("~/.local/state/gymsmith"), validate_default=True)
    """State folder: database, environments, images, trajectories, runs, logs. Local disk, never NFS with SQLite."""
    database_url: str = ""
    """SQLAlchemy URL; empty means sqlite:///HOME/gymsmith.db. PostgreSQL: postgresql+psycopg://user@host/name."""
    broker_url: str = ""
    """Celery broker; empty means the embedded broker, plain files under HOME/broker."""
    host: str = "127.0.0.1"
    """Address that the API listens on; anything but loopback needs a token."""
    port: int = Field(default=8642, ge=0, le=65535)
    """Port of the API; 0 lets the kernel choose."""
    token: str = Field(default="", repr=False)
    """Bearer token of the API; empty means none is asked for, which only loopback may do."""
    provider: Literal["auto", "ns", "docker", "remote"] = "auto"
    """Sandbox provider; auto takes namespaces where the kernel allows them, else Docker. remote: the hosts named next."""
    sandbox_hosts: str = ""
    """Where `gymsmith sandbox-host serve` runs, as NAME:PORT separated by commas."""
    sandbox_certificates: str = ""
    """Folder with ca.pem, client.pem and client.key (host.pem and host.key on a host); empty means HOME/certificates."""
    sandbox_token: str = Field(default="", repr=False)
    """What workers and sandbox hosts have in common, beside their certificates."""
    max_sandboxes: int = Field(default=128, ge=1)
    """Sandboxes alive at once in one worker process."""
    warm_sandboxes: int = Field(default=-1, ge=-1)
    """Sandboxes that a worker keeps ready at most; -1: 32 with Docker, none with namespaces, which start in milliseconds."""
    overcommit: float = Field(default=16.0, ge=1.0)
    """Sum of the limits of all sandboxes of a worker over what the machine has; limits are worst cases."""
    lease_s: float = Field(default=30.0, gt=0)
    """A job whose worker is silent for so long goes to another worker."""
    heartbeat_s: float = Field(default=10.0, gt=0)
    """How often a worker extends the leases of its jobs."""
    proxy_internal: str = ""
    """Networks of this installation's own, such as 10.1.0.0/16, that sandboxes with an allow-list may reach by listed names."""
    docker_base_image: str = "debian:12-slim"
    """What `FROM gymsmith/host` becomes under the Docker provider."""
    github_token: str = Field(default="", repr=False)
    """Token of GitHub's API, for sources such as github:OWNER/REPO#NUMBER; GITHUB_TOKEN is heard too."""
    github_api: str = "https://api.github.com"
    """Root of GitHub's REST API; another one for GitHub Enterprise."""
    chromium: str = ""
    """Chromium or Chrome program that renders pages; empty means look for one."""
    llm_url: str = ""
    """OpenAI-compatible endpoint that writes environments, such as https://HOST/v1; empty means none, and none is needed."""
    llm_key: str = Field(default="", repr=False)
    """What the endpoint wants as bearer token; leaves this process only in the header of a request to it."""
    llm_model: str = ""
    """The model to ask for; environments that it wrote carry it as their provenance."""
    llm_price_in: float = Field(default=0.0, ge=0)
    """US dollars per million prompt tokens; 0: what the endpoint itself says, else nothing is counted."""
    llm_price_out: float = Field(default=0.0, ge=0)
    """US dollars per million completion tokens."""
    llm_budget_tokens: int = Field(default=5_000_000, ge=0)
    """Tokens, in and out, that one job may buy before it stops; 0: any number."""
    llm_budget_usd: float = Field(default=0.0, ge=0)
    """Dollars that one job may spend before it stops; 0: any sum. Needs the prices."""
    llm_timeout_s: float = Field(default=300.0, gt=0)
    """For one whole answer of the endpoint."""

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return Path(os.path.abspath(value.expanduser()))

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> Settings:
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"lease_s must be at least twice heartbeat_s, got lease_s={self.lease_s} and heartbeat_s={self.heartbeat_s}; "
                f"raise lease_s to {2 * self.heartbeat_s:g} or lower heartbeat_s"
            )
        if self.host not in ("127.0.0.1", "localhost", "::1") and not self.token:
            raise ValueError(
                f"host {self.host} can be reached by others, so a token is needed; set {PREFIX}TOKEN, or host to 127.0.0.1"
            )
        return self

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Resolve the settings; `overrides` win, and one that is None counts as not given.

        Raises:
            ConfigError: an unknown key, a value out of range, or a file that is not TOML.
        """
        values = _from_file(Path(FILE)) | _from_environment() | {k: v for k, v in overrides.items() if v is not None}
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(cls.model_fields)}"
                raise ConfigError(f"unknown setting {key!r}; {hint}")
        try:
            return cls(**values)
        except ValidationError as e:
            problems = "; ".join(
                # What is wrong with several settings together says their values itself; their whole would show the token.
                f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {_short(p['input'])}"
                if p["loc"]
                else p["msg"].removeprefix("Value error, ")
                for p in e.errors()
            )
            raise ConfigError(f"{problems}. Set it by an option, by {PREFIX}<NAME> or in {FILE}") from e

    @property
    def resolved_database_url(self) -> str:
        """The URL that is really opened."""
        return self.database_url or f"sqlite:///{self.home / 'gymsmith.db'}"

    @property
    def embedded_broker(self) -> bool:
        """Messages travel as files under `broker_dir`."""
        return not self.broker_url

    @property
    def broker_dir(self) -> Path:
        """Messages of the embedded broker."""
        return self.home / "broker"

    @property
    def tasks_dir(self) -> Path:
        """Environments in Harbor's format, at <id[:2]>/<id>."""
        return self.home / "tasks"

    @property
    def images_dir(self) -> Path:
        """Layers and images."""
        return self.home / "images"

    @property
    def sandboxes_dir(self) -> Path:
        """Live sandboxes; empty when nothing runs."""
        return self.home / "sandboxes"

    @property
    def certificates_dir(self) -> Path:
        """Certificates of sandbox hosts and of their clients."""
        return Path(self.sandbox_certificates).expanduser() if self.sandbox_certificates else self.home / "certificates"

    @property
    def trajectories_dir(self) -> Path:
        """Append-only chunk files of trajectory bodies."""
        return self.home / "trajectories"

    @property
    def runs_dir(self) -> Path:
        """One folder per run: checkpoints, exports."""
        return self.home / "runs"

    @property
    def renders_dir(self) -> Path:
        """Screenshots and their reports by content hash."""
        return self.home / "renders"

    @property
    def wheelhouse_dir(self) -> Path:
        """Downloaded packages by content hash."""
        return self.home / "wheelhouse"

    @property
    def tokenizers_dir(self) -> Path:
        """Tokenizers, named <sha256>.json."""
        return self.home / "tokenizers"

    @property
    def logs_dir(self) -> Path:
        """Output of the supervised processes."""
        return self.home / "logs"

    def environment(self) -> dict[str, str]:
        """`GYMSMITH_*` variables that make a child process load exactly these settings."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in type(self).model_fields}


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, resolved once."""
    return Settings.load()


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}; fix or remove it") from e
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}; fix its permissions or remove it") from e


def _from_environment() -> dict[str, str]:
    # Names that are no field are left alone: tests and tools use the prefix for switches of their own.
    names = {PREFIX + name.upper(): name for name in Settings.model_fields}
    found = {field: os.environ[name] for name, field in names.items() if name in os.environ}
    # The name that GitHub's own tools and runners use.
    return {"github_token": os.environ["GITHUB_TOKEN"], **found} if os.environ.get("GITHUB_TOKEN") else found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
