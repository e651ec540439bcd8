"""The processes below one of ours, found and ended by their ids; never by a name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_INTERRUPTED = 130


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread; the second exits with 130."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]  # nohup means what it says
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def send(processes: list[int], sig: signal.Signals) -> None:
    """Signal those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, sig)


def end(processes: Callable[[], list[int]], *, grace_seconds: float) -> list[int]:
    """SIGTERM, then after `grace_seconds` SIGKILL, until `processes()` is empty; what even that did not end."""
    send(processes(), signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    deadline = time.monotonic() + 10
    while (left := processes()) and time.monotonic() < deadline:  # again and again: the dying can still have children
        send(left, signal.SIGKILL)
        time.sleep(0.05)
    return processes()


def adopt_orphans() -> None:
    """On Linux, processes below this one whose parent dies become children of this one instead of leaving its tree."""
    import ctypes

    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>
    with contextlib.suppress(OSError, AttributeError):  # no prctl: another system, where such orphans go to init
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def reap() -> list[int]:
    """Collect the children of this process that have ended."""
    ended: list[int] = []
    with contextlib.suppress(ChildProcessError):
        while (process := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended.append(process)
    return ended


def _parents() -> list[tuple[int, int]]:
    """(process, parent) of every process that is not a zombie."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=False).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [(int(row[0]), int(row[1])) for row in rows if not row[2].startswith("Z")]
    pairs: list[tuple[int, int]] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                # `pid (name) state ppid ...`; the name may hold spaces and brackets
                state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    pairs.append((int(folder.name), int(parent)))
    return pairs
