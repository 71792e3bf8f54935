"""What of a terminal or repair task goes into a sandbox: the image's Dockerfile, programs as scripts, and the tests.

`reference` of a template becomes a program here: its own source with the functions of `box.py` that it needs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from env_factory.posix_tests import HARBOR
from env_factory.templates.terminal import box
from env_factory.templates.terminal.template import Files, Params, Template, Watch
from sandboxes import observations
from sandboxes.observations import Observation


def context(files: Files, folder: str) -> dict[str, bytes]:
    """The regular files of a data set as members of a draft, in `folder` of what the image has in /work."""
    return {
        f"environment/work/{folder}/{path.partition('!')[0]}": content.encode() if isinstance(content, str) else content
        for path, content in files.items()
        if is_file(path)
    }


def tests(asked: Sequence[Observation]) -> dict[str, bytes]:
    """The folder tests: what the host asks, and what other harnesses run."""
    return {observations.MEMBER: observations.member(asked, (), ()), "tests/test.sh": TEST, "tests/check.py": CHECK}


def dockerfile(files: Files, needs: tuple[str, ...], root: str = "/work/data") -> str:
    """The image: the data set below `root`, and what a build context cannot hold of it (links, modes, empty folders)."""
    rows = ["FROM gymsmith/host", "WORKDIR /work"]
    if needs:
        rows.append(f"RUN command -v {' '.join(needs)}")
    rows.append(
        "COPY --chown=agent:agent work/ /work/" if any(map(is_file, files)) else "RUN mkdir -p /work && chown agent:agent /work"
    )
    special: list[str] = []
    for name, content in files.items():
        path, _, mode = name.partition("!")
        place = shlex.quote(f"{root}/{path.rstrip('@/')}")
        if path.endswith("@"):
            above = shlex.quote(f"{root}/{path}".rpartition("/")[0])
            special += [f"mkdir -p {above}", f"ln -s {shlex.quote(content)} {place}"]
        elif path.endswith("/"):
            special.append(f"mkdir -p {place}")
        if mode:
            special.append(f"chmod {mode} {place}")
    if special:
        rows += ["USER agent", f"RUN {' && '.join(special)}"]
    return "\n".join(rows) + "\n"


def is_file(name: str) -> bool:
    """Whether this name of a data set is a regular file's."""
    return not name.partition("!")[0].endswith(("@", "/"))


def writes(path: str, program: str) -> str:
    """A script that puts a program where it belongs."""
    return f"#!/bin/sh\ncat > {path} <<'END_OF_PROGRAM'\n{program}END_OF_PROGRAM\nchmod 755 {path}\n"


def digest(files: Files) -> str:
    """What `box.digest` says of a folder that holds exactly this data set."""
    plain: Files = {}
    for name, content in files.items():
        try:
            plain[name.partition("!")[0]] = content.decode() if isinstance(content, bytes) else content
        except UnicodeDecodeError:
            plain[name.partition("!")[0]] = content
    return hashlib.sha256(repr(sorted(plain.items())).encode()).hexdigest()


@lru_cache(maxsize=1)
def box_text() -> str:
    """`box.py` as a statement of an observation."""
    return inspect.getsource(box)


def python_program(template: Template, params: Params) -> str:
    """The reference as a program of its own."""
    body = textwrap.dedent(inspect.getsource(template.answer))
    name = template.answer.__name__
    end = f"answer = {name}(tree(sys.argv[1], {template.watch == 'modes'}), json.loads({json.dumps(params)!r}))\n"
    if template.watch == "stdout":
        end += "sys.stdout.write(answer)\n"
    else:
        end += "for name in os.listdir(sys.argv[1]):\n    place = os.path.join(sys.argv[1], name)\n"
        end += "    shutil.rmtree(place) if os.path.isdir(place) and not os.path.islink(place) else os.unlink(place)\n"
        end += "lay(sys.argv[1], answer)\n"
    head = "#!/usr/bin/python3 -I\nfrom __future__ import annotations\nimport json\nimport os\nimport shutil\nimport sys\n"
    return f"{head}{''.join(inspect.getsource(f) for f in (box.lay, box.tree))}\n{body}\n{end}"


def by_heart(shown: Any, watch: Watch) -> str:
    """A program that gives the answer for the visible data, whatever it is asked."""
    if watch == "stdout":
        return f"#!/usr/bin/python3 -I\nprint({shown!r}, end='')\n"
    head = "#!/usr/bin/python3 -I\nfrom __future__ import annotations\nimport os\nimport shutil\nimport sys\n"
    clear = "shutil.rmtree(sys.argv[1], ignore_errors=True)\nos.makedirs(sys.argv[1], exist_ok=True)\n"
    return f"{head}{inspect.getsource(box.lay)}\n{clear}lay(sys.argv[1], {shown!r})\n"


TEST = f"""#!/bin/sh
# The host has the observations and judges them itself. Where a harness copies the whole folder here, they are judged by check.py.
if [ -f /tests/observations.json ]; then python3 -I /tests/check.py || bad=1; fi
{HARBOR}
""".encode()
CHECK = b'''"""For harnesses that run the tests inside the sandbox: evaluates the observations and compares."""

import ast
import json
import sys

bad = 0
with open("/tests/observations.json") as file:
    rows = json.load(file)["observations"]
for row in rows:
    names = {}
    try:
        for statement in row["setup"]:
            exec(statement, names)
        good = eval(row["expression"], names) == ast.literal_eval(row["expected"])
    except Exception:
        good = False
    print("PASS" if good else "FAIL", row["id"])
    bad += not good
sys.exit(bad != 0)
'''
