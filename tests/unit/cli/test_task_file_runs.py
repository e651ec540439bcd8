"""What reads a run on a file of tasks (`tasks.source`) means the tasks of the file, pinned here on runs of the command line:

- a task of the file with the id of a defective one of tau2's has no defect: `regrade` keeps it, `blame` does not blame it;
- `export --to tau2` writes the file's task;
- `compare` never sets two files beside each other, whatever is forced;
- a report names the file, and sets nothing published beside it; `tasks show` shows the file's task.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.env.domain import domain
from tau2rl.env.tasks import QUARANTINE

runner = CliRunner()
DEFECT = next(iter(QUARANTINE["retail"]))  # an id that is one of tau2's
MINE = "Cancel it, says the one who made this task."


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def task_file(folder: Path, words: str) -> Path:
    """A training task of tau2's under that id and in other words."""
    loaded = domain("retail")
    task = next(iter(loaded.tasks("train").values())).model_dump(mode="json")
    task["user_scenario"]["instructions"]["reason_for_call"] = words
    folder.mkdir()
    (folder / "tasks.json").write_text(json.dumps([{**task, "id": DEFECT}]), "utf-8")
    return folder / "tasks.json"


def played(output: Path, *which: object) -> Path:
    """The run of an agent that does nothing."""
    agent = ("--policy", "do-nothing", "--user-model", "scripted", "--protocol", "transcript")
    tasks = ("--domains", "retail", "--task-split", "base", "--num-samples", 2, *which)
    tau2rl("eval", "--inline", *agent, *tasks, "--output", output)
    return output


def faults(run: Path) -> set[str]:
    return {episode["fault"] for episode in json.loads(tau2rl("blame", run, "--json").stdout)["episodes"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_file(tmp_path_factory.mktemp("tasks") / "own", MINE)


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("runs") / "one", "--task-source", file)


def test_a_made_task_has_no_defect_of_tau2s(run: Path, tmp_path: Path) -> None:
    told = json.loads(tau2rl("regrade", run, "--exclude-quarantined", "--output", tmp_path / "again", "--json").stdout)
    assert (told["tasks"], told["attempts"], told["incomplete"]) == (1, 2, False)
    assert "task" not in faults(run)
    assert faults(played(tmp_path / "tau2s", "--set", f"tasks.ids=[retail/{DEFECT}]")) == {"task"}


def test_tau2s_layout_has_the_task_of_the_file(run: Path, tmp_path: Path) -> None:
    files = json.loads(tau2rl("export", run, "--to", "tau2", "--output", tmp_path / "out", "--json").stdout)["files"]
    (results,) = [json.loads(Path(file).read_text("utf-8")) for file in files]
    assert [(task["id"], task["user_scenario"]["instructions"]["reason_for_call"]) for task in results["tasks"]] == [
        (DEFECT, MINE)
    ]
    assert len(results["simulations"]) == 2


def test_two_files_never_stand_in_one_table(run: Path, tmp_path: Path) -> None:
    other = played(tmp_path / "two", "--task-source", task_file(tmp_path / "other", "Return it."))
    assert "never stand in one table: they differ in the tasks" in tau2rl("compare", run, other, "--force", code=2).stderr


def test_a_report_names_the_file(run: Path, file: Path, tmp_path: Path) -> None:
    tau2rl("report", run, "--md", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "base of tasks.json" in page and "WRIT" not in page
    assert MINE in tau2rl("tasks", "show", f"retail/{DEFECT}", "--task-source", file).stdout
