"""Curves of a training: `metrics.jsonl`, how it goes on after an interruption, and trackers beside it.

The trackers: W&B, trackio, TensorBoard (each an extra), and sinks of the user's own.

One interface, `protocols.Sink`: the numbers of a step, and for those that take them sampled conversations (`show`) and what a
training was made from and made (`lineage`). The first thing that goes wrong with one is logged and ends it; the training goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl import plugins
from tau2rl.config import GrpoConfig, SftConfig, TrackingConfig, dump
from tau2rl.config.kinds import backend_traits
from tau2rl.errors import UserError
from tau2rl.protocols import Sink
from tau2rl.runs.files import DAMAGED, json_lines, read_json, replacing, section
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.tracker_libraries import (
    Described,
    Lineage,
    TensorBoardSink,
    TrackedConversation,
    TrackedRun,
    TrackioSink,
    Values,
    WandbSink,
)

log = logging.getLogger(__name__)

KEPT_HERE = 4  # conversations of a step for a tracker that keeps them on this machine


class Tracker:
    """A sink that is started when there is something for it. What goes wrong, its start too, is logged once and ends it."""

    def __init__(self, name: str, start: Callable[[int], Any], *, conversations: int | None = None) -> None:
        """`start` makes the sink, from the first step that it is going to see; a sink has its own `sends` (see `show`)."""
        self._name = name
        self._start = start
        self._conversations = conversations
        self._sink: Any = None
        self._over = False

    def write(self, step: int, values: Values) -> None:
        """Pass the values on."""
        self._pass("write", step, step, values)

    def show(self, step: int, conversations: Sequence[TrackedConversation]) -> None:
        """Pass conversations of a step on. Where nobody said how many, a sink gets none unless it keeps them on this machine."""
        self._started(step)
        few = self._conversations
        if few is None:
            few = 0 if getattr(self._sink, "sends", True) else KEPT_HERE
        if conversations[:few]:
            self._pass("show", step, step, conversations[:few])

    def lineage(self, inputs: Lineage, outputs: Lineage) -> None:
        """Pass on what a training was made from and what it made."""
        self._pass("lineage", 0, inputs, outputs)

    def close(self) -> None:
        """End it, one that failed too; safe to call twice."""
        if self._sink is not None:
            self._guarded(self._sink.close)
        self._sink, self._over = None, True

    def _pass(self, method: str, step: int, *arguments: Any) -> None:
        self._started(step)
        taken = None if self._over else getattr(self._sink, method, None)
        if taken is not None:
            self._guarded(lambda: taken(*arguments))

    def _started(self, step: int) -> None:
        if self._sink is None and not self._over:
            self._sink = self._guarded(lambda: self._start(step))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        # A tracker must never stop a run, and its library documents no set of exceptions (network, disk, login, import).
        except Exception as error:
            if not self._over:
                first = next(iter(str(error).splitlines()), "")
                log.warning("%s is off for the rest of this run: %s: %s", self._name, type(error).__name__, first, exc_info=True)
            self._over = True
            return None


class Trackers:
    """Those of a run as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def write(self, step: int, values: Values, conversations: Sequence[TrackedConversation] = ()) -> None:
        """The numbers of a step, and conversations that were sampled from it."""
        for tracker in self._trackers:
            tracker.write(step, values)
            if conversations:
                tracker.show(step, conversations)

    def lineage(self, report: Mapping[str, Any]) -> None:
        """What a training was made from and what it made, from its report."""
        inputs, outputs = section(report, "inputs"), section(report, "outputs")
        parent, made = inputs.get("parent"), outputs.get("checkpoint")
        used: dict[str, list[Described]] = {"dataset": list(inputs.get("data") or ()), "model": [parent] if parent else []}
        for tracker in self._trackers:
            tracker.lineage({kind: each for kind, each in used.items() if each}, {"model": [made]} if made else {})

    def close(self) -> None:
        """Close each; safe to call twice."""
        for tracker in self._trackers:
            tracker.close()


def trackers_of(folder: RunFolder, config: SftConfig | GrpoConfig, *, process: str = "") -> Trackers:
    """The trackers of an open run, the same ones until the folder closes. Raises UserError for a sink that is not there."""
    if folder.trackers is None:
        folder.trackers = open_trackers(folder.path, config, process=process)
    assert isinstance(folder.trackers, Trackers)
    return folder.trackers


def open_trackers(folder: Path, config: SftConfig | GrpoConfig, *, process: str = "") -> Trackers:
    """What `tracking` asks for, without W&B where the backend has its own. Raises UserError for a sink that is not there."""
    asked = config.tracking
    run = TrackedRun(name=config.name, group=group_of(folder), folder=folder, config=config, process=process)
    made: list[tuple[str, Callable[[int], Any]]] = []
    mode = asked.wandb
    if mode != "off" and not backend_traits(config.backend).own_wandb:
        made.append(("w&b", lambda _: WandbSink(run, mode=mode)))
    known: dict[str, Callable[[int], Any]] = {
        "trackio": lambda _: TrackioSink(run),
        "tensorboard": lambda step: TensorBoardSink(run, first_step=step),
    }
    made += [(name, known[name]) for name in dict.fromkeys(asked.trackers)]
    for name in asked.sinks:
        sink: Sink = plugins.make_plugin(name, folder, dump(config), kind="sink")
        made.append((f"sink `{name}`", lambda _, sink=sink: sink))
    return Trackers([Tracker(name, start, conversations=asked.conversations) for name, start in made])


def most_conversations(tracking: TrackingConfig) -> int:
    """How many of a step are worth sampling."""
    if tracking.conversations is None:
        return KEPT_HERE if tracking.trackers else 0
    return tracking.conversations if tracking.trackers or tracking.sinks or tracking.wandb != "off" else 0


def group_of(folder: Path) -> str | None:
    """The name of the pipeline that keeps a run in its `runs/`; None for a run of its own."""
    pipeline = folder.parent.parent
    if folder.parent.name != "runs" or not (pipeline / "config.json").is_file():
        return None
    return str(read_json(pipeline / "config.json").get("name") or pipeline.name)


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
