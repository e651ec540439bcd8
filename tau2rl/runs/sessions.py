"""The sessions of a run: one for each time that somebody starts or resumes it, each with a log folder of its own.

`logs/session_N/`, numbered from 1, and `logs/latest`, which points to the last. Runs of the first format have `logs/attempt_N/`.

A run has one writer at a time: `RunLock`, an advisory lock that the system drops when its holder dies, however it dies. Before a
job has opened it, one process claims the folder, and gives it back when the run was refused at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from tau2rl.config import StageConfig
from tau2rl.errors import UserError
from tau2rl.runs.files import open_or_make, point_link, writing
from tau2rl.runs.folder import CLAIM, EVIDENCE, JOB, RunFolder, has_any, make_run_folder, refuse_strangers

_NAME = re.compile(r"(?:session|attempt)_(\d+)")


def session_folders(run: Path) -> dict[int, Path]:
    """Number -> log folder of every session of a run, in order."""
    named = ((_NAME.fullmatch(item.name), item) for item in (run / "logs").glob("*_*"))
    return dict(sorted((int(name[1]), item) for name, item in named if name))


def begin_session(run: Path) -> tuple[int, Path]:
    """Make the log folder of the next session and let `logs/latest` point to it. Raises OSError."""
    number = max(session_folders(run), default=0) + 1
    folder = run / "logs" / f"session_{number}"
    folder.mkdir()
    point_link(run / "logs" / "latest", folder.name)
    return number, folder


PATIENCE_SECONDS = 10.0  # a job whose command line was killed needs a moment until it has ended too


class RunLock:
    """Holds `path` locked from construction to `close`. Raises UserError that names the process which has it."""

    def __init__(self, path: Path, *, patience_seconds: float = PATIENCE_SECONDS, deed: str = "is writing") -> None:
        """`deed`: what the holder is told to do with the run in the folder above `path`'s."""
        deadline = time.monotonic() + patience_seconds
        self._descriptor = -1
        try:
            while not _is(path, self._descriptor):  # the folder may go away while we wait, and the lock in it locks nothing then
                self.close()
                with writing(path):
                    self._descriptor = open_or_make(path)
                self._wait(path, deadline, deed)
            self.said = os.pread(self._descriptor, 512, 0).decode(errors="replace").strip()  # what the holder before us left
            with writing(path):
                self.note(f"process {os.getpid()} on {socket.gethostname()}")
        except BaseException:
            self.close()
            raise

    def note(self, text: str) -> None:
        """Write into the file what others are told."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{text}\n".encode(), 0)

    def close(self) -> None:
        """Let the next one in; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wait(self, path: Path, deadline: float, deed: str) -> None:
        while True:
            try:
                # flock, not lockf: a lock of the open file, so closing another handle to it in this process keeps it.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(self._descriptor, 512, 0).decode(errors="replace").strip() or "another process"
                    raise UserError(
                        f"{holder} {deed} the run in `{path.parent.parent}`",
                        hint="wait until it has ended, or give this run another `--name`",
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                raise UserError(
                    f"cannot lock `{path}`: {error.strerror}", hint="the file system has no locks; choose another `--output`"
                ) from None


def is_open(run: Path) -> bool:
    """Whether a process is writing a run. It has the lock for a moment itself; whoever opens a run waits longer than that."""
    try:
        descriptor = os.open(run / "logs" / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return descriptor >= 0 and os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that one process has asked for, and nobody else may as long as this is held; it goes with its holder."""

    path: Path
    new: bool  # whether nothing of a run was there before
    _lock: RunLock

    @contextlib.contextmanager
    def left_to(self, job: str) -> Generator[None]:
        """After this block the claim is that of a job which nobody follows, until it has opened the folder."""
        self._lock.note(f"{JOB}{job}")  # ahead: once it is submitted, it may open the folder at any moment
        try:
            yield
        except BaseException:
            self._lock.note("")
            raise

    def withdraw(self) -> None:
        """Take away the folder of a run that was refused, where it is new: what was refused must not hold the name."""
        if self.new:
            withdraw(self.path)


HasEnded = Callable[[str, str], bool]  # (job, address of its server): whether it is known to be over


@contextlib.contextmanager
def claimed(
    path: Path, config: StageConfig, *, resume: bool, has_ended: HasEnded = lambda job, address: False
) -> Generator[Claim]:
    """`RunFolder.create`, and the claim to what it made. Raises UserError that names the holder, and for what `create` does.

    `has_ended` is asked about a job to which the run was left and which has not opened its folder: one that died before holds
    nothing any more.
    """
    path = path.absolute()
    make_run_folder(path)
    lock = RunLock(path / "logs" / CLAIM, patience_seconds=0, deed="has started")
    try:
        job, _, address = lock.said.removeprefix(JOB).partition(" at ")
        if lock.said.startswith(JOB) and not has_ended(job, address):
            lock.note(lock.said)
            raise UserError(
                f"{lock.said} was submitted for the run in `{path}` and has not opened its folder yet",
                hint=f"wait for it, or end it with `ray job stop` and remove `{path / 'logs' / CLAIM}`",
            )
        refuse_strangers(path)  # before there is a claim: what is withdrawn with it must not be theirs
        claim = Claim(path, not (path / "config.json").exists(), lock)
        try:
            RunFolder.create(path, config, resume=resume)
        except UserError:
            claim.withdraw()
            raise
        yield claim
    finally:
        lock.close()


def withdraw(path: Path) -> bool:
    """Take away the folder of a run that was refused before it did anything, so that its name is free; whether it is gone.

    Only for a folder that is claimed and new. It stays while a process has it open, and when it
    holds an episode, a number or a report; what a session prepared (an initial checkpoint, its log) goes with it.
    """
    if not path.is_dir():
        return False
    try:
        lock = RunLock(path / "logs" / "lock", patience_seconds=0)
    except (UserError, OSError):
        return False
    try:
        if has_any(path, EVIDENCE):
            return False
        return _removed(path)
    finally:
        lock.close()


def _removed(path: Path) -> bool:
    """Remove the folder, `logs/` with the claim last: until then nobody takes what is left for another's files."""
    linked = path.is_symlink()  # whose link it is, and where it points, is not ours
    path = path.resolve()
    with contextlib.suppress(OSError):  # whoever comes as soon as the claim is gone has the rest
        for item in sorted(path.iterdir(), key=lambda item: item.name == "logs"):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        if not linked:
            path.rmdir()
    return not (path / "config.json").exists()
