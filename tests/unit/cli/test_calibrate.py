"""`tau2rl calibrate`, pinned here on attempts of a teacher that makes mistakes, on the real `mock` domain:

- the recipe has the sign that success has with each tier, a hash, its sources and constants; the table shows before and after and
  the plain tables;
- a recipe that fails its check, or has no support, is not written, and the exit code is 1;
- held-out tasks are refused;
- `grpo` trains with a recipe and has its hash in its identity; a recipe that was changed, failed or is none is refused;
- `mt_gtpo` without one says so, and a recipe without an estimator of turns has no effect, which is refused.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import AlgoConfig, GrpoConfig, RewardConfig, ShapeConfig, build
from tau2rl.errors import UserError
from tau2rl.recipes import grpo
from tau2rl.reward.calibration import turn_table, write_recipe
from tau2rl.reward.tiers import CALIBRATED, TABLES, Tier
from tau2rl.runs.folder import RunFolder
from tau2rl.train.tiny import create_tiny

runner = CliRunner()
SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts") / "run"
    words = ["--domains", "mock", "--task-split", "synth-train", "--limit", "40", "--num-samples", "4", "--keep", "all"]
    result = runner.invoke(app, ["seed", *words, "--noise-prob", "0.5", "--inline", "--output", str(folder)])
    assert result.exit_code == 0, result.stderr
    return folder


def calibrated(rollouts: Path, recipe: Path, *words: str) -> Any:
    result = runner.invoke(app, ["calibrate", str(rollouts), "--output", str(recipe), "--json", *words])
    assert result.exit_code == (0 if recipe.exists() else 1), result.stderr
    return json.loads(result.stdout)


def test_a_recipe_goes_with_success_and_is_frozen_with_its_hash(rollouts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    values = calibrated(rollouts, recipe, "--free", "soft", "--min-support", "5")
    assert values["accepted"] and values["problems"] == []
    found = values["check"]["tiers"]
    assert any(tier["kept"] is None for tier in found.values())
    for tier in found.values():
        if tier["kept"] is None:  # alpha is 1
            assert tier["value"] == (tier["phi"] if abs(tier["phi"]) > 0.05 else 0)
    assert values["check"]["correlation"] > 0.1
    assert set(values["plain"]) == set(TABLES)
    stored = json.loads(recipe.read_text("utf-8"))
    assert stored["digest"] == values["digest"]
    assert stored["sources"][0]["run"] == str(rollouts)
    table = turn_table(RewardConfig(recipe=recipe), AlgoConfig(estimator="mt_gtpo"))
    assert {tier.value: table.value(tier) for tier in Tier} == stored["values"]
    again = tmp_path / "again.json"
    assert calibrated(rollouts, again, "--free", "soft", "--min-support", "5")["digest"] == values["digest"]
    shown = runner.invoke(app, ["calibrate", str(rollouts), "--output", str(again), "--free", "soft", "--min-support", "5"])
    assert "this recipe" in shown.stdout and "reference_write" in shown.stdout and values["digest"] in shown.stdout


def test_what_has_no_support_is_refused_and_not_written(rollouts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    values = calibrated(rollouts, recipe, "--min-support", "1000")
    assert not recipe.exists()
    assert "no tier has the support to be calibrated" in values["problems"]
    assert values["check"]["tiers"]["gold"]["value"] == CALIBRATED.value(Tier.GOLD)


def test_a_recipe_that_fails_its_check_is_refused(rollouts: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    values = calibrated(rollouts, recipe, "--delta", "1", "--min-support", "5")  # no correlation is above 1: every value is 0
    assert not recipe.exists()
    assert any("do not vary" in problem or "by only" in problem for problem in values["problems"])


def test_what_cannot_be_calibrated_on_is_refused(rollouts: Path, tmp_path: Path) -> None:
    assert "no sign is intended of `read`" in runner.invoke(app, ["calibrate", str(rollouts), "--free", "read"]).stderr
    (tmp_path / "config.json").write_text('{"stage": "sft"}', "utf-8")
    assert "is a run of `sft`" in runner.invoke(app, ["calibrate", str(tmp_path)]).stderr
    run = tmp_path / "test"
    words = ["--domains", "mock", "--task-split", "synth-test", "--limit", "1", "--policy", "gold", "--user.kind", "scripted"]
    assert runner.invoke(app, ["eval", *words, "--protocol", "transcript", "--inline", "--output", str(run)]).exit_code == 0
    refused = runner.invoke(app, ["calibrate", str(run)])
    assert refused.exit_code == 2
    assert "kept for tests" in refused.stderr


def grpo_run(folder: Path, recipe: Path | None) -> Path:
    start = folder / "start"
    create_tiny([("a", {"messages": HELLO})], SHAPE, start, seed=0)
    values = {
        "model": {"init": str(start)},
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 1},
        "user": {"kind": "scripted"},
        "sampling": {"max_tokens": 4},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0},
        "reward": {"preset": "outcome", **({"recipe": str(recipe)} if recipe else {})},
        "rollout": {"num_samples": 2, "retries": 0},
        "train": {"steps": 1, "tasks_per_step": 1},
        "algo": {"estimator": "mt_gtpo"},
    }
    run = folder / "run"
    config = build(GrpoConfig, values)
    with RunFolder.open(RunFolder.create(run, config, resume=False)) as opened:
        grpo.run(config, opened, lambda _: None)
    return run


def test_grpo_trains_with_a_recipe_and_is_known_by_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tmp_path / "recipe.json"
    digest = write_recipe(recipe, {"values": {"gold": 0.5, "error": -0.5}, "writes_only": False, "accepted": True})
    with caplog.at_level(logging.WARNING):
        run = grpo_run(tmp_path, recipe)
    assert json.loads((run / "environment.json").read_text("utf-8"))["identity"]["recipe"] == digest
    assert "without a calibrated recipe" not in caplog.text


def test_mt_gtpo_without_a_recipe_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        grpo_run(tmp_path, None)
    assert "`mt_gtpo` without a calibrated recipe" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.5", "0.6"), "is not what was frozen"),
        (lambda _: '{"values": {}}', "is no recipe of this version"),
        (lambda _: None, "no recipe"),
    ],
)
def test_a_recipe_that_was_changed_or_is_none_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    write_recipe(recipe, {"values": {"gold": 0.5}, "writes_only": False, "accepted": True})
    text = change(recipe.read_text("utf-8"))
    recipe.unlink() if text is None else recipe.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        grpo_run(tmp_path, recipe)


def test_a_recipe_that_failed_is_refused(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r.json", {"values": {}, "writes_only": False, "accepted": False, "problems": ["a sign"]})
    with pytest.raises(UserError, match="did not pass its check"):
        turn_table(RewardConfig(recipe=tmp_path / "r.json"), AlgoConfig(estimator="mt_gtpo"))


def test_a_recipe_without_an_estimator_of_turns_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.recipe has no effect while algo\.estimator is `grpo`"):
        build(GrpoConfig, {"reward": {"recipe": str(tmp_path / "r.json")}, "model": {"init": "m"}})
