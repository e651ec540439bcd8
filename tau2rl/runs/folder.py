"""The run folder: made by whoever asks for a run, opened by the one process that carries it out.

`outputs/STAGE/NAME/`: `config.json environment.json episodes.jsonl failures.jsonl metrics.jsonl report.json checkpoints/
logs/attempt_N/ logs/latest`.

A record is one `write` of a whole line, so a kill at any moment (-9 too) loses at most the line being written. Lines are not
forced to the disk one by one: the kernel has them, a dead process cannot take them back, and an fsync for every episode
stalls all others on a slow disk. Only a power failure can cost the last seconds; the folder is synced when it is closed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tau2rl import settings
from tau2rl.config import STAGES, StageConfig, build, dump
from tau2rl.errors import UserError
from tau2rl.runs import files, records
from tau2rl.runs.files import PATIENCE_SECONDS, RunLock
from tau2rl.runs.provenance import differences, settings_of
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.types import EpisodeRecord, Status

_EVIDENCE = ("episodes.jsonl", "failures.jsonl", "metrics.jsonl", "report.json")
_RESULTS = (*_EVIDENCE, "checkpoints")
CLAIM, _JOB = "claim", "job "  # below logs/: who has asked for the run, and how the name of a job begins there


def run_path(config: StageConfig) -> Path:
    """Where the run of a config lives, absolute: `config.output`, else `OUTPUT_ROOT/STAGE/NAME`. Raises UserError."""
    if config.output is not None:
        return config.output.expanduser().absolute()
    if config.name in {"", ".", ".."} or Path(config.name).name != config.name:
        raise UserError(f"`{config.name}` cannot name a run", hint="a name without `/`; `--output` takes a whole path")
    return (settings.output_root() / stage_of(config) / config.name).absolute()


def stage_of(config: StageConfig) -> str:
    """The name of the config's stage.

    >>> from tau2rl.config import EvalConfig
    >>> stage_of(EvalConfig.model_construct())
    'eval'
    """
    return str(dump(config)["stage"])


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that one process has asked for, and nobody else may as long as this is held; it goes with its holder."""

    path: Path
    new: bool  # whether nothing of a run was there before
    _lock: RunLock

    @contextmanager
    def left_to(self, job: str) -> Generator[None]:
        """After this block the claim is that of a job which nobody follows, until it has opened the folder."""
        self._lock.note(f"{_JOB}{job}")  # ahead: once it is submitted, it may open the folder at any moment
        try:
            yield
        except BaseException:
            self._lock.note("")
            raise

    def withdraw(self) -> None:
        """Take away the folder of a run that was refused, where it is new: what was refused must not hold the name."""
        if self.new:
            withdraw(self.path)


@contextmanager
def claimed(path: Path, config: StageConfig, *, resume: bool) -> Generator[Claim]:
    """`RunFolder.create`, and the claim to what it made. Raises UserError that names the holder, and for what `create` does."""
    path = path.absolute()
    _make(path)
    lock = RunLock(path / "logs" / CLAIM, patience_seconds=0, deed="has started")
    try:
        if lock.said.startswith(_JOB):
            lock.note(lock.said)
            raise UserError(
                f"{lock.said} was submitted for the run in `{path}` and has not opened its folder yet",
                hint=f"wait for it, or end it with `ray job stop` and remove `{path / 'logs' / CLAIM}`",
            )
        claim = Claim(path, not (path / "config.json").exists(), lock)
        try:
            RunFolder.create(path, config, resume=resume)
        except UserError:
            claim.withdraw()
            raise
        yield claim
    finally:
        lock.close()


class RunFolder:
    """An open run. Use it as a context manager; while it is open no other process can open it."""

    def __init__(self, path: Path, config: StageConfig, lock: RunLock) -> None:
        """See `create` and `open`; a folder is not made by hand."""
        self.path = path
        self.config = config
        self._lock = lock
        self.torn_bytes = sum(files.repair_tail(file) for file in (self.episodes, self.failures, self.metrics))
        self.attempt, self.logs = _new_attempt(path / "logs")
        self._redactor = Redactor(key_variables(dump(config)))
        self._writers: dict[Path, int] = {}

    @staticmethod
    def create(path: Path, config: StageConfig, *, resume: bool, patience_seconds: float = PATIENCE_SECONDS) -> Path:
        """Make the folder and write `config.json` (with `resume` off: what is stored describes the run, not this start).

        Raises UserError: the folder holds something else, or a run and `resume` is off, or a run with other settings,
        or a run that a process is still writing.
        """
        values = dump(config)
        Redactor(key_variables(values)).refuse(values)
        path = path.absolute()
        _make(path)
        lock = RunLock(path / "logs" / "lock", patience_seconds=patience_seconds)
        try:
            if has_results(path):
                if not resume:
                    raise UserError(
                        f"`{path}` holds a run already",
                        hint="continue it with `--resume`, or choose another `--name` or `--output`",
                    )
                stored = settings_of(read_config(path))
                _refuse_differences(differences(stored, settings_of(config)), path, "its settings are not the same")
            files.write_json(path / "config.json", {**values, "resume": False})
        finally:
            lock.close()
        return path

    @classmethod
    def open(cls, path: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> RunFolder:
        """Take the folder that `create` made: lock it, repair torn lines, begin `logs/attempt_N`. Raises UserError."""
        path = path.absolute()
        config = read_config(path)
        (path / "logs").mkdir(exist_ok=True)
        lock = RunLock(path / "logs" / "lock", patience_seconds=patience_seconds)
        try:
            claim = path / "logs" / CLAIM
            if claim.exists() and claim.read_text(encoding="utf-8").startswith(_JOB):
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
        """Every episode that is none: our world broke, after all its tries."""
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
        """What this start took."""
        return self.logs / "usage.json"

    @property
    def job_log(self) -> Path:
        """The log of this start."""
        return self.logs / "job.log"

    def append(self, record: EpisodeRecord) -> None:
        """Keep an episode: FAILED ones in `failures.jsonl`, all others in `episodes.jsonl`. Raises OSError (disk full)."""
        failed = record.episode.status is Status.FAILED
        self._write(self.failures if failed else self.episodes, records.encode(self._redactor.record(record)))

    def records(self) -> Iterator[EpisodeRecord]:
        """The episodes that are evidence, of this start and of those before it."""
        return records.read(self.episodes)

    def failed_records(self) -> Iterator[EpisodeRecord]:
        """The episodes that FAILED; a later start may have repeated one."""
        return records.read(self.failures)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Keep what `provenance.environment` made; on a resumed run, refuse an identity that is not the stored one."""
        path = self.path / "environment.json"
        if path.exists() and has_results(self.path):
            stored = files.read_json(path)
            found = differences(stored.get("identity", {}), environment["identity"])
            _refuse_differences(found, self.path, "what it stands on has changed")
        files.write_json(path, environment)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace `report.json`."""
        files.write_json(self.report, self._redactor.values(report))

    def close(self) -> None:
        """Sync the records and let go of the folder; safe to call twice."""
        for descriptor in self._writers.values():
            os.fsync(descriptor)
            os.close(descriptor)
        self._writers.clear()
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
    if not file.exists():
        raise UserError(f"`{path}` is not a run folder: it has no `config.json`")
    values = files.read_json(file)
    stage = values.get("stage")
    if stage not in STAGES:
        raise UserError(f"`{file}` is of an unknown stage `{stage}`", hint=f"known: {', '.join(STAGES)}")
    return build(STAGES[stage], values, stored=True)


def has_results(path: Path) -> bool:
    """Whether a run has left anything in a folder that a new run would mix with."""
    return _has_any(path, _RESULTS)


def withdraw(path: Path) -> bool:
    """Take away the folder of a run that was refused before it did anything, so that its name is free; whether it is gone.

    Only for a folder that is claimed and new. It stays while a process has it open, and when it
    holds an episode, a number or a report; what a start prepared (an initial checkpoint, its log) goes with it.
    """
    try:
        lock = RunLock(path / "logs" / "lock", patience_seconds=0)
    except (UserError, OSError):
        return False
    try:
        if _has_any(path, _EVIDENCE):
            return False
        shutil.rmtree(path)
        return True
    finally:
        lock.close()


def _has_any(path: Path, names: Iterable[str]) -> bool:
    places = [path / name for name in names]
    return any(any(place.iterdir()) if place.is_dir() else place.exists() and place.stat().st_size > 0 for place in places)


def _make(path: Path) -> None:
    _refuse_strangers(path)
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder `{path}`: {error.strerror}") from None


def _refuse_strangers(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"`{path}` is not a directory", hint="choose another `--output`")
    if path.is_dir() and not (path / "config.json").exists() and any(item.name != "logs" for item in path.iterdir()):
        raise UserError(f"`{path}` holds files that are not of a run", hint="choose another `--output`, or empty it")


def _refuse_differences(found: list[tuple[str, Any, Any]], path: Path, why: str) -> None:
    if found:
        lines = "\n".join(f"  {key}: was {was!r}, now {now!r}" for key, was, now in found)
        raise UserError(f"cannot resume `{path}`: {why}\n{lines}", hint="restore them, or choose another `--name` or `--output`")


def _new_attempt(logs: Path) -> tuple[int, Path]:
    known = [int(item.name.removeprefix("attempt_")) for item in logs.glob("attempt_*") if item.name[8:].isdigit()]
    number = max(known, default=0) + 1
    folder = logs / f"attempt_{number}"
    folder.mkdir()
    files.point(logs / "latest", folder.name)
    return number, folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a stage has to show: `Result(report={...}, complete=True)`. Incomplete: on disk, to be resumed; exit code 1."""

    report: dict[str, Any]
    complete: bool
