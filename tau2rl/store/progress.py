"""How far a run is: the event, and who wants to hear of it. How it looks on a screen is `console`'s business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """A run at one moment: `ProgressEvent(done=12, total=100, successes=7, valid=11, failed=1, tokens=90210, seconds=31.5)`."""

    done: int  # units of work that have ended, whatever way
    total: int | None  # None: nobody knows yet
    successes: int = 0  # of the valid ones
    valid: int = 0  # that are evidence about the model; the success rate is successes / valid
    failed: int = 0  # that are not: our world broke
    tokens: int = 0  # sampled so far
    seconds: float = 0.0  # since the stage began
    note: str = ""  # what it is doing, for people: "loading tasks"
    unit: str = "episodes"  # what `done` counts


class Progress(Protocol):
    """Hears of progress; cheap enough to call after every episode."""

    def __call__(self, event: ProgressEvent, /) -> None:
        """Take note of an event. Never raises."""
        ...
