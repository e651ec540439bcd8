"""A setting that does nothing under the others is refused; pinned here:

- each line of the table by an example: refused where it is idle, with the settings that make it so, accepted where it is not;
- over all pairs of a stage's settings: what is refused is what the table says, it is named, and the way out that is told works;
- a default counts as not set, so that a config in which everything is written out loads, and a stored one always does;
- every setting of every stage is in one list: it has a line in the table, it asks for a package that is looked for before a run
  (tests/unit/cli/test_checks.py), or it always acts, and then something outside `config/` reads it;
- a plug-in may read any setting, so none is refused beside one;
- KL as a loss takes an estimate that has a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tau2rl
from tau2rl.config import (
    STAGES,
    EvalConfig,
    Setting,
    StageConfig,
    SynthConfig,
    build,
    dump,
    every_setting,
    load_config,
    put,
    words_of,
)
from tau2rl.config.base import arms_of, items_of, value_of, values_of
from tau2rl.config.effects import IDLE, Idle, refuse_idle
from tau2rl.config.extras import PARTS
from tau2rl.errors import UserError

EVAL = ["chat.tokenizer=bytes"]
API = ["policy.kind=api", "policy.model=m", "chat.protocol=transcript"]
LOCAL = ["policy.kind=local", "policy.checkpoint=c"]
GOLD = ["policy.kind=gold"]
GRPO = ["model.init=start"]
SLIME = [*GRPO, "backend=slime"]
TURNS = [*GRPO, "algo.estimator=gtpo"]
SFT_SLIME = ["model.init=start", "backend=slime", "data.val_fraction=0"]

# stage, what is set, where it does nothing, where it does something.
EXAMPLES: list[tuple[str, str, list[str], list[str]]] = [
    ("eval", "launch.address=http://h:1", [*EVAL, "launch.inline=true"], EVAL),
    ("eval", "launch.detach=true", [*EVAL, "launch.inline=true"], EVAL),
    ("eval", "policy.url=http://h:2", GOLD, EVAL),
    ("eval", "policy.url=http://h:2", API, EVAL),
    ("eval", "policy.model=other", EVAL, API),
    ("eval", "policy.api_base=http://h/v1", EVAL, API),
    ("eval", "policy.api_key_env=KEY", LOCAL, API),
    ("eval", "policy.omit=[seed]", EVAL, API),
    ("eval", "policy.options={size: 3}", EVAL, ["policy.kind=my_pkg.mod:MyPolicy", "chat.protocol=transcript"]),
    ("eval", "chat.options={size: 3}", EVAL, [*EVAL, "chat.protocol=my_pkg.mod:MyCodec"]),
    ("eval", "policy.checkpoint=c", [*EVAL], ["policy.kind=local"]),
    ("eval", "policy.sampling.temperature=0.1", GOLD, LOCAL),
    ("eval", "policy.sampling.top_p=0.9", [*EVAL, "policy.sampling.temperature=0"], EVAL),
    ("eval", "policy.sampling.top_k=5", [*EVAL, "policy.sampling.temperature=0"], EVAL),
    ("eval", "policy.timeout_seconds=5", LOCAL, API),
    ("eval", "policy.retries=1", GOLD, EVAL),
    ("eval", "local.device=cuda", EVAL, LOCAL),
    ("eval", "rollout.adaptive=true", GOLD, EVAL),
    ("eval", "user.model=m", [*EVAL, "user.kind=scripted"], EVAL),
    ("eval", "user.temperature=0.1", [*EVAL, "user.kind=scripted"], EVAL),
    ("eval", "user.api_base=http://h/v1", [*EVAL, "user.kind=scripted"], EVAL),
    ("eval", "user.retries=1", [*EVAL, "user.kind=scripted"], EVAL),
    ("eval", "user.max_stalled_turns=9", EVAL, [*EVAL, "user.kind=scripted"]),
    ("eval", "chat.policy_text=compressed", EVAL, [*EVAL, "chat.protocol=cookbook"]),
    ("eval", "chat.cookbook_prompt=p.py", EVAL, [*EVAL, "chat.protocol=cookbook"]),
    ("eval", "chat.tokenizer=bytes", API, []),
    ("eval", "chat.thinking=keep", API, EVAL),
    ("eval", "chat.date=2026-01-31", API, EVAL),
    ("eval", "chat.thinking_tokens=9", EVAL, [*EVAL, "chat.thinking=keep"]),
    ("eval", "rollout.worker_memory_gb=2", EVAL, [*EVAL, "rollout.workers=2"]),
    ("eval", "reward.normalise=false", [*EVAL, "reward.preset=outcome"], EVAL),
    ("eval", "reward.normalise=false", [*EVAL, "reward.alpha=0"], [*EVAL, "reward.preset=outcome", "reward.alpha=0.1"]),
    ("eval", "card=Qwen3-4B", GOLD, EVAL),
    ("eval", "budget.policy_price=[1,2]", GOLD, EVAL),
    ("eval", "budget.user_price=[1,2]", [*EVAL, "user.kind=scripted"], EVAL),
    ("eval", "budget.max_tokens=9", [*GOLD, "user.kind=scripted"], GOLD),
    ("rft-filter", "budget.max_hours=1", ["sources=[a]"], EVAL),
    ("grpo", "budget.max_tokens=9", SLIME, GRPO),
    ("grpo", "budget.max_usd=1", SLIME, [*GRPO, "budget.usd_per_hour=2"]),
    ("sft", "budget.max_hours=1", SFT_SLIME, []),
    ("seed", "noise_prob=0.3", [], ["tasks.domains=[mock]"]),
    ("seed", "noise_prob=0.3", [*API, "tasks.split=synth-train"], ["tasks.split=synth-train"]),
    ("rft-filter", "tasks.limit=3", ["sources=[a]"], EVAL),
    ("rft-filter", "policy.sampling.top_k=3", ["sources=[a]"], EVAL),
    ("rft-filter", "chat.protocol=cookbook", ["sources=[a]"], EVAL),
    ("rft-filter", "limits.max_steps=3", ["sources=[a]"], EVAL),
    ("grpo", "algo.gamma=0.5", GRPO, TURNS),
    ("grpo", "algo.gamma=0.5", [*GRPO, "algo.estimator=mt_grpo"], [*GRPO, "algo.estimator=mt_gtpo"]),
    ("grpo", "algo.outcome_weight=0.5", TURNS, [*GRPO, "algo.estimator=mt_gtpo"]),
    ("grpo", "algo.turn_rewards=dense", GRPO, TURNS),
    ("grpo", "algo.eps_low=0.1", GRPO, [*GRPO, "train.num_minibatches=2"]),
    ("grpo", "algo.eps_high=0.3", GRPO, [*GRPO, "train.num_minibatches=2"]),
    ("grpo", "algo.dual_clip=3", GRPO, [*GRPO, "train.num_minibatches=2"]),
    ("grpo", "algo.loss_scale=99", [*GRPO, "algo.loss_aggregation=seq-mean"], [*GRPO, "algo.loss_aggregation=constant"]),
    ("grpo", "algo.kl=k2", GRPO, [*GRPO, "algo.kl_coef=0.01"]),
    ("grpo", "algo.veto=0.01", GRPO, [*GRPO, "algo.correction=tis"]),
    ("grpo", "algo.correction_level=sequence", GRPO, [*GRPO, "algo.correction=mis"]),
    ("grpo", "algo.correction_high=3", GRPO, [*GRPO, "algo.correction=clip"]),
    ("grpo", "algo.correction_low=0.1", [*GRPO, "algo.correction=tis"], [*GRPO, "algo.correction=mis"]),
    ("grpo", "algo.curriculum.floor=0.2", GRPO, [*GRPO, "algo.curriculum.enabled=true"]),
    ("grpo", "algo.curriculum.profile=p.json", [*GRPO, "algo.curriculum.enabled=false"], GRPO),
    ("grpo", "val.num_samples=4", GRPO, [*GRPO, "train.val_every=5"]),
    ("grpo", "val.split=train-select", GRPO, [*GRPO, "train.val_every=5"]),
    ("grpo", "rollout.workers=2", GRPO, SLIME),
    ("grpo", "train.min_lr_ratio=0.5", [*GRPO, "train.schedule=constant"], GRPO),
    ("grpo", "tracking.project=mine", GRPO, [*GRPO, "tracking.wandb=offline"]),
    ("grpo", "local.lora.alpha=0.5", GRPO, [*GRPO, "local.lora.rank=4"]),
    ("grpo", "local.lora.targets=q_proj", GRPO, [*GRPO, "local.lora.rank=4"]),
    ("grpo", "local.device=cuda", SLIME, GRPO),
    ("grpo", "slime.train_gpus=2", GRPO, SLIME),
    ("grpo", "slime.extra={dump: 1}", GRPO, SLIME),
    ("grpo", "slime.user.checkpoint=c", SLIME, [*SLIME, "slime.user.gpus=1"]),
    ("grpo", "slime.user.tool_parser=llama3", SLIME, [*SLIME, "slime.user.gpus=1", "slime.user.checkpoint=c"]),
    ("grpo", "user.model=m", [*SLIME, "slime.user.gpus=1", "slime.user.checkpoint=c"], SLIME),
    ("grpo", "slime.policy_gpus=4", [*SLIME, "slime.layout=colocate"], SLIME),
    ("grpo", "slime.health_seconds=5", [*SLIME, "slime.fault_tolerance=false"], SLIME),
    ("grpo", "monitors.action=stop", SLIME, GRPO),
    ("sft", "chat.thinking=keep", SFT_SLIME, []),
    ("sft", "chat.date=2026-01-31", SFT_SLIME, []),
    ("grpo", "monitors.window=2", [*GRPO, "monitors.action=off"], GRPO),
    ("grpo", "monitors.entropy_left=0.1", SLIME, GRPO),
    ("synth", "writes=[2]", ["domain=telecom"], []),
    ("synth", "burdens=[10+]", ["domain=telecom"], []),
    ("synth", "problems=[2]", [], ["domain=telecom"]),
    ("synth", "intents=[mms]", [], ["domain=telecom"]),
    ("synth", "personas=[hard]", [], ["domain=telecom"]),
    ("synth", "writer.attempts=2", [], ["writer.kind=llm"]),
    ("rft-filter", "keep.form=[failed_write]", ["sources=[a]"], ["sources=[a]", "keep.attempts=solved+form"]),
    ("seed", "balance.form=[failed_write]", [], ["keep=solved+form"]),
    ("rft-filter", "keep.partial_backoff=0.5", ["sources=[a]", "keep.attempts=all"], ["sources=[a]"]),
    ("sft", "local.shape.layers=2", ["model.init=start"], []),
    ("sft", "train.early_stopping_patience=3", ["data.val_fraction=0"], []),
    ("sft", "train.val_every=3", ["data.val_fraction=0"], []),
    ("sft", "train.val_every=3", SFT_SLIME, []),
    ("sft", "data.allow_empty=true", SFT_SLIME, []),
    ("sft", "slime.layout=colocate", SFT_SLIME, []),
]  # fmt: skip
MODELS: dict[str, Any] = {**STAGES, "synth": SynthConfig}
NEVER = ("sft", "slime.layout=colocate", SFT_SLIME)  # there is no stage of this kind in which it counts


@pytest.mark.parametrize(
    ("stage", "asked", "idle", "active"), EXAMPLES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_setting_without_effect_is_refused(stage: str, asked: str, idle: list[str], active: list[str]) -> None:
    name = asked.partition("=")[0]
    with pytest.raises(UserError, match=f"(?m)^{name} has no effect") as refused:
        load_config(MODELS[stage], None, [*idle, asked])
    assert f"leave out {name}" in refused.value.hint
    load_config(MODELS[stage], None, idle)
    if (stage, asked, idle) != NEVER:
        load_config(MODELS[stage], None, [*active, asked])


def test_every_line_of_the_table_has_an_example() -> None:
    """Of a family of settings in one line of the table, one stands for all."""
    shown = {asked.partition("=")[0] for _, asked, _, _ in EXAMPLES}
    heads = {name.rpartition(".")[0] for name in shown}
    unshown = {rule.setting for rule in IDLE} - shown
    assert [name for name in unshown if name.rpartition(".")[0] not in heads and name not in heads] == []


def away_from(setting: Setting) -> Any:
    """A value of a setting that is not its default."""
    arms, default = arms_of(setting.type), setting.default
    if words_of(setting.type):
        return next(word for word in words_of(setting.type) if word != default)
    if setting.name == "tasks.split":
        return "synth-train"
    if bool in arms:
        return not default
    if items_of(setting.type) is not None:
        return ("x",) if not default or default[0] != 0.9 else (0.5, 0.6)
    if values_of(setting.type) is not None:
        return {"x": 1}
    if int in arms or float in arms:
        return (default or 0) + 1
    return "x"


def values_to_try(setting: Setting) -> list[Any]:
    """What a setting may be when another one is looked at: every word, both switches, nothing and something."""
    words: list[Any] = list(words_of(setting.type))
    if setting.name in ("policy.kind", "chat.protocol"):
        words.append("my_pkg.mod:Mine")
    return words or [setting.default, away_from(setting)]


@cache
def as_defined(model: Any) -> Any:
    """A config of defaults, not validated: pairs that are refused for other reasons are looked at, too."""
    defaults = {key: info.get_default(call_default_factory=True) for key, info in model.model_fields.items()}
    return model.model_construct(**defaults)


def with_values(model: type[StageConfig], values: dict[str, Any]) -> StageConfig:
    config = as_defined(model)
    for name, value in values.items():
        config = replaced(config, name.split("."), value)
    return config


def replaced(section: Any, path: list[str], value: Any) -> Any:
    key, *rest = path
    return section.model_copy(update={key: replaced(getattr(section, key), rest, value) if rest else value})


# What always acts, where no line of the table speaks of it and no package is needed for it: section -> settings.
ACTS = {
    "": "allow_held_out compare keep limit name output plugins repetitions resume seed sources stage steps",
    "algo": "correction entropy_coef estimator exclude_faults kl_coef loss_aggregation max_resample_rounds ratio truncated",
    "algo.curriculum": "enabled",
    "balance": "dedupe per_cell per_user total",
    "budget": "like max_hours max_tokens max_usd policy_price usd_per_hour user_price",
    "data": "files limit max_tokens val_fraction",
    "evaluation": "file settings",
    "keep": "attempts dedupe exclude_faults exclude_no_op per_cell per_domain per_kind per_task per_user total",
    "limits": "context_tokens episode_timeout_seconds grade_timeout_seconds max_steps max_turns repairs step_timeout_seconds",
    "model": "init",
    "reward": "allow_dominated alpha preset step_penalty terms tool_penalty",
    "rollout": "concurrency give_up_after greedy keep num_samples retries",
    "sampling": "max_tokens temperature top_k top_p",
    "tasks": "exclude_quarantined ids limit skip source split",
    "tracking": "sinks",
    "train": "batch_size betas export_every lr max_grad_norm num_minibatches save_every schedule steps "
    "tasks_per_step val_every warmup_steps weight_decay",
}


def always_act() -> set[str]:
    return {f"{section}.{name}".lstrip(".") for section, names in ACTS.items() for name in names.split()}


def in_no_other_list(model: type[StageConfig]) -> set[str]:
    """The settings of a stage of which no line of the table speaks there, and that ask for no package."""
    names = [setting.name for setting in every_setting(model)]
    idle = {name for rule in IDLE if rule.concerns(model) for name in rule.below(names)}
    return set(names) - idle - {name for part in PARTS for name in part.asked_by}


def test_every_setting_acts_or_stands_in_a_table_of_when_it_does_not() -> None:
    # A new setting fails here until somebody has said when it does nothing. A line is no opinion: the other tests carry it out.
    found = {name for model in STAGES.values() for name in in_no_other_list(model)}
    assert found - always_act() == set(), "when do these do nothing? add a line to config/effects.py, or to ACTS above"
    assert always_act() - found == set()


def test_what_always_acts_is_read() -> None:
    package = Path(tau2rl.__file__).parent
    text = "".join(file.read_text("utf-8") for file in package.rglob("*.py") if file.parent.name != "config")
    read = set(re.findall(r"[.\"'](\w+)", text))
    assert [name for name in sorted(always_act()) if name.rpartition(".")[2] not in read] == []


@cache
def rules_of(stage: str) -> list[tuple[Idle, set[str]]]:
    """The lines of the table that concern a stage, each with the settings that it speaks of."""
    names = [setting.name for setting in every_setting(STAGES[stage])]
    return [(rule, set(rule.below(names))) for rule in IDLE if rule.concerns(STAGES[stage])]


def pairs(stage: str) -> Iterator[tuple[Setting, Setting, Any]]:
    settings = [setting for setting in every_setting(STAGES[stage]) if setting.name != "stage"]
    gates = {gate for rule, _ in rules_of(stage) for gate in rule.under}
    for setting in settings:
        for other in settings:
            values = values_to_try(other) if other.name in gates else [away_from(other)]
            for value in values if other is not setting else ():
                yield setting, other, value


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "pipeline"])
def test_over_all_pairs_the_table_and_nothing_else_refuses(stage: str) -> None:
    model, refusals, all_rules = STAGES[stage], 0, list(rules_of(stage))
    for setting, other, value in pairs(stage):
        config = with_values(model, {setting.name: away_from(setting), other.name: value})
        given: dict[str, Any] = {}
        put(given, setting.name, away_from(setting))
        rules = [rule for rule, names in all_rules if setting.name in names and rule.holds(config)]
        try:
            refuse_idle(config, given)
        except UserError as error:
            refusals += 1
            assert rules, (setting.name, other.name, value)
            assert error.message.startswith(f"{setting.name} has no effect")
            assert "\n" not in error.message  # the other one was not set by anybody
            assert all(gate in error.message for gate in rules[0].under)
        else:
            assert not rules, (setting.name, other.name, value)
    assert refusals > 100


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "pipeline"])
def test_a_word_that_the_hint_names_gives_the_setting_an_effect(stage: str) -> None:
    model = STAGES[stage]
    for rule in IDLE:
        if not rule.concerns(model) or not rule.under:
            continue
        settings = {setting.name: setting for setting in every_setting(model)}
        for name in rule.below(list(settings)):
            ways = [{gate: value} for gate in rule.under for value in values_to_try(settings[gate])]
            kept = {name: away_from(settings[name])}
            assert any(not rule.holds(with_values(model, kept | way)) for way in ways), (rule.setting, name)


def test_what_is_written_out_as_it_is_by_default_was_not_set() -> None:
    config = load_config(STAGES["grpo"], None, [*GRPO, "algo.gamma=0.9", "slime.train_gpus=4", "val.limit=50"])
    assert build(type(config), dump(config)) == config


def test_what_ran_once_can_be_read_again() -> None:
    values = {"model": {"init": "start"}, "algo": {"veto": 0.1}}
    with pytest.raises(UserError, match=r"algo\.veto has no effect"):
        build(STAGES["grpo"], values)
    assert value_of(build(STAGES["grpo"], values, stored=True), "algo.veto") == 0.1


def test_every_idle_setting_is_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        load_config(EvalConfig, None, [*GOLD, "policy.model=m", "policy.url=http://h:2", "chat.policy_text=compressed"])
    assert [line.partition(" ")[0] for line in refused.value.message.splitlines()] == [
        "policy.url", "policy.model", "chat.policy_text",
    ]  # fmt: skip


def test_a_plug_in_may_read_any_setting() -> None:
    config = with_values(EvalConfig, {"policy.kind": "my_pkg.mod:MyPolicy", "chat.protocol": "my_pkg.mod:MyCodec"})
    refuse_idle(config, {"policy": {"model": "m", "url": "http://h", "checkpoint": "c"}, "chat": {"policy_text": "compressed"}})


def test_a_kl_loss_has_a_gradient() -> None:
    with pytest.raises(UserError, match="`k1` as a loss has an expected gradient of zero"):
        load_config(STAGES["grpo"], None, [*GRPO, "algo.kl_coef=0.1", "algo.kl=k1"])


def test_a_scale_below_one_stays_a_scale() -> None:
    assert (
        value_of(load_config(STAGES["grpo"], None, [*GRPO, "local.lora.rank=8", "local.lora.alpha=0.5"]), "local.lora.alpha")
        == 0.5
    )
