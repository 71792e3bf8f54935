"""One running provider of each kind for all conformance tests. GYMSMITH_TEST_FAULTY=KIND runs them against
one kind alone, with the faults that each test names put into it: then every test must fail (`test_conformance_bites.py`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import GymsmithError
from sandboxes.base import Image, Provider, Sandbox
from tests.sandboxes.conformance.faults import Faulty
from tests.sandboxes.conftest import House, OneImage, lacking, start_provider

KINDS = {"ns": "ns", "docker": pytest.param("docker", marks=pytest.mark.docker), "local": "local", "remote": "remote"}
CANNOT = {
    "local": frozenset(
        ("users", "memory_limit", "pids_limit", "cpu_limit", "disk_limit", "seccomp", "shell", "own_root", "layers",
         "upper_layer", "prepared_upper")
    ),
    "docker": frozenset(("upper_layer", "prepared_upper")),
}  # fmt: skip
"""Capability fields that a provider has on no machine: what needs one is no test of it. `test_limits.py` holds this table
against the providers."""
FAULTY = os.environ.get("GYMSMITH_TEST_FAULTY", "")
"""KIND or, as a control arm with the wrapper but without its faults, KIND:none."""


class Place(House):
    """A house whose sandboxes may be local ones: everything these tests run is our own."""

    async def box(self, *, layers: list[Path] | None = None, upper: Path | None = None, **spec: Any) -> Sandbox:
        return await super().box(layers=layers, upper=upper, **{"trusted": True, **spec})


async def open_place(kind: str, folder: Path) -> Provider:
    if kind == "local":
        from sandboxes.local import LocalProvider

        return await LocalProvider.start(OneImage(Image("base")), folder)
    if kind == "remote":
        from sandboxes.probe import HostUsr
        from tests.sandboxes.remote_site import start_remote

        root = folder / "root"
        root.mkdir(mode=0o755)
        return await start_remote(folder, OneImage(HostUsr(root).image))
    if kind not in ("ns", "docker"):
        raise ValueError(f"a provider must be ns, docker, local or remote, got {kind!r}")
    return await start_provider(kind, folder)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broken_by(*faults): the faults of faults.py against which this test must fail")
    config.addinivalue_line("markers", "needs(*fields): fields of Capabilities; no test of a provider that can never have them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "house" in metafunc.fixturenames:
        wanted = needed(metafunc.definition)
        kinds = [FAULTY.partition(":")[0]] if FAULTY else list(KINDS)
        able = [kind for kind in kinds if not wanted & CANNOT.get(kind, frozenset())]
        metafunc.parametrize("house", [KINDS.get(kind, kind) for kind in able], indirect=True)


def needed(test: pytest.Item | Any) -> set[str]:
    """The capabilities that a test, or its whole file, is about."""
    return {field for mark in test.iter_markers("needs") for field in mark.args}


@pytest.fixture(scope="session")
def provider_house(request: pytest.FixtureRequest) -> Iterator[dict[str, Place]]:
    """Running providers by kind; one loop each."""
    running: dict[str, Place] = {}
    yield running
    for place in running.values():
        place.loop.run_until_complete(place.provider.close())
        place.loop.close()


@pytest.fixture
def house(
    request: pytest.FixtureRequest, provider_house: dict[str, Place], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    kind = request.param
    if kind not in provider_house:
        loop = asyncio.new_event_loop()
        try:
            provider = loop.run_until_complete(open_place(kind, tmp_path_factory.mktemp(kind)))
        except GymsmithError as error:
            loop.close()
            lacking(f"the {kind} provider does not start here: {error}")
            raise
        provider_house[kind] = Place(provider, loop)
    place = provider_house[kind]
    for field in sorted(needed(request.node)):
        if not getattr(place.able, field):
            lacking(f"{kind} offers no {field} on this machine: {place.able.notes}")
    if FAULTY:
        mark = request.node.get_closest_marker("broken_by")
        faults = mark.args if mark and not FAULTY.endswith(":none") else ()
        provider = Faulty(place.provider, frozenset(faults))
        yield Place(provider, place.loop)
        place.loop.run_until_complete(provider.clean())
        return
    yield place
