"""Build hook: the wheel carries the sandbox program, compiled for this machine's architecture.

`cc` compiles it where there is one that links statically; only elsewhere is the `ziglang` package asked for as a build
dependency (some 100 MB). The result is static, so one binary serves every Linux of its architecture.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def box_build(root: str) -> ModuleType:
    """The module that compiles, loaded by path: the package is not installed while it is being built."""
    spec = importlib.util.spec_from_file_location("box_build", Path(root, "sandboxes", "box_build.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BoxHook(BuildHookInterface[Any]):
    """Compiles before files are collected and gives the wheel its platform tag."""

    def dependencies(self) -> list[str]:
        return [] if box_build(self.root).compiler() else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        binary = box_build(self.root).compile_box()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{platform.machine()}"
        folder = binary.parent.relative_to(self.root)
        build_data["artifacts"] += [f"/{folder}/{binary.name}", f"/{folder}/{binary.with_suffix('.sha256').name}"]
