"""A program as a child process: its words line by line, its end when ours is asked for, its exit code."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

OWN_END_SECONDS = 1.0  # a terminal and Ray's `stop` signal the child too; it is asked again only where they did not
GRACE_SECONDS = 20.0  # for a driver to say goodbye to its cluster; less than Ray waits before it kills (launch/jobs.py)
REST_SECONDS = 5.0  # for the last lines, where a process below the child still holds its output

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def run_child(command: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None], cwd: Path) -> int:
    """Run a program to its end; its exit code, negative for the signal that killed it.

    `on_line` gets each line of its output and errors, in a thread of its own. It reads no input. Whatever ends us ends it:
    an exception here (Ctrl-C) ends it by SIGTERM, then SIGKILL, and on Linux it does not outlive a `kill -9` of this process.
    It stays in our process group, which is what Ray ends when a job's supervisor dies.
    """
    libc = _libc()

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=die_with_parent,
    )
    assert child.stdout is not None
    reader = _Reader(child.stdout, on_line)
    reader.start()
    try:
        code = child.wait()
    finally:
        _end(child)
        reader.join(REST_SECONDS)
    if reader.error is not None:
        raise reader.error
    return code


class _Reader(threading.Thread):
    """Takes lines until there are none, whatever becomes of them: a pipe that nobody reads would stop the child."""

    def __init__(self, stream: IO[str], on_line: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._on_line = on_line
        self.error: OSError | None = None

    def run(self) -> None:
        with contextlib.suppress(ValueError):  # closed by the interpreter's end
            for line in self._stream:
                self._pass_on(line.rstrip("\n"))

    def _pass_on(self, line: str) -> None:
        if self.error is None:
            try:
                self._on_line(line)
            except OSError as error:  # a full disk: told when the child has ended, not by killing hours of its work
                self.error = error


def _end(child: subprocess.Popen[str]) -> None:
    """Wait a moment, then ask, then insist; nothing where it has ended."""
    for seconds, send in ((OWN_END_SECONDS, child.terminate), (GRACE_SECONDS, child.kill)):
        try:
            child.wait(0 if child.poll() is not None else seconds)
            return
        except subprocess.TimeoutExpired:
            send()
    child.wait()


def _libc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "prctl") else None
    return None
