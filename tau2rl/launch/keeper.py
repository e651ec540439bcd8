"""Owns a local Ray head: `python -m tau2rl.launch.keeper FOLDER COMMAND...`; only the standard library, it starts in a moment.

It runs the command, and ends everything below itself and removes the folder as soon as its standard input closes. Whoever
started it holds the other end of that pipe, so the head goes when its owner is done, and also when the owner is killed.
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
GRACE_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Keep the command until standard input closes or a signal comes; 1 when it ended by itself, its last words on stdout."""
    folder, command = Path(arguments[0]), arguments[1:]
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked_to_stop.append(received))
    processes.adopt_orphans()
    log = folder / LOG
    try:
        with log.open("wb") as file:
            head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        died = _watch(head.pid, asked_to_stop)
        if died:
            sys.stdout.write(log.read_text(errors="replace")[-4000:])
        return int(died)
    finally:
        processes.end(_below_us, grace_seconds=GRACE_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _watch(head: int, asked_to_stop: list[int]) -> bool:
    """Whether the head ended before anybody asked for it."""
    while not asked_to_stop:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable and os.read(sys.stdin.fileno(), 1) == b"":
            return False
        if head in processes.reap():
            return True
    return False


def _below_us() -> list[int]:
    processes.reap()
    return processes.descendants(os.getpid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
