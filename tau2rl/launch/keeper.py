"""Owns a local Ray head: `python -m tau2rl.launch.keeper FOLDER COMMAND...`; only the standard library, it starts in a moment.

It runs the command, and ends everything below itself and removes the folder as soon as its standard input closes. Whoever
started it holds the other end of that pipe, so the head goes when its owner is done, and also when the owner is killed. An owner
that is done says so (`AT_ONCE`); what still runs below one that was killed is asked to end first, and has a second for it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tau2rl.launch import processes

LOG = "head.log"  # below FOLDER: what the command says
AT_ONCE = b"."  # on standard input: nothing below has work to bring to an end
GRACE_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Keep the command until standard input closes or a signal comes; 1 when it ended by itself, its last words on stdout."""
    folder, command = Path(arguments[0]), arguments[1:]
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked_to_stop.append(received))
    processes.adopt_orphans()
    log, grace = folder / LOG, GRACE_SECONDS
    try:
        with log.open("wb") as file:
            head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        said = _watch(head.pid, asked_to_stop)
        if said is None:
            sys.stdout.write(log.read_text(errors="replace")[-4000:])
        elif said == AT_ONCE:
            grace = 0.0
        return int(said is None)
    finally:
        processes.end(_below_us, grace_seconds=grace)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(head: int, asked_to_stop: list[int]) -> bytes | None:
    """What the owner said at the end: nothing when it was killed, or when a signal came. None: the head ended by itself."""
    while not asked_to_stop:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable:
            return os.read(sys.stdin.fileno(), 1)
        if head in processes.reap():
            return None
    return b""


def _below_us() -> list[int]:
    processes.reap()
    return processes.descendants(os.getpid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
