"""The process that owns a head, here around a command that is no Ray; pinned:

- an owner that is done is not made to wait: what is left below is killed;
- what runs below an owner that was killed is asked to end, and has the time to;
- the folder goes in both cases; a command that ends by itself ends the keeper with its last words.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tau2rl.launch.keeper import AT_ONCE

pytestmark = pytest.mark.e2e
SLOW = """
import pathlib, signal, sys, time
def bye(*_):
    pathlib.Path(sys.argv[1], "asked").touch()
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, bye)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


def keeper(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    words = [sys.executable, "-m", "tau2rl.launch.keeper", str(folder), sys.executable, *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


@pytest.mark.parametrize(("word", "ended"), [(b"", True), (AT_ONCE, False)])
def test_whose_owner_was_killed_has_time_to_end_and_whose_owner_is_done_needs_none(
    tmp_path: Path, word: bytes, ended: bool
) -> None:
    process = keeper(tmp_path / "folder", "-c", SLOW, str(tmp_path))
    while not (tmp_path / "ready").exists():
        assert process.poll() is None, "it did not begin"
    out, _ = process.communicate(word, timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert (tmp_path / "ended").exists() == ended
    assert not (tmp_path / "folder").exists()


def test_a_command_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = keeper(tmp_path / "folder", "-c", "raise SystemExit('no port is free')")
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read() == b"no port is free\n"
    assert process.wait(60) == 1
    assert process.stdin is not None
    process.stdin.close()
    assert not (tmp_path / "folder").exists()
