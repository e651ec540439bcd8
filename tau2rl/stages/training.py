"""What `sft` and `grpo` have in common: where their checkpoints lie, and how their curves go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl.config import StageConfig, TrackingConfig, dump
from tau2rl.metrics.sinks import JsonlSink, Sink, Sinks, WandbSink
from tau2rl.store.run import RunFolder

INITIAL, FINAL, STATE = "initial", "final", "state"  # below `checkpoints/`


class Curves:
    """Numbers of each step in `metrics.jsonl`, and in W&B where asked for. A context manager.

    A run goes on from a saved state, which may be older than its last line: what stands behind is taken out at the first write.
    """

    def __init__(self, config: StageConfig, tracking: TrackingConfig, folder: RunFolder) -> None:
        self._config = config
        self._tracking = tracking
        self._folder = folder
        self._sinks: Sinks | None = None

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Record the values of step 1, 2, ..."""
        if self._sinks is None:
            self._sinks = self._open(before=step)
        self._sinks.write(step, values)

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sinks is not None:
            self._sinks.close()

    def _open(self, *, before: int) -> Sinks:
        rewind(self._folder.metrics, before=before)
        sinks: list[Sink] = [JsonlSink(self._folder.metrics)]
        mode = self._tracking.wandb
        if mode != "off":
            sinks.append(
                WandbSink(
                    project=self._tracking.project,
                    name=self._config.name,
                    folder=self._folder.path,  # W&B makes `wandb/` in it
                    config=dump(self._config),
                    mode=mode,
                )
            )
        return Sinks(sinks)


def rewind(path: Path, *, before: int) -> None:
    """Take out the lines of step `before` and of those behind it."""
    _keep(path, lambda line: int(line["step"]) < before)


def rewind_episodes(path: Path, *, before: int) -> None:
    """Take out the episodes of attempt number `before` and of those behind it: they are played again, by other weights.

    Looks at the selection tasks are numbered apart, from 0, and the same at every look: they stay.
    """
    _keep(path, lambda line: int(line["attempt"]["index"]) < before)


def _keep(path: Path, kept: Callable[[Any], bool]) -> None:
    if not path.exists():
        return
    draft = path.with_suffix(".tmp")
    with path.open("rb") as lines, draft.open("wb") as file:  # a line at a time: episodes are gigabytes
        file.writelines(line for line in lines if line.strip() and kept(json.loads(line)))
    draft.replace(path)


def exports(step: int, every: int) -> bool:
    """Whether a step leaves a whole checkpoint.

    >>> [step for step in range(1, 7) if exports(step, 3)], exports(1, 0)
    ([3, 6], False)
    """
    return bool(every) and step % every == 0
