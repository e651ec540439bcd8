"""One line of the doctor's report."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "optional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found: `Check(name="torch", state="optional", detail="not installed", hint="pip install torch")`."""

    name: str
    state: State  # missing: this use needs it; optional: it is not there, and this use can do without
    detail: str
    hint: str = ""


def need(name: str, there: bool, detail: str, hint: str) -> Check:
    """A check of something that the use cannot do without; the hint is for when it is not there."""
    return Check(name=name, state="ok" if there else "missing", detail=detail, hint="" if there else hint)


def importable(name: str) -> bool:
    """Whether a top-level module is there, without importing it."""
    return importlib.util.find_spec(name) is not None
