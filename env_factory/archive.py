"""Unpacks an sdist into memory: plain files only, nothing outside its one top folder, no bombs."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator

from gymsmith.errors import PolicyRefused, SourceError

MAX_TOTAL_BYTES = 128 * 1024 * 1024
MAX_FILES = 20_000


def unpack(filename: str, data: bytes) -> dict[str, bytes]:
    """Files of a .tar.gz, .tar.bz2, .tar.xz or .zip by path, its single top folder taken off. Links and devices are left out.

    Raises:
        PolicyRefused: a path leaves the archive, or the content is larger than MAX_TOTAL_BYTES or MAX_FILES.
        SourceError: it is not an archive.
    """
    files: dict[str, bytes] = {}
    total = 0
    try:
        for name, content in _zip(data) if filename.endswith(".zip") else _tar(data):
            parts = name.split("/")
            if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
                raise PolicyRefused(f"{filename} holds {name!r}, which would leave the folder it is unpacked to")
            total += len(content)
            if total > MAX_TOTAL_BYTES or len(files) >= MAX_FILES:
                raise PolicyRefused(f"{filename} unpacks to more than {MAX_TOTAL_BYTES} bytes or {MAX_FILES} files")
            inner = "/".join(part for part in parts[1:] if part not in ("", "."))
            if inner:
                files[inner] = content
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise SourceError(f"{filename} is not a readable archive: {error}; fetch it again") from error
    return dict(sorted(files.items()))


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        for member in archive:
            if member.isreg():
                if member.size > MAX_TOTAL_BYTES:
                    raise PolicyRefused(f"{member.name!r} unpacks to {member.size} bytes; at most {MAX_TOTAL_BYTES} are taken")
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            kind = member.external_attr >> 28
            if not member.is_dir() and kind in (0, 0o10):
                if member.file_size > MAX_TOTAL_BYTES:
                    raise PolicyRefused(
                        f"{member.filename!r} unpacks to {member.file_size} bytes; at most {MAX_TOTAL_BYTES} are taken"
                    )
                yield member.filename, archive.read(member)
