"""Dockerfiles of ours that a stranger's engine can build, and back.

Two things of ours exist nowhere else: the base `gymsmith/host`, and the wheels that a build finds at /wheelhouse. Each such line
is replaced by a block that begins with the line itself as a comment, so that the original can be told from the exported text.
"""

from __future__ import annotations

import re

from gymsmith.errors import SourceError
from sandboxes.image.host_base import NAME

DEFAULT_BASE = "python:3.11-slim-bookworm"
_BEGIN, _END = "# gymsmith: ", "# gymsmith: end\n"
_FROM = re.compile(rf"FROM\s+{re.escape(NAME)}(\s+AS\s+\S+)?\s*\Z", re.I)
_WHEELS = re.compile(r"RUN python3 /wheelhouse/pip-[^/ ]+\.whl/pip install (?P<words>[^\n]*)\Z")
_OFFLINE = {"--no-index", "--upgrade"}
_USERS = r"""RUN for row in agent:1000 tester:1001; do name=${row%:*}; id=${row#*:}; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/passwd || echo "$name:x:$id:$id:$name:/home/$name:/bin/sh" >> /etc/passwd; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/group || echo "$name:x:$id:" >> /etc/group; \
    mkdir -p /home/$name && chown $id:$id /home/$name; done; \
    mkdir -p /work /logs/agent /logs/verifier && chown 1000:1000 /work /logs/agent && chown 1001:1001 /logs/verifier
WORKDIR /work
"""
_BLOCK = re.compile(rf"^{_BEGIN}(?P<line>[^\n]*)\n(?:(?!{_BEGIN})[^\n]*\n)*?{_END}", re.M)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,250}\Z")


def portable(dockerfile: str, base: str = DEFAULT_BASE) -> str:
    """The Dockerfile on a public base image, its wheels fetched from the index by exact version.

    Raises:
        SourceError: `base` is no name of an image, or a line reads /wheelhouse in a way that is not known.
    """
    if not _IMAGE.match(base):
        raise SourceError(f"expected the name of an image such as {DEFAULT_BASE}, got {base[:100]!r}")
    out = []
    for line in dockerfile.splitlines(keepends=True):
        plain = line.rstrip("\n")
        if named := _FROM.match(plain):
            out.append(f"{_BEGIN}{plain}\nFROM {base}{named.group(1) or ''}\nUSER root\n{_USERS}{_END}")
        elif wheels := _WHEELS.match(plain):
            # Harbor's linter takes the value of an option that it does not know for a package.
            words = re.sub(r"(--root-user-action) (?=\w)", r"\1=", re.sub(r"--find-links \S+ ?", "", wheels["words"])).split()
            kept = " ".join(word for word in words if word not in _OFFLINE)
            out.append(f"{_BEGIN}{plain}\nRUN python3 -m pip install {kept}\n{_END}")
        elif "/wheelhouse" in plain and not plain.lstrip().startswith("#"):
            raise SourceError(f"expected /wheelhouse to be used by pip install alone, got {plain[:200]!r}; it cannot be exported")
        else:
            out.append(line)
    return "".join(out)


def restored(dockerfile: str) -> str:
    """What `portable` was given; any other Dockerfile as it is."""
    return _BLOCK.sub(lambda block: f"{block['line']}\n", dockerfile)
