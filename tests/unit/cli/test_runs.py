"""`tau2rl runs list` and `runs prune`, pinned here on the folders of small trainings:

- the list names every run with its stage, state and size, filtered and ordered as asked; `tau2rl runs` alone is the list;
- pruning deletes nothing without `--yes`; with it go the steps that nothing needs, and nothing else: the final one, the chosen
  one, the latest, those that a run in sight names (by a relative path too) and what is not of a training stay;
- a training that is not finished, or is open, loses nothing; what it may be extended from goes only by `--state`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, GrpoConfig, build
from tau2rl.report.report import build_report
from tau2rl.report.schema import SCHEMA
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder

runner = CliRunner()
TASKS = {"domains": ["mock"], "split": "synth-train", "limit": 3}


def model(path: Path, size: int = 1000) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", "utf-8")
    (path / "model.safetensors").write_bytes(b"0" * size)


def training(path: Path, *, backend: str = "local", incomplete: bool = False) -> Path:
    config = build(GrpoConfig, {"model": {"init": "a/checkpoint"}, "tasks": TASKS, "train": {"steps": 4}, "backend": backend})
    with RunFolder.open(RunFolder.create(path, config, resume=False)):
        pass
    models = path / "checkpoints"
    for step in (1, 2, 3, 4):
        model(models / (f"step_{step:05}" if backend == "local" else f"hf/{step - 1}"))
    if backend == "local":
        model(models / "final")
        model(models / "state")
    else:
        (models / "final").symlink_to("hf/3")
        model(models / "megatron")
    write_json(path / "report.json", {"schema": SCHEMA, "stage": "grpo", "incomplete": incomplete, "training": {"steps": 4}})
    return path


def evaluation(path: Path, checkpoint: str) -> None:
    values = {"tasks": {**TASKS, "split": "synth-test"}, "policy": {"kind": "local", "checkpoint": checkpoint}}
    with RunFolder.open(RunFolder.create(path, build(EvalConfig, values), resume=False)):
        pass


def told(*arguments: object) -> Any:
    result = runner.invoke(app, ["runs", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def gone(place: Path, *options: object) -> set[str]:
    """The checkpoints that pruning deletes."""
    before = {path for path in place.rglob("checkpoints/**/*") if (path / "config.json").is_file()}
    assert told("prune", place, *options)["deleted"] is False
    assert all(path.is_dir() for path in before)
    told("prune", place, *options, "--yes")
    return {path.name for path in before if not path.exists()}


def test_the_list_says_what_there_is(tmp_path: Path) -> None:
    training(tmp_path / "b", incomplete=True)
    training(tmp_path / "a")
    evaluation(tmp_path / "e", "a/checkpoint")
    rows = told("list", tmp_path)
    assert [(row["folder"], row["stage"]) for row in rows] == [("a", "grpo"), ("b", "grpo"), ("e", "eval")]
    assert rows[0]["state"] == "done" and rows[1]["state"] == "incomplete"  # not `live`: it has its report
    assert rows[0]["size"] > 6000
    assert [row["folder"] for row in told("list", tmp_path, "--stage", "grpo", "--sort", "path", "--descending")] == ["b", "a"]
    assert [row["folder"] for row in told("list", tmp_path, "--state", "done")] == ["a"]
    write_json(tmp_path / "e" / "report.json", build_report((), planned=[], floors={}, digest="d"))  # without a number
    for sort in ("path", "pass@1"):
        shown = runner.invoke(app, ["runs", "list", str(tmp_path), "--sort", sort])
        assert shown.exit_code == 0 and "3 runs" in shown.stderr


def test_a_stage_or_state_that_there_is_not_is_refused(tmp_path: Path) -> None:
    for option in ("--stage", "--state"):
        assert runner.invoke(app, ["runs", "list", str(tmp_path), option, "banana"]).exit_code == 2


def test_a_folder_that_cannot_be_read_is_passed_over_by_the_list_and_stops_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training(tmp_path / "run")
    (tmp_path / "theirs").mkdir()
    whole = Path.iterdir

    def refused(folder: Path) -> Any:
        if folder.name == "theirs":
            raise PermissionError(13, "Permission denied", str(folder))
        return whole(folder)

    monkeypatch.setattr(Path, "iterdir", refused)  # root reads everything
    shown = runner.invoke(app, ["runs", "list", str(tmp_path)])
    assert shown.exit_code == 0 and "1 run; 1 folder cannot be read" in shown.stderr
    pruned = runner.invoke(app, ["runs", "prune", str(tmp_path), "--yes"])
    assert pruned.exit_code == 2 and "1 folder cannot be read" in pruned.stderr
    assert (tmp_path / "run" / "checkpoints" / "step_00001").is_dir()


def test_what_nothing_needs_may_go(tmp_path: Path) -> None:
    run = training(tmp_path / "run")
    model(run / "checkpoints" / "mine")
    assert gone(tmp_path) == {"step_00001", "step_00002", "step_00003"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00004", "final", "state", "mine"}
    assert gone(tmp_path, "--keep-last", 0, "--state") == {"step_00004", "state"}


def test_slimes_directories_are_known(tmp_path: Path) -> None:
    training(tmp_path / "run", backend="slime")
    assert gone(tmp_path, "--keep-last", 0, "--state") == {"0", "1", "2", "megatron"}


def test_the_chosen_stays(tmp_path: Path) -> None:
    run = training(tmp_path / "run")
    (run / "checkpoints" / "selected").symlink_to("step_00002")
    assert gone(tmp_path, "--keep-last", 0) == {"step_00001", "step_00003", "step_00004"}
    (run / "checkpoints" / "selected").unlink()
    chosen = {"path": str(run / "checkpoints" / "step_00002")}
    write_json(run / "selection.json", {"schema": SCHEMA, "chosen": chosen, "candidates": [], "test_access_log": []})
    assert gone(tmp_path, "--keep-last", 0) == set()


@pytest.mark.parametrize("relative", [False, True])
def test_what_another_run_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    run = training(tmp_path / "out" / "run")
    named = run / "checkpoints" / "step_00002"
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "out" / "e", os.path.relpath(named) if relative else str(named))
    monkeypatch.chdir("/")
    assert gone(tmp_path / "out", "--keep-last", 0) == {"step_00001", "step_00003", "step_00004"}


def test_an_unfinished_training_loses_nothing(tmp_path: Path) -> None:
    training(tmp_path / "run", incomplete=True)
    assert gone(tmp_path, "--keep-last", 0, "--state") == set()


def test_an_open_training_loses_nothing(tmp_path: Path) -> None:
    run = training(tmp_path / "run")
    with RunFolder.open(run):
        result = runner.invoke(app, ["runs", "prune", str(run), "--yes"])
    assert result.exit_code == 2 and "is writing the run" in result.stderr
    assert len(list((run / "checkpoints").iterdir())) == 6


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    result = runner.invoke(app, ["runs", "list", str(tmp_path / "no")])
    assert result.exit_code == 2 and "is not a folder" in result.stderr


def test_without_a_command_the_runs_of_the_outputs_folder_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training(tmp_path / "grpo" / "a")
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path))
    bare, listed = runner.invoke(app, ["runs"]), runner.invoke(app, ["runs", "list"])
    assert (bare.exit_code, bare.output) == (0, listed.output)
    assert "1 run\n" in bare.stderr


def test_before_the_first_run_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path / "none"))
    listed = runner.invoke(app, ["runs", "list"])
    assert listed.exit_code == 0 and "0 runs" in listed.stderr
    viewed = runner.invoke(app, ["view"])
    assert viewed.exit_code == 2 and "there is no run yet" in viewed.stderr
    assert "there is no checkpoint of a training" in runner.invoke(app, ["runs", "prune"]).stderr
    assert runner.invoke(app, ["runs", "list", str(tmp_path / "none")]).exit_code == 2
