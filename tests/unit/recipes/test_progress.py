"""What a run says of its progress, pinned here:

- how many episodes are being played, while they are, in evaluations and trainings; the last word is kept in the run folder
- a resumed run says what earlier starts have had, so that the time left is that of what is left, whatever was heard first
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.console import progress_words
from tau2rl.launch import entry
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import FILE, FileProgress, ProgressEvent, read_progress
from tau2rl.runs.sessions import begin_session


def test_a_run_says_how_many_episodes_are_played_and_keeps_its_last_word(tmp_path: Path) -> None:
    heard: list[ProgressEvent] = []
    config = """{"stage": "eval", "launch": {"inline": true}, "rollout": {"num_samples": 6, "concurrency": 3},
        "tasks": {"domains": ["mock"], "split": "base", "ids": ["create_task_1"]}, "policy": {"kind": "gold"},
        "chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}}"""
    (tmp_path / "config.json").write_text(config)
    assert entry.run(tmp_path, heard.append, say=pytest.fail) == 0
    flying = [event.in_flight for event in heard if event.in_flight is not None]
    assert (min(flying), max(flying)) == (0, 3)
    assert read_progress(tmp_path) == heard[-1]
    assert (heard[-1].done, heard[-1].in_flight) == (6, 0)


def test_the_last_event_is_in_the_file_at_once_or_when_the_interval_has_passed(tmp_path: Path) -> None:
    now, passed = [0.0], list[ProgressEvent]()
    file = begin_session(made(tmp_path))[1] / FILE
    keep = FileProgress(file, passed.append, interval_seconds=1.0, clock=lambda: now[0])
    for now[0], done in ((0.0, 1), (0.5, 2), (0.9, 3)):
        keep(ProgressEvent(done=done, total=9))
    assert [event.done for event in passed] == [1, 2, 3]
    assert read_progress(tmp_path) == passed[0]
    keep.flush()
    assert read_progress(tmp_path) == passed[2]
    now[0] = 1.0
    keep(ProgressEvent(done=4, total=9))
    assert read_progress(tmp_path) == passed[3]
    file.write_text('{"done": ')
    assert read_progress(tmp_path) is None
    FileProgress(tmp_path / "gone" / FILE, passed.append)(passed[0])  # a folder that cannot be written ends nothing


def made(run: Path) -> Path:
    (run / "logs").mkdir()
    return run


def test_the_time_left_of_a_resumed_run_is_that_of_what_is_left(tmp_path: Path) -> None:
    def config(resume: bool) -> EvalConfig:
        tasks = {"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1"]}
        rollout = {"num_samples": 10, "concurrency": 1}
        values = {"tasks": tasks, "policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}}
        return build(EvalConfig, {**values, "rollout": rollout, "resume": resume})

    def start(resume: bool, events: list[ProgressEvent], *, until: int) -> None:
        def hear(event: ProgressEvent) -> None:
            events.append(event)
            if event.done == until:
                raise KeyboardInterrupt

        with RunFolder.open(RunFolder.create(tmp_path / "run", config(resume), resume=resume)) as run:
            evaluate(config(resume), run, hear)

    with pytest.raises(KeyboardInterrupt):
        start(False, [], until=12)
    heard: list[ProgressEvent] = []
    start(True, heard, until=-1)
    loading, *playing = heard
    assert loading.total is None and {event.before for event in playing} == {12}
    assert [*dict.fromkeys(event.done for event in playing)] == list(range(12, 21))
    at_half = replace(next(event for event in playing if event.done == 16), seconds=100.0)  # four of eight
    assert progress_words(at_half, loading).endswith("1:40 left")
    assert progress_words(at_half, playing[2]).endswith("1:40 left")  # whoever began to listen late
    assert progress_words(at_half).endswith("1:40 left")
