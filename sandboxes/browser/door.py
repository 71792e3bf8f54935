"""Carries the two descriptors of a DevTools pipe from Playwright's driver to the Chromium inside a sandbox.

The driver starts what it takes for a browser and speaks to it over descriptors 3 and 4. That is `outside`: it offers both, with
the command line, at a socket in a directory which one sandbox sees read-only. `inside`, started in that sandbox by its resident
agent, takes them and becomes Chromium. From then on the two talk directly: no port, no relay, nothing of ours in between.

Standard library only, and no import of ours: it runs with `-I -S`, on the host as a script and inside as an argument of Python.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time

DOOR = "door"
INSIDE = "/run/door"
_WAIT_S = 30.0


def outside() -> None:
    """Runs as the driver's child, in the directory GYMSMITH_DOOR; ends when Chromium, or this process's parent, has ended."""
    os.chdir(os.environ["GYMSMITH_DOOR"])
    server = socket.socket(socket.AF_UNIX)
    server.bind(DOOR)
    os.chmod(DOOR, 0o666)  # the directory above is closed to other users of the host
    server.listen(1)
    server.settimeout(_WAIT_S)
    peer, _ = server.accept()
    os.unlink(DOOR)
    server.close()
    socket.send_fds(peer, [json.dumps([os.environ["GYMSMITH_CHROMIUM"], *merged(sys.argv[1:])]).encode()], [3, 4])
    peer.shutdown(socket.SHUT_WR)
    os.close(3)
    os.close(4)
    peer.settimeout(None)
    peer.recv(1)  # Chromium holds the other end: end of file is its end
    for word in sys.argv[1:]:
        if word.startswith("--user-data-dir="):  # made for it on the host, and left there by a driver that was killed
            with contextlib.suppress(OSError):
                os.rmdir(word.partition("=")[2])


def inside() -> None:
    """Runs in the sandbox: wait for the door, take the descriptors, become Chromium."""
    peer = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            peer.connect(INSIDE + "/" + DOOR)
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.005)
    data, found, _, _ = socket.recv_fds(peer, 65536, 2)
    while more := peer.recv(65536):
        data += more
    command = json.loads(data)
    reading, writing, _ = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (*found, peer.fileno()))  # the last is kept by Chromium
    os.dup2(reading, 3)
    os.dup2(writing, 4)
    os.close(reading)
    os.close(writing)
    os.execv(command[0], command)


def merged(words: "list[str]") -> "list[str]":
    """The command line with one list of each kind: of several --disable-features, Chromium hears only the last."""
    for prefix in ("--disable-features=", "--blink-settings="):
        values = ",".join(word[len(prefix) :] for word in words if word.startswith(prefix))
        words = [word for word in words if not word.startswith(prefix)] + [prefix + values] * bool(values)
    return words


if __name__ == "__main__":
    inside() if sys.argv[1:2] == ["inside"] else outside()
