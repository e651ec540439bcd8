"""The job's side, in this process.

- the exit code says how a run ended: done, incomplete, wrong request, interrupted, bug
- a bug is one line for people and a traceback in the log of that start, without secrets
- neither that line nor the log holds what a terminal would obey, whatever servers and libraries say
- progress is written at most once a second, and its end always
- the first signal interrupts, the second ends at once, an ignored one stays ignored
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.launch import entry
from tau2rl.launch.entry import interruptible
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import PREFIX, JsonProgress, ProgressEvent, parse


def config(**changes: object) -> EvalConfig:
    small = {
        "tasks": {"domains": ["mock"], "split": "base", "limit": 2},
        "policy": {"kind": "gold"},
        "chat": {"protocol": "transcript"},
        "user": {"kind": "scripted"},
        "rollout": {"num_samples": 1, "concurrency": 2},
    }
    return build(EvalConfig, {**small, **changes})


def made(folder: Path, **changes: object) -> Path:
    return RunFolder.create(folder / "run", config(**changes), resume=False)


def job(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tau2rl.launch.entry", str(path), str(path.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.e2e
def test_a_run_that_is_done_ends_with_0_and_a_report(tmp_path: Path) -> None:
    path = made(tmp_path)
    done = job(path)
    assert done.returncode == 0, done.stderr
    assert json.loads((path / "report.json").read_text())["tasks"] == 2
    events = [event for line in done.stdout.splitlines() if (event := parse(line))]
    assert (events[-1].done, events[-1].total, events[-1].successes) == (2, 2, 2)
    log = (path / "logs" / "latest" / "job.log").read_text().splitlines()
    assert f"eval {path} begins, start 1" in log[0]
    assert f"eval {path} ends with code 0" in log[-1]


def test_a_wrong_request_ends_with_2_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([str(made(tmp_path, tasks={"domains": ["mock"], "split": "tset"}))]) == 2
    assert "`tset`" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["/no/such/run"]])
def test_no_run_folder_is_a_wrong_request(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(arguments) == 2
    assert ("run folder" if not arguments else "there is no `/no/such/run`") in capsys.readouterr().err


def test_a_bug_is_one_line_for_people_and_a_traceback_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    path, said = made(tmp_path), []

    def broken(event: ProgressEvent) -> None:
        raise ZeroDivisionError("near sk-planted-1\nsecond line")

    assert entry.run(path, broken, say=said.append) == 1
    log = (path / "logs" / "session_1" / "job.log").read_text()
    assert said == [f"error: ZeroDivisionError: near [OPENAI_API_KEY]\n\nhint: see {path / 'logs' / 'session_1' / 'job.log'}"]
    assert "Traceback" in log
    assert "planted" not in log


OBEYED = "\x1b]0;title\x07\x1b[2J\x9b31mred\u202e"


def test_the_log_holds_nothing_that_a_terminal_would_obey(tmp_path: Path) -> None:
    path, said = made(tmp_path), []

    def broken(event: ProgressEvent) -> None:
        logging.getLogger("tau2rl.test").warning("a server said %s", OBEYED)
        raise ZeroDivisionError(OBEYED)

    assert entry.run(path, broken, say=said.append) == 1
    log = (path / "logs" / "session_1" / "job.log").read_text()
    assert "a server said red" in log
    assert "ZeroDivisionError: red" in log  # below the traceback
    assert not set(log) & set("\x1b\x07\x9b\u202e")


def test_what_the_job_says_holds_nothing_that_a_terminal_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(OBEYED)

    monkeypatch.setattr(entry, "run_stage", broken)
    assert entry.main([str(made(tmp_path))]) == 1
    told = capsys.readouterr().err
    assert "error: ZeroDivisionError: red" in told
    assert not set(told) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("detach", [False, True])
def test_an_interrupted_run_ends_with_130_and_can_be_continued(tmp_path: Path, detach: bool) -> None:
    path, said = made(tmp_path, launch={"detach": detach}), list[str]()

    def interrupt(event: ProgressEvent) -> None:
        if event.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with interruptible():
        assert entry.run(path, interrupt, say=said.append) == 130
    # Whoever waits for the run says what to type; where nobody waits, the job does.
    assert ["continue it with `--resume`" in text for text in said] == [True] * detach
    assert entry.run(path, lambda event: None, say=said.append) == 0
    with RunFolder.open(path) as folder:
        assert len(list(folder.records())) == 2
        assert folder.session == 3


def test_progress_is_written_at_most_once_an_interval_and_its_end_always() -> None:
    now, out = [0.0], io.StringIO()
    progress = JsonProgress(out, interval_seconds=1.0, clock=lambda: now[0])
    for done in range(1, 31):
        now[0] = done / 10
        progress(ProgressEvent(done=done, total=30))
    progress.flush()
    progress.flush()
    events = [parse(line) for line in out.getvalue().splitlines()]
    assert [event.done for event in events if event] == [1, 11, 21, 30]


def test_a_mixed_up_progress_line_is_no_event_and_no_crash() -> None:
    assert parse(PREFIX + '{"done": 3, "to' + PREFIX + "{") is None


SIGNALLED = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup has it ignored
from tau2rl.launch.entry import interruptible
with interruptible():
    try:
        sys.stdout.write("ready\\n"); sys.stdout.flush(); time.sleep(60)
    except KeyboardInterrupt:
        sys.stdout.write("closing\\n"); sys.stdout.flush(); time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_the_second_ends(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        for word in ("ready\n", "closing\n"):
            assert process.stdout.readline() == word
            process.send_signal(number)
        assert process.wait(60) == 130


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)
