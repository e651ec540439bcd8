"""How far a run is: lines in a job's log, one a second at most, told apart by their prefix; the last one in a file of the run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from pydantic import TypeAdapter, ValidationError

from tau2rl.runs.sessions import session_folders


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
    in_flight: int | None = None  # episodes that are being played; None: not said


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
FILE = "progress.json"  # below `logs/session_N`


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


class FileProgress:
    """Keeps the last event in a file for whoever looks at the run, and passes every event on."""

    def __init__(
        self,
        file: Path,
        progress: Progress,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._file = file
        self._progress = progress
        self._interval = interval_seconds
        self._clock = clock
        self._next = float("-inf")
        self._last: ProgressEvent | None = None

    def __call__(self, event: ProgressEvent) -> None:
        """Pass the event on; the file has it at once, or behind the next one when the interval has passed, or at `flush`."""
        self._last = event
        if self._clock() >= self._next:
            self._next = self._clock() + self._interval
            self.flush()
        self._progress(event)

    def flush(self) -> None:
        """Write the last event. A full disk is told by what cannot do without it."""
        if self._last is not None:
            draft = self._file.with_suffix(".draft")
            with suppress(OSError):
                draft.write_text(json.dumps(dataclasses.asdict(self._last)), encoding="utf-8")
                draft.replace(self._file)


def read_progress(run: Path) -> ProgressEvent | None:
    """The last event of a run's last session; None where it has said nothing, or nothing that can be read."""
    folders = session_folders(run)
    if not folders:
        return None
    try:
        return TypeAdapter(ProgressEvent).validate_json((folders[max(folders)] / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def parse(line: str) -> ProgressEvent | None:
    """The event in a line of a job's log; None for every other line.

    >>> parse('::tau2rl-progress {"done": 3, "total": 8}') == ProgressEvent(done=3, total=8)
    True
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
