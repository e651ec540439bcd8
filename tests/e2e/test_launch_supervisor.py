"""The two processes that own a head, here around a command that is no Ray; pinned:

- whichever is killed, their owner, the outer or the inner one: all that runs below goes, also what left its parents' session and
  whose parents have died, and the folder goes with it
- a command that ends by itself ends both, with its last words
- a part of Ray that ends ends the head: the GCS at any time, the fork server of the dashboard until the raylet is there
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
    return run_below_two(folder, sys.executable, *command)


def shell(folder: Path, script: str) -> subprocess.Popen[bytes]:
    """The two with a shell script for a head."""
    return run_below_two(folder, "bash", "-c", script)


def run_below_two(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    one = [sys.executable, "-I", "-S", supervisor.__file__, str(folder)]
    return subprocess.Popen([*one, *one, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


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


HEAD = """
bash -c 'exec -a ray/gcs_server sleep 600' &
bash -c "bash -c 'exec -a multiprocessing.forkserver sleep 600'; sleep 600" &
{raylet}
wait
"""
RAYLET = "sleep 1; bash -c 'exec -a ray/raylet sleep 600' &"


def part_of(outer: int, words: bytes) -> int | None:
    below = [process for process in supervisor.descendants(outer) if supervisor.__file__.encode() not in words_of(process)]
    return next((process for process in below if words_of(process).startswith(words)), None)


def words_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("part", [b"ray/gcs_server", b"multiprocessing.forkserver"])
def test_a_part_that_ends_before_the_raylet_is_there_ends_the_head(tmp_path: Path, part: bytes) -> None:
    outer = shell(tmp_path / "folder", HEAD.format(raylet=""))
    assert outer.stdin is not None and outer.stdout is not None
    with outer.stdin, outer.stdout:
        wait_until(lambda: part_of(outer.pid, part) is not None)
        time.sleep(3 * supervisor.POLL_SECONDS)  # for it to be seen
        os.kill(part_of(outer.pid, part) or 0, signal.SIGKILL)
        assert outer.wait(60) == 1


def test_behind_the_raylet_the_fork_server_may_end_and_the_gcs_may_not(tmp_path: Path) -> None:
    outer = shell(tmp_path / "folder", HEAD.format(raylet=RAYLET))
    assert outer.stdin is not None and outer.stdout is not None
    with outer.stdin, outer.stdout:
        wait_until(lambda: part_of(outer.pid, b"ray/raylet") is not None)
        time.sleep(3 * supervisor.POLL_SECONDS)
        os.kill(part_of(outer.pid, b"multiprocessing.forkserver") or 0, signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            outer.wait(10 * supervisor.POLL_SECONDS)
        os.kill(part_of(outer.pid, b"ray/gcs_server") or 0, signal.SIGKILL)
        assert outer.wait(60) == 1
