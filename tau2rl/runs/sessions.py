"""The sessions of a run: one for each time that somebody starts or resumes it, each with a log folder of its own.

`logs/session_N/`, numbered from 1, and `logs/latest`, which points to the last. Runs of the first format have `logs/attempt_N/`.

A run has one writer at a time: `RunLock`, an advisory lock that the system drops when its holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from pathlib import Path

from tau2rl.errors import UserError
from tau2rl.runs.files import open_or_make, point_link, writing

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
