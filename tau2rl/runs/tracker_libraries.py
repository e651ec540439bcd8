"""What W&B, trackio and TensorBoard are told of a training: each library behind `protocols.Sink`, imported when it is asked for.

Every method raises whatever its library raises; `trackers.Tracker` logs it once. Texts of conversations pass `visible`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import uuid
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tau2rl.config import GrpoConfig, SftConfig, dump
from tau2rl.errors import UserError
from tau2rl.runs.files import read_json, write_json
from tau2rl.terminal import visible

WANDB = "wandb.json"
TENSORBOARD = "tensorboard"
COLUMNS = ("step", "attempt", "status", "reward", "score", "turns", "conversation")
Values = Mapping[str, float | int | None]
Described = Mapping[str, Any]  # {"path", "sha256"} of a file or a checkpoint
Lineage = Mapping[str, Sequence[Described]]  # kind -> what there is of it: {"dataset": [...], "model": [...]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedConversation:
    """A conversation for a tracker: `TrackedConversation(attempt="mock/a#3", status="completed", reward=1.0, messages=[...])`."""

    attempt: str
    status: str
    reward: float | None
    score: float | None
    turns: int
    messages: Sequence[Mapping[str, Any]]  # OpenAI's

    def row(self, step: int) -> dict[str, Any]:
        """The values of `COLUMNS`."""
        about = {name: getattr(self, name) for name in COLUMNS[1:-1]}
        return {"step": step, **about, "conversation": "\n\n".join(map(_spoken, self.messages))}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker knows a run by: `TrackedRun(name="grpo", group="laptop", folder=..., config=..., process="")`."""

    name: str
    group: str | None  # the pipeline that it is a step of
    folder: Path
    config: SftConfig | GrpoConfig
    process: str = ""  # which of several processes of the run this is; "": there is one

    @property
    def project(self) -> str:
        """Where trackers keep it."""
        return self.config.tracking.project


class WandbSink:
    """A W&B run, online or offline. Raises whatever the library does.

    Every session of a run goes on with the same W&B run: its id is kept in the run folder. Offline, each session leaves a folder
    below `wandb/`, which `wandb sync` uploads in their order. W&B takes no step twice: of one that is repeated it has the first.
    """

    def __init__(self, run: TrackedRun, *, mode: Literal["online", "offline"]) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._mode, self.sends = mode, True  # what is written offline, `wandb sync` sends later
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = self._wandb.init(
            project=run.project,
            name=run.name,
            group=run.group,
            job_type=run.config.stage,
            dir=str(run.folder),
            config=dump(run.config),
            allow_val_change=True,  # a resumed run may have other settings of memory and patience
            mode=mode,
            # By itself it takes the console, the command line and the repository along, past `Redactor`.
            settings=self._wandb.Settings(console="off", disable_git=True, x_disable_meta=True, disable_code=True),
            id=wandb_id(run.folder),
            resume="allow",
        )

    def write(self, step: int, values: Values) -> None:
        """Send the values that are numbers. W&B keeps the step open for `show`."""
        self._run.log(_numbers(values), step=step)

    def show(self, step: int, conversations: Sequence[TrackedConversation]) -> None:
        """A table of conversations, a row each."""
        rows = [list(each.row(step).values()) for each in conversations]
        self._run.log({"conversations": self._wandb.Table(columns=list(COLUMNS), data=rows)}, step=step)

    def lineage(self, inputs: Lineage, outputs: Lineage) -> None:
        """Artifacts that refer to files by path and are named by hash, so that the output of one run is the input of another.

        W&B takes no input of a run offline: there it is in the metadata of what was made. The run's config has it either way.
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

    def _artifacts(self, described: Lineage, more: Mapping[str, Any]) -> Generator[Any]:
        for kind, found in described.items():
            for each in found:
                artifact = self._wandb.Artifact(artifact_name(kind, each), type=kind, metadata={**each, **more})
                artifact.add_reference(_uri(each), checksum=False)  # the name says what is in it
                yield artifact


class TrackioSink:
    """A trackio run, kept where trackio keeps its projects (`TRACKIO_DIR`), or sent where its own variables say."""

    def __init__(self, run: TrackedRun) -> None:
        with _trackio_quiet():
            self._trackio: Any = importlib.import_module("trackio")
            name = f"{run.name}-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:6]}"  # trackio knows a run by its name
            self._run: Any = self._trackio.init(
                project=run.project, name=name, group=run.group, config=dump(run.config), resume="allow", embed=False
            )
        self.sends = self._run.url is not None

    def write(self, step: int, values: Values) -> None:
        """Send the values that are numbers."""
        with _trackio_quiet():
            self._run.log(_numbers(values), step=step)

    def show(self, step: int, conversations: Sequence[TrackedConversation]) -> None:
        """Each conversation as a trace."""
        for each in conversations:
            about = {name: value for name, value in each.row(step).items() if name != "conversation"}
            with _trackio_quiet():
                trace = self._trackio.Trace([_cleaned(message) for message in each.messages], metadata=about)
                self._run.log({"conversation": trace}, step=step)

    def lineage(self, inputs: Lineage, outputs: Lineage) -> None:
        """Artifacts that refer to files by path; trackio uses an input only after it was logged."""
        with _trackio_quiet():
            for artifact in self._logged(inputs):
                self._run.use_artifact(artifact)
            list(self._logged(outputs))

    def close(self) -> None:
        """Send what waits."""
        current = self._trackio.context_vars.current_run
        if current.get() is self._run:  # else it is ended again, with words on stdout, when Python ends
            current.set(None)
        with _trackio_quiet():
            self._run.finish()

    def _logged(self, described: Lineage) -> Generator[Any]:
        for kind, found in described.items():
            for each in found:
                artifact = self._trackio.Artifact(artifact_name(kind, each), type=kind, metadata=dict(each))
                artifact.add_reference(_uri(each), checksum=False)
                yield self._run.log_artifact(artifact)


@contextlib.contextmanager
def _trackio_quiet() -> Generator[None]:
    """trackio says on stdout, which is for data, how it goes, and warns where others raise: a warning is a RuntimeError here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    if said := [str(each.message) for each in caught if "trackio" in each.filename and each.category is UserWarning]:
        raise RuntimeError(said[0])


class TensorBoardSink:
    """Event files in the run folder's `tensorboard/`: `tensorboard --logdir OUTPUTS` shows all runs below a folder."""

    sends = False

    def __init__(self, run: TrackedRun, *, first_step: int) -> None:
        """`first_step`: what an earlier session wrote of it and of later ones is hidden, as a resumed run repeats them."""
        library: Any = importlib.import_module("tensorboardX")
        # Of several files in one folder TensorBoard reads the last alone: each process of a run has a folder.
        place = run.folder / TENSORBOARD / run.process
        earlier = len(list(place.glob("events.*")))
        self._writer: Any = library.SummaryWriter(
            str(place), purge_step=first_step if earlier and first_step else None, filename_suffix=f".{earlier}"
        )
        self._writer.add_text("config", _fenced(json.dumps(dump(run.config), indent=1, ensure_ascii=False)), first_step)

    def write(self, step: int, values: Values) -> None:
        """Write the values that are numbers."""
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, conversations: Sequence[TrackedConversation]) -> None:
        """Each conversation as a text."""
        for place, each in enumerate(conversations):
            row = each.row(step)
            head = ", ".join(f"{name} {row[name]}" for name in COLUMNS[1:-1])
            self._writer.add_text(f"conversations/{place}", _fenced(f"{head}\n\n{row['conversation']}"), step)
        self._writer.flush()

    def lineage(self, inputs: Lineage, outputs: Lineage) -> None:
        """A text: TensorBoard has no artifacts."""
        text = json.dumps({"inputs": inputs, "outputs": outputs}, indent=1, ensure_ascii=False)
        self._writer.add_text("lineage", _fenced(text), 0)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def wandb_id(run: Path) -> str:
    """The id of a run's W&B run, made up at the first call and the same ever after. Raises OSError, UserError."""
    file = run / WANDB
    if not file.exists():
        write_json(file, {"id": uuid.uuid4().hex[:8]})
    found = read_json(file).get("id")
    if found is None:
        raise UserError(f"`{file}` has no id")
    return str(found)


def artifact_name(kind: str, described: Described) -> str:
    """A name by content, so that what one run made and another began with is one artifact.

    >>> artifact_name("model", {"sha256": "0123456789abcdef0123"})
    'model-0123456789abcdef'
    """
    return f"{kind}-{str(described['sha256'])[:16]}"


def _uri(described: Described) -> str:
    return Path(described["path"]).expanduser().absolute().as_uri()


def _numbers(values: Values) -> dict[str, float | int]:
    return {name: value for name, value in values.items() if value is not None}


def _spoken(message: Mapping[str, Any]) -> str:
    """A message as people read it: who, what was thought, what was said, what was called."""
    thought = [f"({visible(message['reasoning_content'])})"] if message.get("reasoning_content") else []
    said = [visible(message["content"])] if message.get("content") else []
    calls = [visible(f"{each['function']['name']}({each['function']['arguments']})") for each in message.get("tool_calls") or ()]
    return "\n".join([f"{message['role']}:", *thought, *said, *calls])


def _cleaned(value: Any) -> Any:
    """JSON values whose texts are `visible`."""
    if isinstance(value, dict):
        return {key: _cleaned(each) for key, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_cleaned(each) for each in cast("list[Any]", value)]
    return visible(value) if isinstance(value, str) else value


def _fenced(text: str) -> str:
    """A code block of Markdown, which TensorBoard reads, that nothing in the text can end.

    >>> _fenced("a")
    '    a'
    """
    return "\n".join(f"    {line}" for line in text.splitlines())
