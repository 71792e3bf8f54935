"""`gymsmith sandbox-host ...`: this machine's sandboxes for workers elsewhere, and the certificates that both sides need."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from gymsmith.verbs.terminal import Home, settings_for

app = typer.Typer(no_args_is_help=True, help="Offer this machine's sandboxes to workers on other machines.")
Certificates = Annotated[Path | None, typer.Option(help="Folder of certificates (default: HOME/certificates).")]


@app.command("certificate")
def host_certificate(
    name: Annotated[str, typer.Argument(help="host on the machine that serves, client on those that ask; or another name.")],
    address: Annotated[
        list[str] | None, typer.Option(help="For a host: each name and IP address under which workers reach it.")
    ] = None,
    certificates: Certificates = None,
    home: Home = None,
) -> None:
    """Make a certificate, and an authority of one's own the first time.

    Copy ca.pem, NAME.pem and NAME.key to the machine that uses them; ca.key stays here.
    """
    maker: Any = importlib.import_module("sandboxes.remote.certificates")
    folder = certificates or settings_for(home).certificates_dir
    maker.make_authority(folder)
    print(maker.make_certificate(folder, name, address or []))


@app.command("serve")
def host_serve(
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT; port 0 takes a free one.")] = "0.0.0.0:8650",
    name: Annotated[str, typer.Option(help="Which certificate is this host's.")] = "host",
    certificates: Certificates = None,
    home: Home = None,
) -> None:
    """Serve until Ctrl-C. GYMSMITH_SANDBOX_TOKEN must be what the workers have."""
    settings = settings_for(home)
    host: Any = importlib.import_module("sandboxes.remote.host")
    address, port = host.listening(listen)
    asyncio.run(host.serve(settings, address, port, certificates or settings.certificates_dir, name))
