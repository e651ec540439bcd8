"""One writer for a run: an advisory lock that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tau2rl.errors import UserError


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace `path` with these values; a reader sees the old file or the new one, after a crash too."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError that names the file."""
    try:
        values: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no such file `{path}`") from None
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"`{path}` is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"`{path}` is not a JSON object")
    return cast("dict[str, Any]", values)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, whatever it was before."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without links: the convenience is missing, the run is not
        temporary.symlink_to(target)
        temporary.replace(link)


def repair_tail(path: Path) -> int:
    """Cut a file back to its last newline; the number of bytes cut.

    A process that is killed inside `write` can leave the beginning of a line; the next line would be glued to it.
    """
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return size - end


PATIENCE_SECONDS = 10.0  # a job whose command line was killed needs a moment until it has ended too


class RunLock:
    """Holds `path` locked from construction to `close`. Raises UserError that names the process which has it."""

    def __init__(self, path: Path, *, patience_seconds: float = PATIENCE_SECONDS, deed: str = "is writing") -> None:
        """`deed`: what the holder is told to do with the run in the folder above `path`'s."""
        deadline = time.monotonic() + patience_seconds
        self._descriptor = -1
        try:
            while not _is(path, self._descriptor):  # the folder may go away while we wait, and the lock in it locks nothing then
                if self._descriptor >= 0:
                    self.close()
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._wait(path, deadline, deed)
        except BaseException:
            self.close()
            raise
        self.said = os.pread(self._descriptor, 512, 0).decode(errors="replace").strip()  # what the holder before us left
        self.note(f"process {os.getpid()} on {socket.gethostname()}")

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


def _is(path: Path, descriptor: int) -> bool:
    try:
        return descriptor >= 0 and os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
