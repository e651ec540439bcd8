"""`train-learn` and `train-select`: a domain's training tasks, cut in two, to train on and to choose a checkpoint by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

LEARN, SELECT = "train-learn", "train-select"
SHARE = 0.15  # of each domain's training tasks are set apart


def set_apart(domain: str, kinds: Mapping[str, str]) -> set[str]:
    """The ids that belong to `train-select`, at least one; `kinds` maps every training id to its kind of task.

    Systematic sampling: tasks at even distances in the order of (kind, hash), so that each kind has its share.

    >>> kinds = {str(i): "writes" if i < 50 else "reads" for i in range(74)}
    >>> apart = set_apart("retail", kinds)
    >>> len(apart), sum(kinds[id] == "writes" for id in apart)
    (11, 7)
    """
    ranked = sorted(kinds, key=lambda id: (kinds[id], hashlib.sha256(f"{SELECT}/{domain}/{id}".encode()).digest()))
    count = max(1, round(SHARE * len(ranked)))
    return {ranked[(2 * i + 1) * len(ranked) // (2 * count)] for i in range(count)}


def stratum(id: str, task: Any, tool_types: Mapping[str, str]) -> str:
    """Telecom: the intent that the id begins with. Others: whether the reference path changes anything."""
    if id.startswith("["):
        return id.partition("]")[0]
    actions = (task.evaluation_criteria.actions if task.evaluation_criteria else None) or ()
    return "writes" if any(tool_types.get(action.name) == "write" for action in actions) else "reads"


def half(split: str, domain: str, train: Mapping[str, Any], tool_types: Mapping[str, str]) -> dict[str, Any]:
    """The tasks of `train-learn` or `train-select`, in the order of `train`."""
    apart = set_apart(domain, {id: stratum(id, task, tool_types) for id, task in train.items()})
    return {id: task for id, task in train.items() if (id in apart) == (split == SELECT)}
