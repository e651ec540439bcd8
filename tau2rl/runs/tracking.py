"""Curves of a training: `metrics.jsonl`, and W&B where asked for; how they go on after an interruption."""

from __future__ import annotations

import importlib
import json
import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tau2rl import plugins
from tau2rl.config import StageConfig, TrackingConfig, dump
from tau2rl.errors import UserError
from tau2rl.protocols import Sink
from tau2rl.runs.files import DAMAGED, json_lines, read_json, replacing, write_json
from tau2rl.runs.folder import RunFolder

log = logging.getLogger(__name__)


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


class WandbSink:
    """A W&B run, online or offline. The first thing that goes wrong with it is logged and ends it; the training goes on.

    Every session of a run goes on with the same W&B run: its id is kept in the run folder. Offline, each session leaves a folder
    below `wandb/`, and `wandb sync` uploads them as one. W&B takes no step twice: of one that is repeated it has the first.
    """

    def __init__(
        self, *, project: str, name: str, folder: Path, config: Mapping[str, Any], mode: Literal["online", "offline"] = "offline"
    ) -> None:
        self._run: Any = None

        def start() -> None:
            wandb: Any = importlib.import_module("wandb")
            folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=project,
                name=name,
                dir=str(folder),
                config=dict(config),
                allow_val_change=True,  # a resumed run may have other settings of memory and patience
                mode=mode,
                id=wandb_id(folder),
                resume="allow",
            )

        self._guarded(start)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Send the values that are numbers."""
        run = self._run
        if run is not None:
            self._guarded(lambda: run.log({k: v for k, v in values.items() if v is not None}, step=step))

    def close(self) -> None:
        """End the W&B run."""
        run, self._run = self._run, None
        if run is not None:
            self._guarded(run.finish)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        # A tracker must never stop a run, and its library documents no set of exceptions (network, disk, login, import).
        except Exception as error:  # noqa: BLE001
            self._run = None
            log.warning("w&b is off for the rest of this run: %s: %s", type(error).__name__, error)


class UserSink:
    """A sink of the user's. The first thing that goes wrong with it is logged and ends it; the training goes on."""

    def __init__(self, name: str, sink: Sink) -> None:
        self._name = name
        self._sink: Sink | None = sink

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Pass the values on."""
        if self._sink is not None:
            self._guarded(self._sink.write, step, values)

    def close(self) -> None:
        """Pass it on."""
        sink, self._sink = self._sink, None
        if sink is not None:
            self._guarded(sink.close)

    def _guarded(self, action: Callable[..., object], *arguments: Any) -> None:
        try:
            action(*arguments)
        # A tracker must never stop a run, and nobody knows what code of the user's may raise.
        except Exception:
            self._sink = None
            log.exception("sink `%s` is off for the rest of this run", self._name)


def open_sinks(tracking: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The user's sinks, each made with the run folder and the resolved settings. Raises UserError for one that is not there."""
    return [UserSink(name, plugins.make(name, folder, config, kind="sink")) for name in tracking.sinks]


def wandb_id(run: Path) -> str:
    """The id of a run's W&B run, made up at the first call and the same ever after. Raises OSError, UserError."""
    file = run / WANDB
    if not file.exists():
        write_json(file, {"id": uuid.uuid4().hex[:8]})
    return str(read_json(file)["id"])


class Sinks:
    """Several sinks as one: `Sinks([JsonlSink(path), WandbSink(...)])`."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Write to each."""
        for sink in self._sinks:
            sink.write(step, values)

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


WANDB = "wandb.json"


class Curves:
    """Numbers of each step in `metrics.jsonl`, and in W&B where asked for. A context manager.

    A run goes on from a saved state, which may be older than its last line: what stands behind is taken out at the first write.
    """

    def __init__(self, config: StageConfig, tracking: TrackingConfig, folder: RunFolder) -> None:
        self._config = config
        self._tracking = tracking
        self._folder = folder
        self._sinks: Sinks | None = None
        for name in tracking.sinks:  # what cannot be loaded is refused before the first step
            plugins.load(name, kind="sink")

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
        return Sinks([*sinks, *open_sinks(self._tracking, self._folder.path, dump(self._config))])


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
