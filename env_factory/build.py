"""A draft becomes an image: its Dockerfile is executed in sandboxes, step by step, by the image store.

Steps that drafts share (the base, an install) are executed once per machine; what is their own is one COPY.
"""

from __future__ import annotations

from pathlib import Path

from gymsmith.schema import Draft
from gymsmith.taskdir import Task
from sandboxes.base import Image
from sandboxes.image.images import ImageStore


async def build(draft: Draft | Task, images: ImageStore, *, wheels: Path | None = None, timeout_s: float = 600.0) -> Image:
    """The image of a draft. `wheels`: folder shown at /wheelhouse to the steps that name it. `timeout_s`: of one step.

    Raises:
        BuildError: a step failed; the tail of its output is in `log`.
        PolicyRefused: the Dockerfile asks for something that is not done here.
    """
    task = Task.of(draft) if isinstance(draft, Draft) else draft
    executable = frozenset(name.removeprefix("environment/") for name in task.executable if name.startswith("environment/"))
    return await images.build(
        task.dockerfile, task.under("environment"), wheelhouse=wheels, executable=executable, timeout_s=timeout_s
    )
