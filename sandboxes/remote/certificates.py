"""Certificates for sandbox hosts and their clients: a small authority of one's own, written by one command.

    FOLDER/ca.pem, ca.key            the authority; its key stays where certificates are made
    FOLDER/NAME.pem, NAME.key        a host (with the names and addresses it is reached by) or a client

Not for anything that faces strangers, and not a renewal service: a certificate lives VALID_DAYS, then it is made again. Needs the
`cryptography` package; a host or client that only uses the files does not.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from gymsmith.errors import ConfigError, UserError

VALID_DAYS = 825
_BACKDATE = datetime.timedelta(minutes=10)


def make_authority(folder: Path) -> None:
    """Write ca.pem and ca.key unless they are there. Raises: ConfigError (the package is missing)."""
    _, x509, hashes, serialization, ec = _packages()
    if (folder / "ca.key").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gymsmith sandbox authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    built = (
        _begun(x509, name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _private(serialization, key), 0o600)
    _write(folder / "ca.pem", built.public_bytes(serialization.Encoding.PEM), 0o644)


def make_certificate(folder: Path, name: str, addresses: Sequence[str] = ()) -> Path:
    """Write NAME.pem and NAME.key, signed by the folder's authority; the path of the former.

    addresses: names and IP addresses under which a host is reached; none makes a client's certificate.
    Raises: UserError (no authority there, or a name that cannot be a file's), ConfigError.
    """
    _, x509, hashes, serialization, ec = _packages()
    if not name or name == "ca" or any(not (c.isalnum() or c in "-_.") for c in name) or name.startswith("."):
        raise UserError(f"a certificate's name must be letters, digits, '-', '_' and '.', and not 'ca', got {name!r}")
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UserError(f"expected an authority (ca.pem, ca.key) in {folder}: {error}; make one first") from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    purpose = x509.ExtendedKeyUsageOID.SERVER_AUTH if addresses else x509.ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _begun(x509, subject, authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if addresses:
        names = [_alternative(x509, address) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(folder / f"{name}.key", _private(serialization, key), 0o600)
    _write(folder / f"{name}.pem", builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), 0o644)
    return folder / f"{name}.pem"


def _packages():  # type: ignore[no-untyped-def]
    try:
        import cryptography
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ConfigError("making certificates needs the cryptography package: pip install 'gymsmith[remote]'") from error
    return cryptography, x509, hashes, serialization, ec


def _begun(x509, subject, issuer, public_key):  # type: ignore[no-untyped-def]
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _alternative(x509, address: str):  # type: ignore[no-untyped-def]
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _private(serialization, key) -> bytes:  # type: ignore[no-untyped-def]
    form = serialization.PrivateFormat.PKCS8
    data: bytes = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return data


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
