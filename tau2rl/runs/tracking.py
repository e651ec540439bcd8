"""Curves of a training: `metrics.jsonl`, and trackers where asked for; how they go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl import plugins
from tau2rl.config import StageConfig, TrackingConfig, dump
from tau2rl.errors import UserError
from tau2rl.protocols import Sink
from tau2rl.runs import records
from tau2rl.runs.files import DAMAGED, json_lines, replacing
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.trackers import Guarded, open_sinks, open_wandb
from tau2rl.runs.validation import validation_file
from tau2rl.types import EpisodeRecord


class JsonlSink:
    """One line a step, on disk as soon as it is written: `{"step": 3, "reward/mean": 0.25}`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write(b"\n")  # a run that was killed in the middle of a line: ours starts on its own

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Append and flush. Infinities and NaN, which JSON has no word for, become null."""
        line = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Sinks:
    """Several sinks as one: `Sinks([JsonlSink(path), *trackers])`."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Write to each."""
        for sink in self._sinks:
            sink.write(step, values)

    def show(self, step: int, sampled: Sequence[EpisodeRecord]) -> None:
        """Conversations for each that takes them."""
        for sink in self._sinks:
            if isinstance(sink, Guarded) and sampled:
                sink.show(step, sampled)

    def close(self) -> None:
        """Close each."""
        for sink in self._sinks:
            sink.close()


def _finite(value: float | int | None) -> float | int | None:
    return None if value is None or not math.isfinite(value) else value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


class NewConversations:
    """A few of the conversations that a run has kept since the last look: of a step, and of the validation behind it."""

    def __init__(self, run: Path, count: int) -> None:
        """Begins behind what the run has kept so far."""
        self._run = run
        self._file = run / "episodes.jsonl"
        self._count = count
        self._at = self._file.stat().st_size if self._file.is_file() else 0

    def take(self, step: int) -> list[EpisodeRecord]:
        """At most `count`, half of them solved where there are so many; which ones does not depend on who ended first."""
        if not self._count:
            return []
        found = sorted(self._lines(step), key=lambda line: hashlib.sha256(line).digest())
        sides: dict[bool, list[EpisodeRecord]] = {True: [], False: []}
        for line in found:
            try:
                record = records.decode(line)
            except UserError:
                continue  # a line that is cut: it is whole at the next look, or never
            side = sides[record.episode.grade is not None and record.episode.grade.reward >= 1 - 1e-6]
            if len(side) < self._count:
                side.append(record)
            if all(len(side) >= self._count for side in sides.values()):
                break
        solved = sides[True][: max(self._count - self._count // 2, self._count - len(sides[False]))]
        return [*solved, *sides[False][: self._count - len(solved)]]

    def _lines(self, step: int) -> Iterator[bytes]:
        if self._file.is_file():
            with self._file.open("rb") as file:
                file.seek(self._at)
                yield from file
                self._at = file.tell()
        validation = validation_file(self._run, step)
        if validation.is_file():
            with validation.open("rb") as file:
                yield from file


class Curves:
    """Numbers of each step in `metrics.jsonl`, and in trackers, with sampled conversations. A context manager.

    A run goes on from a saved state, which may be older than its last line: what stands behind is taken out at the first write.
    """

    def __init__(self, config: StageConfig, tracking: TrackingConfig, folder: RunFolder) -> None:
        self._config = config
        self._tracking = tracking
        self._folder = folder
        self._sinks: Sinks | None = None
        self._new = NewConversations(folder.path, 0)
        for name in tracking.sinks:  # what cannot be loaded is refused before the first step
            plugins.load(name, kind="sink")

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Record the values of step 1, 2, ..."""
        if self._sinks is None:
            self._sinks = self._open(before=step)
        self._sinks.write(step, values)
        self._sinks.show(step, self._new.take(step))

    def __enter__(self) -> Curves:
        trackers = self._tracking.wandb != "off" or self._tracking.trackers
        self._new = NewConversations(self._folder.path, self._tracking.conversations if trackers else 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sinks is not None:
            self._sinks.close()

    def _open(self, *, before: int) -> Sinks:
        rewind(self._folder.metrics, before=before)
        asked = (self._tracking, self._folder.path, dump(self._config))
        return Sinks([JsonlSink(self._folder.metrics), *open_wandb(*asked), *open_sinks(*asked)])


def rewind(path: Path, *, before: int) -> None:
    """Take out the lines of step `before` and of those behind it."""
    _keep(path, lambda line: line["step"] < before)


def rewind_episodes(path: Path, *, before: int) -> None:
    """Take out the episodes of attempt number `before` and of those behind it: they are run again, by other weights.

    Validation attempts are numbered apart, from 0, and the same in every validation: they stay.
    """
    _keep(path, lambda line: line["attempt"]["index"] < before)


def _keep(path: Path, kept: Callable[[Any], bool]) -> None:
    if not path.exists():
        return
    with replacing(path) as file:
        for number, (line, values) in enumerate(json_lines(path), start=1):
            try:
                if kept(values):
                    file.write(line)
            except (KeyError, TypeError):
                raise UserError(f"`{path}` record {number} does not say of which step it is", hint=DAMAGED) from None
