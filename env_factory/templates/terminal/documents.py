"""Terminal templates about documents: nested JSON compared, encodings unified, words counted."""

from __future__ import annotations

import json
import random

from env_factory.templates.terminal.template import Files, Params, Template


def changed_data(rng: random.Random, p: Params) -> Files:
    def value() -> object:
        return rng.choice([rng.randint(0, 99), rng.choice(p["words"]), True, None, [rng.randint(0, 9) for _ in range(3)]])

    old = {name: {key: value() for key in rng.sample(p["keys"], 3)} for name in p["words"][: 3 + p["level"]]}
    new = json.loads(json.dumps(old))
    first, second, *rest = list(new)
    del new[first][next(iter(new[first]))]
    new[second]["added"] = {"deep": value()}
    for name in rest:
        new[name][rng.choice(list(new[name]))] = f"{rng.choice(p['words'])} now"
    # One and the same number, once as text: a change that is easily overlooked.
    old["number"], new["number"] = {"n": 7}, {"n": "7"}
    shuffled = dict(sorted(new.items(), key=lambda _: rng.random()))
    return {"old.json": json.dumps(old, indent=2) + "\n", "new.json": json.dumps(shuffled) + "\n"}


def changed_answer(files: Files, p: Params) -> str:
    import json

    def flat(value: object, path: str) -> dict[str, str]:
        if isinstance(value, dict) and value:
            return {k: v for name, inner in value.items() for k, v in flat(inner, f"{path}.{name}" if path else name).items()}
        return {path: json.dumps(value)}

    old, new = (flat(json.loads(files[name]), "") for name in ("old.json", "new.json"))
    rows = []
    for path in sorted({*old, *new}):
        if path not in new:
            rows.append(f"- {path} {old[path]}\n")
        elif path not in old:
            rows.append(f"+ {path} {new[path]}\n")
        elif old[path] != new[path]:
            rows.append(f"~ {path} {old[path]} {new[path]}\n")
    return "".join(rows)


CHANGED = Template(
    name="configuration-difference",
    theme="joins",
    params=lambda rng, words, level: {"words": words[:10], "keys": words[10:18]},
    data=changed_data,
    answer=changed_answer,
    held_out=True,
    text="""
        `/work/data/old.json` and `/work/data/new.json` hold nested JSON objects. Name every value by the keys that lead to it, joined by
        dots; a list is one value, and so is an empty object. Print, sorted by that name as text, `- NAME OLD` for values that are gone,
        `+ NAME NEW` for those that came, `~ NAME OLD NEW` for those that differ, each value as JSON on one line with `, ` between
        the elements of a list. The order of keys does not matter; the number 7 and the text "7" differ.
    """,
    shell="""
        #!/usr/bin/python3 -I
        import json, sys
        def walk(file):
            out, todo = {}, [((), json.load(open(f"{sys.argv[1]}/{file}.json")))]
            while todo:
                keys, value = todo.pop()
                if type(value) is dict and len(value):
                    todo += [((*keys, k), v) for k, v in value.items()]
                else:
                    out[".".join(keys)] = json.dumps(value)
            return out
        a, b = walk("old"), walk("new")
        lines = [("-", k, a[k]) for k in a.keys() - b.keys()] + [("+", k, b[k]) for k in b.keys() - a.keys()]
        lines += [("~", k, a[k], b[k]) for k in a.keys() & b.keys() if a[k] != b[k]]
        for line in sorted(lines, key=lambda line: line[1]):
            print(*line)
    """,
    wrong={
        "top-level-only": """
            #!/usr/bin/python3 -I
            import json, sys
            a, b = (json.load(open(f"{sys.argv[1]}/{n}.json")) for n in ("old", "new"))
            for k in sorted({*a, *b}):
                if a.get(k) != b.get(k): print("~", k, json.dumps(a.get(k)), json.dumps(b.get(k)))
        """,
        "as-text": """
            #!/usr/bin/python3 -I
            import json, sys
            def flat(v, at=""):
                return {k: w for n, i in v.items() for k, w in flat(i, f"{at}.{n}" if at else n).items()} if isinstance(v, dict) and v else {at: str(v)}
            a, b = (flat(json.load(open(f"{sys.argv[1]}/{n}.json"))) for n in ("old", "new"))
            for k in sorted({*a, *b}):
                if k not in b: print("-", k, a[k])
                elif k not in a: print("+", k, b[k])
                elif a[k] != b[k]: print("~", k, a[k], b[k])
        """,
        "new-ones-only": """
            #!/usr/bin/python3 -I
            import json, sys
            def flat(v, at=""):
                return {k: w for n, i in v.items() for k, w in flat(i, f"{at}.{n}" if at else n).items()} if isinstance(v, dict) and v else {at: json.dumps(v)}
            a, b = (flat(json.load(open(f"{sys.argv[1]}/{n}.json"))) for n in ("old", "new"))
            for k in sorted(b):
                if k not in a: print("+", k, b[k])
                elif a[k] != b[k]: print("~", k, a[k], b[k])
        """,
    },
)


ENCODINGS = {"utf-8": "utf-8", "utf-8-bom": "utf-8-sig", "latin-1": "latin-1", "utf-16": "utf-16", "windows-1252": "cp1252"}


def encodings_data(rng: random.Random, p: Params) -> Files:
    kinds = [*ENCODINGS, *rng.choices(list(ENCODINGS), k=p["level"])]
    files: Files = {}
    rows = []
    for number, kind in enumerate(kinds):
        name = f"{p['words'][number]}/{p['words'][number + 1]} {number}.txt"
        line = f"{rng.choice(p['words'])} für {rng.choice(p['words'])} à {rng.randint(1, 99)}"
        if kind in ("windows-1252", "utf-8"):
            line += " €"
        text = rng.choice(["\n", "\r\n"]).join([line, rng.choice(p["words"]), "é" * rng.randint(1, 4), ""])
        data = b"\xff\xfe" + text.encode("utf-16-le") if kind == "utf-16" else text.encode(ENCODINGS[kind])
        files[name] = data.decode() if kind.startswith("utf-8") else data
        rows.append(f"{kind}\t{name}\n")
    rng.shuffle(rows)
    return files | {"manifest.tsv": "".join(rows), "unlisted.bin": b"\x00\xff\r\n"}


def encodings_answer(files: Files, p: Params) -> Files:
    names = {"utf-8-bom": "utf-8-sig", "windows-1252": "cp1252"}
    made = dict(files)
    for row in files["manifest.tsv"].splitlines():
        kind, name = row.split("\t")
        data = files[name].encode() if isinstance(files[name], str) else files[name]
        made[name] = data.decode(names.get(kind, kind)).replace("\r\n", "\n")
    return made


ENCODED = Template(
    name="encodings-to-utf-8",
    theme="text-encodings",
    program="convert",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:20]},
    data=encodings_data,
    answer=encodings_answer,
    text="""
        The text files below `/work/data` come from many machines. `manifest.tsv` there tells the encoding of each: encoding, a tab, path
        relative to that folder. Every listed file is to be UTF-8 without a byte order mark, with `\\n` alone as line end and
        otherwise the same text, under the same name. The manifest, and what it does not list, stays byte for byte as it is.
    """,
    shell="""
        #!/bin/bash
        cd "$1" || exit 1
        while IFS="$(printf '\\t')" read -r kind name; do
            case $kind in
                utf-8-bom) tail -c +4 "$name" ;;
                latin-1) iconv -f ISO-8859-1 -t UTF-8 "$name" ;;
                windows-1252) iconv -f CP1252 -t UTF-8 "$name" ;;
                utf-16) iconv -f UTF-16 -t UTF-8 "$name" ;;
                *) cat "$name" ;;
            esac | sed 's/\\r$//' > .new
            cat .new > "$name"
        done < manifest.tsv
        rm -f .new
    """,
    wrong={
        "all-latin-1": """
            #!/bin/bash
            cd "$1" || exit 1
            while IFS="$(printf '\\t')" read -r kind name; do
                iconv -f ISO-8859-1 -t UTF-8 "$name" | sed 's/\\r$//' > .new; cat .new > "$name"
            done < manifest.tsv
            rm -f .new
        """,
        "latin-1-for-windows": """
            #!/usr/bin/python3 -I
            import os, sys
            os.chdir(sys.argv[1])
            for row in open("manifest.tsv"):
                kind, name = row.rstrip("\\n").split("\\t")
                kind = {"utf-8-bom": "utf-8-sig", "windows-1252": "latin-1"}.get(kind, kind)
                text = open(name, "rb").read().decode(kind).replace("\\r\\n", "\\n")
                open(name, "wb").write(text.encode())
        """,
        "mark-and-line-ends-kept": """
            #!/usr/bin/python3 -I
            import os, sys
            os.chdir(sys.argv[1])
            for row in open("manifest.tsv"):
                kind, name = row.rstrip("\\n").split("\\t")
                kind = {"utf-8-bom": "utf-8", "windows-1252": "cp1252"}.get(kind, kind)
                text = open(name, "rb").read().decode(kind)
                open(name, "wb").write(text.encode())
        """,
    },
)


def words_data(rng: random.Random, p: Params) -> Files:
    files: Files = {"stop.txt": "\n".join(p["stop"]) + "\n"}
    for number in range(2 + p["level"]):
        picked = []
        for rank, word in enumerate(rng.sample(p["words"], len(p["words"]))):
            picked += [rng.choice([word, word.title(), word.upper()]) for _ in range(1 + rank // 2)]
        picked += [rng.choice([word, word.upper()]) for word in p["stop"] for _ in range(9)]
        rng.shuffle(picked)
        text = ""
        for word in picked:
            text += word + rng.choice([" ", " ", ", ", ". ", "\n", "-", f" {rng.randint(1, 99)} ", "'s "])
        files[f"chapter {number}.txt"] = text + "\n"
    return files


def words_answer(files: Files, p: Params) -> str:
    import re

    stop = set(files["stop.txt"].split())
    count: dict[str, int] = {}
    for name, text in files.items():
        if name.startswith("chapter"):
            for word in re.findall(r"[a-z]+", text.lower()):
                if len(word) > 1 and word not in stop:
                    count[word] = count.get(word, 0) + 1
    best = sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))[: p["top"]]
    return "".join(f"{word} {n}\n" for word, n in best)


WORDS = Template(
    name="frequent-words",
    theme="shell-scripting",
    params=lambda rng, words, level: {"words": words[: 8 + level], "stop": words[18:20], "top": 5 + level},
    data=words_data,
    answer=words_answer,
    held_out=True,
    text="""
        Count the words of the files `chapter *.txt` in `/work/data`. A word is a longest run of the letters a to z, upper and lower
        case alike; words of one letter, and those listed in `stop.txt`, are not counted. Print the §top most frequent words as
        `word COUNT` in lower case, the most frequent first, equally frequent ones in alphabetical order.
    """,
    shell=r"""
        #!/bin/sh
        cat "$1"/chapter*.txt | tr 'A-Z' 'a-z' | tr -cs 'a-z' '\n' | grep '..' | grep -vxFf "$1"/stop.txt | sort | uniq -c |
            sort -k1,1nr -k2,2 | head -n §top | awk '{print $2, $1}'
    """,
    wrong={
        "case-counts": r"""
            #!/bin/sh
            cat "$1"/chapter*.txt | tr -cs 'A-Za-z' '\n' | grep '..' | grep -vxFf "$1"/stop.txt | sort | uniq -c |
                sort -k1,1nr -k2,2 | head -n §top | awk '{print $2, $1}'
        """,
        "stop-words-counted": r"""
            #!/bin/sh
            cat "$1"/chapter*.txt | tr 'A-Z' 'a-z' | tr -cs 'a-z' '\n' | grep '..' | sort | uniq -c | sort -k1,1nr -k2,2 |
                head -n §top | awk '{print $2, $1}'
        """,
        "split-at-blanks": r"""
            #!/bin/sh
            cat "$1"/chapter*.txt | tr 'A-Z' 'a-z' | tr -s ' \n' '\n' | tr -d '.,' | grep '..' | grep -vxFf "$1"/stop.txt | sort |
                uniq -c | sort -k1,1nr -k2,2 | head -n §top | awk '{print $2, $1}'
        """,
    },
)

TEMPLATES = (CHANGED, ENCODED, WORDS)
