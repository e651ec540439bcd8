"""What may change when a run is resumed: what cannot change its result, and what extends it. The one table of that.

Every setting of every stage is either part of a run's identity, so that another value makes another run, or free. A test holds
that none is in neither list. A change of a free setting is written into `environment.json` (`changes`), but for those that only
say where and how a session is started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.config import StageConfig, dump, flatten
from tau2rl.errors import UserError

# A name stands for a setting, or for a section and all that is below it; the longest name that fits counts.
STARTED = {
    "name": "names the folder",
    "output": "names the folder",
    "resume": "is this question itself",
    "launch": "where the job runs, not what it computes",
}
FREE = {
    "tasks.source": "where the file of tasks is; its hash is part of the identity",
    "val.source": "where the file of tasks is; its hash is part of the identity",
    "algo.curriculum.profile": "where the profile is; its digest is part of the identity",
    "policy.url": "a server that moved gives the same answers",
    "policy.api_base": "a server that moved gives the same answers",
    "policy.api_key_env": "names a key, and no answer depends on it",
    "policy.timeout_seconds": "a call that takes longer is FAILED, which is no evidence",
    "policy.retries": "a call that fails in the end is FAILED, which is no evidence",
    "user.api_base": "a server that moved gives the same answers",
    "user.api_key_env": "names a key, and no answer depends on it",
    "user.timeout_seconds": "a call that takes longer is FAILED, which is no evidence",
    "user.retries": "a call that fails in the end is FAILED, which is no evidence",
    "rollout.concurrency": "how many episodes are in flight; each has its own seed",
    "rollout.adaptive": "how many episodes are in flight; each has its own seed",
    "rollout.workers": "which process runs an episode; each has its own seed",
    "rollout.worker_memory_gb": "which process runs an episode; each has its own seed",
    "rollout.retries": "an episode that fails in the end is FAILED, which is no evidence",
    "rollout.give_up_after": "when the run stops, not what it has",
    "rollout.keep": "what is written down of the episodes, not what is learned from them",
    "local.device": "the same sums, rounded otherwise",
    "local.threads": "the same sums, rounded otherwise",
    "local.kv_cache_slots": "what is computed again, with the same result",
    "local.max_tokens_per_microbatch": "how a step is cut into passes; its loss is a sum over all of them",
    "local.gradient_checkpointing": "what is computed again, with the same result",
    "train.save_every": "from where an interrupted run goes on, not where it leads",
    "train.export_every": "which checkpoints are kept, not what they are",
    "budget": "when the run stops, and what is said of its price",
    "monitors": "when a training warns or stops, not what it learns",
    "card": "what the result is set beside, not what it is",
    "compare": "what is read off the evaluations, not what they are",
    "tracking": "where curves go beside `metrics.jsonl`",
    "slime.root": "where slime is; its commit is recorded",
    "slime.megatron": "where Megatron is",
    "slime.layout": "which GPU does what; a step waits for all of them",
    "slime.train_nodes": "how many machines share a step; its loss is a sum over all of them",
    "slime.train_gpus": "how many GPUs share a step; its loss is a sum over all of them",
    "slime.policy_gpus": "how many GPUs sample",
    "slime.gpus_per_engine": "how many GPUs share an engine: the same sums, rounded otherwise",
    "slime.gpus_per_node": "what the machines are like",
    "slime.tensor_parallel": "the same sums, rounded otherwise",
    "slime.pipeline_parallel": "the same sums, rounded otherwise",
    "slime.context_parallel": "the same sums, rounded otherwise",
    "slime.max_tokens_per_gpu": "how a step is cut into passes; its loss is a sum over all of them",
    "slime.log_probs_chunk": "how much is computed at once",
    "slime.recompute": "what is computed again, with the same result",
    "slime.mem_fraction": "memory for keys and values: what is computed again, with the same result",
    "slime.user.gpus_per_engine": "how many GPUs share an engine: the same sums, rounded otherwise",
    "slime.user.mem_fraction": "memory for keys and values: what is computed again, with the same result",
    "slime.user.name": "what the job calls the user simulator's model",
    "slime.saves": "which saved states are kept",
    "slime.fault_tolerance": "whether a dead engine is started again",
    "slime.health_seconds": "when an engine counts as dead",
    "slime.circuit_breaker_seconds": "when the job gives up, not what it has",
    "slime.dump": "what is written down of a round",
}
IDENTITY = {
    "stage": "what the run is",
    "plugins": "what domains, policies and rewards there are",
    "seed": "every attempt and every shuffle is drawn from it",
    "balance": "which conversations become rows",
    "backend": "another trainer",
    "tasks": "what is measured or learned from",
    "allow_held_out": "what is learned from",
    "user.kind": "who the user simulator is",
    "user.model": "who the user simulator is",
    "user.temperature": "how the user simulator samples",
    "user.omit": "how the user simulator samples",
    "user.max_stalled_turns": "when the scripted user hangs up",
    "chat": "what the model reads and writes",
    "limits": "where a conversation is cut",
    "rollout.num_samples": "how many attempts a task has",
    "repetitions": "how many attempts a task has",
    "rollout.greedy": "how many attempts a task has",
    "reward": "what is learned from",
    "policy.kind": "who the agent is",
    "policy.checkpoint": "who the agent is",
    "policy.model": "who the agent is",
    "policy.sampling": "how the agent samples",
    "policy.omit": "how the agent samples",
    "policy.options": "who the agent is",
    "sampling": "how the agent samples",
    "model": "what training starts from",
    "data": "what is learned from",
    "keep": "which attempts become data",
    "noise_prob": "what is demonstrated",
    "sources": "which attempts become data",
    "val": "validations of a run are compared with one another",
    "algo": "what is learned",
    "train.steps": "how long it learns, and where the learning rate ends",
    "train.lr": "how it learns",
    "train.warmup_steps": "how it learns",
    "train.schedule": "how it learns",
    "train.min_lr_ratio": "how it learns",
    "train.betas": "how it learns",
    "train.weight_decay": "how it learns",
    "train.max_grad_norm": "how it learns",
    "train.batch_size": "what a step learns from",
    "train.tasks_per_step": "what a step learns from",
    "train.num_minibatches": "how often a step moves the weights",
    "train.val_every": "when a training may stop early",
    "train.early_stopping_patience": "when a training stops early",
    "local.dtype": "how exactly the model is computed",
    "local.lora": "which weights there are to learn",
    "local.shape": "what the model is",
    "slime.user": "who the user simulator is",
    "slime.overlap": "how old the policy is that samples",
    "slime.loss_mask": "which tokens are learned",
    "slime.extra": "nobody can say what an option of slime's changes",
    "steps": "what the pipeline is; below `settings` the rules of the step's own settings hold",
    "evaluation": "what the pipeline is; below `settings` the rules of the evaluation's own settings hold",
    "limit": "what the pipeline is",
}

Settings = Mapping[str, Any]  # dotted name -> value, of one stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """When a setting that is part of the identity may change all the same: `Condition(holds=..., reason="...")`."""

    holds: Callable[[Settings, Settings], bool]  # (before, after)
    reason: str


def _extends(before: Settings, after: Settings) -> bool:
    old, new = before.get("train.steps"), after.get("train.steps")
    return isinstance(old, int) and isinstance(new, int) and new > old


def _nothing_stops_early(before: Settings, after: Settings) -> bool:
    return not before.get("train.early_stopping_patience") and not after.get("train.early_stopping_patience")


def _still_served(before: Settings, after: Settings) -> bool:
    return bool(before.get("slime.user.gpus")) and bool(after.get("slime.user.gpus"))


CONDITIONS = {
    "train.steps": Condition(holds=_extends, reason="a training can be extended, not shortened"),
    "train.val_every": Condition(holds=_nothing_stops_early, reason="`train.early_stopping_patience` counts validations"),
    "slime.user.gpus": Condition(holds=_still_served, reason="0 or not decides who the user simulator is"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that a resumed run changes: `Change(setting="local.threads", before=1, after=2)`."""

    setting: str
    before: Any
    after: Any


def is_identity(name: str) -> bool:
    """Whether a setting is part of what a run is, and so of its digest.

    >>> is_identity("train.lr"), is_identity("train.save_every"), is_identity("steps.sft.settings.train.save_every")
    (True, False, False)
    """
    rule = _rule(_of_its_stage(name)[1])
    return rule not in FREE and rule not in STARTED


def is_recorded(name: str) -> bool:
    """Whether a setting is written down although it is not part of what a run is."""
    return _rule(_of_its_stage(name)[1]) in FREE


def allowed_changes(before: StageConfig, after: StageConfig, run: Path) -> list[Change]:
    """What a resumed run changes and may change. Raises UserError that names every other difference with both values."""
    old, new = flatten(dump(before)), flatten(dump(after))
    changes = [
        Change(setting=name, before=old.get(name), after=new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    refused = [change for change in changes if is_identity(change.setting) and not _is_allowed(change.setting, old, new)]
    refuse_changes([(c.setting, c.before, c.after) for c in refused], run, "its settings are not the same")
    return [change for change in changes if is_identity(change.setting) or is_recorded(change.setting)]


def refuse_changes(found: list[tuple[str, Any, Any]], run: Path, why: str) -> None:
    """Raise UserError that names what differs, with both values; nothing where nothing does."""
    if not found:
        return
    lines = "\n".join(f"  {name}: was {_words(before)}, now {_words(after)}{_because(name)}" for name, before, after in found)
    raise UserError(
        f"cannot resume `{run}`: {why}\n{lines}", hint="leave them as they were, or choose another `--name` or `--output`"
    )


def _because(name: str) -> str:
    condition = CONDITIONS.get(_of_its_stage(name)[1])
    return f" ({condition.reason})" if condition else ""


def _is_allowed(name: str, before: Settings, after: Settings) -> bool:
    prefix, own = _of_its_stage(name)
    condition = CONDITIONS.get(own)
    return condition is not None and condition.holds(_below(before, prefix), _below(after, prefix))


def _rule(name: str) -> str | None:
    """The longest name in the table that fits; None where there is none."""
    parts = name.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((each for each in names if each in STARTED or each in FREE or each in IDENTITY), None)


def _of_its_stage(name: str) -> tuple[str, str]:
    """A pipeline's setting of a step as (what stands before it, the setting of the step's own stage).

    >>> _of_its_stage("steps.sft.settings.train.lr"), _of_its_stage("train.lr")
    (('steps.sft.settings.', 'train.lr'), ('', 'train.lr'))
    """
    if name.startswith(("steps.", "evaluation.")):
        before, found, own = name.partition(".settings.")
        if found:
            return before + found, own
    return "", name


def _below(settings: Settings, prefix: str) -> Settings:
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}


def _words(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
