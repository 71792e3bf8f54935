"""Repositories as sources: from git with their history, from archives without git, and nothing of theirs ever runs here."""

from __future__ import annotations

import http.server
import io
import ipaddress
import os
import ssl
import subprocess
import tarfile
import threading
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from env_factory import archive, sources
from env_factory.source_kinds import git_command, mirror
from gymsmith.config import Settings
from gymsmith.errors import NoNetwork, NotFound, PolicyRefused, SourceError

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy\n... The above copyright notice ...\n"


def run(folder: Path, *words: str, when: int = 1_600_000_000) -> str:
    """git, as the owner of a repository would run it."""
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "A"), ("EMAIL", "a@example.org"), ("DATE", f"{when} +0100"))}  # fmt: skip
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **who}
    return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three commits, a link, a script, a hook that would leave a trace, and a submodule that nobody may fetch."""
    root = tmp_path / "tiny"
    (root / "tests").mkdir(parents=True)
    run(root, "init", "--quiet", "--initial-branch=trunk")
    (root / "LICENSE").write_text(MIT)
    (root / "tiny.py").write_text("def half(n):\n    return n // 3\n")
    (root / "tests/test_tiny.py").write_text("from tiny import half\ndef test_half():\n    assert half(8) == 4\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    (root / ".gitmodules").write_text(f'[submodule "evil"]\n\tpath = evil\n\turl = ext::sh -c "touch {tmp_path}/trace"\n')
    run(root, "add", ".")
    (root / "evil").mkdir()
    run(root, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},evil")
    run(root, "commit", "--quiet", "--message", "start", when=1_600_000_000)
    (root / "tiny.py").write_text("def half(n):\n    return n // 2\n")
    run(root, "commit", "--quiet", "--all", "--message", "half: round as it says\n\nIt took thirds.", when=1_600_086_400)
    (root / "notes é.txt").write_text("n")
    run(root, "add", "notes é.txt")
    run(root, "commit", "--quiet", "--message", "notes", when=1_600_172_800)
    for hook in ("post-checkout", "reference-transaction", "post-upload-pack", "pre-auto-gc"):
        (root / ".git/hooks").mkdir(exist_ok=True)
        path = root / ".git/hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
        path.chmod(0o755)
    run(root, "config", "uploadpack.packObjectsHook", f"touch {tmp_path}/trace;")
    run(root, "config", "core.fsmonitor", f"touch {tmp_path}/trace")
    return root


def test_a_repository_is_read_with_its_history_and_nothing_of_it_runs(
    project: Path, tmp_path: Path, wheelhouse: Settings
) -> None:
    tiny = sources.read(f"git:{project}", wheelhouse)
    assert isinstance(tiny, sources.Repository)
    head = run(project, "rev-parse", "HEAD")
    assert (tiny.commit, tiny.name, tiny.source.licence) == (head, "tiny", "MIT")
    assert tiny.source.uri == f"git:{project}#{head}" and len(tiny.source.digest) == 64
    tree = tiny.tree()
    assert set(tree.files) == {"LICENSE", "tiny.py", "tests/test_tiny.py", "run.sh", ".gitmodules", "notes é.txt"}
    assert (tree.executable, tree.links, tree.submodules) == ({"run.sh"}, {"link": "/etc/passwd"}, ("evil",))
    notes, fix, start = tiny.commits()
    assert notes.changed == (("A", "notes é.txt"),) and fix.changed == (("M", "tiny.py"),)
    assert fix.message == "half: round as it says\n\nIt took thirds." and fix.parents == (start.id,) and start.parents == ()
    assert fix.date == datetime(2020, 9, 14, 12, 26, 40, tzinfo=UTC) == tiny.date(fix.id)
    assert "-    return n // 3\n+    return n // 2\n" in tiny.diff(start.id, fix.id)
    before = tiny.at(start.id)
    assert before.tree().files["tiny.py"].endswith(b"// 3\n") and before.source.digest != tiny.source.digest
    assert [c.id for c in before.commits()] == [start.id]
    assert not (tmp_path / "trace").exists()


def test_a_fetch_is_shallow_until_history_is_wanted_and_a_known_commit_needs_no_source(
    project: Path, wheelhouse: Settings
) -> None:
    head = run(project, "rev-parse", "HEAD")
    tiny = sources.read(f"git:{project.as_uri()}#trunk", wheelhouse)
    assert isinstance(tiny, sources.Repository) and tiny.git_dir is not None
    assert mirror.shallow(tiny.git_dir) == {head}
    assert len(tiny.commits(limit=1)) == 1 and len(tiny.commits(limit=2)) == 2
    (project / ".git").rename(project / "gone")
    assert sources.read(f"git:{project}#{head}", wheelhouse) == tiny
    with pytest.raises(NotFound, match="no git repository at file://"):
        sources.read(f"git:{project}#trunk", wheelhouse)


@pytest.mark.parametrize(
    "place",
    ["ext::sh -c 'touch /tmp/x'", "ssh://host/x", "http://example.org/x", "git://h/x", "file://other-host/x", "--upload-pack=x"],
)
def test_places_that_are_not_taken_are_named(place: str, wheelhouse: Settings) -> None:
    with pytest.raises((SourceError, NotFound), match=r"expected a (path|git repository)") as caught:
        sources.read(f"git:{place}", wheelhouse)
    assert place.split("'")[0].strip() in str(caught.value)
    assert not (wheelhouse.home / "repositories").exists()


@pytest.mark.parametrize("ref", ["--upload-pack=touch", "-x", "a..b", "a:b", "HEAD^{/x}", "@{-1}", "a b", "x.lock"])
def test_words_that_git_could_take_for_something_else_are_refused(ref: str, project: Path, wheelhouse: Settings) -> None:
    with pytest.raises(SourceError, match="expected a branch, a tag or a commit"):
        sources.read(f"git:{project}#{ref}", wheelhouse)


def test_what_is_not_there_is_named_and_leaves_nothing(project: Path, tmp_path: Path, wheelhouse: Settings) -> None:
    with pytest.raises(NotFound, match=r"no such branch.*absent"):
        sources.read(f"git:{project}#absent", wheelhouse)
    with pytest.raises(NotFound, match="no git repository at"):
        sources.read(f"git:{tmp_path / 'tiny' / 'tests'}", wheelhouse)
    with pytest.raises(NoNetwork, match=r"could not fetch https://127\.0\.0\.1:9/x") as caught:
        sources.read("git:https://user:geheim@127.0.0.1:9/x", wheelhouse)
    assert "geheim" not in str(caught.value)
    assert [p for p in (wheelhouse.home / "repositories").iterdir() if p.suffix != ".lock"] == []


def test_too_much_is_refused(project: Path, wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("env_factory.source_kinds.tree.MAX_TOTAL_BYTES", 100)
    with pytest.raises(PolicyRefused, match="at most"):
        sources.read(f"git:{project}", wheelhouse)
    with pytest.raises(PolicyRefused, match="more than 10 bytes"):
        git_command.git(None, "--version", limit=10)
    with pytest.raises(NoNetwork, match=r"longer than 0\.3 s"):
        git_command.git(project / ".git", "-c", "alias.hang=!sleep 60", "hang", timeout_s=0.3)


def test_archives_need_no_git(project: Path, tmp_path: Path, wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    head = run(project, "rev-parse", "HEAD")
    for form in ("tar.gz", "zip"):
        run(project, "archive", f"--format={form}", "--prefix=tiny-1.0/", f"--output={tmp_path}/tiny.{form}", "HEAD")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SourceError, match="install git"):
        sources.read(f"git:{project}", wheelhouse)
    for form in ("tar.gz", "zip"):
        tiny = sources.read(f"archive:{tmp_path}/tiny.{form}", wheelhouse)
        assert isinstance(tiny, sources.Repository)
        assert (tiny.commit, tiny.source.licence, tiny.name, tiny.commits()) == (head, "MIT", "tiny", [])
        assert "tests/test_tiny.py" in tiny.tree().files and tiny.tree().executable == {"run.sh"}
        assert tiny.tree().links == {"link": "/etc/passwd"} and tiny.date() is None
        with pytest.raises(SourceError, match="archive of one commit"):
            tiny.tree("0" * 40)


def test_an_archive_without_one_top_folder_keeps_its_paths() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("src/a.py", "a")
        packed.writestr("README", "r")
        packed.writestr(".git/hooks/post-checkout", "x")
    found, _ = archive.tree("x.zip", out.getvalue())
    assert dict(found.files) == {"README": b"r", "src/a.py": b"a"}


def test_archives_that_contradict_themselves_or_explode_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def tar(*names: str, size: int = 0) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as packed:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = size
                packed.addfile(info, io.BytesIO(bytes(size)))
        return out.getvalue()

    with pytest.raises(SourceError, match="as a file and as a folder"):
        archive.tree("x.tar.gz", tar("a/b", "a/b/c"))
    with pytest.raises(PolicyRefused, match="control characters"):
        archive.tree("x.tar.gz", tar("a/b\x07"))
    with pytest.raises(SourceError, match="not a readable archive"):
        archive.tree("x.tar.gz", tar("a/b", size=5000)[:60])
    monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
    with pytest.raises(PolicyRefused, match="may hold 3 entries"):
        archive.tree("x.tar.gz", tar("a", "b", "c", "d"))
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(PolicyRefused, match="unpacks to"):
        archive.tree("x.tar.gz", tar("a", size=5_000_000))


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_https_is_checked_and_a_server_without_shallow_fetches_gives_everything(
    project: Path, tmp_path: Path, wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain file server: git's dumb protocol. The credentials of the URL arrive as a header and are kept nowhere."""
    run(tmp_path, "clone", "--quiet", "--bare", str(project), "served.git")
    run(tmp_path / "served.git", "update-server-info")
    run(project, "archive", "--format=zip", "--prefix=tiny/", f"--output={tmp_path}/tiny.zip", "HEAD")
    seen: list[str | None] = []

    class Files(http.server.SimpleHTTPRequestHandler):
        """Serves the folder."""

        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(tmp_path))

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

        def log_message(self, *words: object) -> None:
            """Tests are quiet."""

    pem = certificate(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"https://user:geheim@127.0.0.1:{server.server_port}"
    try:
        for name in ("GIT_SSL_CAINFO", "SSL_CERT_FILE"):
            monkeypatch.delenv(name, raising=False)
        for uri in (f"git:{place}/served.git", f"archive:{place}/tiny.zip"):
            with pytest.raises(NoNetwork, match=r"(?i)certificate"):
                sources.read(uri, wheelhouse)
        monkeypatch.setenv("GIT_SSL_CAINFO", str(pem))
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        tiny = sources.read(f"git:{place}/served.git", wheelhouse)
        packed = sources.read(f"archive:{place}/tiny.zip", wheelhouse)
    finally:
        server.shutdown()
        server.server_close()
    assert isinstance(tiny, sources.Repository) and isinstance(packed, sources.Repository)
    assert len(tiny.commits()) == 3 and dict(packed.tree().files) == dict(tiny.tree().files)
    assert (
        "geheim" not in repr(tiny) + repr(packed)
        and "dXNlcjpnZWhlaW0" not in repr(tiny)
        and set(seen) == {"Basic dXNlcjpnZWhlaW0="}
    )
    kept = [path for path in (wheelhouse.home / "repositories").rglob("*") if path.is_file()]
    assert not any(b"geheim" in path.read_bytes() or b"dXNlcjpnZWhlaW0" in path.read_bytes() for path in kept)


def test_what_a_killed_fetch_left_is_removed_in_time(project: Path, wheelhouse: Settings) -> None:
    for name, age in ((".fetching-old", mirror.ABANDONED_S + 60), (".fetching-new", 60.0)):
        left = wheelhouse.home / "repositories" / name
        (left / "bare").mkdir(parents=True)
        os.utime(left, (time.time() - age,) * 2)
    sources.read(f"git:{project}", wheelhouse)
    assert sorted(path.name for path in (wheelhouse.home / "repositories").glob(".fetching-*")) == [".fetching-new"]
