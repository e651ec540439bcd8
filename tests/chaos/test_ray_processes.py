"""kill -9 of each process of the head that a command owns, and of the command itself, in the middle of a run; pinned:

- the command ends within a minute with a word and the way to go on, or goes on where Ray mends itself; it never waits for ever
- nothing of it is left behind: no process below it, wherever it has gone, and no folder

Processes are found by their parentage below the command. Three kinds are killed in every run of the suite, all with `-m slow`;
`kill_table.py` kills each of them several times, at random moments, and tells what became of the run.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tau2rl.launch import jobs, supervisor
from tau2rl.launch.ray_head import LocalHead
from tau2rl.settings import child_environment
from tests.chaos.kill_table import ALL, KINDS, MINUTE, argv, born, episodes, find, kill, until, words_of

pytestmark = pytest.mark.e2e


def wait_until(what: Callable[[], object], seconds: float = MINUTE) -> None:
    assert until(what, seconds) is not None, "it did not happen"


def start(output: Path, samples: int) -> subprocess.Popen[str]:
    environment = {name: value for name, value in child_environment().items() if not name.startswith("RAY_ADDRESS")}
    command = argv(output, samples, "--concurrency", "1")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def in_the_middle(command: subprocess.Popen[str], output: Path) -> tuple[dict[int, str], Path]:
    """Every process of a run that has begun, and the folder of its head."""
    wait_until(lambda: episodes(output) or command.poll() is not None, 3 * MINUTE)  # a busy machine needs one for a head
    assert command.poll() is None, command.communicate()
    processes = {process: born(process) for process in supervisor.descendants(command.pid)}
    words = words_of(next(iter(processes))).split(" ")
    return processes, Path(words[words.index(supervisor.__file__) + 1])


def nothing_is_left(processes: dict[int, str], folder: Path) -> None:
    wait_until(lambda: not [p for p, began in processes.items() if began and born(p) == began] and not folder.exists())


@pytest.mark.parametrize(
    "kind",
    ["runtime env agent", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dashboard agent", "outer supervisor"))],
)
def test_a_killed_process_ends_the_command_with_a_word(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "run"
    command = start(output, 100_000)
    try:
        processes, folder = in_the_middle(command, output)
        (victim, *_) = find(command.pid, KINDS[kind])
        os.kill(victim, signal.SIGKILL)
        _, said = command.communicate(timeout=MINUTE)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 1, said
    assert "error: " in said
    assert f"tau2rl eval -c {output}/config.json --output {output} --resume" in said
    nothing_is_left(processes, folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_whichever_process_is_killed_the_run_ends_or_goes_on_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    killed = kill(kind, tmp_path, 1.0, playing=True)
    assert killed.well, killed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_command_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = start(tmp_path / "run", samples=100_000)
    processes, folder = in_the_middle(command, tmp_path / "run")
    command.send_signal(number)
    command.communicate(timeout=MINUTE)
    nothing_is_left(processes, folder)


@pytest.mark.slow
def test_a_module_of_the_dashboard_that_is_killed_is_started_again_by_ray(tmp_path: Path) -> None:
    command = start(tmp_path / "run", samples=1500)
    processes, folder = in_the_middle(command, tmp_path / "run")
    (victim, *_) = find(command.pid, "ray-dashboard-JobHead")
    os.kill(victim, signal.SIGKILL)
    _, said = command.communicate(timeout=5 * MINUTE)
    assert command.returncode == 0, said
    assert json.loads((tmp_path / "run" / "report.json").read_text())["attempts"] == 1500
    nothing_is_left(processes, folder)


@pytest.mark.slow
def test_a_log_monitor_that_is_killed_ends_the_wait() -> None:
    with LocalHead(training=True) as head:
        processes = {process: born(process) for process in supervisor.descendants(head.pid)}
        server = jobs.connect(head.address, head.headers, alive=head.alive)
        server.submit(f"exec {shlex.join([sys.executable, '-u', '-c', 'import time; print(1); time.sleep(600)'])}", "sleeper")
        heard: list[str] = []

        def kill_it(line: str) -> None:
            heard.append(line)
            if line == "1":
                (victim, *_) = find(head.pid, "log_monitor")
                os.kill(victim, signal.SIGKILL)

        assert server.follow("sleeper", on_line=kill_it, on_progress=lambda event: None) == 1
    assert heard[-1].startswith("error: ")
    nothing_is_left(processes, Path("/nowhere"))
