"""An attempt that stands twice in a run (a lost connection to a worker, a kill between two writes), pinned here:

- every reader counts the same one of the two: the first that has a result, whatever a later one says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.view.index import Index

runner = CliRunner()
TASKS = ("create_task_1", "update_task_1", "update_task_with_message_history")
Json = dict[str, Any]


def asked(*words: str) -> str:
    result = runner.invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def unsolved(record: Json) -> Json:
    return {**record, "episode": {**record["episode"], "grade": {**record["episode"]["grade"], "reward": 0.0}}}


def failed(record: Json) -> Json:
    failure = {"kind": "TimeoutError", "fault": "infra", "message": "lost"}
    return {
        **record,
        "episode": {**record["episode"], "status": "failed", "termination": "failed", "grade": None, "failure": failure},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Gold on three tasks: of the first the second line is evidence, of the second the first, which is unsolved."""
    folder = tmp_path / "run"
    asked(*evaluation(folder))
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text("utf-8").splitlines()]
    first, second, third = sorted(lines, key=lambda line: TASKS.index(line["attempt"]["task"]["task_id"]))
    both = [failed(first), first, unsolved(second), second, third]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in both), encoding="utf-8")
    (folder / "report.json").unlink()
    return folder


def evaluation(folder: Path) -> list[str]:
    told = (f"tasks.ids=[{', '.join(TASKS)}]", "policy.kind=gold", "user.kind=scripted", "chat.protocol=transcript")
    settings = [word for one in (*told, "rollout.num_samples=1") for word in ("--set", one)]
    return ["eval", "--domains", "mock", "--task-split", "base", *settings, "--output", str(folder), "--inline", "--json"]


def by_report(run: Path) -> float:
    return json.loads(asked(*evaluation(run), "--resume"))["overall"]["pass@1"]["value"] * len(TASKS)


def by_filter(run: Path) -> float:
    to = run.parent / "filtered"
    asked("rft-filter", "--from", str(run), "--set", "allow_held_out=true", "--output", str(to), "--inline")
    return len((to / "sft.jsonl").read_text("utf-8").splitlines())


def by_blame(run: Path) -> float:
    return len(TASKS) - len(json.loads(asked("blame", str(run), "--json"))["episodes"])


def by_export(run: Path) -> float:
    to = run.parent / "exported"
    asked("export", str(run), "--to", "trl", "--keep", "solved", "--output", str(to))
    return sum(len(file.read_text("utf-8").splitlines()) for file in to.glob("*.jsonl"))


def by_viewer(run: Path) -> float:
    with Index(run) as index:
        index.update(seconds=60.0)
        return sum(one["solved"] for one in index.task_counts())


@pytest.mark.parametrize("reader", [by_report, by_filter, by_blame, by_export, by_viewer])
def test_the_same_of_two_counts_for_every_reader(reader: Callable[[Path], float], run: Path) -> None:
    assert reader(run) == pytest.approx(2)
