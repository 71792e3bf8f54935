"""Terminal templates about data clean-up: contacts, line ends, tables checked against rules."""

from __future__ import annotations

import json
import random

from env_factory.templates.terminal.template import Files, Params, Template


def contacts_data(rng: random.Random, p: Params) -> Files:
    rows = []
    for number, word in enumerate(p["people"]):
        for turn in range(1 + number % 3):
            mail = f"{word}@{p['domain']}.example"
            mail = rng.choice([mail, mail.upper(), mail.title()]) if turn else mail
            pad = rng.choice(["", " ", "  "])
            phone = rng.choice(["+49 {0}-{1}", "0049 {0} {1}", "(0{0}) {1}", "0{0}/{1}"]).format(
                rng.randint(200, 999), rng.randint(10**4, 10**6)
            )
            day = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T{turn:02d}"
            rows.append(f"{pad}{mail}{pad};{phone};{day}")
        rows.append(f"not-an-address-{number};0{rng.randint(10**6, 10**7)};2025-01-01T00")
    rows += [";+49 1;2025-01-01T00", ""]
    rng.shuffle(rows)
    return {"contacts.csv": "\r\n".join(rows) + "\r\n"}


def contacts_answer(files: Files, p: Params) -> str:
    import re

    newest: dict[str, tuple[str, str]] = {}
    for line in files["contacts.csv"].splitlines():
        if line.count(";") != 2:
            continue
        mail, phone, day = (part.strip() for part in line.split(";"))
        mail = mail.lower()
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", mail):
            continue
        number = re.sub(r"[^0-9+]", "", phone)
        number = re.sub(r"^(0049|0)", "+49", number)
        if mail not in newest or day > newest[mail][0]:
            newest[mail] = (day, number)
    return "".join(f"{mail};{number}\n" for mail, (_, number) in sorted(newest.items()))


CONTACTS = Template(
    name="contacts-clean-up",
    theme="data-clean-up",
    params=lambda rng, words, level: {"people": words[: 4 + 2 * level], "domain": words[23]},
    data=contacts_data,
    answer=contacts_answer,
    text="""
        `/work/data/contacts.csv` came out of several address books: `address;phone;time`, with Windows line ends, blanks around fields
        and addresses in any case. Print each address once, in lower case, as `address;phone`, sorted by address as text, with the
        phone number of its newest entry. Phone numbers keep their digits and a leading `+` only, and a leading `0049` or `0` becomes
        `+49`. Entries whose address is not of the form `name@place` are left out.
    """,
    shell="""
        #!/bin/sh
        tr -d '\\r' < "$1"/contacts.csv | awk -F';' '
            NF == 3 {
                a = tolower($1); gsub(/^[ \\t]+|[ \\t]+$/, "", a); t = $3; gsub(/[ \\t]/, "", t)
                if (a !~ /^[^@ ]+@[^@ ]+$/) next
                n = $2; gsub(/[^0-9+]/, "", n); if (!sub(/^0049/, "+49", n)) sub(/^0/, "+49", n)
                if (!(a in at) || t > at[a]) { at[a] = t; phone[a] = n }
            }
            END { for (a in at) print a ";" phone[a] }' | sort -t';' -k1,1
    """,
    wrong={
        "case-kept": """
            #!/bin/sh
            tr -d '\\r' < "$1"/contacts.csv | awk -F';' 'NF == 3 && $1 ~ /@/ {
                a = $1; gsub(/ /, "", a); n = $2; gsub(/[^0-9+]/, "", n); if (!sub(/^0049/, "+49", n)) sub(/^0/, "+49", n)
                if (!(a in at) || $3 > at[a]) { at[a] = $3; phone[a] = n } } END { for (a in at) print a ";" phone[a] }' | sort -t';' -k1,1
        """,
        "last-line-wins": """
            #!/bin/sh
            tr -d '\\r' < "$1"/contacts.csv | awk -F';' 'NF == 3 && $1 ~ /@/ {
                a = tolower($1); gsub(/ /, "", a); n = $2; gsub(/[^0-9+]/, "", n); if (!sub(/^0049/, "+49", n)) sub(/^0/, "+49", n)
                phone[a] = n } END { for (a in phone) print a ";" phone[a] }' | sort -t';' -k1,1 | sed 1d
        """,
        "short-prefix-only": """
            #!/bin/sh
            tr -d '\\r' < "$1"/contacts.csv | awk -F';' 'NF == 3 && $1 ~ /@/ {
                a = tolower($1); gsub(/ /, "", a); n = $2; gsub(/[^0-9]/, "", n); sub(/^0/, "+49", n)
                if (!(a in at) || $3 > at[a]) { at[a] = $3; phone[a] = n } } END { for (a in at) print a ";" phone[a] }' | sort -t';' -k1,1
        """,
    },
)


def lines_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    for number, word in enumerate(p["words"][: 4 + 2 * p["level"]]):
        ending = ["txt", "md", "csv", "bin"][number % 4]
        rows = [f"{rng.choice(p['words'])}{rng.choice(['', ' ', '  ', chr(9)])}" for _ in range(rng.randint(2, 5))]
        end = rng.choice(["\n", "\r\n"])
        text = end.join(rows) + rng.choice(["", end, end * 3])
        folder = rng.choice(["", f"{p['words'][-1]}/", f"{p['words'][-2]} {p['words'][-1]}/"])
        files[f"{folder}{word}.{ending}"] = b"\0" + text.encode() if ending == "bin" else text
    return files | {
        f"{p['keep']}/a.txt": "as it came \r\n\r\n", f"b/{p['keep']}/c.txt": "also \r\n", "mixed.txt": "a \r\nb\t\n\n\nc\r\n\n", "none.txt": ""
    }  # fmt: skip


def lines_answer(files: Files, p: Params) -> Files:
    made: Files = {}
    for name, text in files.items():
        if name.endswith((".txt", ".md")) and p["keep"] not in name.split("/")[:-1] and text:
            text = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n")).rstrip("\n") + "\n"
        made[name] = text
    return made


LINES = Template(
    name="tidy-line-ends",
    theme="data-clean-up",
    program="tidy",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:20], "keep": words[22]},
    data=lines_data,
    answer=lines_answer,
    text="""
        Below `/work/data`, at any depth, the files named `*.txt` and `*.md` are to be tidied, except for those in folders called `§keep`,
        wherever they are. In a tidy file lines end in `\\n` alone, no line ends in blanks or tabs, and after the last line that is
        not empty comes exactly one line end. Empty files stay empty. All other files stay byte for byte as they are.
    """,
    shell="""
        #!/bin/bash
        cd "$1" || exit 1
        find . -name '§keep' -prune -o -type f \\( -name '*.txt' -o -name '*.md' \\) -size +0 -print0 | while IFS= read -r -d '' f; do
            text=$(sed 's/[[:space:]]*$//' "$f")
            printf '%s\\n' "$text" > "$f"
        done
    """,
    wrong={
        "blanks-kept": """
            #!/bin/bash
            cd "$1" || exit 1
            find . -name '§keep' -prune -o -type f \\( -name '*.txt' -o -name '*.md' \\) -size +0 -print0 | while IFS= read -r -d '' f; do
                text=$(tr -d '\\r' < "$f"); printf '%s\\n' "$text" > "$f"
            done
        """,
        "everywhere": """
            #!/bin/bash
            cd "$1" || exit 1
            find . -type f \\( -name '*.txt' -o -name '*.md' \\) -size +0 -print0 | while IFS= read -r -d '' f; do
                text=$(sed 's/[[:space:]]*$//' "$f"); printf '%s\\n' "$text" > "$f"
            done
        """,
        "one-more-line-end": """
            #!/bin/bash
            cd "$1" || exit 1
            find . -name '§keep' -prune -o -type f \\( -name '*.txt' -o -name '*.md' \\) -print0 | while IFS= read -r -d '' f; do
                sed -i 's/[[:space:]]*$//' "$f"
            done
        """,
    },
)


def checks_data(rng: random.Random, p: Params) -> Files:
    low = rng.randint(5, 40)
    high = low + rng.randint(10, 50)
    rules = [
        {"field": p["fields"][0], "required": True},
        {"field": p["fields"][1], "type": "integer", "min": low, "max": high},
        {"field": p["fields"][2], "required": True, "one_of": p["values"]},
        {"field": p["fields"][3], "unique": True},
    ]
    rows = ["\t".join(p["fields"])]
    codes = [f"{word}{rng.randint(1, 5)}" for word in p["values"]]
    for number in range(10 + 6 * p["level"]):
        cells = [
            rng.choice([*p["values"], ""]),
            rng.choice([str(low), str(high), str(low - 1), str(high + 1), "", f"{low}.5", f"0{low + 1}"]),
            rng.choice([*p["values"], p["values"][0].upper(), ""]),
            rng.choice([*codes, "", f"x{number}"]),
        ]
        rows.append("\t".join(cells))
    rows.append("\t".join(["", str(high + 1), "", codes[0]]))
    rows.append("\t".join(["a", str(low), p["values"][0], codes[0]]))
    return {"rules.json": json.dumps(rules, indent=1) + "\n", "table.tsv": "\n".join(rows) + "\n"}


def checks_answer(files: Files, p: Params) -> str:
    import json
    import re

    rules = json.loads(files["rules.json"])
    head, *rows = (line.split("\t") for line in files["table.tsv"].splitlines())
    wrong = []
    met: dict[str, set[str]] = {}
    for number, row in enumerate(rows, 2):
        record = dict(zip(head, row, strict=True))
        for rule in rules:
            value = record[rule["field"]]
            said = ""
            if value == "":
                said = "missing" if rule.get("required") else ""
            elif rule.get("type") == "integer" and not re.fullmatch(r"[0-9]+", value):
                said = "integer"
            elif "min" in rule and not rule["min"] <= int(value) <= rule["max"]:
                said = "range"
            elif "one_of" in rule and value not in rule["one_of"]:
                said = "value"
            elif rule.get("unique"):
                said = "repeated" if value in met.setdefault(rule["field"], set()) else ""
                met[rule["field"]].add(value)
            if said:
                wrong.append(f"{number}:{rule['field']}:{said}\n")
    return "".join(wrong)


CHECKS = Template(
    name="table-validation",
    theme="data-clean-up",
    params=lambda rng, words, level: {"fields": words[:4], "values": words[4 : 7 + level]},
    data=checks_data,
    answer=checks_answer,
    text="""
        Check `/work/data/table.tsv` (fields separated by tabs, names of the fields in line 1) against `/work/data/rules.json`, a list of
        rules. A rule names a `field` and says what holds for it: `required` (not empty), `type` integer (decimal digits only), `min` and
        `max` (both included), `one_of` (exactly one of these texts), `unique` (no earlier line has the same). An empty field breaks
        no rule but `required`. Print `LINE:FIELD:WORD` for every broken rule, in the order of lines, within a line in the order of the
        rules; WORD is `missing`, `integer`, `range`, `value` or `repeated`, for one rule the first of these that is true. LINE is
        the number of the line in the file.
    """,
    shell="""
        #!/usr/bin/python3 -I
        import json, sys
        rules = json.load(open(sys.argv[1] + "/rules.json"))
        lines = open(sys.argv[1] + "/table.tsv").read().split("\\n")[:-1]
        at = {name: i for i, name in enumerate(lines[0].split("\\t"))}
        seen = set()
        def verdict(rule, text):
            if not text:
                return "missing" if rule.get("required", False) else None
            if rule.get("type") == "integer" and not (text.isascii() and text.isdigit()):
                return "integer"
            if "min" in rule and (int(text) < rule["min"] or int(text) > rule["max"]):
                return "range"
            if text not in rule.get("one_of", [text]):
                return "value"
            if rule.get("unique") and (rule["field"], text) in seen:
                return "repeated"
            seen.add((rule["field"], text))
        for i in range(1, len(lines)):
            cells = lines[i].split("\\t")
            for rule in rules:
                if word := verdict(rule, cells[at[rule["field"]]]):
                    print(i + 1, rule["field"], word, sep=":")
    """,
    wrong={
        "lines-without-header": """
            #!/usr/bin/python3 -I
            import json, sys
            rules = json.load(open(sys.argv[1] + "/rules.json"))
            lines = [line.split("\\t") for line in open(sys.argv[1] + "/table.tsv").read().split("\\n")[:-1]]
            seen = set()
            for i, cells in enumerate(lines[1:], 1):
                for rule in rules:
                    v, word = cells[lines[0].index(rule["field"])], ""
                    if not v: word = "missing" if rule.get("required") else ""
                    elif "min" in rule: word = "integer" if not v.isdigit() else "" if rule["min"] <= int(v) <= rule["max"] else "range"
                    elif "one_of" in rule: word = "" if v in rule["one_of"] else "value"
                    elif rule.get("unique"): word = "repeated" if v in seen else ""; seen.add(v)
                    if word: print(i, rule["field"], word, sep=":")
        """,
        "bounds-left-out": """
            #!/usr/bin/python3 -I
            import json, sys
            rules = json.load(open(sys.argv[1] + "/rules.json"))
            lines = [line.split("\\t") for line in open(sys.argv[1] + "/table.tsv").read().split("\\n")[:-1]]
            seen = set()
            for i, cells in enumerate(lines[1:], 2):
                for rule in rules:
                    v, word = cells[lines[0].index(rule["field"])], ""
                    if not v: word = "missing" if rule.get("required") else ""
                    elif "min" in rule: word = "integer" if not v.isdigit() else "" if rule["min"] < int(v) < rule["max"] else "range"
                    elif "one_of" in rule: word = "" if v in rule["one_of"] else "value"
                    elif rule.get("unique"): word = "repeated" if v in seen else ""; seen.add(v)
                    if word: print(i, rule["field"], word, sep=":")
        """,
        "case-ignored": """
            #!/usr/bin/python3 -I
            import json, sys
            rules = json.load(open(sys.argv[1] + "/rules.json"))
            lines = [line.split("\\t") for line in open(sys.argv[1] + "/table.tsv").read().split("\\n")[:-1]]
            for i, cells in enumerate(lines[1:], 2):
                for rule in rules:
                    v, word = cells[lines[0].index(rule["field"])], ""
                    if not v: word = "missing" if rule.get("required") else ""
                    elif "min" in rule: word = "integer" if not v.isdigit() else "" if rule["min"] <= int(v) <= rule["max"] else "range"
                    elif "one_of" in rule: word = "" if v.lower() in rule["one_of"] else "value"
                    if word: print(i, rule["field"], word, sep=":")
        """,
    },
)

TEMPLATES = (CONTACTS, LINES, CHECKS)
