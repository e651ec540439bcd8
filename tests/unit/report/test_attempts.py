"""Which record of an attempt counts; pinned here, for all who read records of one run:

- the first valid one, else the last FAILED one; the same in the report, in the dataset, and in the choice of a checkpoint;
- a valid record is evidence whatever else it says of a failure.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, GrpoConfig, build
from tau2rl.env import synth
from tau2rl.env.tasks import gold_script
from tau2rl.recipes.select import select_checkpoint
from tau2rl.report.aggregate import counted
from tau2rl.report.report import build_report
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.provenance import environment
from tau2rl.runs.records import SCHEMA, write_validation
from tau2rl.runs.secrets import Redactor
from tau2rl.types import Attempt, EpisodeRecord, Failure, Fault, Grade, Score, Status, TaskRef
from tests.play import play

TASK = TaskRef(domain="mock", task_id=synth.task_id("synth-train", 0), split="synth-train")


def record(mark: str, number: int, task: TaskRef = TASK) -> EpisodeRecord:
    """`1` solved, `0` not, `x` FAILED; `number` tells the records apart."""
    episode = dataclasses.replace(play(gold_script(task), ref=task), seconds=float(number))
    grade = Grade(reward=float(mark), checks=None, reward_basis=("DB",)) if mark in "01" else None
    score = Score(task=float(mark), partial=0.0, shaped=0.0, components={}) if grade else None
    failure = None if grade else Failure(fault=Fault.USER, kind="UserSimulatorFailure", message=f"try {number}")
    status = Status.COMPLETED if grade else Status.FAILED
    episode = dataclasses.replace(episode, grade=grade, failure=failure, status=status)
    return EpisodeRecord(
        schema=SCHEMA, run="r", attempt=Attempt(task=task, index=0, seed=1), tries=1, episode=episode, score=score
    )


CASES = {"0": 0, "01": 0, "10": 0, "x1": 1, "xx": 1, "x01": 1, "1x0": 0, "xx1x": 2}


@pytest.mark.parametrize(("marks", "counts"), CASES.items())
def test_the_first_valid_record_counts_else_the_last_failed(marks: str, counts: int) -> None:
    records = [record(mark, number) for number, mark in enumerate(marks)]
    assert counted(records) == [records[counts]]


@pytest.mark.parametrize(("marks", "counts"), CASES.items())
def test_report_dataset_and_checkpoint_selection_count_the_same(marks: str, counts: int, tmp_path: Path) -> None:
    solved = marks[counts] == "1"
    config = build(EvalConfig, {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "tasks": {"domains": ["mock"]}})
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    records = [record(mark, number) for number, mark in enumerate(marks)]
    with RunFolder.open(run) as folder:
        folder.write_environment(environment(config, {}, {"chat": "c"}))
        for each in records:
            folder.append(each)
        read = [*folder.records(), *folder.failed_records()]
    report = build_report(read, planned=[records[0].attempt], floors={}, digest="d")
    assert report["by_task"][TASK.key]["solved"] == solved
    assert report["episodes"]["failed"] == (marks[counts] == "x")

    (run / "episodes.jsonl").touch()
    result = CliRunner().invoke(app, ["rft-filter", "--from", str(run), "--output", str(tmp_path / "rft"), "--inline", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["tried"], data["graded"], data["solved"], data["kept"]) == (1, marks[counts] != "x", solved, solved)


def test_a_repeated_record_of_a_validation_counts_once(tmp_path: Path) -> None:
    learned = {"domains": ["mock"], "split": "synth-train", "limit": 3}
    config = build(GrpoConfig, {"model": {"init": "a/checkpoint"}, "tasks": learned, "train": {"steps": 20}})
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    tasks = [TaskRef(domain="mock", task_id=synth.task_id("synth-select", i), split="synth-select") for i in range(2)]
    twice = [record("1", 0, tasks[0]), record("0", 1, tasks[0]), record("x", 2, tasks[1]), record("1", 3, tasks[1])]
    write_validation(run, 20, twice, redactor=Redactor())
    (run / "checkpoints" / "step_00020").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (run / "checkpoints" / "step_00020" / name).write_text("{}", "utf-8")
    assert select_checkpoint([run])["chosen"]["success"] == 1.0


def test_a_valid_episode_is_evidence_whatever_it_says_of_a_failure(tmp_path: Path) -> None:
    said = Failure(fault=Fault.USER, kind="X", message="odd")
    odd = record("1", 0)
    odd = dataclasses.replace(odd, episode=dataclasses.replace(odd.episode, failure=said))
    assert build_report([odd], planned=[odd.attempt], floors={}, digest="d")["by_task"][TASK.key]["solved"] == 1
    config = build(EvalConfig, {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "tasks": {"domains": ["mock"]}})
    run = RunFolder.create(tmp_path / "run", config, resume=False)
    with RunFolder.open(run) as folder:
        folder.write_environment(environment(config, {}, {"chat": "c"}))
        folder.append(odd)
    result = CliRunner().invoke(app, ["rft-filter", "--from", str(run), "--output", str(tmp_path / "rft"), "--inline", "--json"])
    assert json.loads(result.stdout)["kept"] == 1
