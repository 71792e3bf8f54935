"""Terminal templates about git: commits that nothing leads to, secrets in a history."""

from __future__ import annotations

import hashlib
import random
import zlib

from env_factory.templates.terminal.template import Files, Params, Template


class Repository:
    """A bare git repository being written, object by object, the same bytes everywhere."""

    def __init__(self) -> None:
        self.files: Files = {
            "HEAD": "ref: refs/heads/main\n",
            "config": "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
            "refs/heads/": "",
        }
        self.clock = 1_700_000_000

    def put(self, kind: str, body: bytes) -> str:
        """Store an object; its name."""
        data = f"{kind} {len(body)}\0".encode() + body
        name = hashlib.sha1(data).hexdigest()
        size = len(data)
        block = b"\x01" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + data
        self.files[f"objects/{name[:2]}/{name[2:]}"] = b"\x78\x01" + block + zlib.adler32(data).to_bytes(4, "big")
        return name

    def commit(self, files: dict[str, str], parent: str, subject: str, author: str = "Ann") -> str:
        """A commit of a flat folder."""
        rows = [
            b"100644 " + name.encode() + b"\0" + bytes.fromhex(self.put("blob", text.encode()))
            for name, text in sorted(files.items())
        ]
        self.clock += 3600
        who = f"{author} <{author.lower()}@example.org> {self.clock} +0000"
        head = f"tree {self.put('tree', b''.join(rows))}\n" + (f"parent {parent}\n" if parent else "")
        return self.put("commit", f"{head}author {who}\ncommitter {who}\n\n{subject}\n".encode())

    def under(self, folder: str) -> Files:
        """The repository as a data set."""
        return {f"{folder}/{name}": data for name, data in self.files.items() if name != "refs/heads/" or not self.has_branch()}

    def has_branch(self) -> bool:
        """Whether a branch was written."""
        return any(name.startswith("refs/heads/") and name != "refs/heads/" for name in self.files)


def lost_commits_data(rng: random.Random, p: Params) -> Files:
    store = Repository()
    words = p["words"]
    state = {f"{word}.txt": f"{word}\n" for word in words[:3]}
    tip = ""
    points = []
    for number in range(4 + p["level"]):
        state = state | {rng.choice(sorted(state)): f"{rng.choice(words)} {number}\n"}
        tip = store.commit(state, tip, f"{words[number]} {rng.choice(words)} {number}")
        points.append(tip)
    # Commits that a reset left behind: a chain of two, and some alone. A branch and a tag keep others.
    for number in range(1 + p["level"]):
        base = rng.choice(points[1:])
        left = store.commit(
            state | {p["file"]: f"{rng.choice(words)} {rng.randint(1, 999)}\n"}, base, f"try {number} {rng.choice(words)}"
        )
        if number == 0:
            store.commit(state | {p["file"]: f"second {rng.randint(1, 999)}\n"}, left, f"again {rng.choice(words)}")
    store.commit(state, rng.choice(points), f"nothing of {rng.choice(words)}")
    kept = store.commit(state | {p["file"]: "kept\n"}, points[0], "kept on a branch")
    tagged = store.commit(state | {p["file"]: "tagged\n"}, points[1], "kept by a tag")
    store.files |= {"refs/heads/main": f"{tip}\n", "refs/heads/side": f"{kept}\n", "packed-refs": f"{tagged} refs/tags/v1\n"}
    return store.under("project.git")


def lost_commits_answer(files: Files, p: Params) -> str:
    import zlib

    objects: dict[str, tuple[str, bytes]] = {}
    tips = []
    for path, data in files.items():
        parts = path.split("/")
        if parts[1] == "objects" and len(parts) == 4:
            kind, _, body = zlib.decompress(data if isinstance(data, bytes) else data.encode()).partition(b"\0")
            objects[parts[2] + parts[3]] = (kind.split()[0].decode(), body)
        elif parts[1] in ("refs", "packed-refs") and data:
            tips += [row.split()[0] for row in data.splitlines()]
    commits = {name: text.decode() for name, (what, text) in objects.items() if what == "commit"}
    parents = {
        name: [row[7:] for row in text.split("\n\n")[0].splitlines() if row.startswith("parent ")]
        for name, text in commits.items()
    }
    seen: set[str] = set()
    while tips:
        name = tips.pop()
        if name not in seen:
            seen.add(name)
            tips += parents.get(name, [])
    rows = []
    for name, text in commits.items():
        if name in seen:
            continue
        head, _, subject = text.partition("\n\n")
        rest = objects[head.split()[1]][1]
        said = "-"
        while rest:
            entry, _, rest = rest.partition(b"\0")
            if entry.split()[1].decode() == p["file"]:
                said = objects[rest[:20].hex()][1].decode().strip()
            rest = rest[20:]
        rows.append(f"{subject.strip()}: {said}\n")
    return "".join(sorted(rows))


LOST_COMMITS = Template(
    name="git-lost-commits",
    theme="git-recovery",
    program="lost",
    needs=("git",),
    params=lambda rng, words, level: {"words": words[: 8 + level], "file": f"{words[20]}.txt"},
    data=lost_commits_data,
    answer=lost_commits_answer,
    text="""
        In the bare git repository `/work/data/project.git` somebody has reset branches; there is no reflog. Find the commits that no
        branch and no tag leads to any more. Print one line for each, sorted as text: `SUBJECT: CONTENT`, with the content of `§file`
        in that commit without the line end, or `-` where the commit has no such file.
    """,
    shell=r"""
        #!/bin/sh
        cd "$1"/project.git || exit 1
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
        git fsck --unreachable --no-reflogs --no-progress 2> /dev/null | awk '$2 == "commit" {print $3}' | while read -r c; do
            printf '%s: %s\n' "$(git log -1 --format=%s "$c")" "$(git show "$c:§file" 2> /dev/null || echo -)"
        done | sort
    """,
    wrong={
        "dangling-alone": r"""
            #!/bin/sh
            cd "$1"/project.git || exit 1
            git fsck --dangling --no-reflogs --no-progress 2> /dev/null | awk '$1 == "dangling" && $2 == "commit" {print $3}' | while read -r c; do
                printf '%s: %s\n' "$(git log -1 --format=%s "$c")" "$(git show "$c:§file" 2> /dev/null || echo -)"
            done | sort
        """,
        "not-on-main": r"""
            #!/bin/sh
            cd "$1"/project.git || exit 1
            git cat-file --batch-all-objects --batch-check | awk '$2 == "commit" {print $1}' | while read -r c; do
                git merge-base --is-ancestor "$c" main || printf '%s: %s\n' "$(git log -1 --format=%s "$c")" "$(git show "$c:§file" 2> /dev/null || echo -)"
            done | sort
        """,
        "known-commits": r"""
            #!/bin/sh
            cd "$1"/project.git && git log --all --format=%H | while read -r c; do
                printf '%s: %s\n' "$(git log -1 --format=%s "$c")" "$(git show "$c:§file" 2> /dev/null || echo -)"; done | sort
        """,
    },
)


def secret_data(rng: random.Random, p: Params) -> Files:
    store = Repository()
    words = p["words"]
    state = {f"{word}.txt": f"{word}\n" for word in words[:4]}
    tip = ""
    spot = rng.randint(2, 3)
    back = spot + 3
    for number in range(7 + p["level"]):
        name = rng.choice(sorted(state))
        if number in (spot, back):
            state = state | {words[4] + ".conf": f"user={words[5]}\n{p['secret']}={rng.randint(1000, 9999)}\n"}
        elif number == spot + 1:
            state = {path: text for path, text in state.items() if not path.endswith(".conf")}
        else:
            state = state | {name: f"{rng.choice(words)} {number} my{p['secret']}=no\n"}
        author = rng.choice(["Ann", "Bob", "Eve"])
        subject = f"about {p['secret']}=" if number == 1 else f"{rng.choice(words)} {number}"
        tip = store.commit(state, tip, subject, author)
    store.files["refs/heads/main"] = f"{tip}\n"
    return store.under("project.git")


def secret_answer(files: Files, p: Params) -> str:
    import zlib

    def read(name: str) -> bytes:
        data = files[f"project.git/objects/{name[:2]}/{name[2:]}"]
        return zlib.decompress(data if isinstance(data, bytes) else data.encode()).partition(b"\0")[2]

    def held(tree: bytes) -> set[str]:
        out: set[str] = set()
        while tree:
            entry, _, tree = tree.partition(b"\0")
            for row in read(tree[:20].hex()).decode().splitlines():
                if row.startswith(f"{p['secret']}="):
                    out.add(f"{entry.split()[1].decode()} {row.partition('=')[2]}")
            tree = tree[20:]
        return out

    chain = [files["project.git/refs/heads/main"].strip()]
    while found := [row[7:] for row in read(chain[-1]).decode().splitlines() if row.startswith("parent ")]:
        chain.append(found[0])
    before: set[str] = set()
    rows = []
    for name in reversed(chain):
        text = read(name).decode()
        now = held(read(text.split()[1]))
        author = text.partition("\nauthor ")[2].split()[0]
        rows += [f"{author} {what} {text.partition(chr(10) * 2)[2].strip()}\n" for what in sorted(now - before)]
        before = now
    return "".join(rows)


SECRET = Template(
    name="git-leaked-secret",
    theme="git-recovery",
    program="leaks",
    needs=("git",),
    held_out=True,
    params=lambda rng, words, level: {"words": words[:12], "secret": rng.choice(["password", "token", "apikey"])},
    data=secret_data,
    answer=secret_answer,
    text="""
        In the history of the branch `main` of the bare git repository `/work/data/project.git`, secrets were committed: lines that
        begin with `§secret=`. Find every commit that brought such a line into a file that did not have the same line in the commit before
        it. Print, the oldest first, `AUTHOR FILE VALUE SUBJECT`: the author's name, the file, what stands behind the `=`, and the
        subject of the commit.
    """,
    shell=r"""
        #!/bin/sh
        cd "$1"/project.git || exit 1
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
        git log --reverse --format='@%an|%s' -p --unified=0 main | awk '
            /^@[^@]/ { split(substr($0, 2), a, "|"); next }
            /^\+\+\+ b\// { f = substr($0, 7); next }
            /^\+§secret=/ { print a[1], f, substr($0, length("+§secret=") + 1), a[2] }'
    """,
    wrong={
        "as-it-is-now": r"""
            #!/bin/sh
            cd "$1"/project.git || exit 1
            git grep '^§secret=' main | sed 's/^main:\([^:]*\):§secret=/\1 /' | while read -r f v; do echo "$(git log -1 --format=%an main) $f $v"; done
        """,
        "anywhere-in-the-line": r"""
            #!/bin/sh
            cd "$1"/project.git || exit 1
            git log --reverse --format='@%an|%s' -p --unified=0 main | awk '
                /^@[^@]/ { split(substr($0, 2), a, "|"); next } /^\+\+\+ b\// { f = substr($0, 7); next }
                /^\+.*§secret=/ { sub(/.*§secret=/, ""); print a[1], f, $0, a[2] }'
        """,
        "subjects": r"""
            #!/bin/sh
            cd "$1"/project.git || exit 1
            git log --reverse --format='%an %s' --grep='§secret' main
        """,
    },
)

TEMPLATES = (LOST_COMMITS, SECRET)
