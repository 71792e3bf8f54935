"""Network policies under each provider: what an index or a proxy lets through, and that nothing else is a way out.

Threats 4 and 15 of the model are named here; each has an arm in which the same attempt succeeds because the guard is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import io
import ipaddress
import socket
import ssl
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import Capacity
from sandboxes import network
from sandboxes.base import Sandbox
from sandboxes.egress import Egress
from sandboxes.index_server import PackageCache
from sandboxes.network import OFFLINE, NetworkPolicy
from sandboxes.proxy import ProxyService
from tests.sandboxes.wheels import write_wheel

House = Any
INDEX = NetworkPolicy("index", packages=("gym-tiny==1.0", "gym-needs-tiny"))
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PackageCache:
    folder = tmp_path_factory.mktemp("index")
    made = PackageCache(folder / "cache")
    for wheel in (
        write_wheel(folder, "gym_tiny", "1.0"),
        write_wheel(folder, "gym_tiny", "2.0"),
        write_wheel(folder, "gym_needs_tiny", "0.3", "gym-tiny"),
        write_wheel(folder, "gym_secret", "1.0"),
    ):
        made.add(wheel)
    return made


@pytest.fixture(scope="module")
def pip() -> bytes:
    """This interpreter's pip as one file that any Python can run; what is compiled already goes along, as that saves seconds."""
    import pip as package

    root = Path(package.__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, inside := Path("pip") / path.relative_to(root))
                compiled = Path(importlib.util.cache_from_source(str(path))) if path.suffix == ".py" else path
                if compiled != path and compiled.exists():
                    archive.write(compiled, inside.with_suffix(".pyc"))
        archive.writestr("__main__.py", "import runpy\nrunpy.run_module('pip', run_name='__main__')\n")
    return packed.getvalue()


@pytest.fixture(autouse=True)
def offered(request: pytest.FixtureRequest) -> None:
    if "house" in request.fixturenames:
        request.getfixturevalue("house").provider.egress = Egress(request.getfixturevalue("cache"))


async def connects(box: Sandbox, where: str) -> str:
    """What a TCP or other connection attempt from inside says: "open" or the error's name."""
    tail = "print('open')\nexcept OSError as e:\n    print(errno.errorcode.get(e.errno, e))"
    line = f"import socket, errno\ntry:\n    {where}\n    {tail}"
    result = await box.exec(["python3", "-c", line], timeout_s=20)
    return result.output.decode().strip()


def tcp(host: str, port: int) -> str:
    return f"socket.create_connection(({host!r}, {port}), 3)"


def test_pip_installs_from_the_offline_index_and_nothing_else(house: House, pip: bytes) -> None:
    async def scene(box: Sandbox) -> None:
        await box.put("/tmp/pip.pyz", pip)
        install = "python3 /tmp/pip.pyz install --no-cache-dir --target /tmp/site "
        done = await box.exec(install + "gym-needs-tiny", timeout_s=60)
        assert done.ok, done.output
        code = "import gym_tiny, gym_needs_tiny; print(gym_tiny.VERSION, gym_needs_tiny.VERSION)"
        said = await box.exec(["python3", "-c", code], env={"PYTHONPATH": "/tmp/site"})
        assert said.output == b"1.0 0.3\n", "2.0 is in the cache, but the policy names 1.0"
        refused = await box.exec(install + "gym-secret", timeout_s=60)
        assert not refused.ok and b"No matching distribution" in refused.output
        page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3141/simple/gym-tiny/').read())"
        offered = (await box.exec(["python3", "-c", page])).output
        assert b"gym_tiny-1.0" in offered and b"gym_tiny-2.0" not in offered
        assert [(r.reason, r.what) for r in box.gate.refused] == [("no-such-package", "gym-secret")]  # type: ignore[attr-defined]
        assert box.gate.bytes > 0  # type: ignore[attr-defined]

    house.play(scene, network=INDEX)


def test_without_a_policy_the_index_is_not_there(house: House) -> None:
    async def scene(box: Sandbox) -> None:
        assert await connects(box, tcp("127.0.0.1", 3141)) == "ECONNREFUSED"
        assert b"PIP_" not in (await box.exec("env")).output

    house.play(scene)


def test_the_index_ends_with_disconnect_and_with_freeze(house: House) -> None:
    async def scene(box: Sandbox) -> None:
        assert await connects(box, tcp("127.0.0.1", 3141)) == "open"
        await box.disconnect()
        await box.disconnect()
        assert await connects(box, tcp("127.0.0.1", 3141)) == "ECONNREFUSED"

    house.play(scene, network=INDEX)


def test_a_package_that_the_cache_lacks_is_said_at_once(house: House) -> None:
    async def ask() -> None:
        with pytest.raises(Capacity, match=r"no-such-thing==9.*gymsmith index add"):
            await house.box(network=NetworkPolicy("index", packages=("no-such-thing==9",)))

    house.run(ask())


@contextlib.contextmanager
def host_listener(address: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> Iterator[Any]:
    """A server of this host that greets whoever comes; its address."""
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind((address, 0) if family != socket.AF_UNIX else address)
        server.listen(8)

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as peer:
                        peer.sendall(b"host")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


POLICIES = [OFFLINE, INDEX, NetworkPolicy("proxy", hosts=("example.org",))]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.mode)
def test_threat_4_metadata_and_host_loopback_are_unreachable(house: House, policy: NetworkPolicy) -> None:
    async def scene(box: Sandbox) -> None:
        with host_listener() as (_, port):
            with socket.create_connection(("127.0.0.1", port), 3) as control:
                assert control.recv(4) == b"host", "control arm: the same connection works outside"
            assert await connects(box, tcp("127.0.0.1", port)) == "ECONNREFUSED"
        for target in ("169.254.169.254", "1.1.1.1", "10.0.0.1", "192.168.0.1"):
            assert await connects(box, tcp(target, 80)) == "ENETUNREACH"
        for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"):
            said = await connects(box, f"socket.socket(socket.AF_UNIX).connect({path!r})")
            assert said in ("ENOENT", "EACCES"), said
        routes = await box.exec("cat /proc/net/route; tail -n +3 /proc/net/dev | cut -d: -f1")
        assert routes.output.decode().split("\n", 1)[1].split() == ["lo"], routes.output

    house.play(scene, network=policy)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.mode)
def test_threat_15_no_protocol_leaves_the_namespace(house: House, policy: NetworkPolicy) -> None:
    async def scene(box: Sandbox) -> None:
        udp = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'\\0' * 12, ('8.8.8.8', 53))"
        assert await connects(box, udp) == "ENETUNREACH"
        v6 = "s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM); s.settimeout(3); s.connect(('2606:4700::1111', 443))"
        assert await connects(box, v6) in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT")
        for family in ("AF_INET, socket.SOCK_RAW, 1", "AF_INET6, socket.SOCK_RAW, 58", "AF_PACKET, socket.SOCK_RAW, 0"):
            assert await connects(box, f"socket.socket(socket.{family})") in ("EPERM", "EAFNOSUPPORT")
        assert await connects(box, "socket.socket(40, socket.SOCK_STREAM).connect((2, 1024))") == "EAFNOSUPPORT"  # AF_VSOCK
        with host_listener("\0gymsmith-test-abstract", socket.AF_UNIX) as address:
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(address)
                assert control.recv(4) == b"host", "control arm: the name exists on the host"
            said = await connects(box, "socket.socket(socket.AF_UNIX).connect('\\0gymsmith-test-abstract')")
            assert said == "ECONNREFUSED"
        name = await box.exec(["python3", "-c", "import socket; socket.getaddrinfo('example.org', 80)"], timeout_s=20)
        assert not name.ok, "names have no resolver to go to"

    house.play(scene, network=policy)


def test_the_handover_leaves_nothing_to_speak_to(house: House) -> None:
    async def scene(box: Sandbox) -> None:
        look = "find / -xdev -type s 2>/dev/null; ls -A /.gymsmith-handover 2>/dev/null; touch /.gymsmith-handover/x"
        seen = await box.exec(look, user="root", split=True)
        assert seen.output == b"" and (not seen.ok or house.provider.name == "ns")

    house.play(scene, network=INDEX)


def test_connections_and_bytes_are_bounded(house: House) -> None:
    policy = NetworkPolicy("index", packages=("gym-tiny",), max_connections=4, max_bytes=20_000)

    async def scene(box: Sandbox) -> None:
        hold = (
            "import socket\nheld = [socket.create_connection(('127.0.0.1', 3141), 5) for _ in range(5)]\nprint(held[-1].recv(12))"
        )
        said = await box.exec(["python3", "-c", hold], timeout_s=20)
        assert said.output == b"b'HTTP/1.1 503'\n", said.output
        await asyncio.sleep(0.2)
        fetch = "import urllib.request\nfor _ in range(200): urllib.request.urlopen('http://127.0.0.1:3141/simple/').read()"
        assert not (await box.exec(["python3", "-c", fetch], timeout_s=30)).ok
        assert box.gate.bytes < 21_000  # type: ignore[attr-defined]
        assert {"too-many-connections", "bytes"} <= {r.reason for r in box.gate.refused}  # type: ignore[attr-defined]

    house.play(scene, network=policy)


def test_who_takes_nothing_still_counts_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a workload that does not read holds this process's memory and descriptors, so it may not pile up."""
    monkeypatch.setattr(network, "IDLE_S", 0.3)

    async def pours(connection: network.Connection) -> None:
        await connection.head()
        while True:
            await connection.write(bytes(256 * 1024))

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        gate = network.Gate(NetworkPolicy("proxy", hosts=("a.test",), max_connections=2), listener, pours, "x")
        gate.open()
        held = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        for sock in held:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.45)
        assert len(gate._open) == 2, "their time is over, and what was sent is not taken yet"
        await asyncio.sleep(0.6)
        assert not gate._open
        for sock in held:
            sock.close()
        gate.close()

    asyncio.run(scene())


def test_no_request_breaks_the_proxy(caplog: pytest.LogCaptureFixture) -> None:
    """A traceback for each would let a workload fill our log."""

    async def scene() -> None:
        policy = NetworkPolicy("proxy", hosts=("a.test",))
        listener = socket.create_server(("127.0.0.1", 0))
        gate = network.Gate(policy, listener, ProxyService(policy), "x")
        gate.open()
        for url in (b"http://[/", b"http://[::1/", b"http://a.test:99999999/", b"http://[v1.a]/", b"http://"):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET " + url + b" HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 40"), url
            writer.close()
        gate.close()

    asyncio.run(scene())
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_one_that_asks_without_end_does_not_keep_others_waiting(house: House) -> None:
    flood = (
        "import socket, threading\n"
        "def ask():\n"
        "    while True:\n"
        "        try:\n"
        "            s = socket.create_connection(('127.0.0.1', 3141), 5)\n"
        "            s.sendall(b'GET /simple/ HTTP/1.1\\r\\n\\r\\n' * 200); s.recv(1000)\n"
        "        except OSError: pass\n"
        "for _ in range(8): threading.Thread(target=ask).start()"
    )

    async def act() -> None:
        loud, quiet = await house.box(network=INDEX), await house.box()
        try:
            await loud.spawn(["python3", "-c", flood])
            await asyncio.sleep(1.5)
            gate = loud.gate
            seen, began = gate.bytes, asyncio.get_running_loop().time()
            for _ in range(10):
                assert (await quiet.exec("true")).ok
            await asyncio.sleep(1.0)
            requests = (gate.bytes - seen) / 250  # a request and its answer are larger than that
            assert requests < 250 * (asyncio.get_running_loop().time() - began) + 100
            assert gate.bytes > 20_000, "the flood did come"
        finally:
            await loud.destroy()
            await quiet.destroy()

    house.run(act())


def test_a_fork_has_a_gate_of_its_own(house: House) -> None:
    house.needs("fork")

    async def scene(box: Sandbox) -> None:
        (fork,) = await box.fork()
        try:
            await box.disconnect()
            assert await connects(box, tcp("127.0.0.1", 3141)) == "ECONNREFUSED"
            assert await connects(fork, tcp("127.0.0.1", 3141)) == "open"
        finally:
            await fork.destroy()

    house.play(scene, network=INDEX)


def test_the_cache_serves_only_what_its_digest_says(tmp_path: Path, house: House) -> None:
    cache = PackageCache(tmp_path / "cache")
    package = cache.add(write_wheel(tmp_path, "gym_hurt", "1.0"))
    (tmp_path / "cache" / "files" / package.sha256 / package.filename).write_bytes(b"changed")
    house.provider.egress = Egress(cache)

    async def scene(box: Sandbox) -> None:
        url = f"http://127.0.0.1:3141/files/{package.sha256}/{package.filename}"
        said = await box.exec(["python3", "-c", f"import urllib.request\nurllib.request.urlopen({url!r})"])
        assert b"503" in said.output
        for path in ("/files/../../etc/passwd", "/files/%2e%2e/x", "/simple/../files", "//"):
            code = f"import http.client; c = http.client.HTTPConnection('127.0.0.1', 3141); c.request('GET', {path!r}); "
            said = await box.exec(["python3", "-c", code + "print(c.getresponse().status)"])
            assert said.output == b"404\n"
        assert next(r.reason for r in box.gate.refused) == "damaged-file"  # type: ignore[attr-defined]

    house.play(scene, network=NetworkPolicy("index", packages=("gym-hurt",)))


# ---- the proxy, whose names are resolved by a table so that no test needs the internet ----

NAMES = {"good.test": "127.0.0.1", "meta.test": "169.254.169.254", "inner.test": "10.1.2.3", "home.test": "127.0.0.1"}


async def resolve(name: str, port: int) -> Sequence[str]:
    if name not in NAMES:
        raise OSError("no such name")
    return [NAMES[name]]


@contextlib.asynccontextmanager
async def web_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Answers each request with its own head; redirects /away to the metadata service. Its port on this host."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/away" in head:
                writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def asks(box: Sandbox, *requests: str) -> list[str]:
    """The first line, or the end, of what the proxy says to each request."""
    code = (
        "import socket, sys\n"
        "for text in sys.argv[1:]:\n"
        "    s = socket.create_connection(('127.0.0.1', 3128), 5)\n"
        "    s.sendall(text.encode('latin-1').decode('unicode_escape').encode('latin-1'))\n"
        "    data = b''\n"
        "    try:\n"
        "        while more := s.recv(65536): data += more\n"
        "    except OSError: pass\n"
        "    print(repr(data.decode('latin-1')))\n"
    )
    result = await box.exec(["python3", "-c", code, *requests], timeout_s=40)
    assert result.ok, result.output
    return [eval(line) for line in result.output.decode().splitlines()]


def get(url: str, host: str, more: str = "") -> str:
    return f"GET {url} HTTP/1.1\\r\\nHost: {host}\\r\\n{more}\\r\\n"


def test_the_proxy_reaches_listed_names_alone(house: House) -> None:
    async def play() -> None:
        async with web_server() as port:
            house.provider.egress = Egress(internal=LOOPBACK, resolve=resolve)
            policy = NetworkPolicy("proxy", hosts=(f"good.test:{port}", f"meta.test:{port}", f"inner.test:{port}"))
            box = await house.box(network=policy)
            try:
                said = await asks(
                    box,
                    get(f"http://good.test:{port}/a?b", f"good.test:{port}", "Proxy-Connection: keep-alive\\r\\nX-A: 1\\r\\n"),
                    get(f"http://home.test:{port}/", f"home.test:{port}"),
                    get(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}"),
                    get(f"http://2130706433:{port}/", f"2130706433:{port}"),
                    get(f"http://0x7f.1:{port}/", f"0x7f.1:{port}"),
                    get(f"http://[::1]:{port}/", f"[::1]:{port}"),
                    get(f"http://meta.test:{port}/latest/", f"meta.test:{port}"),
                    get(f"http://inner.test:{port}/", f"inner.test:{port}"),
                    get(f"http://good.test:{port}/", "home.test"),
                    get("http://good.test:1/", "good.test:1"),
                    get("/", "good.test"),
                    get(f"http://good.test:{port}@home.test/", "good.test"),
                    get(f"http://good.test:{port}/", f"good.test:{port}", "Transfer-Encoding: chunked\\r\\n"),
                    get(f"http://good.test:{port}/", f"good.test:{port}", "Content-Length: 3\\r\\nContent-Length: 5\\r\\n"),
                    get(f"http://good.test:{port}/away", f"good.test:{port}"),
                    get("http://169.254.169.254/latest/", "169.254.169.254"),
                )
                reasons = [text.partition("policy: ")[2].partition(":")[0] for text in said]
                assert said[0].startswith("HTTP/1.1 200") and "GET /a?b HTTP/1.1" in said[0] and "x-a: 1" in said[0]
                assert "proxy-connection" not in said[0].lower()
                assert reasons[1:14] == [
                    "not-listed", "ip-literal", "ip-literal", "ip-literal", "ip-literal", "private-address", "private-address",
                    "host-mismatch", "port", "bad-request", "bad-request", "bad-request", "bad-request",
                ]  # fmt: skip
                assert said[14].startswith("HTTP/1.1 302"), "a redirect is handed to whoever asked"
                assert reasons[15] == "ip-literal", "and following it is a new request"
                assert [r.reason for r in box.gate.refused] == [r for r in reasons if r]
            finally:
                await box.destroy()
            # the control arm of the address guard: without the operator's consent the listed name is refused for what it is
            house.provider.egress = Egress(resolve=resolve)
            box = await house.box(network=policy)
            try:
                (said_now,) = await asks(box, get(f"http://good.test:{port}/", f"good.test:{port}"))
                assert "private-address: good.test is 127.0.0.1" in said_now
            finally:
                await box.destroy()

    house.run(play())


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, bytes]:
    """A server's context for good.test, and the authority that vouches for it."""
    from sandboxes.remote.certificates import make_authority, make_certificate

    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder)
    make_certificate(folder, "server", ["good.test"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context, (folder / "ca.pem").read_bytes()


def test_a_tunnel_is_tls_for_the_name_that_was_asked_for(house: House, tls: tuple[ssl.SSLContext, bytes]) -> None:
    code = """
import socket, ssl, sys
_, name, port, greeting = sys.argv
s = socket.create_connection(("127.0.0.1", 3128), 5)
s.sendall(f"CONNECT {name}:{port} HTTP/1.1\\r\\nHost: {name}:{port}\\r\\n\\r\\n".encode())
print(s.recv(4096).split(b"\\r\\n")[0].decode())
try:
    if greeting == "plain":
        s.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        print(s.recv(100) or "cut")
    else:
        context = ssl.create_default_context(cafile="/tmp/ca.pem")
        context.check_hostname = greeting == name
        context.verify_mode = ssl.CERT_REQUIRED
        t = context.wrap_socket(s, server_hostname=greeting or None)
        t.sendall(b"GET /inside HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print(t.recv(4096).split(b"\\r\\n")[0].decode())
except OSError as e:
    print("cut")
"""

    async def play() -> None:
        context, authority = tls
        async with web_server(context) as port:
            house.provider.egress = Egress(internal=LOOPBACK, resolve=resolve)
            box = await house.box(network=NetworkPolicy("proxy", hosts=(f"good.test:{port}",)))
            try:
                await box.put("/tmp/ca.pem", authority)
                seen = {}
                for greeting in ("good.test", "home.test", "", "plain"):
                    result = await box.exec(["python3", "-c", code, "good.test", str(port), greeting], timeout_s=30)
                    seen[greeting] = result.output.decode().splitlines()
                opened = "HTTP/1.1 200 Connection established"
                assert seen["good.test"] == [opened, "HTTP/1.1 200 OK"], seen
                assert [seen[g] for g in ("home.test", "", "plain")] == [[opened, "cut"]] * 3
                assert [r.reason for r in box.gate.refused] == ["sni-mismatch", "no-sni", "not-tls"]
                result = await box.exec(["python3", "-c", code, "home.test", str(port), "home.test"])
                assert result.output.startswith(b"HTTP/1.1 403")
            finally:
                await box.destroy()

    house.run(play())
