"""Progress through a job's log: one machine-readable line a second at most, told apart from everything else by its prefix."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """A run at one moment: `ProgressEvent(done=12, total=100, successes=7, valid=11, failed=1, tokens=90210, seconds=31.5)`."""

    done: int  # units of work that have ended, whatever way
    total: int | None  # None: nobody knows yet
    successes: int = 0  # of the valid ones
    valid: int = 0  # that are evidence about the model; the success rate is successes / valid
    failed: int = 0  # that are not: the environment or the infrastructure failed
    tokens: int = 0  # sampled so far
    seconds: float = 0.0  # since the stage began
    before: int | None = None  # of `done`, what earlier starts of the run had, which took none of `seconds`; None: not said
    note: str = ""  # what it is doing, for people: "loading tasks"
    unit: str = "episodes"  # what `done` counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which run of a pipeline begins: `Place(words="`sft` (sft)", number=2, total=9, left=310.0, all_known=True)`."""

    words: str
    number: int  # from 1
    total: int
    left: float  # seconds of this run and those behind it, as those of their kind went that have ended
    all_known: bool  # whether one of every kind has ended; else it is the least


def seconds_left(ended: Sequence[tuple[str, float]], waiting: Sequence[str]) -> tuple[float, bool]:
    """Seconds of the waiting stages, each as the mean of its kind so far, and whether every kind among them has been seen.

    >>> seconds_left([("sft", 30.0), ("eval", 10.0)], ["eval", "eval"]), seconds_left([("eval", 10.0)], ["grpo", "eval"])
    ((20.0, True), (10.0, False))
    """
    took: dict[str, list[float]] = {}
    for stage, seconds in ended:
        took.setdefault(stage, []).append(seconds)
    known = [stage for stage in waiting if stage in took]
    return sum(sum(took[stage]) / len(took[stage]) for stage in known), len(known) == len(waiting)


class Progress(Protocol):
    """Hears of progress; cheap enough to call after every episode."""

    def __call__(self, event: ProgressEvent, /) -> None:
        """Take note of an event. Never raises."""
        ...


PREFIX = "::tau2rl-progress "
INTERVAL_SECONDS = 1.0


class JsonProgress:
    """Writes events to a stream: `::tau2rl-progress {"done": 12, "total": 100, ...}`. The job's side."""

    def __init__(
        self, stream: TextIO, *, interval_seconds: float = INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic
    ):
        self._stream = stream
        self._interval = interval_seconds
        self._clock = clock
        self._next = float("-inf")
        self._held: ProgressEvent | None = None

    def __call__(self, event: ProgressEvent) -> None:
        """Write the event, or hold it until the interval has passed; the last one held is written by `flush`."""
        if self._clock() < self._next:
            self._held = event
            return
        self._write(event)

    def flush(self) -> None:
        """Write what is held: the end of a run is news."""
        if self._held is not None:
            self._write(self._held)

    def _write(self, event: ProgressEvent) -> None:
        self._held = None
        self._next = self._clock() + self._interval
        self._stream.write(f"{PREFIX}{json.dumps(dataclasses.asdict(event))}\n")
        self._stream.flush()


def parse(line: str) -> ProgressEvent | None:
    """The event in a line of a job's log; None for every other line.

    >>> parse('::tau2rl-progress {"done": 3, "total": 8, "note": "x"}')
    ProgressEvent(done=3, total=8, successes=0, valid=0, failed=0, tokens=0, seconds=0.0, before=None, note='x', unit='episodes')
    >>> parse("::tau2rl-progress {") is parse("3 of 8") is None
    True
    """
    _, prefix, values = line.partition(PREFIX)
    if not prefix:
        return None
    try:
        return TypeAdapter(ProgressEvent).validate_json(values)
    except ValidationError:  # two processes wrote at once and mixed their lines; the next one is a second away
        return None
