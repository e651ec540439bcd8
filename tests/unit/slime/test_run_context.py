"""What crosses over into slime's job, and what comes back out of `args` there.

- the settings and the folder arrive whole through the one YAML file, and nothing else of ours is on `args`;
- paths hold in any working directory; a tokenizer's name that is no directory stays a name;
- the engines beside the policy are those of the layout, the policy first;
- the user simulator's settings name the server that the job started, where it starts one.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from tau2rl.config import GrpoConfig
from tau2rl.slime.layout import layout_of, sglang_config
from tau2rl.slime.run_context import SlimeRun, absolute, custom_config, run_context, served_user, write_files
from tests.slime_configs import CONFIGS, SHAPE, load_slime


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_arrive_whole(name: str, tmp_path: Path) -> None:
    config, run = load_slime(name), SlimeRun(folder=tmp_path, shape=SHAPE)
    write_files(config, run)
    args = Namespace(**yaml.safe_load(run.custom_config.read_text("utf-8")))  # as slime does it
    assert list(vars(args)) == ["tau2rl"]
    back = run_context(args)
    assert (back.config, back.folder) == (config, tmp_path)
    assert run_context(args) is back  # read once a process
    assert run.sglang_config.exists() == bool(config.slime.user.gpus and isinstance(config, GrpoConfig))


def test_slimes_helper_finds_its_settings_beside_ours() -> None:
    config = load_slime("8xh100/grpo.yaml", "algo.correction=mis", "algo.correction_level=sequence", "algo.veto=0.01")
    beside = custom_config(config, SlimeRun(folder=Path("/run"), shape=SHAPE))
    assert (beside["tis_mode"], beside["tis_level"], beside["rs_veto_threshold"]) == ("mask", "sequence", 0.01)
    assert (beside["tis_lower_bound"], beside["tis_upper_bound"]) == (0.5, 2.0)


def test_paths_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    config = absolute(load_slime("8xh100/grpo.yaml", "model.init=start", "slime.user.checkpoint=user"))
    assert isinstance(config, GrpoConfig)
    assert (config.model.init, config.chat.tokenizer) == (str(tmp_path / "start"), str(tmp_path / "start"))
    assert config.slime.user.checkpoint == tmp_path / "user"
    sets = ("tasks.source=own/tasks.json", "val.source=own/tasks.json", "algo.estimator=mt_gtpo", "reward.recipe=recipe.json")
    made = absolute(load_slime("8xh100/grpo.yaml", *sets))
    assert isinstance(made, GrpoConfig)
    assert (made.tasks.source, made.val.source) == (tmp_path / "own/tasks.json", tmp_path / "own/tasks.json")
    assert made.reward.recipe == tmp_path / "recipe.json"
    profiled = absolute(load_slime("8xh100/grpo.yaml", "algo.curriculum.profile=profile.json"))
    assert isinstance(profiled, GrpoConfig)
    assert profiled.algo.curriculum.profile == tmp_path / "profile.json"
    named = absolute(load_slime("8xh100/grpo.yaml", "chat.tokenizer=Qwen/Qwen3-4B"))
    assert isinstance(named, GrpoConfig)
    assert named.chat.tokenizer == "Qwen/Qwen3-4B"


def test_the_policy_stands_first_and_the_user_simulator_gets_no_weights() -> None:
    config = load_slime("8xh100/grpo.yaml")
    engines = sglang_config(config.slime, layout_of(config))
    assert engines is not None
    assert [(model["name"], model["update_weights"]) for model in engines["sglang"]] == [("policy", True), ("user_sim", False)]
    elsewhere = load_slime("8xh100/grpo-remote-user.yaml")
    assert sglang_config(elsewhere.slime, layout_of(elsewhere)) is None


def test_the_user_simulator_is_who_the_layout_says() -> None:
    served, remote = load_slime("8xh100/grpo.yaml"), load_slime("8xh100/grpo-remote-user.yaml")
    assert isinstance(served, GrpoConfig)
    assert isinstance(remote, GrpoConfig)
    here = served_user(served, "http://10.0.0.1:4000/v1")
    assert here is not None
    assert (here.model, here.api_base, here.temperature) == ("openai/user_sim", "http://10.0.0.1:4000/v1", 0.7)
    assert served_user(remote, "http://10.0.0.1:4000/v1") is None
