"""Trackers, each behind an extra: W&B, trackio, TensorBoard, and sinks of the user's own.

One interface, `Sink`: numbers of a step. A tracker also takes sampled conversations (`show`), and what a training was made from
and what it made (`lineage`). The first thing that goes wrong with one is logged and ends it; the training goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tau2rl import plugins
from tau2rl.config import TrackingConfig
from tau2rl.errors import UserError
from tau2rl.protocols import Sink
from tau2rl.runs.files import read_json, section, write_json
from tau2rl.types import EpisodeRecord, Message

log = logging.getLogger(__name__)

WANDB = "wandb.json"
TENSORBOARD = "tensorboard"
LONGEST_TEXT = 20_000  # characters of a message; the record has it whole
COLUMNS = ("step", "attempt", "status", "reward", "score", "turns", "conversation")
Described = Mapping[str, Any]  # {"path", "sha256"} of a file or a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker knows a run by: `TrackedRun(project="tau2rl", name="laptop-grpo", group="laptop", folder=..., config={})`."""

    project: str
    name: str
    group: str | None  # the pipeline that it is a step of
    folder: Path
    config: Mapping[str, Any]


def tracked_run(tracking: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> TrackedRun:
    """The run in a folder, as trackers show it."""
    return TrackedRun(project=tracking.project, name=str(config["name"]), group=group_of(folder), folder=folder, config=config)


def group_of(folder: Path) -> str | None:
    """The name of the pipeline that keeps a run in its `runs/`; None for a run of its own."""
    pipeline = folder.parent.parent
    if folder.parent.name != "runs" or not (pipeline / "config.json").is_file():
        return None
    return str(read_json(pipeline / "config.json").get("name") or pipeline.name)


class Guarded:
    """A sink of which the first failure, its start too, is logged and ends it. What it does not take is passed over."""

    def __init__(self, name: str, start: Callable[[], Any]) -> None:
        self._name = name
        self._sink: Any = None
        self._sink = self._guarded(start)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Pass the values on."""
        self._pass("write", step, values)

    def show(self, step: int, records: Sequence[EpisodeRecord]) -> None:
        """Pass conversations on that were sampled from those of a step."""
        self._pass("show", step, records)

    def lineage(self, inputs: Mapping[str, Sequence[Described]], outputs: Mapping[str, Sequence[Described]]) -> None:
        """Pass on what a training was made from and what it made: kind (`dataset`, `model`) -> files and checkpoints."""
        self._pass("lineage", inputs, outputs)

    def close(self) -> None:
        """End it; safe to call twice."""
        self._pass("close")
        self._sink = None

    def _pass(self, method: str, *arguments: Any) -> None:
        taken = getattr(self._sink, method, None)
        if taken is not None:
            self._guarded(lambda: taken(*arguments))

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        # A tracker must never stop a run, and its library documents no set of exceptions (network, disk, login, import).
        except Exception as error:  # noqa: BLE001
            self._sink = None
            log.warning("%s is off for the rest of this run: %s: %s", self._name, type(error).__name__, error)
            log.debug("%s broke here", self._name, exc_info=True)
            return None


class WandbSink:
    """A W&B run, online or offline. Raises whatever the library does.

    Every session of a run goes on with the same W&B run: its id is kept in the run folder. Offline, each session leaves a folder
    below `wandb/`, and `wandb sync` uploads them as one. W&B takes no step twice: of one that is repeated it has the first.
    """

    def __init__(self, run: TrackedRun, *, mode: Literal["online", "offline"]) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._mode = mode
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = self._wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            job_type=str(run.config.get("stage", "")) or None,
            dir=str(run.folder),
            config=dict(run.config),
            allow_val_change=True,  # a resumed run may have other settings of memory and patience
            mode=mode,
            id=wandb_id(run.folder),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Send the values that are numbers. W&B keeps the step open for `show`."""
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def show(self, step: int, records: Sequence[EpisodeRecord]) -> None:
        """A table of conversations, a row each."""
        rows = [list(conversation_row(step, record).values()) for record in records]
        self._run.log({"conversations": self._wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)

    def lineage(self, inputs: Mapping[str, Sequence[Described]], outputs: Mapping[str, Sequence[Described]]) -> None:
        """Artifacts that refer to files by path and are named by hash, so that the output of one run is the input of another.

        W&B takes no input of a run offline: there it is written into the metadata of what was made, and into the run's config.
        """
        named = {kind: [each["sha256"] for each in found] for kind, found in inputs.items()}
        self._run.config.update({"inputs": named}, allow_val_change=True)
        if self._mode == "online":
            for artifact in self._artifacts(inputs, {}):
                self._run.use_artifact(artifact)
        for artifact in self._artifacts(outputs, {"inputs": named}):
            self._run.log_artifact(artifact)

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()

    def _artifacts(self, described: Mapping[str, Sequence[Described]], more: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        for kind, each in ((kind, each) for kind, items in described.items() for each in items):
            artifact = self._wandb.Artifact(artifact_name(kind, each), type=kind, metadata={**each, **more})
            artifact.add_reference(Path(each["path"]).as_uri(), checksum=False)
            found.append(artifact)
        return found


class TrackioSink:
    """A trackio run, kept where trackio keeps its projects (`TRACKIO_DIR`), or sent where its own variables say."""

    def __init__(self, run: TrackedRun) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        name = f"{run.name}-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:6]}"  # trackio knows a run by its name
        self._run: Any = self._trackio.init(
            project=run.project, name=name, group=run.group, config=dict(run.config), resume="allow", embed=False
        )

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Send the values that are numbers."""
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def show(self, step: int, records: Sequence[EpisodeRecord]) -> None:
        """Each conversation as a trace."""
        for record in records:
            about = conversation_row(step, record)
            del about["conversation"]
            self._run.log({"conversation": self._trackio.Trace(chat_messages(record), metadata=about)}, step=step)

    def lineage(self, inputs: Mapping[str, Sequence[Described]], outputs: Mapping[str, Sequence[Described]]) -> None:
        """Artifacts that refer to files by path: inputs are looked up or logged first, then used."""
        for output, described in ((False, inputs), (True, outputs)):
            for kind, each in ((kind, each) for kind, items in described.items() for each in items):
                artifact = self._trackio.Artifact(artifact_name(kind, each), type=kind, metadata=dict(each))
                artifact.add_reference(Path(each["path"]).as_uri(), checksum=False)
                logged = self._run.log_artifact(artifact)
                if not output:
                    self._run.use_artifact(logged)

    def close(self) -> None:
        """Send what waits."""
        self._run.finish()


class TensorBoardSink:
    """Event files in the run folder's `tensorboard/`: `tensorboard --logdir OUTPUTS` shows all runs below a folder."""

    def __init__(self, run: TrackedRun) -> None:
        library: Any = importlib.import_module("tensorboardX")
        self._writer: Any = library.SummaryWriter(str(run.folder / TENSORBOARD))
        self._writer.add_text("config", _fenced(json.dumps(run.config, indent=1, ensure_ascii=False, default=str)), 0)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Write the values that are numbers."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, records: Sequence[EpisodeRecord]) -> None:
        """Each conversation as a text, inside a fence: TensorBoard reads Markdown."""
        for place, record in enumerate(records):
            row = conversation_row(step, record)
            head = ", ".join(f"{name} {row[name]}" for name in COLUMNS[1:-1])
            self._writer.add_text(f"conversations/{place}", _fenced(f"{head}\n\n{row['conversation']}"), step)
        self._writer.flush()

    def lineage(self, inputs: Mapping[str, Sequence[Described]], outputs: Mapping[str, Sequence[Described]]) -> None:
        """A text: TensorBoard has no artifacts."""
        text = json.dumps({"inputs": inputs, "outputs": outputs}, indent=1, ensure_ascii=False, default=str)
        self._writer.add_text("lineage", _fenced(text), 0)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def open_sinks(tracking: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> list[Guarded]:
    """The trackers but W&B, and the user's sinks, each made with the run folder and the resolved settings.

    Raises UserError for a sink of the user's that is not there.
    """
    sinks: list[Sink] = [plugins.make(name, folder, config, kind="sink") for name in tracking.sinks]
    users = [Guarded(f"sink `{name}`", lambda s=s: s) for name, s in zip(tracking.sinks, sinks, strict=True)]
    return [*open_trackers(tracking, folder, config), *users]


def open_trackers(tracking: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> list[Guarded]:
    """Those of `tracking.trackers`."""
    known = {"trackio": TrackioSink, "tensorboard": TensorBoardSink}
    run = tracked_run(tracking, folder, config)
    return [Guarded(name, lambda make=known[name]: make(run)) for name in tracking.trackers]


def open_wandb(tracking: TrackingConfig, folder: Path, config: Mapping[str, Any]) -> list[Guarded]:
    """W&B where asked for; slime has its own."""
    mode = tracking.wandb
    if mode == "off":
        return []
    return [Guarded("w&b", lambda: WandbSink(tracked_run(tracking, folder, config), mode=mode))]


def record_lineage(trackers: Sequence[Guarded], report: Mapping[str, Any]) -> None:
    """Tell trackers what a finished training was made from and what it made, from its report; then close them."""
    inputs, outputs = section(report, "inputs"), section(report, "outputs")
    made_from = {"dataset": list(inputs.get("data") or ()), "model": [inputs["parent"]] if inputs.get("parent") else []}
    made = {"model": [outputs["checkpoint"]] if outputs.get("checkpoint") else []}
    for tracker in trackers:
        tracker.lineage({k: v for k, v in made_from.items() if v}, {k: v for k, v in made.items() if v})
        tracker.close()


def wandb_id(run: Path) -> str:
    """The id of a run's W&B run, made up at the first call and the same ever after. Raises OSError, UserError."""
    file = run / WANDB
    if not file.exists():
        write_json(file, {"id": uuid.uuid4().hex[:8]})
    values = read_json(file)
    if "id" not in values:
        raise UserError(f"`{file}` has no id")
    return str(values["id"])


def artifact_name(kind: str, described: Described) -> str:
    """A name by content, so that what one run made and another began with is one artifact.

    >>> artifact_name("model", {"sha256": "0123456789abcdef0123"})
    'model-0123456789abcdef'
    """
    return f"{kind}-{str(described['sha256'])[:16]}"


def conversation_row(step: int, record: EpisodeRecord) -> dict[str, Any]:
    """A conversation as a row with `COLUMNS`."""
    episode = record.episode
    return {
        "step": step,
        "attempt": clean(record.attempt.key),
        "status": episode.status.value,
        "reward": None if episode.grade is None else episode.grade.reward,
        "score": None if record.score is None else record.score.shaped,
        "turns": len(episode.turns),
        "conversation": "\n\n".join(_spoken(message) for message in episode.messages),
    }


def chat_messages(record: EpisodeRecord) -> list[dict[str, Any]]:
    """A conversation as OpenAI-style messages; results name their calls, by order."""
    out: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in record.episode.messages:
        values: dict[str, Any] = {"role": message.role, "content": clean(message.content)}
        if message.reasoning:
            values["reasoning_content"] = clean(message.reasoning)
        if message.tool_calls:
            waiting = [f"call_{len(out)}_{place}" for place in range(len(message.tool_calls))]
            values["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": clean(call.name), "arguments": _arguments(call.arguments)}}
                for id, call in zip(waiting, message.tool_calls, strict=True)
            ]
        elif message.role == "tool" and waiting:
            values["tool_call_id"] = waiting.pop(0)
        out.append(values)
    return out


def clean(text: str) -> str:
    r"""Text that every tracker can store: no control characters but lines and tabs, no half of a surrogate pair, cut.

    >>> clean("a\x00\x1b[2Jb\ud800")
    'a\\x00\\x1b[2Jb\\ud800'
    """
    more = f"\n... {len(text) - LONGEST_TEXT:,} more characters" if len(text) > LONGEST_TEXT else ""
    kept = "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in text[:LONGEST_TEXT])
    return kept + more


def _escaped(character: str) -> str:
    return character if character.isspace() and ord(character) > 0x1F else character.encode("unicode_escape").decode()


def _spoken(message: Message) -> str:
    thought = [f"({clean(message.reasoning)})"] if message.reasoning else []
    calls = [f"{clean(call.name)}({_arguments(call.arguments)})" for call in message.tool_calls]
    said = [clean(message.content)] if message.content else []
    return "\n".join([f"{message.role}{' (refused)' if message.error else ''}:", *thought, *said, *calls])


def _arguments(values: Any) -> str:
    return clean(json.dumps(values, ensure_ascii=False))


def _fenced(text: str) -> str:
    """A code block of Markdown that nothing in the text can end.

    >>> _fenced("a")
    '    a'
    """
    return "\n".join(f"    {line}" for line in text.splitlines())
