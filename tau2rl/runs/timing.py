"""What each session of a run took, kept in the folder of its log so that a resumed run can add it up."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tau2rl.config import EvalConfig, RftConfig, SeedConfig, StageConfig
from tau2rl.errors import UserError
from tau2rl.report.cost import Costs, Session
from tau2rl.runs.files import DAMAGED, read_json, write_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.sessions import session_folders
from tau2rl.settings import available_cores

log = logging.getLogger(__name__)
FILE, FIRST_FORMAT = "timing.json", "play.json"
USAGE = "usage.json"  # wall and CPU seconds of the whole job, its loading too
USAGE_SECONDS = 5.0  # so much of what it took a session that is killed may leave unsaid


class PhaseTimer:
    """Measures one session: `with timer.phase("update"): ...`; what it has is written down by `write`."""

    def __init__(self, file: Path, config: StageConfig, device: str) -> None:
        """It begins now."""
        self._file = file
        self._session = _known_before(config, device)
        self._began, self._cpu = time.monotonic(), time.process_time()
        self.wall: dict[str, float] = {}  # seconds of each phase of a training
        self.trained = 0  # tokens
        self.largest_step: dict[str, float] = {}  # most tokens played, most seconds
        self.played: Costs | None = None  # for a run that does not keep its episodes

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count the time of what runs inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count so much time."""
        self.wall[name] = self.wall.get(name, 0.0) + seconds

    def write(self, *, ended: bool = False) -> None:
        """Write down what there is. How long it took is known when it has ended: whoever is killed leaves nulls for that."""
        known = {"wall": self.wall, "trained": self.trained, "largest_step": self.largest_step, "played": self.played}
        session = replace(self._session, **known)
        if ended:
            session = replace(session, seconds=time.monotonic() - self._began, cpu_seconds=time.process_time() - self._cpu)
        write_json(self._file, session.to_json())


@contextmanager
def timed(folder: RunFolder, *, device: str = "cpu") -> Generator[PhaseTimer]:
    """Measure what runs inside. A session that is killed there leaves nulls: it worked, and nobody knows for how long.

    `device`: where this process trains; a policy in it is known by the settings.
    """
    timer = PhaseTimer(folder.logs / FILE, folder.config, device)
    timer.write()
    try:
        yield timer
    finally:
        timer.write(ended=True)


def sessions(run: Path, name: str = FILE) -> list[Session]:
    """What the sessions of a run left in files of this name. One that found nothing left to do is none."""
    names = (name, FIRST_FORMAT) if name == FILE else (name,)
    files = [folder / each for folder in session_folders(run).values() for each in names]
    return [_session(file) for file in files if file.exists()]


@contextmanager
def usage_kept(folder: RunFolder, progress: Progress) -> Generator[Progress]:
    """Write down what this session takes, its loading too, at its end and every few seconds at which it says how far it is."""
    began, cpu, written = time.monotonic(), time.process_time(), 0.0

    def write() -> None:
        nonlocal written
        written = time.monotonic()
        try:
            write_json(folder.usage, {"seconds": written - began, "cpu_seconds": time.process_time() - cpu})
        except OSError as error:  # a full disk has been told already
            log.warning("cannot write `%s`: %s", folder.usage, error.strerror)

    def heard(event: ProgressEvent) -> None:
        progress(event)
        if time.monotonic() - written > USAGE_SECONDS:
            write()

    try:
        yield heard
    finally:
        write()


def usage(run: Path, *, but: Path | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of all jobs of a run; of one that was killed, up to the last that it wrote down.

    `but`: the log folder of a session that does not count, which goes on.
    """
    files = [folder / USAGE for folder in session_folders(run).values() if folder != but]
    found = [read_json(file) for file in files if file.exists()]
    try:
        return sum(float(each["seconds"]) for each in found), sum(float(each["cpu_seconds"]) for each in found)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a `{USAGE}` below `{run / 'logs'}` is not the account of a session: {error}", hint=DAMAGED) from None


def _session(file: Path) -> Session:
    try:
        return Session.from_json(_present_names(read_json(file)))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"`{file}` is not the account of a session", hint=DAMAGED) from None


def _present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file of the first format under the names of today."""
    wall = {"validation" if name == "looks" else name: seconds for name, seconds in values.get("wall", {}).items()}
    played = values.get("played")
    if played and "customer_seconds" in played:
        played = {"user_seconds" if name == "customer_seconds" else name: value for name, value in played.items()}
    return {**values, "wall": wall, "played": played}


def _known_before(config: StageConfig, device: str) -> Session:
    """What is known before it begins."""
    workers = 0
    if isinstance(config, EvalConfig | SeedConfig | RftConfig):
        workers, device = config.rollout.workers, config.local.device if config.policy.kind == "local" else device
    return Session(seconds=None, cpu_seconds=None, cores=available_cores(), workers=workers, gpu=device != "cpu")
