"""`tau2rl export` and `import`, pinned here on an evaluation that was really played, with a FAILED attempt and hostile text:

- `tau2`: tau2's own loader reads the file, its own grader gives the same rewards, its own metrics the same pass^1; imported, the
  report has the same numbers, and exported again the file has the same verdicts
- a pass@k JSON of Tau2-RL-Pipeline: an aborted attempt is FAILED and no zero
- `trl`, `hf`: rows of what was solved; test tasks only when asked for, and then the card says so; no name of a run breaks its
  YAML or Markdown, and 10 MB in a message are a row
- the real programs: `tau2 view`, `tau2 evaluate-trajs` and `tau2 submit validate` take the files; `inspect view` shows a log in a
  browser, hostile text as text; harbor's own model takes every document (where inspect-ai and harbor are installed)
- `atif`: every call beside its result, steps numbered through; `inspect`: what inspect-ai wrote it reads
- hostile text leaves as text: every file is UTF-8 without control characters of its own; nothing a terminal obeys reaches stdout
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.data.jsonl import read_row_file
from tau2rl.runs import records
from tau2rl.types import Failure, Fault, Message, Status, StopReason
from tests.viewing import chromium

runner = CliRunner()
HOSTILE = (
    "<script>alert(1)</script> \x1b]0;owned\x07\x1b[2J \u202egnp.exe \x00 =cmd()|'x'!A1 \udc80 ``` | **b**\n---\nlicense: evil"
)
GOLD = ["eval", "--inline", "--policy", "gold", "--user-model", "scripted", "--protocol", "transcript", "--domains", "mock"]


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    return result


def played(folder: Path, split: str, says: str = HOSTILE) -> Path:
    words = [
        *GOLD,
        "--task-split",
        split,
        "--limit",
        "12",
        "--num-samples",
        "2",
        "--set",
        "limits.max_turns=3",
        "--name",
        "a<b>|`c`",
    ]
    tau2rl(*words, "--output", folder)
    lines = (folder / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    last = records.decode(lines[-1])
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message=HOSTILE.replace("\udc80", ""))
    failed = replace(last.episode, status=Status.FAILED, stop_reason=StopReason.FAILED, grade=None, failure=failure)
    (folder / "failures.jsonl").write_bytes(records.encode(replace(last, episode=failed, score=None)))
    solved = next(i for i, line in enumerate(lines) if (e := records.decode(line).episode).grade and e.grade.success)
    one = records.decode(lines[solved])
    said = replace(one.episode, messages=(*one.episode.messages, Message(role="assistant", content=says)),
                   trajectory=(*one.episode.trajectory, {"role": "assistant", "content": says}))  # fmt: skip
    lines[solved] = records.encode(replace(one, episode=said))
    (folder / "episodes.jsonl").write_bytes(b"".join(lines[:-1]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("runs") / "test", "synth-test")


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """tau2's file of the run."""
    out = tmp_path_factory.mktemp("out")
    tau2rl("export", run, "--to", "tau2", "--output", out)
    return (out / "mock.json").read_text("utf-8")


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("runs") / "train", "synth-train", HOSTILE + "x" * 10_000_000)


def test_tau2_reads_what_is_exported_and_grades_it_the_same(run: Path, tmp_path: Path) -> None:
    told = json.loads(tau2rl("export", run, "--to", "tau2", "--output", tmp_path / "out", "--json").stdout)
    assert told == {"files": {str(tmp_path / "out" / "mock.json"): 23}, "left_out": {"failed": 1}}
    from tau2.data_model.simulation import Results
    from tau2.metrics.agent_metrics import compute_metrics
    from tau2.scripts.evaluate_trajectories import compute_simulation_rewards

    results = Results.load(tmp_path / "out" / "mock.json")
    again = compute_simulation_rewards(results)
    kept = {(s.task_id, s.trial): s.reward_info.reward for s in results.simulations if s.reward_info}
    assert {(s.task_id, s.trial): s.reward_info.reward for s in again.simulations if s.reward_info} == kept
    assert set(kept.values()) == {0.0, 1.0}
    report = json.loads((run / "report.json").read_text())
    assert compute_metrics(results).avg_reward == pytest.approx(sum(kept.values()) / 23)
    solved = {key.partition("/")[2]: count["solved"] for key, count in report["by_task"].items()}
    ours = {task: sum(value for (name, _), value in kept.items() if name == task) for task in solved}
    missing = {r.attempt.task.task_id for r in records.read_records(run / "failures.jsonl")}
    assert {k: v for k, v in ours.items() if k not in missing} == {k: v for k, v in solved.items() if k not in missing}


def tau2_programs(folder: Path, *commands: list[str], typed: str = "") -> str:
    """What tau2's own command line prints for these commands, in one process: it takes seconds to start."""
    script = "import sys\nfrom tau2.cli import main\nfor sys.argv in {}: main()".format([["tau2", *each] for each in commands])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, input=typed, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tau2s_own_programs_take_the_files(run: Path, tmp_path: Path) -> None:
    tau2rl("export", run, "--to", "tau2", "--output", tmp_path / "mock")
    played = [*GOLD[:-1], "airline", "--task-split", "base", "--num-samples", "1", "--output", tmp_path / "airline"]
    tau2rl(*played)
    tau2rl("export", tmp_path / "airline", "--to", "tau2", "--output", tmp_path / "submission" / "trajectories")
    results = {"airline": {"pass_1": 1.0, "cost": 0.0}}  # `validate` compares shares from 0 to 1, whatever its schema says
    contact = {"organization": "o", "submission_date": "2026-01-01", "contact_info": {"email": "a@example.org"}}
    said = {"model_name": "gold", "results": results, "methodology": {"user_simulator": None}, **contact}
    (tmp_path / "submission" / "submission.json").write_text(json.dumps(said))
    keys = "\n".join(
        ["1", "1", "2", "3", "1", "", "4", "1", "5", ""]
    )  # the file; metrics, a conversation, no note, a task; leave
    shown = tau2_programs(
        tmp_path,
        ["evaluate-trajs", "mock/mock.json", "-o", "again"],
        ["submit", "validate", "submission"],
        ["view", "--file", "mock/mock.json"],
        typed=keys,
    )
    assert "All files processed successfully" in shown
    assert "All files passed all checks" in shown
    assert "Submission metrics validation successful" in shown
    assert "Loaded 23 simulations from mock.json" in shown
    assert "Error" not in shown
    again, kept = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("again/updated_mock.json", "mock/mock.json"))
    rewards = [[s["reward_info"]["reward"] for s in each["simulations"]] for each in (again, kept)]
    assert rewards[0] == rewards[1]


def test_tau2_results_come_back_as_they_went(run: Path, tmp_path: Path) -> None:
    tau2rl("export", run, "--to", "tau2", "--output", tmp_path / "out")
    tau2rl("import", tmp_path / "out" / "mock.json", "--output", tmp_path / "back", code=1)  # an attempt of the plan has no grade
    before = {r.attempt.key: r for r in records.read_records(run / "episodes.jsonl")}
    after = {r.attempt.key: r for r in records.read_records(tmp_path / "back" / "episodes.jsonl")}
    assert before.keys() == after.keys()
    for key, was in before.items():
        now = after[key].episode
        assert (now.status, now.stop_reason, now.grade, now.seed) == (
            was.episode.status,
            was.episode.stop_reason,
            was.episode.grade,
            was.attempt.seed,
        )
        assert len(now.turns) == len(was.episode.turns) or "\udc80" in HOSTILE
    old, new = (json.loads((f / "report.json").read_text()) for f in (run, tmp_path / "back"))
    assert new["floor"] == old["floor"]
    assert new["tasks_by_domain"] == old["tasks_by_domain"]
    tau2rl("export", tmp_path / "back", "--to", "tau2", "--output", tmp_path / "twice")
    one, two = (json.loads((tmp_path / name / "mock.json").read_text()) for name in ("out", "twice"))
    assert [s["reward_info"] for s in one["simulations"]] == [s["reward_info"] for s in two["simulations"]]
    assert one["tasks"] == two["tasks"]
    shown = tau2rl("show", tmp_path / "back", "synth-test-0000", "--attempt", 0)
    assert "agent" in shown.stdout
    environment = json.loads((tmp_path / "back" / "environment.json").read_text())
    assert environment["identity"]["imported"]["layout"] == "tau2 results"


def pass_at_k(file: Path, *statuses: str) -> Path:
    attempts = [
        {"success": s == "completed", "reward": float(s == "completed"), "partial_score": 0.0, "partial_components": {},
         "steps": 3, "status": s, "error": None if s == "completed" else f"{s} {HOSTILE[:60]}", "reward_info": None}
        for s in statuses
    ]  # fmt: skip
    row = {
        "domain": "airline",
        "task_split": "test",
        "task_index": 0,
        "task_id": "2",
        "num_samples": len(statuses),
        "attempts": attempts,
    }
    file.write_text(
        json.dumps({"hf_checkpoint": "m/x", "task_split": "test", "domains": ["airline"], "k": len(statuses), "results": [row]})
    )
    return file


def test_an_aborted_attempt_of_a_pass_at_k_file_is_no_zero(tmp_path: Path) -> None:
    whole = pass_at_k(tmp_path / "whole.json", "completed", "truncated", "parse_error", "empty_generation")
    report = json.loads(tau2rl("import", whole, "--output", tmp_path / "whole", "--json").stdout)
    assert report["overall"]["pass@1"]["value"] == 0.25
    assert report["episodes"] == {"completed": 1, "truncated": 1, "malformed": 2, "failed": 0}
    torn = pass_at_k(tmp_path / "torn.json", "completed", "aborted")
    report = json.loads(tau2rl("import", torn, "--output", tmp_path / "torn", "--json", code=1).stdout)
    assert (report["overall"]["pass@1"]["value"], report["so_far"]["overall"]["pass@1"]["value"]) == (None, 1.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v | {"info": None},
        lambda v: v["info"].update(num_trials=0) or v,
        lambda v: v["info"]["environment_info"].update(domain_name="nowhere") or v,
        lambda v: v["simulations"][0].update(task_id="no such task") or v,
        lambda v: v["simulations"][0]["messages"].append({"role": HOSTILE[:40]}) or v,
        lambda v: v["simulations"][0]["reward_info"].update(reward="high") or v,
        lambda v: {"something": "else"},
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(results: str, tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    values = spoil(json.loads(results))
    (tmp_path / "spoilt.json").write_text(json.dumps(values))
    told = tau2rl("import", tmp_path / "spoilt.json", "--output", tmp_path / "x", code=2)
    assert told.stderr.startswith("error: ")
    assert not (tmp_path / "x" / "episodes.jsonl").exists()


def test_a_dataset_has_what_was_solved_and_a_card_that_no_name_breaks(trained_on: Path, tmp_path: Path) -> None:
    tau2rl("export", trained_on, "--to", "hf", "--license", "mit", "--output", tmp_path / "hf")
    lines = (tmp_path / "hf" / "data" / "synth-train.jsonl").read_text("utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    assert rows
    assert all(row["reward"] == 1.0 and row["messages"][0]["role"] == "system" for row in rows)
    calls = [call for row in rows for message in row["messages"] for call in message.get("tool_calls") or ()]
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
    assert {tool["function"]["name"] for tool in json.loads(rows[0]["tools"])} >= {"create_task"}
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["configs"][0]["data_files"] == [{"split": "synth_train", "path": "data/synth-train.jsonl"}]
    assert "<script>" not in body
    assert "\x1b" not in card
    assert "No row is on a task of a tau2-bench test split" in card
    assert f"| synth-train | {len(rows)} | {len(rows)} |" in body
    tau2rl("export", trained_on, "--to", "trl", "--keep", "all", "--output", tmp_path / "trl")
    everything = [json.loads(line) for line in (tmp_path / "trl" / "synth-train.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert len(everything) == 23 > len(rows)
    objects = [c["function"]["arguments"] for row in everything for m in row["messages"] for c in m.get("tool_calls") or ()]
    assert all(isinstance(arguments, dict) for arguments in objects)


def test_a_dataset_in_parquet_has_the_same_rows(trained_on: Path, tmp_path: Path) -> None:
    tau2rl("export", trained_on, "--to", "hf", "--output", tmp_path / "text")
    tau2rl("export", trained_on, "--to", "hf", "--parquet", "--output", tmp_path / "arrow")
    lines = (tmp_path / "text" / "data" / "synth-train.jsonl").read_text("utf-8").split("\n")[:-1]
    written = [json.loads(line) for line in lines]
    read = [row for _, row in read_row_file(tmp_path / "arrow" / "data" / "synth-train.parquet")]
    assert [_without_nulls(row) for row in read] == [_without_nulls(row) for row in written] != []
    card = (tmp_path / "arrow" / "README.md").read_text("utf-8")
    assert "path: data/synth-train.parquet" in card
    assert "is for `--to hf`" in tau2rl("export", trained_on, "--to", "trl", "--parquet", code=2).stderr


def _without_nulls(value: Any) -> Any:
    """Arrow gives every message of a column the keys of all of them."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def test_test_tasks_are_trained_on_only_by_those_who_ask(run: Path, tmp_path: Path) -> None:
    assert "kept for tests" in tau2rl("export", run, "--to", "hf", "--output", tmp_path / "no", code=2).stderr
    assert not (tmp_path / "no").exists()
    tau2rl("export", run, "--to", "hf", "--allow-held-out", "--output", tmp_path / "yes")
    assert "tasks are test tasks of tau2-bench. A model that was trained" in (tmp_path / "yes" / "README.md").read_text("utf-8")


def test_atif_has_calls_beside_their_results(run: Path, tmp_path: Path) -> None:
    tau2rl("export", run, "--to", "atif", "--output", tmp_path)
    documents = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert len(documents) == 24  # a FAILED conversation is one too
    for document in documents:
        assert document["schema_version"] == "ATIF-v1.8"
        assert [step["step_id"] for step in document["steps"]] == list(range(1, len(document["steps"]) + 1))
        for step in document["steps"]:
            calls = [call["tool_call_id"] for call in step.get("tool_calls", ())]
            answered = [result.get("source_call_id") for result in step.get("observation", {"results": []})["results"]]
            assert answered in (calls, calls[: len(answered)])
            assert step["source"] == "agent" or not calls
    assert any("observation" in step for step in documents[0]["steps"])


def test_harbors_own_model_takes_every_document(run: Path, tmp_path: Path) -> None:
    harbor = pytest.importorskip("harbor.models.trajectories", reason="harbor is not installed")
    tau2rl("export", run, "--to", "atif", "--output", tmp_path)
    lines = (tmp_path / "trajectories.jsonl").read_text("utf-8").split("\n")[:-1]
    read = [harbor.Trajectory.model_validate_json(line) for line in lines]
    assert len(read) == 24
    assert sum(step.llm_call_count or 0 for each in read for step in each.steps) == sum(
        turn.malformed is None for file in ("episodes.jsonl", "failures.jsonl") for r in records.read_records(run / file)
        for turn in r.episode.turns
    )  # fmt: skip


def test_inspect_reads_what_is_exported(run: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="the extra `inspect`")
    tau2rl("export", run, "--to", "inspect", "--output", tmp_path)
    (file,) = tmp_path.glob("*.eval")
    read = log.read_eval_log(str(file))
    assert len(read.samples) == 24
    rewards = {(s.id, s.epoch): s.scores["reward"].value for s in read.samples if s.scores}
    kept = {
        (r.attempt.task.key, r.attempt.index + 1): r.episode.grade.reward
        for r in records.read_records(run / "episodes.jsonl")
        if r.episode.grade
    }
    assert rewards == kept


@pytest.mark.browser
def test_inspect_view_shows_hostile_text_as_text(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="the extra `inspect`")
    tau2rl("export", run, "--to", "inspect", "--output", tmp_path / "log")
    (file,) = (tmp_path / "log").iterdir()
    hostile = next(
        r for r in records.read_records(run / "episodes.jsonl") if r.episode.messages[-1].content.startswith("<script>")
    )
    sample = f"samples/sample/{quote(hostile.attempt.task.key, safe='')}/{hostile.attempt.index + 1}/"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "inspect_ai", "view", "start", "--host", "127.0.0.1", "--port", str(port), "--log-dir", str(tmp_path / "log")]
    with chromium() as browser, subprocess.Popen([sys.executable, *words], stdout=DEVNULL, stderr=DEVNULL) as viewer:
        try:
            answering(port)
            page, problems = browser.new_page(), list[str]()
            page.on("dialog", lambda dialog: problems.append(dialog.message))
            page.on("request", lambda request: f"//127.0.0.1:{port}/" in request.url or problems.append(request.url))
            page.goto(f"http://127.0.0.1:{port}/#/tasks/{quote(file.name)}/{sample}")
            said = page.wait_for_selector("text=<script>alert(1)</script>", timeout=60_000).inner_text()
            assert "U+001B" in said
            assert not set(said) & {"\x1b", "\0", "\u202e"}
            page.goto(f"http://127.0.0.1:{port}/#/tasks/{quote(file.name)}")
            page.wait_for_selector("text=24 rows", timeout=60_000)
            assert problems == []
        finally:
            viewer.terminate()


def answering(port: int) -> None:
    """Wait until a server does."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail("nothing answers")


def test_what_is_not_known_is_refused(run: Path, tmp_path: Path) -> None:
    assert "no such layout `csv`" in tau2rl("export", run, "--to", "csv", code=2).stderr
    assert "one word" in tau2rl("export", run, "--to", "hf", "--license", HOSTILE.replace("\0", ""), code=2).stderr
    assert "no such choice `best`" in tau2rl("export", run, "--to", "trl", "--keep", "best", code=2).stderr
    assert "not a run folder" in tau2rl("export", tmp_path, "--to", "tau2", code=2).stderr
