"""The setup agent: a model makes a strange repository build and its tests run, corrected by the build log and the tests' output.

What comes out is a record, kept by the repository's digest: requirements, Dockerfile, command, and the tests that passed three
times in three runs. It is no environment and proves nothing by itself; synthesizers that need a suite start from it. Nothing of
the repository runs outside a sandbox: packages come as wheels, the build and the tests have no network.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement

from env_factory.llm import written
from env_factory.llm.authorship import objection
from env_factory.llm.conversation import Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, fill
from env_factory.llm.suite_lines import outcomes
from env_factory.wheels import download_wheels
from gymsmith.config import Settings
from gymsmith.errors import BuildError, NoNetwork, PolicyRefused, SourceError
from gymsmith.schema import Word, digest
from sandboxes.base import MIB, Image, Provider, SandboxSpec
from sandboxes.image.images import ImageStore

RUNS = 3
TRIES = 6
"""Answers for one repository: a build is repaired in more steps than a text."""
SUITE_S = 600.0
MIN_SHARE = 0.5
"""Share of the tests that must pass; what stays below is an environment that is not set up."""
MAX_LISTED = 400
MAX_FILES_CHARS = 40_000
TELLING = re.compile(
    r"(readme.*|pyproject\.toml|setup\.(py|cfg)|tox\.ini|pytest\.ini|noxfile\.py|requirements.*\.txt|makefile|justfile|go\.mod|"
    r"cargo\.toml|package\.json|cmakelists\.txt|contributing.*|environment\.ya?ml|pipfile|dockerfile|\.travis\.yml|.*\.gemspec)\Z",
    re.IGNORECASE,
)


class SetupAnswer(Shape):
    """What a model is asked for; see prompts/setup.md."""

    requirements: list[str]
    dockerfile: str
    command: str
    network_tests: str


class Setup(Word):
    """A repository that builds and whose tests run, and how."""

    uri: str
    digest: str
    provenance: str
    requirements: tuple[str, ...]
    pins: tuple[str, ...]
    dockerfile: str
    command: str
    passing: tuple[str, ...]
    """Tests that passed in every run."""
    failing: tuple[str, ...]
    answers: int
    """How many answers it took."""
    image_id: str
    wheels: Path


class Place(NamedTuple):
    """What a repository is for the setup agent."""

    uri: str
    name: str
    files: Mapping[str, bytes]
    executable: frozenset[str] = frozenset()
    as_of: datetime | None = None


class SetupAgent:
    """Of one repository."""

    def __init__(self, desk: Desk, place: Place, provider: Provider, images: ImageStore, settings: Settings, python: str) -> None:
        self.desk, self.place, self.provider, self.images, self.settings, self.python = (
            desk,
            place,
            provider,
            images,
            settings,
            python,
        )
        parts = [part for path in sorted(place.files) for part in (path.encode(), place.files[path])]
        self.digest = digest(*parts)
        self.record = settings.home / "factory" / "setups" / f"{self.digest[:24]}-{digest(python.encode())[:6]}.json"

    async def run(self, seed: int = 0) -> Setup:
        """The setup, from the record when there is one whose image is still here.

        Raises:
            Rejected: the tries are used up; the reason is that of the last answer.
            BudgetSpent, LlmError, LlmRefused, NoNetwork.
        """
        if self.record.is_file():
            known = Setup.model_validate_json(self.record.read_text())
            if self.images.has_record(known.image_id) and known.wheels.is_dir():
                return known
        prompt = fill(
            "setup",
            python=self.python,
            name=self.place.name,
            listing=Material(_listing(self.place.files)),
            files=Material(_telling(self.place.files)),
        )
        talk = Talk(self.desk, prompt, SetupAnswer, seed=seed, tries=TRIES)
        while True:
            answer = await talk.ask()
            try:
                made = await self._tried(answer, talk.asked)
                break
            except Unfit as unfit:
                talk.object(unfit)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.record.with_name(f".{self.record.name}.{os.getpid()}")
        scratch.write_text(made.model_dump_json(indent=1))
        os.replace(scratch, self.record)
        return made

    async def _tried(self, answer: SetupAnswer, answers: int) -> Setup:
        """The setup of an answer that works.

        Raises: Unfit.
        """
        requirements = checked(answer.requirements)
        command = written.text("command", answer.command, 3, 400)
        if "\n" in command:
            raise Unfit("llm-text", "command must be one line")
        build_file = written.build_file(answer.dockerfile, "/work")
        try:
            wheels, pins = await asyncio.to_thread(
                download_wheels,
                ["pip", "pytest", *requirements],
                self.settings.wheelhouse_dir,
                self.python,
                as_of=self.place.as_of,
            )
        except NoNetwork:
            raise
        except SourceError as error:
            raise Unfit("no-wheel", "the requirements cannot be had as wheels together", str(error)) from None
        context = {f"repo/{path}": data for path, data in self.place.files.items()}
        executable = frozenset(f"repo/{path}" for path in self.place.executable)
        try:
            image = await self.images.build(build_file, context, wheelhouse=wheels, executable=executable)
        except BuildError as error:
            raise objection("build-failed", f"{error}\n{error.log}") from None
        except PolicyRefused as error:
            raise Unfit("refused", str(error)) from None
        runs = [await self._suite(image, command)]
        _judge(*runs[0])
        runs += await asyncio.gather(*(self._suite(image, command) for _ in range(RUNS - 1)))
        every = [outcomes(output) for output, _ in runs]
        passing = tuple(test for test in every[0] if all(each.get(test) == "passed" for each in every))
        if not passing:
            raise Unfit("flaky", "no test passes in each of three runs", runs[-1][0][-4000:])
        return Setup(
            uri=self.place.uri,
            digest=self.digest,
            provenance=self.desk.provenance,
            requirements=requirements,
            pins=pins,
            dockerfile=build_file,
            command=command,
            passing=passing,
            failing=tuple(test for test in every[0] if test not in passing),
            answers=answers,
            image_id=image.id,
            wheels=wheels,
        )

    async def _suite(self, image: Image, command: str) -> tuple[str, str]:
        """(what the command printed, how it ended where that was not by itself)."""
        box = await self.provider.create(
            SandboxSpec(image=image.id, user="agent", workdir="/work", memory_bytes=2048 * MIB, disk_bytes=1024 * MIB, pids=512)
        )
        try:
            done = await box.exec(["/bin/sh", "-c", command], user="agent", timeout_s=SUITE_S, max_output_bytes=4 * MIB)
        finally:
            await box.destroy()
        ended = f"it took more than {SUITE_S:g} s" if done.timed_out else "it ran out of memory" if done.oom else ""
        return done.output.decode(errors="replace"), ended


def checked(requirements: list[str]) -> tuple[str, ...]:
    """Requirements that name packages of the index and nothing else.

    Raises: Unfit (llm-requirement).
    """
    if len(requirements) > 60:
        raise Unfit("llm-requirement", f"at most 60 requirements are taken, got {len(requirements)}")
    for text in requirements:
        try:
            found = Requirement(text)
        except InvalidRequirement:
            raise Unfit(
                "llm-requirement", f"{text[:120]!r} is no requirement; give NAME or NAME>=VERSION, without options"
            ) from None
        if found.url or text.startswith("-"):
            raise Unfit("llm-requirement", f"{text[:120]!r} is an address or an option; packages come from the index by name")
    return tuple(dict.fromkeys(requirements))


def _judge(output: str, ended: str) -> None:
    """Raise Unfit unless a first run shows tests, most of them passing."""
    found = outcomes(output)
    good = sum(end == "passed" for end in found.values())
    if ended or not found:
        raise Unfit("tests-fail", f"the command shows no result of a single test{'; ' * bool(ended)}{ended}", output[-6000:])
    if good < MIN_SHARE * len(found):
        raise Unfit("tests-fail", f"only {good} of {len(found)} tests pass", output[-6000:])


def _listing(files: Mapping[str, bytes]) -> str:
    rows = [f"{path}  {len(data)} bytes" for path, data in sorted(files.items(), key=lambda kv: (kv[0].count("/"), kv[0]))]
    more = f"\n... and {len(rows) - MAX_LISTED} more" if len(rows) > MAX_LISTED else ""
    return "\n".join(rows[:MAX_LISTED]) + more


def _telling(files: Mapping[str, bytes]) -> str:
    """The files that say how a project is built and tested, the outermost first, as many as a question can hold."""
    parts, left = [], MAX_FILES_CHARS
    wanted = [path for path in files if TELLING.match(PurePosixPath(path).name) or path.startswith(".github/workflows/")]
    for path in sorted(wanted, key=lambda path: (path.count("/"), path)):
        text = files[path].decode(errors="replace")[:8000]
        if len(text) <= left:
            parts.append(f"=== {path}\n{text}")
            left -= len(text)
    return "\n".join(parts)
