"""Which episodes count in a dataset, a loss, a group's mean: one rule for the rollout filter, both trainers and the viewer."""

from __future__ import annotations

import functools
from collections.abc import Collection

from tau2rl.config import AlgoConfig
from tau2rl.types import Episode, Fault, Status, TaskRef
from tau2rl.verify.blame import Blame, TaskFacts, blame, facts_of

KNOWN_TASKS = 4096  # whose facts are kept: tens of kilobytes each


def is_evidence(episode: Episode, algo: AlgoConfig) -> bool:
    """Whether an episode says something about the policy.

    Not one that FAILED or holds no sampled turn, nor, where `algo` says so, one that was cut off or spoiled.
    """
    if episode.status is Status.FAILED or not episode.turns:
        return False
    if episode.status is Status.TRUNCATED and algo.truncated == "drop":
        return False
    return excluded(episode, algo.exclude_faults) is None


def excluded(episode: Episode, faults: Collection[str]) -> Blame | None:
    """What user or task did to an episode, solved or not, where it is among the faults to leave out; None for what stays."""
    if not faults or episode.failure is not None:
        return None
    found = blame(episode, _facts(episode.task))
    return found if found is not None and found.fault is not Fault.AGENT and found.fault.value in faults else None


@functools.lru_cache(maxsize=KNOWN_TASKS)
def _facts(task: TaskRef) -> TaskFacts:
    return facts_of(task)
