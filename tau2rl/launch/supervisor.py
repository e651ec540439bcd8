"""Owns a local Ray head and leaves nothing of it behind: `python supervisor.py FOLDER COMMAND...`, standard library alone.

It runs the command and kills everything below itself, and removes the folder, as soon as its standard input closes (whoever
started it is done, or was killed), the command ends, a signal comes, or the command loses one of its parts. What it kills are
processes by their parentage; those whose parent died have come to it (PR_SET_CHILD_SUBREAPER).

Two of them stand in a row, the outer one with the inner one as its command: whichever is killed, the other one ends the head.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

LOG = "head.log"  # below FOLDER: what the command says
POLL_SECONDS = 0.2
KILL_SECONDS = 10.0  # for what was killed to be gone
RAYLET, FORK_SERVER = "raylet", b"multiprocessing.forkserver"
SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>


def main(folder: Path, command: list[str]) -> int:
    """Run the command until there is a reason to end it: 0; 1 when it ended or broke by itself, its last words on stdout."""
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked_to_stop.append(received))
    adopt_orphans()
    log, broke, outer = folder / LOG, False, __file__ in command
    parts: dict[int, int] = {}
    try:
        with contextlib.nullcontext() if outer else log.open("wb") as file:
            # Its standard input is a pipe of ours, which closes when we are killed.
            head = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)
        while not (asked_to_stop or broke or select.select([sys.stdin], [], [], POLL_SECONDS)[0]):
            broke = head.pid in reap() or (not outer and _lost(head.pid, parts))
        if broke and log.exists():  # the inner one takes it along, after it has told what is in it
            sys.stdout.write(log.read_text(errors="replace")[-4000:])
        return int(broke)
    finally:
        kill_below(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def _lost(head: int, parts: dict[int, int]) -> bool:
    """Whether a part of Ray has ended; notes the parts and their parents in `parts`.

    When the raylet is there, which comes last, they are the children of `ray start --block`, which ends with them, but not when
    they end in peace, as the raylet does when one of its agents is killed. Before, they are those without which it would wait for
    a minute and longer: the GCS, and the fork server of the dashboard, which nobody needs later.
    """
    if any(_parent(part) != parent for part, parent in parts.items()):
        return True
    if not any(_program(part) == RAYLET for part in parts):
        listed = _parents()
        children = {process: head for process, parent in listed if parent == head}
        names = {child: _program(child) for child in children}
        if RAYLET in names.values():
            parts.clear()
            parts.update(children)
        else:
            parts.update({child: head for child, name in names.items() if name == "gcs_server"})
            parts.update({p: parent for p, parent in listed if parent in children and FORK_SERVER in _words(p)})
    return False


def adopt_orphans() -> None:
    """On Linux, processes below this one whose parent dies become children of this one instead of leaving its tree."""
    with contextlib.suppress(OSError, AttributeError):  # no prctl: another system, where such orphans go to init
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> list[int]:
    """Collect the children of this process that have ended."""
    ended: list[int] = []
    with contextlib.suppress(ChildProcessError):
        while (process := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended.append(process)
    return ended


def descendants(root: int) -> list[int]:
    """The living processes below `root`, parents before children, without `root` itself."""
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.pop(queue.pop(0), [])
        found += below
        queue += below
    return found


def kill_below(root: int) -> list[int]:
    """SIGKILL everything below `root` until nothing is there; what even that did not end."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := descendants(root)) and time.monotonic() < deadline:  # again and again: the dying can still have children
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    if root == os.getpid() and not left:
        with contextlib.suppress(ChildProcessError):  # none is left; their CPU time counts as ours then
            while True:
                os.wait()
    return left


def kill_session(session: int, mark: str) -> list[int]:
    """On Linux, SIGKILL every process of a session, and those that left it with `mark` in their environment; what is left.

    The mark alone does not do: processes of Ray write their titles over it.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while (left := _of_session(session, mark.encode())) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    return left


def _of_session(session: int, mark: bytes) -> list[int]:
    found: list[int] = []
    for process, _ in _parents():
        with contextlib.suppress(OSError):  # another user's, or gone
            if os.getsid(process) == session or mark in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
    return found


def _parents() -> list[tuple[int, int]]:
    """(process, parent) of every process that is not a zombie."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=False).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [(int(row[0]), int(row[1])) for row in rows if not row[2].startswith("Z")]
    found = [(int(name), _parent(int(name))) for name in os.listdir("/proc") if name.isdigit()]
    return [(process, parent) for process, parent in found if parent is not None]


def _parent(process: int) -> int | None:
    """None: it has ended."""
    with contextlib.suppress(OSError):
        # `pid (name) state ppid ...`; the name may hold spaces and brackets
        state, parent = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        return None if state in "ZX" else int(parent)
    return None


def _words(process: int) -> bytes:
    """Its command line; b"" when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _program(process: int) -> str:
    return _words(process).split(b"\0")[0].rpartition(b"/")[2].decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
