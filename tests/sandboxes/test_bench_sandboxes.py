"""The benchmark runs to its end with every peer that is here, and says aloud which one is not. Its bars are not tested: figures
belong to the machine that gave them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from gymsmith.config import Settings
from sandboxes.bench import sandboxes as bench_sandboxes
from sandboxes.bench.peers import PeerMissing, SweRex, docker_image
from sandboxes.bench.rounds import Bench, Size

TINY = Size(
    rounds=1, crowd=12, crowd_s=0.5, ours_in_flight=32, docker_in_flight=2, takes=4, leak_boxes=2, leak_rounds=1
)  # fmt: skip


@pytest.mark.docker
@pytest.mark.usefixtures("namespaces")
def test_it_measures_beside_its_peers(tmp_path: Path) -> None:
    rows = asyncio.run(bench_sandboxes._measure(Settings(home=tmp_path, provider="ns"), TINY))
    for row in rows:
        assert (row.ours >= 0 or "the machine lost" in row.metric) and (
            row.peer is None or row.ratio == pytest.approx(row.ours / row.peer, rel=0.05)
        ), row
        assert not (row.peer is None and "NOT MEASURED" in row.peer_name and row.ok is not None), "no verdict without a peer"
    metrics = {row.metric for row in rows}
    assert "persistent shell, exact exit codes" in metrics, "the shell's exit codes were exact"
    assert "fork of 2,000 files, 20 MB, to the first exec" in metrics, "the fork was independent"
    assert next(row for row in rows if row.metric.endswith("errors")).ours == 0
    missing = {row.peer_name for row in rows if "NOT MEASURED" in row.peer_name}
    if missing and os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
        pytest.fail(f"GYMSMITH_REQUIRE_ALL=1, but a peer was not measured: {missing}")
    if missing:
        pytest.skip(f"ran, but without a peer: {missing}")


def test_a_missing_engine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(PeerMissing, match="start dockerd"):
        docker_image(Settings(home=tmp_path))


def test_a_peer_that_fails_costs_its_own_figures_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    async def ours() -> float:
        return 2.0

    async def theirs() -> float:
        calls.append(1)
        if len(calls) > 1:
            raise OSError("gone")
        return 100.0

    bench = Bench(Settings(home=tmp_path), TINY, ns=None, images=None)  # type: ignore[arg-type]
    took = asyncio.run(bench.rounds({"ours": (3, ours), "rex": (1, theirs)}))
    assert took == {"ours": [2.0, 2.0, 2.0]}
    assert "not measured: it failed (OSError)" in capsys.readouterr().err
    bench.against("shell", 2.0, None, "SWE-ReX", 20)
    (row,) = bench.rows
    assert (row.peer, row.ratio, row.ok) == (None, None, None) and row.peer_name == "NOT MEASURED: it failed (OSError)"
    bench.against("shell", 2.0, 100.0, "SWE-ReX", 20)
    bench.against("shell", 2.0, 100.0, "SWE-ReX", 60)
    bench.against("shell", 2.0, 100.0, "SWE-ReX", 20, also=False)
    assert [row.ok for row in bench.rows] == [None, True, False, False]


def test_a_missing_swe_rex_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swerex.runtime.abstract", None)
    with pytest.raises(PeerMissing, match=r"gymsmith\[bench\]"):
        asyncio.run(SweRex.start())
