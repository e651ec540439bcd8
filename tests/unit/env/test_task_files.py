"""`tasks.source`: a file of tasks in place of tau2's own, pinned here:

- seed, eval and rft-filter play it (a job with workers: `tests/e2e/test_task_file_workers.py`); the demonstration that a task
  brings is what the gold teacher says;
- a row that a training on slime plays from names the file, so any process finds the task;
- the file's content is part of what a run stands on, its place is not;
- validation tasks of a training come from the same file;
- its test split, and copies of tau2's own test tasks, are refused as training data;
- a file that cannot be read is refused with the row and the reason.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl import api
from tau2rl.cli import app
from tau2rl.config import GrpoConfig, TasksConfig, build
from tau2rl.env.domain import domain
from tau2rl.env.tasks import index_rows, is_test, select, write_prompts
from tau2rl.errors import UserError
from tau2rl.types import TaskRef

runner = CliRunner()
Json = dict[str, Any]
IDS = ("create_task_1", "update_task_1")


def tasks_of(name: str, *ids: str, split: str = "base") -> list[Json]:
    return [domain(name).tasks(split)[id].model_dump(mode="json") for id in ids]


def write(folder: Path, tasks: Any, splits: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tasks.json").write_text(json.dumps(tasks), "utf-8")
    if splits is not None:
        (folder / "split_tasks.json").write_text(json.dumps(splits), "utf-8")
    return folder / "tasks.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tasks = [{**task, "id": f"mine_{task['id']}"} for task in tasks_of("mock", *IDS)]
    action = tasks[0]["evaluation_criteria"]["actions"][0]["action_id"]
    looks = {"call": "get_users", "arguments": {}}
    tasks[0]["demonstration"] = [{"say": "Shall I?"}, looks, {"action": action}, {"say": "It is there."}]
    return write(tmp_path / "own", tasks, {"train": ["mine_create_task_1"], "test": ["mine_update_task_1"]})


def run(*arguments: str, code: int = 0) -> Any:
    result = runner.invoke(app, [*arguments, "--inline", "--json"])
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if code == 0 else result.stderr


def played(file: Path, output: Path, *more: str) -> Json:
    named = ["--domains", "mock", "--task-source", str(file), "--output", str(output)]
    return run("seed", *named, *more)


def test_seed_plays_a_file_and_says_what_its_demonstration_says(file: Path, tmp_path: Path) -> None:
    report = played(file, tmp_path / "run", "--task-split", "train")
    assert (report["tried"], report["solved"]) == (1, 1)
    (row,) = map(json.loads, (tmp_path / "run" / "rows.jsonl").read_text("utf-8").splitlines())
    assert row["metadata"]["task_id"] == "mine_create_task_1"
    assert [m["content"] for m in row["messages"] if m["role"] == "assistant"][1:] == ["Shall I?", "", "", "It is there."]
    gold = ["--policy", "gold", "--protocol", "transcript", "--user-model", "scripted", "--output", str(tmp_path / "eval")]
    evaluated = run("eval", "--domains", "mock", "--task-source", str(file), "--task-split", "test", *gold)
    assert {key: task["solved"] for key, task in evaluated["by_task"].items()} == {"mock/mine_update_task_1": 4}
    kept = run("rft-filter", "--from", str(tmp_path / "run"), "--output", str(tmp_path / "rft"))
    assert (kept["tried"], kept["kept"]) == (1, 1)


def test_a_prompt_row_of_slime_names_the_file(file: Path, tmp_path: Path) -> None:
    refs = select(TasksConfig(source=file, domains=("mock",), split="train"))
    (row,) = map(json.loads, write_prompts(refs, tmp_path / "prompts.jsonl").read_text("utf-8").splitlines())
    ref = TaskRef(**row["metadata"]["task"])
    assert asdict(ref) == {"domain": "mock", "task_id": "mine_create_task_1", "split": "train", "source": str(file)}
    assert domain("mock").task(ref).id == "mine_create_task_1"
    assert (
        index_rows([ref])[0]["text"] == index_rows(select(TasksConfig(domains=("mock",), split="base", ids=(IDS[0],))))[0]["text"]
    )
    assert api.tasks(["mock"], "train", source=file) == [ref]


def test_the_content_of_the_file_is_what_a_run_stands_on(file: Path, tmp_path: Path) -> None:
    digest = played(file, tmp_path / "a", "--task-split", "train")["digest"]
    moved = write(
        tmp_path / "elsewhere",
        json.loads(file.read_text("utf-8")),
        {"train": ["mine_create_task_1"], "test": ["mine_update_task_1"]},
    )
    assert played(moved, tmp_path / "b", "--task-split", "train")["digest"] == digest
    changed = json.loads(file.read_text("utf-8"))
    changed[0]["description"] = None
    other = write(tmp_path / "changed", changed, {"train": ["mine_create_task_1"], "test": ["mine_update_task_1"]})
    assert played(other, tmp_path / "c", "--task-split", "train")["digest"] != digest
    again = [
        "--domains",
        "mock",
        "--task-source",
        str(other),
        "--task-split",
        "train",
        "--output",
        str(tmp_path / "a"),
        "--resume",
    ]
    assert "sources.tasks" in run("seed", *again, code=2)


def test_validation_tasks_come_from_the_same_file(file: Path) -> None:
    given: Json = {"model": {"init": "somewhere"}, "tasks": {"source": str(file), "domains": ["retail"]}}
    grpo = build(GrpoConfig, {**given, "train": {"val_every": 5}})
    assert (grpo.tasks.source, grpo.val.source) == (file, file)
    assert (grpo.tasks.split, grpo.val.split) == ("train-learn", "train-select")
    own = build(GrpoConfig, {**given, "train": {"val_every": 5}, "val": {"source": None}})
    assert own.val.source is None


def test_test_tasks_of_a_file_and_copies_of_tau2s_are_no_training_data(file: Path, tmp_path: Path) -> None:
    named = ["--domains", "mock", "--task-source", str(file), "--task-split", "test", "--output", str(tmp_path / "run")]
    assert "kept for tests" in run("seed", *named, code=2)
    test_id = next(iter(domain("retail").tasks("test")))
    copies = write(tmp_path / "copy", [{**task, "id": "x"} for task in tasks_of("retail", test_id)])
    (ref,) = select(TasksConfig(source=copies, domains=("retail",), split="base"))
    assert is_test(ref)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a list of tasks"),
        ('[{"id": "a"}]', "row 1 is not a task of tau2: user_scenario"),
        ("twice", "row 2: a second task `create_task_1`"),
        ("step", "a step of its demonstration is neither words nor an action"),
        ("user", "a step of its demonstration takes an action of the user: toggle_data"),
        ("splits", "split `train` names tasks that are not in the file beside it, among them `nobody`"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(content: str, words: str, tmp_path: Path) -> None:
    good = tasks_of("mock", "create_task_1")
    file = write(tmp_path / "bad", good * 2 if content == "twice" else good)
    if content == "step":
        write(tmp_path / "bad", [{**good[0], "demonstration": [{"action": "no such"}]}])
    elif content == "user":
        actions = good[0]["evaluation_criteria"]["actions"]
        actions.append({"action_id": "u", "requestor": "user", "name": "toggle_data", "arguments": {}})
        write(tmp_path / "bad", [{**good[0], "demonstration": [{"call": "toggle_data", "arguments": {}}]}])
    elif content == "splits":
        write(tmp_path / "bad", good, {"train": ["nobody"]})
    elif content != "twice":
        file.write_text(content, "utf-8")
    with pytest.raises(UserError, match=words):
        select(TasksConfig(source=file, domains=("mock",), split="base"))


def test_a_missing_file_and_an_unknown_split_are_named(file: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        select(TasksConfig(source=file.with_name("none.json"), domains=("mock",), split="base"))
    with pytest.raises(UserError, match="no such split `train-learn`") as refused:
        select(TasksConfig(source=file, domains=("mock",), split="train-learn"))
    assert refused.value.hint.startswith("one of: base, train, test;")
