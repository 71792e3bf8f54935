"""Snapshots and forks: the same files, nothing shared afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import NotFound, PolicyRefused

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
needs = pytest.mark.needs
pytestmark = pytest.mark.needs("fork")


async def end(*boxes: Any) -> None:
    await asyncio.gather(*(box.destroy() for box in boxes))


@broken_by("shared fork")
def test_a_fork_is_independent_both_ways(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("echo before > file; echo gone > drop")
        [fork] = await box.fork()
        await box.exec("echo parent > file; echo parent > new")
        await fork.exec("echo child >> file; rm drop; mkdir made")
        assert (await box.exec("cat file drop; ls")).output == b"parent\ngone\ndrop\nfile\nnew\n"
        assert (await fork.exec("cat file; ls")).output == b"before\nchild\nfile\nmade\n"
        assert fork.id != box.id and fork.spec == box.spec
        await end(fork)
        assert (await box.exec("cat file")).output == b"parent\n"

    house.play(scene)


@broken_by("empty fork")
def test_a_fork_has_every_kind_of_file(house: Place) -> None:
    async def scene(box: Any) -> None:
        made = await box.exec(
            "echo x > file; chmod 741 file; ln file hard; ln -s file link; ln -s /not/there dangling; mkdir -m 1751 folder; "
            "touch -d '2001-02-03 04:05:06' file; touch 'odd  name' .hidden; mkdir -p deep/er/still; "
            "head -c 100000 /dev/zero > big; truncate -s 50M sparse"
        )
        assert made.ok, made.output
        look = (
            "LC_ALL=C ls -A; stat -c '%n %f %h %Y' file hard folder big; stat -c '%n %s' sparse; readlink link dangling; "
            "cksum < big; find deep"
        )
        [fork] = await box.fork()
        ours, theirs = await box.exec(look), await fork.exec(look)
        assert ours.output == theirs.output and ours.ok
        if house.provider.name != "docker":  # an engine's images have no holes
            assert (await fork.exec("test $(du -k sparse | cut -f1) -lt 1000")).ok
        await end(fork)

    house.play(scene)


@broken_by("empty fork")
def test_a_large_tree_is_forked_whole(house: Place) -> None:
    """So large that it is copied by several processes: each entry once, with files of several names far apart."""

    async def scene(box: Any) -> None:
        made = await box.exec(
            "for d in a a/b c d; do mkdir $d; for i in $(seq 300); do echo $d $i > $d/f$i; done; done; ln a/f7 d/same; "
            "ln c/f299 a/b/same; ln -s f1 c/link; chmod 4711 d/f3; head -c 3000000 /dev/urandom > a/b/big; "
            "touch -d 2001-02-03 a/b c .",
            timeout_s=60,
        )
        assert made.ok, made.output
        look = (
            "export LC_ALL=C; find . | sort | xargs stat -c '%n %f %h %s %Y'; find . -type f | sort | xargs cksum; "
            "test a/f7 -ef d/same && test c/f299 -ef a/b/same && readlink c/link"
        )
        ours = await box.exec(look)
        assert ours.output.endswith(b"\nf1\n") and ours.output.count(b"\n") == 1208 + 1204 + 1
        for fork in await box.fork(2):
            theirs = await fork.exec(look)
            assert theirs.output == ours.output
            await end(fork)

    house.play(scene)


@broken_by("empty fork")
@needs("own_root")
def test_deletions_of_the_images_files_are_forked(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("mkdir -p /mine/old && echo 1 > /mine/old/a", user="root", cwd="/")
        await box.exec("rm -r /mine/old; mkdir /mine/old; echo 2 > /mine/n; rmdir /mnt /srv", user="root", cwd="/")
        [fork] = await box.fork()
        listing = "ls -d /mine /mnt /srv /tmp; find /mine | LC_ALL=C sort; cat /mine/n"
        ours, theirs = await box.exec(listing, cwd="/"), await fork.exec(listing, cwd="/")
        assert ours.output == theirs.output and ours.output.endswith(b"2\n")
        [second] = await fork.fork()
        assert (await second.exec(listing, cwd="/")).output == ours.output
        await end(second)
        await end(fork)

    house.play(scene)


@broken_by("empty fork")
@needs("users")
def test_owners_are_forked(house: Place) -> None:
    async def scene(box: Any) -> None:
        for owner in ("root", "agent", "tester"):
            await box.put(f"/tmp/of-{owner}", b"", 0o600, owner=owner)
        [fork] = await box.fork()
        listing = (await fork.exec("cd /tmp; stat -c '%n %u %a' of-*")).output
        assert listing == b"of-agent 1000 600\nof-root 0 600\nof-tester 1001 600\n"
        assert (await fork.exec("echo new > of-agent && cat of-agent", cwd="/tmp")).output == b"new\n"
        assert not (await fork.exec("cat of-root", cwd="/tmp")).ok
        await end(fork)

    house.play(scene)


@broken_by("empty fork")
def test_the_source_goes_on(house: Place) -> None:
    """It stands still while it is copied: a file that is always written in two steps is never forked between them."""

    async def scene(box: Any) -> None:
        writer = await box.spawn("i=0; while :; do i=$((i+1)); echo $i > one; echo $i > two; done")
        await asyncio.sleep(0.3)
        before = int((await box.get("/work/two")) or b"0")
        forks = [(await box.fork())[0] for _ in range(2)]
        for fork in forks:
            one, two = int((await fork.get("/work/one")) or b"0"), int((await fork.get("/work/two")) or b"0")
            assert 0 <= max(one, two) - min(one or two, two or one) <= 1 and max(one, two) >= before
        assert (await writer.poll()).running
        later = 0
        for _ in range(100):
            later = int((await box.get("/work/two")) or b"0")
            if later > before + 10:
                break
            await asyncio.sleep(0.05)
        assert later > before + 10, "it writes again"
        await writer.kill()
        await end(*forks)

    house.play(scene)


@broken_by("empty fork")
def test_many_from_one_snapshot(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("echo then > file")
        snapshot = await box.snapshot()
        await box.exec("echo now > file")
        boxes = await asyncio.gather(*(snapshot.start() for _ in range(4)))
        assert [(await fork.exec("cat file; echo mine > file")).output for fork in boxes] == [b"then\n"] * 4
        await snapshot.discard()
        await snapshot.discard()
        assert [(await fork.exec("cat file")).output for fork in boxes] == [b"mine\n"] * 4, "what began from it goes on"
        with pytest.raises(NotFound, match="discarded"):
            await snapshot.start()
        await end(*boxes)

    house.play(scene)


@broken_by("empty fork")
def test_a_snapshot_outlives_its_source(house: Place) -> None:
    async def act() -> None:
        box = await house.box(env={"KEPT": "env"})
        await box.put("/work/file", b"kept")
        snapshot = await box.snapshot()
        await box.destroy()
        fork = await snapshot.start()
        assert (await fork.exec("cat file; echo $KEPT")).output == b"keptenv\n"
        await snapshot.discard()
        await fork.destroy()

    house.run(act())


@broken_by("empty fork")
def test_a_fork_of_a_fork(house: Place) -> None:
    async def scene(box: Any) -> None:
        line, boxes = box, []
        for i in range(4):
            await line.exec(f"echo {i} > file.{i}; rm -f file.{i - 2}; echo {i} >> all")
            [line] = await line.fork()
            boxes.append(line)
            if i:
                await boxes[i - 1].destroy()
        assert (await line.exec("ls; cat file.* all")).output == b"all\nfile.2\nfile.3\n2\n3\n0\n1\n2\n3\n"
        await end(line)

    house.play(scene)


@broken_by("empty fork")
def test_a_snapshot_of_what_cannot_move_any_more(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.put("/work/file", b"frozen")
        await box.freeze()
        [fork] = await box.fork()
        assert (await fork.exec("cat file; echo thawed")).output == b"frozenthawed\n"
        await end(fork)

    house.play(scene)


@broken_by("empty fork")
def test_processes_are_not_forked(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("mkdir here; (setsid sh -c 'while :; do touch here/alive; sleep 0.05; done' &); sleep 0.2")
        [fork] = await box.fork()
        await fork.exec("rm here/alive")
        await asyncio.sleep(0.3)
        assert (await fork.exec("ls -d here; ls here")).output == b"here\n"
        await end(fork)

    house.play(scene)


@broken_by("empty fork", "checks off")
def test_forks_that_are_refused(house: Place) -> None:
    async def scene(box: Any) -> None:
        for n in (0, -1, 100_000, 1.5):
            with pytest.raises(PolicyRefused, match=r"n must be.*got"):
                await box.fork(n)
        snapshot = await box.snapshot()
        with pytest.raises(PolicyRefused, match="image"):
            await snapshot.start(replace(box.spec, image="other"))
        await snapshot.discard()

    house.play(scene)
