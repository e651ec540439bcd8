"""What crosses over into slime's job, and what comes back out of `args` there.

- the settings and the folder arrive whole through the one YAML file, and nothing else of ours is on `args`;
- paths hold in any working directory; a tokenizer's name that is no directory stays a name;
- the engines beside the policy are those of the layout, the policy first;
- the customer's settings name the server that the job started, where it starts one;
- the constant of Dr. GRPO's denominator is in the name of the function.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.slime.job import SlimeRun, absolute, custom_config, environment, received, script, user_config, write
from tau2rl.slime.layout import layout_of, sglang_config
from tests.slime_configs import CONFIGS, SHAPE, load_slime


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_arrive_whole(name: str, tmp_path: Path) -> None:
    config, run = load_slime(name), SlimeRun(folder=tmp_path, shape=SHAPE)
    write(config, run)
    args = Namespace(**yaml.safe_load(run.custom_config.read_text("utf-8")))  # as slime does it
    assert list(vars(args)) == ["tau2rl"]
    back = received(args)
    assert (back.config, back.folder) == (config, tmp_path)
    assert received(args) is back  # read once a process
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
    named = absolute(load_slime("8xh100/grpo.yaml", "chat.tokenizer=Qwen/Qwen3-4B"))
    assert isinstance(named, GrpoConfig)
    assert named.chat.tokenizer == "Qwen/Qwen3-4B"


def test_the_policy_stands_first_and_the_customer_gets_no_weights() -> None:
    config = load_slime("8xh100/grpo.yaml")
    engines = sglang_config(config.slime, layout_of(config))
    assert engines is not None
    assert [(model["name"], model["update_weights"]) for model in engines["sglang"]] == [("policy", True), ("user_sim", False)]
    elsewhere = load_slime("8xh100/grpo-remote-user.yaml")
    assert sglang_config(elsewhere.slime, layout_of(elsewhere)) is None


def test_the_customer_is_who_the_layout_says() -> None:
    served, remote = load_slime("8xh100/grpo.yaml"), load_slime("8xh100/grpo-remote-user.yaml")
    assert isinstance(served, GrpoConfig)
    assert isinstance(remote, GrpoConfig)
    here = user_config(served, "http://10.0.0.1:4000/v1")
    assert (here.model, here.api_base, here.temperature) == ("openai/user_sim", "http://10.0.0.1:4000/v1", 0.7)
    assert user_config(remote, None) == remote.user


def test_what_plays_ahead_is_asked_for() -> None:
    assert script(load_slime("8xh100/grpo.yaml")) == Path("/root/slime/train.py")
    assert script(load_slime("8xh100/grpo.yaml", "slime.overlap=true")) == Path("/root/slime/train_async.py")
    # Supervised training would lose a batch of rows with every `--resume`.
    assert script(load_slime("8xh100/sft.yaml")) == Path("/root/slime/train.py")


def test_no_key_is_in_the_environment_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for config in (load_slime("8xh100/grpo-api-user.yaml"), load_slime("8xh100/sft.yaml")):
        assert isinstance(config, GrpoConfig | SftConfig)
        variables = environment(config)
        assert variables["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        assert variables["PYTHONPATH"].split(":")[:2] == ["/root/slime", "/root/Megatron-LM"]
        assert "sk-secret" not in str(variables)


def test_the_constant_denominator_is_in_the_functions_name() -> None:
    reducers = importlib.import_module("tau2rl.slime.reducers")
    reduce = reducers.constant_4([5, 3], [2, 3], [torch.tensor([1.0, 0.0]), torch.ones(3)], False)
    found = reduce(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert float(found) == pytest.approx(0.25 + 3.0)  # a fourth of 1, a fourth of 3 + 4 + 5
    for name in ("constant_", "constant_0", "constant_x", "other"):
        with pytest.raises(AttributeError):
            getattr(reducers, name)
