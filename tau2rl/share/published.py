"""Results that others have published, each with its task set, protocol and user simulator; none of them was measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row; shares are from 0 to 1, `domains` without those that it does not have."""

    model: str
    domains: dict[str, float]  # pass@1
    split: str
    tasks: str
    protocol: str
    user: str
    source: str


_TEST = "test split at 337326e: 20 airline, 40 retail, 40 telecom"
_COOKBOOK = "cookbook"
_USER = "gpt-4.1-mini at 0.7, the default of its evaluation script"
ROWS = (
    Published(
        model="Qwen3-4B-tau2-grpo-v1", domains={"airline": 0.15, "retail": 0.55, "telecom": 0.275},
        split="test", tasks=_TEST, protocol=_COOKBOOK, user=_USER, source="its model card; sampled",
    ),
    Published(
        model="Qwen3-4B-tau2-sft1", domains={"airline": 0.2, "retail": 0.6, "telecom": 0.3},
        split="test", tasks=_TEST, protocol=_COOKBOOK, user=_USER, source="its model card; greedy",
    ),
    Published(
        model="Qwen3-4B-tau2-sft1", domains={"airline": 0.2, "retail": 0.5, "telecom": 0.075},
        split="test", tasks=_TEST, protocol=_COOKBOOK, user=_USER, source="README of Tau2-RL-Pipeline",
    ),
    Published(
        model="WRIT, Qwen3-4B-Instruct-2507", domains={"airline": 0.61, "retail": 0.7105},
        split="base", tasks="base split: 50 airline, 114 retail; 4 trials", protocol="not stated here: see the source",
        user="not stated here: see the source", source="arXiv 2606.02908",
    ),
)  # fmt: skip


def beside(domain: str, split: str) -> list[Published]:
    """The rows on the tasks of this domain and split.

    >>> [row.model for row in beside("retail", "base")], beside("mock", "synth-test")
    (['WRIT, Qwen3-4B-Instruct-2507'], [])
    """
    return [row for row in ROWS if domain in row.domains and row.split == split]
