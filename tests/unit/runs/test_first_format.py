"""Run folders of the first format (635ae84) stay readable; pinned here, by the commands that read them:

- `report` prints every stage, under the names of today, whatever the report calls things;
- `compare` compares an old run with an old one and with one of today;
- `rft-filter --from` takes its episodes, `select-checkpoint` its looks and keeps its count of test evaluations;
- an evaluation of that time is continued, and what is done stays; so is a training, or its state is refused with a clear word;
- what has changed is refused with both values;
- a report of a later version is refused with a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, GrpoConfig
from tau2rl.report.aggregate import counted
from tau2rl.runs import records
from tau2rl.runs.folder import read_config
from tau2rl.runs.sessions import session_folders
from tau2rl.runs.timing import sessions
from tests.unit.runs.first_format import unpacked

runner = CliRunner()
STAGES = {
    "eval-gold": "eval",
    "rft-from": "rft-filter",
    "pipeline/runs/01-seed": "seed",
    "pipeline/runs/02-sft": "sft",
    "pipeline/runs/05-rft": "rft-filter",
    "pipeline/runs/06-grpo": "grpo",
    "pipeline": "pipeline",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("old"))


def invoke(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(("run", "stage"), STAGES.items())
def test_every_stage_is_reported_under_the_names_of_today(run: str, stage: str, old: Path) -> None:
    values = json.loads(invoke("report", old / run, "--json").stdout)
    assert (values["schema"], values["stage"]) == (2, stage)
    text = json.dumps(values)
    for name in ("spread", "took", "gave", "bound", "customer", "looks", "selected_by"):
        assert f'"{name}":' not in text
    assert invoke("report", old / run).stdout


def test_an_incomplete_run_is_reported_with_what_it_has(old: Path) -> None:
    told = invoke("report", old / "eval-broken", code=1)
    assert "incomplete: 1 of 2 attempts missing or failed" in told.stdout
    assert [len(session_folders(old / run)) for run in ("eval-broken", "eval-gold")] == [2, 1]
    assert len(sessions(old / "eval-broken")) == 2


def test_records_are_read_and_counted_as_today(old: Path) -> None:
    failed = list(records.read_records(old / "eval-broken" / "failures.jsonl"))
    assert len(failed) == 2 and len(counted(failed)) == 1
    assert len(list(records.read_records(old / "eval-gold" / "episodes.jsonl"))) == 2


def test_the_config_has_the_names_of_today(old: Path) -> None:
    grpo, evaluation = read_config(old / "pipeline/runs/06-grpo"), read_config(old / "eval-gold")
    assert isinstance(grpo, GrpoConfig) and isinstance(evaluation, EvalConfig)
    assert (grpo.train.val_every, grpo.val.limit, grpo.local.max_tokens_per_microbatch) == (1, 1, 4096)


def test_old_runs_are_compared_with_each_other_and_with_one_of_today(old: Path, tmp_path: Path) -> None:
    numbers = json.loads(invoke("compare", old / "eval-gold", old / "eval-transfer", "--json").stdout)["pairs"][0]["measures"][
        "pass@1"
    ]
    assert (numbers["a"], numbers["b"], numbers["tasks"]) == (1.0, 0.0, 1)
    config = old / "eval-gold" / "config.json"
    invoke("eval", "-c", config, "--output", tmp_path / "new", "--inline", "--set", "policy.kind=always-transfer")
    again = json.loads(invoke("compare", old / "eval-gold", tmp_path / "new", "--json").stdout)
    assert again["differing"] == []
    assert again["pairs"][0]["measures"]["pass@1"]["difference"]["value"] == 1.0


def test_old_episodes_become_rows(old: Path, tmp_path: Path) -> None:
    invoke("rft-filter", "--from", old / "eval-gold", "--output", tmp_path / "rft", "--inline", "--set", "allow_held_out=true")
    was, now = ((run / "sft.jsonl").read_text("utf-8").splitlines() for run in (old / "rft-from", tmp_path / "rft"))
    assert [json.loads(row)["messages"] for row in now] == [json.loads(row)["messages"] for row in was][: len(now)]


def test_a_checkpoint_is_chosen_by_old_looks_and_the_test_set_access_stays_counted(old: Path) -> None:
    run = old / "pipeline/runs/06-grpo"
    before = json.loads((run / "selection.json").read_text("utf-8"))
    chosen = json.loads(invoke("select-checkpoint", run, "--json").stdout)
    assert (chosen["schema"], chosen["chosen"]["step"], chosen["best"]) == (2, before["chosen"]["step"], before["best"])
    assert chosen["test_access_log"] == before["test_evaluations"] and len(chosen["test_access_log"]) == 1
    assert [source["file"] for source in chosen["source"]] == ["select/step_00001.jsonl", "select/step_00002.jsonl"]


def test_an_old_evaluation_is_continued(tmp_path: Path) -> None:
    run = unpacked(tmp_path) / "eval-broken"
    done = (run / "episodes.jsonl").read_bytes()
    told = invoke("eval", "-c", run / "config.json", "--output", run, "--resume", "--inline", code=1)  # it fails as it did then
    assert "1 completed, 0 truncated, 0 malformed, 1 failed" in told.stdout
    assert (run / "episodes.jsonl").read_bytes() == done
    assert [folder.name for folder in session_folders(run).values()] == ["attempt_1", "attempt_2", "session_3"]
    assert json.loads((run / "environment.json").read_text("utf-8"))["schema"] == 2
    assert len(sessions(run)) == 3


def test_an_old_evaluation_with_another_setting_is_refused_with_both_values(old: Path) -> None:
    run = old / "eval-broken"
    told = invoke("eval", "-c", run / "config.json", "--output", run, "--resume", "--inline", "--seed", "7", code=2)
    assert "seed: was 300, now 7" in told.stderr


def test_the_settings_of_an_old_training_are_taken_up_and_it_may_be_extended(tmp_path: Path) -> None:
    run = unpacked(tmp_path) / "pipeline/runs/02-sft"
    words = ["sft", "-c", run / "config.json", "--output", run, "--resume", "--inline", "--set", "train.steps=4"]
    told = runner.invoke(app, [str(word) for word in words])
    # The trainer goes on from the state, or says that it is of another version; the settings stand in no way.
    assert told.exit_code == 0 or ("training state" in told.stderr and "another version" in told.stderr), told.output
    (change,) = json.loads((run / "environment.json").read_text("utf-8"))["changes"]
    assert (change["setting"], change["from"], change["to"]) == ("train.steps", 2, 4)


def test_a_report_of_a_later_version_is_refused_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema": 3, "stage": "eval", "incomplete": false}', "utf-8")
    told = invoke("report", tmp_path, code=2)
    assert "schema 3, this version reads schemas 1 and 2" in told.stderr and "hint: " in told.stderr
