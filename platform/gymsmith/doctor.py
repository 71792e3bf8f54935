"""`gymsmith doctor`: what this machine can do, what that guarantees, and how to get the rest.

Each check looks at the real thing (starts a sandbox, asks the engine, runs the browser) instead of guessing from versions. The
rooms above are asked by name, so importing this module loads none of them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gymsmith.config import Settings
from gymsmith.errors import GymsmithError


class Check(NamedTuple):
    """One line of the report. `state` is ok, missing (optional) or broken (needed)."""

    name: str
    state: str
    detail: str
    next_move: str = ""


def examine(settings: Settings) -> list[Check]:
    """Run every check; none of them changes the machine."""
    return [
        python(),
        state_folder(settings),
        *namespaces(),
        *docker_engine(),
        sandbox_hosts(settings),
        chromium(settings),
        torch(),
        gpu(),
        swebench(),
        language_model(settings),
    ]


def can_work(checks: list[Check]) -> bool:
    """True when nothing that the main job needs is broken and some sandbox provider works."""
    by_name = {check.name: check for check in checks}
    sandboxed = any(by_name[name].state == "ok" for name in ("namespaces", "docker", "sandbox hosts"))
    return sandboxed and not any(check.state == "broken" for check in checks)


def show(checks: list[Check]) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]--[/]", "broken": "[red]NO[/]"}
    for check in checks:
        table.add_row(
            marks[check.state],
            check.name,
            escape(check.detail) + (f"\n[dim]-> {escape(check.next_move)}[/]" if check.next_move else ""),
        )
    Console().print(table)


def python() -> Check:
    """Python and the kernel."""
    version = platform.python_version()
    state = "ok" if sys.version_info >= (3, 11) else "broken"
    detail = f"{version} at {sys.prefix}; Linux {platform.release()}, {os.cpu_count()} cores"
    return Check("python", state, detail, "" if state == "ok" else "install Python 3.11 or newer")


def state_folder(settings: Settings) -> Check:
    """Whether the state folder can be written."""
    home = settings.home
    parent = home
    while not parent.exists():
        parent = parent.parent
    free_gib = shutil.disk_usage(parent).free / 2**30
    if not parent.is_dir():
        return Check("state folder", "broken", f"{home}: {parent} is no folder", "set GYMSMITH_HOME to a folder you may write")
    if not os.access(parent, os.W_OK):
        return Check("state folder", "broken", f"{home}: {parent} is not writable", "set GYMSMITH_HOME to a folder you may write")
    state = "ok" if free_gib >= 2 else "broken"
    return Check(
        "state folder", state, f"{home}, {free_gib:.0f} GiB free", "" if state == "ok" else "free 2 GiB or set GYMSMITH_HOME"
    )


def namespaces() -> list[Check]:
    """What the `ns` provider guarantees here, as its own probe found it."""
    try:
        report: dict[str, Any] = importlib.import_module("sandboxes.launcher").probe()
    except GymsmithError as error:
        return [Check("namespaces", "missing", str(error), "use a Docker Engine instead, or allow user namespaces")]
    state = "ok" if report["works"] else "missing"
    lines = [Check("namespaces", state, report["summary"], report.get("next_move", ""))]
    for name, detail in report.get("guarantees", {}).items():
        lines.append(Check(f"  {name}", "ok" if detail["holds"] else "missing", detail["text"], detail.get("next_move", "")))
    return lines


def docker_engine() -> list[Check]:
    """Whether a Docker Engine answers, and who limits what its containers write."""
    how = "apt-get install docker.io iptables, start dockerd; and pip install 'gymsmith[sandbox]'"
    if importlib.util.find_spec("docker") is None:
        return [Check("docker", "missing", "the docker package is not installed", how)]
    import_docker = importlib.import_module("docker")
    try:
        client = import_docker.from_env(timeout=3)
        version = client.version()
        way, text = importlib.import_module("sandboxes.container_disk").survey(client.api)
    except Exception as error:  # the package raises several unrelated families when no engine listens
        return [Check("docker", "missing", f"no engine answers ({type(error).__name__})", how)]
    quota = "" if way == "quota" else "keep the engine's data on xfs mounted with pquota, and a write beyond the limit is refused"
    return [
        Check("docker", "ok", f"Engine {version['Version']}, kernel {version['KernelVersion']}"),
        Check("  containers' disks", "ok", text, quota),
    ]


def sandbox_hosts(settings: Settings) -> Check:
    """Whether the sandbox hosts that are configured can be reached, and what they have."""
    if not settings.sandbox_hosts:
        how = "gymsmith sandbox-host serve there; set GYMSMITH_SANDBOX_HOSTS and GYMSMITH_PROVIDER=remote here"
        return Check("sandbox hosts", "missing", "none configured: sandboxes run on this machine", how)
    try:
        lines: list[str] = importlib.import_module("sandboxes.remote.provider").survey(settings)
    except GymsmithError as error:
        state = "broken" if settings.provider == "remote" else "missing"
        return Check("sandbox hosts", state, str(error), "start the hosts, or compare certificates and tokens")
    return Check("sandbox hosts", "ok", "; ".join(lines))


def chromium(settings: Settings) -> Check:
    """Whether pages can be rendered, as the sandboxes' own probe found it."""
    report: dict[str, Any] = importlib.import_module("sandboxes.browser.probe").probe(settings.chromium)
    return Check("chromium", "ok" if report["works"] else "missing", report["summary"], report["next_move"])


def torch() -> Check:
    """Whether the trainer's packages are there."""
    if importlib.util.find_spec("torch") is None:
        return Check("torch", "missing", "not installed: no training, no embedded engine", "pip install 'gymsmith[train]'")
    from importlib.metadata import version

    return Check("torch", "ok", version("torch"))


def gpu() -> Check:
    """GPUs, as the driver lists them."""
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        return Check("gpu", "missing", "no NVIDIA driver: everything runs on the CPU")
    names = [
        line.split(":", 1)[1].strip()
        for p in Path("/proc/driver/nvidia/gpus").glob("*/information")
        for line in p.read_text().splitlines()
        if line.startswith("Model:")
    ]
    extra = "" if importlib.util.find_spec("transformer_engine") else "pip install 'gymsmith[fp8]' for FP8 kernels"
    return Check("gpu", "ok", ", ".join(names), extra)


def language_model(settings: Settings) -> Check:
    """Whether a language model can be asked to write environments, as its endpoint says; no token is spent on that."""
    if not settings.llm_url:
        how = "for the kinds llm-...: set GYMSMITH_LLM_URL (any OpenAI-compatible one), GYMSMITH_LLM_KEY and GYMSMITH_LLM_MODEL"
        return Check("language model", "missing", "none configured, and none is needed: every other kind works without", how)
    from gymsmith.llm import Endpoint, LlmClient

    async def listed(endpoint: Endpoint) -> list[str]:
        async with LlmClient(endpoint) as client:
            return await client.models()

    try:
        endpoint = Endpoint.of(settings)
        known = asyncio.run(listed(endpoint))
    except GymsmithError as error:
        return Check("language model", "missing", str(error), "set GYMSMITH_LLM_URL, _KEY and _MODEL right, or none of them")
    detail = f"{endpoint.model} at {endpoint.where}{'' if settings.llm_key else ', no key'}"
    if endpoint.price_in or endpoint.price_out:
        detail += f"; {endpoint.price_in:g} and {endpoint.price_out:g} USD per million tokens in and out"
    limits = [f"{settings.llm_budget_tokens:,} tokens"] * bool(settings.llm_budget_tokens)
    limits += [f"{settings.llm_budget_usd:g} USD"] * bool(settings.llm_budget_usd)
    detail += f"; a job may spend {' and '.join(limits) or 'without limit'}"
    if endpoint.model not in known:
        some = ", ".join(known[:5]) or "no model"
        return Check("language model", "missing", f"{detail}; the endpoint lists {some}", "set GYMSMITH_LLM_MODEL to one of them")
    return Check("language model", "ok", detail)


def swebench() -> Check:
    """Whether SWE-bench evaluation can be graded."""
    if importlib.util.find_spec("swebench") is None:
        return Check("swebench", "missing", "not installed: no `gymsmith evaluate swebench`", "pip install 'gymsmith[swe]'")
    from importlib.metadata import version

    return Check("swebench", "ok", version("swebench"))
