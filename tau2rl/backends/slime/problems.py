"""What a check before a training finds: a reason not to start, or something to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: `Problem(kind="error", message="8 GPUs are needed, 4 are there", hint="...")`."""

    kind: Literal["error", "warning"]  # a run with an error is not started
    message: str
    hint: str


def error(message: str, hint: str) -> Problem:
    """A reason not to start."""
    return Problem(kind="error", message=message, hint=hint)


def warning(message: str, hint: str) -> Problem:
    """Something to know."""
    return Problem(kind="warning", message=message, hint=hint)
