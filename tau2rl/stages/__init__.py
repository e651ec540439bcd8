"""One file a stage: `run(config, folder, progress) -> Result`. A stage joins the rooms; what they do is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a stage has to show: `Result(report={...}, complete=True)`. Incomplete: on disk, to be resumed; exit code 1."""

    report: dict[str, Any]
    complete: bool
