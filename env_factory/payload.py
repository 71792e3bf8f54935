"""The payload of a job, checked before anything is done about it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from gymsmith.errors import ConfigError
from gymsmith.schema import Word

M = TypeVar("M", bound=Word)


def checked(model: type[M], payload: dict[str, Any]) -> M:
    """The payload as its model. Raises: ConfigError: it names each wrong field with its value."""
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {str(p['input'])[:80]!r}" for p in error.errors())
        raise ConfigError(f"the payload of a factory job is wrong: {problems}") from error
