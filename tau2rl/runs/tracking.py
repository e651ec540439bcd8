"""Curves of a training: `metrics.jsonl`, and trackers where asked for; how they go on after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.errors import UserError
from tau2rl.runs.files import DAMAGED, json_lines, replacing
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.tracker_libraries import TrackedConversation
from tau2rl.runs.trackers import trackers_of


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


def _finite(value: float | int | None) -> float | int | None:
    return None if value is None or not math.isfinite(value) else value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


class Curves:
    """Numbers of each step in `metrics.jsonl`, and in the run's trackers, with conversations. A context manager.

    A run goes on from a saved state, which may be older than its last line: what stands behind is taken out at the first write.
    Trackers stay open as long as the folder.
    """

    def __init__(self, config: SftConfig | GrpoConfig, folder: RunFolder) -> None:
        """Raises UserError for a sink of the user's that cannot be loaded: before the first step."""
        self._folder = folder
        self._file: JsonlSink | None = None
        self._trackers = trackers_of(folder, config)

    def write(
        self, step: int, values: Mapping[str, float | int | None], conversations: Sequence[TrackedConversation] = ()
    ) -> None:
        """Record the values of step 1, 2, ..., and show conversations that were sampled from it."""
        if self._file is None:
            rewind(self._folder.metrics, before=step)
            self._file = JsonlSink(self._folder.metrics)
        self._file.write(step, values)
        self._trackers.write(step, values, conversations)

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


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
