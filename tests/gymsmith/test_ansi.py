"""Terminal output becomes visible, harmless spans."""

import time

import pytest

from gymsmith.ansi import plain, spans


def shown(text: str) -> str:
    return "".join(s.text for s in spans(text))


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("plain\r\nlines\n", "plain\nlines\n"),
        ("10%\r20%\r100%", "100%"),
        ("long line\rlo\x1b[K", "lo"),
        ("abc\b\bX", "aXc"),
        ("\x1b]8;;javascript:alert(1)\x1b\\click\x1b]8;;\x07 me", "click me"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1bPq#0;2;0\x1b\\after", "after"),
        ("\x1b[2J\x1b[10;5Hx\x1b(B", "x"),
        ("evil\u202egnp.exe", "evil‹U+202E›gnp.exe"),
        ("nul\x00bell\x07", "nul␀bell␇"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("unfinished \x1b]8;;http://x", "unfinished "),
        ("cut \x1b[", "cut "),
        ("half \ud800", "half ‹U+D800›"),
    ],
)
def test_what_is_seen(raw: str, seen: str) -> None:
    assert shown(raw) == seen


def test_colours_survive_as_classes_of_a_closed_vocabulary() -> None:
    assert spans("\x1b[1;31mred\x1b[0m \x1b[38;5;12mblue\x1b[39m\x1b[48;2;1;2;3m.\x1b[7mi") == [
        ("red", "a-b a-fg1"),
        (" ", ""),
        ("blue", "a-fg12"),
        (".", ""),
        ("i", "a-inv"),
    ]
    assert {c for s in spans('\x1b[31"onmouseover=alert(1)mx\x1b[;;999;31m y') for c in s.classes.split()} <= {"a-fg1"}


def test_plain_is_one_look_and_no_control() -> None:
    assert plain("\x1b[31mred\x1b[0m\x07\u202e") == "red␇‹U+202E›"


@pytest.mark.parametrize("unit", ["\x9d", "\x1b]", "\x1b[", "\x9d\x1b", "\x1b[1m.", "a\b", "\x90x"])
def test_time_is_linear_in_hostile_input(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    start = time.perf_counter()
    spans(text)
    assert time.perf_counter() - start < 5.0
