"""Config files that are none, or worse; each is refused through the command line with its name and its line, pinned here:

- a key that stands there twice, a value that holds itself, nesting without end, an unknown tag, a name that is no word;
- aliases of aliases, and merges of merges, end before they fill the memory; honest aliases and merges are read;
- devices, folders, pipes that nobody fills and files of any size end at once; a pipe of the shell is read;
- text that is not text, characters that YAML does not allow, and what is no mapping;
- names of before are accepted with one warning that says the new ones; a stored config of an old run is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import STAGES, EvalConfig, dump, every_setting, load_config
from tau2rl.config.loading import RENAMED, SettingRenamed, old_names
from tau2rl.errors import UserError
from tau2rl.runs.folder import read_config

runner = CliRunner(env={"RAY_ADDRESS": "http://cluster:8265"})  # what settings name is looked for there, and not here
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("seed: 1\nname: a\nseed: 2\n", 3, "`seed` stands there a second time, after line 1"),
        ("rollout:\n  retries: 1\n  retries: 1\n", 3, "`retries` stands there a second time, after line 2"),
        ('{"seed": 1,\n "seed": 2}', 2, "`seed` stands there a second time, after line 1"),
        ("seed: 1\na: &a [1, *a]\n", 2, "a value that holds itself"),
        ("seed: 1\na: &a {b: *a}\n", 2, "a value that holds itself"),
        ("a: &a\n  <<: *a\n", 1, "a value that holds itself"),
        ("\n\na: " + "[" * 5000, 3, "nested more than 40 deep"),
        ("a: " + "{a: " * 5000, 1, "nested more than 40 deep"),
        ("- " * 5000, 1, "nested more than 40 deep"),
        ("a:\n" + "".join(" " * i + "a:\n" for i in range(1, 100)), 40, "nested more than 40 deep"),
        ("a: &x0 [1]\n" + "".join(f"b{i}: &x{i + 1} [*x{i}]\n" for i in range(100)), 40, "nested more than 40 deep"),
        (BOMB, 5, "its aliases stand for more than 50000 values"),
        (f"tasks:\n  ids: {BOMB.splitlines()[0][3:]}\n" + BOMB.partition("\n")[2], 6, "its aliases stand for more than"),
        (MERGES, 6, "its aliases stand for more than 50000 values"),
        ("seed: 1\nname: !!python/object/apply:os.getcwd []\n", 2, "the tag `tag:yaml.org,2002:python/object/apply:os.getcwd`"),
        ("name: !mine x\n", 1, "the tag `!mine`"),
        ("name: !!binary aGk=\n", 1, "the tag `tag:yaml.org,2002:binary`"),
        ("a: 1\n? [x, y]\n: 2\n", 2, "the name of a setting is a word"),
        ("a: 1\n<<: 3\n", 2, "`<<` takes in a mapping"),
        ("a: 1\nb: [1\nc: 2\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "found character"),
        ("a: *none\n", 1, "found undefined alias"),
        ("a: 1\nb: \x07\n", 2, "a character that YAML does not allow, 0x0007"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    result = runner.invoke(app, ["eval", "-c", str(file), "--dry-run"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: cannot read config file `{file}`, line {line}: ")
    assert words in result.stderr


def test_what_is_not_a_file_of_settings_ends_at_once(tmp_path: Path) -> None:
    huge, sparse, fifo = tmp_path / "huge.yaml", tmp_path / "sparse.yaml", tmp_path / "fifo"
    huge.write_text("a: 1\n" * 100_000)
    with sparse.open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(fifo)
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for path, words in (
        ("/dev/zero", "it is not a file"),
        ("/dev/tty", "it is not a file"),
        (fifo, "it is not a file"),
        (tmp_path, "it is not a file"),
        (huge, "more than 256 KiB"),
        (sparse, "more than 256 KiB"),
        (binary, "not text in UTF-8"),
        (tmp_path / "none.yaml", "no such config file"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        result = runner.invoke(app, ["eval", "-c", str(path), "--dry-run"])
        assert (result.exit_code, result.stdout) == (2, ""), path
        assert words in result.stderr
        assert f"`{path}`" in result.stderr


def test_a_pipe_of_the_shell_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tau2rl", "eval", "-c", "/dev/stdin", "--dry-run", "--json"]
    command += ["--address", "http://cluster:8265"]  # where the tokenizer is looked for, not here
    done = subprocess.run(command, input="chat: {tokenizer: 010}\n", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["config"]["chat"]["tokenizer"] == "010"


def test_aliases_and_merges_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "chat: {tokenizer: &t bytes}\nname: *t\npolicy: {sampling: &s {temperature: 0.5, max_tokens: 7}}\n"
        "limits: {<<: {max_steps: 3, repairs: 0}, repairs: 2}\n"
    )
    config = load_config(STAGES["eval"], file)
    values = dump(config)
    assert (values["name"], values["limits"]["max_steps"], values["limits"]["repairs"]) == ("bytes", 3, 2)
    assert values["policy"]["sampling"]["max_tokens"] == 7


def test_a_bomb_in_set_or_an_option_is_no_bomb() -> None:
    flat = "{" + ", ".join(f"{line.replace(': &', ': &', 1)}" for line in BOMB.splitlines()) + "}"
    for words in (["--set", f"tasks.ids={flat}"], ["--tasks.ids", "[" * 5000], ["--set", "tasks.ids=&a [*a]"]):
        result = runner.invoke(app, ["eval", "--tokenizer", "bytes", "--dry-run", *words])
        assert result.exit_code in (0, 2)
        assert len(result.output) < 100_000


# --- names of before ---

OLD: dict[str, Any] = {
    "stage": "grpo", "model": {"init": "start"}, "tasks": {"domains": ["mock"], "split": "synth-train"},
    "select": {"domains": ["mock"], "split": "synth-select", "limit": 3},
    "train": {"clip": 0.5, "min_lr_share": 0.2, "eval_every": 7, "updates_per_batch": 2},
    "algo": {"normaliser": "constant", "constant": 77, "max_refills": 1},
    "local": {"micro_tokens": 2048, "slots": 16}, "user": {"kind": "scripted", "patience": 5},
}  # fmt: skip
NEW = {
    "val.limit": 3, "train.max_grad_norm": 0.5, "train.min_lr_ratio": 0.2, "train.val_every": 7, "train.num_minibatches": 2,
    "algo.loss_aggregation": "constant", "algo.loss_scale": 77, "algo.max_resample_rounds": 1,
    "local.max_tokens_per_microbatch": 2048, "local.kv_cache_slots": 16, "user.max_stalled_turns": 5,
}  # fmt: skip


def flat(config: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        value: Any = config
        for key in name.split("."):
            value = value[key]
        found[name] = value
    return found


def plan(*words: str) -> tuple[dict[str, Any], str]:
    result = runner.invoke(app, [*words, "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["config"], result.stderr


def test_a_file_with_old_names_is_read_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(json.dumps(OLD))
    config, said = plan("grpo", "-c", str(tmp_path / "old.yaml"))
    assert flat(config, NEW) == NEW
    assert said.count("\n") == 1
    assert said.startswith("warning: ")
    assert "`train.clip` is now `train.max_grad_norm`" in said
    assert "`select` is now `val`" in said


@pytest.mark.parametrize("how", ["--set", "option"])
def test_old_names_are_taken_from_the_command_line(how: str) -> None:
    given = {"train.clip": "0.5", "algo.max_refills": "1", "user.patience": "5", "user.kind": "scripted"}
    words = [
        word for name, value in given.items() for word in ([how, f"{name}={value}"] if how == "--set" else [f"--{name}", value])
    ]
    config, said = plan("grpo", "--model", "start", *words)
    expected = {"train.max_grad_norm": 0.5, "algo.max_resample_rounds": 1, "user.max_stalled_turns": 5}
    assert flat(config, expected) == expected
    assert said.count("\n") == 1
    assert "`user.patience` is now `user.max_stalled_turns`" in said


def test_an_option_under_an_old_name_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {init: start}\ntrain: {max_grad_norm: 0.5}\n")
    config, _ = plan("grpo", "-c", str(tmp_path / "c.yaml"), "--train.clip", "2")
    assert config["train"]["max_grad_norm"] == 2


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {init: start}\ntrain: {max_grad_norm: 0.5, clip: 1}\n")
    result = runner.invoke(app, ["grpo", "-c", str(tmp_path / "c.yaml"), "--dry-run"])
    assert result.exit_code == 2
    assert "`train.clip` is the old name of `train.max_grad_norm`, and both are given" in result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_old_name_leads_to_a_setting(stage: str) -> None:
    names = {setting.name for setting in every_setting(STAGES[stage])}
    old = dict(old_names(STAGES[stage]))
    assert set(old.values()) <= names
    assert not set(old) & names


def test_the_stored_config_of_an_old_run_is_read(tmp_path: Path) -> None:
    """Every setting is written out there, those that had no effect too."""
    values = json.loads(json.dumps(OLD)) | {"rollout": {"worker_memory_gb": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.warns(SettingRenamed) as told:
        config = read_config(tmp_path)
    assert len(told) == 1
    assert flat(dump(config), NEW) == NEW


def test_no_name_is_both_old_and_new() -> None:
    assert not RENAMED.keys() & {name for name in RENAMED.values() if name}


def test_a_key_that_never_was_is_no_old_name() -> None:
    with pytest.raises(UserError, match=r"no such setting `train\.clipp`"):
        load_config(STAGES["grpo"], None, ["model.init=start", "train.clipp=1"])


@pytest.mark.parametrize("name", [".".join("a" * 3000), ".".join(["tasks"] * 100)])
def test_a_name_nested_without_end_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="nested more than 40 deep") as refused:
        load_config(EvalConfig, None, [f"{name}=1"])
    assert len(refused.value.message) < 300


def test_a_value_is_repeated_in_part() -> None:
    with pytest.raises(UserError, match=r'`seed` = "99999.*\.\.\.: unable to parse') as refused:
        load_config(EvalConfig, None, [f"seed={'9' * 5000}"])
    assert len(refused.value.message) < 500
