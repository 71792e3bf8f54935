"""Bodies of trajectories: append-only chunk files, each trajectory a zlib stream of one JSON line.

A chunk is written once, under its final name, and synced to disk before its index rows are committed. A writer killed half-way
leaves a file that no row names; nothing reads it. Every stream carries its own checksum (zlib's), so a damaged one is noticed on
its own and the others stay readable. One trajectory is read with one seek.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gymsmith.errors import StoreError
from gymsmith.ids import ulid
from gymsmith.schema import Trajectory, digest


@dataclass(frozen=True, slots=True)
class Place:
    """Where one body lies: a file relative to the trajectories folder, and bytes [offset, offset + length) of it."""

    file: str
    offset: int
    length: int


def write(folder: Path, trajectories: Sequence[Trajectory]) -> list[Place]:
    """Write one chunk under `folder`/RUN and return the places in the order given; the file is durable when this returns.

    Raises:
        StoreError: the folder cannot be written; the broken file is removed.
    """
    run = trajectories[0].run_id
    name = f"{run if re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}', run) else digest(run.encode())[:32]}/{ulid()}.zjl"
    bodies = [zlib.compress(x.model_dump_json().encode() + b"\n", 1) for x in trajectories]
    path = folder / name
    try:
        new_folder = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as f:
            f.writelines(bodies)
            f.flush()
            os.fsync(f.fileno())
        _sync(path.parent)
        if new_folder:
            _sync(folder)
    except OSError as e:
        path.unlink(missing_ok=True)
        raise StoreError(
            f"trajectories cannot be written to {path}: {e.strerror}; free some space or make {folder} writable"
        ) from e
    places, offset = [], 0
    for body in bodies:
        places.append(Place(name, offset, len(body)))
        offset += len(body)
    return places


def read(folder: Path, places: Sequence[Place]) -> list[Trajectory]:
    """Read bodies in the order given, opening each file once.

    Raises:
        StoreError: a file is gone, shorter than its index says, or damaged.
    """
    found: dict[Place, Trajectory] = {}
    by_file: dict[str, list[Place]] = {}
    for place in places:
        by_file.setdefault(place.file, []).append(place)
    for file, wanted in by_file.items():
        path = folder / file
        try:
            with path.open("rb") as f:
                for place in wanted:
                    raw = os.pread(f.fileno(), place.length, place.offset)
                    found[place] = Trajectory.model_validate_json(zlib.decompress(raw))
        except OSError as e:
            raise StoreError(f"trajectory file {path} cannot be read: {e.strerror}; restore it from a backup") from e
        except (zlib.error, ValueError) as e:
            raise StoreError(f"trajectory file {path} is damaged near byte {place.offset}: {e}; restore it from a backup") from e
    return [found[place] for place in places]


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
