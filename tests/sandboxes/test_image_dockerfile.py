"""What a Dockerfile may say: lines, words, variables, and what is refused before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymsmith.errors import BuildError, GymsmithError, PolicyRefused
from sandboxes.image import dockerfile, dockerfile_words
from sandboxes.image.build_policy import BuildPolicy
from tests.sandboxes.image_shop import Shop

HOST = "FROM gymsmith/host\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# syntax=evil/frontend\nFROM gymsmith/host\n", "line 1.*syntax.*remove the line"),
        ("# escape=`\nFROM gymsmith/host\n", "escape"),
        (HOST + "RUN --mount=type=secret,id=x cat /run/secrets/x\n", "line 2: RUN --mount is refused: secrets"),
        (HOST + "RUN --mount=type=ssh git clone x\n", "ssh agents"),
        (HOST + "RUN --security=insecure id\n", "line 2: RUN --security is refused: .*remove the flag"),
        (HOST + "RUN --network=host id\n", "--network"),
        ("FROM --platform=linux/s390x gymsmith/host\n", "--platform=linux/s390x"),
        (HOST + "ADD https://example.org/x /x\n", "line 2: ADD of a URL.*there are none.*allow its host"),
        (HOST + "ADD git@example.org:x.git /x\n", "URL"),
        (HOST + "ADD --keep-git-dir=true x /x\n", "--keep-git-dir is refused: its flags here are"),
        (HOST + "COPY --from=other /x /x\n", "line 2: COPY --from 'other' is not on this machine"),
        (HOST + "COPY --parents x /x\n", "--parents"),
        ("FROM gymsmith/host AS\n", "takes IMAGE or IMAGE AS NAME"),
        ("FROM gymsmith/host AS one\nFROM one AS one\n", "line 2: FROM AS 'one' is the name of an earlier stage"),
        ("FROM gymsmith/host AS 1st\n", "needs a name"),
        (HOST + "ONBUILD RUN id\n", "line 2: ONBUILD is not supported; supported are FROM"),
        (HOST + "HEALTHCHECK true\n", "must be CMD ... or NONE"),
        (HOST + "HEALTHCHECK --interval=soon CMD true\n", "--interval takes a time"),
        (HOST + "SHELL /bin/sh\n", "needs the form"),
        (HOST + "EXPOSE http\n", "needs PORT"),
        (HOST + "RUN <<EOF\nid\n", "no line 'EOF' that ends it"),
        (HOST + "RUN <<EOF\n#!/usr/bin/python3\nEOF\n", "name the interpreter"),
        (HOST + "RUN\n", "argument"),
        (HOST + "RUN []\n", "needs a program"),
        (HOST + "EXTRA\n", "EXTRA"),
        (HOST + "RUN a && \\", "instruction"),
        (HOST + "ENV A=${B:?c}\n", r"line 2: expected \$NAME, .*escape it"),
        (HOST + "ENV A='open\n", "closing single quote"),
        (HOST + "ENV A\n", "expected NAME=VALUE"),
        ("RUN id\nFROM gymsmith/host\n", "line 1: RUN stands before FROM"),
        ("", "at least one FROM"),
        ("FROM debian:bookworm\n", "line 1: FROM 'debian:bookworm' is not on this machine and nothing is downloaded"),
        ("FROM ../../etc\n", "not on this machine"),
        ("FROM $NOTHING\n", "which is empty here"),
        (HOST + "COPY ../secret /x\n", "leaves the build context"),
        (HOST + "COPY a.txt/../../secret /x\n", "leaves the build context"),
        (HOST + "COPY a.txt\n", "needs SOURCE"),
        (HOST + "COPY --chmod=u+s a.txt /x\n", "octal"),
        (HOST + "USER 70000\n", "65536"),
        (HOST + "ADD --checksum=sha256:00 a.txt /x\n", "goes with a URL"),
        ("FROM gymsmith/host\0\n", "NUL"),
        ("FROM gymsmith/host\n" + "#" * (2 << 20), "at most 1048576 characters"),
        (HOST + "ENV A=" + "${A:-" * 5000 + "}" * 5000 + "\n", "at most 20 variables within one another"),
        (HOST + "RUN <<E\nE\n" * 300, "at most 200 here-documents"),
        (HOST + "SHELL " + "[" * 100_000 + "\n", "needs the form"),
        (HOST + "COPY a.txt /\ud800\n", "UTF-8"),
    ],
)
def test_refused_with_line_and_next_move(shop: Shop, text: str, words: str) -> None:
    with pytest.raises(PolicyRefused, match=words):
        shop.build(text, {"a.txt": b"x"})
    assert not list((shop.images.root).glob("tmp/*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("WORKDIR /" + "w" * 300, "line 2: WORKDIR /www.*File name too long"),
        ("WORKDIR /" + "w/" * 3000, "200 levels deep"),
        ("COPY a.txt /opt/" + "w" * 300, "line 2: COPY a.txt .*File name too long"),
        ("COPY a.txt /etc/passwd/x", "a directory is needed"),
        ("COPY d /etc/passwd", "a directory is needed|has a file"),
        ("COPY --from=0 x /opt/", "COPY --from '0' is not on this machine"),
    ],
)
def test_impossible_places_are_the_steps_fault(shop: Shop, text: str, words: str) -> None:
    with pytest.raises((BuildError, PolicyRefused), match=words):
        shop.build(HOST + text + "\n", {"a.txt": b"x", "d/f": b"y"})
    assert not list((shop.images.root).glob("tmp/*"))


def test_a_build_argument_that_is_not_declared_is_refused(shop: Shop) -> None:
    with pytest.raises(PolicyRefused, match="'VERSON' is not declared by the Dockerfile, which has VERSION"):
        shop.build("ARG VERSION=1\n" + HOST, policy=BuildPolicy(arguments={"VERSON": "2"}))
    with pytest.raises(PolicyRefused, match=r"target must be a stage.*it has one"):
        shop.build("FROM gymsmith/host AS one\n", policy=BuildPolicy(target="two"))
    with pytest.raises(PolicyRefused, match="build network must be one of none, mirrors, host, got 'all'"):
        BuildPolicy(network="all")  # type: ignore[arg-type]


def test_only_the_stages_that_the_target_needs_are_built(shop: Shop) -> None:
    text = HOST.replace("host", "host AS a") + "RUN echo a > /opt/a\n" + "FROM gymsmith/host AS broken\nRUN exit 3\nFROM a\n"
    assert shop.say(shop.build(text), "cat /opt/a") == "a\n"
    with pytest.raises(BuildError, match="line 4: RUN exit 3"):
        shop.build(text, policy=BuildPolicy(target="broken"))
    assert shop.say(shop.build(text, policy=BuildPolicy(target="0")), "cat /opt/a") == "a\n"


def test_parse_keeps_lines_flags_and_documents() -> None:
    text = "FROM a\n\nrun b \\\n\n  c\nCOPY --chown=x --chmod=7 d e\n"
    text += "RUN cat <<A <<-'B' # no comment\n# in A\nFROM x\nA\n\tin B\n\tB\nUSER u\n"
    (stage,) = dockerfile.parse(text).stages
    assert [(s.name, s.line, dict(s.flags)) for s in stage.steps] == [
        ("RUN", 3, {}), ("COPY", 6, {"chown": "x", "chmod": "7"}), ("RUN", 7, {}), ("USER", 13, {}),
    ]  # fmt: skip
    assert [(d.name, d.text, d.expands) for d in stage.steps[2].documents] == [
        ("A", "# in A\nFROM x\n", True),
        ("B", "in B\n", False),
    ]
    assert not dockerfile.parse('FROM a\nRUN x=$((1<<2)); cat <<<word; echo "<<EOF"\n').stages[0].steps[0].documents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A-${A}-$AB-${NO}", "a-a--"),
        ("'$A' \"$A\" \\$A", "$A a $A"),
        ('"\\$A \\\\ \\x"', "$A \\ \\x"),
        ("${NO:-$A} ${A:-x} ${EMPTY:-x} ${EMPTY-x} ${NO-x} ${A:+y} ${NO:+y} ${EMPTY:+y} ${EMPTY+y}", "a a x  x y   y"),
        ("${NO:-${A:+deep}}", "deep"),
        ("a\\ b $ $1", "a b $ "),
    ],
)
def test_words_are_expanded_as_docker_does(text: str, expected: str) -> None:
    assert dockerfile_words.expand(text, {"A": "a", "EMPTY": ""}, 1) == expected


@given(st.text(alphabet="FROMUNrunadCOPY <>EOF-=$\\{}'\"\n\t#:.[]/", max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        for stage in dockerfile.parse("FROM a\n" + text).stages:
            for step in stage.steps:
                dockerfile_words.expand(step.value, {}, step.line)
    except GymsmithError as error:
        assert str(error)
