"""What a command finds out before anything expensive begins, pinned here:

- a package that settings or a command ask for and that is not installed is refused before a run, with the extra that brings it:
  the whole table of `config/extras.py`, row by row, and every extra in it is one of pyproject.toml;
- what settings name and nobody has (data, checkpoint, runs, split, ids, domain, keys, tokenizer, template, code of one's own) is
  refused by `--dry-run` with 2, behind the plan, and by the command before a head is started; all of it at once, each hint in
  a line of its own;
- with the address of a cluster, or for slime, all that is a matter of a machine is left to the job, the rest refused;
- every path of the settings that is not here is named by such a dry run, in its last line and in its JSON;
- in a pipeline what earlier steps make is not looked for;
- a name is asked of the hub only where it has the form of one, and a hub that does not answer is not waited for;
- `doctor --for STAGE -c FILE` judges what that file needs, and says for what it judged; a config of another stage is named;
- warnings of a run that leaves out what was asked for reach people.
"""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.chat import tokenizers
from tau2rl.cli import app
from tau2rl.config import STAGES, build
from tau2rl.config.base import every_setting
from tau2rl.config.extras import PARTS, OptionalPart, refuse_command, refuse_lacking
from tau2rl.errors import UserError
from tau2rl.launch import submit
from tests.stubs.router import free_port

runner = CliRunner()
ROOT = Path(__file__).parents[3]
MOCK = "--domains mock --user-model scripted"
PLAY = f"{MOCK} --task-split synth-test"


def refused(words: str, *more: str, env: dict[str, str] | None = None) -> str:
    """What a command that must exit with 2 says on stderr."""
    result = runner.invoke(app, [*shlex.split(words), *more], env=env)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: "), result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "eval --set polcy.kind=gold --set sed=3",
        "grpo --model DIR --backend local --local.lora.alpha 3 --slime.mem_fraction 0.5",
        f"grpo --model tests/no-such-folder {MOCK} --task-split tset",
    ],
    ids=["names", "no effect", "not there"],
)
def test_each_hint_has_a_line_of_its_own(words: str) -> None:
    lines = refused(words).splitlines()
    hints = lines[lines.index("") + 1 :]
    assert len(hints) >= 2 and len(set(hints)) == len(hints), hints
    assert all(line.startswith("hint: ") and ";" not in line for line in hints), hints


# --- packages ---

COMMANDS = {  # of the parts that settings ask for: a stage and settings that do
    ("ray", "launch.inline"): ("eval", {"chat": {"tokenizer": "bytes"}}),
    ("ray", "rollout.workers"): ("eval", {"chat": {"tokenizer": "bytes"}, "launch": {"inline": True}, "rollout": {"workers": 1}}),
    ("tau2", "tasks.domains"): ("eval", {"chat": {"tokenizer": "bytes"}}),
    ("litellm", "policy.kind"): ("eval", {"policy": {"kind": "api", "model": "gpt-4.1"}, "chat": {"protocol": "transcript"}}),
    ("litellm", "user.kind"): ("eval", {"chat": {"tokenizer": "bytes"}}),
    ("transformers", "chat.tokenizer"): ("eval", {"chat": {"tokenizer": "DIR"}}),
    ("torch", "policy.kind"): ("eval", {"policy": {"kind": "local", "checkpoint": "DIR"}}),
    ("torch", "backend"): ("sft", {}),
    ("transformers", "backend"): ("sft", {}),
    ("peft", "backend"): ("sft", {"local": {"lora": {"rank": 8}}}),
    ("wandb", "tracking.wandb"): ("sft", {"tracking": {"wandb": "offline"}}),
    ("trackio", "tracking.trackers"): ("sft", {"tracking": {"trackers": ["trackio"]}}),
    ("tensorboardX", "tracking.trackers"): ("sft", {"tracking": {"trackers": ["tensorboard"]}}),
}
OF_SETTINGS = [part for part in PARTS if part.asked_by]


@pytest.mark.parametrize("part", OF_SETTINGS, ids=lambda part: f"{part.module}, {next(iter(part.asked_by))}")
def test_a_package_that_settings_ask_for_is_refused_with_its_extra(
    part: OptionalPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, values = COMMANDS[(part.module, next(iter(part.asked_by)))]
    monkeypatch.setitem(sys.modules, part.module, None)  # as if it were not installed
    config = build(STAGES[stage], {**values, "stage": stage, "output": str(tmp_path / "run")})
    with pytest.raises(UserError, match=f"needs `{part.name}`, which is not installed") as refusal:
        submit.submit(config, on_line=pytest.fail, on_progress=lambda event: None)
    assert f"pip install -e '.[{part.extra}]'" in refusal.value.hint
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_not_asked_for_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in PARTS:
        if part.module != "tau2":
            monkeypatch.setitem(sys.modules, part.module, None)
    settings = {"launch": {"inline": True}, "policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}}
    refuse_lacking(build(STAGES["eval"], {**settings, "user": {"kind": "scripted"}}))


@pytest.mark.parametrize("part", [part for part in PARTS if part.command], ids=lambda part: part.module)
def test_a_package_that_a_command_asks_for_is_refused_with_its_extra(
    part: OptionalPart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    made = runner.invoke(app, shlex.split(f"eval -c {ROOT}/configs/eval/gold.yaml --inline {PLAY} --limit 1 --output {run}"))
    assert made.exit_code == 0, made.output
    monkeypatch.setitem(sys.modules, part.module, None)
    words = {
        "tau2rl view": ["view", str(run)],
        "tau2rl export --to inspect": ["export", str(run), "--to", "inspect", "--output", str(tmp_path / "out")],
    }
    if part.command not in words:  # a card needs a trained model: its own tests make one
        with pytest.raises(UserError, match=f"`{part.command}` needs `{part.module}`") as refusal:
            refuse_command(part.command)
        assert f".[{part.extra}]" in refusal.value.hint
        return
    said = refused(shlex.join(words[part.command]))
    assert f"`{part.command}` needs `{part.module}`, which is not installed" in said
    assert f".[{part.extra}]" in said


def test_a_file_that_needs_a_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    rows = tmp_path / "rows.jsonl.zst"
    rows.write_bytes(b"\x28\xb5\x2f\xfd\x00")
    result = runner.invoke(app, ["sft", "--inline", "--data", str(rows), "--output", str(tmp_path / "run")])
    assert result.exit_code == 2  # behind a line of progress: it is the first bytes of the file that ask
    assert "needs `zstandard`, which is not installed" in result.stderr and ".[data]" in result.stderr


def test_every_extra_of_the_table_is_one_of_the_project_and_brings_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for part in PARTS:
        brought = [line.replace("-", "_") for line in (*extras.get(part.extra, ()), *extras["tokenizers"])]
        assert not part.extra or any(line.startswith(part.name.replace("-", "_")) for line in brought), part


# --- what settings name ---

WRONG = {
    "no rows": ("sft", "no rows to train on"),
    "no file": ("sft --data no/rows.jsonl", "no file `no/rows.jsonl`"),
    "no checkpoint": ("sft --data README.md --model no/model", "no checkpoint in `no/model`"),
    "no agent": (f"eval {PLAY} --policy local --checkpoint no/model", "no checkpoint in `no/model`"),
    "no run": ("rft-filter --from no/run", "there is no `"),
    "no split": (f"eval {MOCK} --policy gold --protocol transcript --task-split tset", "no such split `tset` in `mock`"),
    "no task": (f"eval {PLAY} --policy gold --protocol transcript --tasks.ids 999x", "no such tasks in split `synth-test`: 999x"),
    "no domain": ("eval --domains retial --policy gold --protocol transcript", "no such domain `retial`"),
    "a test task": (f"seed {PLAY}", "are kept for tests"),
    "no user key": ("eval --domains mock --task-split synth-test --tokenizer bytes", "no key for user.model `gpt-4.1-mini`"),
    "no policy key": (f"eval {PLAY} --policy api --model claude-x --protocol transcript", "`ANTHROPIC_API_KEY` is not set"),
    "no tokenizer": (f"eval {PLAY} --tokenizer DIR", "no folder `DIR` to load a tokenizer from"),
    "no code": (f"eval {PLAY} --tokenizer bytes --policy no_pkg:Policy", "policy `no_pkg:Policy`"),
    "no codec": (f"eval {PLAY} --tokenizer bytes --protocol no_pkg:Codec", "chat codec `no_pkg:Codec`"),
    "no prompt": (f"eval {PLAY} --tokenizer bytes --protocol cookbook --set chat.cookbook_prompt=no.py", "no.py"),
}
EVERYWHERE = {"no split", "no task", "no domain", "a test task"}  # wrong on any machine


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_what_is_not_there_is_refused_before_anything_begins(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "LocalHead", pytest.fail)
    run = tmp_path / "run"
    monkeypatch.chdir(ROOT)
    assert said in refused(words, "--output", str(run))
    assert not run.exists()
    dry = runner.invoke(app, [*shlex.split(words), "--dry-run", "--output", str(run)])
    assert dry.exit_code == 2
    assert said in dry.stderr
    assert f"output: {run}" in dry.stdout and "# would run: " in dry.stdout
    there = runner.invoke(app, [*shlex.split(words), "--dry-run"], env={"RAY_ADDRESS": "http://cluster:8265"})
    if any(WRONG[name] == (words, said) for name in EVERYWHERE):
        assert there.exit_code == 2 and said in there.stderr
    else:
        assert (there.exit_code, there.stderr) == (0, "")


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refused("eval --domains mock --task-split tset --tokenizer DIR --dry-run")
    assert all(words in said for words in ("no key for user.model", "no such split `tset`", "no folder `DIR`"))


@pytest.mark.parametrize("file", ["8xh100/grpo", "8xh100/sft", "2node/grpo", "4gpu/grpo"])
def test_a_dry_run_of_a_training_for_a_cluster_leaves_its_files_to_the_cluster(file: str) -> None:
    stage = file.partition("/")[2]
    planned = runner.invoke(app, [stage, "-c", str(ROOT / "configs" / f"{file}.yaml"), "--dry-run"])
    assert planned.exit_code == 0, planned.stderr
    assert "# would run: " in planned.stdout
    last = planned.stdout.splitlines()[-1]
    assert last.startswith("# not on this machine, and looked for by the start where it runs: `")
    assert "(model.init)" in last and "`/root/slime` (slime.root)" in last and ("(data.files)" in last) == (stage == "sft")


def test_a_dry_run_says_nothing_of_paths_that_are_here(tmp_path: Path) -> None:
    for name in ("model", "rows.jsonl", "slime", "megatron"):
        (tmp_path / name).mkdir()
    words = ["sft", "-c", str(ROOT / "configs/8xh100/sft.yaml"), "--dry-run", "--json", "--model", str(tmp_path / "model")]
    words += ["--data", str(tmp_path / "rows.jsonl"), "--slime.root", str(tmp_path / "slime")]
    assert json.loads(runner.invoke(app, words).stdout)["not_here"] == ["`/root/Megatron-LM` (slime.megatron)"]
    whole = runner.invoke(app, [*words, "--slime.megatron", str(tmp_path / "megatron")])
    assert whole.exit_code == 0 and "not_here" not in json.loads(whole.stdout)


NOT_LOOKED_FOR = {
    "output": "made by the run",
    "budget.like": "read by the dry run itself, which refuses what is not there",
    "evaluation.file": "of a pipeline, read by the command itself",
}
ON_A_CLUSTER = "grpo -c configs/8xh100/grpo.yaml"
NAMED = {  # of every other setting that is a path: the run that reads it
    "tasks.source": f"eval {PLAY} --policy gold --protocol transcript",
    "policy.checkpoint": f"eval {PLAY} --policy local --tokenizer bytes",
    "chat.cookbook_prompt": f"eval {PLAY} --policy gold --protocol cookbook --tokenizer bytes",
    "reward.recipe": f"{ON_A_CLUSTER} --set algo.estimator=gtpo",
    "sources": "rft-filter",
    "data.files": "sft",
    "val.source": ON_A_CLUSTER,
    "algo.curriculum.profile": ON_A_CLUSTER,
    "slime.root": ON_A_CLUSTER,
    "slime.megatron": ON_A_CLUSTER,
    "slime.user.checkpoint": ON_A_CLUSTER,
}


def test_every_path_of_the_settings_is_looked_for_or_said_why_not() -> None:
    paths = {one.name for stage in STAGES.values() for one in every_setting(stage) if "Path" in str(one.type)}
    assert paths == NAMED.keys() | NOT_LOOKED_FOR.keys()


@pytest.mark.parametrize(("name", "words"), NAMED.items(), ids=NAMED)
def test_a_dry_run_names_the_path_of_each_setting(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    value = "[no/such]" if name in {"sources", "data.files"} else "no/such"
    dry = ["--set", f"{name}={value}", "--dry-run", "--json"]
    result = runner.invoke(app, [*shlex.split(words), *dry], env={"RAY_ADDRESS": "http://cluster:8265"})
    assert f"`no/such` ({name})" in json.loads(result.stdout)["not_here"], result.stderr


def test_paths_that_are_not_here_are_named_last_and_in_json_too(tmp_path: Path) -> None:
    wrong = ["--train.tasks_per_step", "3", "--rollout.num_samples", "5"]  # no equal shares
    planned = runner.invoke(app, ["grpo", "-c", str(ROOT / "configs/8xh100/grpo.yaml"), "--dry-run", *wrong])
    assert planned.exit_code == 2 and "# error: a step of 15 cannot be cut" in planned.stdout
    assert planned.stdout.splitlines()[-1].startswith("# not on this machine, ")

    step = {"stage": "seed", "settings": {"tasks": {"domains": ["mock"], "source": "no/tasks.json"}, "policy": {"kind": "gold"}}}
    step["settings"] |= {"user": {"kind": "scripted"}, "chat": {"protocol": "transcript"}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"steps": {"seed": step}}), "utf-8")
    words = ["run", "-c", str(tmp_path / "pipeline.yaml"), "--output", str(tmp_path / "run"), "--dry-run"]
    words += ["--address", "http://cluster:8265"]
    absent = json.loads(runner.invoke(app, [*words, "--json"]).stdout)["not_here"]
    assert absent == ["`no/tasks.json` (tasks.source)"]
    assert runner.invoke(app, words).stdout.splitlines()[-1].endswith(absent[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task-split tset", "no such split `tset`"),
        ("--tasks.ids 999x", "no such tasks"),
        ("--task-split test", "kept for tests"),
    ],
)
def test_a_dry_run_of_a_training_for_a_cluster_refuses_what_no_cluster_has(words: str, said: str) -> None:
    assert said in refused(f"grpo -c {ROOT}/configs/8xh100/grpo.yaml --dry-run {words}")


def test_what_steps_of_a_pipeline_make_is_not_looked_for(tmp_path: Path) -> None:
    words = ["run", "-c", str(ROOT / "configs/laptop/pipeline.yaml"), "--dry-run", "--output", str(tmp_path / "run")]
    assert runner.invoke(app, words).exit_code == 0
    assert "no such split `tset`" in refused(shlex.join(words), "--set", "steps.grpo.settings.tasks.split=tset")


@pytest.mark.parametrize("name", ["DIR", "tests/no-such-folder", "./no/folder", "a/b/c", "/no/folder"])
def test_what_is_no_name_of_the_hub_is_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tokenizers, "_listens", pytest.fail)
    with pytest.raises(UserError, match=r"no folder `.*` to load a tokenizer from"):
        tokenizers.load_tokenizer(name)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"nor is it in the hub's cache, and 127\.0\.0\.1 does not answer"):
        tokenizers.load_tokenizer("Org/No-Such-Model")


def test_what_is_to_be_installed_goes_where_this_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a shell that would take another `pip`, or has none
    command = shlex.split(OptionalPart(module="x", extra="view").hint)
    assert command[:5] == [sys.executable, "-m", "pip", "install", "-e"] and command[5] == ".[view]"


def test_a_config_of_the_clone_is_pointed_to_from_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    there = shlex.quote(str(ROOT / "configs" / "eval" / "gold.yaml"))
    assert f"hint: there is {there}; paths are meant from where you are" in refused("eval -c configs/eval/gold.yaml")
    assert f"the ready-made ones are in {shlex.quote(str(ROOT / 'configs'))}" in refused("eval -c nowhere.yaml")


def test_a_config_of_another_stage_is_named_in_a_line() -> None:
    said = refused(f"grpo -c {ROOT}/configs/laptop/eval.yaml")
    assert f"`{ROOT}/configs/laptop/eval.yaml` is a config of stage `eval`, not of `grpo`" in said
    assert f"did you mean `tau2rl eval -c {ROOT}/configs/laptop/eval.yaml`?" in said
    assert len(said.splitlines()) == 3
    said = refused(f"eval -c {ROOT}/configs/laptop/sft.yaml")  # it has settings that another stage had once
    assert len(said.splitlines()) == 3 and "has no effect" not in said


@pytest.mark.parametrize("stage", ["grpo", "sft", "seed", "rft", "eval", "pipeline"])
def test_doctor_judges_what_a_file_needs(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    use = {"rft": "rft-filter"}.get(stage, stage)
    words = ["doctor", "--for", use, "-c", f"configs/laptop/{stage}.yaml", "--json"]
    result = runner.invoke(app, words)
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert found.keys() >= {"python", "tau2-bench", "disk", "torch"}
    looked = {"sft": "data", "pipeline": "tasks", "seed": "tasks"}.get(stage, "checkpoint")
    state = "ok" if stage in ("seed", "pipeline") else "missing"  # what the earlier stages would have made
    assert found[looked]["state"] == state
    assert result.exit_code == any(check["state"] == "missing" for check in found.values())  # memory that others use, too
    assert json.loads(runner.invoke(app, ["doctor", "-c", words[4], "--json"]).stdout)["for"] == use


def test_doctor_says_for_what_it_judged() -> None:
    assert runner.invoke(app, ["doctor"]).stderr.startswith("for laptop: no GPU, no key: ")
    assert "tau2rl doctor --for grpo -c FILE" in refused("doctor --for grpo")


def test_doctor_names_a_missing_key_where_it_is_needed_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ["doctor", "-c", str(ROOT / "configs/eval/sglang.yaml"), "--user-model", "gpt-4.1-mini", "--json"]
    checks = json.loads(runner.invoke(app, words).stdout)["checks"]
    named = [check["name"] for check in checks if "OPENAI_API_KEY is not set" in check["detail"].replace("`", "")]
    assert named == ["user simulator"]
    assert [check["name"] for check in checks].count("keys") == 1


def test_doctor_wants_the_packages_that_settings_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump({"stage": "sft", "tracking": {"wandb": "offline"}, "local": {"device": "cuda"}}))
    checks = {c["name"]: c for c in json.loads(runner.invoke(app, ["doctor", "-c", str(file), "--json"]).stdout)["checks"]}
    assert (checks["wandb"]["state"], checks["peft"]["hint"]) == ("missing", "")
    assert ".[tracking]" in checks["wandb"]["hint"]
    assert checks["gpu"]["state"] in ("missing", "ok")
