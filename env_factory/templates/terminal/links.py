"""Terminal templates about links: audited, and made of copies."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def links_data(rng: random.Random, p: Params) -> Files:
    words = p["words"]
    files: Files = {f"{words[0]}/{word}.txt": f"{word}\n" for word in words[:4]}
    files |= {
        f"{words[1]}@": f"{words[0]}/{words[2]}.txt",
        f"{words[2]} x/{words[3]}@": f"../{words[0]}/{words[1]}.txt",
        f"{words[4]}/{words[5]}@": f"{words[0]}/{words[1]}.txt",
        f"{words[5]}@": words[6],
        f"{words[6]}@": words[5],
        f"{words[7]}@": rng.choice(["/etc/passwd", "/usr", "../.."]),
        f"{words[8]}/to-folder@": f"../{words[0]}",
        f"{words[9]}@": f"{words[1]}",
    }
    for number in range(p["level"] + 1):
        files[f"{words[10]}/{number}@"] = rng.choice([f"../{words[0]}/gone {number}", f"../{words[1]}", f"{number}x"])
    return files


def links_answer(files: Files, p: Params) -> str:
    import posixpath

    links = {name[:-1]: target for name, target in files.items() if name.endswith("@")}
    there = {name for name in files if not name.endswith("@")}
    there |= {name[:i] for name in there for i, c in enumerate(name) if c == "/"}
    rows = []
    for name, target in links.items():
        place, seen, said = name, set(), "broken"
        while place in links and place not in seen:
            seen.add(place)
            place = posixpath.normpath(posixpath.join(posixpath.dirname(place), links[place]))
        if place.startswith(("/", "..")):
            said = "outside"
        elif place in there:
            continue
        rows.append(f"{name} -> {target}: {said}\n")
    return "".join(sorted(rows))


LINKS = Template(
    name="link-audit",
    theme="broken-links",
    program="links",
    params=lambda rng, words, level: {"words": words[:11]},
    data=links_data,
    answer=links_answer,
    other=r"""
        #!/usr/bin/python3 -I
        import os, sys
        root = os.path.realpath(sys.argv[1])
        rows = []
        for folder, folders, names in os.walk(root):
            for name in folders + names:
                link = os.path.join(folder, name)
                if os.path.islink(link):
                    end = os.path.realpath(link)
                    bad = "outside" if end != root and not end.startswith(root + "/") else "" if os.path.exists(link) else "broken"
                    if bad:
                        rows.append(f"{os.path.relpath(link, root)} -> {os.readlink(link)}: {bad}")
        print(*sorted(rows), sep="\n")
    """,
    text="""
        Check the symbolic links below `/work/data`, at any depth. A link is bad if what it leads to in the end lies outside that folder
        (`outside`), or otherwise does not exist, which is also true for links that lead to each other in a circle (`broken`). Print
        `PATH -> TARGET: WORD` for each bad link, sorted as text: PATH relative to the folder, TARGET as it stands in the link.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        root=$(pwd -P)
        find . -type l -print0 | while IFS= read -r -d '' f; do
            end=$(readlink -m "$f")
            case $end/ in
                "$root"/*) [ -e "$f" ] && continue; w=broken ;;
                *) w=outside ;;
            esac
            printf '%s -> %s: %s\n' "${f#./}" "$(readlink "$f")" "$w"
        done | sort
    """,
    wrong={
        "broken-alone": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -xtype l -printf '%P -> %l: broken\n' | sort
        """,
        "absolute-is-outside": r"""
            #!/bin/bash
            cd "$1" || exit 1
            { find . -xtype l ! -lname '/*' -printf '%P -> %l: broken\n'; find . -type l -lname '/*' -printf '%P -> %l: outside\n'
              find . -type l -lname '../*' -printf '%P -> %l: outside\n'; } | sort
        """,
        "seen-from-the-top": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type l | while IFS= read -r f; do
                t=$(readlink "$f"); [ -e "$t" ] || echo "${f#./} -> $t: broken"
            done | sort
        """,
    },
)


def copies_data(rng: random.Random, p: Params) -> Files:
    texts = [f"{word} {rng.randint(1, 99)}\n" for word in p["words"][:4]]
    files: Files = {}
    for number in range(8 + 3 * p["level"]):
        files[f"{rng.choice(['', 'a/', 'b/c/', 'b d/'])}{rng.choice(p['words'])}{number}.txt"] = rng.choice(
            [*texts, f"own {number}\n"]
        )
    return files | {"a/empty1": "", "b/empty2": "", "z/last": texts[0], "z/more": texts[0], "a/x y": texts[0]}


def copies_answer(files: Files, p: Params) -> Files:
    import posixpath

    first: dict[str, str] = {}
    made: Files = {}
    for name in sorted(files):
        text = files[name]
        if text and text in first:
            made[name + "@"] = posixpath.relpath(first[text], posixpath.dirname(name) or ".")
        else:
            made[name] = text
            first.setdefault(text, name)
    return made


COPIES = Template(
    name="copies-to-links",
    theme="shell-scripting",
    program="dedupe",
    watch="tree",
    held_out=True,
    params=lambda rng, words, level: {"words": words[:10]},
    data=copies_data,
    answer=copies_answer,
    text="""
        Some files below `/work/data` have the same content. Of each such group the one whose path relative to the folder comes first as
        text stays a file; the others are to be replaced by symbolic links to it, with the shortest relative target (`other` or
        `../a/other`). Empty files, and files that nothing else equals, stay as they are. Paths may hold blanks.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        export LC_ALL=C
        find . -type f -size +0 -printf '%P\n' | sort | while IFS= read -r f; do
            printf '%s %s\n' "$(sha256sum < "$f" | cut -c1-64)" "$f"
        done | awk '{k = $1; f = substr($0, 66)} !(k in a) {a[k] = f; next} {print a[k]; print f}' | while IFS= read -r a && IFS= read -r f; do
            ln -sfr "$a" "$f"
        done
    """,
    wrong={
        "absolute-targets": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f -size +0 -printf '%P\n' | LC_ALL=C sort | while IFS= read -r f; do echo "$(sha256sum < "$f" | cut -c1-64) $f"; done |
                awk '{k = $1; f = substr($0, 66)} !(k in a) {a[k] = f; next} {print a[k]; print f}' |
                while IFS= read -r a && IFS= read -r f; do ln -sf "$PWD/$a" "$f"; done
        """,
        "empty-ones-too": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f -printf '%P\n' | LC_ALL=C sort | while IFS= read -r f; do echo "$(sha256sum < "$f" | cut -c1-64) $f"; done |
                awk '{k = $1; f = substr($0, 66)} !(k in a) {a[k] = f; next} {print a[k]; print f}' |
                while IFS= read -r a && IFS= read -r f; do ln -sfr "$a" "$f"; done
        """,
        "hard-links": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f -size +0 -printf '%P\n' | LC_ALL=C sort | while IFS= read -r f; do echo "$(sha256sum < "$f" | cut -c1-64) $f"; done |
                awk '{k = $1; f = substr($0, 66)} !(k in a) {a[k] = f; next} {print a[k]; print f}' |
                while IFS= read -r a && IFS= read -r f; do ln -f "$a" "$f"; done
        """,
    },
)

TEMPLATES = (LINKS, COPIES)
