"""The options of a stage are its settings, pinned here:

- every setting of every stage is an option under its dotted name, and what is typed lands in the config, and nowhere else;
- its documentation is the field's, in the whole help; a short help shows the common ones under their short names;
- text is what was typed, numbers are as people write them, lists by commas or repetition, mappings KEY=VALUE, `null` is nothing;
- a short name is the option itself, an option wins over `--set`, and a switch can be taken back;
- a pipeline's steps are typed by the settings of their stage.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.cli.options import COMMON, SHORT, Asked, stage_command
from tau2rl.config import STAGES, Setting, StageConfig, SynthConfig, dump, every_setting, flatten, known_names, words_of
from tau2rl.config.base import arms_of, items_of, section_of, value_of, values_of

runner = CliRunner()
WIDE = {"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"}
COMMANDS = {stage: {"pipeline": "run"}.get(stage, stage) for stage in STAGES}
ALL = [(stage, setting) for stage in STAGES for setting in every_setting(STAGES[stage]) if setting.name != "stage"]

# What a stage needs to be one, and what a setting needs to mean anything.
BASE: dict[str, list[str]] = {
    "seed": [],
    "sft": [],
    "rft-filter": ["--tokenizer", "bytes"],
    "grpo": ["--model", "start"],
    "eval": ["--tokenizer", "bytes"],
    "pipeline": [],
}
API = ["--policy", "api", "--protocol", "transcript", "--tokenizer", "null", "--model", "m"]
LOCAL = ["--policy", "local", "--checkpoint", "c", "--protocol", "native"]
CLUSTER = ["--backend", "slime"]
SERVED = [*CLUSTER, "--slime.user.gpus", "1", "--slime.user.checkpoint", "c"]
NEEDS: dict[str, list[str]] = {
    "policy.model": API,
    "policy.api_base": API,
    "policy.api_key_env": API,
    "policy.omit": API,
    "policy.options": ["--policy", "my_pkg.mod:Mine"],
    "chat.options": ["--protocol", "my_pkg.mod:Mine"],
    "policy.checkpoint": LOCAL,
    "policy.sampling": LOCAL,
    "policy.timeout_seconds": API,
    "policy.retries": API,
    "rollout.adaptive": API,
    "local": LOCAL,
    "budget.max_tokens": API,
    "budget.policy_price": API,
    "budget.user_price": ["--set", "user.kind=llm"],
    "policy.url": ["--policy", "sglang", "--tokenizer", "bytes", "--protocol", "native"],
    "policy.hedge_seconds": ["--policy", "sglang", "--tokenizer", "bytes", "--protocol", "native"],
    "user.max_stalled_turns": ["--user-model", "scripted"],
    "user.": ["--set", "user.kind=llm"],
    "chat.policy_text": ["--protocol", "cookbook"],
    "chat.thinking": ["--protocol", "native"],
    "chat.date": ["--protocol", "native"],
    "chat.thinking_tokens": ["--protocol", "native", "--set", "chat.thinking=keep"],
    "chat.cookbook_prompt": ["--protocol", "cookbook"],
    "chat.tokenizer": ["--protocol", "native"],
    "rollout.worker_memory_gb": ["--rollout.workers", "2"],
    "noise_prob": ["--domains", "mock"],
    "slime.": CLUSTER,
    "slime.user.": SERVED,
    "slime.overlap": [*CLUSTER, "--slime.layout", "split"],
}
GRPO: dict[str, list[str]] = {
    "local": [],
    "local.lora": ["--lora-rank", "4"],
    "rollout.adaptive": [],
    "rollout.workers": CLUSTER,
    "rollout.worker_memory_gb": [*CLUSTER, "--rollout.workers", "2"],
    "val.": ["--val-every", "5"],
    "val.split": ["--val-every", "5", "--domains", "mock", "--task-split", "synth-train"],
    "algo.gamma": ["--estimator", "gtpo"],
    "algo.outcome_weight": ["--estimator", "mt_gtpo"],
    "algo.turn_rewards": ["--estimator", "gtpo"],
    "reward.recipe": ["--estimator", "gtpo"],
    "algo.loss_scale": ["--algo.loss_aggregation", "constant"],
    "algo.kl": ["--algo.kl_coef", "0.1"],
    "algo.correction_": ["--algo.correction", "mis"],
    "algo.veto": ["--algo.correction", "tis"],
    "algo.curriculum.": ["--algo.curriculum.enabled"],
    "algo.eps_": ["--train.num_minibatches", "2"],
    "algo.dual_clip": ["--train.num_minibatches", "2"],
    "tracking.project": ["--tracking.wandb", "offline"],
    "tracking.conversations": ["--tracking.wandb", "offline"],
    "budget.max_tokens": [],
    "budget.policy_price": [],
}
PIPELINE: dict[str, list[str]] = {key: [] for key in ("budget.max_tokens", "budget.policy_price", "budget.user_price")}
SFT: dict[str, list[str]] = {
    "chat.thinking": [],
    "chat.date": [],
    "local": [],
    "local.lora": ["--lora-rank", "4"],
    "local.shape": ["--model", "tiny"],
    "tracking.project": ["--tracking.wandb", "offline"],
}
REFUSED = {  # whatever the others are
    *((stage, "reward.recipe") for stage in ("seed", "rft-filter", "eval")),
    ("grpo", "rollout.greedy"),
    ("grpo", "rollout.adaptive"),
    ("grpo", "sampling.top_p"),
    ("grpo", "sampling.top_k"),
    ("grpo", "slime.loss_mask"),
    ("seed", "policy.hedge_seconds"),
    ("rft-filter", "policy.hedge_seconds"),
    ("sft", "local.kv_cache_slots"),
    ("sft", "tracking.conversations"),
    *(
        ("sft", f"slime.{key}")
        for key in (
            "layout",
            "policy_gpus",
            "gpus_per_engine",
            "mem_fraction",
            "overlap",
            "fault_tolerance",
            "health_seconds",
            "circuit_breaker_seconds",
            "user.gpus",
            "user.gpus_per_engine",
            "user.checkpoint",
            "user.name",
            "user.mem_fraction",
            "user.context_tokens",
            "user.tool_parser",
        )
    ),
}
VALUES = {
    "plugins": ("a,b.c", ["a", "b.c"]),
    "tracking.sinks": ("a:B,c.d:E", ["a:B", "c.d:E"]),
    "policy.omit": ("seed,top_p", ["seed", "top_p"]),
    "user.omit": ("seed,temperature", ["seed", "temperature"]),
    "reward.terms": ('[{"fn": "a:b", "weight": 0.1}]', [{"fn": "a:b", "weight": 0.1, "low": 0.0, "high": 1.0}]),
    "model.init": ("other", "other"),
    "val.split": ("base", None),
    "algo.kl": ("k2", "k2"),
    "chat.protocol": ("cookbook", "cookbook"),
    "chat.date": ("2026-01-31", "2026-01-31"),
    "tasks.domains": ("mock", ["mock"]),
    "val.domains": ("mock", ["mock"]),
    "train.betas": ("0.5,0.6", [0.5, 0.6]),
    "budget.policy_price": ("0.5,2", [0.5, 2.0]),
    "budget.user_price": ("0.5,2", [0.5, 2.0]),
    "user.kind": None,
    "policy.kind": ("do-nothing", "do-nothing"),
    "launch.detach": ("", True),
    "slime.user.name": ("abc", "abc"),
    "algo.dual_clip": ("3", 3.0),
    "monitors.turns_growth": ("3", 3.0),
    "steps": ("s={stage: seed}", None),
    "slime.saves": ("last", "last"),
}


def needs_of(stage: str, name: str) -> list[str]:
    """The options that give a setting an effect: those of the longest matching beginning."""
    table = NEEDS | {"grpo": GRPO, "sft": SFT, "pipeline": PIPELINE}.get(stage, {})
    found = [key for key in table if name.startswith(key)]
    return table[max(found, key=len)] if found else []


def typed(setting: Setting) -> tuple[list[str], Any]:
    """What is typed for a setting that is not its default, and what the config then has as JSON."""
    option = f"--{setting.name}"
    if bool in arms_of(setting.type):
        value = not setting.default
        return [option if value else f"--no-{setting.name}"], value
    if VALUES.get(setting.name) is not None:
        text, value = VALUES[setting.name]
        return [option, text], value
    if words_of(setting.type):
        word = next(word for word in words_of(setting.type) if word != setting.default)
        return [option, word], word
    if (items := items_of(setting.type)) is not None and words_of(items):
        return [option, ",".join(words_of(items))], list(words_of(items))
    if items_of(setting.type) is not None:
        return [option, "a,010", option, "1e5"], ["a", "010", "1e5"]
    if values_of(setting.type) is not None:
        return [option, "x=3", option, "y=no"], {"x": 3, "y": False}
    arms, default = arms_of(setting.type), setting.default or 0
    if int in arms:
        return [option, str(max(default, 1) * 2)], max(default, 1) * 2
    if float in arms:
        value = default / 2 if default else 0.25
        return [option, f"{value:e}"], value
    if name := re.search(r"url|api_base|address", setting.name):
        return [option, f"http://{name.group()}:1"], f"http://{name.group()}:1"
    return [option, "KEY_010" if setting.name.endswith("_env") else "1e-5"], "KEY_010" if setting.name.endswith(
        "_env"
    ) else "1e-5"


@pytest.fixture(scope="module")
def command_lines() -> dict[str, Any]:
    """Stage -> what parses its command line and gives the config."""
    made: dict[str, Any] = {}
    for stage, model in STAGES.items():
        caught: list[StageConfig] = []
        one = typer.Typer()

        def keep(asked: Asked[Any], caught: list[StageConfig] = caught) -> None:
            caught.append(asked.config)

        one.command()(stage_command(model, keep, "Text."))
        made[stage] = (typer.main.get_command(one), caught)
    return made


def config_of(command_lines: dict[str, Any], stage: str, words: list[str]) -> StageConfig:
    command, caught = command_lines[stage]
    command.main(words, standalone_mode=False)
    return caught.pop()


@pytest.mark.parametrize(("stage", "setting"), ALL, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_setting_is_an_option_and_lands_in_the_config(stage: str, setting: Setting, command_lines: dict[str, Any]) -> None:
    words, value = typed(setting)
    needed = [*BASE[stage], *needs_of(stage, setting.name)] if setting.name != "sources" else []
    if (stage, setting.name) in REFUSED:
        needed += ["--backend", "slime"] if setting.name.startswith("slime.") else []
        with pytest.raises(Exception, match=re.escape(setting.name) + "|whole distribution|it is for `eval`"):
            config_of(command_lines, stage, [*needed, *words])
        return
    if setting.name == "val.split":
        words, value = ["--val.split", "synth-select"], "synth-select"
    config = config_of(command_lines, stage, [*needed, *words])
    found = value_of(config, setting.name)
    shown = json.loads(json.dumps(found, default=lambda x: dump(x) if hasattr(x, "model_fields") else str(x)))
    assert value is None or shown == value


@pytest.mark.parametrize("stage", STAGES)
def test_the_whole_help_documents_every_setting(stage: str) -> None:
    result = runner.invoke(app, [COMMANDS[stage], "--help-all"], env=WIDE)
    assert result.exit_code == 0
    text = " ".join(re.sub(r"[\u2500-\u257f]", " ", result.stdout).split())
    for setting in every_setting(STAGES[stage]):
        if setting.name != "stage":
            assert f"--{setting.name} " in text
            assert setting.text in text
            assert setting.text, setting.name
    assert "--train.clip" not in text


@pytest.mark.parametrize("stage", STAGES)
def test_a_short_help_has_the_common_settings_under_their_short_names(stage: str) -> None:
    text = runner.invoke(
        app, [COMMANDS[stage], "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"}
    ).stdout
    names = [setting.name for setting in every_setting(STAGES[stage])]
    shown = set(re.findall(r"^│ (--[\w.-]+)", text, flags=re.MULTILINE))
    common = {SHORT.get(name, (f"--{name}",))[0].partition("/")[0] for name in names if name in COMMON}
    assert common <= shown
    assert len(shown) <= 33
    assert not {name for name in shown if "." in name}


def test_a_short_name_belongs_to_a_setting_that_exists() -> None:
    every = {name for model in (*STAGES.values(), SynthConfig) for name in known_names(model)}
    assert SHORT.keys() | COMMON <= every


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--name", "1e-5"], "name", "1e-5"),
        (["--set", "name=1e-5"], "name", "1e-5"),
        (["--name", "null"], "name", "null"),
        (["--set", "name=010"], "name", "010"),
        (["--name=yes"], "name", "yes"),
        (["--tasks.ids", "010,1e5"], "tasks.ids", ("010", "1e5")),
        (["--set", "tasks.ids=[010, 1_0]"], "tasks.ids", ("010", "1_0")),
        (["--policy.sampling.temperature", "1e-5"], "policy.sampling.temperature", 1e-5),
        (["--limit", "null"], "tasks.limit", None),
        (["--limits.max_steps", "1e2"], "limits.max_steps", 100),
        (["--launch.inline", "--no-launch.inline"], "launch.inline", False),
        (["--set", "seed=1", "--seed", "2"], "seed", 2),
        (["--seed", "2", "--set", "seed=1"], "seed", 2),
        (["--num-samples", "2", "--rollout.num_samples", "3"], "rollout.num_samples", 3),
        (["--domains", "[mock, retail]"], "tasks.domains", ("mock", "retail")),
    ],
)
def test_what_was_typed_is_what_is_set(words: list[str], name: str, value: object, command_lines: dict[str, Any]) -> None:
    config = config_of(command_lines, "eval", [*BASE["eval"], *words])
    assert (value_of(config, name), type(value_of(config, name))) == (value, type(value))


def test_other_options_of_slime_are_typed_by_themselves(command_lines: dict[str, Any]) -> None:
    words = [*BASE["grpo"], *CLUSTER, "--slime.extra", "log-multi-turn=true", "--slime.extra", "lr-decay-iters=3"]
    assert value_of(config_of(command_lines, "grpo", words), "slime.extra") == {"log-multi-turn": True, "lr-decay-iters": 3}
    whole = [*BASE["grpo"], *CLUSTER, "--slime.extra", "{a: [1, x], b: {c: 1e-5}}"]
    assert value_of(config_of(command_lines, "grpo", whole), "slime.extra") == {"a": [1, "x"], "b": {"c": 1e-5}}


def test_the_steps_of_a_pipeline_are_typed_by_their_stage(tmp_path: Path, command_lines: dict[str, Any]) -> None:
    (tmp_path / "p.yaml").write_text(
        "stage: pipeline\nname: 007\nsteps:\n  a: {stage: seed, settings: {tasks: {ids: [010, 1e5]}}}\n"
        "evaluation: {settings: {chat: {tokenizer: 1e-5}}}\n"
    )
    words = [
        "-c",
        str(tmp_path / "p.yaml"),
        "--set",
        "steps.a.settings.tasks.split=1e-5",
        "--set",
        "steps.a.settings.noise_prob=1e-1",
    ]
    config = dump(config_of(command_lines, "pipeline", words))
    assert config["name"] == "007"
    assert config["steps"]["a"]["settings"] == {"tasks": {"ids": ["010", "1e5"], "split": "1e-5"}, "noise_prob": 0.1}
    assert config["evaluation"]["settings"] == {"chat": {"tokenizer": "1e-5"}}


def test_a_file_keeps_words_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: 1e-5\nseed: 7\nchat: {tokenizer: 010}\ntasks: {ids: [010, 0x1F, 1:30, yes, '7'], split: on}\n")
    config = json.loads(runner.invoke(app, ["eval", "-c", str(file), "--dry-run", "--json"]).stdout)["config"]
    assert (config["name"], config["seed"], config["chat"]["tokenizer"]) == ("1e-5", 7, "010")
    assert (config["tasks"]["ids"], config["tasks"]["split"]) == (["010", "0x1F", "1:30", "yes", "7"], "on")


def test_the_plan_that_is_printed_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    words = ["eval", *BASE["eval"], "--name", "1e-5", "--tasks.ids", "010,yes", "--dry-run"]
    (tmp_path / "again.yaml").write_text(runner.invoke(app, words).stdout)
    again = runner.invoke(app, ["eval", "-c", str(tmp_path / "again.yaml"), "--dry-run", "--json"])
    first = runner.invoke(app, [*words, "--json"])
    assert flatten(json.loads(again.stdout)["config"]) == flatten(json.loads(first.stdout)["config"])
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["tasks"]["ids"] == ["010", "yes"]


def test_a_section_is_no_setting() -> None:
    for stage, setting in ALL:
        assert section_of(setting.type) is None, (stage, setting.name)
