"""Terminal templates about the configuration of services: templates filled in, layers of settings, ports."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def render_data(rng: random.Random, p: Params) -> Files:
    names = [word.upper() for word in p["words"][: 3 + p["level"]]]
    values = [f"{name}={rng.choice(p['words'])} {rng.randint(1, 99)}" for name in names[:-1]]
    values.insert(1, f"{names[0]}=first & \\1 / {rng.randint(1, 99)}")
    files: Files = {"values.env": "\n".join(["# what is filled in", "", *values]) + "\n"}
    for number in range(2 + p["level"]):
        rows = [f"{word} ${{{rng.choice(names)}}} and ${{{rng.choice(names)}}}" for word in rng.sample(p["words"], 2)]
        rows.append(f"default ${{{names[-1]}:-{rng.choice(p['words'])} it}} ${{{names[0]}:-never}} ${{{names[-1]}}} ${names[0]}")
        rows.append("cost $$" + "{" + names[1] + "}")
        files[f"{p['words'][number]}.conf.tmpl"] = "\n".join(rows) + "\n"
    return files | {"kept.conf": "old ${" + names[0] + "}\n"}


def render_answer(files: Files, p: Params) -> Files:
    import re

    values = {}
    for row in files["values.env"].splitlines():
        if row and not row.startswith("#"):
            name, _, value = row.partition("=")
            values[name] = value

    def filled(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return str(values.get(found[1], found[0] if found[2] is None else found[2]))

    made: Files = {}
    for name, text in files.items():
        if name.endswith(".tmpl"):
            made[name.removesuffix(".tmpl")] = re.sub(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}", filled, text)
        else:
            made[name] = text
    return made


RENDER = Template(
    name="configuration-templates",
    theme="service-configuration",
    program="render",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:20]},
    data=render_data,
    answer=render_answer,
    text="""
        `/work/data` holds templates (`*.tmpl`) and `values.env` (`NAME=VALUE`, the last line of a name counts; comments begin with `#`).
        Each template is to be replaced by a file of the same name without `.tmpl`, in which `${NAME}` and `${NAME:-DEFAULT}` are
        the value of that name exactly as it stands in `values.env`; for a name without a value the second form is its default, and
        the first stays as it is. `$$` becomes one `$` and protects what follows; what else has a dollar sign stays. Nothing else in the
        folder changes.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import os, sys
        os.chdir(sys.argv[1])
        values = dict(l.rstrip("\n").split("=", 1) for l in open("values.env") if "=" in l and l[0] != "#")
        def fill(text):
            out = ""
            while text:
                head, dollar, text = text.partition("$")
                out += head
                if dollar and text[:1] == "$":
                    out, text = out + "$", text[1:]
                elif dollar and text[:1] == "{" and "}" in text:
                    inner, text = text[1:].split("}", 1)
                    name, has, default = inner.partition(":-")
                    out += values[name] if name in values else default if has else "${" + inner + "}"
                else:
                    out += dollar
            return out
        for name in os.listdir("."):
            if name.endswith(".tmpl"):
                with open(name[:-5], "w") as file:
                    file.write(fill(open(name).read()))
                os.unlink(name)
    """,
    wrong={
        "sed-by-value": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for t in *.tmpl; do
                cp "$t" "${t%.tmpl}"; rm "$t"
                grep -v '^#' values.env | grep = | while IFS='=' read -r n v; do sed -i "s|\${$n}|$v|g; s|\${$n:-[^}]*}|$v|g" "${t%.tmpl}"; done
                sed -i 's|\${[A-Z]*:-\([^}]*\)}|\1|g; s|\$\$|$|g' "${t%.tmpl}"
            done
        """,
        "unknown-is-empty": r"""
            #!/usr/bin/python3 -I
            import os, re, sys
            os.chdir(sys.argv[1])
            values = dict(l.rstrip("\n").split("=", 1) for l in open("values.env") if "=" in l and l[0] != "#")
            for name in os.listdir("."):
                if name.endswith(".tmpl"):
                    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: values.get(m[1], m[2] or ""), open(name).read()).replace("$$", "$")
                    open(name[:-5], "w").write(text); os.unlink(name)
        """,
        "templates-kept": r"""
            #!/usr/bin/python3 -I
            import os, re, sys
            os.chdir(sys.argv[1])
            values = dict(l.rstrip("\n").split("=", 1) for l in open("values.env") if "=" in l and l[0] != "#")
            def one(m):
                return "$" if m[0] == "$$" else values.get(m[1], m[0] if m[2] is None else m[2])
            for name in os.listdir("."):
                if name.endswith(".tmpl"):
                    open(name[:-5], "w").write(re.sub(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}", one, open(name).read()))
        """,
    },
)


def layers_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    for layer in ("10-base", "20-site", "9-late", "30-host")[: 3 + (p["level"] > 1)]:
        rows = ["; settings", f"{p['words'][0]} = {rng.randint(1, 99)}"]
        for section in rng.sample(p["sections"], 2):
            rows.append(f"[{section}]")
            for key in rng.sample(p["words"], 3):
                rows.append(f"{key}{rng.choice(['=', ' = '])}{rng.choice([str(rng.randint(1, 999)), 'a=b; c', ''])}")
            if layer != "10-base":
                rows.append(f"!{rng.choice(p['words'])}")
        files[f"{layer}.ini"] = "\n".join(rows) + "\n"
    # Certainly there: a key taken away and given back, one with an equals sign, one taken away for good.
    first, second, third = p["words"][1:4]
    section = p["sections"][0]
    files["20-site.ini"] += f"[{section}]\n{first}=x=y\n{second}=1\n!{third}\n"
    files["9-late.ini"] += f"[{section}]\n!{second}\n{third}={rng.randint(1, 99)}\n"
    return files | {"notes.txt": "[x]\ny=1\n", "backup.ini.old": "[x]\ny=1\n"}


def layers_answer(files: Files, p: Params) -> str:
    settings: dict[str, str] = {}
    for name in sorted(files):
        if not name.endswith(".ini"):
            continue
        section = ""
        for row in files[name].splitlines():
            row = row.strip()
            if row.startswith("["):
                section = row[1:-1] + "."
            elif row.startswith("!"):
                settings.pop(section + row[1:], None)
            elif "=" in row and not row.startswith(";"):
                key, _, value = row.partition("=")
                settings[section + key.strip()] = value.strip()
    return "".join(f"{key}={value}\n" for key, value in sorted(settings.items()))


LAYERS = Template(
    name="layered-settings",
    theme="service-configuration",
    program="effective",
    params=lambda rng, words, level: {"words": words[:6], "sections": words[6:9]},
    data=layers_data,
    answer=layers_answer,
    text="""
        A service reads all `*.ini` files of `/work/data`, in the order of their names as text, later ones over earlier ones. Lines are
        `[section]`, `key = value` (blanks around key and value do not belong to them; a value may be empty or hold more `=`), comments
        that begin with `;`, and `!key`, which takes away what earlier lines said about that key of the section. Print the settings
        that are in force as `section.key=value`, sorted by `section.key` as text; a key before the first section has no `section.`.
    """,
    shell=r"""
        #!/bin/sh
        for f in "$1"/*.ini; do echo "[]"; cat "$f"; done | awk '
            { gsub(/^[ \t]+|[ \t]+$/, "") }
            /^;/ || /^$/ { next }
            /^\[/ { s = substr($0, 2, length($0) - 2); if (s != "") s = s "."; next }
            /^!/ { delete v[s substr($0, 2)]; next }
            /=/ { i = index($0, "="); k = substr($0, 1, i - 1); x = substr($0, i + 1); sub(/[ \t]+$/, "", k); sub(/^[ \t]+/, "", x); v[s k] = x }
            END { for (k in v) print k "=" v[k] }' > /tmp/effective.$$
        python3 -c 'import sys; sys.stdout.writelines(sorted(sys.stdin, key=lambda l: l.split("=", 1)[0]))' < /tmp/effective.$$
        rm -f /tmp/effective.$$
    """,
    wrong={
        "numeric-order": r"""
            #!/usr/bin/python3 -I
            import os, sys
            v = {}
            for n in sorted((n for n in os.listdir(sys.argv[1]) if n.endswith(".ini")), key=lambda n: int(n.split("-")[0])):
                s = ""
                for row in map(str.strip, open(f"{sys.argv[1]}/{n}")):
                    if row[:1] == "[": s = row[1:-1] + "."
                    elif row[:1] == "!": v.pop(s + row[1:], None)
                    elif "=" in row and row[0] != ";":
                        k, x = row.split("=", 1); v[s + k.strip()] = x.strip()
            for k in sorted(v): print(f"{k}={v[k]}")
        """,
        "nothing-taken-away": r"""
            #!/usr/bin/python3 -I
            import os, sys
            v = {}
            for n in sorted(n for n in os.listdir(sys.argv[1]) if n.endswith(".ini")):
                s = ""
                for row in map(str.strip, open(f"{sys.argv[1]}/{n}")):
                    if row[:1] == "[": s = row[1:-1] + "."
                    elif "=" in row and row[0] != ";":
                        k, x = row.split("=", 1); v[s + k.strip()] = x.strip()
            for k in sorted(v): print(f"{k}={v[k]}")
        """,
        "cut-at-every-equals": r"""
            #!/usr/bin/python3 -I
            import os, sys
            v = {}
            for n in sorted(n for n in os.listdir(sys.argv[1]) if n.endswith(".ini")):
                s = ""
                for row in map(str.strip, open(f"{sys.argv[1]}/{n}")):
                    if row[:1] == "[": s = row[1:-1] + "."
                    elif row[:1] == "!": v.pop(s + row[1:], None)
                    elif "=" in row and row[0] != ";":
                        k, x = row.split("=")[:2]; v[s + k.strip()] = x.strip()
            for k in sorted(v): print(f"{k}={v[k]}")
        """,
    },
)


def ports_data(rng: random.Random, p: Params) -> Files:
    base = rng.randint(20, 80) * 100
    files: Files = {}
    for number, word in enumerate(p["words"][: 4 + 2 * p["level"]]):
        port = base + rng.choice([0, 0, 1, 2, 2, 5])
        rows = ["[service]", f"name = {word}", f"port={port}" if number % 2 else f"port = {port}"]
        if number % 3:
            rows.append(f"priority = {rng.randint(1, 3)}")
        rows += ["[client]", f"port = {base + 1}"]
        files[f"{rng.randint(10, 99)}-{word}.ini"] = "\n".join(rows) + "\n"
    return files | {"reserved.txt": f"{base + 3}\n{base + 6}\n"}


def ports_answer(files: Files, p: Params) -> str:
    import configparser

    services = []
    for name, text in files.items():
        if name.endswith(".ini"):
            read = configparser.ConfigParser()
            read.read_string(text)
            said = read["service"]
            services.append((int(said.get("priority", "5")), said["name"], int(said["port"])))
    taken = {int(row) for row in files["reserved.txt"].split()}
    given = {}
    for _, name, port in sorted(services):
        while port in taken:
            port += 1
        taken.add(port)
        given[name] = port
    return "".join(f"{name} {port}\n" for name, port in sorted(given.items()))


PORTS = Template(
    name="port-plan",
    theme="service-configuration",
    program="ports",
    params=lambda rng, words, level: {"words": words[:22]},
    data=ports_data,
    answer=ports_answer,
    text="""
        Each `*.ini` file of `/work/data` describes a service in its section `[service]`: `name`, the `port` it would like, and perhaps a
        `priority` (5 where it is missing); other sections are of no interest. Several services want the same port. Serve them by
        priority, the smallest number first, those of the same priority in the order of their names: a service gets its port if it is
        free, else the next higher one that is. The ports in `reserved.txt` are never free. Print `NAME PORT` for each service, sorted by name.
    """,
    shell=r"""
        #!/bin/sh
        for f in "$1"/*.ini; do
            sed 's/ *= */=/' "$f" | awk -F= '/^\[/ {s = $0} s == "[service]" {v[$1] = $2} END {print (("priority" in v) ? v["priority"] : 5), v["name"], v["port"]}'
        done | sort -k1,1n -k2,2 | awk '
            FILENAME != "-" { taken[$1]; next }
            { p = $3; while (p in taken) p++; taken[p]; print $2, p }' "$1"/reserved.txt - | sort
    """,
    wrong={
        "order-of-files": r"""
            #!/bin/sh
            for f in "$1"/*.ini; do
                sed 's/ *= */=/' "$f" | awk -F= '/^\[/ {s = $0} s == "[service]" {v[$1] = $2} END {print v["name"], v["port"]}'
            done | awk 'FILENAME != "-" { taken[$1]; next } { p = $2; while (p in taken) p++; taken[p]; print $1, p }' "$1"/reserved.txt - | sort
        """,
        "reserved-ignored": r"""
            #!/bin/sh
            for f in "$1"/*.ini; do
                sed 's/ *= */=/' "$f" | awk -F= '/^\[/ {s = $0} s == "[service]" {v[$1] = $2} END {print (("priority" in v) ? v["priority"] : 5), v["name"], v["port"]}'
            done | sort -k1,1n -k2,2 | awk '{ p = $3; while (p in taken) p++; taken[p]; print $2, p }' | sort
        """,
        "any-section": r"""
            #!/bin/sh
            for f in "$1"/*.ini; do
                sed 's/ *= */=/' "$f" | awk -F= '{v[$1] = $2} END {print (("priority" in v) ? v["priority"] : 5), v["name"], v["port"]}'
            done | sort -k1,1n -k2,2 | awk 'FILENAME != "-" { taken[$1]; next } { p = $3; while (p in taken) p++; taken[p]; print $2, p }' "$1"/reserved.txt - | sort
        """,
    },
)

TEMPLATES = (RENDER, LAYERS, PORTS)
