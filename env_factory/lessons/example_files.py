"""The files that documented examples speak of: made up from their names, so that commands have something to work on.

Pages write `path/to/file.csv`; a reader has such a file. What is in it follows from its ending, the page (fields, numbers, sorted
lines) and the seed.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import tarfile
import zipfile
from itertools import pairwise

TARGET = re.compile(r"target|output|dest|link|new|copy|result|part_|\.bak\Z|checksum|merged|compressed", re.I)
"""Names of what a command is going to make."""
FOLDER = re.compile(r"(?:^|/)\w*(?:director|folder)\w*/?\Z|/\Z")
SORTED = frozenset({"join", "comm", "uniq", "look"})


def separator(command: str) -> str:
    """What stands between the fields of a line, as the command expects it."""
    found = re.search(r"(?:--delimiter|--field-separator|-d|-t|-F)[ =]?['\"]?([,:;|])", command)
    return (
        found.group(1)
        if found
        else "\t"
        if re.search(r"\bcut .*--fields|paste|expand", command)
        else ","
        if ".csv" in command
        else " "
    )


def lines(rng: random.Random, words: list[str], sep: str, count: int) -> list[str]:
    """Lines of a word, a number and two more fields; some occur twice, one is empty of digits."""
    made = [
        sep.join([rng.choice(words), str(rng.randint(1, 400)), rng.choice(words).title(), str(rng.randint(1, 9))])
        for _ in range(count)
    ]
    return [*made, made[0], made[0].upper(), sep.join([words[0], words[1]])]


def text(rng: random.Random, words: list[str], name: str, page: str, command: str) -> bytes:
    """Content of a file of this name."""
    sep = separator(command)
    rows = lines(rng, words, sep, rng.randint(6, 12))
    if page == "tsort":
        rows = [f"{a} {b}" for a, b in pairwise(words[:6])]
    elif page in ("numfmt", "factor", "seq", "bc"):
        rows = [str(rng.randint(1, 90_000)) for _ in range(8)]
    elif page in SORTED:
        rows = sorted(rows)
    body = "".join(f"{row}\n" for row in rows)
    ending = name.rpartition(".")[2] if "." in name else ""
    if ending == "json":
        body = json.dumps([{"name": word, "size": rng.randint(1, 99)} for word in words[:4]]) + "\n"
    elif ending == "html":
        body = "".join(f"<p>{row}</p>\n" for row in rows)
    return body.encode()


def packed(rng: random.Random, words: list[str], name: str) -> bytes | None:
    """An archive or packed file of this name; None where the name is none."""
    body = "".join(f"{row}\n" for row in lines(rng, words, " ", 6)).encode()
    members = {f"{words[0]}.txt": body, f"{words[1]}/{words[2]}.html": b"<p>x</p>\n"}
    out = io.BytesIO()
    if re.search(r"\.(tar|tgz|tar\.gz)\Z", name):
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, data in members.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mtime, entry.mode = len(data), 1_700_000_000, 0o644
                archive.addfile(entry, io.BytesIO(data))
        return gzip.compress(out.getvalue(), mtime=0) if name.endswith("gz") else out.getvalue()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive_:
            for path, data in members.items():
                archive_.writestr(zipfile.ZipInfo(path, (2024, 1, 2, 3, 4, 6)), data)
        return out.getvalue()
    if name.endswith(".gz"):
        return gzip.compress(body, mtime=0)
    return None


def fixtures(
    rng: random.Random, words: list[str], page: str, command: str, operands: tuple[str, ...], *, targets: bool
) -> dict[str, bytes]:
    """Files for the operands of one command; what it is going to make is there only with `targets`. `name/` is a folder."""
    made: dict[str, bytes] = {}
    for name in operands:
        clean = name.rstrip("/")
        if clean.startswith(("/", "..", "-", "~")) or re.search(r"[*?$'\"{}|<>;&]", clean):
            continue
        if not targets and TARGET.search(clean.rpartition("/")[2]):
            made.setdefault(f"{clean.rpartition('/')[0]}/", b"") if "/" in clean else None
        elif FOLDER.search(name):
            # Patterns of the pages find something here, and miss something.
            inside = (f"{words[0]}.txt", f"{words[1]}.html", f"lib_{words[2]}/{words[3]}.py", f"{words[4]} x.txt", "a.jpg")
            for inner in inside:
                made[f"{clean}/{inner}"] = text(rng, words, inner, page, command)
            made[f"{clean}/none.txt"] = b""
        else:
            made[clean] = packed(rng, words, clean) or text(rng, words, clean, page, command)
    folders = {name for name in made if name.endswith("/")}
    return {n: d for n, d in made.items() if n not in folders or not any(o != n and o.startswith(n) for o in made)} or {
        ".keep": b""
    }
