"""The program: compiled once per source, started by gymsmith only, and the launcher that speaks to it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from gymsmith.errors import Capacity, SandboxError
from sandboxes import box_build, launcher
from sandboxes.launcher import BROKEN, COPIED, CreateRequest, Launcher, probe


@pytest.fixture(scope="module")
def binary() -> Path:
    return launcher.find_binary()


def test_the_binary_needs_nothing(binary: Path) -> None:
    """Static: no interpreter segment, so it starts in an image without a libc."""
    header = binary.read_bytes()
    offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    kinds = [struct.unpack_from("<I", header, offset + i * size)[0] for i in range(count)]
    assert 3 not in kinds, "PT_INTERP"


def test_compiled_once_per_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "box"
    sources.mkdir()
    (sources / "main.c").write_text("int main(void) { return 7; }\n")
    target = tmp_path / "out" / "gymsmith-box"
    if box_build.compiler() is None:
        pytest.skip("no C compiler here")
    made = box_build.compile_box(sources, target)
    assert subprocess.run([made]).returncode == 7
    first = made.stat().st_mtime_ns
    monkeypatch.setattr(box_build, "compiler", lambda: None)
    assert box_build.compile_box(sources, target).stat().st_mtime_ns == first, "nothing changed, so no compiler is needed"
    (sources / "main.c").write_text("int main(void) { return 8; }\n")
    with pytest.raises(box_build.CannotCompile, match="ziglang"):
        box_build.compile_box(sources, target)


def test_a_compile_error_is_shown(tmp_path: Path) -> None:
    if box_build.compiler() is None:
        pytest.skip("no C compiler here")
    (tmp_path / "main.c").write_text("int main(void) { return nonsense; }\n")
    with pytest.raises(box_build.CannotCompile, match="nonsense"):
        box_build.compile_box(tmp_path, tmp_path / "out" / "box")
    assert not (tmp_path / "out" / "box").exists()


def test_without_binary_and_compiler_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_build, "compiler", lambda: None)
    monkeypatch.setattr(launcher, "compile_box", lambda: box_build.compile_box(box_build.SOURCES, tmp_path / "x" / "box"))
    monkeypatch.setattr(launcher, "BINARY", tmp_path / "x" / "box")
    with pytest.raises(SandboxError, match="install gcc"):
        launcher.find_binary()


@pytest.mark.parametrize("arguments", [[], ["launcher"], ["launcher", "3", "nonsense", "0", "/tmp"], ["--help"]])
def test_not_for_hands(binary: Path, arguments: list[str]) -> None:
    done = subprocess.run([binary, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "not by hand" in done.stderr


def test_a_resident_is_pid_one_or_nothing(binary: Path) -> None:
    """Anywhere else its freeze would kill the processes of its user."""
    done = subprocess.run([binary, "resident", "60", "0", "/work", "0", "0"], input=b"", capture_output=True, timeout=5)
    assert done.returncode == 2 and done.stdout == b""


def test_the_launcher_ends_with_its_socket(tmp_path: Path) -> None:
    if not probe()["works"]:
        pytest.skip("no namespaces here")
    started = Launcher.start(tmp_path)
    pid = started._process.pid
    assert Path(f"/proc/{pid}").exists()
    assert str(tmp_path) not in Path(f"/proc/{pid}/cmdline").read_text(), "PID 1 of every sandbox shows this"
    started.close()
    assert not Path(f"/proc/{pid}").exists()
    assert list(tmp_path.iterdir()) == []


def test_malformed_requests_are_answered(tmp_path: Path) -> None:
    if not probe()["works"]:
        pytest.skip("no namespaces here")
    started = Launcher.start(tmp_path)
    try:
        for message in (b"x", b"\x01\0\0\0" * 3, struct.pack("<II", 77, 1), struct.pack("<4I", 3, 1, 1, 0)):
            started.control.send(message)
            for _ in range(100):
                try:
                    event = started.receive()
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            assert event.kind == BROKEN and "malformed" in event.text
    finally:
        started.close()


def test_a_snapshot_of_nothing_is_answered(tmp_path: Path) -> None:
    if not probe()["works"]:
        pytest.skip("no namespaces here")
    started = Launcher.start(tmp_path)
    try:
        started.discard(5)
        started.snapshot(99, 7, 1 << 20, 100)
        for _ in range(100):
            try:
                event = started.receive()
                break
            except BlockingIOError:
                time.sleep(0.01)
        assert (event.kind, event.id, os.strerror(event.value)) == (COPIED, 7, "No such process")
    finally:
        started.close()


def test_a_request_is_laid_out_as_the_program_reads_it() -> None:
    request = CreateRequest(1, True, 2, 3, "/w", (4, 5), ["/l"], [("/s", "/t")], "", "", 6, 7, 8, 9, 1)
    data = request.encode(2)
    assert len(data) == 80 + len(b"/w\0\0\0/l\0/s\0/t\0")
    assert data[80:] == b"/w\0\0\0/l\0/s\0/t\0"


def test_the_reason_is_named_for_ordinary_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "read_text", lambda self: "0\n" if self.name == "max_user_namespaces" else "?")
    assert "max_user_namespaces" in launcher.why_not() and "sysctl" in launcher.why_not()


def test_a_root_that_could_only_be_the_hosts_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's root without CAP_SYS_ADMIN would have to map root to root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(launcher, "_has_capability", lambda number: False)
    monkeypatch.setattr(launcher, "_outside", lambda uid: uid)
    with pytest.raises(Capacity, match=r"host's root.*CAP_SYS_ADMIN"):
        launcher.choose_mode()
    monkeypatch.setattr(launcher, "_outside", lambda uid: 1000 if uid == 0 else 0)
    assert launcher.choose_mode() == "single", "a rootless container: its root is an ordinary user outside"


@pytest.mark.skipif(not shutil.which("newuidmap"), reason="no newuidmap")
def test_ids_are_mapped_only_where_they_are_given(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("somebody:100000:65536\n0:5:10\nbroken line\n")
    assert launcher._subordinate(str(table), 0) == 0, "too few"
    table.write_text("0:200000:65536\n")
    assert launcher._subordinate(str(table), 0) == 200_000
    assert launcher._subordinate(str(tmp_path / "none"), 0) == 0


STARTS = 8


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    if not probe()["works"]:
        pytest.skip("no namespaces here")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(STARTS):
        Launcher.start(tmp_path).close()
    # One that each start left would be as many as starts; threads of other tests open and close a few meanwhile.
    assert len(os.listdir("/proc/self/fd")) < before + STARTS
