"""Terminal templates about permissions: set by a policy, audited."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def modes_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    for number, word in enumerate(p["words"][: 5 + 2 * p["level"]]):
        folder = p["folders"][number % 3]
        files[f"{folder}/{word}.{p['endings'][number % 2]}!{rng.choice(['600', '644', '666', '755'])}"] = f"{word}\n"
    for folder in p["folders"]:
        files[f"{folder}/!{rng.choice(['700', '755', '777'])}"] = ""
    special = f"{p['folders'][0]}/{p['words'][-1]} {rng.randint(10, 99)}.{p['endings'][1]}"
    rules = [
        f"* {rng.choice(['640', '644'])}",
        f"*.{p['endings'][0]} {rng.choice(['600', '660'])}",
        f"{p['folders'][1]}/* {rng.choice(['444', '604'])}",
        f"{special} {rng.choice(['750', '700'])}",
    ]
    files[f"{special}!644"] = "special\n"
    return files | {"policy.txt!644": "# pattern, blank, mode: the last that fits counts\n" + "\n".join(rules) + "\n"}


def modes_answer(files: Files, p: Params) -> Files:
    import fnmatch

    rules = []
    for name, text in files.items():
        if name.startswith("policy.txt!"):
            rules = [row.rpartition(" ")[::2] for row in text.splitlines() if not row.startswith("#")]
    made: Files = {}
    for name, text in files.items():
        path = name.partition("!")[0]
        if path.endswith("/"):
            made[f"{path}!{p['folder_mode']}"] = text
        else:
            made[f"{path}!{[mode for pattern, mode in rules if fnmatch.fnmatchcase(path, pattern)][-1]}"] = text
    return made


MODES = Template(
    name="permissions-by-policy",
    theme="permissions",
    program="apply",
    watch="modes",
    params=lambda rng, words, level: {
        "words": words[:16],
        "folders": words[16:19],
        "endings": ["conf", "sh"],
        "folder_mode": rng.choice(["750", "755", "711"]),
    },
    data=modes_data,
    answer=modes_answer,
    text="""
        `/work/data/policy.txt` tells which permissions the files below that folder are to have: on each line a shell pattern, one
        blank and a mode; patterns may hold blanks. A pattern is compared with the path of a file relative to the folder, and its `*`
        stands for slashes too. Where several patterns fit, the last line counts. Lines that begin with `#` are comments. The policy is
        subject to itself. Folders below it (not the folder itself) are to have mode §folder_mode.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        cp policy.txt /tmp/policy.$$
        find . -mindepth 1 -print0 | while IFS= read -r -d '' f; do
            f=${f#./} m=
            if [ -d "$f" ]; then chmod §folder_mode "$f"; continue; fi
            while IFS= read -r row; do
                case $row in '#'*) continue ;; esac
                case $f in ${row% *}) m=${row##* } ;; esac
            done < /tmp/policy.$$
            chmod "$m" "$f"
        done
        rm -f /tmp/policy.$$
    """,
    wrong={
        "first-that-fits": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type d -mindepth 1 -exec chmod §folder_mode {} +
            grep -v '^#' policy.txt | tac > /tmp/p.$$
            while IFS= read -r row; do
                find . -type f -path "./${row% *}" -exec chmod "${row##* }" {} +
            done < /tmp/p.$$
            rm -f /tmp/p.$$
        """,
        "names-alone": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -mindepth 1 -type d -exec chmod §folder_mode {} +
            grep -v '^#' policy.txt > /tmp/p.$$
            while IFS= read -r row; do
                find . -type f -name "${row% *}" -exec chmod "${row##* }" {} + 2> /dev/null
            done < /tmp/p.$$
            rm -f /tmp/p.$$
        """,
        "folders-forgotten": r"""
            #!/bin/bash
            cd "$1" || exit 1
            grep -v '^#' policy.txt > /tmp/p.$$
            while IFS= read -r row; do
                find . -type f -path "./${row% *}" -exec chmod "${row##* }" {} +
            done < /tmp/p.$$
            rm -f /tmp/p.$$
        """,
    },
)


def audit_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    kinds = [
        ("#!/bin/sh\n", "644"),
        ("#!/bin/sh\n", "755"),
        ("text\n", "755"),
        ("text\n", "666"),
        ("text\n", "644"),
        ("#!x\n", "777"),
    ]
    kinds += rng.choices(kinds, k=3 * p["level"])
    kinds += [(" #!/bin/sh\n", "644"), ("", "755")]
    for number, (text, mode) in enumerate(kinds):
        folder = rng.choice(["", f"{p['words'][0]}/", f"{p['words'][1]} b/"])
        files[f"{folder}{rng.choice(p['words'])}{number}!{mode}"] = text
    return files


def audit_answer(files: Files, p: Params) -> str:
    rows = []
    for name, data in files.items():
        path, _, mode = name.partition("!")
        if path.endswith("/"):
            continue
        script = data[:2] == "#!"
        runs = int(mode, 8) & 0o111 != 0
        if int(mode, 8) & 0o002:
            rows.append(f"{path}: open\n")
        if script and not runs:
            rows.append(f"{path}: not-executable\n")
        if runs and not script:
            rows.append(f"{path}: not-a-script\n")
    return "".join(sorted(rows))


AUDIT = Template(
    name="permission-audit",
    theme="permissions",
    program="audit",
    params=lambda rng, words, level: {"words": words[:12]},
    data=audit_data,
    answer=audit_answer,
    other=r"""
        #!/usr/bin/python3 -I
        import os, stat, sys
        rows = []
        for folder, _, names in os.walk(sys.argv[1]):
            for name in names:
                path = os.path.join(folder, name)
                mode = stat.S_IMODE(os.stat(path).st_mode)
                script = open(path, "rb").read(2) == b"#!"
                said = [(mode & 2, "open"), (script and not mode & 0o111, "not-executable"), (mode & 0o111 and not script, "not-a-script")]
                rows += [f"{os.path.relpath(path, sys.argv[1])}: {word}" for bad, word in said if bad]
        print("\n".join(sorted(rows)))
    """,
    text="""
        Audit the regular files below `/work/data`, at any depth. Print `PATH: WORD` for each fault, PATH relative to the folder, sorted
        as text: `open` for a file that others may write to, `not-executable` for one that begins with `#!` and that nobody may execute,
        `not-a-script` for one that somebody may execute though it does not begin with `#!`. A file may have several faults.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        {
            find . -type f -perm -002 -printf '%P: open\n'
            find . -type f -perm /111 -print0 | while IFS= read -r -d '' f; do
                s=
                IFS= read -r -n 2 s < "$f"
                [ "$s" = '#!' ] || printf '%s: not-a-script\n' "${f#./}"
            done
            find . -type f ! -perm /111 -print0 | while IFS= read -r -d '' f; do
                s=
                IFS= read -r -n 2 s < "$f"
                [ "$s" != '#!' ] || printf '%s: not-executable\n' "${f#./}"
            done
        } | sort
    """,
    wrong={
        "names-without-blanks": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in $(find . -type f); do
                f=${f#./}; [ -f "$f" ] || continue
                case $(stat -c %a "$f") in *[2367]) echo "$f: open" ;; esac
                if [ -x "$f" ]; then head -n 1 "$f" | grep -q '^#!' || echo "$f: not-a-script"
                else head -n 1 "$f" | grep -q '^#!' && echo "$f: not-executable"; fi
            done | sort
        """,
        "anywhere-in-the-line": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f -print0 | while IFS= read -r -d '' f; do
                n=${f#./}
                [ -n "$(find "$f" -perm -002)" ] && echo "$n: open"
                if [ -n "$(find "$f" -perm /111)" ]; then grep -q '#!' "$f" || echo "$n: not-a-script"
                else grep -q '#!' "$f" && echo "$n: not-executable"; fi
            done | sort
        """,
        "one-fault-each": r"""
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f -print0 | while IFS= read -r -d '' f; do
                n=${f#./}
                if [ -n "$(find "$f" -perm /111)" ]; then grep -q '^#!' "$f" || echo "$n: not-a-script"
                elif grep -q '^#!' "$f"; then echo "$n: not-executable"
                elif [ -n "$(find "$f" -perm -002)" ]; then echo "$n: open"; fi
            done | sort
        """,
    },
)

TEMPLATES = (MODES, AUDIT)
