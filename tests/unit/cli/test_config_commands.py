"""`tau2rl config`, pinned here:

- `show` prints every setting, each below its documentation, as YAML that reads back to the very same config;
- `show` needs no valid run, only valid values; with a file or `--set` it shows what they make;
- `diff` compares resolved settings: a default written out is no difference; it exits 0 or 1, and 2 for a wrong request;
- `diff` takes run folders.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, build, dump, flatten, known_names

runner = CliRunner()
ROOT = Path(__file__).parents[3]
GOLD = ROOT / "configs" / "eval" / "gold.yaml"


def test_show_prints_every_setting_of_the_stage() -> None:
    shown = yaml.safe_load(runner.invoke(app, ["config", "show"]).stdout)
    sections = {
        name for name in known_names(EvalConfig) if any(other.startswith(f"{name}.") for other in known_names(EvalConfig))
    }
    assert set(flatten(shown)) == set(known_names(EvalConfig)) - sections


def test_the_yaml_that_show_prints_is_the_config() -> None:
    sets = ["policy.kind=sglang", "chat.protocol=native", "user.kind=llm"]
    sets += ["tasks.ids=[retail/17, '5']", "chat.tokenizer=a: b # c", "policy.sampling.temperature=1e-6", "user.model=null"]
    arguments = [word for item in sets for word in ("--set", item)]
    shown = yaml.safe_load(runner.invoke(app, ["config", "show", "-c", str(GOLD), *arguments]).stdout)
    as_json = json.loads(runner.invoke(app, ["config", "show", "-c", str(GOLD), *arguments, "--json"]).stdout)
    assert shown == as_json == dump(build(EvalConfig, shown))
    assert shown["tasks"]["ids"] == ["retail/17", "5"]
    assert shown["chat"]["tokenizer"] == "a: b # c"
    assert shown["policy"]["sampling"]["temperature"] == 1e-6
    assert shown["user"]["model"] == "null"


def test_a_setting_stands_below_its_documentation() -> None:
    lines = runner.invoke(app, ["config", "show"]).stdout.splitlines()
    place = lines.index("  num_samples: 4")
    assert lines[place - 1] == "  # Attempts a task, sampled."
    assert max(map(len, lines)) <= 122


def test_show_refuses_an_unknown_stage_and_an_unknown_setting() -> None:
    for arguments, words in (["--stage", "evil"], "one of: seed, sft,"), (["--set", "seeds=3"], "did you mean `seed`?"):
        result = runner.invoke(app, ["config", "show", *arguments])
        assert result.exit_code == 2
        assert words in result.stderr


def test_diff_ignores_how_a_value_was_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("chat: {tokenizer: bytes}\n", "utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"seed": 300, "chat": {"tokenizer": "bytes", "protocol": "native"}}), "utf-8")
    result = runner.invoke(app, ["config", "diff", str(tmp_path / "a.yaml"), str(tmp_path / "b.json")])
    assert (result.exit_code, result.stdout) == (0, "")


def test_diff_names_the_settings_and_both_values(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    other = {**yaml.safe_load(GOLD.read_text("utf-8")), "seed": 7, "limits": {"repairs": 4}}
    (run / "config.json").write_text(json.dumps(other), "utf-8")
    result = runner.invoke(app, ["config", "diff", str(GOLD), str(run), "--json"])
    assert result.exit_code == 1
    expected = [{"key": "limits.repairs", "a": 1, "b": 4}, {"key": "seed", "a": 300, "b": 7}]
    assert json.loads(result.stdout) == {"differences": expected}
    table = runner.invoke(app, ["config", "diff", str(GOLD), str(run)])
    assert table.exit_code == 1
    assert [line.split() for line in table.stdout.splitlines() if line.strip().startswith("seed")] == [["seed", "300", "7"]]


@pytest.mark.parametrize(("name", "words"), [("nothing.yaml", "no such config file"), ("", "is not a run folder")])
def test_diff_refuses_what_is_no_config(name: str, words: str, tmp_path: Path) -> None:
    result = runner.invoke(app, ["config", "diff", str(GOLD), str(tmp_path / name)])
    assert result.exit_code == 2
    assert words in result.stderr
