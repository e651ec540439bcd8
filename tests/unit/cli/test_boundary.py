"""How every command ends, pinned here:

- no arguments show the help and exit 0; `--version` and `version` print the version;
- a request that is wrong exits 2, with the message, an empty line and the hint on stderr, and nothing on stdout;
- an incomplete run exits 1, an interruption 130, and both without a traceback;
- a bug exits 1 with one line and a file that has the traceback; with `--debug` or TAU2RL_DEBUG the traceback is shown;
- the installed `tau2rl` script is this command line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import tau2rl
from tau2rl.cli import Boundary, app
from tau2rl.errors import RunIncomplete, UserError

runner = CliRunner()


def an_app_that_raises(error: BaseException) -> typer.Typer:
    """A command line of one command below the real boundary; what a command may raise is the edge here."""
    other = typer.Typer(cls=Boundary)

    @other.callback()
    def root(debug: Annotated[bool, typer.Option("--debug", envvar="TAU2RL_DEBUG")] = False) -> None: ...

    @other.command()
    def go() -> None:
        raise error

    return other


def test_no_arguments_show_the_help() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert "eval" in result.stdout


def test_both_ways_to_ask_for_the_version_agree() -> None:
    assert runner.invoke(app, ["--version"]).stdout == f"tau2rl {tau2rl.__version__}\n"
    assert runner.invoke(app, ["version"]).stdout.splitlines()[0] == f"tau2rl {tau2rl.__version__}"
    assert json.loads(runner.invoke(app, ["version", "--json"]).stdout)["tau2rl"] == tau2rl.__version__


@pytest.mark.parametrize(
    ("words", "needed", "example"),
    [
        ("report", "RUN_DIR...: Run folders", "tau2rl report outputs/eval/default"),
        ("blame", "RUN_DIR: A run that played episodes", "tau2rl blame outputs/eval/default"),
        ("synth profile", "RUN_DIR...: Runs of one policy", "tau2rl synth profile outputs/eval/rates"),
        ("tasks show", "TASK: A task, `domain/task_id`", "tau2rl tasks show retail/5"),
        ("data mix", "--from: A file of rows", "tau2rl data mix --from"),
        ("convert", "SOURCE: A run folder", "tau2rl convert --to hf"),
    ],
)
def test_what_is_missing_is_said_with_an_example(words: str, needed: str, example: str) -> None:
    result = runner.invoke(app, words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: `tau2rl {words}` needs {needed}")
    assert f"hint: for example `{example}" in result.stderr
    assert ("hint: `tau2rl runs` lists" in result.stderr) == needed.startswith("RUN_DIR")


@pytest.mark.parametrize("arguments", [["evl"], ["tasks", "list", "--limit", "two"], ["tasks", "lst"]])
def test_a_command_line_that_cannot_be_read_exits_2(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["grpo", "--train.lrr", "1"], "did you mean `--train.lr`?"),
        (["grpo", "--lrr=1"], "did you mean `--lr`?"),
        (["grpo", "--train.warmup-steps", "3"], "did you mean `--train.warmup_steps`?"),
        (["grpo", "--betas", "0.9,0.95"], "did you mean `--train.betas`?"),
        (["grpo", "--algo.correction_lo", "1"], "did you mean `--algo.correction_low`?"),
        (["eval", "--zzz"], "`tau2rl eval --help-all` has every option"),
        (["report", "x", "--jsn"], "did you mean `--json`?"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_one(arguments: list[str], near: str) -> None:
    result = runner.invoke(app, arguments, prog_name="tau2rl")
    name = next(word for word in arguments if word.startswith("--")).partition("=")[0]
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: no such option `{name}`\n\nhint: {near}\n"


def test_a_wrong_request_shows_its_hint_on_stderr_and_exits_2() -> None:
    result = runner.invoke(an_app_that_raises(UserError("no such split `tset`", hint="one of: train, test")), ["go"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: no such split `tset`\n\nhint: one of: train, test\n"


@pytest.mark.parametrize(("error", "code"), [(RunIncomplete("3 attempts are missing"), 1), (KeyboardInterrupt(), 130)])
def test_an_ending_that_is_no_bug_shows_no_traceback(error: BaseException, code: int) -> None:
    result = runner.invoke(an_app_that_raises(error), ["go"])
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_a_bug_is_one_line_and_a_file_with_the_traceback() -> None:
    result = runner.invoke(an_app_that_raises(KeyError("reward")), ["go"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: this is a bug in tau2rl: KeyError: 'reward'\n\nhint: ")
    assert "Traceback" not in result.stderr
    named = re.search(r"`(\S+\.log)`", result.stderr)
    assert named
    log = Path(named.group(1))
    assert log.read_text("utf-8").startswith("Traceback")
    log.unlink()


def test_a_bug_shows_and_keeps_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-planted-0123456789")
    result = runner.invoke(an_app_that_raises(ValueError("401 for sk-planted-0123456789")), ["go"])
    log = Path(re.findall(r"`(\S+\.log)`", result.stderr)[0])
    assert "[DEEPSEEK_API_KEY]" in result.stderr and "[DEEPSEEK_API_KEY]" in log.read_text("utf-8")
    assert "sk-planted" not in result.stderr + log.read_text("utf-8")
    log.unlink()


@pytest.mark.parametrize(("arguments", "environment"), [(["--debug", "go"], {}), (["go"], {"TAU2RL_DEBUG": "1"})])
def test_debug_shows_the_traceback_of_a_bug(arguments: list[str], environment: dict[str, str]) -> None:
    result = runner.invoke(an_app_that_raises(KeyError("reward")), arguments, env=environment)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert "KeyError: 'reward'" in result.stderr


def test_the_module_behind_the_script_runs_by_itself() -> None:
    code = "import sys; from tau2rl.cli import main; sys.argv = ['tau2rl', 'eval', '--set', 'nonsense']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot read `--set nonsense`\n\nhint: ")
