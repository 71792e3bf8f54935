"""What a terminal template is. The templates stand in the files beside this one; `synth/terminal.py` makes tasks of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Files = dict[str, Any]
"""A data set, see `box.py`."""
Params = dict[str, Any]
"""What one instance of a template is about; JSON."""
Watch = Literal["stdout", "tree", "modes"]


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of task. Texts have `§slots` that `params` fills."""

    name: str
    theme: str
    params: Callable[[random.Random, list[str], int], Params]
    """(rng, 24 words, level) -> slots and knobs; `level` is among them by itself."""
    data: Callable[[random.Random, Params], Files]
    """One data set. It must hold every trap that `wrong` falls into."""
    answer: Callable[[Files, Params], Any]
    """What the program prints, or the data set that it leaves. Imports what it needs itself: its text is sent."""
    text: str
    shell: str
    """Another honest program, with its `#!` line."""
    wrong: Mapping[str, str]
    """Plausible programs that must fail."""
    watch: Watch = "stdout"
    program: str = "report"
    held_out: bool = False
    needs: tuple[str, ...] = ()
    """Programs that the base image may lack; without them the image is not built."""
    other: str = ""
    """The second honest program, where the reference's own source would be none."""
