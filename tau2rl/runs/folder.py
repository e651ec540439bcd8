"""The run folder: made by whoever asks for a run, opened by the one process that carries it out.

`outputs/STAGE/NAME/`: `config.json environment.json episodes.jsonl failures.jsonl metrics.jsonl report.json checkpoints/ val/
logs/session_N/ logs/latest`; `docs/formats.md` defines them.

A record is one `write` of a whole line, so a kill at any moment (-9 too) loses at most the line being written. Lines are not
forced to the disk one by one: the kernel has them, a dead process cannot take them back, and an fsync for every episode
stalls all others on a slow disk. Only a power failure can cost the last seconds; the folder is synced when it is closed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl import settings
from tau2rl.config import STAGES, StageConfig, build, dump
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.protocols import Sink
from tau2rl.report.schema import SCHEMA
from tau2rl.runs import files, records
from tau2rl.runs.changes import allowed_changes, refuse_changes
from tau2rl.runs.files import writing
from tau2rl.runs.provenance import ENVIRONMENT, differences, read_environment, record_changes
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.sessions import PATIENCE_SECONDS, RunLock, begin_session
from tau2rl.types import EpisodeRecord, Status

EVIDENCE = ("episodes.jsonl", "failures.jsonl", "metrics.jsonl", "report.json")
RESULTS = (*EVIDENCE, "checkpoints")
CLAIM, JOB = "claim", "job "  # below logs/: who has asked for the run, and how the name of a job begins there


def run_path(config: StageConfig) -> Path:
    """Where the run of a config lives, absolute: `config.output`, else `OUTPUT_ROOT/STAGE/NAME`. Raises UserError."""
    if config.output is not None:
        path = config.output.expanduser().absolute()
    elif config.name in {"", ".", ".."} or Path(config.name).name != config.name:
        raise UserError(f"`{config.name}` cannot name a run", hint="a name without `/`; `--output` takes a whole path")
    else:
        path = (settings.output_root() / stage_of(config) / config.name).absolute()
    with writing(path):  # a path that is too long cannot even be asked for, by whoever looks first
        path.exists()
    return path


def stage_of(config: StageConfig) -> str:
    """The name of the config's stage.

    >>> from tau2rl.config import EvalConfig
    >>> stage_of(EvalConfig.model_construct())
    'eval'
    """
    return str(dump(config)["stage"])


class RunFolder:
    """An open run. Use it as a context manager; while it is open no other process can open it."""

    def __init__(self, path: Path, config: StageConfig, lock: RunLock) -> None:
        """See `create` and `open`; a folder is not made by hand."""
        self.path = path
        self.config = config
        self.opened = time.monotonic()
        self._lock = lock
        with writing(path):
            self.torn_bytes = sum(files.repair_tail(file) for file in (self.episodes, self.failures, self.metrics))
        with writing(path / "logs"):
            self.session, self.logs = begin_session(path)
        self._redactor = Redactor(key_variables(dump(config)))
        self._writers: dict[Path, int] = {}
        self.trackers: Sink | None = None  # made by `trackers.trackers_of`

    @staticmethod
    def create(path: Path, config: StageConfig, *, resume: bool, patience_seconds: float = PATIENCE_SECONDS) -> Path:
        """Make the folder and write `config.json` (with `resume` off: what is stored describes the run, not this session).

        Raises UserError: the folder holds something else, or a run and `resume` is off, or a run with other settings,
        or a run that a process is still writing.
        """
        values = dump(config)
        Redactor(key_variables(values)).refuse(values)
        path = path.absolute()
        make_run_folder(path)
        lock = RunLock(path / "logs" / "lock", patience_seconds=patience_seconds)
        try:
            refuse_strangers(path)
            if has_results(path):
                if not resume:
                    raise UserError(
                        f"`{path}` holds a run already",
                        hint="continue it with `--resume`, or choose another `--name` or `--output`",
                    )
                record_changes(path, allowed_changes(read_config(path), config, path))
            with writing(path / "config.json"):
                files.write_json(path / "config.json", {**values, "resume": False})
        finally:
            lock.close()
        return path

    @classmethod
    def open(cls, path: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> RunFolder:
        """Take the folder that `create` made: lock it, repair torn lines, begin `logs/session_N`. Raises UserError."""
        path = path.absolute()
        config = read_config(path)
        with writing(path):
            (path / "logs").mkdir(exist_ok=True)
        lock = RunLock(path / "logs" / "lock", patience_seconds=patience_seconds)
        try:
            claim = path / "logs" / CLAIM
            if claim.exists() and claim.read_text(encoding="utf-8").startswith(JOB):
                claim.unlink(missing_ok=True)
            return cls(path, config, lock)
        except BaseException:
            lock.close()
            raise

    @property
    def episodes(self) -> Path:
        """Every episode that is evidence."""
        return self.path / "episodes.jsonl"

    @property
    def failures(self) -> Path:
        """Every episode that is none: the environment or the infrastructure failed, in every try."""
        return self.path / "failures.jsonl"

    @property
    def metrics(self) -> Path:
        """Numbers over time."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The result."""
        return self.path / "report.json"

    @property
    def checkpoints(self) -> Path:
        """Where models go; made on first use by whoever writes one."""
        return self.path / "checkpoints"

    @property
    def usage(self) -> Path:
        """What this session took."""
        return self.logs / "usage.json"

    @property
    def job_log(self) -> Path:
        """The log of this session."""
        return self.logs / "job.log"

    def append(self, record: EpisodeRecord) -> None:
        """Keep an episode: FAILED ones in `failures.jsonl`, all others in `episodes.jsonl`. Raises RunIncomplete (disk full)."""
        file = self.failures if record.episode.status is Status.FAILED else self.episodes
        try:
            self._write(file, records.encode(self._redactor.record(record)))
        except OSError as error:
            raise RunIncomplete(f"cannot write `{file}`: {error.strerror}; what was written before is kept") from None

    def records(self) -> Iterator[EpisodeRecord]:
        """The episodes that are evidence, of this session and of those before it."""
        return records.read_records(self.episodes)

    def failed_records(self) -> Iterator[EpisodeRecord]:
        """The episodes that FAILED; a later session may have repeated one."""
        return records.read_records(self.failures)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Keep what `provenance.environment` made; on a resumed run, refuse an identity that is not the stored one.

        Settings are not compared again: `create` has done that.
        """
        file = self.path / ENVIRONMENT
        if file.exists() and has_results(self.path):
            stored = read_environment(self.path, self.config)
            found = differences(_without_settings(stored["identity"]), _without_settings(environment["identity"]))
            refuse_changes(found, self.path, "what it stands on has changed")
            environment = {**environment, "changes": stored["changes"]}
        with writing(file):
            files.write_json(file, environment)

    def record(self, **facts: Any) -> None:
        """Add to what `environment.json` records beside the run's identity; nothing where there is none yet."""
        file = self.path / ENVIRONMENT
        if file.exists():
            stored = files.read_json(file)
            with writing(file):
                files.write_json(file, {**stored, "recorded": {**stored.get("recorded", {}), **facts}})

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace `report.json`; it says which version of the format it has."""
        files.write_json(self.report, self._redactor.values({"schema": SCHEMA, **report}))

    def close(self) -> None:
        """Sync the records, end the trackers and let go of the folder; safe to call twice."""
        for descriptor in self._writers.values():
            os.fsync(descriptor)
            os.close(descriptor)
        self._writers.clear()
        try:
            if self.trackers is not None:
                self.trackers.close()
        finally:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, path: Path, line: bytes) -> None:
        descriptor = self._writers.get(path)
        if descriptor is None:
            descriptor = self._writers[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
            if written < len(line):  # a full disk, or a signal: the rest, or the reason why not
                os.write(descriptor, line[written:])
        except OSError:
            os.ftruncate(descriptor, size)  # no half line for the next one to be glued to
            raise


def read_config(path: Path) -> StageConfig:
    """The config of the run in a folder. Raises UserError."""
    file = path / "config.json"
    with writing(path):
        present = file.exists()
        there = path.exists()
    if not there:
        raise UserError(f"there is no `{path}`", hint="`tau2rl runs list` shows the runs that there are")
    if not present:
        raise UserError(
            f"`{path}` is not a run folder: it has no `config.json`", hint="name a folder such as `outputs/eval/default`"
        )
    values = files.read_json(file)
    stage = values.get("stage")
    if stage not in STAGES:
        raise UserError(f"`{file}` is of an unknown stage `{stage}`", hint=f"known: {', '.join(STAGES)}")
    try:
        return build(STAGES[stage], values, stored=True)
    except UserError as error:
        raise UserError(f"`{file}` is not the config of a run: {error.message}", hint=error.hint) from None


def has_results(path: Path) -> bool:
    """Whether a run has left anything in a folder that a new run would mix with."""
    return has_any(path, RESULTS)


def has_any(path: Path, names: Iterable[str]) -> bool:
    """Whether any of these files, or of the files in these folders, holds something."""
    places = [path / name for name in names]
    return any(any(place.iterdir()) if place.is_dir() else place.exists() and place.stat().st_size > 0 for place in places)


def make_run_folder(path: Path) -> None:
    """The folder of a run and its `logs/`, if they are not there. Raises UserError where something else is."""
    refuse_strangers(path, asked_for=("config.json", f"logs/{CLAIM}", "logs/lock"))
    with writing(path):
        files.make_folder(path / "logs")


def refuse_strangers(path: Path, *, asked_for: Sequence[str] = ("config.json",)) -> None:
    """Raise UserError where files lie that are not of a run, so that no run mixes with them or takes them along when it goes.

    A folder with one of the files `asked_for` is a run's. Who has no claim to the folder counts the claim's own file too:
    another process may be writing `config.json` at this moment. Whoever has the claim looks again, for `config.json` alone.
    """
    with writing(path):
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            if not path.exists():  # what lies above it is none
                raise
            raise UserError(f"`{path}` is not a directory", hint="choose another `--output`") from None
        strange = [name for name in names if name != "logs" and not name.startswith(".config.json.")]  # a killed process's
        # Behind the listing: what another process has put there came behind its claim, and goes before it.
        if strange and not _any_of(path, asked_for) and _any_of(path, strange):
            raise UserError(f"`{path}` holds files that are not of a run", hint="choose another `--output`, or empty it")


def _any_of(path: Path, names: Iterable[str]) -> bool:
    return any(os.path.lexists(path / name) for name in names)


def _without_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != "settings"}
