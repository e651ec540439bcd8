"""The trackers of a run beside `metrics.jsonl`: W&B, trackio, TensorBoard (each an extra), and sinks of the user's own.

One interface, `protocols.Sink`: the numbers of a step, and for those that take them sampled conversations (`show`) and what a
training was made from and made (`lineage`). The first thing that goes wrong with one is logged and ends it; the training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tau2rl import plugins
from tau2rl.config import GrpoConfig, SftConfig, TrackingConfig, dump
from tau2rl.protocols import Sink
from tau2rl.runs.files import read_json, section
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
    """What `tracking` asks for, without W&B on slime, which has its own. Raises UserError for a sink that is not there."""
    asked = config.tracking
    run = TrackedRun(name=config.name, group=group_of(folder), folder=folder, config=config, process=process)
    made: list[tuple[str, Callable[[int], Any]]] = []
    mode = asked.wandb
    if mode != "off" and config.backend != "slime":
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
