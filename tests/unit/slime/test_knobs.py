"""One knob, two backends: every setting outside `slime:` and `local:` reaches the trainer of either, or is refused.

- slime: every setting changes the command line or what our hooks are handed; which of the two is written down here, for each;
- a setting that belongs to slime's trainer changes the command line itself, not only what is handed over;
- validation has the temperature of `val`, and that of the training where it has none;
- what slime cannot honor is refused with a reason, and no setting is missing from the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tau2rl.config import GrpoConfig, Section, SftConfig, build, flatten, put
from tau2rl.errors import UserError
from tau2rl.slime.argv import build_argv
from tau2rl.slime.run_context import SlimeRun, custom_config
from tau2rl.train.grpo import validation_policy
from tau2rl.train.policy import LocalPolicy
from tests.slime_configs import SHAPE
from tests.unit.train.tiny import tiny_model

RUN = SlimeRun(folder=Path("/run"), shape=SHAPE)
START: dict[str, dict[str, Any]] = {
    "grpo": {
        "backend": "slime",
        "model": {"init": "/start"},
        "train": {"val_every": 10},
        "tasks": {"split": "train-learn"},
        "val": {"split": "train-select"},
        "slime": {"max_tokens_per_gpu": 32768},
    },
    "sft": {"backend": "slime", "model": {"init": "/start"}, "data": {"val_fraction": 0, "files": ["/rows.jsonl"]}},
}
KINDS: dict[str, type[GrpoConfig] | type[SftConfig]] = {"grpo": GrpoConfig, "sft": SftConfig}
NOT_SETTINGS = (
    "stage",
    "backend",
    "output",
    "resume",
    "launch",
    "slime",
    "local",
    "allow_held_out",
    "budget",
)  # of the run, not of the training

# How each setting is changed, and what else has to be set for it to mean anything.
ARGV = {  # slime's own trainer or engines read it
    "grpo": {
        "seed": 7,
        "model.init": "/other",
        "train.steps": 50,
        "train.lr": 3e-6,
        "train.warmup_steps": 3,
        "train.schedule": "constant",
        "train.min_lr_ratio": 0.5,
        "train.betas": [0.8, 0.9],
        "train.weight_decay": 0.3,
        "train.max_grad_norm": 0.5,
        "train.save_every": 5,
        "train.tasks_per_step": 8,
        "train.num_minibatches": 2,
        "train.val_every": 20,
        "rollout.num_samples": 4,
        "rollout.concurrency": 128,
        "sampling.temperature": 0.7,
        "sampling.max_tokens": 99,
        "limits.context_tokens": 9000,
        "val.num_samples": 3,
        "val.temperature": 0.0,
        "algo.estimator": "mt_grpo",
        "algo.ratio": "sequence",
        "algo.eps_low": ({"train.num_minibatches": 2}, 0.1),
        "algo.eps_high": ({"train.num_minibatches": 2}, 0.4),
        "algo.dual_clip": ({"train.num_minibatches": 2}, 3.0),
        "algo.loss_aggregation": "seq-mean",
        "algo.kl_coef": 0.01,
        "algo.kl": ({"algo.kl_coef": 0.01}, "k2"),
        "algo.entropy_coef": 0.01,
        "algo.correction": "tis",
        "algo.correction_level": ({"algo.correction": "tis"}, "sequence"),
        "algo.correction_low": ({"algo.correction": "clip"}, 0.7),
        "algo.correction_high": ({"algo.correction": "tis"}, 3.0),
        "algo.veto": ({"algo.correction": "tis"}, 1e-4),
        "algo.max_resample_rounds": 2,
        "tracking.wandb": "offline",
        "tracking.project": ({"tracking.wandb": "offline"}, "mine"),
        "name": ({"tracking.wandb": "offline"}, "x"),
    },
    "sft": {
        "seed": 7,
        "model.init": "/other",
        "train.steps": 50,
        "train.lr": 3e-6,
        "train.warmup_steps": 3,
        "train.schedule": "constant",
        "train.min_lr_ratio": 0.5,
        "train.betas": [0.8, 0.9],
        "train.weight_decay": 0.3,
        "train.max_grad_norm": 0.5,
        "train.save_every": 5,
        "train.batch_size": 8,
        "tracking.wandb": "offline",
        "tracking.project": ({"tracking.wandb": "offline"}, "mine"),
        "name": ({"tracking.wandb": "offline"}, "x"),
    },
}
HANDED = {  # our hooks, our data source or the stage that writes the rows read it
    "grpo": {
        "tasks.domains": ["retail"],
        "tasks.split": "synth-train",
        "tasks.source": "tasks.json",
        "tasks.ids": ["1"],
        "tasks.limit": 3,
        "tasks.skip": 1,
        "tasks.exclude_quarantined": True,
        "val.domains": ["retail"],
        "val.split": "synth-select",
        "val.source": "tasks.json",
        "val.ids": ["1"],
        "val.limit": 3,
        "val.skip": 1,
        "val.exclude_quarantined": True,
        "user.kind": "scripted",
        "user.model": "gpt-x",
        "user.omit": ["seed"],
        "user.api_base": "http://u/v1",
        "user.api_key_env": "MY_KEY",
        "user.temperature": 0.1,
        "user.timeout_seconds": 5,
        "user.retries": 1,
        "user.max_stalled_turns": ({"user.kind": "scripted"}, 2),
        "chat.protocol": "cookbook",
        "chat.options": ({"chat.protocol": "my_pkg:Codec"}, {"x": 1}),
        "chat.tokenizer": "/tokenizer",
        "chat.policy_text": ({"chat.protocol": "cookbook"}, "compressed"),
        "chat.thinking": "keep",
        "chat.date": "2026-01-31",
        "chat.thinking_tokens": ({"chat.thinking": "keep"}, 512),
        "chat.cookbook_prompt": ({"chat.protocol": "cookbook"}, "/p"),
        "limits.max_steps": 50,
        "limits.max_turns": 50,
        "limits.repairs": 0,
        "limits.step_timeout_seconds": 5,
        "limits.grade_timeout_seconds": 5,
        "limits.episode_timeout_seconds": 5,
        "rollout.retries": 1,
        "rollout.give_up_after": 3,
        "rollout.keep": True,
        "rollout.workers": 2,
        "rollout.worker_memory_gb": ({"rollout.workers": 2}, 2.0),
        "reward.preset": "outcome",
        "reward.alpha": 0.1,
        "reward.normalise": True,
        "reward.step_penalty": 0.001,
        "reward.tool_penalty": 0.001,
        "reward.allow_dominated": True,
        "reward.recipe": ({"algo.estimator": "gtpo"}, "recipe.json"),
        "reward.terms": [{"fn": "my_pkg:f", "weight": 0.1}],
        "plugins": ["my_pkg.domain"],
        "tracking.sinks": ["my_pkg:Sink"],
        "tracking.trackers": ["tensorboard"],
        "tracking.conversations": ({"tracking.trackers": ["tensorboard"]}, 2),
        "algo.gamma": ({"algo.estimator": "gtpo"}, 0.5),
        "algo.outcome_weight": ({"algo.estimator": "mt_gtpo"}, 0.5),
        "algo.turn_rewards": ({"algo.estimator": "gtpo"}, "dense"),
        "algo.loss_scale": ({"algo.loss_aggregation": "constant"}, 99),
        "algo.truncated": "drop",
        "algo.exclude_faults": ["user"],
        "algo.curriculum.enabled": True,
        "algo.curriculum.floor": ({"algo.curriculum.enabled": True}, 0.1),
        "algo.curriculum.decay": ({"algo.curriculum.enabled": True}, 0.5),
        "algo.curriculum.profile": ({"algo.curriculum.enabled": True}, "profile.json"),
        "monitors.action": "off",
        "monitors.window": 3,
        "monitors.rise": 0.5,
        "monitors.turns_growth": 2.0,
        "monitors.success_fall": 0.2,
        "train.export_every": 50,
    },
    "sft": {
        "data.files": ["/more.jsonl"],
        "data.max_tokens": 5000,
        "data.limit": 7,
        "train.export_every": 50,
        "plugins": ["my_pkg"],
        "tracking.sinks": ["my_pkg:Sink"],
        "tracking.trackers": ["tensorboard"],
    },
}
REFUSED = {
    "grpo": {
        "model.init": "tiny",
        "sampling.top_p": 0.9,
        "sampling.top_k": 20,
        "rollout.greedy": True,
        "rollout.adaptive": True,
        "monitors.action": "stop",
        "monitors.entropy_left": 0.1,
        "train.export_every": 7,
    },
    "sft": {
        "model.init": "tiny",
        "data.val_fraction": 0.1,
        "train.early_stopping_patience": 2,
        "train.val_every": 9,
        "data.allow_empty": True,
        "train.export_every": 7,
        "chat.thinking": "keep",
        "chat.date": "2026-01-31",
        "tracking.conversations": 2,
    },
}


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a config that is no section, by its dotted name."""
    for key, field in model.model_fields.items():
        if not prefix and key in NOT_SETTINGS:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings(kind, f"{prefix}{key}.")
        else:
            yield prefix + key


def config_of(stage: str, changes: dict[str, Any]) -> GrpoConfig | SftConfig:
    values: dict[str, Any] = {}
    for name, value in {**flatten(START[stage]), **changes}.items():
        put(values, name, value)
    return build(KINDS[stage], values)


def pair(stage: str, name: str, change: Any) -> tuple[GrpoConfig | SftConfig, GrpoConfig | SftConfig]:
    """The config before and after the change."""
    given, value = change if isinstance(change, tuple) else ({}, change)
    return config_of(stage, given), config_of(stage, {**given, name: value})


def rows(table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(stage, name) for stage, changes in table.items() for name in changes]


@pytest.mark.parametrize("stage", KINDS)
def test_every_setting_is_in_the_table(stage: str) -> None:
    assert {*ARGV[stage], *HANDED[stage], *REFUSED[stage]} == set(settings(KINDS[stage]))


def read_by_slime(config: GrpoConfig | SftConfig) -> tuple[list[str], dict[str, Any]]:
    """The command line, and the keys that slime's own code looks for on `args`."""
    return build_argv(config, RUN), {key: value for key, value in custom_config(config, RUN).items() if key != "tau2rl"}


@pytest.mark.parametrize(("stage", "name"), rows(ARGV))
def test_a_setting_of_the_trainer_changes_the_command(stage: str, name: str) -> None:
    before, after = pair(stage, name, ARGV[stage][name])
    reached = [
        (build_argv(config, RUN), {k: v for k, v in custom_config(config, RUN).items() if k != "tau2rl"})
        for config in (before, after)
    ]
    assert reached[0] != reached[1]


@pytest.mark.parametrize(("stage", "name"), rows(HANDED))
def test_any_other_setting_is_handed_over(stage: str, name: str) -> None:
    before, after = pair(stage, name, HANDED[stage][name])
    assert build_argv(after, RUN)  # accepted
    handed = [flatten(custom_config(config, RUN)["tau2rl"]["config"]).get(name) for config in (before, after)]
    assert handed[0] != handed[1]


@pytest.mark.parametrize(("stage", "name"), rows(REFUSED))
def test_what_slime_cannot_honor_is_refused(stage: str, name: str) -> None:
    with pytest.raises(UserError):
        build_argv(config_of(stage, {name: REFUSED[stage][name]}), RUN)


def test_validation_has_its_own_temperature_on_both_backends() -> None:
    asked, unasked = config_of("grpo", {"val.temperature": 0.25}), config_of("grpo", {})
    assert isinstance(asked, GrpoConfig) and isinstance(unasked, GrpoConfig)
    argv = build_argv(asked, RUN)
    assert argv[argv.index("--eval-temperature") + 1] == "0.25" and argv[argv.index("--rollout-temperature") + 1] == "1.0"
    assert "--eval-temperature" not in build_argv(unasked, RUN)  # slime then takes that of the rollouts
    policy = LocalPolicy(tiny_model(), unasked.sampling)
    assert validation_policy(policy, unasked) is policy
    assert validation_policy(policy, asked).sampling.temperature == 0.25
    assert policy.sampling.temperature == 1.0


@pytest.mark.parametrize(("longest", "context"), [(262144, "9256"), (9000, "9000")])
def test_engines_hold_no_more_than_is_played(longest: int, context: str) -> None:
    run = SlimeRun(folder=Path("/run"), shape=replace(SHAPE, longest=longest))
    argv = build_argv(config_of("grpo", {"limits.context_tokens": 9000}), run)
    assert argv[argv.index("--sglang-context-length") + 1] == context


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algo.loss_aggregation": "constant", "algo.kl_coef": 0.1}, "divides the policy term alone, not KL and entropy"),
        ({"algo.loss_aggregation": "constant", "slime.context_parallel": 2}, "needs slime.context_parallel 1"),
        ({"train.num_minibatches": 3}, "128 episodes of a rollout batch cannot be cut into 3"),
        ({"slime.user.gpus": 1, "slime.user.checkpoint": "/u", "user.api_base": "http://u/v1"}, "it is somewhere else"),
        ({"slime.extra": {"lr": 1e-5}}, "made from the other settings"),
        ({"slime.extra": {"partial-rollout": True}}, "cannot go on in a fresh environment"),
        ({"slime.extra": {"rollout-stop": ["</tool_call>"]}}, "our chat codec makes the tokens, and says where a turn ends"),
        ({"slime.extra": {"custom-rm-path": "a.b"}}, "graded one by one, by tau2"),
        ({"slime.extra": {"reward-key": "score"}}, "scored by `reward`"),
        ({"slime.extra": {"eval_config": "/eval.yaml"}}, "`val` says which tasks validation has"),
        ({"slime.extra": {"start-rollout-id": 0}}, "behind its own last save"),
        ({"slime.extra": {"rollout-function-path": "a.b"}}, "slime's own rollout plays our episodes"),
        ({"slime.extra": {"kl-coef": 0.1}}, "no estimator of ours reads a KL penalty on rewards"),
        ({"slime.extra": {"use-kl-loss": True}}, "`algo` says what the loss is"),
        ({"slime.extra": {"use_tis": True}, "algo.correction": "none"}, "`algo.correction` says"),
        ({"slime.extra": {"use-routing-replay": True}}, "does not ask engines for routed experts"),
        ({"slime.extra": {"use-rollout-routing-replay": True}}, "does not ask engines for routed experts"),
        ({"slime.extra": {"debug-rollout-only": True}}, "would play and train nothing"),
        ({"slime.extra": {"load-debug-rollout-data": "/d"}}, "would play and train nothing"),
        ({"slime.extra": {"eval-max-context-len": 9000}}, "`limits.context_tokens` is the longest conversation"),
        ({"slime.extra": {"megatron-config-path": "/m.yaml"}}, "behind those of `train` and `algo`"),
        ({"slime.extra": {"log-multiturn": True}}, "no option `--log-multiturn`"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], says: str) -> None:
    values: dict[str, Any] = {}
    for name, value in {**flatten(START["grpo"]), **changes}.items():
        put(values, name, value)
    with pytest.raises(UserError, match=says):
        build_argv(build(GrpoConfig, values), RUN)


@pytest.mark.parametrize("policy", ["manual", "consistent_hashing", "round_robin"])
def test_the_router_may_be_told_its_policy(policy: str) -> None:
    argv = build_argv(config_of("grpo", {"slime.extra.router-policy": policy, "slime.extra.over-sampling-batch-size": 32}), RUN)
    assert argv[argv.index("--router-policy") + 1] == policy


def test_a_conversation_stays_on_its_engine_where_only_the_policy_has_several() -> None:
    served = {"slime.user.checkpoint": "/u", "user.kind": "llm"}
    routed = [
        ("--router-policy" in build_argv(config_of("grpo", changes), RUN))
        for changes in ({}, {"slime.policy_gpus": 1}, {**served, "slime.user.gpus": 1}, {**served, "slime.user.gpus": 2})
    ]
    assert routed == [True, False, True, False]


def test_extra_options_are_added_replaced_and_taken_away() -> None:
    extra = {
        "attention_backend": "fused",
        "--balance-data": False,
        "log-multi-turn": True,
        "train-env-vars": {"A": "1"},
        "lr-warmup-init": 0,
    }
    values: dict[str, Any] = {}
    for name, value in {**flatten(START["grpo"]), "slime.extra": extra}.items():
        put(values, name, value)
    argv = build_argv(build(GrpoConfig, values), RUN)
    assert argv[argv.index("--attention-backend") + 1] == "fused"
    assert "--balance-data" not in argv
    assert "--log-multi-turn" in argv
    assert argv[argv.index("--train-env-vars") + 1] == '{"A": "1"}'
    assert argv[argv.index("--lr-warmup-init") + 1] == "0"
