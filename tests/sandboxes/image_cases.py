"""Dockerfiles that two builders must agree about; see test_image_parity.py."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field

BASE = "gymsmith/parity:base"
USERS = (
    "RUN echo app:x:1234:2345:app:/home/app:/bin/sh >> /etc/passwd; echo app:x:2345: >> /etc/group; "
    "mkdir -m 750 /home/app; chown app:app /home/app"
)


@dataclass(frozen=True)
class Case:
    text: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    """Context members; a name that ends with '/' is a directory, a value that begins with '-> ' a link."""
    modes: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    docker: str = ""
    """What the engine is given instead, where its builder is too old for `text`."""
    has: tuple[str, ...] = ()
    """Paths that the result must have, so that a case cannot agree by both doing nothing."""
    lacks: tuple[str, ...] = ()


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind in (("in", tarfile.DIRTYPE), ("in/file", tarfile.REGTYPE), ("in/link", tarfile.SYMTYPE)):
            item = tarfile.TarInfo(name)
            item.type, item.mode, item.uid, item.gid = kind, 0o750, 7, 8
            item.linkname = "file" if kind == tarfile.SYMTYPE else ""
            item.size = 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(item, io.BytesIO(b"five\n"))
    return buffer.getvalue()


CASES: dict[str, Case] = {
    "stages": Case(
        f"""ARG BASE={BASE}
FROM ${{BASE}} AS build
RUN mkdir -p /out/sub /out/empty && echo one > /out/sub/one && ln -s sub/one /out/link && chown -R 5:6 /out/sub && \\
    chmod 4755 /out/sub/one
FROM {BASE} as Second
COPY --from=build /out/sub/one /two/
RUN cat /two/one > /two/copy
FROM {BASE}
COPY --from=0 /out /srv/out
COPY --from=build --chown=9:9 /out/link /opt/followed
COPY --from=second /two /opt/two/
COPY --from=build /out/s* /opt/globbed/
COPY --from={BASE} /etc/passwd /opt/of-image
""",
        has=("/srv/out/sub/one", "/srv/out/empty", "/opt/two/copy", "/opt/of-image", "/opt/globbed/one"),
        lacks=("/two",),
    ),
    "variables": Case(
        f"""ARG EARLY=early
ARG LATE=late
FROM {BASE}
ARG EARLY
ARG LATE=own
ARG GIVEN=default
ARG UNSET
ENV A=1 B="two words" C=three\\ words D='$A' E="\\$A \\\\ x"
ENV F="$A-${{B}}-${{NOPE}}-${{NOPE:-fall back}}"-${{A:+there}}-${{NOPE:+gone}} G=${{A}}x$A
ENV old style  with   spaces $A
ENV A=changed H=$A
RUN echo "$EARLY/$LATE/$GIVEN/$A/$B/$C/$D/$E/$F/$G/$H/$old/${{UNSET-unset}}" > /said; env | grep -c GIVEN >> /said
WORKDIR /srv/$GIVEN
COPY $EARLY.txt ${{A}}/
LABEL by="$GIVEN" "two words"=x
USER ${{NOPE:-root}}
""",
        files={"early.txt": "early"},
        arguments={"GIVEN": "given"},
        has=("/said", "/srv/given/changed/early.txt"),
    ),
    "ownership": Case(
        f"""FROM {BASE}
{USERS}
COPY --chown=app:staff one.sh /opt/bin/tool
COPY --chown=app dir /home/app/dir
COPY --chown=77 dir/a.md dir/sub/../b.txt /numbers/
COPY --chown=1:2 dir/*.md /globs/
COPY dir /plain
COPY one.sh dir/a.md /already/
COPY ["with space", "/opt/with space"]
ADD dir/sub /added
COPY . /whole
""",
        files={
            "one.sh": "#!/bin/sh\n",
            "dir/a.md": "a",
            "dir/b.txt": "b",
            "dir/sub/c.md": "c",
            "dir/none/": "",
            "with space": "s",
        },
        modes={"one.sh": 0o750, "dir/a.md": 0o600, "dir/sub": 0o700, "dir/none": 0o711},
        has=("/opt/bin/tool", "/home/app/dir/none", "/globs/a.md", "/opt/with space", "/added/c.md", "/whole/dir/sub/c.md"),
    ),
    "links": Case(
        f"""FROM {BASE}
RUN mkdir -p /real/deep && ln -s /real /opt/absolute && ln -s ../real/deep /opt/relative && ln -s /etc/passwd /opt/file
COPY tree /tree
COPY named /opt/named
COPY todir /opt/todir/
COPY tree/f /opt/absolute/f
COPY tree/f /opt/relative/
COPY tree /opt/absolute/tree/
WORKDIR /opt/absolute/made
RUN pwd > where
""",
        files={
            "tree/f": "content",
            "tree/in": "-> f",
            "tree/out": "-> /etc/passwd",
            "tree/dangling": "-> nowhere",
            "tree/up": "-> ../../..",
            "named": "-> tree/f",
            "todir": "-> tree",
        },
        has=("/tree/out", "/opt/named", "/opt/todir/f", "/real/f", "/real/deep/f", "/real/tree/f", "/real/made/where"),
    ),
    "deletions": Case(
        f"""FROM {BASE}
RUN mkdir -p /d/keep /d/gone /d/again /d/tofile && echo 1 > /d/keep/a; echo 2 > /d/keep/b; echo 3 > /d/gone/c; \\
    echo 4 > /d/again/old; ln -s a /d/l; echo 5 > /d/todir
RUN rm /d/keep/b && rm -r /d/gone && rm -r /d/again && mkdir /d/again && echo new > /d/again/new
RUN rm -r /d/tofile && echo file > /d/tofile && rm /d/todir && mkdir /d/todir && rm /d/l && echo plain > /d/l && rm /bin/wc
COPY f /d/gone/c
RUN mv /d/keep /d/moved && chmod 700 /d/moved
""",
        files={"f": "back"},
        has=("/d/again/new", "/d/moved/a", "/d/gone/c", "/d/tofile"),
        lacks=("/d/keep", "/d/keep/b", "/d/again/old", "/d/moved/b", "/usr/bin/wc"),
    ),
    "workdir": Case(
        f"""FROM {BASE}
ENV TOP=/a
WORKDIR $TOP/b
WORKDIR c/../d
RUN pwd > here
{USERS}
USER app
WORKDIR e
USER root
WORKDIR /opt
COPY f .
COPY f ./g/
""",
        files={"f": "f"},
        has=("/a/b/d/here", "/a/b/d/e", "/opt/f", "/opt/g/f"),
    ),
    "shell": Case(
        f"""FROM {BASE}
SHELL ["/bin/sh", "-ec"]
RUN echo one > /one; \\
    # a comment between
    echo two > /two && \\

    echo "three  spaces" > /three
RUN ["/bin/sh", "-c", "echo $0 exec > /exec"]
RUN ["touch", "/a b", "/$HOME"]
SHELL ["/bin/sh", "-uc"]
RUN echo ${{HOME}} > /home-of-root; echo 'quoted $HOME' >> /home-of-root
CMD echo by the shell
""",
        has=("/three", "/exec", "/a b", "/$HOME"),
    ),
    "user": Case(
        f"""FROM {BASE}
{USERS}
USER app
RUN id -u > /tmp/id; id -g >> /tmp/id; echo $HOME > /home/app/home; umask 077; mkdir /home/app/private
USER 4321
RUN id -u > /tmp/number; id -g >> /tmp/number
USER app:staff
RUN id -g > /tmp/group
""",
        has=("/tmp/id", "/tmp/number", "/home/app/private"),
    ),
    "ignored": Case(
        f"FROM {BASE}\nCOPY . /all/\n",
        files={
            ".dockerignore": "# not this\n*.log\n!keep.log\nsecret\n**/cache\ndocs/*\n!docs/README.md\n"
            "/lead\ntrail/\n?x\nDockerfile\n",
            "a.log": "1",
            "keep.log": "2",
            "sub/b.log": "3",
            "secret/key": "4",
            "sub/secret": "5",
            "cache/x": "6",
            "sub/deep/cache/y": "7",
            "docs/README.md": "8",
            "docs/b": "9",
            "docs/more/c": "10",
            "lead": "11",
            "trail/t": "12",
            "ax": "13",
            "abx": "14",
            "plain": "15",
            "empty/": "",
        },
        has=("/all/keep.log", "/all/sub/b.log", "/all/sub/secret", "/all/docs/README.md", "/all/abx"),
        lacks=("/all/a.log", "/all/secret", "/all/docs/b", "/all/docs/more/c", "/all/cache", "/all/sub/deep/cache"),
    ),
    "bits": Case(
        f"""FROM {BASE}
RUN mkdir -m 1777 /sticky && mkdir -m 2775 /group && touch /s /g /t && chmod 4755 /s && chmod 2755 /g && chmod 0000 /t
RUN echo linked > /h1 && ln /h1 /h2 && ln /h1 /sticky/h3 && mkfifo -m 620 /pipe && chown 12:34 /pipe /h1
RUN echo more >> /h2 && chown -h 3:4 /bin/true; ln -s x /owned; chown -h 3:4 /owned; chmod 711 /opt
""",
        has=("/s", "/sticky/h3", "/pipe", "/owned"),
    ),
    "archive": Case(
        f"FROM {BASE}\nADD in.tgz /opt/un/\nADD in.tgz plain.txt /opt/both/\nCOPY in.tgz /opt/as-is.tgz\nADD in.tgz /new\n",
        files={"in.tgz": archive(), "plain.txt": "p"},
        has=("/opt/un/in/file", "/opt/both/in/link", "/opt/both/plain.txt", "/opt/as-is.tgz", "/new/in/file"),
    ),
    "configuration": Case(
        f"""FROM {BASE} AS parent
ENTRYPOINT ["/bin/old"]
CMD ["of", "the", "parent"]
LABEL keep=me drop=this
EXPOSE 1
FROM parent
ENTRYPOINT exec /bin/new "$A"
HEALTHCHECK --interval=1m30s --timeout=500ms --retries=2 CMD ["test", "-e", "/tmp/ok"]
LABEL drop=that multi="a b" \\
      line=2
EXPOSE 80 53/udp 7000-7002/tcp
VOLUME ["/data", "/more"]
VOLUME /third /fourth
STOPSIGNAL SIGINT
MAINTAINER somebody
WORKDIR /x/
USER 12:34
""",
        has=("/x",),
    ),
    "scratch": Case(
        f"FROM {BASE} AS b\nRUN mkdir -p /r/etc && echo hi > /r/hi\n"
        "FROM scratch\nCOPY --from=b / /\nCOPY --from=b /r/ /\nENV X=1\n",
        has=("/hi", "/etc/passwd", "/usr/bin/find"),
    ),
    "documents": Case(
        f"""FROM {BASE}
ENV NAME=you
RUN <<EOF
echo first > /first
echo "$NAME \\$NAME" >> /first

EOF
RUN cat > /second <<-'END' && cat <<A >> /second
	tabbed $NAME
	END
$NAME
A
COPY <<one <<"two" /docs/
to $NAME ${{NOPE:-nobody}}
one
to $NAME
two
""",
        docker=f"""FROM {BASE}
ENV NAME=you
RUN echo first > /first; echo "$NAME \\$NAME" >> /first
RUN echo 'tabbed $NAME' > /second; echo "$NAME" >> /second
RUN mkdir /docs; echo to $NAME nobody > /docs/one; echo 'to $NAME' > /docs/two
""",
        has=("/first", "/second", "/docs/one"),
    ),
}
