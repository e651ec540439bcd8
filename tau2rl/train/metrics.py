"""The numbers of a GRPO training: those of one step, a line of `metrics.jsonl` each, and those of the whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tau2rl.data.task_sampling import outcome
from tau2rl.errors import UserError
from tau2rl.rollouts.monitors import ALARM, dominated, habit_metrics, habits_of
from tau2rl.runs.files import DAMAGED, json_lines
from tau2rl.train.group import ScoredGroup
from tau2rl.train.losses import Mismatch
from tau2rl.train.trainer import Update
from tau2rl.types import Status

ENDS = 5  # steps at either end whose mean the report shows


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float | None]:
    """What was played in a step."""
    episodes = [e for group in groups for e in group.episodes]
    evidence = [e for e in episodes if e.status is not Status.FAILED]
    statuses = Counter(e.status for e in episodes)
    waits = [seconds for e in episodes for seconds in e.user_waits]
    return {
        "reward/mean": mean([e.grade.reward for e in evidence if e.grade]),
        "score/mean": mean([s for group in groups for s in group.scores if s is not None]),
        "success": mean([float(outcome(e) or False) for e in evidence]),
        "groups/tried": len(groups),
        "groups/useful": sum(group.has_signal for group in groups),
        "episodes/failed": statuses[Status.FAILED],
        "episodes/excluded": sum(s is None for group in groups for s in group.scores) - statuses[Status.FAILED],
        "episodes/truncated": statuses[Status.TRUNCATED] / max(1, len(evidence)),
        "episodes/malformed": statuses[Status.MALFORMED] / max(1, len(evidence)),
        "turns/mean": mean([float(len(e.turns)) for e in evidence]),
        "tokens/sampled": sum(e.sampled_tokens for e in episodes),
        "tokens/thought": sum(e.thought_tokens for e in episodes),
        "calls/refused": mean([float(e.invalid_calls) for e in evidence]),
        "seconds/user_message": mean(waits),
        "score/dominated": dominated(
            (group.task.key, episode.solved, score)
            for group in groups
            for episode, score in zip(group.episodes, group.scores, strict=True)
            if score is not None
        ),
        **habit_metrics([habits_of(e) for e in evidence]),
    }


def update_metrics(update: Update | None) -> dict[str, float | None]:
    """The trainer's page; None throughout when no group had a signal."""
    names = [each.name for each in fields(Update) if each.name not in ("mismatch", "old_logprobs")]
    apart = None if update is None else asdict(update.mismatch)
    return {f"train/{name}": None if update is None else getattr(update, name) for name in names} | {
        f"mismatch/{each.name}": None if apart is None else apart[each.name] for each in fields(Mismatch)
    }


def speed_metrics(
    metrics: Mapping[str, float | None], update: Update | None, *, rollout: float, train: float
) -> dict[str, float | None]:
    """Seconds of the two halves of a step, and tokens a second in each."""
    sampled = metrics["tokens/sampled"] or 0
    return {
        "seconds/rollout": rollout,
        "seconds/train": train,
        "tokens_per_second/rollout": sampled / rollout if rollout else None,
        "tokens_per_second/train": update.tokens / train if update and train else None,
    }


def metrics_summary(metrics: Path) -> dict[str, Any]:
    """The whole run, however often it was interrupted, from its `metrics.jsonl`. Raises UserError where that is damaged."""
    return _of_lines(metrics, _summary)


def sft_work(metrics: Path) -> dict[str, Any]:
    """Tokens of the steps of all sessions of a supervised training, their speed, and the shares that padding and sharing had.

    Raises UserError where `metrics.jsonl` is damaged.
    """
    return _of_lines(metrics, _sft_work)


def _of_lines(metrics: Path, account: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
    try:
        return account([values for _, values in json_lines(metrics)])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"a line of `{metrics}` is not one of this training: {type(error).__name__}: {error}", hint=DAMAGED
        ) from None


def _sft_work(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tokens, seconds = sum(int(line["tokens"]) for line in lines), sum(float(line["seconds"]) for line in lines)

    def share(name: str) -> float | None:
        return sum(line["tokens"] * line[name] for line in lines) / tokens if tokens else None

    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "padding_share": share("padding_share"),
        "shared_share": share("shared_share"),
    }


def _summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean_of(part: Sequence[dict[str, Any]], name: str) -> float | None:
        return mean([float(line[name]) for line in part if line.get(name) is not None])

    apart = [float(line["mismatch/max_abs"]) for line in lines if line["mismatch/max_abs"] is not None]
    return {
        "steps": len(lines),
        "reward_first": mean_of(lines[:ENDS], "reward/mean"),
        "reward_last": mean_of(lines[-ENDS:], "reward/mean"),
        "useful_groups": sum(int(line["groups/useful"]) for line in lines),
        "tried_groups": sum(int(line["groups/tried"]) for line in lines),
        "failed_episodes": sum(int(line["episodes/failed"]) for line in lines),
        "mismatch_max_abs": max(apart, default=None),
        "rollout_tokens_per_second": mean_of(lines, "tokens_per_second/rollout"),
        "train_tokens_per_second": mean_of(lines, "tokens_per_second/train"),
        "padding_share": mean_of(lines, "train/padding_share"),
        "shared_share": mean_of(lines, "train/shared_share"),
        "alarms": _alarms(lines),
        "validation": {line["step"]: line["val/pass@1"] for line in lines if line.get("val/pass@1") is not None},
    }


def _alarms(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Name of each alarm of the monitors -> the first step that raised it."""
    found: dict[str, int] = {}
    for line in lines:
        for name in (name for name, value in line.items() if name.startswith(ALARM) and value):
            found.setdefault(name.removeprefix(ALARM), int(line["step"]))
    return found


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
