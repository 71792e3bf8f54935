"""Archives written by somebody else become entries of a layer: layers of images, and what ADD unpacks.

Everything in them is hostile. Names that are absolute or climb are refused, and nothing is written through a link, because the
writer makes every directory on the way itself. Size, number of entries and of headers are bounded while they are read, not after.
Devices are refused, except below /dev of a whole root file system, where they are left out: a sandbox has its own /dev. Extended
attributes are dropped: a file capability would be worth something on this host and nothing in a sandbox.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import stat
import tarfile
import zlib
from typing import IO, BinaryIO, NamedTuple

from gymsmith.errors import BuildError, PolicyRefused
from sandboxes.base import MIB
from sandboxes.image.layer import LayerWriter

MAX_BYTES = 16_384 * MIB
"""Of one archive, unpacked."""
MAX_ENTRIES = 2_000_000
MAX_HEADER_BYTES = MIB
"""Of one extended header, which is held in memory: names are at most 4096 bytes."""
MAX_NAME_BYTES = 3500
"""What the kernel takes, less room for where the store lies."""
_HIDDEN = ".wh."
_OPAQUE = ".wh..wh..opq"
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BAD = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, OverflowError)


class Unpacked(NamedTuple):
    """What an archive held."""

    files: int
    bytes: int
    digest: str
    """SHA-256 of the tar stream, decompressed: what image configurations call diff_id."""
    skipped: int
    """Devices below /dev."""


class _Counted:
    """A stream that counts and hashes what is read, and ends when it is too much."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.count = 0
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size if 0 <= size < 1 << 20 else 1 << 20)
        self.count += len(data)
        if self.count > self.limit:
            raise too_large(self.limit)
        self.digest.update(data)
        return data


class BoundedHeader(tarfile.TarInfo):
    """Refuses extended headers that would fill the memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        long = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in long and self.size > MAX_HEADER_BYTES:
            raise PolicyRefused(f"a header of an archive may have {MAX_HEADER_BYTES} bytes, got one of {self.size}")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


def too_large(limit: int) -> PolicyRefused:
    """The error for an archive that holds more than `limit` bytes."""
    return PolicyRefused(f"an archive may hold {limit // MIB} MiB unpacked, this one holds more; is it a bomb?")


def is_archive(data: bytes) -> bool:
    """Whether ADD unpacks it: a tar archive, plain or compressed with gzip, bzip2 or xz."""
    if data[257:262] == b"ustar":
        return True
    form = _form(data[:8])
    if form in ("", "zstd"):
        return False
    try:
        return _opened(io.BytesIO(data), form).read(512)[257:262] == b"ustar"
    except (*_BAD, OSError):
        return False


def _form(head: bytes) -> str:
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


def _opened(stream: BinaryIO, form: str) -> IO[bytes]:
    if form == "gzip":
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if form == "bzip2":
        return bz2.BZ2File(stream)
    if form == "xz":
        return lzma.LZMAFile(stream)
    if form == "zstd":
        raise PolicyRefused("an archive is compressed with zstd, which is not read here; store it again with gzip")
    return stream


def decompressed(stream: BinaryIO) -> IO[bytes]:
    """The plain bytes of a seekable stream that may be compressed. Raises: PolicyRefused: in a way that is not read here."""
    head = stream.read(8)
    stream.seek(-len(head), 1)
    return _opened(stream, _form(head))


def unpack(stream: BinaryIO, writer: LayerWriter, top: str = "/", *, layer: bool = False, limit: int | None = None) -> Unpacked:
    """Write what an archive holds below `top`. `layer`: it is a layer of an image, so names that begin with .wh. delete.

    stream: seekable. Raises: PolicyRefused: it reaches out, or is a bomb; BuildError: it is damaged or contradicts itself.
    """
    counted = _Counted(decompressed(stream), MAX_BYTES if limit is None else limit)
    done = _Writing(writer, top, layer)
    try:
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=BoundedHeader, errors="surrogateescape") as archive:  # type: ignore[call-overload]
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                done.entry(member, content, counted.limit)
                archive.members = []
        while counted.read(1 << 20):
            pass
    except _BAD as error:
        raise BuildError(f"an archive cannot be read: {error or type(error).__name__}; is it a whole tar file?") from error
    except OSError as error:
        if error.errno is None:
            raise BuildError(f"an archive cannot be read: {error}; is it a whole tar file?") from error
        raise
    done.finish()
    return Unpacked(done.files, done.size, counted.digest.hexdigest(), done.skipped)


def indexed(stream: BinaryIO) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    """A plain archive to be read at random, and its members by their name without "./".

    Raises: PolicyRefused, BuildError: as `unpack`.
    """
    try:
        archive = tarfile.open(fileobj=stream, mode="r:", tarinfo=BoundedHeader)  # noqa: SIM115
        members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(archive):
            if number > MAX_ENTRIES:
                raise PolicyRefused(f"an archive may hold {MAX_ENTRIES} entries, this one holds more; is it a bomb?")
            members[member.name.removeprefix("./")] = member
    except _BAD as error:
        raise BuildError(f"an archive cannot be read: {error or type(error).__name__}; is it a whole tar file?") from error
    return archive, members


class _Writing:
    def __init__(self, writer: LayerWriter, top: str, layer: bool) -> None:
        self.writer = writer
        self.top = top.rstrip("/")
        self.layer = layer
        self.files = self.size = self.skipped = self.entries = 0
        self.deleted: list[str] = []
        self.opaque: list[str] = []
        if self.top:
            writer.directory(self.top)

    def entry(self, member: tarfile.TarInfo, content: IO[bytes] | None, limit: int) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise PolicyRefused(f"an archive may hold {MAX_ENTRIES} entries, this one holds more; is it a bomb?")
        inside = _inside(member.name)
        path = f"{self.top}{inside}" if inside != "/" else self.top or "/"
        last = inside.rpartition("/")[2]
        if self.layer and last.startswith(_HIDDEN):
            parent = path.rpartition("/")[0] or "/"
            if last == _OPAQUE:
                self.opaque.append(parent)
            elif not last.startswith(".wh..wh."):
                self.deleted.append(f"{parent.rstrip('/')}/{last.removeprefix(_HIDDEN)}")
            return
        uid, gid = member.uid, member.gid
        if not (0 <= uid < 65_536 and 0 <= gid < 65_536):
            raise PolicyRefused(f"archive member {inside[:200]!r} belongs to {uid}:{gid}; ids must be below 65536")
        mode = stat.S_IMODE(member.mode)
        if member.isdir():
            self.writer.directory(path, mode, uid, gid, anew=self.layer or inside != "/")
        elif member.isreg():
            if member.size > limit - self.size:
                raise too_large(limit)
            assert content is not None
            self.writer.file(path, content, mode, uid, gid)  # type: ignore[arg-type]
            self.files += 1
            self.size += member.size
        elif member.issym():
            self.writer.link(path, member.linkname, uid, gid)
        elif member.islnk():
            self.writer.same(path, f"{self.top}{_inside(member.linkname)}")
        elif member.isfifo():
            self.writer.fifo(path, mode, uid, gid)
        elif member.isdev() and self.layer and inside.startswith("/dev/"):
            self.skipped += 1
        else:
            raise PolicyRefused(f"archive member {inside[:200]!r} is a device or of an unknown kind; leave it out")

    def finish(self) -> None:
        """Deletions last: they are about the layers below, wherever they stood among the entries."""
        for path in self.opaque:
            self.writer.opaque(path)
        for path in self.deleted:
            if not any(path.startswith(f"{parent.rstrip('/')}/") for parent in self.opaque):
                self.writer.whiteout(path)


def _inside(name: str) -> str:
    """A member's name as a path below the top, beginning with a slash. Raises: PolicyRefused: it leaves the top."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or (name.startswith("/") and parts):
        raise PolicyRefused(f"archive member {name[:200]!r} leaves the archive; names must be relative and without '..'")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        raise PolicyRefused(f"archive member {name[:80]!r}... has a name of more than {MAX_NAME_BYTES} bytes")
    return "/" + "/".join(parts)
