"""A whole `tau2rl eval`, in this process and on the real `mock` domain, pinned here:

- with `--json` stdout is `report.json` and nothing else; progress is on stderr;
- repetitions are whole runs with seeds of their own, the first one that of the run without; how much they differ is in report and
  table; a run that was cut off goes on, and another number of them is another run;
- a second start is refused, and with `--resume` it prints the same report again; `--resume` of nothing says so and starts;
- a run that lacks an attempt exits 1, has no headline number, and says how to continue with a command that works;
- a run that breaks before it has a result prints no result, not even the one of an earlier start;
- below the table stand the reasons of failed tries, and a run that gave up says so and what it left alone;
- a request that is found wrong only while it is carried out leaves no folder, so that its name is free; a folder that was there
  before stays.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app

runner = CliRunner()
GOLD = {
    "tasks": {"domains": ["mock"], "split": "base"},
    "policy": {"kind": "gold"},
    "user": {"kind": "scripted"},
    "chat": {"protocol": "transcript"},
    "rollout": {"num_samples": 1, "retries": 0},
    "launch": {"inline": True},
}
UNPLAYABLE = "update_task_with_history_and_env_assertions"  # it has no reference actions, so gold cannot play it


@pytest.fixture
def gold(tmp_path: Path) -> list[str]:
    """The words of a small run that gold solves."""
    (tmp_path / "gold.yaml").write_text(yaml.safe_dump(GOLD), "utf-8")
    return ["eval", "-c", str(tmp_path / "gold.yaml"), "--output", str(tmp_path / "run")]


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf-8"))


def test_a_run_prints_its_report_and_can_be_asked_again(gold: list[str], tmp_path: Path) -> None:
    first = runner.invoke(app, [*gold, "--limit", "2", "--json"])
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout) == report_in(tmp_path / "run")
    assert json.loads(first.stdout)["overall"]["pass@1"]["value"] == 1.0
    said = first.stderr.splitlines()
    ended = next(number for number, line in enumerate(said) if line.startswith("2/2 episodes, success 1.000 (2/2)"))
    assert said[ended + 1 : ended + 3] == [f"run folder: {tmp_path / 'run'}", "next, if you like"]

    again = runner.invoke(app, [*gold, "--limit", "2", "--json"])
    assert (again.exit_code, again.stdout) == (2, "")
    assert "`--resume`" in again.stderr

    resumed = runner.invoke(app, [*gold, "--limit", "2", "--json", "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(first.stdout)


def test_a_resume_of_nothing_says_so_and_starts(gold: list[str], tmp_path: Path) -> None:
    first = runner.invoke(app, [*gold, "--limit", "1", "--resume"])
    assert first.exit_code == 0
    assert first.stderr.splitlines()[0] == f"nothing to resume in `{tmp_path / 'run'}`, starting"
    assert "nothing to resume" not in runner.invoke(app, [*gold, "--limit", "1", "--resume"]).stderr


def test_a_run_without_all_its_attempts_says_how_to_continue(gold: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, [*gold, "--set", f"tasks.ids=[{UNPLAYABLE}, create_task_1]"])
    assert result.exit_code == 1
    headline = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["overall"])
    assert headline[:3] == ["overall", "2", "-"]
    said, command = result.stderr.splitlines()[-2:]
    assert said == "not complete; continue with"
    words = shlex.split(command)
    assert words[:2] == ["tau2rl", "eval"]
    continued = runner.invoke(app, [*words[1:], "--json"])
    assert continued.exit_code == 1
    assert json.loads(continued.stdout)["overall"]["pass@1"]["value"] is None
    assert len((tmp_path / "run" / "episodes.jsonl").read_text("utf-8").splitlines()) == 1


def test_a_run_that_gives_up_says_why_and_what_it_left_alone(gold: list[str]) -> None:
    asked = [f"tasks.ids=[{UNPLAYABLE}]", "rollout.num_samples=5", "rollout.give_up_after=2", "rollout.concurrency=1"]
    result = runner.invoke(app, [*gold, *(word for one in asked for word in ("--set", one))])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "failed tries: 2, most often" in lines
    assert lines[lines.index("failed tries: 2, most often") + 1].startswith("  2 times, the user simulator: ")
    gave_up = "gave up: 2 episodes in a row failed (`rollout.give_up_after`); not played: 3 attempts"
    assert gave_up in result.stderr.splitlines()


def test_a_run_that_breaks_early_prints_no_older_result(gold: list[str], tmp_path: Path) -> None:
    assert runner.invoke(app, [*gold, "--limit", "1"]).exit_code == 0
    environment = tmp_path / "run" / "environment.json"
    stored = json.loads(environment.read_text("utf-8"))
    stored["identity"]["bench"]["distribution"] = "another"
    environment.write_text(json.dumps(stored), "utf-8")
    result = runner.invoke(app, [*gold, "--limit", "1", "--resume"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "bench.distribution" in result.stderr


def test_a_wrong_request_leaves_its_name_free(gold: list[str], tmp_path: Path) -> None:
    wrong = runner.invoke(app, [*gold, "--task-split", "tset"])
    assert wrong.exit_code == 2
    assert "no such split `tset`" in wrong.stderr
    assert not (tmp_path / "run").exists()
    assert runner.invoke(app, [*gold, "--limit", "1"]).exit_code == 0


def test_a_wrong_request_leaves_a_folder_that_was_there(gold: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"stage": "eval", **GOLD}), "utf-8")
    assert runner.invoke(app, [*gold, "--task-split", "tset"]).exit_code == 2
    assert (run / "config.json").exists()


def test_repetitions_are_whole_runs_with_seeds_of_their_own(gold: list[str], tmp_path: Path) -> None:
    once = runner.invoke(app, [*gold[:-1], str(tmp_path / "once"), "--limit", "2", "--json"])
    assert once.exit_code == 0, once.stderr
    words = [*gold, "--limit", "2", "--repetitions", "3"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "sd of 3 runs" in done.stdout
    assert "repetitions: pass@1 1.000, 1.000, 1.000; sd between them 0.000" in done.stdout
    report = report_in(tmp_path / "run")
    assert report["attempts"] == 1  # of a repetition
    assert (report["repetitions"]["count"], report["repetitions"]["overall"]["pass@1"]) == (3, [1.0, 1.0, 1.0])
    assert {count["attempts"] for count in report["by_task"].values()} == {3}

    def seeds(run: str) -> dict[str, int]:
        lines = map(json.loads, (tmp_path / run / "episodes.jsonl").read_text("utf-8").splitlines())
        return {f"{line['attempt']['task']['task_id']}#{line['attempt']['index']}": line["attempt"]["seed"] for line in lines}

    of_one, of_three = seeds("once"), seeds("run")
    assert len(set(of_three.values())) == len(of_three) == 6
    assert of_one.items() <= of_three.items()

    episodes = tmp_path / "run" / "episodes.jsonl"  # cut off in the second repetition, and gone on with
    episodes.write_bytes(b"".join(episodes.read_bytes().splitlines(keepends=True)[:3]))
    resumed = runner.invoke(app, [*words, "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    assert seeds("run") == of_three
    other = runner.invoke(app, [*gold, "--limit", "2", "--repetitions", "2", "--resume"])
    assert other.exit_code == 2
    assert "repetitions: was 3, now 2" in other.stderr


def test_what_is_greedy_is_not_repeated(gold: list[str]) -> None:
    refused = runner.invoke(app, [*gold, "--repetitions", "2", "--greedy"])
    assert refused.exit_code == 2
    assert "rollout.greedy plays its one attempt a task once" in refused.stderr
