"""One knob, one hyperparameter: every setting of `train:` and `algo:` reaches the local trainer; pinned here:

- each setting, changed alone, changes what the trainer is given;
- a new setting without a line in this file fails the test;
- sampling for training is never truncated, and its temperature is the trainer's too;
- `rollout.workers`, which this backend has no use for, is refused on it, and taken on the other.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tau2rl.config import AlgoConfig, GrpoConfig, GrpoTrainConfig, SftConfig, SftTrainConfig, build
from tau2rl.errors import UserError
from tau2rl.train.hyper import grpo_spec, sft_spec

BASE = {"model": {"init": "a/checkpoint"}, "tasks": {"domains": ["mock"]}}
TRAIN: dict[str, Any] = {
    "steps": 7, "lr": 0.5, "warmup_steps": 3, "schedule": "constant", "min_lr_ratio": 0.5, "betas": (0.5, 0.6),
    "weight_decay": 0.3, "max_grad_norm": 0.25,
}  # fmt: skip
SFT = {**TRAIN, "batch_size": 3, "val_every": 4, "early_stopping_patience": 2, "save_every": 9}
GRPO = {**TRAIN, "num_minibatches": 2}
ALGO: dict[str, Any] = {
    "ratio": "sequence", "eps_low": 0.1, "eps_high": 0.5, "dual_clip": 3.0, "loss_aggregation": "constant", "loss_scale": 77,
    "kl_coef": 0.2, "kl": "k2", "entropy_coef": 0.1, "correction": "tis", "correction_level": "sequence",
    "correction_low": 0.1, "correction_high": 5.0, "veto": 1e-4,
}  # fmt: skip
CORRECTED = {"correction": "mis"}
NEEDS: dict[str, Any] = {  # what else has to be set for a setting to mean anything
    "loss_scale": {"loss_aggregation": "constant"}, "kl": {"kl_coef": 0.2}, "veto": CORRECTED,
    "correction_level": CORRECTED, "correction_low": CORRECTED, "correction_high": CORRECTED,
}  # fmt: skip
TWICE = {"train": {"num_minibatches": 2}}
MORE: dict[str, Any] = {"eps_low": TWICE, "eps_high": TWICE, "dual_clip": TWICE, "ratio": TWICE}
OF_THE_ROUND = {
    "estimator", "gamma", "outcome_weight", "turn_rewards", "max_resample_rounds", "truncated", "curriculum",  # recipes/rounds.py
}  # fmt: skip
OF_THE_LOOP = {"save_every", "export_every", "val_every", "tasks_per_step"}  # recipes/grpo.py


def grpo(section: str, name: str, value: Any) -> dict[str, Any]:
    return asdict(grpo_spec(build(GrpoConfig, {**BASE, section: {**NEEDS.get(name, {}), name: value}, **MORE.get(name, {})})))


@pytest.mark.parametrize(("name", "value"), SFT.items())
def test_each_setting_of_sft_reaches_the_trainer(name: str, value: Any) -> None:
    assert asdict(sft_spec(build(SftConfig, {"train": {name: value}}))) != asdict(sft_spec(SftConfig()))


@pytest.mark.parametrize(
    ("section", "name", "value"), [("train", *i) for i in GRPO.items()] + [("algo", *i) for i in ALGO.items()]
)
def test_each_setting_of_grpo_reaches_the_trainer(section: str, name: str, value: Any) -> None:
    without = {**BASE, section: NEEDS.get(name, {}), **MORE.get(name, {})}
    assert grpo(section, name, value) != asdict(grpo_spec(build(GrpoConfig, without)))


def test_no_setting_is_forgotten_here() -> None:
    assert set(SFT) | {"export_every"} == set(SftTrainConfig.model_fields)
    assert set(GRPO) | OF_THE_LOOP == set(GrpoTrainConfig.model_fields)
    assert set(ALGO) | OF_THE_ROUND == set(AlgoConfig.model_fields)


def test_the_trainer_divides_by_the_samplers_temperature() -> None:
    assert grpo("sampling", "temperature", 0.7)["temperature"] == 0.7
    with pytest.raises(UserError, match="whole distribution"):
        grpo("sampling", "top_p", 0.9)


def test_more_updates_a_batch_stretch_the_schedule() -> None:
    assert grpo("train", "num_minibatches", 3)["optim"]["total_steps"] == 300


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": {"init": "tiny"}}, "`tiny` knows nothing"),
        ({"chat": {"protocol": "transcript"}}, "no tokens to train on"),
        ({"rollout": {"greedy": True}}, "for evaluations"),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_made(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(GrpoConfig, {**BASE, **values})


def test_the_tokenizer_is_the_checkpoints_own_unless_another_is_named() -> None:
    assert build(GrpoConfig, BASE).chat.tokenizer == "a/checkpoint"
    assert build(GrpoConfig, {**BASE, "chat": {"tokenizer": "bytes"}}).chat.tokenizer == "bytes"


def test_training_does_not_take_workers_that_nobody_would_use() -> None:
    with pytest.raises(UserError, match=r"rollout\.workers has no effect while backend is `local`"):
        build(GrpoConfig, {**BASE, "rollout": {"workers": 2}})
    assert build(GrpoConfig, {**BASE, "backend": "slime", "rollout": {"workers": 2}}).rollout.workers == 2
