"""What rows of telecom share with its test tasks, by `data validate --against-test` and `data card`:

- rows of tau2's own training tasks share nothing, though they are about the customer, and in the texts, of the test tasks;
- rows of test tasks are found by their ids, by ids of the same problems with another persona, and without any id by what was done
  for that customer, where no training task does the same;
- a customer, an entity, a call and a run of words that a test task has and no training task are found.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.data.layouts import row_facts
from tau2rl.env.task_replay import Replayer
from tau2rl.synth.contamination import TelecomRows

runner = CliRunner()
Json = dict[str, Any]


def command(*words: object, code: int = 0) -> Json:
    result = runner.invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def rows_of(file: Path) -> list[Json]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def written(file: Path, rows: Sequence[Json]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return file


def kinds(file: Path) -> Counter[str]:
    """Kind of overlap -> rows that have it."""
    faults = [fault["why"] for fault in command("data", "validate", file, "--against-test", code=2)["faults"]]
    return Counter(why.removeprefix("it shares ").partition(" with the")[0] for why in faults if "test tasks" in why)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed") / "train"
    command("seed", "--domains", "telecom", "--inline", "--output", folder)
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed") / "test"
    held_out = ("--task-split", "test", "--set", "allow_held_out=true")
    command("seed", "--domains", "telecom", *held_out, "--inline", "--output", folder)
    return folder / "rows.jsonl"


def test_rows_of_training_tasks_share_nothing(learned: Path) -> None:
    overlap = command("data", "card", learned, "--license", "mit")["overlap"]
    found = overlap["domains"]["telecom"]
    assert (found["rows"], found["sharing"], overlap["rows"]) == (74, 0, 0)
    asked = ["test tasks", "problems", "reference paths", "users", "entities", "gold arguments", "runs of words"]
    assert found["compared"] == asked
    assert all("John Smith" in json.dumps(row) for row in rows_of(learned))  # of whom all test tasks are, too


def test_rows_of_test_tasks_are_found_with_and_without_their_ids(tested: Path, tmp_path: Path) -> None:
    assert kinds(tested) == {"test tasks": 40, "problems": 40, "reference paths": 26}
    rows, nameless = rows_of(tested), copy.deepcopy(rows_of(tested))
    for row in nameless:
        del row["metadata"]["task_id"], row["metadata"]["id"]
    assert kinds(written(tmp_path / "nameless.jsonl", nameless)) == {"reference paths": 26}
    assert kinds(written(tmp_path / "one.jsonl", nameless[:1])) == {"reference paths": 1}
    elsewhere = json.dumps(nameless[0]["messages"])
    for named in ("John Smith", "555-123-2002", "C1001", "L1002"):
        elsewhere = elsewhere.replace(named, "another one")
    other = {**nameless[0], "messages": json.loads(elsewhere)}  # what is wrong with a phone can be wrong with anybody's
    assert command("data", "card", written(tmp_path / "other.jsonl", [other]), "--license", "mit")["overlap"]["rows"] == 0
    again = {**rows[0], "metadata": {**rows[0]["metadata"], "split": "full"}}
    id, _, persona = rows[0]["metadata"]["task_id"].partition("[PERSONA:")
    again["metadata"]["task_id"] = f"{id}[PERSONA:{'Easy' if persona == 'Hard]' else 'Hard'}]"
    again["messages"] = other["messages"]
    assert kinds(written(tmp_path / "persona.jsonl", [again])) == {"problems": 1}


def test_what_test_tasks_have_and_training_tasks_have_not_is_found(learned: Path) -> None:
    """On planted test tasks: of tau2 26.3's own, nothing is left that no training task has."""
    replayer = Replayer("telecom")
    rows, tests, training = replayer.rows(), replayer.tasks("test"), replayer.tasks("train")
    sentence = "The phone fell into the lake on the second day of the trip."
    planted = copy.deepcopy(
        next(t for t in tests if any(a["name"] == "enable_roaming" for a in t["evaluation_criteria"]["actions"]))
    )
    planted = json.loads(
        json.dumps(planted).replace("John Smith", "Michael Lee").replace("C1001", "C1003").replace("L1002", "L1009")
    )
    planted["user_scenario"]["instructions"]["reason_for_call"] = sentence
    guard = TelecomRows(rows=rows, tests=[*tests, planted], training=training, writes=replayer.writes)
    call = {"name": "enable_roaming", "arguments": json.dumps({"customer_id": "C1003", "line_id": "L1009"})}

    def shared(text: str, *calls: Json) -> list[str]:
        answer = {"role": "assistant", "content": "Well.", "tool_calls": [{"function": each} for each in calls]}
        row = {"messages": [{"role": "user", "content": text}, answer], "domain": "telecom"}
        return list(guard.of_row(row_facts(row, name="a")[1]))

    assert shared("I am John Smith, 555-123-2002, on L1002.") == []
    assert shared("I am Michael Lee.") == ["users"]
    assert shared("It is line L1009.") == ["users", "entities"]
    assert shared("Hello.", call) == ["users", "entities", "gold arguments"]
    assert shared(sentence) == ["runs of words"]
    assert not any(guard.of_row(row_facts(row, name="a")[1]) for row in rows_of(learned))
