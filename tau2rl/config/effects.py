"""Which settings have no effect under which others: the whole table, and the refusal of one that a person set all the same.

What a setting does *not* do stands here and nowhere else. A setting counts as set where it is given and differs from its default,
so a stored config, in which every setting is written out, loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from pydantic import BaseModel

from tau2rl.config.base import arms_of, every_setting, leaves, value_of, words_of
from tau2rl.config.kinds import POLICIES, SCRIPTED, SERVED, TRAJECTORY_ESTIMATORS
from tau2rl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """Any value but nothing: not None, False, 0 or empty."""

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return bool(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Any value but these, and but one of a plug-in (`pkg.mod:Name`), of which nobody knows what it reads."""

    than: tuple[Any, ...]
    plugins: bool = True

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return value not in self.than and not (self.plugins and isinstance(value, str) and ":" in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class With:
    """A list that has this among others."""

    one: str

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return self.one in value


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Text that does not begin so."""

    start: str

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return not str(value).startswith(self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """Anything but a plug-in (`pkg.mod:Name`)."""

    def holds(self, value: Any) -> bool:
        """Whether a value is one."""
        return ":" not in str(value)


Values = tuple[Any, ...] | Set | Other | With | Apart | BuiltIn
SET = Set()
UNSET: tuple[Any, ...] = (None, False, 0, (), "")


@dataclass(frozen=True, slots=True)
class Idle:
    """`setting`, or all that is below it, does nothing while every setting of `under` has one of the values beside it.

    `Idle("train.min_lr_ratio", {"train.schedule": ("constant",)})`. An empty `under` with a stage: never an effect there.
    """

    setting: str
    under: Mapping[str, Values]
    why: str = ""  # where the names do not say it
    stages: tuple[str, ...] = ()  # where it holds; () = wherever all these settings are

    def concerns(self, model: type[BaseModel]) -> bool:
        """Whether a stage has all the settings."""
        if self.stages and ("stage" not in model.model_fields or model.model_fields["stage"].default not in self.stages):
            return False
        names = [setting.name for setting in every_setting(model)]
        return bool(self.below(names)) and all(gate in names for gate in self.under)

    def below(self, names: list[str]) -> list[str]:
        """Those of the names that it speaks of: the setting, and what is below it and not in `under`."""
        return [
            name for name in names if name == self.setting or (name.startswith(f"{self.setting}.") and name not in self.under)
        ]

    def holds(self, config: BaseModel) -> bool:
        """Whether the settings of `under` are so."""
        return all(matches(value_of(config, gate), values) for gate, values in self.under.items())


def matches(value: Any, values: Values) -> bool:
    """Whether a value is among these; `0` and `False` are two values, `0` and `0.0` one.

    >>> matches(0, (False,)), matches("tis", Other(than=("none",))), matches("pkg:Mine", Other(than=("api",)))
    (False, True, False)
    """
    if isinstance(values, tuple):
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)
    return values.holds(value)


NOT_SERVED = Other(than=SERVED)
OF_ENGINES = ("layout", "policy_gpus", "gpus_per_engine", "mem_fraction", "overlap", "user")
OF_ROLLOUTS = ("fault_tolerance", "health_seconds", "circuit_breaker_seconds")

IDLE: tuple[Idle, ...] = (
    # launch
    Idle("launch.address", {"launch.inline": (True,)}),
    Idle("launch.detach", {"launch.inline": (True,)}),
    # who plays the agent
    *(Idle(f"policy.{key}", {"policy.kind": Other(than=(kind,))}) for kind, traits in POLICIES.items() for key in traits.reads),
    Idle("policy.options", {"policy.kind": BuiltIn()}, "they are for a policy of your own"),
    Idle("policy.sampling", {"policy.kind": SCRIPTED}),
    *(Idle(f"policy.sampling.{key}", {"policy.sampling.temperature": (0,)}, "it is greedy") for key in ("top_p", "top_k")),
    *(Idle(f"policy.{key}", {"policy.kind": NOT_SERVED}, "no server is asked") for key in ("timeout_seconds", "retries")),
    Idle("local", {"policy.kind": Other(than=("local",))}),
    Idle("rollout.adaptive", {"policy.kind": NOT_SERVED}, "it follows a server"),
    # who plays the user
    *(
        Idle(f"user.{key}", {"user.kind": ("scripted",)})
        for key in ("model", "api_base", "api_key_env", "temperature", "omit", "timeout_seconds", "retries")
    ),
    Idle("user.max_stalled_turns", {"user.kind": ("llm",)}),
    Idle("card", {"policy.kind": SCRIPTED}, "it is no model"),
    # what may be spent
    Idle("budget.policy_price", {"policy.kind": SCRIPTED}, "no model is asked"),
    Idle("budget.user_price", {"user.kind": ("scripted",)}, "no model is asked"),
    Idle("budget.max_tokens", {"policy.kind": SCRIPTED, "user.kind": ("scripted",)}, "no model is asked"),
    *(
        Idle(f"budget.{key}", {"backend": Other(than=("local",), plugins=False)}, "nothing stops such a training at a cap")
        for key in ("max_usd", "max_tokens", "max_hours")
    ),
    # how messages become tokens
    *(Idle(f"chat.{key}", {"chat.protocol": Other(than=("cookbook",))}) for key in ("policy_text", "cookbook_prompt")),
    Idle("chat.options", {"chat.protocol": BuiltIn()}, "they are for a codec of your own"),
    Idle("chat.tokenizer", {"chat.protocol": ("transcript",)}),
    *(Idle(f"chat.{key}", {"chat.protocol": ("transcript",)}) for key in ("thinking", "date")),
    Idle("chat.thinking_tokens", {"chat.thinking": ("off",)}),
    # episodes and scores
    Idle("rollout.worker_memory_gb", {"rollout.workers": UNSET}),
    Idle("reward.normalise", {"reward.alpha": (0,)}),
    Idle("reward.normalise", {"reward.preset": ("outcome", "guarded"), "reward.alpha": (None,)}, "it weighs no partial score"),
    Idle("reward.recipe", {}, "it is for training by turns", ("eval", "seed", "rft-filter")),
    Idle("reward.recipe", {"algo.estimator": TRAJECTORY_ESTIMATORS}),
    # synth
    *(Idle(key, {"domain": ("telecom",)}, "its grid is problems, intents, personas") for key in ("writes", "burdens")),
    *(Idle(key, {"domain": Other(than=("telecom",))}) for key in ("problems", "intents", "personas")),
    *(
        Idle(f"writer.{key}", {"writer.kind": ("templates",)}, "no model is asked")
        for key in (
            "model",
            "api_base",
            "api_key_env",
            "temperature",
            "attempts",
            "timeout_seconds",
            "retries",
            "concurrency",
            "cache",
        )
    ),
    # seed
    Idle("noise_prob", {"policy.kind": Other(than=("gold",), plugins=False)}, "it is the gold teacher's"),
    Idle("noise_prob", {"tasks.split": Apart(start="synth-")}, "it is the gold teacher's, on synthesized tasks"),
    # rft-filter of runs that were played already
    *(
        Idle(key, {"sources": SET}, "nothing is sampled")
        for key in ("tasks", "policy", "user", "chat", "rollout", "local", "budget")
    ),
    *(
        Idle(f"limits.{key}", {"sources": SET}, "nothing is sampled")
        for key in (
            *("max_steps", "context_tokens", "repairs"),
            *("step_timeout_seconds", "grade_timeout_seconds", "episode_timeout_seconds"),
        )
    ),
    Idle("keep.partial_backoff", {"keep.attempts": ("all",)}, "failures are kept anyway"),
    Idle("keep.form", {"keep.attempts": Other(than=("solved+form",))}),
    Idle("balance.form", {"keep": Other(than=("solved+form",))}),
    # the policy gradient
    Idle("algo.gamma", {"algo.estimator": (*TRAJECTORY_ESTIMATORS, "mt_grpo")}),
    Idle("algo.outcome_weight", {"algo.estimator": Other(than=("mt_gtpo",))}),
    Idle("algo.turn_rewards", {"algo.estimator": TRAJECTORY_ESTIMATORS}),
    Idle("algo.turn_rewards", {"reward.recipe": SET}),
    *(
        Idle(f"algo.{key}", {"train.num_minibatches": (1,)}, "the ratio is 1 in the only update on a batch")
        for key in ("eps_low", "eps_high", "dual_clip")
    ),
    Idle("algo.loss_scale", {"algo.loss_aggregation": Other(than=("constant",))}),
    Idle("algo.kl", {"algo.kl_coef": (0,)}),
    *(
        Idle(f"algo.{key}", {"algo.correction": ("none",)})
        for key in ("correction_level", "correction_low", "correction_high", "veto")
    ),
    Idle("algo.correction_low", {"algo.correction": ("tis",)}),
    *(Idle(f"algo.curriculum.{key}", {"algo.curriculum.enabled": (False,)}) for key in ("floor", "decay", "profile")),
    Idle("val", {"train.val_every": UNSET}, stages=("grpo",)),
    Idle("monitors", {"monitors.action": ("off",)}),
    Idle("monitors.action", {"backend": ("slime",), "monitors.action": ("stop",)}, "an alarm warns there and marks the curve"),
    Idle("monitors.entropy_left", {"backend": ("slime",)}, "slime's trainer has its entropy, and its rollouts have the monitors"),
    Idle("rollout.adaptive", {}, "a training step has a fixed number of episodes", ("grpo",)),
    Idle("rollout.workers", {"backend": ("local",)}, "it plays in the process that samples"),
    # the training
    Idle("train.min_lr_ratio", {"train.schedule": ("constant",)}),
    Idle("train.val_every", {"data.val_fraction": UNSET}, "no row is held out"),
    Idle("train.early_stopping_patience", {"data.val_fraction": UNSET}, "no row is held out"),
    *(
        Idle(key, {"backend": ("slime",)}, "slime computes no validation loss", ("sft",))
        for key in ("train.val_every", "train.early_stopping_patience")
    ),
    *(
        Idle(key, {"backend": ("slime",)}, "slime's supervised rollout writes the rows by itself", ("sft",))
        for key in ("chat.thinking", "chat.date")
    ),
    Idle("data.allow_empty", {"backend": ("slime",)}, "smoke runs are for the local backend"),
    Idle("tracking.project", {"tracking.wandb": ("off",), "tracking.trackers": ((), ("tensorboard",))}),
    Idle("tracking.conversations", {"tracking.wandb": ("off",), "tracking.trackers": ((),), "tracking.sinks": ((),)}),
    Idle(
        "tracking.conversations",
        {"backend": ("slime",), "tracking.trackers": ((),), "tracking.sinks": ((),)},
        "slime has a W&B run of its own, for numbers",
    ),
    Idle("tracking.conversations", {}, "no conversation is played", ("sft",)),
    # the local backend
    Idle("local", {"backend": ("slime",)}),
    *(Idle(f"local.lora.{key}", {"local.lora.rank": UNSET}) for key in ("alpha", "dropout", "targets")),
    Idle("local.shape", {"model.init": Other(than=("tiny",), plugins=False)}),
    Idle("local.kv_cache_slots", {}, "supervised training samples nothing", ("sft",)),
    # the slime backend
    Idle("slime", {"backend": ("local",)}),
    *(
        Idle(f"slime.user.{key}", {"slime.user.gpus": UNSET})
        for key in ("gpus_per_engine", "checkpoint", "name", "mem_fraction", "context_tokens", "tool_parser")
    ),
    *(Idle(f"user.{key}", {"slime.user.gpus": SET}, "the job serves the user's model") for key in ("model", "api_key_env")),
    Idle("slime.policy_gpus", {"slime.layout": ("colocate",)}, "the GPUs that train serve the policy"),
    Idle("slime.health_seconds", {"slime.fault_tolerance": (False,)}),
    *(Idle(f"slime.{key}", {}, "supervised training has no rollouts", ("sft",)) for key in (*OF_ENGINES, *OF_ROLLOUTS)),
    Idle("slime.loss_mask", {}, "episodes have masks of their own", ("grpo",)),
)


def refuse_idle(config: BaseModel, given: Mapping[str, Any]) -> None:
    """Raise UserError for every setting that was given, has another value than its default, and does nothing."""
    model = type(config)
    names = {setting.name: setting.default for setting in every_setting(model)}
    away = [name for name in _asked(given, names) if not _same(value_of(config, name), names[name])]
    found: dict[str, Idle] = {}
    for rule in _rules(model):
        if rule.holds(config):
            found |= {name: rule for name in rule.below(away) if name not in found}
    if found:
        lines = [f"{name} has no effect{_while(rule, config)}" for name, rule in found.items()]
        ways: dict[str, list[str]] = {}  # settings that one change would give an effect stand together
        for name, rule in found.items():
            ways.setdefault(_way_out(rule, model), []).append(name)
        raise UserError("\n".join(lines), hint="\n".join(f"leave out {', '.join(names)}{way}" for way, names in ways.items()))


@cache
def _rules(model: type[BaseModel]) -> tuple[Idle, ...]:
    return tuple(rule for rule in IDLE if rule.concerns(model))


def _asked(given: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """The settings that nested values name; those below a mapping that is itself a value count as that setting."""
    said = [name for name, _ in leaves(given)]
    return [name for name in names if any(one == name or one.startswith(f"{name}.") for one in said)]


def _same(value: Any, default: Any) -> bool:
    return matches(value, (default,))


def _while(rule: Idle, config: BaseModel) -> str:
    """Under which settings, with the values that they have, and why."""
    under = " and ".join(f"{gate} is {_word(value_of(config, gate))}" for gate in rule.under)
    return (f" while {under}" if under else "") + (f": {rule.why}" if rule.why else "")


def _way_out(rule: Idle, model: type[BaseModel]) -> str:
    """What to change for the setting to mean something, behind "leave it out"."""
    for gate, values in rule.under.items():
        setting = next(setting for setting in every_setting(model) if setting.name == gate)
        words = [word for word in words_of(setting.type) if not matches(word, values)]
        if words:
            return f", or set {gate} to {' or '.join(f'`{word}`' for word in words)}"
        if isinstance(values, BuiltIn):
            return f", or set {gate} to `package.module:Name`"
        if isinstance(values, Set):
            return f", or {gate}"
        if isinstance(values, Apart):
            return f", or set {gate} to one that begins with `{values.start}`"
        if bool in arms_of(setting.type):
            return f", or set {gate} to `{_word(not matches(True, values))}`"
        return f", or set {gate}"
    return ""


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, cast('tuple[Any, ...]', value)))}]"
    return "not set" if value is None else f"`{value}`" if isinstance(value, str) else f"{value}"
