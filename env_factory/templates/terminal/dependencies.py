"""Terminal templates about dependencies: a lock resolved, wheels installed without a network."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile

from env_factory.templates.terminal.template import Files, Params, Template


def resolve_data(rng: random.Random, p: Params) -> Files:
    names = p["words"][: 4 + min(p["level"], 3)]
    rows = []
    for place, name in enumerate(names):
        for version in ("1.2", "1.10", "2.0", "2.1")[: rng.randint(2, 4)]:
            needs = []
            for other in names[place + 1 : place + 3]:
                if rng.random() < 0.6:
                    needs.append(f"{other}{rng.choice(['>=1.2', '<2.0', '>=1.10', '==1.10'])}")
            rows.append(f"{name} {version} {','.join(needs) or '-'}")
    # The newest first package wants what the second wanted one cannot live with.
    first, second, third = names[:3]
    rows = [row for row in rows if not row.startswith((f"{first} 2.2", f"{second} 3.0"))]
    rows += [f"{first} 2.2 {third}>=1.10", f"{second} 3.0 {third}<1.10", f"{second} 0.9 {third}>=1.2"]
    rng.shuffle(rows)
    return {"index.txt": "\n".join(rows) + "\n", "wanted.txt": f"{first}>=2.0\n{second}\n"}


def resolve_answer(files: Files, p: Params) -> str:
    import re

    def number(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")))

    offers: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for row in files["index.txt"].splitlines():
        name, version, needs = row.split()
        offers.setdefault(name, {})[number(version)] = [] if needs == "-" else needs.split(",")

    def fits(have: tuple[int, ...], need: str) -> bool:
        found = re.fullmatch(r"\w+?(?:(>=|<|==)([\d.]+))?", need)
        if found is None or found[1] is None:
            return True
        want = number(found[2])
        return {">=": have >= want, "<": have < want, "==": have == want}[found[1]]

    good: list[dict[str, tuple[int, ...]]] = []

    def every(chosen: dict[str, tuple[int, ...]], needs: list[str]) -> None:
        waiting = []
        for need in needs:
            name = re.split(r"[<>=]", need)[0]
            if name not in chosen:
                waiting.append(name)
            elif not fits(chosen[name], need):
                return
        if not waiting:
            good.append(chosen)
            return
        for version, more in offers.get(waiting[0], {}).items():
            every(chosen | {waiting[0]: version}, needs + more)

    every({}, files["wanted.txt"].split())
    if not good:
        return "impossible\n"
    lock = max(good, key=lambda chosen: [chosen.get(name, ()) for name in sorted(offers)])
    return "".join(f"{name}=={'.'.join(map(str, version))}\n" for name, version in sorted(lock.items()))


RESOLVE = Template(
    name="dependency-lock",
    theme="dependencies",
    program="lock",
    params=lambda rng, words, level: {"words": words[:8]},
    data=resolve_data,
    answer=resolve_answer,
    text="""
        `/work/data/index.txt` offers packages: on each line a name, a version, and what this version needs, separated by commas (`-` for
        nothing). `wanted.txt` has one wish per line. A need or wish is a name, perhaps with `>=`, `<` or `==` and a version; versions
        are compared number by number, so 1.10 is newer than 1.2. Choose versions such that every wish and every need of a chosen version
        is fulfilled, one version per package, and nothing is chosen that nobody needs. Of all such choices take the best: go through all
        names of the index in alphabetical order; the first name at which two choices differ decides, for the newer version (a package
        that is chosen is better than one that is not). Print `NAME==VERSION` sorted by name, or `impossible`.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import itertools, sys
        def cut(need):
            for sign in (">=", "==", "<"):
                if sign in need:
                    name, version = need.split(sign)
                    return name, sign, [int(x) for x in version.split(".")]
            return need, "", []
        offers = {}
        for line in open(sys.argv[1] + "/index.txt"):
            name, version, needs = line.split()
            offers.setdefault(name, []).append(([int(x) for x in version.split(".")], [cut(n) for n in needs.split(",") if n != "-"]))
        wishes = [cut(w) for w in open(sys.argv[1] + "/wanted.txt").read().split()]
        names = sorted(offers)
        for name in names:
            offers[name].sort(key=lambda offer: offer[0], reverse=True)
        def good(choice):
            todo, used = list(wishes), set()
            while todo:
                name, sign, version = todo.pop()
                have = choice.get(name)
                if have is None or not {"": True, ">=": have[0] >= version, "==": have[0] == version, "<": have[0] < version}[sign]:
                    return False
                if name not in used:
                    used.add(name)
                    todo += have[1]
            return used == set(choice)
        for picked in itertools.product(*([*offers[name], None] for name in names)):
            choice = {name: offer for name, offer in zip(names, picked) if offer}
            if good(choice):
                for name in sorted(choice):
                    print(name + "==" + ".".join(map(str, choice[name][0])))
                break
        else:
            print("impossible")
    """,
    wrong={
        "newest-of-all": r"""
            #!/bin/sh
            sort -k1,1 -k2,2Vr "$1"/index.txt | awk '!($1 in s) {s[$1]; print $1 "==" $2}'
        """,
        "greedy": r"""
            #!/usr/bin/python3 -I
            import re, sys
            v = lambda t: [int(x) for x in t.split(".")]
            offers = {}
            for line in open(sys.argv[1] + "/index.txt"):
                n, w, needs = line.split(); offers.setdefault(n, []).append((v(w), needs.split(",") if needs != "-" else []))
            todo, lock = open(sys.argv[1] + "/wanted.txt").read().split(), {}
            while todo:
                n, s, w = re.fullmatch(r"(\w+?)(?:(>=|<|==)([\d.]+))?", todo.pop(0)).groups()
                if n not in lock:
                    ok = [o for o in offers[n] if not s or {">=": o[0] >= v(w), "<": o[0] < v(w), "==": o[0] == v(w)}[s]]
                    lock[n], needs = max(ok); todo += needs
            for n in sorted(lock): print(n + "==" + ".".join(map(str, lock[n])))
        """,
        "versions-as-text": r"""
            #!/bin/sh
            sort -k1,1 -k2,2r "$1"/index.txt | awk '!($1 in s) {s[$1]; print $1 "==" $2}' | head -n 3
        """,
    },
)


def wheel(name: str, version: str, code: str) -> bytes:
    """A wheel of one module, the same bytes everywhere."""
    info = f"{name}-{version}.dist-info"
    members = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in members.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return out.getvalue()


def install_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    lock = ["# locked"]
    for number, name in enumerate(p["words"][: 3 + p["level"]]):
        for version in ("1.2", "1.10"):
            data = wheel(name, version, f"ANSWER = {rng.randint(1, 999)}\nVERSION = '{version}'\n")
            files[f"wheels/{name}-{version}-py3-none-any.whl"] = data
            if version == ("1.2", "1.10")[number % 2]:
                said = hashlib.sha256(data if number != 2 else data + b"x").hexdigest()
                lock.append(f"{name.title() if number == 1 else name}=={version} --hash=sha256:{said}")
    return files | {"requirements.lock": "\n".join(lock) + "\n", "site/": ""}


def install_answer(files: Files, p: Params) -> Files:
    import hashlib
    import io
    import re
    import zipfile

    made = {name: data for name, data in files.items() if name != "site/"}
    refused = []
    for name, version, said in re.findall(r"^([\w.-]+)==(\S+) --hash=sha256:(\w+)", files["requirements.lock"], re.M):
        data = files[f"wheels/{name.lower()}-{version}-py3-none-any.whl"]
        data = data if isinstance(data, bytes) else data.encode()
        if hashlib.sha256(data).hexdigest() != said:
            refused.append(f"{name.lower()}\n")
            continue
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                made[f"site/{member}"] = archive.read(member).decode()
    return made | {"refused.txt": "".join(sorted(refused))}


INSTALL = Template(
    name="offline-install",
    theme="dependencies",
    program="install",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:12]},
    data=install_data,
    answer=install_answer,
    text="""
        There is no network here. `/work/data/wheels` holds wheels (zip archives) of pure Python packages, several versions of each;
        `/work/data/requirements.lock` says which versions are wanted and which SHA-256 sum each of their wheels must have; names in it
        are the same in upper and lower case. Unpack exactly the wanted wheels into the folder `site`, so that its modules can
        be imported from there. A wheel with another sum is not unpacked; its name goes to `refused.txt`, in lower case, one per line and
        sorted; without any that file is empty. Nothing is compiled, and all else stays as it is.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        grep -v '^#' requirements.lock | while read -r pin hash; do
            n=$(printf %s "${pin%%==*}" | tr 'A-Z' 'a-z')
            w=wheels/$n-${pin##*==}-py3-none-any.whl
            if [ "$(sha256sum "$w" | cut -d' ' -f1)" = "${hash##*:}" ]; then
                python3 -m zipfile -e "$w" site
            else
                echo "$n"
            fi
        done | sort > refused.txt
    """,
    wrong={
        "sums-not-checked": r"""
            #!/bin/bash
            cd "$1" || exit 1
            grep -v '^#' requirements.lock | while read -r pin hash; do
                n=$(printf %s "${pin%%==*}" | tr 'A-Z' 'a-z'); python3 -m zipfile -e "wheels/$n-${pin##*==}-py3-none-any.whl" site
            done
            : > refused.txt
        """,
        "everything": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for w in wheels/*.whl; do python3 -m zipfile -e "$w" site; done
            : > refused.txt
        """,
        "modules-alone": r"""
            #!/bin/bash
            cd "$1" || exit 1
            grep -v '^#' requirements.lock | while read -r pin hash; do
                n=$(printf %s "${pin%%==*}" | tr 'A-Z' 'a-z'); w=wheels/$n-${pin##*==}-py3-none-any.whl
                if [ "$(sha256sum "$w" | cut -d' ' -f1)" = "${hash##*:}" ]; then python3 -m zipfile -e "$w" site; rm -r site/*.dist-info; else echo "$n"; fi
            done | sort > refused.txt
        """,
    },
)

TEMPLATES = (RESOLVE, INSTALL)
