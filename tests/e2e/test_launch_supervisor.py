"""The two processes that own a head, here around a command that is no Ray; pinned:

- whichever is killed, their owner, the outer or the inner one: all that runs below goes, also what left its parents' session and
  whose parents have died, and the folder goes with it
- a command that ends by itself ends both, with its last words
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2rl.launch import supervisor

pytestmark = pytest.mark.e2e
# A child in a session of its own, and a grandchild whose parent has ended.
BUSY = """
import pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
subprocess.Popen(["sleep", "600"], start_new_session=True)
subprocess.run(["sh", "-c", "sleep 601 & echo $!"], start_new_session=True, stdout=open(folder / "orphan", "w"))
(folder / "ready").touch()
time.sleep(600)
"""


def supervised(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    one = [sys.executable, "-I", "-S", supervisor.__file__, str(folder)]
    return subprocess.Popen([*one, *one, sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["owner", "outer", "inner", "asked"])
def test_whichever_is_killed_nothing_stays(tmp_path: Path, victim: str) -> None:
    outer = supervised(tmp_path / "folder", "-c", BUSY, str(tmp_path))
    wait_until(lambda: (tmp_path / "ready").exists() or outer.poll() is not None)
    below = supervisor.descendants(outer.pid)
    assert len(below) == 4, "the inner one, the command, the sleeper and the orphan"
    assert int((tmp_path / "orphan").read_text()) in below
    assert outer.stdin is not None and outer.stdout is not None
    with outer.stdin, outer.stdout:
        match victim:
            case "owner":
                outer.stdin.close()  # as the system does
            case "asked":
                outer.send_signal(signal.SIGTERM)
            case _:
                os.kill(outer.pid if victim == "outer" else below[0], signal.SIGKILL)
        wait_until(lambda: not any(map(alive, below)) and not (tmp_path / "folder").exists())
        assert outer.wait(60) == {"outer": -9, "inner": 1}.get(victim, 0)


def test_a_command_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    outer = supervised(tmp_path / "folder", "-c", "raise SystemExit('no port is free')")
    assert outer.stdin is not None and outer.stdout is not None
    with outer.stdin, outer.stdout:
        assert outer.stdout.read() == b"no port is free\n"
    assert outer.wait(60) == 1
    assert not (tmp_path / "folder").exists()
