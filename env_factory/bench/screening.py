"""The screen beside its peer, the whole suite for each candidate: tests that are run, and what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from env_factory import sources
from env_factory.orders import swe
from env_factory.orders.errand import python_of
from env_factory.swe import survey
from env_factory.swe.screening import opened
from env_factory.swe.selection import header, reaching
from env_factory.synth import combination, mutation
from gymsmith.bench import Row
from gymsmith.config import Settings
from sandboxes.worker import process_worker

SEED = 2026


def selection(settings: Settings, package: str, candidates: int, journal: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same faults, screened by the tests that reach them and by the whole suite; and the tests of all journalled orders."""
    worker = process_worker(settings)

    async def work() -> tuple[list[float], list[float], int]:
        python = await python_of(worker)
        source = sources.read(f"pypi:{package}", settings, python=python)
        assert isinstance(source, sources.Package)
        async with opened(source, await worker.provider(), await worker.images()) as screen:
            known = await survey.survey(source, screen, lines=True)
            sites = mutation.pool(source, known, SEED)[:candidates]
            spent: list[list[float]] = []
            for whole in (False, True):
                tests, cpu = screen.executions, screen.cpu_s
                runs = []
                for site in sites:
                    text = source.files[site.path].decode()
                    chosen = reaching(known, site.path, site.first_line, header(text, site.line))
                    runs.append(known.run_of(known.passing if whole else chosen, {site.path: site.apply(text)}))
                await screen.run(runs)
                spent.append([screen.executions - tests, screen.cpu_s - cpu])
            return spent[0], spent[1], len(known.passing)

    ours, peer, _ = worker.run(work())
    run = sum(line["tests_run"] for line in journal)
    baseline = sum(line["new"][0] * line["suite"] for line in journal)
    name = "whole suite for each candidate"
    return [
        _pair(f"{candidates} faults of {package}: tests run", "", ours[0], peer[0], name, ">= 5x fewer", 5.0),
        _pair(f"{candidates} faults of {package}: CPU", "s", ours[1], peer[1], name),
        _pair("all orders: tests run in surveys and screens", "", run, baseline, f"{name}, computed", ">= 5x fewer", 5.0),
    ]


def groups(settings: Settings, package: str, most: int) -> Row:
    """Groups of faults, screened by few tests; the peer is computed: one run of the whole suite for each group."""
    worker = process_worker(settings)

    async def work() -> tuple[int, int, int, int]:
        python = await python_of(worker)
        source = sources.read(f"pypi:{package}", settings, python=python)
        assert isinstance(source, sources.Package)
        async with opened(source, await worker.provider(), await worker.images()) as screen:
            path = swe.survey_path(source, settings, (await worker.images()).base_digest())
            known = await survey.kept(source, screen, path, lines=True)
            before, drafted, seen = screen.executions, 0, 0
            async for candidate in combination.draft(source, known, screen, SEED):
                drafted, seen = drafted + (candidate.draft is not None), seen + 1
                if seen == most:
                    break
            return screen.executions - before, seen, drafted, len(known.passing)

    run, seen, drafted, suite = worker.run(work())
    metric = f"{seen} groups of {package}, {drafted} drafts: tests run, single faults among them"
    return _pair(metric, "", run, seen * suite, "whole suite for each group, computed", ">= 5x fewer", 5.0)


def _pair(metric: str, unit: str, ours: float, peer: float, name: str, bar: str = "", least: float = 0.0) -> Row:
    ratio = peer / ours if ours else 0.0
    return Row(metric, unit, round(ours, 2), round(peer, 2), name, round(ratio, 2), bar, ratio >= least if bar else None)
