"""`tau2rl tasks`, pinned here on tau2's real `mock` domain (one task of airline where a split is needed):

- `show` prints what a task's user wants, its reference path and what is graded, and a task that does not exist is refused;
- `list` names tasks at the top level of each row; `--limit` and `--task-split` are honoured;
- with `--plugins` they know a domain that a module of the user's registers;
- `index` writes the files that it names, a row a task, with the metadata from which a rollout opens the task;
- `validate` names the tasks whose reference path does not score 1, and exits 1 when there is one;
- `audit` prints JSON and a table from the same numbers;
- with `--json` nothing but JSON is on stdout; an unknown split or domain exits 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app

runner = CliRunner()
MOCK = ["--domains", "mock", "--task-split", "base"]


def tasks(*arguments: str, code: int = 0) -> Any:
    result = runner.invoke(app, ["tasks", *arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_list_names_the_tasks() -> None:
    rows = tasks("list", *MOCK, "--limit", "2")
    first = rows[0]
    assert (first["domain"], first["task_id"], first["split"], first["writes"]) == ("mock", "create_task_1", "base", 1)
    assert len(rows) == 2
    table = runner.invoke(app, ["tasks", "list", *MOCK, "--limit", "2"])
    assert [line.split()[0] for line in table.stdout.splitlines() if "mock/" in line] == [f"mock/{r['task_id']}" for r in rows]


def test_show_says_what_a_task_is() -> None:
    shown = runner.invoke(app, ["tasks", "show", "mock/create_task_1"])
    assert shown.exit_code == 0, shown.output
    assert "assistant: create_task(user_id='user_1', title='Important Meeting')" in shown.stdout
    assert "Create a new task called" in shown.stdout and "graded by DB, COMMUNICATE" in shown.stdout
    assert tasks("show", "mock/create_task_1")["id"] == "create_task_1"


def test_an_id_with_brackets_is_shown_as_it_can_be_written(tmp_path: Path) -> None:
    name = "[mms_issue]bad_wifi_calling[PERSONA:None]"
    assert f"hint: `'DOMAIN/{name}'`" in runner.invoke(app, ["tasks", "show", name]).stderr
    file = tmp_path / "c.yaml"
    for ids in (f"[telecom/{name}]", name, f"\n    - {name}"):
        file.write_text(f"tasks:\n  domains: [telecom]\n  ids: {ids}\n")
        told = runner.invoke(app, ["eval", "-c", str(file), "--dry-run"])
        assert told.exit_code == 2 and "stands in quotes: `'telecom/[" in told.stderr, told.stderr
    play = ["--domains", "telecom", "--policy", "gold", "--protocol", "transcript"]
    for ids in (f"[telecom/{name}]", f"[{name}]"):
        told = runner.invoke(app, ["eval", *play, "--set", f"tasks.ids={ids}", "--dry-run"])
        assert told.exit_code == 2 and "stands in quotes: `'telecom/[" in told.stderr, told.stderr


@pytest.mark.parametrize(("name", "words"), [("create_task_1", "names no domain"), ("mock/no", "no such tasks"), ("no/1", "no")])
def test_show_refuses_what_is_not_there(name: str, words: str) -> None:
    refused = runner.invoke(app, ["tasks", "show", name])
    assert refused.exit_code == 2 and words in refused.stderr


def test_list_takes_several_domains_and_the_default_split() -> None:
    rows = tasks("list", "--domains", "airline,retail", "--limit", "1")
    assert [(r["domain"], r["split"]) for r in rows] == [("airline", "test"), ("retail", "test")]


def test_a_domain_of_ones_own_is_there_with_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (Path(__file__).parents[3] / "examples" / "lamp_domain.py").read_text("utf-8")
    (tmp_path / "lantern_domain.py").write_text(source.replace('NAME = "lamp"', 'NAME = "lantern"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    lantern = ["--domains", "lantern", "--task-split", "base"]
    assert "lantern" in runner.invoke(app, ["tasks", "list", *lantern]).stderr  # unknown
    own = [*lantern, "--plugins", "lantern_domain"]
    assert [row["task_id"] for row in tasks("list", *own)] == ["on", "off"]
    assert tasks("validate", *own)["solved"] == 2
    assert tasks("audit", *own)["domains"]["lantern"]["tasks"] == 2
    assert len(tasks("index", *own, "--output", str(tmp_path / "index"))["files"]) == 2
    assert runner.invoke(app, ["tasks", "list", *lantern, "--plugins", "no_such"]).exit_code == 2


def test_index_writes_what_a_trainer_reads(tmp_path: Path) -> None:
    files = tasks("index", "--domains", "mock", "--task-split", "base", "--output", str(tmp_path / "new"))["files"]
    assert [Path(file).name for file in files] == ["mock_base.jsonl", "all_base.jsonl"]
    row = json.loads(Path(files[0]).read_text("utf-8").splitlines()[0])
    assert row["metadata"] == {"domain": "mock", "split": "base", "task_id": "create_task_1", "task_index": 0}
    assert row["text"]


def test_validate_scores_the_reference_paths() -> None:
    found = tasks("validate", *MOCK, "--limit", "2")
    assert (found["tasks"], found["solved"]) == (2, 2)
    assert [(r["domain"], r["reward"], r["why"]) for r in found["results"]] == [("mock", 1.0, "")] * 2


def test_validate_names_a_task_without_a_reference_path_and_exits_1() -> None:
    result = runner.invoke(app, ["tasks", "validate", *MOCK])
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines() if "mock/" in line] == [
        "mock/update_task_with_history_and_env_assertions"
    ]
    assert "reference paths score 1" in result.stderr


def test_audit_prints_the_same_numbers_both_ways() -> None:
    found = tasks("audit", *MOCK)
    part = found["domains"]["mock"]
    table = runner.invoke(app, ["tasks", "audit", *MOCK]).stdout
    row = next(line.split() for line in table.splitlines() if line.split()[:1] == ["mock"])
    floor, gold = part["floor"], part["gold_actions"]
    floors = [f"{floor[name]['solved']}/{floor[name]['of']}" for name in ("do_nothing", "always_transfer")]
    numbers = [len(part["judge_gated"]), gold["reads"], gold["writes"], gold["user_actions"], len(part["quarantined"])]
    assert row == ["mock", str(part["tasks"]), *floors, *map(str, numbers)]


@pytest.mark.parametrize("command", ["list", "validate", "audit", "index"])
def test_what_does_not_exist_exits_2(command: str, tmp_path: Path) -> None:
    extra = ["--output", str(tmp_path)] if command == "index" else []
    for arguments, words in (
        (["--domains", "nope"], "no such domain `nope`"),
        (["--domains", "mock", "--task-split", "tset"], "no such split `tset`"),
    ):
        result = runner.invoke(app, ["tasks", command, *arguments, *extra])
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
