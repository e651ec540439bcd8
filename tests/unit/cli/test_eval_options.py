"""From the words of `tau2rl eval` to its config, pinned here through `--dry-run`:

- each option sets its own setting and no other;
- an option wins over `--set`, which wins over the file, which wins over the defaults;
- `--domains` takes commas and repetition alike; `--user-model scripted` chooses the scripted user;
- `--dry-run` starts nothing and leaves no folder; its YAML is a config file that gives the same config again;
- `--dry-run --json` prints `{"config", "argv"}` and nothing else; `argv` is what a job runs, and it does run;
- what cannot be right is refused by the name of its setting.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, build, dump, flatten
from tau2rl.launch.submit import job_command
from tau2rl.runs.folder import RunFolder

# What settings name is looked for on the cluster, and not here; `--inline` wants its user's key here.
runner = CliRunner(env={"RAY_ADDRESS": "http://cluster:8265", "OPENAI_API_KEY": "a-key"})
BASE = {"chat": {"tokenizer": "bytes"}}
ROOT = Path(__file__).parents[3]


def plan(*arguments: str, file: dict[str, Any] | None = None, folder: Path) -> dict[str, Any]:
    """What `--dry-run --json` prints for these arguments on top of a config file."""
    config = folder / "base.yaml"
    config.write_text(yaml.safe_dump(file or BASE), "utf-8")
    result = runner.invoke(app, ["eval", "-c", str(config), "--dry-run", "--json", *arguments])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def changed(*arguments: str, folder: Path) -> dict[str, Any]:
    """The settings that these arguments move away from the base."""
    before = flatten(dump(build(EvalConfig, BASE)))
    after = flatten(plan(*arguments, folder=folder)["config"])
    return {key: value for key, value in after.items() if before[key] != value}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--domains", "airline,retail"], {"tasks.domains": ["airline", "retail"]}),
        (["--domains", "airline", "--domains", "retail"], {"tasks.domains": ["airline", "retail"]}),
        (["--task-split", "train"], {"tasks.split": "train"}),
        (["--limit", "3"], {"tasks.limit": 3}),
        (["--num-samples", "8"], {"rollout.num_samples": 8}),
        (["--greedy"], {"rollout.greedy": True}),
        (["--concurrency", "5"], {"rollout.concurrency": 5}),
        (["--policy", "do-nothing"], {"policy.kind": "do-nothing"}),
        (["--url", "http://h:1"], {"policy.url": "http://h:1"}),
        (
            ["--policy", "api", "--model", "m", "--protocol", "transcript", "--set", "chat.tokenizer=null"],
            {"policy.kind": "api", "policy.model": "m", "chat.protocol": "transcript", "chat.tokenizer": None},
        ),
        (["--temperature", "0"], {"policy.sampling.temperature": 0.0}),
        (["--top-p", "0.9"], {"policy.sampling.top_p": 0.9}),
        (["--top-k", "20"], {"policy.sampling.top_k": 20}),
        (["--tokenizer", "/models/t"], {"chat.tokenizer": "/models/t"}),
        (["--protocol", "cookbook"], {"chat.protocol": "cookbook"}),
        (["--max-steps", "30"], {"limits.max_steps": 30}),
        (["--user-model", "gpt-4.1"], {"user.model": "gpt-4.1"}),
        (["--user-model", "scripted"], {"user.kind": "scripted"}),
        (["--name", "n"], {"name": "n"}),
        (["--output", "/runs/x"], {"output": "/runs/x"}),
        (["--resume"], {"resume": True}),
        (["--seed", "7"], {"seed": 7}),
        (["--address", "http://head:8265"], {"launch.address": "http://head:8265"}),
        (["--inline"], {"launch.inline": True}),
        (["--detach"], {"launch.detach": True}),
        (["--set", "limits.repairs=2"], {"limits.repairs": 2}),
        ([], {}),
    ],
)
def test_an_option_sets_its_own_setting_and_no_other(arguments: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    assert changed(*arguments, folder=tmp_path) == expected


def test_an_option_wins_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    file = {**BASE, "seed": 1, "rollout": {"num_samples": 2, "concurrency": 3}}
    arguments = ["--set", "seed=10", "--set", "rollout.num_samples=20", "--seed", "100"]
    config = plan(*arguments, file=file, folder=tmp_path)["config"]
    assert config["seed"] == 100
    assert config["rollout"]["num_samples"] == 20
    assert config["rollout"]["concurrency"] == 3
    assert config["rollout"]["retries"] == 2


def test_the_scripted_user_of_a_file_gives_way_to_a_named_model(tmp_path: Path) -> None:
    user = plan("--user-model", "gpt-4.1", file={**BASE, "user": {"kind": "scripted"}}, folder=tmp_path)["config"]["user"]
    assert (user["kind"], user["model"]) == ("llm", "gpt-4.1")


def test_the_job_gets_the_run_folder_and_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a b"
    monkeypatch.chdir(tmp_path)
    argv = plan("--output", str(run), folder=tmp_path)["argv"]
    assert argv == [sys.executable, "-m", "tau2rl.launch.entry", str(run), str(tmp_path)]
    shell = "exec() { command printf '%s\\n' \"$@\"; }; " + job_command(run)  # the line of a job, with what it runs printed
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == argv


def test_what_a_dry_run_shows_carries_out_the_run(tmp_path: Path) -> None:
    gold = {**BASE, "tasks": {"domains": ["mock"], "split": "base", "limit": 1}, "policy": {"kind": "gold"}}
    gold |= {"chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}, "output": str(tmp_path / "run")}
    argv = plan(file=gold, folder=tmp_path)["argv"]
    RunFolder.create(tmp_path / "run", build(EvalConfig, gold), resume=False)
    assert subprocess.run(argv, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["episodes"]["completed"] == 4


def test_a_dry_run_leaves_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    plan("--output", str(run), folder=tmp_path)
    assert not run.parent.exists()


def test_the_yaml_of_a_dry_run_is_a_config_file_of_the_same_run(tmp_path: Path) -> None:
    first = runner.invoke(app, ["eval", "--tokenizer", "bytes", "--limit", "2", "--dry-run"])
    assert first.exit_code == 0
    assert first.stdout.splitlines()[-1].startswith(f"# would run: {sys.executable} -m tau2rl.launch.entry ")
    saved = tmp_path / "saved.yaml"
    saved.write_text(first.stdout, "utf-8")
    assert runner.invoke(app, ["eval", "-c", str(saved), "--dry-run"]).stdout == first.stdout


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "eval").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_ready_made_config_can_be_planned(file: Path) -> None:
    result = runner.invoke(app, ["eval", "-c", str(file), "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["config"]["stage"] == "eval"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "`tasks.limit` = 0"),
        (["--policy", "magic"], "`policy.kind`"),
        (["--set", "rollout.num_sample=3"], "did you mean `rollout.num_samples`?"),
        (["--set", "oops"], "NAME=VALUE"),
        (["--set", "chat.policy_text=compressed"], "chat.policy_text has no effect while chat.protocol is `native`"),
        (["-c", "no/such/file.yaml"], "no such config file"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(arguments: list[str], words: str) -> None:
    result = runner.invoke(app, ["eval", "--tokenizer", "bytes", "--dry-run", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert "\n\nhint: " in result.stderr
