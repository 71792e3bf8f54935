"""Unpacks archives into memory: plain files only, nothing outside the archive, no bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from env_factory.source_kinds.tree import Tree, check_path
from gymsmith.errors import PolicyRefused, SourceError
from sandboxes.image.unpack import BoundedHeader

MAX_TOTAL_BYTES = 128 * 1024 * 1024
MAX_FILES = 20_000
MAX_ENTRIES = 200_000
"""Folders, links and devices count too: each costs memory."""
MAX_RATIO = 200
"""Unpacked bytes (skipped ones too) for each packed byte, beyond the first MAX_TOTAL_BYTES."""
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError,
    ValueError, OverflowError,
)  # fmt: skip


class _Member(NamedTuple):
    name: str
    content: bytes
    executable: bool = False
    link: str | None = None


def unpack(filename: str, data: bytes) -> dict[str, bytes]:
    """Files of a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip by path, the first folder taken off. Links and devices are left out.

    Raises:
        PolicyRefused: a path leaves the archive, or the content is larger than MAX_TOTAL_BYTES or MAX_FILES.
        SourceError: it is not an archive.
    """
    files = {}
    for member in _members(filename, data)[0]:
        inner = "/".join(part for part in member.name.split("/")[1:] if part not in ("", "."))
        if inner and member.link is None:
            files[inner] = member.content
    return dict(sorted(files.items()))


def tree(filename: str, data: bytes) -> tuple[Tree, str]:
    """(everything in an archive, its comment). One top folder that holds all is taken off; links are told, not followed.

    Raises: as `unpack`.
    """
    members, comment = _members(filename, data)
    plain = [m._replace(name="/".join(part for part in m.name.split("/") if part not in ("", "."))) for m in members]
    tops = {m.name.partition("/")[0] for m in plain}
    if len(tops) == 1 and all("/" in m.name for m in plain):
        plain = [m._replace(name=m.name.partition("/")[2]) for m in plain]
    files = {m.name: m.content for m in plain if m.link is None}
    links = {m.name: m.link for m in plain if m.link is not None and m.name not in files}
    executable = frozenset(m.name for m in plain if m.executable)
    return Tree(dict(sorted(files.items())), executable, links).checked(filename), comment


def _members(filename: str, data: bytes) -> tuple[list[_Member], str]:
    """Plain files and symbolic links as they stand written, and the archive's comment."""
    kept: list[_Member] = []
    total = files = 0
    comment: list[str] = []
    try:
        for member in _zip(data, comment) if data.startswith(b"PK") else _tar(data, comment):
            parts = member.name.split("/")
            if member.name.startswith("/") or "\\" in member.name or "\0" in member.name or ".." in parts:
                raise PolicyRefused(f"{filename} holds {member.name!r}, which would leave the folder it is unpacked to")
            inner = "/".join(part for part in parts if part not in ("", "."))
            if not inner:
                continue
            if ".git" not in parts:
                check_path(inner, filename)
            total += len(member.content)
            files += 1
            if total > MAX_TOTAL_BYTES or files > MAX_FILES:
                raise PolicyRefused(f"{filename} unpacks to more than {MAX_TOTAL_BYTES} bytes or {MAX_FILES} files")
            if ".git" not in parts:
                kept.append(member)
    except _BROKEN as error:
        raise SourceError(f"{filename} is not a readable archive: {error or type(error).__name__}; fetch it again") from error
    return kept, comment[0] if comment else ""


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends in a refusal when it grows beyond what its packed size can honestly hold."""

    def __init__(self, data: bytes) -> None:
        packed = io.BytesIO(data)
        self.stream: IO[bytes] = packed
        if data.startswith(b"\x1f\x8b"):
            self.stream = gzip.GzipFile(fileobj=packed)  # type: ignore[assignment]
        elif data.startswith(b"BZh"):
            self.stream = bz2.BZ2File(packed)
        elif data.startswith(b"\xfd7zXZ\0"):
            self.stream = lzma.LZMAFile(packed)  # noqa: SIM115
        self.left = MAX_TOTAL_BYTES + MAX_RATIO * len(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        chunk = self.stream.read(min(len(view), 1 << 20))
        self.left -= len(chunk)
        if self.left < 0:
            raise PolicyRefused("the archive unpacks to far more than it is large; is it a bomb?")
        view[: len(chunk)] = chunk
        return len(chunk)


def _tar(data: bytes, comment: list[str]) -> Iterator[_Member]:
    stream = io.BufferedReader(_Bounded(data), 1 << 16)
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedHeader, errors="surrogateescape") as archive:
        for number, member in enumerate(archive):
            # What was read is not kept: an archive may have millions of headers.
            archive.members = []  # type: ignore[attr-defined]
            if number >= MAX_ENTRIES:
                raise PolicyRefused(f"an archive may hold {MAX_ENTRIES} entries, this one holds more")
            if member.isreg():
                if member.size > MAX_TOTAL_BYTES:
                    raise PolicyRefused(f"{member.name!r} unpacks to {member.size} bytes; at most {MAX_TOTAL_BYTES} are taken")
                content = archive.extractfile(member)
                assert content is not None
                yield _Member(member.name, content.read(), bool(member.mode & 0o100))
            elif member.issym():
                yield _Member(member.name, b"", link=member.linkname)
        if said := archive.pax_headers.get("comment"):
            comment.append(str(said))


def _zip(data: bytes, comment: list[str]) -> Iterator[_Member]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        comment.append(archive.comment.decode("ascii", "replace"))
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise PolicyRefused(f"an archive may hold {MAX_ENTRIES} entries, this one holds {len(entries)}")
        for member in entries:
            kind = member.external_attr >> 28
            if member.is_dir() or kind not in (0, 0o10, 0o12):
                continue
            if member.file_size > MAX_TOTAL_BYTES:
                raise PolicyRefused(
                    f"{member.filename!r} unpacks to {member.file_size} bytes; at most {MAX_TOTAL_BYTES} are taken"
                )
            if kind == 0o12:
                target = archive.read(member).decode("utf-8", "replace") if member.file_size <= 4096 else ""
                yield _Member(member.filename, b"", link=target)
            else:
                yield _Member(member.filename, archive.read(member), bool(member.external_attr >> 16 & 0o100))
