"""Counts over a stream of records, small enough for millions of episodes: no record is kept.

Each planned attempt ends in one of three ways: a valid episode (completed, truncated or malformed), FAILED, or missing.
Which of several records of one attempt counts is one rule (`replaces`), for report, dataset and checkpoint selection alike.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tau2rl.types import Attempt, Episode, EpisodeRecord, Fault, Status

Value = TypeVar("Value")

MAX_REASONS = 1000  # different messages that are counted; an outage has few


@dataclass(slots=True, kw_only=True)
class TaskCount:
    """Attempts at one task: `TaskCount(planned=4, valid=3, solved=1)`."""

    planned: int = 0
    valid: int = 0
    solved: int = 0


class _State(Enum):
    MISSING = 0
    FAILED = 1
    VALID = 2


class Aggregate:
    """What a report is made of; feed it records in the order in which they were written."""

    def __init__(self, planned: Sequence[Attempt]) -> None:
        self.sampled: dict[str, TaskCount] = {}
        self.greedy: dict[str, TaskCount] = {}
        self.solved_at: Counter[tuple[str, int]] = Counter()  # (domain, index of the attempt) of sampled ones, for repetitions
        self.statuses: Counter[Status] = Counter()
        self.terminations: Counter[str] = Counter()  # of valid episodes
        self.faults: Counter[Fault] = Counter()  # of valid episodes without success
        self.partial = array("d")  # of sampled episodes
        self.shaped = array("d")
        self.seconds = array("d")
        self.cost_usd = array("d")
        self.turns = array("q")
        self.tokens: Counter[str] = Counter()
        self.failed_tries = 0  # FAILED records, those that a later try made good among them
        self.reasons: Counter[tuple[str, str]] = Counter()  # (fault, message) of FAILED records
        self.unplanned = 0
        self.repeated = 0
        self._states: dict[str, _State] = {}
        self._failures: dict[str, tuple[str, Fault]] = {}
        for attempt in planned:
            if attempt.key not in self._states:
                self._states[attempt.key] = _State.MISSING
                counts = self.greedy if attempt.greedy else self.sampled
                counts.setdefault(attempt.task.key, TaskCount()).planned += 1

    def add(self, record: EpisodeRecord) -> None:
        """Count one record."""
        key, episode = record.attempt.key, record.episode
        state = self._states.get(key)
        if state is None:
            self.unplanned += 1
        elif episode.status is Status.FAILED:
            self.failed_tries += 1
            if episode.failure is not None and (len(self.reasons) < MAX_REASONS or self._reason(episode) in self.reasons):
                self.reasons[self._reason(episode)] += 1
            self.cost_usd.append(sum((turn.usage for turn in episode.turns), episode.user_usage).cost_usd)
            if self._counts_now(state):
                self._states[key] = _State.FAILED
                self._failures[key] = (episode.stop_reason, episode.fault or Fault.INFRA)
        elif not self._counts_now(state):
            self.repeated += 1
        else:
            self._states[key] = _State.VALID
            self._failures.pop(key, None)
            self._add_valid(record)

    @staticmethod
    def _counts_now(state: _State) -> bool:
        """Whether a record counts that comes when the attempt is in this state."""
        return state is _State.MISSING or replaces(earlier_failed=state is _State.FAILED)

    @staticmethod
    def _reason(episode: Episode) -> tuple[str, str]:
        assert episode.failure is not None
        return episode.failure.fault.value, episode.failure.message[:200]

    def _add_valid(self, record: EpisodeRecord) -> None:
        episode = record.episode
        solved = episode.solved
        count = (self.greedy if record.attempt.greedy else self.sampled)[record.attempt.task.key]
        count.valid += 1
        count.solved += solved
        if solved and not record.attempt.greedy:
            self.solved_at[record.attempt.task.domain, record.attempt.index] += 1
        self.statuses[episode.status] += 1
        self.terminations[episode.stop_reason] += 1
        if not solved:
            self.faults[episode.fault or Fault.AGENT] += 1
        if record.score is not None and not record.attempt.greedy:
            for values, value in ((self.partial, record.score.partial), (self.shaped, record.score.shaped)):
                if value is not None:
                    values.append(value)
        self.seconds.append(episode.seconds)
        self.turns.append(len(episode.turns))
        usage = sum((turn.usage for turn in episode.turns), episode.user_usage)
        self.cost_usd.append(usage.cost_usd)
        # A policy that exchanges messages has no token ids; there, only its server knows how much it sampled.
        served = usage.completion_tokens - episode.user_usage.completion_tokens
        self.tokens["sampled"] += episode.sampled_tokens if episode.token_ids else served
        self.tokens["thought"] += episode.thought_tokens
        self.tokens["prompt"] += usage.prompt_tokens - episode.user_usage.prompt_tokens
        self.tokens["cached"] += usage.cached_tokens - episode.user_usage.cached_tokens
        self.tokens["user"] += episode.user_usage.prompt_tokens + episode.user_usage.completion_tokens

    @property
    def failed(self) -> int:
        """Attempts whose every record is FAILED."""
        return len(self._failures)

    def failures(self) -> Iterable[tuple[str, Fault]]:
        """(termination, fault) of each failed attempt."""
        return self._failures.values()

    def not_done(self) -> list[str]:
        """Keys of the attempts without a valid episode, in the order of the plan."""
        return [key for key, state in self._states.items() if state is not _State.VALID]


def domain_of(task_key: str) -> str:
    """The domain in a task's key.

    >>> domain_of("retail/17")
    'retail'
    """
    return task_key.partition("/")[0]


def by_domain(counts: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """What each domain has of task keys with their values, in the order in which they name the domains."""
    out: dict[str, dict[str, Value]] = {}
    for key, count in counts.items():
        out.setdefault(domain_of(key), {})[key] = count
    return out


def replaces(*, earlier_failed: bool) -> bool:
    """Whether the next record of an attempt, whatever it is, takes the place of the one that counts so far.

    >>> replaces(earlier_failed=True), replaces(earlier_failed=False)
    (True, False)
    """
    return earlier_failed


def counted(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """The record that counts of each attempt, in the order in which the attempts first appear; it keeps them all in memory."""
    found: dict[str, EpisodeRecord] = {}
    for record in records:
        before = found.get(record.attempt.key)
        if before is None or replaces(earlier_failed=before.episode.status is Status.FAILED):
            found[record.attempt.key] = record
    return list(found.values())
