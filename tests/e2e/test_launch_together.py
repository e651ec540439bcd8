"""Two starts of the command line for the same run; pinned:

- one of them has the run from the first moment to its end, and the other one is told who has it, also before the job began
- the result that a command shows is its own
- who was killed holds no name
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2rl.settings import child_environment

pytestmark = pytest.mark.e2e
SMALL = ["--domains", "mock", "--task-split", "base", "--limit", "1", "--num-samples", "1", "--concurrency", "1"]
AGENT = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted"]


def start(output: Path, seed: int, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tau2rl",
        "eval",
        *SMALL,
        *AGENT,
        "--output",
        str(output),
        "--seed",
        str(seed),
        "--json",
        *more,
    ]
    environment = {name: value for name, value in child_environment().items() if not name.startswith("RAY_ADDRESS")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def seed_of(output: Path) -> int:
    return json.loads((output / "config.json").read_text())["seed"]


def test_a_run_whose_job_has_not_begun_is_not_taken_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, 1)
    wait_until(lambda: (run / "config.json").exists() or first.poll() is not None)
    first.send_signal(signal.SIGSTOP)  # it submits no job before the other one has its answer
    second = start(run, 2)
    _, refused = second.communicate(timeout=120)
    began = list(run.glob("logs/*_1"))
    first.send_signal(signal.SIGCONT)
    assert not began
    out, said = first.communicate(timeout=240)
    assert first.returncode == 0, said
    assert second.returncode == 2, refused
    assert re.search(rf"error: process {first.pid} on \S+ has started the run in `{run}`", refused)
    assert seed_of(run) == 1
    assert json.loads(out) == json.loads((run / "report.json").read_text())


def test_the_name_of_a_command_that_was_killed_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, 1)
    wait_until(lambda: (run / "config.json").exists() or first.poll() is not None)
    first.kill()
    first.communicate()
    second = start(run, 2, "--inline")
    _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert seed_of(run) == 2


@pytest.mark.parametrize("_round", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 16))])
def test_of_two_starts_at_once_one_has_the_run(tmp_path: Path, _round: int) -> None:
    run = tmp_path / "run"
    both = {seed: start(run, seed, "--inline") for seed in (1, 2)}
    ended = {seed: process.communicate(timeout=240) for seed, process in both.items()}
    codes = {seed: process.returncode for seed, process in both.items()}
    assert sorted(codes.values()) == [0, 2], ended
    winner = min(codes, key=lambda seed: codes[seed])
    loser = 3 - winner
    assert re.search(rf"process {both[winner].pid} on|another process has started|holds a run already", ended[loser][1]), ended[
        loser
    ]
    assert seed_of(run) == winner
    assert json.loads(ended[winner][0]) == json.loads((run / "report.json").read_text())
    assert len((run / "episodes.jsonl").read_text().splitlines()) == 1
