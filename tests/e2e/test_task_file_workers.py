"""A file of tasks (`tasks.source`) in a Ray job with workers, whose processes find it by the path that a task names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tau2rl.env.domain import domain

pytestmark = pytest.mark.e2e


def test_a_job_with_a_worker_plays_a_file(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    tasks = [task.model_dump(mode="json") for task in domain("mock").tasks().values() if task.id == "update_task_1"]
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{**task, "id": "mine"} for task in tasks]), "utf-8")
    gold = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--set", "rollout.workers=1"]
    named = ["--domains", "mock", "--task-source", "tasks.json", "--task-split", "base", "--num-samples", "2"]
    command = [sys.executable, "-m", "tau2rl", "eval", *named, *gold, "--output", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by_task"]["mock/mine"]["solved"] == 2
