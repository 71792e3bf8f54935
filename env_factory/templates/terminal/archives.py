"""Terminal templates about archives and sums: checksum reports, incremental restores, pictures sorted."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile

from env_factory.templates.terminal.template import Files, Params, Template


def sums_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    rows = []
    for number, word in enumerate(p["words"][: 6 + 3 * p["level"]]):
        name = f"{rng.choice(['', 'a/', 'b c/'])}{word}{rng.choice(['', ' 2', ''])}.{rng.choice(['txt', 'bin'])}"
        content = f"{word} {rng.random()}\n"
        fate = number % 4 if number < 4 else rng.randint(0, 3)
        sum_ = hashlib.sha256(content.encode()).hexdigest()
        if fate < 3:
            rows.append(f"{sum_}  {name}")
        if fate == 1:
            content = content.replace("\n", " \n")
        if fate != 2:
            files[name] = content
    # A copy of a listed file under a name that is not listed: its sum is known, its name is not.
    known = next(name for name in files if any(row.endswith("  " + name) for row in rows))
    files["copy.txt"] = files[known]
    rng.shuffle(rows)
    return files | {"SHA256SUMS": "\n".join(rows) + "\n"}


def sums_answer(files: Files, p: Params) -> str:
    import hashlib

    said = []
    listed = set()
    for row in files["SHA256SUMS"].splitlines():
        sum_, _, name = row.partition("  ")
        listed.add(name)
        if name not in files:
            said.append(f"{name}: missing\n")
        else:
            data = files[name].encode() if isinstance(files[name], str) else files[name]
            said.append(f"{name}: {'ok' if hashlib.sha256(data).hexdigest() == sum_ else 'changed'}\n")
    said += [f"{name}: extra\n" for name in files if name not in listed and name != "SHA256SUMS"]
    return "".join(sorted(said))


SUMS = Template(
    name="checksum-report",
    theme="checksums",
    program="verify",
    params=lambda rng, words, level: {"words": words[:20]},
    data=sums_data,
    answer=sums_answer,
    text="""
        `/work/data/SHA256SUMS` lists the SHA-256 sums of the files below that folder, in the format of `sha256sum`. Print `PATH: WORD` for
        each path that is listed or there, sorted as text: `ok`, `changed` (the sum differs), `missing` (listed, but not there) or
        `extra` (there, but not listed under this path). The list itself is not reported. Paths may hold blanks.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        {
            while IFS= read -r row; do
                f=${row:66}
                if [ ! -f "$f" ]; then w=missing
                elif [ "$(sha256sum < "$f" | cut -c1-64)" = "${row:0:64}" ]; then w=ok
                else w=changed; fi
                printf '%s: %s\n' "$f" "$w"
            done < SHA256SUMS
            comm -13 <(cut -c67- SHA256SUMS | sort) <(find . -type f ! -path ./SHA256SUMS -printf '%P\n' | sort) | sed 's/$/: extra/'
        } | sort
    """,
    wrong={
        "without-extra": r"""
            #!/bin/bash
            cd "$1" || exit 1
            while IFS= read -r row; do
                f=${row:66}
                if [ ! -f "$f" ]; then w=missing; elif echo "$row" | sha256sum -c - > /dev/null 2>&1; then w=ok; else w=changed; fi
                echo "$f: $w"
            done < SHA256SUMS | sort
        """,
        "known-by-sum": r"""
            #!/bin/bash
            cd "$1" || exit 1
            {
                while IFS= read -r row; do
                    f=${row:66}
                    if [ ! -f "$f" ]; then w=missing; elif echo "$row" | sha256sum -c - > /dev/null 2>&1; then w=ok; else w=changed; fi
                    echo "$f: $w"
                done < SHA256SUMS
                find . -type f ! -name SHA256SUMS -print0 | while IFS= read -r -d '' f; do
                    grep -q "$(sha256sum < "$f" | cut -c1-64)" SHA256SUMS || grep -qF "  ${f#./}" SHA256SUMS || echo "${f#./}: extra"
                done
            } | sort
        """,
        "names-end-at-blanks": r"""
            #!/bin/bash
            cd "$1" || exit 1
            {
                while read -r s f _; do
                    if [ ! -f "$f" ]; then w=missing; elif [ "$(sha256sum < "$f" | cut -c1-64)" = "$s" ]; then w=ok; else w=changed; fi
                    echo "$f: $w"
                done < SHA256SUMS
                find . -type f ! -name SHA256SUMS -printf '%P\n' | while read -r f; do grep -q "  $f" SHA256SUMS || echo "$f: extra"; done
            } | sort
        """,
    },
)


def tarred(members: dict[str, str]) -> bytes:
    """A tar archive of these files, the same bytes on every machine."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(text.encode()), 1_700_000_000, 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    end = 512 * sum(1 + -(-len(text.encode()) // 512) for text in members.values())
    return out.getvalue()[: end + 1024]


def restore_data(rng: random.Random, p: Params) -> Files:
    state = {f"{word}.txt": f"{word} 0\n" for word in p["words"][:6]} | {f"sub/{p['words'][0]}": "below\n"}
    files: Files = {"backup-1-full.tar": tarred(state)}
    returned: dict[str, str] = {}
    for number in range(8, 11 + min(p["level"], 4)):
        changed = {name: f"{name} {number} {rng.randint(1, 99)}\n" for name in rng.sample(sorted(state), 2)}
        changed[f"new {number}.txt"] = f"new {rng.randint(1, 99)}\n"
        gone = rng.sample(sorted(set(state) - set(changed)), 2)
        files[f"backup-{number}-inc.gone"] = "\n".join(gone) + "\n"
        state = {name: text for name, text in (state | changed).items() if name not in gone}
        # What is gone comes back with the next archive.
        back = {gone[0]: f"{gone[0]} again {rng.randint(1, 99)}\n"}
        files[f"backup-{number}-inc.tar"] = tarred(changed | returned)
        state |= returned
        returned = back
    return files


def restore_answer(files: Files, p: Params) -> Files:
    import io
    import re
    import tarfile

    made = dict(files)
    for name in sorted((n for n in files if n.endswith(".tar")), key=lambda n: int(re.findall(r"\d+", n)[0])):
        data = files[name]
        with tarfile.open(fileobj=io.BytesIO(data if isinstance(data, bytes) else data.encode())) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    made[f"restored/{member.name}"] = content.read().decode()
        for gone in files.get(name.replace(".tar", ".gone"), "").splitlines():
            made.pop(f"restored/{gone}", None)
    return made


RESTORE = Template(
    name="incremental-restore",
    theme="archives",
    program="restore",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:12]},
    data=restore_data,
    answer=restore_answer,
    text="""
        `/work/data` holds the backups of a folder: a full one, `backup-1-full.tar`, and incremental ones, `backup-N-inc.tar`, with what had
        been added or changed since; N says in which order they were made. `backup-N-inc.gone`, where there is one, lists the paths
        that had been deleted by then, one per line. Make the folder `restored` there, with the state after the last backup. The backups
        themselves stay.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        mkdir restored
        ls backup-*.tar | sort -t- -k2,2n | while IFS= read -r t; do
            tar -xf "$t" -C restored
            [ ! -f "${t%.tar}.gone" ] || while IFS= read -r f; do rm -f "restored/$f"; done < "${t%.tar}.gone"
        done
        find restored -mindepth 1 -type d -empty -delete
    """,
    wrong={
        "nothing-deleted": r"""
            #!/bin/bash
            cd "$1" || exit 1
            mkdir restored
            for t in $(ls backup-*.tar | sort -t- -k2,2n); do tar -xf "$t" -C restored; done
        """,
        "deleted-at-the-end": r"""
            #!/bin/bash
            cd "$1" || exit 1
            mkdir restored
            for t in $(ls backup-*.tar | sort -t- -k2,2nr); do tar --skip-old-files -xf "$t" -C restored; done
            cat *.gone | head -n 1 | while IFS= read -r f; do rm -f "restored/$f"; done
        """,
        "first-backup-alone": r"""
            #!/bin/bash
            cd "$1" || exit 1
            mkdir restored; tar -xf backup-1-full.tar -C restored
        """,
    },
)


def rename_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    for number in range(5 + 3 * p["level"]):
        day = f"2024{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
        at = f"{rng.randint(0, 23):02d}{rng.randint(0, 59):02d}{rng.randint(0, 59):02d}"
        files[f"{p['prefix']}_{day}_{at}.{rng.choice(['JPG', 'jpg', 'Png'])}"] = f"picture {number}\n"
        if number % 2:
            # The same second again: a collision, in the order of the old names.
            files[f"{p['prefix']}_{day}_{at} (1).jpg"] = f"again {number}\n"
            files[f"{p['prefix']}_{day}_{at}~2.jpeg"] = f"and again {number}\n"
    return files | {
        f"{p['prefix']}_notes.txt": "none\n", f"old_{p['prefix']}_20240101_101010.jpg": "other\n", f"{p['prefix']}_2024_1.jpg": "short\n"
    }  # fmt: skip


def rename_answer(files: Files, p: Params) -> Files:
    import re

    made: Files = {}
    taken: dict[str, int] = {}
    for name in sorted(files):
        found = re.fullmatch(p["prefix"] + r"_(\d{4})(\d\d)(\d\d)_(\d{6}).*\.([A-Za-z]+)", name)
        if found is None or found[5].lower() not in ("jpg", "jpeg", "png"):
            made[name] = files[name]
            continue
        year, month, day, at, ending = found.groups()
        ending = {"jpeg": "jpg"}.get(ending.lower(), ending.lower())
        stem = f"{year}-{month}/{day}-{at}"
        taken[stem] = taken.get(stem, 0) + 1
        more = f"-{taken[stem]}" if taken[stem] > 1 else ""
        made[f"{stem}{more}.{ending}"] = files[name]
    return made


RENAME = Template(
    name="sort-pictures",
    theme="shell-scripting",
    program="arrange",
    watch="tree",
    params=lambda rng, words, level: {"prefix": rng.choice(["IMG", "PXL", "DSC"])},
    data=rename_data,
    answer=rename_answer,
    text="""
        The pictures in `/work/data` are called `§{prefix}_YYYYMMDD_HHMMSS`, then anything, then `.jpg`, `.jpeg` or `.png` in any case.
        Each is to be moved to `YYYY-MM/DD-HHMMSS.EXT` in the same folder, EXT in lower case and `jpg` for `jpeg`. Where several
        pictures have the same date and time, whatever their endings, they are taken in the order of their old names as text: the
        first gets that name, the next `DD-HHMMSS-2.EXT`, then `DD-HHMMSS-3.EXT`, and so on. All other files stay where they are.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        export LC_ALL=C
        shopt -s nocaseglob
        last='' n=1
        for f in *; do
            [[ $f =~ ^§{prefix}_([0-9]{4})([0-9]{2})([0-9]{2})_([0-9]{6}).*\.([A-Za-z]+)$ ]] || continue
            e=${BASH_REMATCH[5],,}
            case $e in jpeg) e=jpg ;; jpg | png) ;; *) continue ;; esac
            d=${BASH_REMATCH[1]}-${BASH_REMATCH[2]} s=${BASH_REMATCH[3]}-${BASH_REMATCH[4]}
            if [ "$d/$s" = "$last" ]; then n=$((n + 1)); x=-$n; else last=$d/$s n=1 x=; fi
            mkdir -p "$d"
            mv "$f" "$d/$s$x.$e"
        done
    """,
    wrong={
        "collisions-lost": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in §{prefix}_????????_??????*.*; do
                e=$(echo "${f##*.}" | tr A-Z a-z); [ "$e" = jpeg ] && e=jpg
                d=${f#*_}; mkdir -p "${d:0:4}-${d:4:2}"; mv "$f" "${d:0:4}-${d:4:2}/${d:6:2}-${d:9:6}.$e"
            done
        """,
        "case-kept": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in §{prefix}_????????_??????*.*; do
                d=${f#*_}; t="${d:0:4}-${d:4:2}/${d:6:2}-${d:9:6}"; mkdir -p "${t%/*}"; n=1; x=
                while ls "$t$x".* > /dev/null 2>&1; do n=$((n + 1)); x=-$n; done
                mv "$f" "$t$x.${f##*.}"
            done
        """,
        "counted-from-one": r"""
            #!/bin/bash
            cd "$1" || exit 1
            export LC_ALL=C
            for f in §{prefix}_????????_??????*.*; do
                e=$(echo "${f##*.}" | tr A-Z a-z); [ "$e" = jpeg ] && e=jpg
                d=${f#*_}; t="${d:0:4}-${d:4:2}/${d:6:2}-${d:9:6}"; mkdir -p "${t%/*}"; n=0; x=
                while ls "$t$x".* > /dev/null 2>&1; do n=$((n + 1)); x=-$n; done
                mv "$f" "$t$x.$e"
            done
        """,
    },
)

TEMPLATES = (SUMS, RESTORE, RENAME)
