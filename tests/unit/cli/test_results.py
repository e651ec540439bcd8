"""`tau2rl report`, pinned here on run folders that hold real reports of made-up episodes:

- `report` prints the table and what became of every attempt; exit 1 for an incomplete run, whose headline is empty;
- a folder without a result is refused with what to do next, which for a run that is not finished is the command to go on with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.report.report import build_report
from tau2rl.types import Attempt, Checks, Episode, EpisodeRecord, Grade, Status, StopReason, TaskRef

runner = CliRunner()
SETTINGS = {"settings": {"policy.kind": "gold", "user.model": "u", "seed": 300}, "bench": {"tasks": "abc"}}


def record(task: str, *, solved: bool) -> EpisodeRecord:
    ref = TaskRef(domain="mock", task_id=task, split="base")
    grade = Grade(reward=float(solved), checks=Checks(db=(solved,)), reward_basis=("DB",))
    episode = Episode(
        task=ref,
        seed=1,
        status=Status.COMPLETED,
        stop_reason=StopReason.USER_STOP,
        token_ids=(),
        turns=(),
        messages=(),
        grade=grade,
    )
    return EpisodeRecord(schema=1, run="r", attempt=Attempt(task=ref, index=0, seed=1), tries=1, episode=episode, score=None)


def run_folder(path: Path, solved: str, *, missing: int = 0) -> Path:
    """A run of one attempt a task: `solved` is `1` or `0` a task, and `missing` tasks more were planned."""
    path.mkdir()
    records = [record(f"t{i}", solved=mark == "1") for i, mark in enumerate(solved)]
    planned = [r.attempt for r in records] + [record(f"m{i}", solved=False).attempt for i in range(missing)]
    floors = {"mock": {"do_nothing": 0.25, "always_transfer": 0.0}}
    report = build_report(records, planned=planned, floors=floors, digest="d")
    (path / "report.json").write_text(json.dumps(report), "utf-8")
    (path / "environment.json").write_text(json.dumps({"schema": 2, "identity": SETTINGS}), "utf-8")
    (path / "config.json").write_text('{"stage": "eval", "chat": {"tokenizer": "bytes"}}', "utf-8")
    return path


def test_the_report_is_printed_as_a_table(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(run_folder(tmp_path / "a", "1100"))])
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["overall"])
    assert row.split() == ["overall", "4", "0.500", "[0.150,", "0.850]", "0.250"]
    assert "episodes: 4 completed, 0 truncated, 0 malformed, 0 failed\n" in result.stdout
    assert "faults: agent 2\n" in result.stdout
    assert "floor: do nothing 0.250, always transfer 0.000\n" in result.stdout


def test_the_report_as_json_is_the_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", "10")
    for place in (folder, folder / "report.json"):
        result = runner.invoke(app, ["report", str(place), "--json"])
        assert json.loads(result.stdout) == json.loads((folder / "report.json").read_text("utf-8"))


def test_an_incomplete_run_exits_1_and_says_what_is_missing(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(run_folder(tmp_path / "a", "11", missing=1))])
    assert result.exit_code == 1
    headline = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["overall"])
    assert headline.split() == ["overall", "3", "-", "0.250"]
    assert "incomplete: 1 of 3 attempts missing or failed\n" in result.stdout
    assert "not done: mock/m0#0\n" in result.stdout


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = runner.invoke(app, ["report", str(empty)])
    assert result.exit_code == 2
    assert "\n\nhint: " in result.stderr


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"x": 1}', "utf-8")
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a report of a run" in result.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"stage": "eval", "chat": {"tokenizer": "bytes"}}, "tau2rl eval -c {0}/config.json --output {0} --resume"),
        ({"stage": "sft"}, "tau2rl sft -c {0}/config.json --output {0} --resume"),
        ({"stage": "pipeline"}, "tau2rl run -c {0}/config.json --output {0}`"),
    ],
)
def test_a_run_without_a_report_yet_says_how_to_finish_it(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "has no report yet" in result.stderr
    assert words.format(tmp_path) in result.stderr
