"""What a run cost, and what bounds it now: where the time of its episodes went, its tokens, and how busy its process was.

Unlike the results, the account counts every record: a FAILED try and a repeated one were paid for too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tau2rl.types import CallTool, EpisodeRecord, Turn, Usage

BUSY = 0.85  # of one core: a process of Python with one lock has no more than 1, and is late for everybody before that
WAITS_FOR = {
    "policy": "waits for the policy",
    "customer": "waits for the customer",
    "tools": "goes into the tools",
    "rest": "is neither policy nor environment",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What one start of a run took while it played: `Start(seconds=40.0, cpu_seconds=6.5)`; None where it was killed."""

    seconds: float | None  # wall
    cpu_seconds: float | None  # of the process that ran it, threads included and workers not


class Costs:
    """Sums over a stream of records, none of which is kept."""

    def __init__(self) -> None:
        self.episodes = 0
        self.seconds = 0.0  # of all episodes; many run at once, so it is more than the wall time
        self.parts = {"policy": 0.0, "customer": 0.0, "tools": 0.0}
        self.policy = Usage()
        self.user = Usage()

    def add(self, record: EpisodeRecord) -> None:
        """Count one record."""
        episode = record.episode
        self.episodes += 1
        self.seconds += episode.seconds
        self.user += episode.user_usage
        for turn in episode.turns:
            self.policy += turn.usage
            self.parts["policy"] += turn.seconds
            self.parts[_answered_by(turn)] += turn.env_seconds

    def account(self, starts: Sequence[Start]) -> dict[str, Any]:
        """The `cost` of a report, JSON-ready; null with a reason for what is not known."""
        rest = max(0.0, self.seconds - sum(self.parts.values()))
        parts = {**self.parts, "rest": rest}
        shares = {name: value / self.seconds for name, value in parts.items()} if self.seconds else None
        process = _process(starts)
        told = self.policy.prompt_tokens > 0
        return {
            "episodes": self.episodes,
            "episode_seconds": {"total": self.seconds, **parts},
            "shares": shares,
            "tokens": {
                "policy_in": self.policy.prompt_tokens if told else None,
                "policy_out": self.policy.completion_tokens if told else None,
                "policy_cached": self.policy.cached_tokens if told else None,
                "user_in": self.user.prompt_tokens,
                "user_out": self.user.completion_tokens,
                "reason": None if told else "the policy counts no tokens",
            },
            "process": process,
            "bound": _bound(shares, process["busy"]),
        }


def _answered_by(turn: Turn) -> str:
    """Who the environment's time of a turn went to: a turn that calls tools gets their results, any other the customer's answer.

    The customer's own tools, and the grading after its last word, are part of the latter.
    """
    return "tools" if any(isinstance(action, CallTool) for action in turn.actions) else "customer"


def _process(starts: Sequence[Start]) -> dict[str, Any]:
    """Wall and CPU seconds of all starts, and the cores that the process kept busy."""
    wall = [start.seconds for start in starts if start.seconds is not None]
    cpu = [start.cpu_seconds for start in starts if start.cpu_seconds is not None]
    if not starts or min(len(wall), len(cpu)) < len(starts):
        lost = f"{len(starts) - min(len(wall), len(cpu))} of {len(starts)} starts ended before they could say what they took"
        reason = lost if starts else "no start of the run says what it took"
        return {"wall_seconds": None, "cpu_seconds": None, "busy": None, "reason": reason}
    busy = sum(cpu) / sum(wall) if sum(wall) else None
    return {"wall_seconds": sum(wall), "cpu_seconds": sum(cpu), "busy": busy, "reason": None}


def _bound(shares: Mapping[str, float] | None, busy: float | None) -> str | None:
    """A sentence: what the run would have to get faster at."""
    if not shares:
        return None
    largest = max(shares, key=shares.__getitem__)
    words = f"{shares[largest]:.0%} of episode time {WAITS_FOR[largest]}"
    if busy is None:
        return words
    if busy >= BUSY:  # whoever waits in a process that is behind waits for the process
        return f"the process itself is the bound, busy {busy:.0%} of the time; {words}"
    return f"{words}, the process was busy {busy:.0%} of the time"
