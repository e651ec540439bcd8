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
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import ProgressEvent


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
