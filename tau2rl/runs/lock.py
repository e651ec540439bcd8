"""One writer for a run: an advisory lock that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tau2rl.errors import UserError
from tau2rl.runs.files import writing

PATIENCE_SECONDS = 10.0  # a job whose command line was killed needs a moment until it has ended too


class RunLock:
    """Holds `path` locked from construction to `close`. Raises UserError that names the process which has it."""

    def __init__(self, path: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait(path, time.monotonic() + patience_seconds)
            with writing(path):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Let the next one in; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wait(self, path: Path, deadline: float) -> None:
        while True:
            try:
                # flock, not lockf: a lock of the open file, so closing another handle to it in this process keeps it.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise UserError(
                        f"process {holder} is writing the run in `{path.parent.parent}`",
                        hint="wait until it has ended, or give this run another `--name`",
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                raise UserError(
                    f"cannot lock `{path}`: {error.strerror}", hint="the file system has no locks; choose another `--output`"
                ) from None
