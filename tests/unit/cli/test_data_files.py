"""`tau2rl data inspect`, `validate`, `stats`, `mix`, `card` and `import`, through the command line, pinned here:

- rows of every published layout are recognized by their keys, with their domain, user and licence;
- a bad row is named by file and line with what is wrong, and the exit code is 2; the others are still read;
- stats count what can be counted by hand;
- Parquet reads back as it was written, and `sft`'s reader and a mix take it as they take JSON lines;
- a mix has its shares, no conversation twice (nor nearly, where that is asked for), the origin and licence of every row, and the
  same bytes for the same seed;
- a row that was made from a test task is found, one about another user is not, and the card says so;
- WRIT-2K, AReaL and seed rows become OpenAI messages of which the same turns are learned;
- AReaL's tasks are played on the databases that they name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import DataConfig
from tau2rl.data.encoding import learned_turns
from tau2rl.data.jsonl import read_row_file, save_rows
from tau2rl.data.rows import read_row, read_rows

runner = CliRunner()
TOOL = {"type": "function", "function": {"name": "cancel_pending_order", "parameters": {
    "type": "object", "properties": {"order_id": {"type": "string"}, "reason": {"type": "string"}},
    "required": ["order_id", "reason"]}}}  # fmt: skip
SYSTEM = {"role": "system", "content": "<policy>\n# Retail agent policy\nHelp.\n</policy>"}


def call(order: str, **more: str) -> dict[str, Any]:
    arguments = json.dumps({"order_id": order, "reason": "ordered by mistake", **more})
    function = {"name": "cancel_pending_order", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def conversation(order: str, name: str = "noah_brown_6181") -> list[dict[str, Any]]:
    return [
        SYSTEM,
        {"role": "user", "content": f"I am {name}, cancel {order}."},
        call(order),
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {"role": "assistant", "content": "Cancelled."},
    ]


def writ(order: str) -> dict[str, Any]:
    return {"domain": "retail", "trajectory_type": "normal", "has_user_script": True,
            "messages": conversation(order), "tools": [TOOL]}  # fmt: skip


def areal(order: str) -> dict[str, Any]:
    *history, answer = conversation(order)
    metadata = {"source_dialog_id": "retail_dialog_7", "turn_index": 2, "scenario_id": "scenario_7", "correct": 1, "reward": 1.0}
    return {"messages": history, "answer": {**answer, "thinking": "It is done."}, "metadata": metadata}


def seed_v3(order: str) -> dict[str, Any]:
    text = f'<tool_call>{{"name": "cancel_pending_order", "arguments": {{"order_id": "{order}"}}}}</tool_call>'
    prompt = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
    metadata = {"domain": "retail", "tau2_task_id": "50", "success": True, "partial_score": 1.0,
                "tool_sequence": ["cancel_pending_order"]}  # fmt: skip
    return {"task_id": "[retail]50[sample_0]", "prompt": prompt, "response": "", "metadata": metadata}


def without_nulls(row: Any) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = runner.invoke(app, ["data", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def test_published_layouts_are_recognized(tmp_path: Path) -> None:
    task = {"id": "airline_1", "user_scenario": {"instructions": {"domain": "airline"}}, "db_path": "x.json"}
    prompt = {"input": "retail/3", "metadata": {"task": {"domain": "retail", "task_id": "3", "split": "train"}}}
    plain = {"messages": conversation("#W4")}
    file = lines(tmp_path / "a.jsonl", writ("#W1"), areal("#W2"), seed_v3("#W3"), plain, task, prompt, {"text": "?"})
    rows = run("inspect", file, "--limit", "9")["rows"]
    assert [row["layout"] for row in rows] == [
        "WRIT-2K", "AReaL-tau2-data", "tau2-sft-seed-v3", "messages", "AReaL-tau2-data task", "prompt row", "unknown",
    ]  # fmt: skip
    assert [row.get("domain") for row in rows[:4]] == ["retail"] * 4  # the last one by the policy's heading
    assert [row.get("licence") for row in rows[:4]] == ["mit", "apache-2.0", "not said", "not said"]
    assert [row["turns"] for row in rows[:4]] == [2, 1, 1, 2]
    assert rows[2]["calls"] == ["cancel_pending_order"] and rows[2]["reward"] == 1.0


def test_bad_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    messages = conversation("#W1")
    file = lines(
        tmp_path / "rows.jsonl",
        writ("#W1"),
        "{not json",
        {"messages": [{"role": "robot", "content": "x"}]},
        {**writ("#W5"), "tools": [{"type": "function", "function": {"name": "other", "parameters": {}}}]},
        {"messages": [*messages[:2], call("#W6", until="May"), *messages[3:]], "tools": [TOOL]},
        {"messages": [*messages[:2], call("#W7"), messages[4]]},
        {"messages": [*messages[:2], messages[3], messages[4]]},
        {"messages": messages[:2]},
        {**writ("#W1"), "domain": "airline"},
        {"messages": [*messages[:2], {"role": "assistant", "content": " "}]},
    )
    found = run("validate", file, code=2)
    assert (found["rows"], found["bad"]) == (10, 9)
    why = {fault["at"]: fault["why"] for fault in found["faults"]}
    assert why["rows.jsonl:2"].startswith("is not JSON")
    assert why["rows.jsonl:3"] == "a message with the role 'robot'"
    assert why["rows.jsonl:4"] == "message 2 calls `cancel_pending_order`, which is none of its tools"
    assert why["rows.jsonl:5"] == "message 2 calls `cancel_pending_order` with `until`, which its schema does not have"
    assert why["rows.jsonl:6"] == "message 3 comes before 1 results of the calls before it"
    assert why["rows.jsonl:7"] == "message 2 is the result of no call"
    assert why["rows.jsonl:8"] == "no assistant turn to learn"
    assert why["rows.jsonl:9"] == "it is the same conversation as rows.jsonl:1"
    assert why["rows.jsonl:10"] == "message 2 is an empty assistant turn"
    assert run("validate", lines(tmp_path / "good.jsonl", writ("#W1"), areal("#W2"))) == {"rows": 2, "bad": 0, "faults": []}


def test_what_sft_would_leave_out_is_bad_too(tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", writ("#W1"))
    found = run("validate", file, "--tokenizer", "bytes", "--set", "data.max_tokens=20", code=2)
    assert found["faults"] == [{"at": "rows.jsonl:1", "why": "sft leaves it out: too long"}]


def test_a_folder_is_refused_with_the_files_that_are_in_it(tmp_path: Path) -> None:
    for name in ("episodes.jsonl", "dropped.jsonl", "rows.jsonl", "report.json"):
        (tmp_path / name).touch()
    folder, rows = tmp_path, tmp_path / "rows.jsonl"
    for words in (["data", "validate", str(folder)], ["data", "stats", str(folder)], ["sft", "--data", str(folder), "--dry-run"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert f"error: cannot read `{folder}`: it is a folder\n\nhint: name a file of rows in it: {rows}\n" in result.stderr


def test_stats_count(tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", writ("#W1"), writ("#W1"), areal("#W2"), "{")
    found = run("stats", file, "--tokenizer", "bytes")
    assert (found["rows"], found["bad"], found["duplicates"], found["graded"], found["solved"]) == (3, 1, 1, 1, 1)
    assert found["by_layout"] == {"AReaL-tau2-data": 1, "WRIT-2K": 2}
    assert found["by_cell"] == {"normal": 2, "not said": 1}
    assert found["turns"]["total"] == 5 and found["writes"] == {"total": 3, "least": 1, "median": 1, "p90": 1.0, "most": 1}
    assert found["tools"] == {"cancel_pending_order": 3} and found["tokens"]["least"] > 100


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.gz"])
def test_other_files_are_read_as_json_lines_are(tmp_path: Path, name: str) -> None:
    rows = [
        {**writ("#W1"), "metadata": {"reward": 1.0, "tags": ["a"]}, "token_ids": [1, 2], "loss_mask": [0, 1]},
        {**areal("#W2"), "note": None},
        {"messages": [{"role": "user", "content": "ä"}, {"role": "assistant", "content": "b", "step_loss_mask": 0}], "n": 2**70},
    ]
    file = tmp_path / name
    written = save_rows(file, lambda: rows)
    first = file.read_bytes()
    assert save_rows(file, lambda: rows).sha256 == written.sha256 and file.read_bytes() == first
    back = [row for _, row in read_rows(DataConfig(files=(file,)))]
    assert [without_nulls(row) for row in back] == [without_nulls(row) for row in rows]
    assert run("stats", file)["rows"] == 3


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    assert "a.parquet" in run("stats", tmp_path / "a.parquet", code=2)["error"]


def test_a_mix_has_its_shares_and_every_rows_origin(tmp_path: Path) -> None:
    many = lines(tmp_path / "many.jsonl", *(writ(f"#W{i}") for i in range(40)))
    few = lines(tmp_path / "few.jsonl", *(areal(f"#W{i}") for i in range(6)), {"messages": conversation("#W3")})
    arguments = ["mix", "--from", f"{many}=3", "--from", f"{few}=1", "--seed", "7"]
    report = run(*arguments, "--output", tmp_path / "mix.jsonl", "--license", "cc0-1.0")
    assert [(s["read"], s["duplicates"], s["kept"], s["licence"]) for s in report["sources"]] == [
        (40, 0, 18, "mit"),
        (7, 1, 6, "apache-2.0"),  # the plain row is a conversation of the first source
    ]
    rows = [row for _, row in read_row_file(tmp_path / "mix.jsonl")]
    assert len(rows) == report["rows"] == 24
    origin = {(row["metadata"]["source_row"], row["metadata"]["layout"], row["metadata"]["licence"]) for row in rows}
    assert len(origin) == 24 and {kind for _, kind, _ in origin} == {"WRIT-2K", "AReaL-tau2-data"}
    assert all(row["answer"] for row in rows if row["metadata"]["layout"] == "AReaL-tau2-data")  # as it was
    run(*arguments, "--output", tmp_path / "again.jsonl", "--license", "cc0-1.0")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "mix.jsonl").read_bytes()
    lines(many, *(writ(f"#W{i}") for i in reversed(range(40))))
    run(*arguments, "--output", tmp_path / "turned.jsonl")
    said = [row["messages"] for _, row in read_row_file(tmp_path / "turned.jsonl")]
    assert said == [row["messages"] for row in rows]
    assert json.loads((tmp_path / "mix.jsonl.mix.json").read_text())["sources"][0]["weight"] == 3.0


def test_a_mix_leaves_out_what_is_nearly_an_earlier_conversation(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", writ("#W1"), writ("#W2"))
    b = lines(tmp_path / "b.jsonl", areal("#W1"), {"messages": conversation("#W9")})
    arguments = ["mix", "--from", a, "--from", b, "--output", tmp_path / "mix.jsonl"]
    counts = [(s["duplicates"], s["near_duplicates"], s["kept"]) for s in run(*arguments)["sources"]]
    assert counts == [(0, 0, 2), (0, 0, 2)]
    # Two orders share 4 of 16 runs of three words; the AReaL row asks and does what the first one does, with other thoughts.
    for near, kept in (("0.26", [(0, 2), (1, 1)]), ("0.25", [(1, 1), (2, 0)])):
        report = run(*arguments, "--near", near)
        assert [(s["near_duplicates"], s["kept"]) for s in report["sources"]] == kept
        assert report["rows"] == sum(count for _, count in kept)


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    a, b = lines(tmp_path / "a.jsonl", writ("#W1"), "{"), lines(tmp_path / "b.jsonl", writ("#W2"))
    out = tmp_path / "out.jsonl"
    assert "a.jsonl:2" in run("mix", "--from", a, "--output", out, code=2)["error"]
    assert run("mix", "--from", a, "--output", out, "--skip-bad")["sources"][0]["bad"] == 1
    assert "1 rows that are left" in run("mix", "--from", f"{b}=1", "--rows", "5", "--output", out, code=2)["error"]
    assert "some sources have a weight" in run("mix", "--from", f"{b}=1", "--from", a, "--output", out, code=2)["error"]


def test_planted_overlap_with_the_test_tasks_is_found(tmp_path: Path) -> None:
    from tau2rl.env.domain import domain

    task = next(iter(domain("retail").tasks("test").values()))
    action = next(a for a in task.evaluation_criteria.actions if domain("retail").tool_types[a.name] == "write")
    planted_call = {"name": action.name, "arguments": json.dumps(action.arguments)}
    planted = [
        {"messages": [{"role": "user", "content": str(task.user_scenario.instructions)}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"function": planted_call}]}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
         "metadata": {"split": "base", "task_id": task.id}},
    ]  # fmt: skip
    file = lines(tmp_path / "rows.jsonl", *({**row, "domain": "retail"} for row in planted), writ("#W0000000"))
    found = run("validate", file, "--against-test", code=2)
    shared = {fault["at"].rpartition(":")[2]: fault["why"] for fault in found["faults"] if "test tasks" in fault["why"]}
    assert set(shared) == {"1", "2", "3"}
    assert "runs of words" in shared["1"] and "gold arguments" in shared["2"] and "shares test tasks" in shared["3"]
    assert "shares" not in str(run("validate", file, code=0)["faults"])
    card = run("card", file, "--license", "cc0-1.0")
    assert card["overlap"]["rows"] == 3
    counts = card["overlap"]["domains"]["retail"]
    assert (counts["rows"], counts["sharing"], counts["by_kind"]["test tasks"]) == (4, 3, 1)
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "license: other" in text and "3 of 4 rows share something" in text and "`rows.jsonl:1`" in text
    (tmp_path / "README.md").write_text("mine", "utf-8")
    assert "was not made here" in run("card", file, code=2)["error"]


def test_published_rows_become_openai_messages(tmp_path: Path) -> None:
    source = lines(tmp_path / "sft.jsonl", areal("#W2"), writ("#W1"), seed_v3("#W3"))
    report = run("import", source, "--output", tmp_path / "rows.jsonl")
    assert (report["layout"], report["rows"]) == ("AReaL-tau2-data", 3)
    before = [read_row(row, name="a") for _, row in read_row_file(source)]
    rows = [row for _, row in read_row_file(tmp_path / "rows.jsonl")]
    after = [read_row(row, name="a") for row in rows]
    assert [row.messages for row in after] == [row.messages for row in before]
    assert [learned_turns(row) for row in after] == [learned_turns(row) for row in before] == [[4], [2, 4], [2]]
    assert rows[0]["messages"][2]["tool_calls"][0]["id"] == rows[0]["messages"][3]["tool_call_id"]
    assert rows[0]["metadata"]["scenario_id"] == "scenario_7" and rows[1]["metadata"]["trajectory_type"] == "normal"
    assert [row["metadata"].get("licence") for row in rows] == ["apache-2.0", "mit", None]
    run("import", source, "--output", tmp_path / "rows.jsonl", "--no-thoughts")
    assert "reasoning_content" not in (tmp_path / "rows.jsonl").read_text("utf-8")


def test_tasks_are_played_on_the_databases_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2rl.env.domain import domain

    database: Any = domain("airline").environment().tools.db.model_dump(mode="json")
    reservation = next(r for r in database["reservations"].values() if r["status"] is None and len(r["passengers"]) == 1)
    database["reservations"]["QQQ777"] = {**reservation, "reservation_id": "QQQ777"}
    data = tmp_path / "data"
    (data / "tau2_rl_database").mkdir(parents=True)
    (data / "tau2_rl_database" / "tau2_airline_new_db_1.json").write_text(json.dumps(database), "utf-8")
    cancel = {"action_id": "0", "name": "cancel_reservation", "arguments": {"reservation_id": "QQQ777"}}
    task = {
        "id": "airline_1",
        "description": {"purpose": "Customer service simulation for airline domain"},
        "user_scenario": {"instructions": {
            "task_instructions": "Cancel it.", "domain": "airline", "reason_for_call": "Cancel QQQ777.", "known_info": "Me."}},
        "evaluation_criteria": json.dumps({"actions": [cancel], "communicate_info": [], "nl_assertions": None}),
        "db_path": "tau2_rl_database/tau2_airline_new_db_1.json",
    }  # fmt: skip
    bad = {**task, "evaluation_criteria": "{"}
    source = lines(data / "tau2_rl_train.jsonl", task, task, bad)
    assert "tau2_rl_train.jsonl:3" in run("import", source, "--output", tmp_path / "no", code=2)["error"]
    report = run("import", source, "--output", tmp_path / "tasks", "--skip-bad")
    assert (report["rows"], report["bad"], list(report["domains"])) == (2, 1, ["areal-airline-0"])
    monkeypatch.syspath_prepend(str(tmp_path / "tasks"))
    for policy, solved in (("gold", 1.0), ("do-nothing", 0.0)):
        done = runner.invoke(
            app,
            ["eval", "--plugins", "areal_tau2", "--domains", "areal-airline-0", "--task-split", "train", "--policy", policy,
             "--user-model", "scripted", "--protocol", "transcript", "--num-samples", "1", "--inline", "--json",
             "--output", str(tmp_path / policy)],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        records = [json.loads(line) for line in (tmp_path / policy / "episodes.jsonl").read_text("utf-8").splitlines()]
        assert [record["episode"]["grade"]["reward"] for record in records] == [solved, solved]


def test_a_database_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    instructions = {"task_instructions": "", "domain": "airline", "reason_for_call": "", "known_info": ""}
    task = {"id": "a", "user_scenario": {"instructions": instructions}, "db_path": "../x.json", "evaluation_criteria": "null"}
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "in").mkdir()
    source = lines(tmp_path / "in" / "t.jsonl", task)
    assert "outside of its folder" in run("import", source, "--output", tmp_path / "out", code=2)["error"]
