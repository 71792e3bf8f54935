"""Documented examples: pages are read, blanks filled, commands executed; what they leave becomes environments."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.lessons import commands, example_files, example_pages
from env_factory.templates.words import draw
from gymsmith import taskdir
from gymsmith.errors import SourceError
from gymsmith.schema import Status

PAGE = """# sort

> Sort lines of text files.

- [S]ort a file in descending order:

`sort {{[-r|--reverse]}} {{path/to/file}}`

- Print lines with a word, and how often it occurs:

`grep {{[-c|--count]}} "{{search_pattern}}" {{path/to/file}} | cat`

- Copy a file under another name:

`cp {{path/to/source_file.csv}} {{path/to/target_file.csv}}`

- Say when it is:

`date +%N`
"""
JQ = """.SH "BASIC FILTERS"
.SS "Object Identifier"
The simplest \\fIuseful\\fR filter is \\fB\\.foo\\fR\\. It produces the value at the key\\.
.IP "" 4
.nf
jq \\'\\.foo\\'
   {"foo": 42}
=> 42

jq \\'\\.bar\\'
   {"bar": [1,2]}
=> [1,2]
.fi
"""
HTML = """<h2>Files</h2><p>Make a folder called <code>notes</code> for what you write:</p>
<pre class="highlight language-console"><span>$ </span>mkdir notes &amp;&amp; touch notes/a
</pre><script>$ no</script><p>Then remove it.</p><div><pre class="brush: bash">rm -r notes</pre></div><pre>plain output</pre>"""


def read(name: str, text: str) -> list[example_pages.Example]:
    rng = random.Random(1)
    return example_pages.read(name, text, rng, draw(rng, "train", 16))


def test_a_page_of_short_examples_has_its_blanks_filled() -> None:
    first, second, third, last = read("sort.md", PAGE)
    folder = first.operands[0].partition("/")[0]
    assert (first.told, first.command) == ("Sort a file in descending order", f"sort --reverse {folder}/file.txt")
    assert first.blanks == (("path/to/file", f"{folder}/file.txt"),)
    word = dict(second.blanks)["search_pattern"]
    assert second.command.startswith(f'grep --count "{word}" ') and word.isalpha()
    assert [name.rpartition("/")[2] for name in third.operands] == ["source_file.csv", "target_file.csv"]
    assert last.operands == () and not any("{{" in each.command for each in (first, second, third, last))


def test_filters_of_a_manual_bring_their_own_input() -> None:
    one, two = read("jq.1", JQ)
    assert one.command.startswith("jq -c .foo ") and list(one.files.values()) == ['{"foo": 42}\n']
    assert "simplest useful filter is .foo." in one.told and two.files != one.files


def test_web_pages_are_read_like_other_texts() -> None:
    made, gone = commands.lines("a.html", HTML)
    assert made.command == "mkdir notes && touch notes/a" and "`notes`" in made.prose and made.heading == "Files"
    assert gone.command == "rm -r notes" and gone.prose.strip() == "Then remove it."


def test_files_are_made_up_from_their_names() -> None:
    rng, words = random.Random(2), draw(random.Random(2), "train", 12)
    operands = ("a/file.txt", "a/target.csv", "b/directory", "c/x.tar.gz", "/etc/passwd", "*.txt")
    made = example_files.fixtures(rng, words, "tar", "tar", operands, targets=False)
    assert "a/file.txt" in made and "a/target.csv" not in made and not any(name.startswith(("/", "*")) for name in made)
    assert made["c/x.tar.gz"][:2] == b"\x1f\x8b" and sum(name.startswith("b/directory/") for name in made) >= 5
    assert "a/target.csv" in example_files.fixtures(rng, words, "tar", "tar", operands, targets=True)


def test_examples_become_environments_that_need_each_of_them(doorway: Any, tmp_path: Path) -> None:
    (tmp_path / "sort.md").write_text(PAGE)
    made = tasks.generate({"source": f"file:{tmp_path}", "kind": "examples", "n": 9, "seed": 5}, doorway)
    assert made["admitted"] and made["reasons"]["unstable"] == 1, made
    steps = 0
    for environment_id in made["admitted"]:
        environment = doorway.store.environment(environment_id)
        assert environment.status is Status.VERIFIED and environment.spec.kind == "examples"
        task = taskdir.read(doorway.settings.home / environment.path)
        steps += int(environment.spec.labels["steps"])
        assert "--reverse" not in task.instruction and "| path | at the end |" in task.instruction and "%N" not in task.solution
        without = [g for g in doorway.store.evidence(environment_id).gates if g.name.startswith("cheat:without-step")]
        number = int(environment.spec.labels["steps"])
        assert len(without) == (number if number > 1 else 0) and all(gate.rewards == (0.0,) for gate in without)
    assert steps == 3


def test_pages_without_effects_are_refused(doorway: Any, tmp_path: Path) -> None:
    (tmp_path / "true.md").write_text("# true\n\n- Do nothing:\n\n`true`\n")
    with pytest.raises(SourceError, match="leave something behind"):
        tasks.generate({"source": f"file:{tmp_path}", "kind": "examples", "n": 1}, doorway)


def test_a_package_brings_its_files_and_its_programs(doorway: Any, index_reachable: None) -> None:
    """The commands of a package's documentation run on the files of its sdist, with the package installed."""
    made = tasks.generate({"source": "pypi:markdown2==2.5.0", "kind": "examples", "n": 1, "gates": "controls"}, doorway)
    environment = doorway.store.environment(made["admitted"][0])
    task = taskdir.read(doorway.settings.home / environment.path)
    assert "markdown2" in task.solution and environment.source.licence and "/wheelhouse" in task.dockerfile
    again = tasks.verify({"environments": made["admitted"], "gates": "controls"}, doorway)
    assert again["statuses"] == {made["admitted"][0]: "verified"}
