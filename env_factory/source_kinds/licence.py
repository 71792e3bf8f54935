"""Which licence a source states, as an SPDX identifier where that can be told from metadata or from the licence's own words.

Not legal advice and no guess: what is not recognised is given as it stands written, or as nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Mapping
from email.parser import Parser
from functools import lru_cache
from pathlib import Path, PurePosixPath

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# Words of trove classifiers and of free-text fields (lower case, without "license" and "the") -> SPDX.
_NAMES = {
    "mit": "MIT", "mit x11": "MIT", "expat": "MIT", "apache software": "Apache-2.0", "apache 2.0": "Apache-2.0",
    "apache 2": "Apache-2.0", "apache-2": "Apache-2.0", "apache , version 2.0": "Apache-2.0", "apache version 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "modified bsd": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause", "bsd 3 clause": "BSD-3-Clause", "simplified bsd": "BSD-2-Clause",
    "2-clause bsd": "BSD-2-Clause", "bsd 2-clause": "BSD-2-Clause", "isc": "ISC", "isc (iscl)": "ISC",
    "python software foundation": "PSF-2.0", "psf": "PSF-2.0", "mozilla public 2.0 (mpl 2.0)": "MPL-2.0", "mpl 2.0": "MPL-2.0",
    "unlicense (unlicense)": "Unlicense", "public domain": "LicenseRef-Public-Domain", "zope public": "ZPL-2.1",
    "gnu general public v2 (gplv2)": "GPL-2.0-only", "gnu general public v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public v3 (gplv3)": "GPL-3.0-only", "gnu general public v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu lesser general public v2 (lgplv2)": "LGPL-2.0-only",
    "gnu lesser general public v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "gnu affero general public v3": "AGPL-3.0-only", "gnu affero general public v3 or later (agplv3+)": "AGPL-3.0-or-later",
    "gplv3": "GPL-3.0-only", "gplv2": "GPL-2.0-only", "lgplv3": "LGPL-3.0-only",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0",
    "cc by 4.0": "CC-BY-4.0", "cc by-sa 4.0": "CC-BY-SA-4.0",
}  # fmt: skip
# What the text of a licence says, the more particular first: all words of a line must stand in it.
_WORDS = (
    ("AGPL-3.0-only", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0-only", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1-only", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0-only", ("gnu general public license", "version 3")),
    ("GPL-2.0-only", ("gnu general public license", "version 2")),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0 international",)),
    ("CC-BY-4.0", ("attribution 4.0 international",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("BSL-1.0", ("boost software license", "version 1.0")),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy", "the above copyright notice")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose", "above copyright notice")),
    ("0BSD", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "names of its contributors may")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "this list of conditions")),
    ("Zlib", ("this software is provided 'as-is'", "altered source versions must be plainly marked")),
)
_FILE = re.compile(r"(licen[cs]e|copying|unlicense|copyright)([.-].*)?\Z", re.I)
_HEAD_BYTES = 4096


def spdx(said: str) -> str:
    """The SPDX expression of what a metadata field says; the field's first line, shortened, where it is none."""
    text = said.strip()
    if not text or text.upper() == "UNKNOWN":
        return ""
    first = text.splitlines()[0].strip()
    for form in (first, first.removesuffix(" License")):
        try:
            return str(canonicalize_license_expression(form))
        except InvalidLicenseExpression:
            continue
    plain = re.sub(r"\b(the|licen[cs]e)\b", "", first.lower().replace('"', ""))
    return _NAMES.get(re.sub(r"\s+", " ", plain).strip(" .,"), "") or of_text(text) or first[:80]


def of_metadata(metadata: bytes) -> str:
    """From a PKG-INFO or METADATA: its expression, its classifier, or its free text."""
    message = Parser().parsestr(metadata.decode("utf-8", "replace"))
    if expression := message.get("License-Expression"):
        return spdx(str(expression))
    for classifier in message.get_all("Classifier") or []:
        if classifier.startswith("License :: ") and classifier.rsplit("::", 1)[1].strip() not in ("OSI Approved", "License"):
            return spdx(str(classifier.rsplit("::", 1)[1]))
    return spdx(str(message.get("License") or ""))


def of_text(text: str) -> str:
    """From the words of a licence itself; empty when they are not known."""
    flat = re.sub(r"\s+", " ", text.lower().replace("’", "'"))
    return next((name for name, words in _WORDS if all(word in flat for word in words)), "")


def is_licence(name: str) -> bool:
    """Whether a file of that name holds a licence."""
    return bool(_FILE.match(name))


@lru_cache(maxsize=256)
def of_debian(path: Path) -> str:
    """Licence of a file that a Debian package installed, as the package's copyright file states it for most of its files."""
    package = _debian_packages().get(str(path), "")
    try:
        text = (Path("/usr/share/doc") / package / "copyright").read_text(encoding="utf-8", errors="replace") if package else ""
    except OSError:
        return ""
    stated = re.search(r"^Files:\s*\*\s*$.*?^License:\s*(\S[^\n]*)$", text, re.M | re.S) or re.search(
        r"^License:\s*(\S[^\n]*)$", text, re.M
    )
    return _of_debian_word(stated.group(1).strip()) if stated else of_text(text)


@lru_cache(maxsize=1)
def _debian_packages() -> dict[str, str]:
    """Manual page -> package that installed it."""
    owners: dict[str, str] = {}
    for listing in sorted(Path("/var/lib/dpkg/info").glob("*.list")):
        with contextlib.suppress(OSError):
            for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
                if "/share/man/" in line:
                    owners[line] = listing.name.removesuffix(".list").partition(":")[0]
    return owners


def _of_debian_word(said: str) -> str:
    """Debian's short names: GPL-3+ is GPL-3.0-or-later, Expat is MIT."""
    name = said.split(" with ")[0].strip()
    if found := re.fullmatch(r"(A|L)?GPL-?v?(\d(?:\.\d)?)(\+?)", name):
        letter, version, later = found.groups()
        return f"{letter or ''}GPL-{version if '.' in version else f'{version}.0'}-{'or-later' if later else 'only'}"
    if found := re.fullmatch(r"GFDL(-NIV)?-(\d\.\d)(\+?)", name):
        return f"GFDL-{found[2]}{'-no-invariants' if found[1] else ''}-{'or-later' if found[3] else 'only'}"
    return spdx(name)


def of_tree(files: Mapping[str, bytes]) -> str:
    """From a project's top folder: what its metadata declares, else what its licence file says; several files joined with AND."""
    if declared := _declared(files):
        return declared
    named = [path for path in sorted(files) if "/" not in path and _FILE.match(path)]
    named += [path for path in sorted(files) if path.upper().startswith(("LICENSES/", "LICENSE/")) and path.count("/") == 1]
    found = []
    for path in named:
        text = files[path].decode("utf-8", "replace")
        tag = re.search(r"SPDX-License-Identifier:\s*(\S+)", text[:_HEAD_BYTES])
        # The GNU licences name one another far below their own title.
        known = spdx(tag.group(1)) if tag else of_text(text[:_HEAD_BYTES]) or of_text(text)
        if known and known not in found:
            found.append(known)
    return " AND ".join(found)


def _declared(files: Mapping[str, bytes]) -> str:
    try:
        project = tomllib.loads(files.get("pyproject.toml", b"").decode()).get("project", {})
        given = project.get("license") if isinstance(project, dict) else None
        if isinstance(given, str) or (isinstance(given, dict) and "text" in given):
            said = spdx(given if isinstance(given, str) else str(given["text"]))
            if said:
                return said
        if isinstance(given, dict) and (text := files.get(str(PurePosixPath(str(given.get("file", "")))))):
            return of_text(text.decode("utf-8", "replace"))
        package = json.loads(files.get("package.json", b"{}"))
        if isinstance(package, dict) and isinstance(package.get("license"), str):
            return spdx(package["license"])
        crate = tomllib.loads(files.get("Cargo.toml", b"").decode()).get("package", {})
        if isinstance(crate, dict) and isinstance(crate.get("license"), str):
            return spdx(crate["license"])
    except (ValueError, RecursionError):
        pass  # Metadata that cannot be read declares nothing; the licence file may still speak.
    metadata = files.get("PKG-INFO")
    return of_metadata(metadata) if metadata else ""
