"""Instructions that only change an image's configuration, in the words of the OCI image specification.

Nothing of it acts in a sandbox: it is kept so that an image means the same to whoever takes it elsewhere.
"""

from __future__ import annotations

import platform
import re
from typing import Any

from sandboxes.image import dockerfile
from sandboxes.image import dockerfile_words as words_of
from sandboxes.image.build_state import State, merged
from sandboxes.image.dockerfile import Step

KEPT = ("User", "Entrypoint", "Cmd", "Healthcheck", "Labels", "ExposedPorts", "Volumes", "Shell", "StopSignal", "OnBuild")
"""What is kept of a configuration; Env and WorkingDir have fields of their own."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?\Z")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?\Z")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def platform_arguments() -> dict[str, str]:
    """ARGs that name the platform of the build, here always this machine's."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    row = {"PLATFORM": f"linux/{machine}", "OS": "linux", "ARCH": machine}
    return {f"{side}{name}": value for side in ("TARGET", "BUILD") for name, value in row.items()}


def apply(step: Step, state: State) -> None:
    """Change the configuration of `state`. Raises: PolicyRefused: an argument that the instruction does not have."""
    config = state.config
    match step.name:
        case "SHELL":
            config["Shell"] = dockerfile.command(step, ())
        case "CMD":
            config["Cmd"] = dockerfile.command(step, state.shell)
            state.has_cmd = True
        case "ENTRYPOINT":
            config["Entrypoint"] = dockerfile.command(step, state.shell)
            if not state.has_cmd:  # one of the parent was meant for the parent's entry point
                config.pop("Cmd", None)
        case "LABEL":
            config["Labels"] = merged(config, "Labels", dict(words_of.pairs(step.value, state.variables, step.line)))
        case "EXPOSE":
            ports: dict[str, Any] = {port: {} for word in _words(step, state) for port in _ports(step, word)}
            config["ExposedPorts"] = merged(config, "ExposedPorts", ports)
        case "VOLUME":
            listed = words_of.json_form(step.value)
            paths = [words_of.expand(w, state.variables, step.line) for w in listed or []] if listed else _words(step, state)
            config["Volumes"] = merged(config, "Volumes", {path: {} for path in paths})
        case "STOPSIGNAL":
            config["StopSignal"] = words_of.expand(step.value, state.variables, step.line)
        case "HEALTHCHECK":
            config["Healthcheck"] = _health(step, state)
        case "MAINTAINER":
            pass  # an author's name, deprecated for a LABEL; it says nothing about the image


def _words(step: Step, state: State) -> list[str]:
    return [words_of.expand(word, state.variables, step.line) for word in words_of.split(step.value)]


def _ports(step: Step, word: str) -> list[str]:
    found = _PORT.match(word)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if found is None or not 0 < first <= last < 65_536:
        raise step.refused(f"needs PORT, PORT-PORT or PORT/tcp, got {word[:40]!r}")
    return [f"{port}/{found[3] or 'tcp'}" for port in range(first, last + 1)]


def _health(step: Step, state: State) -> dict[str, Any]:
    kind, _, rest = step.value.partition(" ")
    if kind.upper() == "NONE":
        return {"Test": ["NONE"]}
    listed = words_of.json_form(rest.strip())
    if not rest.strip():
        raise step.refused("CMD needs a command, got none")
    made: dict[str, Any] = {"Test": ["CMD", *listed] if listed else ["CMD-SHELL", rest.strip()]}
    names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval"}
    for flag, value in step.flags.items():
        if flag == "retries":
            if not value.isdecimal():
                raise step.refused(f"--retries takes a number, got {value[:40]!r}")
            made["Retries"] = int(value)
        else:
            made[names[flag]] = _nanoseconds(step, flag, value)
    return made


def _nanoseconds(step: Step, flag: str, value: str) -> int:
    found = _DURATION.match(value)
    if found is None or not any(found.groups()):
        raise step.refused(f"--{flag} takes a time such as 30s or 1m30s, got {value[:40]!r}")
    return round(sum(float(n) * unit for n, unit in zip(found.groups(), (3600e9, 60e9, 1e9, 1e6), strict=True) if n))
