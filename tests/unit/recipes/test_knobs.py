"""One setting, one effect: every setting of `train:` and `algo:` changes what the local trainer does; pinned here:

- each setting of the trainer, changed alone, changes the weights after a few steps, or the steps that are taken;
- a new setting without a line in this file fails the test;
- sampling for training is never truncated, and its temperature is the trainer's too;
- `rollout.workers`, which this backend has no use for, is refused on it, and taken on the other.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2rl.config import AlgoConfig, GrpoConfig, GrpoTrainConfig, SftConfig, SftTrainConfig, build
from tau2rl.errors import UserError
from tau2rl.train.engine.forward import collate, score_tokens
from tau2rl.train.sft import train
from tau2rl.train.state import STATE_FILE
from tau2rl.train.trainer import GRPOTrainer, ScoredTrajectory
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import sample, tiny_model, weights

BASE = {"model": {"init": "a/checkpoint"}, "tasks": {"domains": ["mock"]}}
# name -> another value, with what else has to be set for it to mean anything
TRAIN: dict[str, Any] = {
    "steps": 7, "lr": 0.5, "warmup_steps": 0, "schedule": "constant", "min_lr_ratio": 0.9, "betas": [0.5, 0.6],
    "weight_decay": 0.9, "max_grad_norm": 1e-5,
}  # fmt: skip
SFT = {**TRAIN, "batch_size": 3, "early_stopping_patience": ({"val_every": 1, "lr": 0.5}, 1), "val_every": 2, "save_every": 1}
GRPO = {**TRAIN, "num_minibatches": 2}
CLIPS = {"train": {"num_minibatches": 2, "lr": 0.5}}  # with one minibatch every ratio is 1
CORRECTS = {"algo": {"correction": "clip"}}
ALGO: dict[str, Any] = {
    "ratio": (CLIPS, "sequence"), "eps_low": (CLIPS, 0.01), "eps_high": (CLIPS, 0.01), "dual_clip": (CLIPS, 1.1),
    "loss_aggregation": "seq-mean", "loss_scale": ({"algo": {"loss_aggregation": "constant"}, "train": {"max_grad_norm": 0}}, 1),
    "kl_coef": 0.2, "kl": ({"algo": {"kl_coef": 0.2}}, "k2"), "entropy_coef": 0.1, "correction": "tis",
    "correction_level": (CORRECTS, "sequence"), "correction_low": (CORRECTS, 0.9), "correction_high": (CORRECTS, 1.1),
    "veto": ({"algo": {"correction": "tis"}}, 0.9),
}  # fmt: skip
OF_THE_ROLLOUTS = {
    "estimator",
    "exclude_faults",
    "gamma",
    "outcome_weight",
    "turn_rewards",
    "max_resample_rounds",
    "truncated",
    "curriculum",
}
OF_THE_LOOP = {"save_every", "export_every", "val_every", "tasks_per_step"}  # train/grpo.py


def as_sampled(row: TrainingSample, rng: random.Random) -> TrainingSample:
    """The row with log-probabilities of a sampler that is not quite the trainer."""
    with torch.no_grad():
        known = score_tokens(tiny_model(), collate([row])).logp[0].tolist()
    return replace(row, logprobs=tuple((p + rng.uniform(-0.9, 0.9)) * m for p, m in zip(known, row.loss_mask, strict=True)))


NOISE = random.Random(0)
ROWS = [as_sampled(sample(8 + i, seed=i), NOISE) for i in range(6)]
SCORED = [ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i * (1 + i),)) for i, row in enumerate(ROWS)]


def pair(change: Any, section: str, name: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The settings of both sections before and after the change."""
    given, value = change if isinstance(change, tuple) else ({}, change)
    before = {key: dict(given.get(key, {})) for key in ("train", "algo")}
    return before, {**before, section: {**before[section], name: value}}


def reinforced(sections: dict[str, dict[str, Any]]) -> torch.Tensor:
    """The weights after four updates."""
    values = {"train": {"steps": 6, "lr": 1e-2, "warmup_steps": 2, **sections["train"]}, "algo": sections["algo"]}
    config = build(GrpoConfig, {**BASE, **values})
    model = tiny_model()
    trainer = GRPOTrainer(model, config.algo, config.train, reference=tiny_model(seed=1))
    for _ in range(4):
        trainer.update(SCORED)
    return weights(model)


def fine_tuned(values: dict[str, Any], folder: Path) -> tuple[list[Any], torch.Tensor]:
    """What every step reported, when a state was there, and the weights at the end."""
    config = build(SftConfig, {"train": {"steps": 6, "lr": 1e-2, "warmup_steps": 2, "batch_size": 2, **values}})
    model, steps = tiny_model(), list[Any]()
    train(
        model,
        [(row,) for row in ROWS[:4]],
        config.train,
        config.local,
        val=[(row,) for row in ROWS[4:]],
        folder=folder,
        on_step=lambda s: steps.append((s.val_loss is None, s.tokens, (folder / STATE_FILE).exists())),
    )
    return steps, weights(model)


@pytest.mark.parametrize(("name", "change"), SFT.items())
def test_each_setting_of_sft_reaches_the_trainer(name: str, change: Any, tmp_path: Path) -> None:
    given, value = change if isinstance(change, tuple) else ({}, change)
    before, after = fine_tuned(given, tmp_path / "before"), fine_tuned({**given, name: value}, tmp_path / "after")
    assert before[0] != after[0] or not torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("section", "name", "change"), [("train", *item) for item in GRPO.items()] + [("algo", *item) for item in ALGO.items()]
)
def test_each_setting_of_grpo_reaches_the_trainer(section: str, name: str, change: Any) -> None:
    before, after = pair(change, section, name)
    assert not torch.equal(reinforced(before), reinforced(after))


def test_no_setting_is_forgotten_here() -> None:
    assert set(SFT) | {"export_every"} == set(SftTrainConfig.model_fields)
    assert set(GRPO) | OF_THE_LOOP == set(GrpoTrainConfig.model_fields)
    assert set(ALGO) | OF_THE_ROLLOUTS == set(AlgoConfig.model_fields)


def test_the_trainer_divides_by_the_samplers_temperature() -> None:
    moved = []
    for temperature in (1.0, 0.7):
        model = tiny_model()
        GRPOTrainer(model, AlgoConfig(), GrpoTrainConfig(warmup_steps=0, lr=1e-2), temperature=temperature).update(SCORED)
        moved.append(weights(model))
    assert not torch.equal(moved[0], moved[1])
    with pytest.raises(UserError, match="whole distribution"):
        build(GrpoConfig, {**BASE, "sampling": {"top_p": 0.9}})


def test_minibatches_stretch_the_schedule() -> None:
    trainer = GRPOTrainer(tiny_model(), AlgoConfig(), GrpoTrainConfig(steps=100, num_minibatches=3))
    assert trainer.optimizer.total_steps == 300


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
