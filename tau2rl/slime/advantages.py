"""Scores of a batch of slime samples -> one advantage a sample, or one a token. Pure: what the hooks of slime return.

A group is the attempts at one task (`Sample.group_index`); an attempt may have come as several samples (fan-out), which share
`Sample.rollout_id`, are one member of their group and have one advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from tau2rl.config import AlgoConfig
from tau2rl.config.kinds import TURN_ESTIMATORS
from tau2rl.reward.advantages import group_advantages
from tau2rl.slime.samples import SampleMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One sample: `Member(metadata=..., group=3, attempt=25, length=812)`."""

    metadata: SampleMetadata
    group: Hashable
    attempt: Hashable  # the same for the samples of one attempt, different between groups too
    length: int  # tokens of the response


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAdvantages:
    """What slime is told of each sample, [samples]."""

    raw: list[float]  # for its curves: tau2's reward
    rewards: list[float]  # for its trainer: the advantage; for an estimator of turns that of the outcome, which only curves show
    tokens: list[list[float]] | None  # [samples][length]: the advantage of each token, for an estimator of turns
    trained: list[bool]  # evidence, in a group that has a signal; an attempt with an average score is in every mean


def batch_advantages(members: Sequence[Member], spec: AlgoConfig) -> BatchAdvantages:
    """The advantages of a batch, whatever the sizes of its groups.

    >>> def member(group: int, attempt: int, score: float | None) -> Member:
    ...     found = SampleMetadata(task="a/b", domain="a", split="c", status="completed", evidence=score is not None, score=score)
    ...     return Member(metadata=found, group=group, attempt=attempt, length=2)
    >>> batch = [member(0, 0, 1.0), member(1, 1, 3.0), member(0, 2, 0.0), member(0, 3, None), member(1, 4, 1.0)]
    >>> batch_advantages(batch, AlgoConfig(estimator="dr_grpo")).rewards
    [0.5, 1.0, -0.5, 0.0, -1.0]
    """
    per_turn = spec.estimator in TURN_ESTIMATORS
    outcomes = AlgoConfig(estimator="grpo") if per_turn else spec
    rewards = [0.0] * len(members)
    tokens = [[0.0] * member.length for member in members] if per_turn else None
    trained = [False] * len(members)
    for group in _alike(range(len(members)), lambda i: members[i].group):
        for i, values in _advantages(members, group, outcomes).items():
            rewards[i] = values[0] if values else 0.0
        if tokens is not None:
            for i, values in _advantages(members, group, spec).items():
                tokens[i] = _spread(members[i], values) if values else tokens[i]
        has_signal = any(rewards[i] if tokens is None else any(tokens[i]) for i in group)
        for i in group:
            trained[i] = has_signal and members[i].metadata.evidence and members[i].metadata.score is not None
    known = [m.metadata.reward for m in members if m.metadata.reward is not None]
    unknown = math.fsum(known) / len(known) if known else 0.0  # moves no mean of slime's
    return BatchAdvantages(
        raw=[unknown if m.metadata.reward is None else m.metadata.reward for m in members],
        rewards=rewards,
        tokens=tokens,
        trained=trained,
    )


def _advantages(members: Sequence[Member], group: Sequence[int], spec: AlgoConfig) -> dict[int, tuple[float, ...] | None]:
    """Sample -> the advantage of its attempt, or of each turn of it; None where it is no evidence."""
    attempts = _alike(group, lambda i: members[i].attempt)
    # Any evident sample of an attempt speaks for it: they carry the metadata of the one episode.
    speakers = [next((i for i in samples if members[i].metadata.evidence), samples[0]) for samples in attempts]
    scores_G = [members[i].metadata.score if members[i].metadata.evidence else None for i in speakers]
    found = group_advantages(scores_G, [members[i].metadata.turn_rewards for i in speakers], spec)
    return {
        i: value if members[i].metadata.evidence else None
        for samples, value in zip(attempts, found, strict=True)
        for i in samples
    }


def _spread(member: Member, values: Sequence[float]) -> list[float]:
    """The advantage of each token of the response; 0.0 on what the environment wrote."""
    row = [0.0] * member.length
    for turn, start, end in member.metadata.spans:
        row[start:end] = [values[turn]] * (end - start)
    return row


def _alike(samples: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for i in samples:
        found.setdefault(key(i), []).append(i)
    return list(found.values())
