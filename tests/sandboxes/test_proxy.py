"""What the proxy decides by: names in TLS greetings, addresses, host patterns. The rest is tested from inside sandboxes."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxes.network import NetworkPolicy, Refused
from sandboxes.proxy import ProxyService, is_public, server_name


def greeting(name: str | None) -> bytes:
    """The first record that OpenSSL sends to a server of that name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def with_extension(record: bytes, kind: int, value: bytes) -> bytes:
    """The same greeting with one more extension."""
    body = record[5:]
    at = 4 + 2 + 32
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    extensions = body[at + 2 :] + struct.pack(">HH", kind, len(value)) + value
    rest = body[4:at] + struct.pack(">H", len(extensions)) + extensions
    hello = b"\x01" + len(rest).to_bytes(3, "big") + rest
    return record[:3] + struct.pack(">H", len(hello)) + hello


def reason_of(record: bytes) -> str:
    with pytest.raises(Refused) as refused:
        server_name(record)
    return refused.value.refusal.reason


def test_the_name_in_a_greeting_is_read_or_refused() -> None:
    real = greeting("good.test")
    assert server_name(real) == server_name(with_extension(real, 0x1234, b"x")) == "good.test"
    assert reason_of(greeting(None)) == "no-sni"
    assert reason_of(with_extension(real, 0xFE0D, b"\0" * 8)) == "hidden-name"
    second = b"evil.test"
    value = struct.pack(">HBH", len(second) + 3, 0, len(second)) + second
    assert reason_of(with_extension(real, 0, value)) == "not-tls", "of two names a server may take the other one"
    assert reason_of(real[:3] + b"\0\x40" + real[5:69]) == "not-tls", "a greeting in pieces cannot be judged"
    assert reason_of(b"\x16\x03\x01\0\x05\x02\0\0\x01\0") == "not-tls"


REAL = greeting("a.test")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_break_the_reader(noise: bytes, cut: int) -> None:
    for record in (noise, b"\x16\x03\x01" + struct.pack(">H", len(noise)) + noise, REAL[:cut] + noise):
        with contextlib.suppress(Refused):
            assert server_name(record)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.31.255.255", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:169.254.169.254", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::101:101", True),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2001:db8::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("authority", "said"),
    [
        ("a.test:443", ("a.test", 443)),
        ("A.TEST.:443", ("a.test", 443)),
        ("x.b.test:8443", ("x.b.test", 8443)),
        ("b.test:8443", "not-listed"),
        ("x.b.test:443", "port"),
        ("xb.test:8443", "not-listed"),
        ("a.test.evil.test:443", "not-listed"),
        ("a.test:22", "port"),
        ("a.test:443:443", "ip-literal"),
        ("1.1.1.1:443", "ip-literal"),
        ("0x1010101:443", "ip-literal"),
        ("16843009:443", "ip-literal"),
        ("1.1:443", "ip-literal"),
        ("[2606:4700::1111]:443", "ip-literal"),
        ("a b.b.test:8443", "bad-request"),
        ("../x.b.test:8443", "bad-request"),
        ("a.test:", "bad-request"),
        (":443", "bad-request"),
        ("a.test:4\u0664", "bad-request"),
    ],
)
def test_targets(authority: str, said: object) -> None:
    service = ProxyService(NetworkPolicy("proxy", hosts=("a.test", "*.b.test:8443")))
    try:
        assert service._target(authority, 443) == said
    except Refused as refused:
        assert refused.refusal.reason == said
