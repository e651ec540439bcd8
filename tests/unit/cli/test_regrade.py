"""`tau2rl regrade`, pinned here on evaluations that were really played through the command line:

- nothing changed: every reward, score, check and estimate is what it was, and the run itself is untouched, byte by byte
- another reward preset changes scores and no reward of tau2; what the conversations were played under cannot change
- quarantined tasks left out: no other task moves up in their place
- the new folder has an identity of its own that names the run; its own folder, and one that holds a run, are refused
- a conversation whose tools answer otherwise today is FAILED, and no zero
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.runs import records

runner = CliRunner()
GOLD = ["eval", "--inline", "--policy", "gold", "--user-model", "scripted", "--protocol", "transcript"]


def tau2rl(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attempts at twenty tasks of the mock domain by the reference path: some solved, some cut off by three turns."""
    folder = tmp_path_factory.mktemp("runs") / "eval"
    words = [*GOLD, "--domains", "mock", "--task-split", "synth-test", "--limit", "20", "--num-samples", "2"]
    runner.invoke(app, [*words, "--set", "limits.max_turns=3", "--output", str(folder)])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_nothing_changed_gives_the_same(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    told = json.loads(tau2rl("regrade", run, "--output", tmp_path / "again", "--json").stdout)
    assert contents(run) == before
    old, new = (json.loads((folder / "report.json").read_text()) for folder in (run, tmp_path / "again"))
    same = ("overall", "by_domain", "by_task", "floor", "tasks_with_writes", "episodes", "faults", "partial", "shaped", "turns")
    assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert 0 < new["overall"]["pass@1"]["value"] < 1
    assert new["episodes"]["truncated"] > 0
    kept = {r.attempt.key: r for r in records.read_records(run / "episodes.jsonl")}
    again = {r.attempt.key: r for r in records.read_records(tmp_path / "again" / "episodes.jsonl")}
    assert kept.keys() == again.keys()
    assert all(again[key].episode == kept[key].episode and again[key].score == kept[key].score for key in kept)
    assert (told["regraded_from"]["changed"], told["other_data"]) == (0, [])


def test_another_preset_scores_otherwise_and_names_the_run(run: Path, tmp_path: Path) -> None:
    tau2rl("regrade", run, "--reward", "outcome", "--output", tmp_path / "outcome")
    stored = json.loads((run / "environment.json").read_text())
    environment = json.loads((tmp_path / "outcome" / "environment.json").read_text())
    assert environment["identity"]["regraded"]["digest"] == stored["digest"] != environment["digest"]
    assert environment["identity"]["settings"]["reward.preset"] == "outcome"
    for record in records.read_records(tmp_path / "outcome" / "episodes.jsonl"):
        assert record.score is not None
        assert record.score.shaped == record.score.task  # the preset adds nothing to tau2's reward
    compared = tau2rl("compare", run, tmp_path / "outcome", code=2)
    assert "reward.preset" in compared.stderr
    assert "regraded" not in compared.stderr  # which run it was made of is no other measurement


def test_quarantined_tasks_are_left_out_and_nobody_moves_up(tmp_path: Path) -> None:
    words = [*GOLD, "--domains", "airline", "--limit", "5"]
    tau2rl(*words, "--output", tmp_path / "five")
    tau2rl("regrade", tmp_path / "five", "--exclude-quarantined", "--output", tmp_path / "less")
    five, less = (json.loads((tmp_path / name / "report.json").read_text())["by_task"] for name in ("five", "less"))
    quarantined = {row["task_id"] for row in json.loads(tau2rl("tasks", "list", "--domains", "airline", "--json").stdout)
                   if row["quarantined"]}  # fmt: skip
    assert less.keys() == {key for key in five if key.partition("/")[2] not in quarantined} < five.keys()


def test_what_cannot_be_asked_is_refused(run: Path, tmp_path: Path) -> None:
    wrong = tau2rl("regrade", run, "--set", "limits.max_turns=9", "--output", tmp_path / "x", code=2)
    assert "`limits.max_turns` decided how the conversations were played" in wrong.stderr
    assert "its own folder" in tau2rl("regrade", run, "--output", run, code=2).stderr
    tau2rl("regrade", run, "--output", tmp_path / "x")
    assert "holds a run already" in tau2rl("regrade", run, "--output", tmp_path / "x", code=2).stderr
    assert "not a run folder" in tau2rl("regrade", tmp_path, code=2).stderr


def test_what_cannot_be_graded_any_more_is_no_zero(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "environment.json"):
        (other / name).write_bytes((run / name).read_bytes())
    lines = (run / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"role":"tool"' in line)
    values = json.loads(lines[at])
    next(m for m in values["episode"]["trajectory"] if m["role"] == "tool")["content"] = "something else"
    (other / "episodes.jsonl").write_bytes(b"".join([*lines[:at], json.dumps(values).encode() + b"\n", *lines[at + 1 :]]))
    tau2rl("regrade", other, "--output", tmp_path / "again", code=1)
    (failed,) = records.read_records(tmp_path / "again" / "failures.jsonl")
    assert failed.score is None
    assert failed.episode.failure is not None
    assert "tau2's grader raised" in failed.episode.failure.message
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["overall"]["pass@1"]["value"] is None
