"""What a COPY takes out of the build context, and under which mode: the rules that our own builder and an engine share."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence

from gymsmith.errors import BuildError, PolicyRefused
from sandboxes.dockerfile import Step

WHEELHOUSE = "/wheelhouse"
"""Where the steps that name it see the wheels that the host downloaded."""
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")


def refuse_escapes(context: Iterable[str]) -> None:
    """Raises: PolicyRefused: a member's name would leave the context."""
    for name in context:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name:
            raise PolicyRefused(f"build context member {name[:200]!r} leaves the context; use a path relative to environment/")


def member_mode(name: str, data: bytes, executable: Collection[str]) -> int:
    """Programs and scripts that begin with `#!` may be run."""
    return 0o755 if name in executable or data.startswith(b"#!") else 0o644


def mode_given(step: Step) -> int | None:
    """The number of --chmod. Raises: PolicyRefused: not an octal number."""
    chmod = step.flags.get("chmod", "")
    if not chmod:
        return None
    if len(chmod) > 4 or any(digit not in "01234567" for digit in chmod):
        raise PolicyRefused(f"Dockerfile line {step.line}: --chmod takes an octal number such as 755, got {chmod[:20]!r}")
    return int(chmod, 8)


def refuse_archives(step: Step, names: Iterable[str]) -> None:
    """Raises: PolicyRefused: ADD would unpack what it is given."""
    if step.name == "ADD" and any(name.endswith(_ARCHIVES) for name in names):
        raise PolicyRefused(f"Dockerfile line {step.line}: ADD of an archive is refused; COPY it and RUN tar")


def selected(context: Mapping[str, bytes], sources: Sequence[str], top: str, into: bool, step: Step) -> dict[str, str]:
    """Path inside -> context member, for the sources of one COPY. Raises: PolicyRefused, BuildError: nothing matches."""
    folders = {name[:index] for name in context for index, letter in enumerate(name) if letter == "/"}
    files: dict[str, str] = {}
    single = len(sources) == 1
    for source in sources:
        pattern = "/".join(part for part in source.split("/") if part not in ("", "."))
        if ".." in pattern.split("/"):
            raise PolicyRefused(
                f"Dockerfile line {step.line}: {step.name} {source[:80]!r} leaves the build context; use a path below it"
            )
        found = [""] if not pattern else [name for name in (*context, *folders) if _matches(name, pattern)]
        if not found:
            raise BuildError(
                f"Dockerfile line {step.line}: {step.name} {source[:80]!r} is not in the build context, which has "
                f"{', '.join(sorted(context)[:8]) or 'no files'}"
            )
        for name in found:
            if name in context:
                if not into and not (single and len(found) == 1):
                    raise BuildError(
                        f"Dockerfile line {step.line}: {step.name} of several files needs a destination that ends with '/'"
                    )
                files[f"{top.rstrip('/')}/{name.rpartition('/')[2]}" if into else top] = name
            else:
                prefix = f"{name}/" if name else ""
                files.update(
                    {f"{top.rstrip('/')}/{member[len(prefix) :]}": member for member in context if member.startswith(prefix)}
                )
    return files


def _matches(name: str, pattern: str) -> bool:
    have, want = name.split("/"), pattern.split("/")
    return len(have) == len(want) and all(fnmatch.fnmatchcase(one, two) for one, two in zip(have, want, strict=True))
